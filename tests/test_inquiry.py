"""What people may ask about requests: who sees what, a page at a time, and fast however many there are."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from typing import Any, Final

import pytest
from builders import (
    APPROVER,
    HOME,
    POLICY,
    REQUESTER,
    SECOND,
    START,
    STRANGER,
    HandClock,
    create,
    create_pending,
    execute,
    order,
    walk,
)
from databases import migrated
from sqlalchemy import event

from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.domain.audit import Action, Actor, Reason
from bot.domain.cancel_request import DecisionKind, State
from bot.domain.errors import NothingDone
from bot.inquiry import LOOKED_THROUGH, PAGE, Inquiry, Listing, Wanted

MANY: Final = 3_000


class Asking:
    """An inquiry with its database, on virtual time."""

    def __init__(self, url: str) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        migrated(self.database)
        self.store = SqlStore(self.database)
        self.inquiry = Inquiry(records=self.store, policy=POLICY)

    def ids(self, wanted: Wanted | None = None, *, who: Actor = STRANGER, where: str = "C0DESK") -> list[int]:
        return [each.id for each in self.listing(wanted, who=who, where=where).requests]

    def listing(self, wanted: Wanted | None = None, *, who: Actor = STRANGER, where: str = "C0DESK") -> Listing:
        return self.inquiry.listing(wanted or Wanted(), person_id=who.id, channel_id=where)

    def status(self, wanted: Wanted, *, who: Actor = STRANGER, where: str = "C0DESK") -> int | None:
        request = self.inquiry.status(wanted, person_id=who.id, channel_id=where).request
        return request.id if request else None

    def a_minute_later(self, **changes: Any) -> int:
        """A request that waits for approval, asked a minute after the one before; its number."""
        self.clock.advance(60)
        return create_pending(self.store, **changes).id


@pytest.fixture
def asking(database_url: str) -> Iterator[Asking]:
    made = Asking(database_url)
    yield made
    made.database.close()


# Who may ask, and sees what


def test_everybody_of_the_workspace_may_ask_and_nobody_else(asking: Asking) -> None:
    """REQUESTERS says who may have something canceled; what was canceled is not kept from those who may not."""
    strict = Inquiry(records=asking.store, policy=replace(POLICY, requesters=frozenset({REQUESTER.id})))

    assert strict.refusal(STRANGER, home_team=HOME) is None
    assert strict.refusal(replace(REQUESTER, team_id="T0OTHER"), home_team=HOME) is Reason.OTHER_WORKSPACE
    assert strict.refusal(replace(REQUESTER, team_id=""), home_team=HOME) is Reason.OTHER_WORKSPACE


@pytest.mark.parametrize(
    ("who", "where", "is_shown"),
    [
        (REQUESTER, "C0OTHER", True),
        (APPROVER, "C0OTHER", True),
        (SECOND, "C0OTHER", True),
        (STRANGER, "C0OTHER", False),
        (STRANGER, "C0VAULT", True),
    ],
)
def test_what_was_asked_in_private_is_shown_to_whom_it_concerns(
    asking: Asking, *, who: Actor, where: str, is_shown: bool
) -> None:
    """In every answer alike: one that forgets it tells the whole workspace."""
    made = create_pending(asking.store, in_private=True, channel_id="C0VAULT")
    shown = [made.id] if is_shown else []

    assert asking.ids(who=who, where=where) == shown
    assert asking.ids(Wanted(only_open=True), who=who, where=where) == shown
    for wanted in (Wanted(request_id=made.id), Wanted(order_uuid=made.order_uuid)):
        assert asking.ids(wanted, who=who, where=where) == shown
        assert asking.status(wanted, who=who, where=where) == (made.id if is_shown else None)


def test_who_decided_sees_it_though_the_list_has_changed(asking: Asking) -> None:
    """Their name is on it."""
    made = create_pending(asking.store, in_private=True, channel_id="C0VAULT")
    with asking.store.transaction(made.id) as tx:
        tx.decide(DecisionKind.DENY, STRANGER)

    assert asking.status(Wanted(request_id=made.id), where="C0OTHER") == made.id
    assert asking.ids(where="C0OTHER") == [made.id]


# What is found


def test_the_newest_come_first_and_each_filter_narrows(asking: Asking) -> None:
    """The filters hold together, not one or the other."""
    first = asking.a_minute_later()
    second = asking.a_minute_later(requester=SECOND)
    asking.clock.advance(86_400)
    third = asking.a_minute_later(requester=SECOND)
    with asking.store.transaction(second) as tx:
        tx.change(order_now=order(market="KRW-ETH"))
    uuid = asking.listing(Wanted(request_id=third)).requests[0].order_uuid
    next_day = START.replace(hour=0) + timedelta(days=1)

    assert asking.ids() == [third, second, first]
    assert asking.ids(Wanted(requester_id=SECOND.id)) == [third, second]
    assert asking.ids(Wanted(requester_name=SECOND.name)) == [third, second]
    assert asking.ids(Wanted(requester_name=SECOND.name, requester_id=REQUESTER.id)) == []
    assert asking.ids(Wanted(requester_name="nobody")) == []
    assert asking.ids(Wanted(market="KRW-BTC")) == [third, first]
    assert asking.ids(Wanted(market="KRW-BTC", requester_id=SECOND.id)) == [third]
    assert asking.ids(Wanted(order_uuid=uuid)) == [third]
    assert asking.ids(Wanted(order_uuid=uuid, request_id=first)) == []
    assert asking.ids(Wanted(since=next_day)) == [third]
    assert asking.ids(Wanted(before=third)) == [second, first]
    assert asking.ids(Wanted(before=999)) == []


@pytest.mark.parametrize("state", State)
def test_what_is_not_over_is_open_or_not_known(asking: Asking, state: State) -> None:
    """An unresolved request is the first thing that somebody must see."""
    made = create(asking.store)
    execute(asking.database, f"UPDATE cancel_requests SET state = '{state}' WHERE id = {made.id}")
    is_over = asking.ids(Wanted(only_open=True)) == []

    assert is_over == (
        state
        not in {
            State.REQUESTED,
            State.PENDING,
            State.APPROVED,
            State.SENDING,
            State.ACCEPTED,
            State.UNRESOLVED,
        }
    )
    assert asking.ids() == [made.id]


def test_a_status_by_order_is_that_of_the_newest_request(asking: Asking) -> None:
    """A failed try and its repetition are of the same order; what counts is the last."""
    first = create(asking.store)
    walk(asking.store, first.id, Action.REQUEST_REFUSED)
    asking.clock.advance(60)
    again = create(asking.store, order_uuid=first.order_uuid)
    found = asking.inquiry.status(Wanted(order_uuid=first.order_uuid), person_id=STRANGER.id, channel_id="C0DESK")

    assert found.request is not None
    assert (found.request.id, found.has_others) == (again.id, True)
    assert asking.status(Wanted(request_id=first.id)) == first.id
    assert asking.status(Wanted(request_id=999)) is None
    assert asking.status(Wanted(order_uuid="00000000-0000-4000-8000-ffffffffffff")) is None


# A page at a time


def pages(asking: Asking, wanted: Wanted, **asker: Any) -> list[list[int]]:
    """Every page, as somebody sees them who goes on asking for more."""
    found: list[list[int]] = []
    page: Wanted | None = wanted
    while page is not None:
        assert len(found) < 100, "no end"
        listing = asking.listing(page, **asker)
        found.append([each.id for each in listing.requests])
        page = listing.next_page
    return found


def test_the_pages_together_are_everything_once(asking: Asking) -> None:
    """Also where several were asked in the same microsecond, and where the clock was set back."""
    made = []
    for number in range(2 * PAGE + 5):
        if number % 3 == 0:
            asking.clock.advance(60 if number != 12 else -3600)
        made.append(create(asking.store).id)
    found = pages(asking, Wanted())

    assert [len(page) for page in found] == [PAGE, PAGE, 5]
    assert sorted(number for page in found for number in page) == made


def test_a_page_of_requests_that_may_not_be_shown_leads_on(asking: Asking) -> None:
    """The search is bounded, and what lies behind it is still found."""
    shown = create(asking.store).id
    for _ in range(LOOKED_THROUGH + 1):
        create(asking.store, in_private=True, channel_id="C0VAULT")

    assert pages(asking, Wanted(), where="C0OTHER") == [[], [shown]]
    assert len(pages(asking, Wanted(), where="C0VAULT")) == (LOOKED_THROUGH + 2) // PAGE + 1


def test_decisions_stay_with_their_requests(asking: Asking) -> None:
    """The answer names who approved what."""
    one, other = create_pending(asking.store), create_pending(asking.store)
    for request_id, actor in ((one.id, APPROVER), (other.id, SECOND), (one.id, SECOND)):
        with asking.store.transaction(request_id) as tx:
            tx.decide(DecisionKind.APPROVE, actor)
    by_id = {each.id: [made.actor.id for made in each.decisions] for each in asking.listing().requests}

    assert by_id == {one.id: [APPROVER.id, SECOND.id], other.id: [SECOND.id]}


def test_a_database_that_is_away_is_said_to_be(asking: Asking) -> None:
    """An empty answer would be taken for the truth."""
    execute(asking.database, "DROP TABLE decisions")
    with pytest.raises(NothingDone):
        asking.listing()


# However many there are


FILTERS: Final = {
    "order_uuid": "00000000-0000-4000-8000-00000000000a",
    "requester_id": "U0BUSY",
    "market": "KRW-BTC",
    "since": START + timedelta(minutes=5),
    "before": 50,
    "only_open": True,
}


def questions() -> Iterator[Wanted]:
    """Every combination of filters, and a name, which is looked up first."""
    for chosen in product((False, True), repeat=len(FILTERS)):
        yield Wanted(**{name: FILTERS[name] for name, is_in in zip(FILTERS, chosen, strict=True) if is_in})  # type: ignore[arg-type]
    yield Wanted(requester_name="busy")


ASKED_AT: Final = {
    True: "strftime('%Y-%m-%dT%H:%M:%S', '2020-01-01', '+' || i || ' seconds') || '.000000Z'",
    False: "timestamptz '2020-01-01Z' + i * interval '1 second'",
}


def fill(asking: Asking, *, with_statistics: bool) -> None:
    """As many requests as make a plan that reads them all stand out, by one person on one market."""
    create(asking.store)
    copied = "reason, team_id, channel_id, in_private"
    execute(
        asking.database,
        f"WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {MANY}) "
        "INSERT INTO cancel_requests "
        f"(order_uuid, state, requester_id, requester_name, trigger_id, market, created_at, {copied}) "
        "SELECT 'o-' || i, 'canceled', 'U0BUSY', 'busy', 't-' || i, 'KRW-BTC', "
        f"{ASKED_AT[asking.database.is_sqlite]}, {copied} FROM n, cancel_requests WHERE id = 1",
        *(["ANALYZE"] if with_statistics else []),
    )


@pytest.mark.parametrize("with_statistics", [True, False])
def test_no_question_reads_the_whole_table(asking: Asking, *, with_statistics: bool) -> None:
    """At a million requests it would take longer than Slack waits; an index leads to each page.

    PostgreSQL gathers statistics by itself, SQLite where somebody asks for it.
    """
    if not (with_statistics or asking.database.is_sqlite):
        pytest.skip("PostgreSQL's plans follow from statistics")
    fill(asking, with_statistics=with_statistics)
    plans: list[tuple[str, str]] = []

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "FROM cancel_requests" in statement and not statement.startswith("EXPLAIN"):
            verb = "EXPLAIN QUERY PLAN" if asking.database.is_sqlite else "EXPLAIN"
            other = cursor.connection.cursor()
            other.execute(f"{verb} {statement}", parameters)
            plans.append((statement, "\n".join(str(row) for row in other.fetchall())))

    event.listen(asking.database.engine, "before_cursor_execute", explain)
    for wanted in questions():
        asking.listing(wanted)
    assert len(plans) > 2 ** len(FILTERS) / 2
    for statement, plan in plans:
        assert "Seq Scan on cancel_requests" not in plan, (statement, plan)
        assert "Sort" not in plan, (statement, plan)
        assert "SCAN cancel_requests USING INDEX" in plan or "SCAN cancel_requests" not in plan, (statement, plan)
        if asking.database.is_sqlite and ("state IN" in statement or "order_uuid = " in statement):
            assert "ix_cancel_requests_not_over" in plan or "ix_cancel_requests_order_uuid" in plan, (statement, plan)
        is_little = "ix_cancel_requests_not_over" in plan or "ix_cancel_requests_order_uuid" in plan
        assert "TEMP B-TREE" not in plan or is_little, (statement, plan)
