"""The store: a state and its audit event are one, leases keep workers apart, and nothing forks when many write."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import fields
from datetime import timedelta
from decimal import Decimal
from functools import partial
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from builders import (
    APPROVER,
    HOME,
    REQUESTER,
    RESPONSE_URL,
    SECOND,
    START,
    STRANGER,
    HandClock,
    OpenExchange,
    at_once,
    call,
    click,
    command,
    create,
    create_pending,
    execute,
    order,
    order_uuid,
    present,
    rows,
    take,
    walk,
    workflow,
)
from databases import migrated
from sqlalchemy import update

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.schema import cancel_requests
from bot.database.store import LEASE, TIMER_SLACK, SqlStore
from bot.database.verification import verify
from bot.domain.answer import Found, LookAnswer
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor, Json, Outcome, Reason
from bot.domain.cancel_request import CanceledBy, CancelRequest, DecisionKind, State, Verdict
from bot.domain.errors import IllegalTransition, NothingDone, Overtaken
from bot.domain.event_filter import Filter
from bot.domain.quote import Quote
from bot.domain.tiers import parse_tier
from bot.workflow import (
    LONGEST_HOLD_S,
    NOTICE_LIFETIME,
    RESPONSE_URL_LIFETIME,
    CommandAnswer,
    Known,
    Lane,
    Lease,
    Notice,
    NoticeKind,
    settle,
)


class Stop(Exception):
    """What a test raises to leave a transaction early."""


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def by_hand(database_url: str, clock: HandClock) -> Iterator[Database]:
    """A migrated, empty database whose clock the test sets."""
    opened = Database(database_url, clock=clock)
    migrated(opened)
    yield opened
    opened.close()


@pytest.fixture
def store(by_hand: Database) -> SqlStore:
    return SqlStore(by_hand)


def actions(database: Database) -> list[str]:
    return [str(event["action"]) for event in AuditLog(database).list(Filter(), limit=1000, newest_first=False)]


def owe(store: SqlStore, request_id: int | None = None, kind: NoticeKind = NoticeKind.CLICK_REFUSED) -> int:
    """A private line that is owed; its id."""
    with store.transaction(request_id) as tx:
        tx.tell(
            Notice(
                kind=kind,
                reason=Reason.NOT_AN_APPROVER,
                user_id=APPROVER.id,
                channel_id="C0DESK",
                response_url=RESPONSE_URL,
            )
        )
    return store.due(limit=100).notices[-1]


# Rows and values


def test_a_request_is_read_as_it_was_written(store: SqlStore, clock: HandClock) -> None:
    """Every type of the domain survives both databases: times, orders, lists, enums, people."""
    asked = command()
    with store.transaction() as tx:
        made = tx.create(asked, approvals_channel_id="C0CARDS")
    assert store.read(made.id) == made
    assert (made.card_goes_to, made.is_card_elsewhere, made.quote) == ("C0CARDS", True, None)
    assert (made.state, made.requester, made.created_at, made.revision) == (State.REQUESTED, REQUESTER, START, 0)
    assert (made.order_uuid, made.reason, made.response_url) == (asked.order_uuid, asked.reason, RESPONSE_URL)
    assert (made.order, made.approvers, made.decisions, made.said_state) == (None, (), (), None)

    later = START + timedelta(microseconds=123_456)
    quote = Quote(bid=Decimal("0.00000001"), ask=Decimal("98765432109876543210.12345"), quoted_at=later)
    with store.transaction(made.id) as tx:
        tx.move(
            Action.REQUEST_OPENED,
            order=order(),
            order_now=order(state="done"),
            approvers=("U1", "U2"),
            approval_rule=parse_tier("KRW-*/ask:0.5=2"),
            quote=quote,
            not_counted=("U1",),
        )
        tx.decide(DecisionKind.DENY, APPROVER)
        tx.change(
            canceled_by=CanceledBy.UNPROVEN.value,
            settled_verdict=Verdict.OPEN.value,
            said_state=State.FILLED.value,
            ended_at=later,
        )
    read = present(store.read(made.id))
    assert (read.order, read.order_now, read.approvers) == (order(), order(state="done"), ("U1", "U2"))
    assert read.quote == quote
    assert (str(read.approval_rule), read.not_counted) == ("KRW-*/ask:0.5=2", ("U1",))
    assert [(decision.kind, decision.actor, decision.decided_at) for decision in read.decisions] == [
        (DecisionKind.DENY, APPROVER, START)
    ]
    assert (read.canceled_by, read.settled_verdict) == (CanceledBy.UNPROVEN, Verdict.OPEN)
    assert (read.said_state, read.ended_at) == (State.FILLED, later)


def test_what_is_not_there_is_none(store: SqlStore) -> None:
    """A click may carry any number."""
    assert store.read(42) is None
    assert store.request_of_trigger("never") is None
    assert settle(store, 42, verdict=Verdict.OPEN, reason="", actor=APPROVER) is None
    with store.transaction(42) as tx:
        assert tx.request is None


def test_an_order_has_at_most_one_open_request(store: SqlStore) -> None:
    """Two cards for one order would be two cancels to argue about."""
    first = create(store)
    with pytest.raises(NothingDone, match=r"(?i)unique"):
        create(store, order_uuid=first.order_uuid)
    with store.transaction() as tx:
        known = tx.known_of(command(order_uuid=first.order_uuid))
        assert (known.open_request, known.open_requests, known.request_id) == (first, 1, None)
        assert tx.known_of(command(requester=APPROVER)) == Known()
        assert tx.known_of(command(order_uuid=None, requester=APPROVER)) == Known()


@pytest.mark.parametrize("last", [Action.OUTCOME_UNRESOLVED, Action.ORDER_CANCELED])
def test_a_request_that_is_unresolved_or_ended_blocks_no_other(store: SqlStore, last: Action) -> None:
    """When nothing is known of a cancel, somebody must be able to ask again."""
    first = create_pending(store)
    walk(store, first.id, Action.REQUEST_APPROVED, Action.CANCEL_SENT, last)
    assert create(store, order_uuid=first.order_uuid).id != first.id


def test_one_delivery_makes_one_request(store: SqlStore) -> None:
    """Slack delivers again; the schema has the last word."""
    first = create(store, trigger_id="once")
    with pytest.raises(NothingDone, match=r"(?i)unique"):
        create(store, trigger_id="once")
    assert store.request_of_trigger("once") == first.id
    with store.transaction() as tx:
        assert tx.known_of(command(trigger_id="once")).request_id == first.id
        assert tx.known_of(command(trigger_id="other")).request_id is None


def test_a_command_that_was_refused_is_remembered(store: SqlStore) -> None:
    """A repeated delivery of a refused command hears the same answer, and is not audited twice."""
    refused = command(requester=Actor(id="U0", team_id="T0OTHER"))
    workflow(store).command(refused, home_team=HOME)
    with store.transaction() as tx:
        assert tx.refusal_of_trigger(refused.trigger_id) is Reason.OTHER_WORKSPACE
        assert tx.refusal_of_trigger("never") is None
        assert tx.known_of(refused) == Known(refusal=Reason.OTHER_WORKSPACE)


def test_a_command_that_this_very_transaction_refused_is_remembered(store: SqlStore) -> None:
    """Two deliveries of one command may share a transaction, whose events are written at its end."""
    refused = command()
    with store.transaction() as tx:
        details: dict[str, Json] = {"reason": Reason.OTHER_WORKSPACE.value}
        tx.record(Action.REFRESH_FAILED, details=details, trigger_id=refused.trigger_id)
        assert tx.known_of(refused).refusal is None
        tx.record(Action.COMMAND_REFUSED, details=details, trigger_id=refused.trigger_id)
        assert tx.known_of(refused).refusal is Reason.OTHER_WORKSPACE
        assert tx.refusal_of_trigger(refused.trigger_id) is Reason.OTHER_WORKSPACE
        assert tx.refusal_of_trigger("never") is None


# Guarded transitions and their audit


def test_a_transition_moves_the_row_and_writes_the_audit(store: SqlStore, by_hand: Database) -> None:
    """The audit action is the transition's name, so the two cannot tell different stories."""
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        moved = tx.move(
            Action.REQUEST_APPROVED, actor=APPROVER, details={"why": "ok"}, trigger_id="t", due_in_s=5.0, attempts=0
        )
        assert tx.request == moved
    assert store.read(made.id) == moved
    assert (moved.state, moved.revision) == (State.APPROVED, made.revision + 1)
    assert moved.next_attempt_at == START + timedelta(seconds=5)
    event = AuditLog(by_hand).list(Filter(), limit=1)[0]
    assert event == event | {
        "action": "request.approved",
        "outcome": "ok",
        "actor": APPROVER.id,
        "actor_name": APPROVER.name,
        "actor_team": HOME,
        "request_id": made.id,
        "order_uuid": made.order_uuid,
        "market": "KRW-BTC",
        "team_id": HOME,
        "channel_id": "C0DESK",
        "trigger_id": "t",
        "details": {"state": "approved", "why": "ok", "value_krw": "95000000"},
    }


