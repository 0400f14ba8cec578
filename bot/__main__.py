"""The command line: run | check | migrate | audit … | settle | demo | manifest."""

import json
import sys
from collections.abc import Iterator

import click

from bot.audit_commands import audit
from bot.settings import Settings
from bot.terminal import (
    FOUND_SOMETHING_WRONG,
    bot_settings,
    database_settings,
    fail,
    login,
    opened,
    out,
    ready_database,
    require_database,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="upbit-cancel-bot")
def main() -> None:
    """Cancel orders on Upbit from Slack, with approval and an audit that can prove itself."""


@main.command()
def run() -> None:
    """Serve Slack: over Socket Mode where SLACK_APP_TOKEN is set, else over HTTP."""
    from bot.app import configure_logging  # noqa: PLC0415 - other commands start without Slack's libraries
    from bot.app import run as run_bot  # noqa: PLC0415
    from bot.database.engine import DatabaseInUse  # noqa: PLC0415
    from bot.domain.errors import StoreError  # noqa: PLC0415

    settings = bot_settings()
    configure_logging(settings.log_level)
    try:
        run_bot(settings)
    except (DatabaseInUse, StoreError, OSError) as error:
        fail(str(error))


@main.command()
def check() -> None:
    """Try the settings, the database, Slack and Upbit, without changing anything."""
    from bot.database.migration import check_revision  # noqa: PLC0415
    from bot.domain.errors import StoreError  # noqa: PLC0415

    settings = bot_settings()
    wrong = 0

    def report(what: str, fault: str | None, fine: str) -> None:
        nonlocal wrong
        wrong += fault is not None
        out.print(f"{'✗' if fault else '✓'} {what}: {fault or fine}")

    report("settings", None, f"a request needs {_approvals_needed(settings)}")
    url = settings.database_url.get_secret_value()
    try:
        require_database(url)
        with opened(url, read_only=True) as database:
            check_revision(database)
    except (StoreError, click.ClickException) as error:
        report("database", str(error), "")
    else:
        report("database", None, settings.database_shown)
    if settings.checkpoint_key.get_secret_value():
        report("checkpoints", None, f"signed by the key whose public key is {_public_key(settings)}")
    for what, fault, fine in _slack_findings(settings):
        report(what, fault, fine)
    for what, fault, fine in _who_can_approve(settings):
        report(what, fault, fine)
    report("Upbit", _key_fault(settings), "the key is valid here and may view orders (주문조회)")
    if wrong:
        sys.exit(FOUND_SOMETHING_WRONG)


@main.command()
def migrate() -> None:
    """Bring the database to the newest revision; create it if need be."""
    from bot.database.migration import migrate as upgrade  # noqa: PLC0415
    from bot.domain.errors import StoreError  # noqa: PLC0415

    settings = database_settings()
    try:
        with opened(settings.database_url.get_secret_value()) as database:
            revision = upgrade(database)
    except StoreError as error:
        fail(str(error))
    out.print(f"{settings.database_shown} is at revision {revision}")


main.add_command(audit)


@main.command()
@click.argument("request_id", type=click.IntRange(1, 2**62), metavar="N")
@click.option("--verdict", type=click.Choice(["canceled", "filled", "open"]), required=True, help="What Upbit shows.")
@click.option("--reason", required=True, help="How you know.")
def settle(request_id: int, verdict: str, reason: str) -> None:
    """Write down what became of an unresolved request, after you looked at Upbit yourself."""
    from bot.database.store import SqlStore  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415
    from bot.domain.cancel_request import Verdict  # noqa: PLC0415
    from bot.domain.errors import IllegalTransition  # noqa: PLC0415
    from bot.workflow import settle as settle_request  # noqa: PLC0415

    if not reason.strip():
        raise click.BadParameter("say how you know", param_hint="--reason")
    with ready_database(read_only=False) as database:
        try:
            settled = settle_request(
                SqlStore(database),
                request_id,
                verdict=Verdict(verdict),
                reason=reason.strip(),
                actor=Actor(id=f"cli:{login()}"),
            )
        except IllegalTransition:
            fail(f"request #{request_id} is not unresolved: see `bot audit show {request_id}`")
    if settled is None:
        fail(f"there is no request #{request_id}")
    out.print(f"request #{request_id} is settled as {verdict}")


@main.command()
@click.option("--http", "request_url", metavar="URL", help="For HTTP instead of Socket Mode: https://…/slack/events.")
def manifest(request_url: str | None) -> None:
    """Print the Slack app's manifest."""
    from bot.slack.manifest import manifest as build  # noqa: PLC0415

    try:
        built = build(socket_mode=request_url is None, request_url=request_url)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--http") from None
    out.print(json.dumps(built, indent=2, ensure_ascii=False))


