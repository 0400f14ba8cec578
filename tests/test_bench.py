"""The benchmarks' made-up stories are as sound as real ones, so that what is measured on them means something."""

import pytest
from builders import rows
from fill import fill

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