UNRESOLVED: Final = (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.OUTCOME_UNRESOLVED)


def test_each_verdict_is_witness_of_the_event_that_moved_the_request(store: SqlStore, by_hand: Database) -> None:
    """The summary in Slack quotes it; one of another event, or of none, would accuse a sound audit."""
    request = create_pending(store)
    moved = [present(store.read(request.id)), walk(store, request.id, *UNRESOLVED[:2])]
    assert [each.witness for each in moved] == [None, None]
    for action in (UNRESOLVED[2], Action.ORDER_CANCELED):
        witness = present(walk(store, request.id, action).witness)
        told = rows(by_hand, f"SELECT action, hash FROM audit_events WHERE seq = {witness.seq}")
        assert told == [(action.value, witness.hash)]
        assert verify(by_hand, [witness]).witnesses == 1
        with store.transaction(request.id) as tx:
            tx.record(Action.SUMMARY_POSTED)
        assert present(store.read(request.id)).witness == witness


def test_a_transition_that_the_table_does_not_know_changes_nothing(store: SqlStore, by_hand: Database) -> None:
    """An illegal move is a bug or a lost race: never a state."""
    made = create(store)
    with pytest.raises(IllegalTransition), store.transaction(made.id) as tx:
        tx.move(Action.CANCEL_SENT)
    assert store.read(made.id) == made
    assert actions(by_hand) == ["request.created"]


@pytest.mark.parametrize("behind_its_back", [{"revision": 7}, {"state": "denied"}], ids=["revision", "state"])
def test_a_transition_is_guarded_by_revision_and_state(
    store: SqlStore, by_hand: Database, behind_its_back: dict[str, Any]
) -> None:
    """The row lock is one defense; the guard of the UPDATE holds even where the lock did not."""
    made = create_pending(store)

    def move_behind_its_back() -> None:
        with store.transaction(made.id) as tx:
            tx._connection.execute(update(cancel_requests).values(behind_its_back))
            tx.move(Action.REQUEST_APPROVED)

    with pytest.raises(Overtaken):
        move_behind_its_back()
    assert store.read(made.id) == made
    assert actions(by_hand) == ["request.created", "request.opened"]


