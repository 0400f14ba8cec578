"""The monthly report: the month's events counted, and one page made of it that needs nothing else to be read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from bot.audit.figures import ALWAYS_LEAST, ALWAYS_SHARE, Review
from bot.audit.month import Month
from bot.audit.plots import bars_plot, days_plot, parts_plot, waits_plot
from bot.audit.review import AT_ONCE, OTHERS, UNKNOWN, review
from bot.audit.whole_file import refuse_unwritable, write_whole
from bot.database.engine import Database
from bot.database.span import span
from bot.database.store import SqlStore
from bot.database.verification import Verification, verify
from bot.domain.audit import Action, Actor, Json
from bot.domain.cancel_request import State
from bot.domain.errors import NothingDone
from bot.domain.visible import visible_lines
from bot.domain.witness import Witness

MEANINGS: Final[Mapping[str, str]] = {
    State.CANCELED: "the exchange shows the order canceled",
    State.FILLED: "the order was fully executed before the cancel took effect",
    State.DENIED: "an approver said no",
    State.WITHDRAWN: "who asked took it back",
    State.EXPIRED: "nobody decided in time",
    State.SUPERSEDED: "filled or canceled elsewhere before enough people had approved",
    State.REFUSED: "the order or the place did not allow it: nobody was asked to approve",
    State.LAPSED: "approved, but not sent in time",
    State.REJECTED: "Upbit refused the cancel",
    State.FAILED: "long after the last try the order was still open",
    f"{State.SETTLED}: canceled": "a named person looked at Upbit: canceled",
    f"{State.SETTLED}: filled": "a named person looked at Upbit: filled",
    f"{State.SETTLED}: open": "a named person looked at Upbit: still open",
}
"""How a request may end, in a few words."""

WARNED: Final = frozenset({State.REJECTED, State.FAILED, State.LAPSED}) | {
    each for each in MEANINGS if each.startswith(State.SETTLED)
}
"""Ends that came after somebody had approved, and are no good ones."""

MINUTE_S: Final = 60
HOUR_S: Final = 3600
DAY_S: Final = 86_400


@dataclass(frozen=True, kw_only=True, slots=True)
class Made:
    """When, by whom and by which version of the bot the report was made."""

    at: datetime
    by: str
    version: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What was written."""

    events: int
    sha256: str
    fault: str | None  #: what is wrong with the chain


class MonthToCome(Exception):
    """Nothing can have happened in it yet."""


class CannotRecord(Exception):
    """Who makes a report stands in the audit, and this account may not write there."""


def make_report(  # noqa: PLR0913 - a report has that many facts
    database: Database,
    month: Month,
    *,
    out: Path,
    force: bool,
    by: Actor,
    version: str,
    progress: Callable[[int], None],
) -> Report:
    """Verify the chain, count the month, and write the page, recorded in the audit before it gets its name.

    `progress` hears how many events are verified. Raises MonthToCome, CannotRecord, Unwritable, OSError,
    StoreError.
    """
    refuse_unwritable(out, force=force)
    store = SqlStore(database)
    try:
        with store.transaction() as tx:  # who cannot record it finds out before the work
            now = tx.now
    except NothingDone as error:
        raise CannotRecord(
            f"the report would not be recorded in the audit ({error}): make it with an account that may write there"
        ) from None
    if month.begins_at > now:
        raise MonthToCome(f"{month.name} has not begun yet")
    verification = verify(database, progress=progress)
    counted = review_month(database, month, last_seq=None if verification.fault else verification.head_seq)
    html = page(counted, verification=verification, made=Made(at=now, by=by.id, version=version))

    def record(sha256: str) -> None:
        details: dict[str, Json] = {
            "month": month.name,
            "timezone": month.zone.key,
            "events": counted.events,
            "file": out.name,
            "sha256": sha256,
            "fault": verification.fault,
        }
        with store.transaction() as tx:
            tx.record(Action.REPORT_MADE, actor=by, details=details)

    sha256 = write_whole(out, html.encode(), force=force, before_naming=record)
    return Report(events=counted.events, sha256=sha256, fault=verification.fault)


def review_month(database: Database, month: Month, *, last_seq: int | None) -> Review:
    """Count the month's events, up to the one with this number. Raises NothingDone."""
    with span(database, begins_at=month.begins_at, ends_at=month.ends_at, last_seq=last_seq) as events:
        counted = review(month, events.events(), before=events.before, unresolved_before=events.unresolved_before())
        return counted.with_unreadable(events.unreadable)


def page(counted: Review, *, verification: Verification, made: Made) -> str:
    """The report as HTML. Whatever people wrote is escaped."""
    head = Witness(seq=verification.head_seq, hash=verification.head_hash)
    html: str = _template().render(
        review=counted,
        month=counted.month,
        title=counted.month.begins_at.astimezone(counted.month.zone).strftime("%B %Y"),
        verification=verification,
        head=str(head),
        made=made,
        is_over=made.at >= counted.month.ends_at,
        plots=_plots(counted),
        meanings=MEANINGS,
        at_once_s=int(AT_ONCE.total_seconds()),
        always_least=ALWAYS_LEAST,
        always_share=ALWAYS_SHARE,
        others=OTHERS,
        unknown=UNKNOWN,
    )
    return html


def _plots(counted: Review) -> dict[str, Markup]:
    """By name; empty where there is nothing to show."""
    plots = dict.fromkeys(("days", "outcomes", "markets", "waits", "clicks"), "")
    if counted.ended:
        plots["days"] = days_plot(counted.by_day)
        outcomes = list(counted.outcomes.items())
        plots["outcomes"] = bars_plot("outcomes", outcomes, title="How requests ended", warned=WARNED)
        plots["markets"] = parts_plot("markets", counted.by_market, title="Requests that ended, by market")
    if any(wait.count for wait in counted.waits):
        plots["waits"] = waits_plot(counted.waits)
    if counted.refused_clicks.count:
        reasons = [(row.name, row.counts[0]) for row in counted.refused_clicks.by_reason]
        plots["clicks"] = bars_plot("clicks", reasons, title="Refused clicks by reason")
    # Drawn by the library, which escapes the texts in it.
    return {name: Markup(svg) for name, svg in plots.items()}  # noqa: S704


def _template() -> Any:
    environment = Environment(
        loader=PackageLoader("bot.audit"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_shown,
    )
    environment.filters |= {"number": _number, "lasted": _lasted, "amount": _amount, "percent": _percent}
    return environment.get_template("report.html")


# How things are written


def _shown(value: object) -> object:
    """A text that others chose, with what cannot be seen in it written out."""
    return visible_lines(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _number(count: int) -> str:
    return f"{count:,}"


def _percent(share: float) -> str:
    return f"{share:.0%}"


def _amount(value: Decimal) -> str:
    written = f"{value:,f}"
    return written.rstrip("0").rstrip(".") if "." in written else written


def _lasted(seconds: float) -> str:
    """A length of time in two units at most: 0.31 s, 12.4 s, 4 m 10 s, 2 h 5 m, 3 d 4 h."""
    if seconds < MINUTE_S:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"  # noqa: PLR2004 - three digits are enough
    whole = round(seconds)
    for unit, length, less, shorter in (("d", DAY_S, "h", HOUR_S), ("h", HOUR_S, "m", MINUTE_S)):
        if whole >= length:
            return f"{whole // length} {unit} {whole % length // shorter} {less}"
    return f"{whole // MINUTE_S} m {whole % MINUTE_S} s"
