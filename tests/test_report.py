"""The monthly report: from the database to a page that is recorded, whole, and holds nothing that was smuggled in."""

import hashlib
import re
import sys
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from click.testing import CliRunner, Result
from months import BEN, EVE, Happened, Told, busy_month, opened, sent_and_canceled, step
from sqlalchemy import text

from bot.__main__ import main
from bot.audit.figures import Review
from bot.audit.month import parse_month
from bot.audit.plots import bars_plot, days_plot, waits_plot
from bot.audit.report import MEANINGS, Made, _amount, _lasted, page, review_month
from bot.audit.review import review
from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.span import span
from bot.database.verification import Verification, verify
from bot.domain.audit import Action, Actor, Json
from bot.domain.cancel_request import ENDED_STATES, State, Verdict
from bot.domain.event_filter import Filter
from bot.settings import Settings

UTC_OCTOBER = parse_month("2026-10", ZoneInfo("UTC"))
SEOUL_OCTOBER = parse_month("2026-10", ZoneInfo("Asia/Seoul"))
MADE = Made(at=datetime(2026, 11, 2, 1, 2, 3, tzinfo=UTC), by="cli:auditor", version="1.2.3")
SOUND = Verification(events=7, head_seq=7, head_hash="9f" * 32)
UNSET: dict[str, str | None] = {
    f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")
}


def report(database: Database, *arguments: str | Path, month: str = "2026-10") -> Result:
    url = database.url.render_as_string(hide_password=False)
    typed = ["audit", "report", "--month", month, *map(str, arguments)]
    return CliRunner().invoke(main, typed, env={**UNSET, "DATABASE_URL": url}, prog_name="bot")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the command is typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def a_month() -> Happened:
    """Over the edge of September: in Seoul it is October already when the first request is canceled."""
    happened = Happened()
    happened.request(1, "2026-09-30T14:59:00", opened(), step(61, Action.REQUEST_APPROVED, BEN), *sent_and_canceled(61))
    happened.request(2, "2026-09-30T23:59:30", opened(), step(40, Action.REQUEST_APPROVED, BEN), *sent_and_canceled(40))
    happened.request(3, "2026-10-31T14:59:30", opened(), step(40, Action.REQUEST_DENIED, BEN))
    happened.request(4, "2026-10-31T23:59:30", opened(), step(40, Action.REQUEST_DENIED, BEN))
    return happened


def counted(happened: Happened) -> Review:
    stored = [each for each in happened.stored() if UTC_OCTOBER.begins_at <= each.occurred_at < UTC_OCTOBER.ends_at]
    return review(UTC_OCTOBER, stored, before=lambda _: ())


def recorded(database: Database) -> list[dict[str, Json]]:
    return AuditLog(database).list(Filter(action="report.made"), limit=100)


# From the database


def test_the_events_of_a_month_are_found_without_an_index_on_times(database: Database) -> None:
    """From its first moment on, before the first one of the next; what is younger than the verified end is left out."""
    happened = Happened()
    times = [f"2026-{month:02}-{day:02}T00:00:00" for month in (8, 9, 10, 10, 11) for day in (1, 15)]
    for at in sorted(times):
        happened.alone(at, Action.COMMAND_REFUSED, EVE, reason="usage")
    happened.write(database)
    begins_at, ends_at = UTC_OCTOBER.begins_at, UTC_OCTOBER.ends_at
    with span(database, begins_at=begins_at, ends_at=ends_at) as found:
        assert list(found.events()) == happened.stored()[4:8]
    with span(database, begins_at=begins_at, ends_at=ends_at, last_seq=6) as found:
        assert [event.seq for event in found.events()] == [5, 6]
    for year in (2020, 2030):
        with span(database, begins_at=begins_at.replace(year=year), ends_at=ends_at.replace(year=year)) as found:
            assert list(found.events()) == []


def test_a_month_of_an_empty_audit_is_empty(database: Database) -> None:
    """The first report may be asked for before anything happened."""
    with span(database, begins_at=UTC_OCTOBER.begins_at, ends_at=UTC_OCTOBER.ends_at) as found:
        assert list(found.events()) == []
        assert found.before(1) == ()
        assert found.unresolved_before() == ()