def test_who_lost_the_lease_changes_nothing(store: SqlStore, clock: HandClock) -> None:
    """A worker that hung past its lease must not overwrite what the next one found."""
    made = create_pending(store)
    clock.advance(1800)
    lost = present(take(store, made.id, Lane.EXCHANGE))
    clock.advance(LEASE.total_seconds())
    held = present(take(store, made.id, Lane.EXCHANGE))
    with pytest.raises(Overtaken), store.transaction(made.id, lease=lost) as tx:
        tx.move(Action.REQUEST_EXPIRED)
    with pytest.raises(Overtaken), store.transaction(made.id, lease=lost) as tx:
        tx.change(attempts=9)
    with pytest.raises(Overtaken), store.transaction(made.id, lease=lost) as tx:
        tx.record(Action.CANCEL_UNANSWERED, attempts=0)
    with store.transaction(made.id, lease=held) as tx:
        assert tx.move(Action.REQUEST_EXPIRED).state is State.EXPIRED


def test_each_lane_has_a_fence_of_its_own(store: SqlStore, clock: HandClock) -> None:
    """Drawing a card must not take the exchange's lease away."""
    made = create_pending(store)
    clock.advance(1800)
    held = present(take(store, made.id, Lane.EXCHANGE))
    present(take(store, made.id, Lane.SLACK))
    assert present(store.read(made.id)).fence == held.fence
    with store.transaction(made.id, lease=held) as tx:
        tx.change(card_ts="1.2")
    assert present(store.read(made.id)).card_ts == "1.2"


def test_an_exception_in_the_block_undoes_state_and_audit(store: SqlStore, by_hand: Database) -> None:
    """State and audit are one transaction: neither can be there without the other."""
    made = create_pending(store)
    before = verify(by_hand)

    def change_much_and_stop() -> None:
        with store.transaction(made.id) as tx:
            tx.decide(DecisionKind.APPROVE, APPROVER)
            tx.move(Action.REQUEST_APPROVED)
            tx.tell(Notice(kind=NoticeKind.REDRAW, user_id="U", channel_id="C"))
            raise Stop

    with pytest.raises(Stop):
        change_much_and_stop()
    assert store.read(made.id) == made
    assert verify(by_hand) == before
    assert store.due(limit=10).notices == ()


def test_no_audit_no_change(store: SqlStore, by_hand: Database) -> None:
    """Where the audit cannot be written, nothing happens."""
    made = create_pending(store)
    execute(by_hand, "ALTER TABLE audit_events RENAME TO audit_events_away")
    with pytest.raises(NothingDone), store.transaction(made.id) as tx:
        tx.move(Action.REQUEST_APPROVED)
    assert store.read(made.id) == made


def test_without_a_head_nothing_is_done(store: SqlStore, by_hand: Database) -> None:
    """An audit that cannot be continued stops the bot rather than starting a second chain."""
    execute(by_hand, "DELETE FROM audit_head")
    with pytest.raises(NothingDone, match="the audit has no head"):
        create(store)


def test_a_request_that_ended_is_never_due_again(store: SqlStore) -> None:
    """Whatever wait was asked for."""
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        assert tx.move(Action.REQUEST_DENIED, due_in_s=5.0).next_attempt_at is None
    assert store.due(limit=10).exchange == ()


def test_what_moves_nothing_is_recorded_with_its_changes(store: SqlStore, by_hand: Database) -> None:
    """The audit of a click that does not count says where it was made; a change rides in the same transaction."""
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        tx.record(
            Action.CANCEL_DOUBTED,
            outcome=Outcome.UNKNOWN,
            details={"error": "order_not_found"},
            channel_id="C0OTHER",
            doubt="order_not_found",
        )
    read = present(store.read(made.id))
    assert (read.doubt, read.revision) == ("order_not_found", made.revision)
    event = AuditLog(by_hand).list(Filter(), limit=1)[0]
    assert (event["request_id"], event["channel_id"], event["outcome"]) == (made.id, "C0OTHER", "unknown")


def test_a_command_that_made_no_request_is_recorded_with_its_own_facts(store: SqlStore, by_hand: Database) -> None:
    """Refusals are audited too, and there is no row to take the facts from."""
    with store.transaction() as tx:
        tx.record(Action.COMMAND_REFUSED, actor=APPROVER, team_id=HOME, channel_id="C", order_uuid="u", reason="why")
    event = AuditLog(by_hand).list(Filter(), limit=1)[0]
    assert (event["request_id"], event["order_uuid"], event["reason"]) == (None, "u", "why")
    assert (event["team_id"], event["channel_id"], event["details"]) == (HOME, "C", {})


def test_only_a_new_revision_asks_for_the_card_to_be_drawn(store: SqlStore) -> None:
    """What only the lanes need must not redraw the card."""
    made = create_pending(store)
    drawn = present(take(store, made.id, Lane.SLACK))
    store.release(drawn, due_in_s=None, seen_revision=made.revision)
    with store.transaction(made.id) as tx:
        tx.change(attempts=3)
    assert (present(store.read(made.id)).revision, store.due(limit=10).slack) == (made.revision, ())
    with store.transaction(made.id) as tx:
        tx.change(redraw=True, order_now=order(executed_volume="0.5"))
    assert (present(store.read(made.id)).revision, store.due(limit=10).slack) == (made.revision + 1, (made.id,))


