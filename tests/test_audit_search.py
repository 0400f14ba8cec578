"""Finding events at the command line: by reason, a page at a time, for people, programs and spreadsheets."""

import csv
import io
import re
from collections.abc import Iterator, Mapping
from decimal import Decimal
from itertools import combinations
from typing import Any

import pytest
from audit_list import cases
from builders import START, execute, rows
from click.testing import CliRunner, Result
from fill import fill
from sqlalchemy import Connection, event, select

from bot.__main__ import main
from bot.audit.cells import guarded
from bot.database.audit_log import AuditLog
from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.event_search import MOST_AT_ONCE, newest
from bot.database.event_words import EventKind, value_class
from bot.database.migration import migrate
from bot.database.schema import audit_events
from bot.domain.audit import Action, Actor, AuditEvent, Outcome, Reason, timestamp
from bot.domain.event_filter import Filter

FORMULA = "=HYPERLINK(1)"


@pytest.fixture
def clicks(database: Database) -> Database:
    """Refused clicks: five of who asked, and one by a stranger whose name is a formula."""
    own, stranger = Actor(id="U0DANA", name="dana"), Actor(id="U0EVE", name=FORMULA)
    with database.write() as connection:
        chain = Chain(database, connection)
        for actor, reason in [*[(own, Reason.OWN_REQUEST)] * 5, (stranger, Reason.NOT_AN_APPROVER)]:
            event = AuditEvent(
                action=Action.APPROVAL_REFUSED,
                outcome=Outcome.REFUSED,
                actor=actor,
                reason='"reason":"own_request"',
                details={"reason": reason.value, "body": '{"reason":"expired"}'},
            )
            chain.append(event, occurred_at=START)
        chain.write()
    return database


def audit_list(database: Database, *arguments: str) -> Result:
    url = database.url.render_as_string(hide_password=False)
    return CliRunner().invoke(main, ["audit", "list", *arguments], env={"DATABASE_URL": url}, prog_name="bot")


def test_events_are_found_by_their_reason(clicks: Database) -> None:
    """What the exchange answered, quoted within the details, is no reason of ours."""

    def found(reason: Reason) -> list[object]:
        return [event["seq"] for event in AuditLog(clicks).list(Filter(details_reason=reason.value), limit=9)]

    assert found(Reason.OWN_REQUEST) == [5, 4, 3, 2, 1]
    assert found(Reason.NOT_AN_APPROVER) == [6]
    assert found(Reason.EXPIRED) == []


def test_pages_follow_each_other_without_a_gap(clicks: Database) -> None:
    """A reviewer walks on with the number that the page before has told, and the last page tells none."""
    seen: list[int] = []
    more: list[str] = []
    for _ in range(3):
        result = audit_list(clicks, "--limit", "2", *more)
        seen += [int(number) for number in re.findall(r"^([0-9]+) ", result.stdout, re.MULTILINE)]
        goes_on = re.search(r"go on with (--before) ([0-9]+)\n\Z", result.stdout)
        more = list(goes_on.groups()) if goes_on else []
    assert seen == [6, 5, 4, 3, 2, 1]
    assert more == []


@pytest.mark.parametrize("form", ["json", "csv"])
def test_what_programs_read_holds_events_only(clicks: Database, form: str) -> None:
    """A line for people in it would be read as an event."""
    result = audit_list(clicks, "--limit", "2", "--format", form)
    assert (result.exit_code, len(result.stdout.splitlines()), result.stderr) == (0, 2 + (form == "csv"), "")


def test_csv_holds_no_formulas(clicks: Database) -> None:
    """Whoever chooses their Slack name would run code on the auditor's machine."""
    rows = list(csv.DictReader(io.StringIO(audit_list(clicks, "--format", "csv").stdout)))
    assert [row["seq"] for row in rows] == ["6", "5", "4", "3", "2", "1"]
    assert rows[0]["actor_name"] == f"'{FORMULA}"
    assert rows[0]["details"].startswith('{"body"')


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_a_cell_that_begins_like_a_formula_is_text(start: str) -> None:
    """These are what spreadsheets act on."""
    assert guarded(f"{start}1") == f"'{start}1"
    assert guarded(f"1{start}") == f"1{start}"


