"""The command line: run | check | migrate | audit list, show, verify | settle | demo | manifest."""

import json
import os
import pwd
import sys
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar

import click
from rich.console import Console
from rich.table import Table

from bot.settings import DatabaseSettings, Settings, SettingsError, load_database_settings, load_settings

if TYPE_CHECKING:
    from bot.database.audit_log import Verification
    from bot.database.store import SqlStore
    from bot.domain.witness import Witness

ENV_FILE: Final = Path(".env")
FOUND_SOMETHING_WRONG: Final = 1
LONGEST_WITNESS_FILE: Final = 10_000_000
PIPED_WIDTH: Final = 240
"""A table that goes into a file or another program keeps its uuids in one piece."""

out = Console(highlight=False, soft_wrap=True, markup=False, emoji=False)


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

    settings = _settings()
    configure_logging(settings.log_level)
    try:
        run_bot(settings)
    except (DatabaseInUse, StoreError, OSError) as error:
        _fail(str(error))


@main.command()
def check() -> None:
    """Try the settings, the database, Slack and Upbit, without changing anything."""
    from bot.database.migration import check_revision  # noqa: PLC0415
    from bot.domain.errors import StoreError  # noqa: PLC0415

    settings = _settings()
    wrong = 0

    def report(what: str, fault: str | None, fine: str) -> None:
        nonlocal wrong
        wrong += fault is not None
        out.print(f"{'✗' if fault else '✓'} {what}: {fault or fine}")

    report("settings", None, f"a request needs {_approvals_needed(settings)}")
    url = settings.database_url.get_secret_value()
    try:
        _require_database(url)
        with _opened(url, read_only=True) as database:
            check_revision(database)
    except (StoreError, click.ClickException) as error:
        report("database", str(error), "")
    else:
        report("database", None, settings.database_shown)
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

    settings = _database_settings()
    try:
        with _opened(settings.database_url.get_secret_value()) as database:
            revision = upgrade(database)
    except StoreError as error:
        _fail(str(error))
    out.print(f"{settings.database_shown} is at revision {revision}")


@main.group()
def audit() -> None:
    """Read and verify the audit."""


class _Time(click.ParamType[datetime]):
    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> datetime:
        if isinstance(value, datetime):
            return value
        try:
            moment = datetime.fromisoformat(value)
            moment.astimezone(UTC)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is no time: write 2026-11-23 or 2026-11-23T09:00:00+09:00", param, ctx)
        return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


@audit.command("list")
@click.option("--order", "order_uuid", help="Only this order's uuid.")
@click.option("--request", "request_id", type=click.IntRange(1, 2**62), help="Only this request.")
@click.option("--actor", help="Only this Slack user id, `system` or `cli:<login>`.")
@click.option("--market", help="Only this market, such as KRW-BTC.")
@click.option("--action", help="Only this action, such as cancel.sent.")
@click.option("--outcome", type=click.Choice(["ok", "refused", "failed", "unknown"]), help="Only this outcome.")
@click.option("--since", type=_Time(), help="From this time on (UTC unless it says otherwise).")
@click.option("--until", type=_Time(), help="Before this time.")
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def audit_list(*, limit: int, form: str, **wanted: Any) -> None:
    """List events, newest first."""
    from bot.database.audit_log import AuditLog, Filter  # noqa: PLC0415

    with _reading() as database:
        events = AuditLog(database).list(Filter(**wanted), limit=limit)
    _print_events(events, form)


@audit.command("show")
@click.argument("request_id", type=click.IntRange(1, 2**62), metavar="N")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def audit_show(request_id: int, form: str) -> None:
    """Tell one request's whole story, oldest first."""
    from bot.database.audit_log import AuditLog, Filter  # noqa: PLC0415

    with _reading() as database:
        events = AuditLog(database).list(Filter(request_id=request_id), limit=100_000, newest_first=False)
    if not events:
        _fail(f"there is no request #{request_id}")
    _print_events(events, form)


@audit.command("verify")
@click.option(
    "--witness",
    type=click.File(encoding="utf-8"),
    help="A file with what others saw: an event's number and hash a line.",
)
@click.option("--record", is_flag=True, help="Write into the audit that it was verified, and what was found.")
def audit_verify(*, witness: TextIO | None, record: bool) -> None:
    """Verify the chain of hashes from the first event to the last."""
    from bot.database.audit_log import AuditLog  # noqa: PLC0415
    from bot.database.store import SqlStore  # noqa: PLC0415

    witnesses = _witnesses(witness) if witness is not None else ()
    with _reading(read_only=not record) as database:
        with _progress("verified") as progress:
            result = AuditLog(database).verify(witnesses, progress=progress)
        if record:
            _record_verification(SqlStore(database), result)
    if result.fault is not None:
        _fail(f"the audit does not verify: {result.fault}")
    agreed = f"; {result.witnesses} witnesses agree" if witnesses else ""
    out.print(f"{result.events} events verified; the chain ends at {result.head_seq} {result.head_hash}{agreed}")