def test_a_decision_counts_once_for_each_person_and_kind(store: SqlStore) -> None:
    """Who approved may still deny while it is pending, but two clicks of one person are not two approvals."""
    made = create_pending(store)
    for kind in DecisionKind:
        with store.transaction(made.id) as tx:
            tx.decide(kind, APPROVER)
    with pytest.raises(NothingDone, match=r"(?i)unique"), store.transaction(made.id) as tx:
        tx.decide(DecisionKind.APPROVE, APPROVER)
    decided = present(store.read(made.id))
    assert [decision.kind for decision in decided.decisions] == list(DecisionKind)


def test_what_a_person_found_at_upbit_settles_an_unresolved_request(store: SqlStore, by_hand: Database) -> None:
    """Only from unresolved, with a name and a reason."""
    made = create_pending(store)
    walk(store, made.id, Action.REQUEST_APPROVED, Action.CANCEL_SENT)
    with pytest.raises(IllegalTransition):
        settle(store, made.id, verdict=Verdict.CANCELED, reason="seen", actor=APPROVER)
    walk(store, made.id, Action.OUTCOME_UNRESOLVED)
    settled = present(settle(store, made.id, verdict=Verdict.CANCELED, reason="seen", actor=APPROVER))
    assert (settled.state, settled.settled_verdict, settled.settled_by) == (
        State.SETTLED,
        Verdict.CANCELED,
        APPROVER.id,
    )
    assert actions(by_hand)[-1] == "outcome.settled"


# Leases


def test_a_lane_has_one_holder(store: SqlStore) -> None:
    """Two workers on one request would send two DELETEs."""
    made = create(store)
    first = take(store, made.id, Lane.EXCHANGE)
    assert first == Lease(request_id=made.id, lane=Lane.EXCHANGE, fence=1)
    assert take(store, made.id, Lane.EXCHANGE) is None
    assert take(store, 42, Lane.EXCHANGE) is None


def test_of_many_who_reach_for_a_lease_at_once_one_gets_it(store: SqlStore) -> None:
    """The click's nudge and the loop's round meet all the time."""
    made = create(store)
    taken = at_once(*[lambda: take(store, made.id, Lane.EXCHANGE)] * 8)
    assert [lease for lease in taken if lease is not None] == [Lease(request_id=made.id, lane=Lane.EXCHANGE, fence=1)]


def test_a_lease_runs_out_by_the_databases_clock(store: SqlStore, clock: HandClock) -> None:
    """A worker that died holds nothing for ever, and machines need not agree on the time."""
    made = create(store)
    take(store, made.id, Lane.EXCHANGE)
    clock.advance(LEASE.total_seconds() - 0.001)
    assert take(store, made.id, Lane.EXCHANGE) is None
    assert store.due(limit=10).exchange == ()
    clock.advance(0.001)
    assert store.due(limit=10).exchange == (made.id,)
    assert present(take(store, made.id, Lane.EXCHANGE)).fence == 2


def test_a_lease_that_was_lost_cannot_be_given_back(store: SqlStore, clock: HandClock) -> None:
    """Else the one who hung would free the lane under the one who works."""
    made = create(store)
    lost = present(take(store, made.id, Lane.EXCHANGE))
    clock.advance(LEASE.total_seconds())
    take(store, made.id, Lane.EXCHANGE)
    assert store.release(lost, due_in_s=1.0, seen_revision=made.revision) is None
    assert take(store, made.id, Lane.EXCHANGE) is None


def test_a_lease_that_is_given_back_is_due_when_its_holder_said(store: SqlStore, clock: HandClock) -> None:
    """Waits between looks at the order live in the row, so a restart keeps them."""
    made = create(store)
    lease = present(take(store, made.id, Lane.EXCHANGE))
    assert store.release(lease, due_in_s=5.0, seen_revision=made.revision) == 5.0
    read = present(store.read(made.id))
    assert (read.next_attempt_at, read.attempts) == (START + timedelta(seconds=5), 1)
    assert take(store, made.id, Lane.EXCHANGE) is None
    clock.advance(5.0)
    last = present(take(store, made.id, Lane.EXCHANGE))
    assert store.release(last, due_in_s=None, seen_revision=made.revision) is None
    read = present(store.read(made.id))
    assert (read.next_attempt_at, read.attempts) == (None, 0)


def test_a_timer_that_fires_a_little_early_finds_its_work(store: SqlStore, clock: HandClock) -> None:
    """Else the work would wait for the next round of the loop."""
    made = create(store)
    lease = present(take(store, made.id, Lane.EXCHANGE))
    store.release(lease, due_in_s=5.0, seen_revision=made.revision)
    clock.now = START + timedelta(seconds=5) - TIMER_SLACK - timedelta(milliseconds=1)
    assert take(store, made.id, Lane.EXCHANGE) is None
    clock.now = START + timedelta(seconds=5) - TIMER_SLACK
    assert store.due(limit=10).exchange == ()
    assert take(store, made.id, Lane.EXCHANGE) is not None


@pytest.mark.parametrize("lane", list(Lane))
@pytest.mark.parametrize("due_in_s", [None, 60.0])
def test_a_row_that_changed_meanwhile_is_due_at_once(
    store: SqlStore, clock: HandClock, lane: Lane, due_in_s: float | None
) -> None:
    """No wake-up is lost: a click during a step would otherwise wait for the step's own time."""
    made = create_pending(store)
    clock.advance(1800)
    lease = present(take(store, made.id, lane))
    walk(store, made.id, Action.REQUEST_APPROVED)
    assert store.release(lease, due_in_s=due_in_s, seen_revision=made.revision) == 0.0
    assert take(store, made.id, lane) is not None
    assert present(store.read(made.id)).card_shown_revision == -1


