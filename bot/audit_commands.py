"""The command line of the audit: list, show, verify, checkpoint, export, prune, reconcile, evidence, report."""

import csv
import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from difflib import get_close_matches
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
from rich.table import Table

from bot.domain.visible import visible
from bot.terminal import (
    FOUND_SOMETHING_WRONG,
    audit_settings,
    bot_settings,
    fail,
    login,
    out,
    progress_shown,
    ready_database,
)

if TYPE_CHECKING:
    from bot.audit.reconcile import Reconciliation
    from bot.database.engine import Database
    from bot.database.store import SqlStore
    from bot.database.verification import Verification
    from bot.domain.checkpoint import Checkpoint, SignedCheckpoint
    from bot.domain.reconciliation import Finding
    from bot.domain.witness import Witness

LONGEST_WITNESS_FILE: Final = 10_000_000
LONGEST_CHECKPOINT_FILE: Final = 10_000_000
PUBLIC_KEY: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
PIPED_WIDTH: Final = 240
"""A table that goes into a file or another program keeps its uuids in one piece."""


@click.group()
def audit() -> None:
    """Read and verify the audit, and compare it with the exchange."""


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


class _Amount(click.ParamType[Decimal]):
    name = "amount"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Decimal:
        from bot.domain.event_filter import read_amount  # noqa: PLC0415

        amount = value if isinstance(value, Decimal) else read_amount(value)
        if amount is None:
            self.fail(f"{value!r} is no amount: write 50000000, without separators or a sign", param, ctx)
        return amount


class _Word(click.ParamType[str]):
    """A word that the audit knows; a wrong one is answered with the nearest ones."""

    name = "word"

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        from bot.domain.audit import Action, Reason  # noqa: PLC0415

        known = [each.value for each in (Action if self._kind == "action" else Reason)]
        if value not in known:
            nearest = get_close_matches(value, known, n=3, cutoff=0.4)
            hint = f": did you mean {' or '.join(nearest)}?" if nearest else ": docs/audit.md lists them"
            self.fail(f"there is no {self._kind} {value!r}{hint}", param, ctx)
        return str(value)