@main.command()
@click.option("--socket-mode", is_flag=True, help="Let Slack be reached through a WebSocket instead of over HTTP.")
def demo(*, socket_mode: bool) -> None:
    """Play the main job against a Slack workspace and an exchange on loopback."""
    from bot.playground.demo import play  # noqa: PLC0415

    sys.exit(play(socket_mode=socket_mode))


# --- What the commands share ----------------------------------------------------------------------------------------


def _slack_findings(settings: Settings) -> Iterator[tuple[str, str | None, str]]:
    """What was tried at Slack, what is wrong with it, and what can be said for it; nothing is posted."""
    from bot.app import build_notifier  # noqa: PLC0415
    from bot.domain.errors import MessengerError  # noqa: PLC0415

    notifier = build_notifier(settings)
    try:
        identity = notifier.who_am_i()
    except MessengerError as error:
        yield "Slack", f"auth.test failed: {error}", ""
        return
    yield "Slack", None, f"workspace {identity.team_id} ({identity.team_url}), bot {identity.bot_user_id}"
    for what, channel_id, posted in (
        ("approvals channel", settings.approvals_channel, "card"),
        ("checkpoint channel", settings.checkpoint_channel, "checkpoint"),
    ):
        if not channel_id:
            continue
        fault = None
        try:
            if not notifier.can_see_channel(channel_id):
                fault = f"{channel_id} is not in this workspace, or is private without the bot: type /invite there"
        except MessengerError as error:
            fault = f"chat.getPermalink failed: {error}"
        fine = (
            f"the bot sees {channel_id}; whether it is archived, or lets only some people post, Slack tells only when "
            f"a {posted} is posted"
        )
        yield what, fault, fine


def _public_key(settings: Settings) -> str:
    from bot.audit.signing import Signer  # noqa: PLC0415

    return Signer(settings.checkpoint_key.get_secret_value()).public_key


def _approvals_needed(settings: Settings) -> str:
    least = settings.approvals_required
    most = max([least, *(tier.approvals for tier in settings.approval_tiers)])
    if most > least:
        return f"{least} to {most} approvals"
    return "1 approval" if most == 1 else f"{most} approvals"


def _who_can_approve(settings: Settings) -> Iterator[tuple[str, str | None, str]]:
    """What is looked at, what is wrong with it, and what is fine: each user group, then the people of today."""
    from bot.app import build_groups  # noqa: PLC0415
    from bot.domain.membership import UNREAD, is_group  # noqa: PLC0415
    from bot.settings import too_few_approvers  # noqa: PLC0415

    membership = UNREAD
    reader = build_groups(settings)
    if reader is not None:
        reader.refresh()
        membership = reader.membership()
    for group_id, group in sorted(membership.groups.items()):
        listed = f"{len(group.members or ())} members: {', '.join(sorted(group.members or ()))}"
        empty = None if group.members or group.error else "it has no members"
        yield f"user group {group_id}", group.error or empty, listed
    people = membership.people(settings.approvers)
    named = [entry for entry in sorted(settings.approvers) if not is_group(entry)]
    groups = [entry for entry in sorted(settings.approvers) if is_group(entry)]
    faults = too_few_approvers(settings, approvers=people, requesters=membership.people(settings.requesters))
    listed = ", ".join([*named, *(f"members of {group_id}" for group_id in groups)])
    if not people:
        yield "approvers", "nobody can approve", ""
    else:
        yield "approvers", "; ".join(faults) or None, f"{len(people)} can approve today: {listed}"


def _key_fault(settings: Settings) -> str | None:
    """What is wrong with the key at Upbit, found out by a look at an order that there is not."""
    from bot.app import build_upbit_client  # noqa: PLC0415
    from bot.domain.answer import Found, Refused  # noqa: PLC0415

    upbit = build_upbit_client(settings)
    try:
        answer = upbit.get_order("00000000-0000-0000-0000-000000000000")
    finally:
        upbit.close()
    match answer:
        case Found() | Refused(name="order_not_found"):
            return None
        case Refused(name="out_of_scope"):
            return "the key may not view orders: give it 주문조회 beside 주문하기"
        case Refused(name=name):
            return f"refused: {name}"
        case _:
            return f"no answer to rely on: {answer.cause}"


if __name__ == "__main__":
    main(prog_name="bot")