def test_a_card_that_was_drawn_shows_the_revision_that_was_seen(store: SqlStore) -> None:
    """`card_shown_revision` is what keeps cards from being drawn for nothing, or not at all."""
    made = create_pending(store)
    waiting = present(take(store, made.id, Lane.SLACK))
    store.release(waiting, due_in_s=0.0, seen_revision=made.revision)
    assert present(store.read(made.id)).card_shown_revision == -1
    drawn = present(take(store, made.id, Lane.SLACK))
    store.release(drawn, due_in_s=None, seen_revision=made.revision)
    read = present(store.read(made.id))
    assert (read.card_shown_revision, read.card_attempts) == (made.revision, 0)


def test_what_is_due_is_listed_longest_waiting_first(store: SqlStore, clock: HandClock) -> None:
    """Nobody starves when there is more than fits."""
    first, second, third = (create(store) for _ in range(3))
    lease = present(take(store, first.id, Lane.EXCHANGE))
    clock.advance(1)
    store.release(lease, due_in_s=0.0, seen_revision=first.revision)
    create_pending(store)
    assert store.due(limit=10).exchange == (second.id, third.id, first.id)
    assert store.due(limit=2).exchange == (second.id, third.id)


def in_state(store: SqlStore, by_hand: Database, state: State) -> int:
    """A request that is due in this state; its id."""
    made = create(store)
    with by_hand.write() as connection:
        connection.execute(update(cancel_requests).where(cancel_requests.c.id == made.id).values(state=state.value))
    return made.id


def test_what_may_be_sent_goes_first_and_what_was_sent_before_what_is_new(store: SqlStore, by_hand: Database) -> None:
    """After an outage hundreds are due at once: a cancel that people wait for must not queue behind their reading."""
    new, sent, approved = (
        in_state(store, by_hand, state) for state in (State.REQUESTED, State.ACCEPTED, State.APPROVED)
    )
    assert store.due(limit=10).exchange == (approved, sent, new)


def test_where_no_looks_go_what_needs_one_is_left_out_for_a_while(
    store: SqlStore, by_hand: Database, clock: HandClock
) -> None:
    """For the rest of a second whose looks are used up. A limit that lasts must not stop the time-outs of requests."""
    states = (State.REQUESTED, State.ACCEPTED, State.SENDING, State.UNRESOLVED, State.APPROVED)
    ids = {state: in_state(store, by_hand, state) for state in states}
    assert store.due(limit=10, looks=False).exchange == (ids[State.APPROVED],)
    clock.advance(LONGEST_HOLD_S)
    assert set(store.due(limit=10, looks=False).exchange) == set(ids.values())


def test_a_pending_request_is_due_at_its_expiry_whatever_the_step_said(store: SqlStore, clock: HandClock) -> None:
    """The clock was set forward between opening it and giving back the lease: the wait would count from then on."""
    made = create(store)
    lease = present(take(store, made.id, Lane.EXCHANGE))
    with store.transaction(made.id, lease=lease) as tx:
        opened = tx.move(Action.REQUEST_OPENED, expires_at=START + timedelta(minutes=30))
    clock.advance(3600)
    store.release(lease, due_in_s=1800, seen_revision=opened.revision)
    assert store.due(limit=10).exchange == (made.id,)
    assert len(store.due(limit=10).slack) == 1


# Notices


def test_a_notice_holds_what_the_messenger_needs(store: SqlStore) -> None:
    """The line is drawn from the row as it is now, not from what was known when it was owed."""
    made = create_pending(store)
    notice = present(store.lease_notice(owe(store, made.id)))
    assert notice == Notice(
        kind=NoticeKind.CLICK_REFUSED,
        reason=Reason.NOT_AN_APPROVER,
        user_id=APPROVER.id,
        channel_id="C0DESK",
        response_url=RESPONSE_URL,
        id=notice.id,
        request=made,
        attempts=0,
        created_at=START,
        fence=1,
    )
    assert {field.name for field in fields(Notice)} >= {"message_ts"}


def test_a_notice_without_a_request_or_a_reason(store: SqlStore) -> None:
    """A click on a button without a row is answered as well."""
    with store.transaction() as tx:
        tx.tell(Notice(kind=NoticeKind.REDRAW, user_id="U", channel_id="C", message_ts="1.2"))
    notice = present(store.lease_notice(store.due(limit=1).notices[0]))
    assert (notice.request, notice.reason, notice.message_ts, notice.response_url) == (None, None, "1.2", None)


def test_slow_reading_is_told_once(store: SqlStore) -> None:
    """Every retry of the read would tell it again."""
    made, other = create(store), create(store)
    for request_id in (made.id, made.id, other.id):
        owe(store, request_id, NoticeKind.STILL_READING)
    for _ in range(2):
        owe(store, made.id, NoticeKind.CLICK_REFUSED)
    assert len(store.due(limit=10).notices) == 4


def test_a_notice_has_one_teller(store: SqlStore, clock: HandClock) -> None:
    """Nobody wants the same private line from two workers; who died is replaced."""
    notice_id = owe(store)
    assert present(store.lease_notice(notice_id)).attempts == 0
    assert store.lease_notice(notice_id) is None
    assert store.lease_notice(42) is None
    clock.advance(LEASE.total_seconds())
    again = present(store.lease_notice(notice_id))
    assert (again.attempts, again.fence) == (1, 2)


