"""The command line of the audit: list, show, verify, report."""

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TextIO
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click
from rich.table import Table

from bot.terminal import fail, login, out, progress_shown, ready_database, visible

if TYPE_CHECKING:
    from bot.database.audit_log import Verification
    from bot.database.store import SqlStore
    from bot.domain.witness import Witness

LONGEST_WITNESS_FILE: Final = 10_000_000
PIPED_WIDTH: Final = 240
"""A table that goes into a file or another program keeps its uuids in one piece."""


@click.group()
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

    with ready_database() as database:
        events = AuditLog(database).list(Filter(**wanted), limit=limit)
    _print_events(events, form)


@audit.command("show")
@click.argument("request_id", type=click.IntRange(1, 2**62), metavar="N")
@click.option("--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True)
def audit_show(request_id: int, form: str) -> None:
    """Tell one request's whole story, oldest first."""
    from bot.database.audit_log import AuditLog, Filter  # noqa: PLC0415

    with ready_database() as database:
        events = AuditLog(database).list(Filter(request_id=request_id), limit=100_000, newest_first=False)
    if not events:
        fail(f"there is no request #{request_id}")
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
    with ready_database(read_only=not record) as database:
        with progress_shown("verified") as progress:
            result = AuditLog(database).verify(witnesses, progress=progress)
        if record:
            _record_verification(SqlStore(database), result)
    if result.fault is not None:
        fail(f"the audit does not verify: {result.fault}")
    agreed = f"; {result.witnesses} witnesses agree" if witnesses else ""
    out.print(f"{result.events} events verified; the chain ends at {result.head_seq} {result.head_hash}{agreed}")


class _Zone(click.ParamType[ZoneInfo]):
    name = "timezone"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> ZoneInfo:
        if isinstance(value, ZoneInfo):
            return value
        try:
            return ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            self.fail(f"{value!r} is no time zone: write UTC or Asia/Seoul", param, ctx)


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


def _record_verification(store: "SqlStore", result: "Verification") -> None:
    from bot.domain.audit import Action, Actor, Outcome  # noqa: PLC0415

    with store.transaction() as tx:
        tx.record(
            Action.AUDIT_VERIFIED,
            actor=Actor(id=f"cli:{login()}"),
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


def _print_events(events: list[dict[str, Any]], form: str) -> None:
    if form == "json":
        for event in events:
            sys.stdout.write(visible(json.dumps(event, ensure_ascii=False)) + "\n")
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
    if not out.is_terminal:
        out.width = PIPED_WIDTH
    out.print(table)


def _actor(event: dict[str, Any]) -> str:
    return f"{event['actor']} ({event['actor_name']})" if event["actor_name"] else str(event["actor"])


def _in_brief(details: dict[str, Any]) -> str:
    """The plain facts of an event; the long ones are in the JSON."""
    return " ".join(f"{name}={value}" for name, value in details.items() if not isinstance(value, dict | list))