def test_what_began_before_is_looked_up(database: Database) -> None:
    """One request of September ends in October, another was left unresolved in August: both have their stories."""
    happened = a_month()
    lost = (step(30, Action.REQUEST_APPROVED, BEN), step(31, Action.CANCEL_SENT))
    happened.request(5, "2026-08-05T09:00:00", opened(), *lost, step(62, Action.OUTCOME_UNRESOLVED))
    happened.write(database)
    october = review_month(database, UTC_OCTOBER, last_seq=None)
    assert (october.carried_in, october.created, october.ended) == (2, 2, 2)
    assert october.open_at_end == {"pending": 1, "unresolved": 1}
    assert october.waits[0].longest == 40
    assert october.by_requester[0].counts == (2, 2, 1)
    seoul = review_month(database, SEOUL_OCTOBER, last_seq=None)
    assert (seoul.carried_in, seoul.created, seoul.ended) == (2, 2, 2)
    assert [day.date.day for day in seoul.by_day if day.canceled] == [1]
    assert seoul.open_at_end == {"pending": 1, "unresolved": 1}


# The page


class _Page(HTMLParser):
    """What is in the page: its elements with their attributes, and its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_what_it_is_of() -> None:
    """A print on a desk: which month, whose days, made when and by whom, and whether the chain is sound."""
    html = page(counted(a_month()), verification=SOUND, made=MADE)
    shown = re.sub(r"\s+", " ", _Page(html).text)
    for words in (
        "October 2026",
        "2026-10 in UTC",
        "2026-11-02 01:02:03",
        "cli:auditor",
        "1.2.3",
        "The whole chain verifies: 7 events",
        "audit #7 9f9f9f9f9f9f9f9f",
        "1 carried over from earlier months + 2 made = 2 ended + 1 open at the end (1 pending).",
    ):
        assert words in shown


def test_a_chain_that_does_not_verify_is_the_first_thing_that_is_read() -> None:
    """All the figures below are worth nothing then."""
    fault = "event 3 was altered: its hash does not fit its text"
    broken = Verification(events=2, head_seq=2, head_hash="9f" * 32, fault=fault)
    shown = _Page(page(counted(a_month()), verification=broken, made=MADE)).text
    assert shown.index("The audit does not verify:") < shown.index(fault) < shown.index("At a glance")
    assert "The whole chain verifies" not in shown


def test_a_month_without_events_says_so() -> None:
    """An empty page would leave it open whether something went wrong."""
    shown = _Page(page(counted(Happened()), verification=SOUND, made=MADE)).text
    assert "Nothing was recorded in this month" in shown
    assert "The whole chain verifies" in shown


SPARSE: dict[str, tuple[Told, ...]] = {
    "asked": (),
    "opened": (opened(),),
    "denied": (opened(), step(30, Action.REQUEST_DENIED, BEN)),
    "approved": (opened(), step(30, Action.REQUEST_APPROVED, BEN)),
    "refused": (step(1, Action.REQUEST_REFUSED, reason="order_not_found"),),
    "clicked in vain": (opened(), step(30, Action.APPROVAL_REFUSED, EVE, reason="not_an_approver")),
    "unresolved": (step(1, Action.REQUEST_APPROVED, BEN), step(2, Action.OUTCOME_UNRESOLVED)),
}


@pytest.mark.parametrize("steps", SPARSE.values(), ids=SPARSE)
def test_a_month_may_have_anything_in_it_or_not(steps: tuple[Told, ...]) -> None:
    """Most tables are empty in a quiet month, and the page is whole all the same."""
    happened = Happened()
    happened.request(1, "2026-10-05T09:00:00", *steps)
    html = page(counted(happened), verification=SOUND, made=MADE)
    assert html.rstrip().endswith("</html>")
    assert _Page(html).text.count("None.") >= 3


def test_a_month_may_be_without_requests() -> None:
    """Somebody mistyped a command, and somebody verified the audit."""
    happened = Happened()
    happened.alone("2026-10-05T09:00:00", Action.COMMAND_REFUSED, EVE, reason="usage")
    happened.alone("2026-10-05T09:00:00", Action.AUDIT_VERIFIED, EVE, events=1)
    html = page(counted(happened), verification=SOUND, made=MADE)
    assert "<svg" not in html
    assert "No request ended in this month." in html


def test_a_month_that_is_not_over_says_so() -> None:
    """Half a month is not a quiet month."""
    early = Made(at=datetime(2026, 10, 10, tzinfo=UTC), by="cli:auditor", version="1.2.3")
    html = page(counted(a_month()), verification=SOUND, made=early)
    assert "The month is not over" in html
    assert "The month is not over" not in page(counted(a_month()), verification=SOUND, made=MADE)


HOSTILE = (
    '</td></table><script>alert(1)</script><img src=x onerror="alert(2)">&lt;'
    "\x1b[31m\u202egnp.\u2066$x^2$ --> {{ 7*7 }}"
)


def test_nothing_that_people_wrote_becomes_part_of_the_page() -> None:
    """A name in Slack is whatever its owner types, and a tampered row is whatever somebody wanted."""
    evil = Actor(id=HOSTILE, name=HOSTILE)
    happened = Happened()
    lost = (step(2, Action.REQUEST_APPROVED, evil, approvals=[HOSTILE]), step(3, Action.CANCEL_SENT))
    unresolved = step(40, Action.OUTCOME_UNRESOLVED, reason=HOSTILE, error=HOSTILE)
    told = step(50, Action.OUTCOME_SETTLED, evil, verdict=HOSTILE, reason=HOSTILE)
    happened.request(1, "2026-10-01T09:00:00", opened(), *lost, unresolved, told, by=evil, market=HOSTILE)
    happened.request(2, "2026-10-01T10:00:00", opened(), step(90, Action.REQUEST_EXPIRED), by=evil, market=HOSTILE)
    refused = step(3, Action.APPROVAL_REFUSED, evil, reason="own_request")
    also = step(4, Action.APPROVAL_REFUSED, evil, reason=HOSTILE)
    never = step(5, Action.REQUEST_REFUSED, reason=HOSTILE)
    happened.request(3, "2026-10-01T10:00:00", refused, also, never, by=evil, market=HOSTILE)
    happened.alone("2026-10-02T09:00:00", Action.COMMAND_REFUSED, evil, reason=HOSTILE)
    happened.alone("2026-10-02T09:00:00", Action.BOT_STARTED, version=HOSTILE, changed={HOSTILE: HOSTILE})
    happened.alone("2026-10-02T09:00:00", "audit." + HOSTILE, evil, **{HOSTILE: HOSTILE})
    stored = [each._replace(order_uuid=HOSTILE, outcome=HOSTILE) for each in happened.stored()]
    html = page(review(UTC_OCTOBER, stored, before=lambda _: ()), verification=SOUND, made=MADE)
    parsed = _Page(html)
    tags = {tag for tag, _ in parsed.elements}
    assert not tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, attributes in parsed.elements for name in attributes if name.startswith("on")]
    assert parsed.text.count("<script>alert(1)</script>") > 20
    assert "\x1b" not in html
    assert "\u202e" not in html
    assert "49" not in parsed.text.partition("--> ")[2][:10]


def test_the_page_needs_nothing_else(database: Database) -> None:
    """It is mailed, archived, and opened where there is no network; no script runs in it."""
    happened = busy_month(UTC_OCTOBER.begins_at, requests=150)
    happened.write(database)
    html = page(review_month(database, UTC_OCTOBER, last_seq=None), verification=SOUND, made=MADE)
    parsed = _Page(html)
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in parsed.elements:
        assert tag not in {"script", "img", "iframe", "object", "embed"}
        for name in ("href", "src", "xlink:href", "action"):
            target = attributes.get(name)
            assert target is None or target == "data:," or target[1:] in ids, (tag, name, target)
    assert not re.search(r"@import|url\((?!#)", html)
    assert [attributes["aria-label"] for tag, attributes in parsed.elements if tag == "svg"] == [
        "How requests ended",
        "Requests that ended, by day",
        "Requests that ended, by market",
        "How long the steps of a cancel took",
        "Refused clicks by reason",
    ]


def test_the_same_month_gives_the_same_page() -> None:
    """Made again, it can be compared byte by byte with the one in the archive."""
    first, second = (page(counted(a_month()), verification=SOUND, made=MADE) for _ in range(2))
    assert first == second


def test_every_end_has_its_meaning() -> None:
    """The table says in words what each state means."""
    settled = {f"settled: {verdict.value}" for verdict in Verdict}
    assert set(MEANINGS) == {state.value for state in ENDED_STATES - {State.SETTLED}} | settled


def test_plots_are_drawn_of_any_label() -> None:
    """Markets and reasons come from outside: mathematics, letters of no font, control characters, none at all."""
    labels = ["$x^{2$", "가나다", "\x1b[31m\n", "a" * 1000, "", "</text><script>"]
    drawn = bars_plot("odd", [(label, count) for count, label in enumerate(labels)], title="Odd ones")
    assert drawn.startswith('<svg class="plot" viewBox="')
    assert "<script>" not in drawn
    assert "a" * 28 not in drawn
    assert days_plot(counted(Happened()).by_day).count("<svg") == 1


@pytest.mark.parametrize(
    ("seconds", "written"),
    [(0, "0.00 s"), (0.314, "0.31 s"), (9.99, "9.99 s"), (12.34, "12.3 s"), (59.9, "59.9 s"), (60, "1 m 0 s"),
     (250.4, "4 m 10 s"), (3600, "1 h 0 m"), (7530, "2 h 5 m"), (273_700, "3 d 4 h")],
)  # fmt: skip
def test_lengths_of_time_are_written_as_people_say_them(seconds: float, written: str) -> None:
    """Seconds where they matter, and nobody divides by 86,400."""
    assert _lasted(seconds) == written


@pytest.mark.parametrize(
    ("value", "written"),
    [("0", "0"), ("95000000.0", "95,000,000"), ("1E+8", "100,000,000"), ("0.00012300", "0.000123"),
     ("1234.50", "1,234.5"), ("1." + "0" * 40 + "1", "1." + "0" * 40 + "1")],
)  # fmt: skip
def test_amounts_are_written_whole(value: str, written: str) -> None:
    """No digit is lost, and none is added."""
    assert _amount(Decimal(value)) == written


@pytest.mark.parametrize("after_s", [0.0, 0.05, 1.0, 90.0, 86_400.0, 1e7])
def test_waits_of_any_length_are_drawn(after_s: float) -> None:
    """Also where one lasted for months."""
    happened = Happened()
    happened.request(1, "2026-10-01T00:00:00", opened(0), step(0, Action.REQUEST_APPROVED, BEN))
    (wait, *_) = counted(happened).waits
    drawn = waits_plot([replace(wait, p50=after_s, p90=after_s, longest=after_s)])
    assert "p50" in drawn
    assert "nan" not in drawn


# The command


def test_the_report_is_written_and_recorded(database: Database, tmp_path: Path) -> None:
    """Who made which report of what, and the file's hash: a page from elsewhere can be told from ours."""
    a_month().write(database)
    out = tmp_path / "report.html"
    result = report(database, "--out", out, "--timezone", "Asia/Seoul")
    assert result.exit_code == 0, result.output
    digest = hashlib.sha256(out.read_bytes()).hexdigest()
    assert result.output == f"{out}: 12 events of 2026-10 in Asia/Seoul; SHA-256 {digest}\n"
    assert "October 2026" in out.read_text(encoding="utf-8")
    assert out.stat().st_mode & 0o777 == 0o600
    (event,) = recorded(database)
    assert str(event["actor"]).startswith("cli:")
    assert event["details"] == {
        "month": "2026-10",
        "timezone": "Asia/Seoul",
        "events": 12,
        "file": "report.html",
        "sha256": digest,
        "fault": None,
    }
    assert list(tmp_path.glob(".report*")) == []
    assert verify(database).fault is None