@pytest.mark.parametrize("given_up", [False, True])
def test_a_response_url_is_erased_with_its_notice(store: SqlStore, by_hand: Database, given_up: bool) -> None:  # noqa: FBT001
    """It is a key to the person's screen."""
    notice = present(store.lease_notice(owe(store)))
    store.finish_notice(notice, given_up=given_up)
    assert store.lease_notice(notice.id) is None
    assert store.due(limit=10).notices == ()
    ((url, told, gave_up),) = rows(by_hand, "SELECT response_url, sent_at IS NOT NULL, given_up FROM notices")
    assert (url, bool(told), bool(gave_up)) == (None, not given_up, given_up)


def test_a_response_url_is_not_handed_out_when_slack_no_longer_takes_it(store: SqlStore, clock: HandClock) -> None:
    """After half an hour Slack refuses it, and the try would be lost."""
    notice_id = owe(store, kind=NoticeKind.REQUEST_REFUSED)
    clock.now = START + RESPONSE_URL_LIFETIME - timedelta(seconds=1)
    notice = present(store.lease_notice(notice_id))
    assert notice.response_url == RESPONSE_URL
    store.postpone_notice(notice, due_in_s=1.0)
    clock.advance(1)
    assert present(store.lease_notice(notice_id)).response_url is None


def test_a_line_that_comes_too_late_is_not_told(store: SqlStore, by_hand: Database, clock: HandClock) -> None:
    """A line like `still reading` an hour later confuses more than it tells."""
    notice_id = owe(store, create(store).id, NoticeKind.STILL_READING)
    clock.now = START + NOTICE_LIFETIME[NoticeKind.STILL_READING]
    assert store.lease_notice(notice_id) is None
    assert store.due(limit=10).notices == ()
    ((url, told, gave_up),) = rows(by_hand, "SELECT response_url, sent_at, given_up FROM notices")
    assert (url, told, bool(gave_up)) == (None, None, True)


def test_a_notice_is_put_off_only_by_who_holds_it(store: SqlStore, clock: HandClock) -> None:
    """Slack said to come back later; one who lost the lease has no say in it."""
    lost = present(store.lease_notice(owe(store)))
    clock.advance(LEASE.total_seconds())
    held = present(store.lease_notice(lost.id))
    store.postpone_notice(lost, due_in_s=0.0)
    assert store.lease_notice(held.id) is None
    store.postpone_notice(held, due_in_s=7.0)
    clock.advance(6.0)
    assert store.lease_notice(held.id) is None
    clock.advance(1.0)
    assert present(store.lease_notice(held.id)).fence == 3


# Time


def test_a_clock_that_jumps_back_never_turns_the_audit_around(
    store: SqlStore, by_hand: Database, clock: HandClock
) -> None:
    """An auditor reads the order of events from their times as well."""
    made = create_pending(store)
    clock.advance(-3600)
    walk(store, made.id, Action.REQUEST_APPROVED)
    clock.advance(3601)
    walk(store, made.id, Action.CANCEL_SENT)
    times = [event["occurred_at"] for event in AuditLog(by_hand).list(Filter(), limit=9, newest_first=False)]
    assert times == ["2026-11-23T09:00:00.000000Z"] * 3 + ["2026-11-23T09:00:01.000000Z"]
    assert verify(by_hand).fault is None


def test_the_injected_clock_is_the_only_clock(store: SqlStore, clock: HandClock) -> None:
    """Tests of time need no waiting; what a transaction writes carries one moment."""
    clock.advance(86_400)
    with store.transaction() as tx:
        assert tx.now == START + timedelta(days=1)
        assert tx.create(command()).created_at == tx.now


def test_without_an_injected_clock_the_database_tells_the_time(database: Database) -> None:
    """Replicas on different machines agree only on the database's clock."""
    with database.read() as connection:
        first, second = database.now(connection), database.now(connection)
    assert first.utcoffset() == timedelta(0)
    assert first <= second < first + timedelta(seconds=10)


# Many at once


def test_two_people_ask_for_one_order_at_once(database: Database) -> None:
    """One request is made; the other person is shown it."""
    story = workflow(SqlStore(database))
    for _ in range(5):
        uuid = order_uuid()
        both = [command(order_uuid=uuid), command(order_uuid=uuid, requester=SECOND)]
        answers = at_once(*[lambda asked=asked: story.command(asked, home_team=HOME) for asked in both])
        made, refused = sorted((answer for answer in answers if isinstance(answer, CommandAnswer)), key=_is_refusal)
        assert refused.refusal is Reason.ORDER_HAS_OPEN_REQUEST
        assert present(refused.open_request).id == present(made.request_id)
    assert actions(database).count("request.created") == 5


def _is_refusal(answer: CommandAnswer) -> bool:
    return answer.refusal is not None


def test_one_delivery_that_comes_twice_at_once_makes_one_request(database: Database) -> None:
    """Slack may deliver on two connections at the same time; both hear the same number."""
    story = workflow(SqlStore(database))
    asked = command()
    first, second = at_once(*[lambda: story.command(asked, home_team=HOME)] * 2)
    assert first == second
    assert actions(database) == ["request.created"]


@pytest.mark.parametrize("second_kind", list(DecisionKind))
def test_two_people_press_at_once(database: Database, second_kind: DecisionKind) -> None:
    """Exactly one decision wins, whatever the other button was, and the other person hears that they came second."""
    store = SqlStore(database)
    story = workflow(store)
    for _ in range(5):
        made = create_pending(store)
        other = REQUESTER if second_kind is DecisionKind.WITHDRAW else SECOND
        presses = [click(made.id), click(made.id, other, kind=second_kind)]
        heard = at_once(*[lambda press=press: story.click(press) for press in presses])
        assert sorted(heard, key=str) == sorted([None, Reason.ALREADY_DECIDED], key=str)
        winner = presses[heard.index(None)]
        decided = present(store.read(made.id))
        assert [(decision.kind, decision.actor) for decision in decided.decisions] == [(winner.kind, winner.actor)]
        leads_to = {
            DecisionKind.APPROVE: State.APPROVED,
            DecisionKind.DENY: State.DENIED,
            DecisionKind.WITHDRAW: State.WITHDRAWN,
        }
        assert decided.state is leads_to[present(winner.kind)]
    assert verify(database).fault is None