def _narrowed(command: Callable[..., None]) -> Callable[..., None]:
    """The options by which events are chosen, by the names of Filter."""
    options = (
        click.option("--order", "order_uuid", help="Only this order's uuid."),
        click.option("--request", "request_id", type=click.IntRange(1, 2**62), help="Only this request."),
        click.option("--actor", help="Only this Slack user id, `system` or `cli:<login>`."),
        click.option("--market", help="Only this market, such as KRW-BTC."),
        click.option("--action", type=_Word("action"), help="Only this action, such as cancel.sent."),
        click.option("--outcome", type=click.Choice(["ok", "refused", "failed", "unknown"]), help="Only this outcome."),
        click.option("--reason", "details_reason", type=_Word("reason"), help="Only this reason, such as own_request."),
        click.option(
            "--over",
            "over_krw",
            type=_Amount(),
            help="Only requests for orders of which more than this amount of KRW remained when approval was asked for "
            "(price times remaining volume): their events from then on. On KRW markets only; what nobody could tell "
            "counts as more.",
        ),
        click.option(
            "--own", is_flag=True, default=None, help="Only approvals by the very person who had asked, allowed or not."
        ),
        click.option("--since", type=_Time(), help="From this time on (UTC unless it says otherwise)."),
        click.option("--until", type=_Time(), help="Before this time."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@audit.command("list")
@_narrowed
@click.option("--limit", type=click.IntRange(1, 100_000), default=100, show_default=True, help="At most so many.")
@click.option("--before", "before_seq", type=click.IntRange(1, 2**62), help="Only events before this number: go on.")
@click.option("--format", "form", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True)
def audit_list(*, limit: int, form: str, **wanted: Any) -> None:
    """List events, newest first."""
    from bot.database.audit_log import AuditLog  # noqa: PLC0415
    from bot.domain.event_filter import Filter  # noqa: PLC0415

    with ready_database() as database:
        events = AuditLog(database).list(Filter(**wanted), limit=limit + 1)
    _print_events(events[:limit], form)
    if len(events) > limit and (form == "table" or sys.stderr.isatty()):
        more = f"there are older ones: go on with --before {events[limit - 1]['seq']}"
        click.echo(more, err=form != "table")


@audit.command("show")
@click.argument("request_id", type=click.IntRange(1, 2**62), metavar="N")
@click.option("--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True)
def audit_show(request_id: int, form: str) -> None:
    """Tell one request's whole story, oldest first, and what came of it."""
    from bot.audit.story import tell_story  # noqa: PLC0415
    from bot.database.audit_log import AuditLog  # noqa: PLC0415
    from bot.database.snapshot import snapshot  # noqa: PLC0415
    from bot.domain.audit import Action  # noqa: PLC0415
    from bot.domain.event_filter import Filter  # noqa: PLC0415

    with ready_database() as database:
        events = AuditLog(database).list(Filter(request_id=request_id), limit=100_000, newest_first=False)
        with snapshot(database) as seen:
            base_seq = seen.base_seq
    if not events and base_seq:
        fail(
            f"there is no event of request #{request_id}: those up to {base_seq} were pruned, and are in their archive"
        )
    if not events:
        fail(f"there is no request #{request_id}")
    if form == "json":
        _print_events(events, form)
    else:
        for line in tell_story(request_id, events):
            click.echo(visible(line))
    if base_seq and events[0]["action"] != Action.REQUEST_CREATED:
        click.echo(f"how it began is in an archive: the events up to {base_seq} were pruned", err=True)


@audit.command("verify")
@click.option(
    "--witness",
    type=click.File(encoding="utf-8"),
    help="A file with what others saw: an event's number and hash a line.",
)
@click.option(
    "--checkpoint",
    type=click.File(encoding="utf-8"),
    help="A file with signed checkpoints, one a line, as the bot posts them.",
)
@click.option(
    "--public-key",
    "public_keys",
    multiple=True,
    metavar="HEX",
    help="Who must have signed them, else the owner of CHECKPOINT_KEY; once for each key, where it was replaced.",
)
@click.option(
    "--archive",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of `bot audit export`, in place of the database.",
)
@click.option("--record", is_flag=True, help="Write into the audit that it was verified, and what was found.")
def audit_verify(
    *,
    witness: TextIO | None,
    checkpoint: TextIO | None,
    public_keys: tuple[str, ...],
    archive: Path | None,
    record: bool,
) -> None:
    """Verify the chain of hashes from the first event to the last."""
    if archive is not None:
        if witness is not None or record:
            raise click.UsageError("--archive needs no database: it goes with --checkpoint and --public-key only")
        _verify_archive(archive, checkpoint, public_keys)
        return
    from bot.database.store import SqlStore  # noqa: PLC0415
    from bot.database.verification import verify  # noqa: PLC0415

    if public_keys and checkpoint is None:
        raise click.UsageError("--public-key says who signed a --checkpoint: give that file, too")
    witnesses = _witnesses(witness) if witness is not None else ()
    checkpoints = _checkpoints(checkpoint, public_keys) if checkpoint is not None else ()
    with ready_database(read_only=not record) as database:
        with progress_shown("verified") as progress:
            result = verify(database, witnesses, checkpoints, progress=progress)
        if record:
            _record_verification(SqlStore(database), result)
    if result.fault is not None:
        fail(f"the audit does not verify: {result.fault}")
    out.print("; ".join(_found(result, is_witnessed=bool(witnesses), checkpoints=checkpoints)))
    if (witnesses or checkpoints) and not result.witnesses + result.checkpoints:
        fail(f"nothing was compared: all that was given is older than event {result.base_seq}, up to which was pruned")


def _verify_archive(path: Path, given: TextIO | None, public_keys: tuple[str, ...]) -> None:
    from bot.audit.archive import BrokenArchive, sha256_path, verify_archive  # noqa: PLC0415

    checkpoints = _checkpoints_of_archive(path, given, public_keys)
    try:
        with progress_shown("verified") as progress:
            result = verify_archive(path, checkpoints, progress=progress)
    except BrokenArchive as error:
        fail(f"the archive does not verify: {error}")
    except OSError as error:
        fail(f"{path} cannot be read ({error.strerror})")
    said = [f"{result.events} events verified, {result.base_seq + 1} to {result.last_seq} {result.last_hash}"]
    if sha256_path(path).exists():
        said.append("its SHA-256 agrees")
    if checkpoints:
        said.append(f"{result.checkpoints} checkpoints agree")
    else:
        said.append("no checkpoint was compared, so that it may have been rewritten as a whole: see --public-key")
    if result.not_in_it:
        said.append(f"{result.not_in_it} are of events that are not in it, and could not be compared")
    out.print("; ".join(said))
    if checkpoints and not result.checkpoints:
        fail("nothing was compared: none of the checkpoints is of an event of this archive")


def _checkpoints_of_archive(path: Path, given: TextIO | None, public_keys: tuple[str, ...]) -> "Sequence[Checkpoint]":
    """Those that were given, else that which lies beside the archive, where it is known who must have signed it."""
    from bot.audit.archive import checkpoint_path  # noqa: PLC0415

    if given is not None:
        return _checkpoints(given, public_keys)
    beside = checkpoint_path(path)
    if public_keys and not beside.exists():
        raise click.UsageError(f"there is no {beside}: say with --checkpoint what the owner of --public-key has signed")
    if not beside.exists() or not (public_keys or audit_settings().checkpoint_key.get_secret_value()):
        return ()
    with beside.open(encoding="utf-8") as file:
        return _checkpoints(file, public_keys)


def _found(result: "Verification", *, is_witnessed: bool, checkpoints: "Sequence[Checkpoint]") -> Iterator[str]:
    yield f"{result.events} events verified"
    if result.base_seq:
        yield f"the events up to {result.base_seq} were pruned, and only their archive proves them"
    yield f"the chain ends at {result.head_seq} {result.head_hash}"
    if is_witnessed:
        yield f"{result.witnesses} witnesses agree"
    if checkpoints:
        newest = max(checkpoints, key=lambda each: each.seq)
        yield f"{result.checkpoints} checkpoints agree"
        if result.checkpoints:
            yield f"nothing up to event {newest.seq} was altered since {newest.at}"
    if result.too_old:
        yield f"{result.too_old} are older than what is left, and could not be compared"


class _Zone(click.ParamType[ZoneInfo]):
    name = "timezone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ZoneInfo:
        if isinstance(value, ZoneInfo):
            return value
        try:
            return ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.fail(f"{value!r} is no time zone: write UTC or Asia/Seoul", param, ctx)


def _record_verification(store: "SqlStore", result: "Verification") -> None:
    from bot.domain.audit import Action, Actor, Outcome  # noqa: PLC0415

    with store.transaction() as tx:
        tx.record(
            Action.AUDIT_VERIFIED,
            actor=Actor(id=f"cli:{login()}"),
            outcome=Outcome.OK if result.fault is None else Outcome.FAILED,
            details={
                "events": result.events,
                "base_seq": result.base_seq,
                "head": f"{result.head_seq} {result.head_hash}",
                "witnesses": result.witnesses,
                "checkpoints": result.checkpoints,
                "too_old": result.too_old,
                "fault": result.fault,
            },
        )


def _witnesses(file: TextIO) -> "tuple[Witness, ...]":
    from bot.domain.witness import parse_witnesses  # noqa: PLC0415

    try:
        return parse_witnesses(file.read(LONGEST_WITNESS_FILE))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--witness") from None


def _checkpoints(file: TextIO, public_keys: tuple[str, ...]) -> "tuple[Checkpoint, ...]":
    return tuple(signed.checkpoint for signed in _signed_checkpoints(file, public_keys))


def _signed_checkpoints(file: TextIO, public_keys: tuple[str, ...]) -> "tuple[SignedCheckpoint, ...]":
    """The checkpoints of the file, each with a good signature of an expected key; else the command ends here."""
    from bot.audit.signing import Signer, is_signed  # noqa: PLC0415
    from bot.domain.checkpoint import parse_checkpoints  # noqa: PLC0415

    try:
        found = parse_checkpoints(file.read(LONGEST_CHECKPOINT_FILE))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--checkpoint") from None
    expected = {key.lower() for key in public_keys}
    if any(PUBLIC_KEY.fullmatch(key) is None for key in expected):
        raise click.BadParameter("write the 64 hex digits of a public key", param_hint="--public-key")
    if not expected:
        own = audit_settings().checkpoint_key.get_secret_value()
        if not own:
            raise click.UsageError(
                f"the file names the key {found[0].key}, and anybody can name one: if it is the key that you noted, "
                "say so with --public-key"
            )
        expected = {Signer(own).public_key}
    for number, signed in enumerate(found, start=1):
        if signed.key not in expected:
            fail(f"checkpoint {number} of the file is signed by another key: {signed.key}")
        if not is_signed(signed):
            fail(f"checkpoint {number} of the file was altered: its signature is not good")
    return found


@audit.command("checkpoint")
@click.option(
    "--out", "path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Not to the terminal."
)
@click.option("--force", is_flag=True, help="Replace FILE.")
def audit_checkpoint(*, path: Path | None, force: bool) -> None:
    """Sign the end of the chain, once it is verified, with CHECKPOINT_KEY."""
    from bot.audit.signing import Signer  # noqa: PLC0415
    from bot.audit.whole_file import Unwritable, refuse_unwritable, write_whole  # noqa: PLC0415
    from bot.database.checkpoints import Checkpoints  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415
    from bot.domain.errors import AuditBroken  # noqa: PLC0415

    settings = audit_settings()
    private_key = settings.checkpoint_key.get_secret_value()
    if not private_key:
        raise click.UsageError(
            "CHECKPOINT_KEY is empty: set it to 64 hex digits, such as `openssl rand -hex 32` prints"
        )
    if path is not None:
        try:
            refuse_unwritable(path, force=force)
        except Unwritable as error:
            raise click.UsageError(str(error)) from None
    signer, actor = Signer(private_key), Actor(id=f"cli:{login()}")
    try:
        with ready_database(read_only=False) as database, progress_shown("verified") as progress:
            signed = Checkpoints(database).make(
                signer.sign, actor=actor, is_to_post=bool(settings.checkpoint_channel), progress=progress
            )
    except AuditBroken as error:
        fail(f"nothing was signed, as the audit does not verify: {error}")
    click.echo(f"signed by the key whose public key is {signer.public_key}", err=True)
    if path is None:
        click.echo(str(signed))
        return
    try:
        write_whole(path, f"{signed}\n".encode(), force=force)
    except (Unwritable, OSError) as error:
        click.echo(str(signed))
        why = error.strerror if isinstance(error, OSError) else str(error)
        fail(f"{path} could not be written ({why}): the line above is the checkpoint")


@audit.command("reconcile")
@click.option("--since", type=_Time(), required=True, help="Orders created, and requests ended, from this time on.")
@click.option("--until", type=_Time(), help="Before this time; now if not given.")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def audit_reconcile(*, since: datetime, until: datetime | None, form: str) -> None:
    """Compare with the exchange's canceled orders, and write down what was found."""
    import time  # noqa: PLC0415

    from bot.app import build_upbit_client  # noqa: PLC0415 - other commands start without Upbit's and Slack's libraries
    from bot.audit.reconcile import CannotRecord, NoSpan, reconcile  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415

    settings = bot_settings()
    with ready_database(read_only=False) as database:
        exchange = build_upbit_client(settings)
        try:
            result = reconcile(
                database,
                exchange,
                since=since,
                until=until,
                actor=Actor(id=f"cli:{login()}"),
                monotonic=time.monotonic,
                pause=time.sleep,
            )
        except CannotRecord as error:
            fail(f"what is found is written into the audit, and that cannot be done: use the bot's account ({error})")
        except NoSpan:
            raise click.UsageError("--since must be before --until, and before now") from None
        finally:
            exchange.close()
    _print_findings(result.findings, form)
    if result.unread is not None:
        fail(f"the exchange could not be read whole, so that nothing is proven: {result.unread}")
    _sum_up(result)
    if result.is_wrong:
        sys.exit(FOUND_SOMETHING_WRONG)


def _print_findings(findings: "list[Finding]", form: str) -> None:
    if form == "json":
        for finding in findings:
            sys.stdout.write(visible(json.dumps(finding.to_json(), ensure_ascii=False)) + "\n")
        return
    if not findings:
        return
    table = Table(box=None, pad_edge=False)
    for heading in ("finding", "order", "request", "recorded", "on the exchange"):
        table.add_column(heading, overflow="fold")
    for finding in findings:
        table.add_row(
            finding.kind,
            finding.order_uuid,
            "" if finding.request_id is None else f"#{finding.request_id}",
            visible(finding.recorded),
            visible(finding.exchange),
        )
    _print_table(table)


def _sum_up(result: "Reconciliation") -> None:
    """To standard error, so that JSON stays JSON."""
    from bot.domain.reconciliation import Kind  # noqa: PLC0415

    counts = ", ".join(f"{result.count(kind)} {kind}" for kind in Kind)
    compared = f"{result.canceled_on_exchange} canceled orders and {result.requests} requests compared"
    click.echo(f"{compared}: {counts}", err=True)


@audit.command("evidence")
@click.argument("request_id", type=click.IntRange(1, 2**62), metavar="N")
@click.option("--out", "path", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The zip file.")
@click.option("--force", is_flag=True, help="Replace FILE.")
def audit_evidence(*, request_id: int, path: Path, force: bool) -> None:
    """Pack what happened to one request, signed with CHECKPOINT_KEY, so that anybody can check it."""
    from bot.audit.evidence import CannotPack, pack_evidence  # noqa: PLC0415
    from bot.audit.signing import Signer  # noqa: PLC0415
    from bot.audit.whole_file import Unwritable  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415

    private_key = audit_settings().checkpoint_key.get_secret_value()
    if not private_key:
        fail("CHECKPOINT_KEY is empty, and a pack must be signed: set it to the key of your checkpoints")
    try:
        with ready_database(read_only=False) as database:
            packed = pack_evidence(
                database,
                request_id,
                out=path,
                force=force,
                signer=Signer(private_key),
                actor=Actor(id=f"cli:{login()}"),
                version=version("upbit-cancel-bot"),
            )
    except Unwritable as error:
        raise click.BadParameter(str(error), param_hint="--out") from None
    except CannotPack as error:
        fail(str(error))
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    made = " (made now)" if packed.is_new_checkpoint else ""
    out.print(f"{path}: {packed.events} events of request #{request_id}, and the chain")
    out.print(
        f"from event {packed.first_seq} to the checkpoint{made} of event {packed.last_seq}, other requests included"
    )
    out.print(f"SHA-256 of the pack {packed.sha256}")
    out.print(f"SHA-256 of its verify.py {packed.verifier_sha256}")
    out.print(f"public key {packed.public_key}")


@audit.command("report")
@click.option("--month", required=True, metavar="YYYY-MM", help="Which month.")
@click.option("--timezone", "zone", type=_Zone(), default="UTC", show_default=True, help="Whose days and months.")
@click.option("--out", "path", type=click.Path(path_type=Path), required=True, help="The HTML file to write.")
@click.option("--force", is_flag=True, help="Write over a file that is there.")
def audit_report(*, month: str, zone: ZoneInfo, path: Path, force: bool) -> None:
    """Write the review of a month: one page to read and to print."""
    from bot.audit.month import parse_month  # noqa: PLC0415
    from bot.audit.plots import PlotsMissing, require_plots  # noqa: PLC0415
    from bot.audit.report import CannotRecord, MonthToCome, make_report  # noqa: PLC0415
    from bot.audit.whole_file import Unwritable  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415

    try:
        wanted = parse_month(month, zone)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--month") from None
    try:
        require_plots()
        with ready_database(read_only=False) as database, progress_shown("verified") as progress:
            by = Actor(id=f"cli:{login()}")
            made_with = version("upbit-cancel-bot")
            report = make_report(database, wanted, out=path, force=force, by=by, version=made_with, progress=progress)
    except MonthToCome as error:
        raise click.BadParameter(str(error), param_hint="--month") from None
    except Unwritable as error:
        raise click.BadParameter(str(error), param_hint="--out") from None
    except (PlotsMissing, CannotRecord) as error:
        fail(str(error))
    except OSError as error:
        fail(f"{path} cannot be written: {error.strerror}")
    if report.fault is not None:
        fail(f"the audit does not verify: {report.fault}; {path} says so, too")
    out.print(f"{path}: {report.events} events of {month} in {zone.key}; SHA-256 {report.sha256}")


@audit.command("export")
@click.argument("path", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE")
@_narrowed
@click.option("--force", is_flag=True, help="Replace FILE, and what lies beside it.")
def audit_export(*, path: Path, force: bool, **wanted: Any) -> None:
    """Copy events into FILE, oldest first: CSV, JSON lines or Parquet, as it ends in .csv, .jsonl or .parquet."""
    from bot.audit.export import MayNotRecord, NoEvent, export  # noqa: PLC0415
    from bot.audit.forms import MissingExtra, form_of  # noqa: PLC0415
    from bot.audit.signing import Signer  # noqa: PLC0415
    from bot.audit.whole_file import Unwritable  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415
    from bot.domain.event_filter import Filter  # noqa: PLC0415

    try:
        form_of(path)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="FILE") from None
    key = audit_settings().checkpoint_key.get_secret_value()
    sign = Signer(key).sign if key else None
    actor = Actor(id=f"cli:{login()}")
    try:
        with ready_database(read_only=False) as database, progress_shown("exported") as progress:
            given = Filter(**wanted)
            made = export(database, path, given, force=force, actor=actor, sign=sign, progress=progress)
    except Unwritable as error:
        raise click.UsageError(str(error)) from None
    except MayNotRecord as error:
        fail(f"nothing was exported: an export is written into the audit, and this account may not do that ({error})")
    except NoEvent as error:
        fail(f"nothing was exported: {error}; see `bot audit verify`")
    except MissingExtra as error:
        fail(str(error))
    except OSError as error:
        fail(f"nothing was exported: {path} cannot be written ({error.strerror})")
    out.print(f"{made.events} events exported to {path}; SHA-256 {made.sha256}")
    if made.checkpoint is not None:
        out.print(f"the checkpoint beside it is of event {made.checkpoint.checkpoint.seq}")
    elif made.broken is None:
        out.print("no checkpoint covers it: set CHECKPOINT_KEY, and export again, to have one made")
    if made.broken is not None:
        fail(f"nothing was signed, as the audit does not verify: {made.broken}")


@audit.command("prune")
@click.option("--before", type=_Time(), required=True, help="Remove the events from before this time.")
@click.option(
    "--archive",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    required=True,
    help="The file of `bot audit export` that holds them, with what lies beside it.",
)
@click.option(
    "--public-key", "public_keys", multiple=True, metavar="HEX", help="Who signed it, else the owner of CHECKPOINT_KEY."
)
def audit_prune(*, before: datetime, archive: Path, public_keys: tuple[str, ...]) -> None:
    """Remove old events that an archive is proven to hold; the rest still verifies."""
    from bot.audit.archive import BrokenArchive, checkpoint_path, read_checkpoint  # noqa: PLC0415
    from bot.audit.prune import prune_behind_archive  # noqa: PLC0415
    from bot.database.pruning import CannotPrune  # noqa: PLC0415
    from bot.domain.audit import Actor  # noqa: PLC0415

    actor = Actor(id=f"cli:{login()}")
    try:
        signed, *others = _signed_checkpoints(StringIO(read_checkpoint(archive)), public_keys)
        if others:
            fail(f"nothing was removed: {checkpoint_path(archive)} holds more than the archive's own checkpoint")
        with (
            ready_database(read_only=False) as database,
            _bot_not_running(database),
            progress_shown("compared") as progress,
            _doubt_told(),
        ):
            pruned = prune_behind_archive(
                database, archive, before=before, signed=signed, actor=actor, progress=progress
            )
    except BrokenArchive as error:
        fail(f"nothing was removed: the archive does not verify: {error}")
    except CannotPrune as error:
        fail(f"nothing was removed: {error}")
    except OSError as error:
        fail(f"nothing was removed: {archive} cannot be read ({error.strerror})")
    out.print(f"{pruned.events} events removed, up to {pruned.up_to_seq}; keep {archive} and what lies beside it")


@contextmanager
def _doubt_told() -> Iterator[None]:
    from bot.domain.errors import CommitInDoubt  # noqa: PLC0415

    try:
        yield
    except CommitInDoubt as error:
        fail(f"the database did not say whether the events were removed: `bot audit verify` shows it ({error})")


@contextmanager
def _bot_not_running(database: "Database") -> Iterator[None]:
    """On SQLite nobody else may write for that long; on PostgreSQL the bot waits, or says that nothing was done."""
    from bot.database.engine import DatabaseInUse, RunLock, sqlite_path  # noqa: PLC0415

    path = sqlite_path(str(database.url))
    if path is None:
        yield
        return
    lock = RunLock(path)
    try:
        lock.acquire()
    except DatabaseInUse as error:
        fail(f"nothing was removed: {error}; stop it first")
    try:
        yield
    finally:
        lock.release()


def _print_events(events: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        for event in events:
            sys.stdout.write(visible(json.dumps(event, ensure_ascii=False)) + "\n")
        return
    if form == "csv":
        _print_csv(events)
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
            visible(_actor(event)),
            "" if event["request_id"] is None else f"#{event['request_id']}",
            event["order_uuid"] or "",
            visible(_in_brief(event["details"])),
        )
    _print_table(table)


def _print_table(table: Table) -> None:
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(table)


def _print_csv(events: list[dict[str, Any]]) -> None:
    from bot.audit.cells import guarded  # noqa: PLC0415
    from bot.database.audit_log import LISTED  # noqa: PLC0415

    writer = csv.writer(sys.stdout)
    writer.writerow(LISTED)
    for event in events:
        cells = {**event, "details": json.dumps(event["details"], ensure_ascii=False, sort_keys=True)}
        writer.writerow([visible(guarded("" if cells[name] is None else str(cells[name]))) for name in LISTED])


def _actor(event: dict[str, Any]) -> str:
    return f"{event['actor']} ({event['actor_name']})" if event["actor_name"] else str(event["actor"])


def _in_brief(details: dict[str, Any]) -> str:
    """The plain facts of an event, and whose approvals counted; the long ones are in the JSON."""
    plain = {name: value for name, value in details.items() if not isinstance(value, dict | list)}
    counted = details.get("approvals")
    if isinstance(counted, list):
        plain["approvals"] = ",".join(map(str, counted))
    return " ".join(f"{name}={value}" for name, value in plain.items())
