"""Finding events at the command line: by reason, a page at a time, for people, programs and spreadsheets."""

import csv
import io
import re

import pytest
from builders import START
from click.testing import CliRunner, Result

from bot.__main__ import main
from bot.audit.cells import guarded
from bot.database.audit_log import AuditLog, Filter
from bot.database.chain import Chain
from bot.database.engine import Database
from bot.domain.audit import Action, Actor, AuditEvent, Outcome, Reason

FORMULA = "=HYPERLINK(1)"


@pytest.fixture
def clicks(database: Database) -> Database:
    """Refused clicks: five of who asked, and one by a stranger whose name is a formula."""
    own, stranger = Actor(id="U0DANA", name="dana"), Actor(id="U0EVE", name=FORMULA)
    with database.write() as connection:
        chain = Chain(connection)
        for actor, reason in [*[(own, Reason.OWN_REQUEST)] * 5, (stranger, Reason.NOT_AN_APPROVER)]:
            event = AuditEvent(
                action=Action.APPROVAL_REFUSED,
                outcome=Outcome.REFUSED,
                actor=actor,
                reason='"reason":"own_request"',
                details={"reason": reason.value, "body": '{"reason":"expired"}'},
            )
            chain.append(event, occurred_at=START)
        chain.write_head()
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