def test_an_approval_and_the_end_of_the_order_come_at_once(database: Database) -> None:
    """Exactly one of them is true of the request, and the other finds it so."""
    store = SqlStore(database)
    gone = workflow(store)
    gone._exchange = GoneExchange()
    for _ in range(8):
        made = create_pending(store)
        store.wake(made.id)
        heard: list[object] = [*at_once(partial(gone.click, click(made.id)), partial(gone.advance, made.id))]
        ended = present(store.read(made.id))
        moves = actions_of(database, made.id)
        assert ("request.approved" in moves) != ("request.superseded" in moves)
        if ended.state is State.SUPERSEDED:
            assert (heard[0], ended.sends, ended.decisions) == (Reason.ALREADY_DECIDED, 0, ())
        else:
            assert heard[0] is None
    assert verify(database).fault is None


class GoneExchange(OpenExchange):
    """An exchange where every order was canceled by somebody else."""

    def get_order(self, uuid: str) -> LookAnswer:
        return Found(order=order(uuid=uuid, state="cancel"), call=call())


def actions_of(database: Database, request_id: int) -> list[str]:
    events = AuditLog(database).list(Filter(request_id=request_id), limit=100)
    return [str(event["action"]) for event in events]


def test_two_replicas_refresh_at_once(database: Database) -> None:
    """Each pending request is taken by one of them, and neither waits for the other."""
    store = SqlStore(database)
    made = {create_pending(store).id for _ in range(20)}
    taken = at_once(*[lambda: store.take_refresh(limit=10, again_in_s=30)] * 4)
    ids = [each.request_id for each in chain.from_iterable(batch for batch in taken if isinstance(batch, tuple))]
    assert len(ids) == len(set(ids))
    rest = store.take_refresh(limit=100, again_in_s=30)
    assert {*ids, *(each.request_id for each in rest)} == made
    assert store.take_refresh(limit=100, again_in_s=30) == ()


def test_a_refresh_leaves_alone_what_is_decided(database: Database) -> None:
    """What somebody has decided between the look and its writing down keeps its own times."""
    store = SqlStore(database)
    made = create_pending(store)
    (watched,) = store.take_refresh(limit=10, again_in_s=30)
    assert (watched.request_id, watched.order_uuid, watched.is_unseen) == (made.id, made.order_uuid, False)
    denied = walk(store, made.id, Action.REQUEST_DENIED)
    store.saw_unchanged([made.id])
    store.refresh_again([made.id])
    store.wake(made.id)
    assert present(store.read(made.id)) == denied
    assert not store.due(limit=10).refresh
    assert store.due(limit=10).exchange == ()


def test_what_nobody_has_read_yet_is_told_apart(store: SqlStore, clock: HandClock) -> None:
    """Reading the order of a new request gives way to people, what was decided does not."""
    decided, new = create_pending(store), create(store)
    workflow(store).click(click(decided.id))
    clock.advance(1)
    due = store.due(limit=10)
    assert set(due.exchange) == {decided.id, new.id}
    assert due.unread == {new.id}


def test_a_new_request_is_what_stands_in_its_row(store: SqlStore) -> None:
    """It is not read again."""
    with store.transaction() as tx:
        made = tx.create(command(), approvals_channel_id="C0ALL")
    assert made == store.read(made.id)


@pytest.mark.parametrize("looks", [True, False])
def test_while_looks_are_held_back_pending_requests_wait_unless_they_are_over(
    by_hand: Database, clock: HandClock, *, looks: bool
) -> None:
    """A second without looks must neither spin nor keep a card open that has expired."""
    store = SqlStore(by_hand)
    made = create_pending(store)
    store.wake(made.id)
    due = store.due(limit=10, looks=looks)
    assert (due.exchange, due.refresh) == (((made.id,), True) if looks else ((), False))
    clock.advance(1801)
    assert store.due(limit=10, looks=looks).exchange == (made.id,)


def test_what_is_to_be_refreshed_is_found_by_an_index(database: Database) -> None:
    """Ended requests are never deleted: finding the few that wait must not become slower with the years."""
    store = SqlStore(database)
    create_pending(store)
    wanted = "SELECT id FROM cancel_requests WHERE cancel_requests.state = 'pending' AND refresh_at <= '2100-01-01' "
    if database.is_sqlite:
        plan = rows(database, f"EXPLAIN QUERY PLAN {wanted} ORDER BY refresh_at LIMIT 100")
    else:
        execute(database, "ANALYZE cancel_requests")
        with database.read() as connection:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            plan = connection.exec_driver_sql(f"EXPLAIN {wanted} ORDER BY refresh_at LIMIT 100").all()
    assert "ix_cancel_requests_refresh_at" in str(plan)
    assert "SORT" not in str(plan).upper()


THREE: Final = ApprovalPolicy(approvers=frozenset({APPROVER.id, SECOND.id, STRANGER.id}))


def create_pending_for_two_of_three(store: SqlStore) -> CancelRequest:
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        tx.change(approvals_required=2, approvers=tuple(sorted(THREE.approvers)))
    return made