def test_a_wrong_word_is_answered_with_the_nearest_one(clicks: Database) -> None:
    """Nothing found, because of a slip, would be taken for: it never happened."""
    for option, slip, meant in (
        ("--action", "aproval.refused", "approval.refused"),
        ("--reason", "own", "own_request"),
    ):
        result = audit_list(clicks, option, slip)
        assert result.exit_code == 2
        assert meant in result.stderr
    assert "docs/audit.md lists them" in audit_list(clicks, "--reason", "zzzz").stderr


@pytest.mark.parametrize("amount", ["50,000,000", "-1", "5e7", "", "much", "\u0665"])
def test_an_amount_that_could_be_read_in_two_ways_is_refused(clicks: Database, amount: str) -> None:
    """A slip of three digits would hide what somebody looks for."""
    result = audit_list(clicks, "--over", amount)
    assert (result.exit_code, "is no amount: write 50000000" in result.stderr) == (2, True)


# Among many events

EVENTS = 3000


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def filled(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    """Some hundred stories, with the statistics that the planners go by; nothing writes to it."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('search') / 'cancels.db'}"
    else:
        url = request.getfixturevalue("postgresql").create()
    database = Database(url)
    migrate(database)
    fill(url, EVENTS)
    execute(database, "ANALYZE")
    yield database
    database.close()


@pytest.fixture(scope="module")
def asked(filled: Database) -> list[dict[str, Any]]:
    """Each filter with much, little, nothing and only what is old; and some of each two together."""
    of_each = cases(filled, EVENTS)
    alone = [wanted for some in of_each.values() for wanted in some]
    two = [{**one, **other} for left, right in combinations(of_each.values(), 2) for one in left for other in right]
    return [{}, *alone, *two[::9]]


def fits(wanted: Mapping[str, Any], each: Mapping[str, Any], requesters: Mapping[Any, str]) -> bool:
    """Whether an event fits, without any database."""
    details = each["details"]
    for name, value in wanted.items():
        match name:
            case "details_reason":
                is_so = details.get("reason") == value
            case "over_krw":
                is_so = "value_krw" in details and Decimal(details["value_krw"]) > value
            case "own":
                is_approval = each["action"] in {"approval.recorded", "request.approved"}
                is_so = is_approval and requesters[each["request_id"]] == each["actor"]
            case "since":
                is_so = each["occurred_at"] >= timestamp(value)
            case "until":
                is_so = each["occurred_at"] < timestamp(value)
            case "before_seq":
                is_so = each["seq"] < value
            case _:
                is_so = each[name] == value
        if not is_so:
            return False
    return True


def test_a_page_holds_what_one_finds_by_looking_at_every_event(filled: Database, asked: list[dict[str, Any]]) -> None:
    """A search that is quick and leaves one out is worse than none."""
    log = AuditLog(filled)
    every: list[Any] = log.list(Filter(), limit=EVENTS)
    assert [each["seq"] for each in every] == list(range(EVENTS, 0, -1))
    assert EVENTS > 2 * MOST_AT_ONCE
    requesters = {each["request_id"]: each["actor"] for each in every if each["action"] == "request.created"}
    found_any = 0
    for wanted in asked:
        right = [each["seq"] for each in every if fits(wanted, each, requesters)][:40]
        assert [each["seq"] for each in log.list(Filter(**wanted), limit=40)] == right, wanted
        found_any += bool(right)
    assert found_any > len(asked) / 4


def test_no_search_reads_the_whole_table(filled: Database, asked: list[dict[str, Any]]) -> None:
    """It would be quick today, and take a minute in a year."""
    for wanted in asked:
        for plan in plans(filled, Filter(**wanted)):
            reads = r"Seq Scan on audit_events|SCAN (?:audit_events|created)(?! USING INDEX)"
            assert not re.search(reads, plan), (wanted, plan)


def plans(database: Database, wanted: Filter) -> Iterator[str]:
    """How the database means to do each statement of a search."""
    statements: list[tuple[str, Any]] = []

    def note(_connection: Connection, _cursor: object, statement: str, parameters: Any, *_: object) -> None:
        statements.append((statement, parameters))

    with database.read() as connection:
        event.listen(database.engine, "before_cursor_execute", note)
        newest(connection, wanted, limit=100)
        event.remove(database.engine, "before_cursor_execute", note)
        explain = "EXPLAIN QUERY PLAN" if database.is_sqlite else "EXPLAIN"
        for statement, parameters in statements:
            found = connection.exec_driver_sql(f"{explain} {statement}", parameters)
            yield "\n".join(str(row[-1]) for row in found)


ODD: list[tuple[Action, dict[str, Any], str]] = [
    (Action.APPROVAL_REFUSED, {"reason": "own_request", "body": '\x00","reason":"expired"'}, "own_request "),
    (Action.ORDER_CANCELED, {"value_krw": "50000000.5"}, " 085"),
    (Action.ORDER_CANCELED, {"value_krw": "999999.99"}, " 0"),
    (Action.ORDER_CANCELED, {"value_krw": "1000000"}, " 071"),
    (Action.ORDER_CANCELED, {"value_krw": "12345678901"}, " 111"),
    (Action.ORDER_CANCELED, {"value_krw": "unknown"}, " ~"),
    (Action.OUTCOME_SETTLED, {"reason": "expired", "value_krw": "7"}, " 0"),
    (Action.AUDIT_RECONCILED, {"findings": [{"reason": "expired"}]}, " "),
    (Action.SUMMARY_POSTED, {}, " "),
]


def test_an_event_has_a_kind_whatever_stands_in_it(database: Database) -> None:
    """What cannot be put into the index cannot be recorded, and an outcome that is not recorded is lost."""
    with database.write() as connection:
        chain = Chain(database, connection)
        for action, details, _ in ODD:
            chain.append(AuditEvent(action=action, details=details), occurred_at=START)
        chain.write()
    with database.read() as connection:
        found = connection.execute(select(EventKind()).select_from(audit_events).order_by(audit_events.c.seq)).scalars()
        assert list(found) == [f"{action.value} ok {words}" for action, _, words in ODD]
    for amount, over in (
        (Decimal("50000000.4"), [6, 5, 2]),
        (Decimal(10), [6, 5, 4, 3, 2]),
        (Decimal(6), [7, 6, 5, 4, 3, 2]),
    ):
        assert [each["seq"] for each in AuditLog(database).list(Filter(over_krw=amount), limit=9)] == sorted(
            over, reverse=True
        )


def test_classes_sort_as_their_values() -> None:
    """Whole classes are taken or left by it."""
    values = [Decimal(digit) * 10**zeros for zeros in range(3, 20) for digit in range(1, 10)]
    classes = [value_class(value) for value in values]
    assert classes == sorted(classes)


def test_an_approval_that_does_not_say_who_asked_is_looked_up(database: Database) -> None:
    """Those of the version before must not be passed over."""
    ben, dana = Actor(id="U0BEN"), Actor(id="U0DANA")
    with database.write() as connection:
        chain = Chain(database, connection)
        for request_id, asks in ((1, ben), (2, dana)):
            for action, actor in ((Action.REQUEST_CREATED, asks), (Action.REQUEST_APPROVED, ben)):
                chain.append(AuditEvent(action=action, actor=actor, request_id=request_id), occurred_at=START)
        chain.write()
    assert [each["seq"] for each in AuditLog(database).list(Filter(own=True), limit=9)] == [2]
    assert rows(database, "SELECT count(*) FROM audit_events") == [(4,)]