def test_a_broken_chain_is_told_by_page_and_status(sqlite: Database, tmp_path: Path) -> None:
    """The page is made all the same: what is wrong has to be seen to be explained."""
    a_month().write(sqlite)
    with sqlite.write() as connection:
        connection.execute(text("DROP TRIGGER audit_events_no_update"))
        connection.execute(text("UPDATE audit_events SET occurred_at = 'never', details = '{' WHERE seq = 9"))
    result = report(sqlite, "--out", tmp_path / "report.html")
    assert result.exit_code == 1
    assert "the audit does not verify: event 9 was altered" in result.output
    shown = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "event 9 was altered" in shown
    assert "1 event could not be read" in shown
    assert "fault" in str(recorded(sqlite)[0]["details"])


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["--month", "2026-13"], 2, "write a month such as 2026-10"),
        (["--month", "9998-12"], 2, "9998-12 has not begun yet"),
        (["--timezone", "Asia/Nowhere"], 2, "write UTC or Asia/Seoul"),
        (["--timezone", "../../etc/passwd"], 2, "is no time zone"),
        (["--timezone", "Asia"], 2, "is no time zone"),
        (["--out", "missing/report.html"], 2, "there is no folder missing"),
        (["--out", "."], 2, ". is a folder: name a file"),
        (["--out", "there.html"], 2, "there.html is there already: name another file, or add --force"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    arguments: list[str], status: int, told: str, sqlite: Database, folder: Path
) -> None:
    """And nothing is written or recorded."""
    Path("there.html").write_text("another")
    result = report(sqlite, "--out", "report.html", *arguments)
    assert result.exit_code == status, result.output
    assert told in result.output
    assert "Traceback" not in result.output
    assert Path("there.html").read_text() == "another"
    assert not Path("report.html").exists()
    assert recorded(sqlite) == []