def test_two_last_approvals_at_once_move_it_once(database: Database) -> None:
    """Two of three at the same instant on two replicas: one is the last, the other hears that it is decided."""
    store = SqlStore(database)
    replicas = [workflow(store, THREE), workflow(store, THREE)]
    for _ in range(5):
        made = create_pending_for_two_of_three(store)
        assert replicas[0].click(click(made.id)) is None
        presses = zip(replicas, (click(made.id, SECOND), click(made.id, STRANGER)), strict=True)
        heard = at_once(*[lambda replica=replica, press=press: replica.click(press) for replica, press in presses])
        assert sorted(heard, key=str) == sorted([None, Reason.ALREADY_DECIDED], key=str)
        decided = present(store.read(made.id))
        assert (decided.state, len(decided.decisions), len(decided.counted())) == (State.APPROVED, 2, 2)
    assert (actions(database).count("approval.recorded"), actions(database).count("request.approved")) == (5, 5)
    assert verify(database).fault is None


def test_two_first_approvals_at_once_are_both_counted(database: Database) -> None:
    """Neither vote is lost: whichever comes second is the last that was needed."""
    store = SqlStore(database)
    story = workflow(store, THREE)
    for _ in range(5):
        made = create_pending_for_two_of_three(store)
        presses = [click(made.id), click(made.id, SECOND)]
        assert at_once(*[lambda press=press: story.click(press) for press in presses]) == [None, None]
        decided = present(store.read(made.id))
        assert (decided.state, len(decided.counted())) == (State.APPROVED, 2)
    assert (actions(database).count("approval.recorded"), actions(database).count("request.approved")) == (5, 5)


def test_one_person_who_presses_twice_at_once_counts_once(database: Database) -> None:
    """Two connections of one Slack client, or two phones of one approver."""
    store = SqlStore(database)
    story = workflow(store, THREE)
    made = create_pending_for_two_of_three(store)
    heard = at_once(*[lambda: story.click(click(made.id))] * 4)
    assert sorted(heard, key=str) == sorted([None, *[Reason.ALREADY_APPROVED] * 3], key=str)
    decided = present(store.read(made.id))
    assert (decided.state, len(decided.decisions)) == (State.PENDING, 1)


def test_the_database_itself_refuses_a_second_approval_of_one_person(store: SqlStore) -> None:
    """The last line of defence, should the policy ever be bypassed."""
    made = create_pending(store)
    with store.transaction(made.id) as tx:
        tx.decide(DecisionKind.APPROVE, APPROVER)
    with pytest.raises(NothingDone, match=r"(?i)unique"), store.transaction(made.id) as tx:
        tx.decide(DecisionKind.APPROVE, APPROVER)


TRANSACTIONS = 12
MAX_TRIES = 20
WRITER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from test_store import TRANSACTIONS, SqlStore, Database, _walk_through
database = Database(sys.argv[1])
store = SqlStore(database)
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(8) as crowd:
    list(crowd.map(lambda _: [_walk_through(store, count) for count in range(TRANSACTIONS)], range(8)))
"""


def test_the_chain_never_forks_when_many_write(database: Database) -> None:
    """Eight threads, on PostgreSQL sixteen in two processes: elsewhere chains fork, and cry tampering for ever."""
    store = SqlStore(database)

    def write(_: int) -> list[int]:
        return [_walk_through(store, count) for count in range(TRANSACTIONS)]

    with ExitStack() as stack:
        others = [] if database.is_sqlite else [stack.enter_context(_writing_process(database))]
        for other in others:
            assert present(other.stdout).readline() == "ready\n"
            print(file=present(other.stdin), flush=True)
        with ThreadPoolExecutor(8) as crowd:
            made = [request_id for ids in crowd.map(write, range(8)) for request_id in ids]
        assert [other.wait(timeout=60) for other in others] == [0] * len(others)
    assert len(set(made)) == 8 * TRANSACTIONS
    wanted = 8 * TRANSACTIONS * (1 + len(others))
    verification = verify(database)
    assert (verification.fault, verification.events) == (None, 2 * wanted)
    events = AuditLog(database).list(Filter(), limit=10 * wanted, newest_first=False)
    assert [event["seq"] for event in events] == list(range(1, 2 * wanted + 1))
    assert all(earlier["occurred_at"] <= later["occurred_at"] for earlier, later in pairwise(events))  # type: ignore[operator] # both are text
    assert rows(database, "SELECT state, count(*) FROM cancel_requests GROUP BY state") == [("refused", wanted)]


def _writing_process(database: Database) -> "subprocess.Popen[str]":
    """A process of its own with 8 threads, which begins when it is told."""
    return subprocess.Popen(
        [sys.executable, "-c", WRITER, database.url.render_as_string(hide_password=False)],
        cwd=Path(__file__).parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _walk_through(store: SqlStore, count: int) -> int:
    """One request in two transactions, each with its event."""
    # Not the numbers of the builders, which another process counts as well.
    ids = {"trigger_id": str(uuid4()), "order_uuid": str(uuid4())}
    made: CancelRequest = _patiently(lambda: create(store, reason=json.dumps(count), **ids))

    def end() -> CancelRequest:
        with store.transaction(made.id) as tx:
            return tx.move(Action.REQUEST_REFUSED)

    return _patiently(end).id


def _patiently(act: Callable[[], CancelRequest]) -> CancelRequest:
    """Sixteen wait for one row; on a busy machine some wait too long, and nothing was done."""
    for _ in range(MAX_TRIES - 1):
        with suppress(NothingDone):
            return act()
    return act()
