"""The benchmarks' made-up stories are as sound as real ones, so that what is measured on them means something."""

import main as bench
import pytest
from builders import rows
from fill import fill
from table import Row, at_least, at_most, markdown

from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.cancel_request import VERDICT_STATES, State
from bot.inquiry import Wanted

EVENTS = 3000


@pytest.fixture
def filled(database: Database) -> Database:
    fill(database.url.render_as_string(hide_password=False), EVENTS)
    return database


def test_made_up_stories_verify_and_agree_with_their_requests(filled: Database) -> None:
    """A chain that did not verify would be measured up to its first fault only."""
    result = verify(filled)
    assert (result.fault, result.events) == (None, EVENTS)
    told = rows(
        filled,
        "SELECT DISTINCT e.request_id, r.id IS NULL FROM audit_events e LEFT JOIN cancel_requests r"
        " ON r.id = e.request_id WHERE e.request_id IS NOT NULL",
    )
    assert len(told) > EVENTS / 12
    assert not any(is_missing for _, is_missing in told)
    store = SqlStore(filled)
    for request_id, _ in told[:50]:
        request = store.read(request_id)
        assert request is not None
        assert request.state is not State.APPROVED or request.approved_at is not None


def test_made_up_verdicts_are_witness_of_their_events(filled: Database) -> None:
    """What a summary shows on a filled database must agree with its audit, as on a real one."""
    store = SqlStore(filled)
    requests = store.list_requests(Wanted(), limit=50)
    witnesses = [each.witness for each in requests if each.witness is not None]
    assert len(witnesses) == sum(each.state in VERDICT_STATES for each in requests) > 10
    assert verify(filled, witnesses).witnesses == len(witnesses)


def test_every_figure_can_be_produced(capsys: pytest.CaptureFixture[str]) -> None:
    """Each one raises where the work that it measures was not really done; how fast it was says nothing here."""
    bench.main(["--quick"])
    told = capsys.readouterr().out.splitlines()
    assert len(told) > 20
    assert all(line.count("|") == told[0].count("|") for line in told)


def test_a_figure_is_judged_by_what_it_must_be_and_by_the_aim() -> None:
    """A table that called a missed figure met would be worse than none."""
    assert [at_most(value, must=2, aim=1) for value in (3, 2, 1)] == ["missed", "met", "met + aim"]
    assert [at_least(value, must=1, aim=2) for value in (0.5, 1, 2)] == ["missed", "met", "met + aim"]
    assert markdown([Row(name="a click", met="missed")])[2].split() == [
        "|",
        "a",
        "click",
        "|",
        "-",
        "|",
        "-",
        "|",
        "-",
        "|",
        "-",
        "|",
        "-",
        "|",
        "missed",
        "|",
    ]