def test_a_report_creates_no_database(folder: Path) -> None:
    """In the wrong folder it would be the report of a quiet month."""
    typed = ["audit", "report", "--month", "2026-10", "--out", "report.html"]
    result = CliRunner().invoke(main, typed, env=UNSET, prog_name="bot")
    assert result.exit_code == 1
    assert str(folder / "cancels.db") in result.output
    assert list(folder.iterdir()) == []


def test_another_file_is_replaced_only_if_told_so(sqlite: Database, tmp_path: Path) -> None:
    """The page of last month may be the only one."""
    out = tmp_path / "report.html"
    out.write_text("another")
    assert report(sqlite, "--out", out, "--force").exit_code == 0
    assert "Nothing was recorded" in out.read_text(encoding="utf-8")


def test_without_the_library_that_draws_there_is_one_clear_line(
    sqlite: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is an extra, as a bot in production draws nothing."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = report(sqlite, "--out", tmp_path / "report.html")
    assert result.exit_code == 1
    assert result.output == (
        "the report's plots need matplotlib: `uv sync --extra report`, or `pip install 'upbit-cancel-bot[report]'`\n"
    )


def test_who_may_not_write_into_the_audit_makes_no_report(database: Database, tmp_path: Path) -> None:
    """Every report is recorded; an account that cannot do that hears so before the work."""
    if database.is_sqlite:
        pytest.skip("a SQLite file has no accounts")
    a_month().write(database)
    with database.write() as connection:
        schema = connection.execute(text("SELECT current_schema()")).scalar_one()
        for statement in (
            f"CREATE ROLE reader_{schema} LOGIN",
            f"GRANT USAGE ON SCHEMA {schema} TO reader_{schema}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO reader_{schema}",
            f"ALTER ROLE reader_{schema} SET search_path = {schema}",
        ):
            connection.execute(text(statement))
    reader = Database(database.url.set(username=f"reader_{schema}").render_as_string(hide_password=False))
    try:
        result = report(reader, "--out", tmp_path / "report.html")
    finally:
        reader.close()
    assert result.exit_code == 1
    assert "the report would not be recorded in the audit" in result.output
    assert "make it with an account that may write there" in result.output
    assert list(tmp_path.glob("*.html")) == []


def test_a_report_that_cannot_be_recorded_leaves_no_file(tmp_path: Path, sqlite: Database) -> None:
    """The intent comes before the effect: no file without its event."""
    a_month().write(sqlite)
    with sqlite.write() as connection:
        connection.execute(
            text(
                "CREATE TRIGGER full_disk BEFORE INSERT ON audit_events "
                "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
            )
        )
    result = report(sqlite, "--out", tmp_path / "report.html")
    assert result.exit_code == 1
    assert "disk is full" in result.output
    assert [path.name for path in tmp_path.glob("*report*")] == []