def _record_verification(store: "SqlStore", result: "Verification") -> None:
    from bot.domain.audit import Action, Actor, Outcome  # noqa: PLC0415

    with store.transaction() as tx:
        tx.record(
            Action.AUDIT_VERIFIED,
            actor=Actor(id=f"cli:{_login()}"),
            outcome=Outcome.OK if result.fault is None else Outcome.FAILED,
            details={
                "events": result.events,
                "head": f"{result.head_seq} {result.head_hash}",
                "witnesses": result.witnesses,
                "fault": result.fault,
            },
        )


def _witnesses(file: TextIO) -> "tuple[Witness, ...]":
    from bot.domain.witness import parse_witnesses  # noqa: PLC0415

    try:
        return parse_witnesses(file.read(LONGEST_WITNESS_FILE))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--witness") from None


@contextmanager
def _progress(done: str) -> Iterator[Callable[[int], None]]:
    """Shows how many events have been read, where somebody looks on."""
    from rich.progress import Progress, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.completed} events " + done), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("", total=None)
        yield lambda events: progress.update(task, completed=events)


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
    with _reading(read_only=False) as database:
        try:
            settled = settle_request(
                SqlStore(database),
                request_id,
                verdict=Verdict(verdict),
                reason=reason.strip(),
                actor=Actor(id=f"cli:{_login()}"),
            )
        except IllegalTransition:
            _fail(f"request #{request_id} is not unresolved: see `bot audit show {request_id}`")
    if settled is None:
        _fail(f"there is no request #{request_id}")
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

    notifier, channel_id = build_notifier(settings), settings.approvals_channel
    try:
        identity = notifier.who_am_i()
    except MessengerError as error:
        yield "Slack", f"auth.test failed: {error}", ""
        return
    yield "Slack", None, f"workspace {identity.team_id} ({identity.team_url}), bot {identity.bot_user_id}"
    if not channel_id:
        return
    fault = None
    try:
        if not notifier.can_see_channel(channel_id):
            fault = f"{channel_id} is not in this workspace, or is private without the bot: type /invite there"
    except MessengerError as error:
        fault = f"chat.getPermalink failed: {error}"
    fine = (
        f"the bot sees {channel_id}; whether it is archived, or lets only some people post, Slack tells only when a "
        "card is posted"
    )
    yield "approvals channel", fault, fine


def _fail(fault: str) -> NoReturn:
    click.echo(fault, err=True)
    sys.exit(FOUND_SOMETHING_WRONG)


Loaded = TypeVar("Loaded", bound=DatabaseSettings)


def _settings() -> Settings:
    return _load(load_settings)


def _database_settings() -> DatabaseSettings:
    return _load(load_database_settings)


def _load(load: Callable[[Mapping[str, str], Path | None], Loaded]) -> Loaded:
    try:
        settings = load(os.environ, ENV_FILE if ENV_FILE.is_file() else None)
    except SettingsError as error:
        _fail("\n".join(error.faults))
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    return settings


@contextmanager
def _opened(url: str, *, read_only: bool = False) -> Iterator[Any]:
    from bot.database.engine import Database  # noqa: PLC0415

    database = Database(url, read_only=read_only)
    try:
        yield database
    finally:
        database.close()


@contextmanager
def _reading(*, read_only: bool = True) -> Iterator[Any]:
    """The database, which must be there at the right revision."""
    from bot.database.migration import check_revision  # noqa: PLC0415
    from bot.domain.errors import StoreError  # noqa: PLC0415

    url = _database_settings().database_url.get_secret_value()
    _require_database(url)
    try:
        with _opened(url, read_only=read_only) as database:
            check_revision(database)
            yield database
    except StoreError as error:
        _fail(str(error))


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


def _require_database(url: str) -> None:
    from bot.database.engine import sqlite_path  # noqa: PLC0415

    path = sqlite_path(url)
    if path is not None and not path.is_file():
        raise click.ClickException(f"there is no database at {path}: `bot migrate` creates it")


def _login() -> str:
    # Not what LOGNAME or USER say, which anybody can set.
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def _print_events(events: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        for event in events:
            sys.stdout.write(_visible(json.dumps(event, ensure_ascii=False)) + "\n")
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("seq", "occurred_at", "action", "outcome", "actor", "request", "order", "details"):
        table.add_column(heading, overflow="fold")
    for event in events:
        table.add_row(
            str(event["seq"]),
            event["occurred_at"],
            event["action"],
            event["outcome"],
            _visible(_actor(event)),
            "" if event["request_id"] is None else f"#{event['request_id']}",
            event["order_uuid"] or "",
            _visible(_in_brief(event["details"])),
        )
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(table)


_INVISIBLE: Final = frozenset({"Cc", "Cf", "Co", "Cs", "Zl", "Zp"})
"""Unicode's categories of what a terminal obeys instead of showing it, and of what turns the line around."""


def _visible(text: str) -> str:
    """Text that others chose, as a terminal may have it: control characters in JSON's notation."""
    return "".join(json.dumps(char)[1:-1] if unicodedata.category(char) in _INVISIBLE else char for char in text)


def _actor(event: dict[str, Any]) -> str:
    return f"{event['actor']} ({event['actor_name']})" if event["actor_name"] else str(event["actor"])


def _in_brief(details: dict[str, Any]) -> str:
    """The plain facts of an event; the long ones are in the JSON."""
    return " ".join(f"{name}={value}" for name, value in details.items() if not isinstance(value, dict | list))


if __name__ == "__main__":
    main(prog_name="bot")
