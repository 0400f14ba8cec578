"""Histories that hypothesis makes up, played by the real store and workflow; a small model judges each commit.

Two replicas share a database whose clock is the model's. They are told to cancel orders, clicked on by people who may
and who may not, and sent on; answers are lost, the exchange refuses, fills and limits, Slack fails, commits fail or
are not confirmed, a replica dies at a named point or stands still there, past its lease, while the other one goes on.
Some orders need two approvals, and a replica is started anew with other people on its allowlist, also between the two.

What must hold, after each commit: states move along TRANSITIONS, and only where the exchange's own book and the clock
allow it; an undisturbed step leads where the model says; a decision counts of who may, never of who asked, and an
approval only with as many others as the order needs, of people who are on the list when the last one comes; a DELETE
arrives only once its `cancel.sent` is committed; fences grow, a lane has one owner until the lease runs out, and a
lease that has run out and was taken over changes no row. In the end: everything ended, everybody was told, the truth
was told, and the chain verifies.
"""

import copy
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Any, ClassVar, Final, Literal, TypeVar

from builders import APPROVER, HOME, REQUESTER, SECOND, START, STRANGER, FixedPrices, command, order, order_uuid
from databases import migrated
from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    MultipleResults,
    RuleBasedStateMachine,
    initialize,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from simulation import Book, Crash, SimulatedExchange
from sqlalchemy import Connection, event, func, select, update

from bot.database.engine import Database
from bot.database.schema import audit_events, audit_head, cancel_requests, decisions, notices
from bot.database.store import SqlStore, SqlTaken, SqlTransaction, _select_request
from bot.database.verification import verify
from bot.domain.answer import (
    Accepted,
    Call,
    CancelAnswer,
    Found,
    FoundOrders,
    LookAnswer,
    NotSent,
    OrdersAnswer,
    Refused,
    Unknown,
)
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor, Reason
from bot.domain.cancel_request import (
    ENDED_STATES,
    OPEN_STATES,
    TRANSITIONS,
    VERDICT_STATES,
    CancelRequest,
    DecisionKind,
    State,
    Verdict,
)
from bot.domain.errors import CannotPost, CommitInDoubt, IllegalTransition, NothingDone, Overtaken, StoreError, TryLater
from bot.domain.tiers import parse_tiers
from bot.workflow import CancelWorkflow, Click, Command, Lane, Lease, Notice, NoticeKind, Posted, settle
from faults.figures import Figures, Ground

T = TypeVar("T")

HISTORIES: Final = 300
STEPS: Final = 50
MAX_REQUESTS: Final = 4
MAX_CALM_ROUNDS: Final = 300

LEASE: Final = timedelta(seconds=30)
TO_DECIDE: Final = timedelta(minutes=30)
TO_SEND: Final = timedelta(minutes=5)

THIRD: Final = Actor(id="U0THIRD", name="Third", team_id=HOME)
APPROVERS: Final = frozenset({APPROVER.id, SECOND.id, THIRD.id})
"""Everybody who may be on the allowlist; each replica's own is this or a part of it."""
ONE_MARKET, TWO_MARKET = "KRW-BTC", "KRW-ETH"
GUEST: Final = Actor(id=APPROVER.id, name="Guest", team_id="T0OTHER")
OPERATOR: Final = Actor(id="cli:operator")
WHY: Final = "the desk still wants it"
OPEN_CHANNEL: Final = "C0DESK"
CLOSED_CHANNEL: Final = "C0CLOSED"


class Trouble(StrEnum):
    CRASH = "crash"
    HANG = "hang"
    COMMIT_FAILS = "commit failed"
    COMMIT_UNCONFIRMED = "answer to commit lost"


class Point(StrEnum):
    BEFORE_COMMIT = "before commit"
    AFTER_COMMIT = "after commit"
    BEFORE_CALL = "before call"
    AFTER_CALL = "after call"


STRIKES_AT: Final = {
    Trouble.CRASH: frozenset(Point),
    Trouble.HANG: frozenset(Point) - {Point.BEFORE_COMMIT},
    Trouble.COMMIT_FAILS: frozenset({Point.BEFORE_COMMIT}),
    Trouble.COMMIT_UNCONFIRMED: frozenset({Point.AFTER_COMMIT}),
}


class Reply(StrEnum):
    """What the exchange does with the calls of a step."""

    FINE = "fine"
    SLOW = "accepted, canceled 40 s later"
    NEVER = "accepted, never canceled"
    FILLED = "accepted, filled"
    LOST_BEFORE = "DELETE lost on the way there"
    LOST_AFTER = "DELETE lost on the way back"
    REFUSED = "DELETE refused, certain"
    DOUBTED = "DELETE refused, proves nothing"
    LIMITED = "DELETE limited"
    NOT_SENT = "DELETE not sent"
    LOOK_LOST = "look lost"
    LOOK_LIMITED = "look limited"
    LOOK_MISSES = "look does not find it"


class Mood(StrEnum):
    """What Slack does with the calls of a step."""

    FINE = "fine"
    LOST_BEFORE = "Slack away"
    LOST_AFTER = "Slack's answer lost"
    REFUSED = "Slack refuses the verdict"


@dataclass(frozen=True)
class Strike:
    """Trouble at the first fitting point of a step after `skip` of them. `seconds` and `clicked` are for a hang."""

    kind: Trouble
    skip: int
    seconds: int = 31
    clicked: bool = False  #: somebody approves meanwhile


@dataclass
class SeenBook(Book):
    """The truth about one order, and what the latest look showed."""

    seen: str | None = None


@dataclass(frozen=True)
class Holder:
    """Who took a lane last, and until when nobody else may."""

    owner: str = ""
    fence: int = 0
    until: datetime | None = None

    def is_free(self, now: datetime) -> bool:
        return self.until is None or self.until <= now


@dataclass(frozen=True)
class Acting:
    """Whose transaction is under way, and under which lease."""

    owner: str = ""
    lease: Lease | None = None
    kept: Lease | None = None


@dataclass
class Story:
    """One request as the model knows it: its moves as they were committed, and the exchange's book."""

    id: int
    command: Command
    book: SeenBook
    created_at: datetime
    state: State = State.REQUESTED
    visited: set[State] = field(default_factory=set)
    needs: int = 1  #: approvals
    may_approve: frozenset[str] = frozenset()  #: as the card has said since it was opened
    approvals: list[str] = field(default_factory=list)  #: by whom, whether they count or not
    not_counted: set[str] = field(default_factory=set)  #: of these, when the latest one came
    decided: list[tuple[str, DecisionKind]] = field(default_factory=list)  #: who, and how
    expires_at: datetime = START
    send_before: datetime = START
    sent_at: datetime = START
    sends: int = 0
    attempts: int = 0  #: before the commit that is judged
    nonces: set[str] = field(default_factory=set)
    unanswered: set[str] = field(default_factory=set)
    written_down: set[str] = field(default_factory=set)  #: nonces of the DELETEs whose answers the audit has
    is_doubted: bool = False

    def __repr__(self) -> str:
        return f"request {self.id} ({self.state})"

    def take(self, event: "Event") -> None:
        """Judge an event of the audit and remember what it says. Raises AssertionError."""
        action = event.action
        self.written_down.add(str(event.details.get("call", {}).get("nonce")))
        nonce = str(event.details.get("nonce") or event.details.get("call", {}).get("nonce"))
        if action in {Action.APPROVAL_RECORDED, Action.REQUEST_APPROVED}:
            self._take_approval(event)
        if action in TRANSITIONS:
            sources, target = TRANSITIONS[action]
            assert self.state in sources, f"{action} of {self}"
            assert IS_TRUE[action](self, event, nonce), f"{action} of {self} is not true: {event}"
            self.state = target
            self.visited.add(target)
        if action is Action.REQUEST_OPENED:
            self.expires_at = event.at + TO_DECIDE
            self.may_approve = event.listed - {self.command.requester.id}
            assert len(self.may_approve) >= self.needs == event.details["approvals_required"], f"{self}: {event}"
            assert event.details["approvers"] == sorted(self.may_approve), f"{self}: {event}"
        elif action in DECISIONS:
            self.decided.append((event.actor, DECISIONS[action]))
            self.send_before = event.at + TO_SEND
        elif action is Action.CANCEL_SENT:
            self.nonces.add(nonce)
            self.unanswered.add(nonce)
            self.sends, self.sent_at, self.is_doubted = self.sends + 1, event.at, False
        elif action is Action.CANCEL_UNSENT:
            self.sends -= 1
        elif action is Action.CANCEL_DOUBTED:
            self.is_doubted = True
        if action in {Action.CANCEL_UNSENT, Action.CANCEL_ACCEPTED, Action.CANCEL_REJECTED, Action.CANCEL_DOUBTED}:
            self.unanswered.discard(nonce)

    def _take_approval(self, event: "Event") -> None:
        """Of somebody who may; new, unless it only says that those there are enough by now."""
        assert self.state is State.PENDING, f"{event} of {self}"
        assert event.team == HOME, f"{event} of {self}"
        assert event.at < self.expires_at, f"{event} of {self}"
        assert event.actor in event.listed & self.may_approve, f"{event} of {self}"
        was_enough = self.is_enough(event.listed)
        if event.actor in self.approvals:
            assert was_enough, f"{event.actor} counts twice: {event} of {self}"
        else:
            self.approvals.append(event.actor)
        counting = self.counting(event.listed)
        assert event.details["approvals"] == counting, f"{event}, of {self.approvals} count {counting}"
        is_last = event.action is Action.REQUEST_APPROVED
        assert is_last == self.is_enough(event.listed), f"{event} of {self}, which needs {self.needs}"
        self.not_counted = {*self.approvals} - {*counting}

    def counting(self, listed: frozenset[str]) -> list[str]:
        """Whose approvals count by this allowlist."""
        return [person_id for person_id in self.approvals if person_id in listed & self.may_approve]

    def is_enough(self, listed: frozenset[str]) -> bool:
        return len(self.counting(listed)) >= self.needs

    def counts(self, click: Click, now: datetime, listed: frozenset[str]) -> bool:
        """Whether this click is a decision, for a replica with this allowlist."""
        person_id = click.actor.id
        may = {
            DecisionKind.APPROVE: person_id in listed & self.may_approve
            and (person_id not in self.approvals or self.is_enough(listed)),
            DecisionKind.DENY: person_id in listed,
            DecisionKind.WITHDRAW: person_id == self.command.requester.id,
            None: False,
        }[click.kind]
        return self.state is State.PENDING and now < self.expires_at and click.actor.team_id == HOME and may

    def remembers(self, click: Click) -> bool:
        """Whether this click, which counted, is written down."""
        if click.kind is DecisionKind.APPROVE:
            return click.actor.id in self.approvals
        return (click.actor.id, click.kind) in self.decided

    def foretell_click(self, click: Click, listed: frozenset[str]) -> State:
        """Where a click that counts leads."""
        if click.kind is not DecisionKind.APPROVE:
            return State.DENIED if click.kind is DecisionKind.DENY else State.WITHDRAWN
        others = {*self.counting(listed)} - {click.actor.id}
        return State.APPROVED if len(others) + 1 >= self.needs else State.PENDING

    def foretell(
        self, answers: list[tuple[LookAnswer | CancelAnswer, datetime]], now: datetime, listed: frozenset[str]
    ) -> State:
        """Where an undisturbed step leads that was so answered by the exchange, of a replica with this allowlist."""
        if self.state is State.PENDING:
            is_gone = any(isinstance(answer, Found) and not answer.order.is_open for answer, _ in answers)
            if is_gone:
                return State.SUPERSEDED
            return State.EXPIRED if now >= self.expires_at else State.PENDING
        if self.state is State.APPROVED and now >= self.send_before:
            return State.LAPSED
        told: State = self.state
        unanswered = len(self.unanswered)
        for answer, at in answers:
            if told is State.REQUESTED:
                told = self._opened(answer, at, listed)
            elif answer.call.method == "DELETE":
                unanswered += 1
                told = _sent(answer, unanswered)
            else:
                told = self._looked(told, answer, at)
        return told

    def _opened(self, answer: LookAnswer | CancelAnswer, at: datetime, listed: frozenset[str]) -> State:
        if isinstance(answer, Found):
            are_enough = len(listed - {self.command.requester.id}) >= self.needs
            return State.PENDING if answer.order.is_open and are_enough else State.REFUSED
        is_final = isinstance(answer, Refused) and answer.retry_after_s is None
        return State.REFUSED if is_final or at - self.created_at >= timedelta(seconds=60) else State.REQUESTED

    def _looked(self, state: State, answer: LookAnswer | CancelAnswer, at: datetime) -> State:
        since_s = (at - self.sent_at).total_seconds()
        if isinstance(answer, Found):
            if answer.order.is_canceled or answer.order.is_done:
                return State.CANCELED if answer.order.is_canceled else State.FILLED
            if state is State.UNRESOLVED and since_s >= 600 and self.attempts >= 3:
                return State.FAILED
            is_refused = self.is_doubted and not self.unanswered
            if state is State.SENDING and is_refused and since_s >= 1 and self.attempts >= 3:
                return State.REJECTED
            may_send = not is_refused and self.sends < 3 and at < self.send_before
            if state is State.SENDING and may_send and since_s >= 6:
                return State.APPROVED
        return State.UNRESOLVED if since_s >= 30 else state


def _sent(answer: LookAnswer | CancelAnswer, unanswered: int) -> State:
    if isinstance(answer, Accepted):
        return State.ACCEPTED
    if isinstance(answer, NotSent) or (isinstance(answer, Refused) and answer.retry_after_s is not None):
        return State.APPROVED
    is_certain = isinstance(answer, Refused) and answer.proves_nothing_happened and unanswered == 1
    return State.REJECTED if is_certain else State.SENDING


DECISIONS: Final = {
    Action.REQUEST_APPROVED: DecisionKind.APPROVE,
    Action.REQUEST_DENIED: DecisionKind.DENY,
    Action.REQUEST_WITHDRAWN: DecisionKind.WITHDRAW,
}


@dataclass(frozen=True)
class Event:
    """An event of the audit, as far as the model judges it."""

    action: Action
    actor: str
    team: str
    at: datetime
    details: dict[str, Any]
    listed: frozenset[str]  #: who was on the allowlist of the replica that wrote it
    reason: str | None


def _is_whose(story: Story, by: str) -> bool:
    if by == "this_request":
        return bool(story.nonces & set(story.book.accepted))
    return State.ACCEPTED not in story.visited


def _since_s(story: Story, event: Event) -> float:
    return (event.at - story.sent_at).total_seconds()


IS_TRUE: Final[dict[Action, Callable[[Story, Event, str], bool]]] = {
    Action.REQUEST_OPENED: lambda story, _event, _nonce: story.book.seen == "wait",
    Action.REQUEST_REFUSED: lambda story, _event, _nonce: (
        story.state is State.REQUESTED or story.command.channel_id == CLOSED_CHANNEL
    ),
    Action.REQUEST_APPROVED: lambda story, event, _nonce: (
        event.actor != story.command.requester.id and not story.decided and event.at < story.expires_at
    ),
    Action.REQUEST_DENIED: lambda story, event, _nonce: (
        event.actor in event.listed
        and event.team == HOME
        and not story.decided
        and event.at < story.expires_at
        and event.reason in {None, WHY}
    ),
    Action.REQUEST_WITHDRAWN: lambda story, event, _nonce: (
        event.actor == story.command.requester.id and not story.decided and event.at < story.expires_at
    ),
    Action.REQUEST_SUPERSEDED: lambda story, _event, _nonce: (
        story.book.seen in {"done", "cancel"} and not story.nonces and not story.decided
    ),
    Action.REQUEST_EXPIRED: lambda story, event, _nonce: event.at >= story.expires_at,
    Action.REQUEST_LAPSED: lambda story, event, _nonce: event.at >= story.send_before,
    Action.CANCEL_SENT: lambda story, event, nonce: (
        event.at < story.send_before and story.sends < 3 and nonce not in story.nonces
    ),
    Action.CANCEL_UNSENT: lambda story, _event, nonce: nonce not in story.book.effective,
    Action.CANCEL_ACCEPTED: lambda story, _event, nonce: nonce in story.book.accepted,
    Action.CANCEL_REJECTED: lambda story, _event, _nonce: not story.nonces & set(story.book.effective),
    Action.ORDER_OPEN: lambda story, event, _nonce: story.book.seen == "wait" and _since_s(story, event) >= 6,
    Action.ORDER_CANCELED: lambda story, event, _nonce: (
        story.book.order.is_canceled and _is_whose(story, event.details["by"])
    ),
    Action.ORDER_FILLED: lambda story, _event, _nonce: story.book.order.is_done,
    Action.OUTCOME_UNRESOLVED: lambda story, event, _nonce: _since_s(story, event) >= 30,
    Action.CANCEL_FAILED: lambda story, event, _nonce: story.book.seen == "wait" and _since_s(story, event) >= 600,
    Action.OUTCOME_SETTLED: lambda _story, event, _nonce: event.actor == OPERATOR.id,
}
"""What must be true where a request moves."""


def _be_patient(connection: Any, _record: object) -> None:
    """On a busy machine a time-out would end what the same history has done before."""
    connection.execute("SET statement_timeout = 0")
    connection.execute("SET lock_timeout = 0")
    connection.commit()


class WatchedDatabase(Database):
    """The product's database by the model's clock; the model looks at each commit before anybody can act on it."""

    def __init__(self, url: str, stage: "Stage") -> None:
        super().__init__(url, clock=lambda _connection: stage.now)
        self._stage = stage
        if not self.is_sqlite:
            event.listen(self.engine, "connect", _be_patient)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        stage = self._stage
        stage.transactions += 1
        try:
            with super().write() as connection:
                yield connection
                stage.reach(Point.BEFORE_COMMIT)
        finally:
            stage.transactions -= 1
        stage.observe()
        stage.reach(Point.AFTER_COMMIT)

    def forget(self) -> None:
        """Take out of the way what a history has left that hypothesis broke off: a refresh looks at all that waits."""
        table = cancel_requests
        with super().write() as connection:
            left = update(table).where(table.c.state.in_([state.value for state in OPEN_STATES]))
            connection.execute(left.values(state=State.EXPIRED.value, next_attempt_at=None))


class WatchedStore(SqlStore):
    """The product's store, as one life of one replica uses it."""

    def __init__(self, stage: "Stage", owner: str) -> None:
        super().__init__(stage.database)
        self._stage = stage
        self._owner = owner

    @contextmanager
    def transaction(self, request_id: int | None = None, *, lease: Lease | None = None) -> Iterator[SqlTransaction]:
        with self._acting(lease=lease), super().transaction(request_id, lease=lease) as tx:
            yield tx

    @contextmanager
    def _chained(self, *of: Any, **more: Any) -> Iterator[SqlTransaction]:
        with super()._chained(*of, **more) as tx:
            yield tx
        if tx.request is not None:
            written = _select_request(tx._connection, tx.request.id)
            assert written == tx.request, f"what is written is {written}, not {tx.request}"

    @contextmanager
    def lease(self, request_id: int, lane: Lane, *, kept: Lease | None = None) -> Iterator[SqlTaken | None]:
        stage = self._stage
        holder = stage.lanes[lane.value, request_id]
        due = stage.rows[request_id]["next_attempt_at" if lane is Lane.EXCHANGE else "card_next_attempt_at"]
        is_due = due is not None and due <= stage.now + timedelta(milliseconds=20)
        is_free = holder.is_free(stage.now) or (kept is not None and kept.fence == holder.fence)
        with self._acting(kept=kept), super().lease(request_id, lane, kept=kept) as taken:
            lease = None if taken is None else taken.lease
            assert (lease is not None) == (is_due and is_free), f"{holder}, due {due}, and was given {lease}"
            yield taken
        stage.is_granted = lease is not None
        if lease is not None and holder.until is not None:
            stage.faults["lane taken over"] += 1

    def release(self, lease: Lease, *, due_in_s: float | None, seen_revision: int) -> float | None:
        was_lost = self._stage.lanes[lease.lane.value, lease.request_id].fence != lease.fence
        with self._acting(lease=lease):
            due = super().release(lease, due_in_s=due_in_s, seen_revision=seen_revision)
        assert not (was_lost and due is not None), f"{lease} had been lost and was given back"
        return due

    def lease_notice(self, notice_id: int) -> Notice | None:
        with self._acting():
            return super().lease_notice(notice_id)

    @contextmanager
    def _acting(self, *, lease: Lease | None = None, kept: Lease | None = None) -> Iterator[None]:
        stage = self._stage
        outer, stage.acting = stage.acting, Acting(self._owner, lease, kept)
        try:
            yield
        finally:
            stage.acting = outer


class ModelExchange:
    """Upbit that answers as the step's reply says. The Exchange of `bot.workflow`."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage

    def get_order(self, uuid: str) -> LookAnswer:
        stage = self._stage
        stage.call()
        call = Call(method="GET", path="/v1/order", nonce="look", query_hash="")
        answer = self._look(uuid, call)
        stage.answers.append((answer, stage.now))
        stage.reach(Point.AFTER_CALL)
        return answer

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        """A hint: what a list shows, nobody has seen yet."""
        stage = self._stage
        stage.call()
        answer = self._list(uuids, Call(method="GET", path="/v1/orders/uuids", nonce="look", query_hash=""))
        stage.reach(Point.AFTER_CALL)
        return answer

    def _list(self, uuids: Sequence[str], call: Call) -> OrdersAnswer:
        stage = self._stage
        if stage.happens(Reply.LOOK_LOST):
            stage.now += timedelta(seconds=5)
            return Unknown(cause="timeout", call=call)
        if stage.happens(Reply.LOOK_LIMITED):
            return Refused(name="too_many_requests", proves_nothing_happened=True, call=call, retry_after_s=1.0)
        books = [] if stage.happens(Reply.LOOK_MISSES) else [stage.books[uuid] for uuid in uuids if uuid in stage.books]
        for book in books:
            book.settle(stage.now)
        return FoundOrders(orders=tuple(book.order for book in books), call=call)

    def _look(self, uuid: str, call: Call) -> LookAnswer:
        stage, book = self._stage, self._stage.books.get(uuid)
        if stage.happens(Reply.LOOK_LOST):
            stage.now += timedelta(seconds=5)
            return Unknown(cause="timeout", call=call)
        if stage.happens(Reply.LOOK_LIMITED):
            return Refused(name="too_many_requests", proves_nothing_happened=True, call=call, retry_after_s=1.0)
        if book is None or stage.happens(Reply.LOOK_MISSES):
            return Refused(name="order_not_found", proves_nothing_happened=False, call=call)
        book.settle(stage.now)
        book.seen = book.order.state
        return Found(order=book.order, call=call)

    def hold_s(self, _method: Literal["GET", "DELETE"]) -> float:
        return 0.0

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        return Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash=f"hash of {uuid}")

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        stage = self._stage
        stage.call()
        call = Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash="")
        answer = self._cancel(stage.books[uuid], nonce, call)
        stage.answers.append((answer, stage.now))
        stage.reach(Point.AFTER_CALL)
        return answer

    def _cancel(self, book: SeenBook, nonce: str, call: Call) -> CancelAnswer:
        stage = self._stage
        if stage.happens(Reply.NOT_SENT):
            return NotSent(cause="connect_failed", call=call)
        if stage.happens(Reply.LOST_BEFORE):
            stage.now += timedelta(seconds=5)
            return Unknown(cause="timeout", call=call)
        announced = {n for s in stage.stories.values() if s.command.order_uuid == book.order.uuid for n in s.nonces}
        assert nonce in announced, "a DELETE without its cancel.sent"
        assert nonce not in book.nonces, "one nonce came twice"
        book.nonces.append(nonce)
        book.settle(stage.now)
        if stage.happens(Reply.LIMITED):
            return Refused(name="too_many_requests", proves_nothing_happened=True, call=call, retry_after_s=1.0)
        if stage.happens(Reply.REFUSED):
            return Refused(name="out_of_scope", proves_nothing_happened=True, call=call)
        if stage.happens(Reply.DOUBTED):
            return Refused(name="nonce_used", proves_nothing_happened=False, call=call)
        if not book.is_resting():
            return Refused(name="order_not_found", proves_nothing_happened=False, call=call)
        return self._accept(book, nonce, call)

    def _accept(self, book: SeenBook, nonce: str, call: Call) -> CancelAnswer:
        stage = self._stage
        accepted = Accepted(order=book.order, call=call)
        book.accepted.append(nonce)
        if stage.happens(Reply.FILLED):
            SimulatedExchange.fill(book, Decimal(10))
        elif not stage.happens(Reply.NEVER):
            book.effective.append(nonce)
            book.cancels_at = stage.now + timedelta(seconds=40 if stage.happens(Reply.SLOW) else 0)
        if stage.happens(Reply.LOST_AFTER):
            stage.now += timedelta(seconds=5)
            return Unknown(cause="timeout", call=call)
        return accepted


class ModelSlack:
    """Cards and threads as people see them. The Messenger of `bot.workflow`."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self._ts = 0

    def post_card(self, request: CancelRequest) -> Posted:
        self._call()
        if request.card_goes_to == CLOSED_CHANNEL:
            raise CannotPost("not_in_channel")
        place = (request.card_goes_to, self._next_ts())
        self._draw(request, place)
        self._answer()
        return Posted(*place, permalink=None)

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        self._call()
        self._draw(request, (channel_id, ts))
        self._answer()

    def post_verdict(self, request: CancelRequest) -> Posted:
        stage = self._stage
        self._call()
        assert request.state in stage.stories[request.id].visited, f"the thread is told {request.state} of {request.id}"
        if stage.mood is Mood.REFUSED:
            raise CannotPost("channel_is_archived")
        stage.verdicts[request.id, request.state] += 1
        self._answer()
        return Posted(request.card_goes_to, self._next_ts(), permalink=None)

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        stage = self._stage
        self._call()
        story = stage.stories[request.id]
        assert stage.now - story.created_at >= TO_DECIDE / 2, f"{story} is brought to mind too early"
        assert set(may_still_approve) <= APPROVERS - {story.command.requester.id}, "somebody is called who may not act"
        stage.reminders[request.id] += 1
        assert stage.reminders[request.id] == 1, f"{story} is brought to mind twice"
        self._answer()

    def tell(self, notice: Notice) -> None:
        self._call()
        self._stage.lines.append(notice)
        self._answer()

    def _draw(self, request: CancelRequest, place: tuple[str, str]) -> None:
        story = self._stage.stories[request.id]
        assert request.state in story.visited, f"a card shows {request.state} of {story}"
        self._stage.cards[place] = (request.id, request.state)

    def _next_ts(self) -> str:
        self._ts += 1
        return f"{self._ts}.000"

    def _call(self) -> None:
        self._stage.call()
        if self._stage.mood is Mood.LOST_BEFORE:
            raise TryLater("away")

    def _answer(self) -> None:
        self._stage.reach(Point.AFTER_CALL)
        if self._stage.mood is Mood.LOST_AFTER:
            raise TryLater("answer lost")


class Stage:
    """The clock, the trouble of the step under way, and what the model knows; histories share it, and its database."""

    def __init__(self, url: str) -> None:
        self.now = START
        self.faults: Counter[str] = Counter()
        self.visited: Counter[State] = Counter()
        self.histories = self.steps = self.requests = self.duplicates = self.approved_by_two = 0
        self.lists = [APPROVERS, APPROVERS]
        self.transactions = 0
        self._numbers = self._lives = 0
        plain = Database(url)
        migrated(plain)
        plain.close()
        self.database = WatchedDatabase(url, self)
        self.slack = ModelSlack(self)

    def begin(self) -> None:
        """A new history, which knows nothing of those before it."""
        self.now += timedelta(hours=1)
        self.database.forget()
        self.histories += 1
        self.lists = [APPROVERS, APPROVERS]
        self.bots = [self._bot("A"), self._bot("B")]
        self.books: dict[str, SeenBook] = {}
        self.commands: dict[str, Command] = {}
        self.stories: dict[int, Story] = {}
        self.rows: dict[int, dict[str, Any]] = {}
        self.owed: dict[int, dict[str, Any]] = {}
        self.lanes: defaultdict[tuple[str, int], Holder] = defaultdict(Holder)
        self.leases: dict[int, Lease] = {}
        self.cards: dict[tuple[str, str], tuple[int, State]] = {}
        self.verdicts: Counter[tuple[int, State]] = Counter()
        self.reminders: Counter[int] = Counter()
        self.lines: list[Notice] = []
        self.acting = Acting()
        self.plan()
        with self.database.read() as connection:
            self._seq = connection.execute(select(audit_head.c.seq)).scalar_one()
            self._first_request, self._first_notice = (
                connection.execute(select(func.coalesce(func.max(table.c.id), 0))).scalar_one() + 1
                for table in (cancel_requests, notices)
            )

    def _bot(self, name: str) -> CancelWorkflow:
        self._lives += 1
        return CancelWorkflow(
            store=WatchedStore(self, f"{name}{self._lives}"),
            exchange=ModelExchange(self),
            quotations=FixedPrices(),
            messenger=self.slack,
            policy=ApprovalPolicy(
                approvers=self.lists["AB".index(name)],
                tiers=parse_tiers(f"{TWO_MARKET}=2"),
                max_open_requests_per_person=1_000_000,
            ),
            approval_ttl=TO_DECIDE,
            send_within=TO_SEND,
            new_nonce=lambda: f"nonce-{self.next_number()}",
            monotonic=self._monotonic,
        )

    def _monotonic(self) -> float:
        return (self.now - START).total_seconds()

    def restart(self, replica: int) -> None:
        """The process is gone with all it remembered; its leases run on."""
        self.bots[replica] = self._bot("AB"[replica])

    def listed_by(self, owner: str) -> frozenset[str]:
        """The allowlist of whoever acts; nobody, where it is no replica."""
        return self.lists["AB".index(owner[0])] if owner[:1] in {"A", "B"} else frozenset()

    def next_number(self) -> int:
        self._numbers += 1
        return self._numbers

    # Trouble

    def plan(
        self, strike: Strike | None = None, reply: Reply = Reply.FINE, mood: Mood = Mood.FINE, replica: int = 0
    ) -> None:
        """What goes wrong in the step that comes."""
        self._strike, self.reply, self.mood, self.replica = strike, reply, mood, replica
        self._passed = 0
        self.is_struck = self.is_granted = False
        self.answers: list[tuple[LookAnswer | CancelAnswer, datetime]] = []
        if mood is not Mood.FINE:
            self.faults[mood.value] += 1

    def happens(self, reply: Reply) -> bool:
        if self.reply is reply:
            self.faults[f"exchange: {reply}"] += 1
        return self.reply is reply

    def call(self) -> None:
        assert self.transactions == 0, "a transaction is open during a call"
        self.reach(Point.BEFORE_CALL)

    def reach(self, point: Point) -> None:
        strike = self._strike
        if strike is None or point not in STRIKES_AT[strike.kind]:
            return
        self._passed += 1
        if self._passed <= strike.skip:
            return
        self._strike, self.is_struck = None, True
        self.faults[f"{strike.kind} {point}" if len(STRIKES_AT[strike.kind]) > 1 else strike.kind.value] += 1
        match strike.kind:
            case Trouble.CRASH:
                raise Crash(point)
            case Trouble.COMMIT_FAILS:
                raise NothingDone("made up")
            case Trouble.COMMIT_UNCONFIRMED:
                raise CommitInDoubt("made up, committed")
            case Trouble.HANG:
                self._hang(strike)

    def _hang(self, strike: Strike) -> None:
        """This replica stands still; the other one, undisturbed, goes on with everything."""
        outer = (self.reply, self.mood, self.replica, self.acting, self.is_granted)
        self.reply, self.mood, self.replica, self.acting = Reply.FINE, Mood.FINE, 1 - self.replica, Acting()
        self.now += timedelta(seconds=strike.seconds)
        bot = self.bots[self.replica]
        for request_id in list(self.stories):
            if strike.clicked:
                bot.click(self.click(self.stories[request_id], SECOND))
            for _ in range(2):
                bot.advance(request_id)
                bot.show(request_id)
                self.now += timedelta(seconds=0.2)
        self.reply, self.mood, self.replica, self.acting, self.is_granted = outer

    def click(self, story: Story, actor: Actor, kind: DecisionKind = DecisionKind.APPROVE, copy_: int = 0) -> Click:
        """A press on a card of that request."""
        copies = [place for place, (request_id, _) in self.cards.items() if request_id == story.id]
        channel_id, ts = copies[copy_ % len(copies)] if copies else (story.command.channel_id, None)
        is_form = kind is DecisionKind.DENY and copy_ % 2 == 0
        return Click(
            kind=kind,
            is_form=is_form,
            reason=WHY if is_form else "",
            request_id=story.id,
            actor=actor,
            team_id=HOME,
            channel_id=channel_id,
            message_ts=ts,
            response_url=None,
            trigger_id=f"click-{self.next_number()}",
        )

    # What was committed

    def observe(self) -> None:
        """Judge what the latest commit has changed. Raises AssertionError."""
        requests = (
            select(cancel_requests).where(cancel_requests.c.id >= self._first_request).order_by(cancel_requests.c.id)
        )
        lines = select(notices).where(notices.c.id >= self._first_notice).order_by(notices.c.id)
        events = select(audit_events).where(audit_events.c.seq > self._seq).order_by(audit_events.c.seq)
        with self.database.read() as connection:
            rows = {row["id"]: dict(row) for row in connection.execute(requests).mappings()}
            owed = {row["id"]: dict(row) for row in connection.execute(lines).mappings()}
            for event in connection.execute(events).mappings():
                self._seq = event["seq"]
                self._take(event)
        for request_id, row in rows.items():
            self.stories[request_id].attempts = row["attempts"]
            self._judge_row(row, self.rows.get(request_id))
            self._judge_lane(Lane.EXCHANGE.value, request_id, row["fence"], row["leased_until"])
            self._judge_lane(Lane.SLACK.value, request_id, row["card_fence"], row["card_leased_until"])
        for notice_id, row in owed.items():
            self._judge_lane("notice", notice_id, row["fence"], row["leased_until"])
        self.rows, self.owed = rows, owed

    def _take(self, row: Any) -> None:
        event = Event(
            action=Action(row["action"]),
            actor=row["actor"],
            team=row["actor_team"],
            at=row["occurred_at"],
            details=json.loads(row["details"]),
            listed=self.listed_by(self.acting.owner),
            reason=row["reason"],
        )
        if event.action is not Action.REQUEST_CREATED:
            if row["request_id"] is not None:
                story = self.stories[row["request_id"]]
                story.take(event)
                self.approved_by_two += event.action is Action.REQUEST_APPROVED and story.needs > 1
            return
        told = self.commands[row["trigger_id"]]
        assert not self.open_of(row["order_uuid"]), "two open requests for one order"
        assert event.actor == told.requester.id
        # An order that the exchange has never heard of has a book that nobody can read.
        book = self.books.get(row["order_uuid"]) or SeenBook(order=order())
        needs = 2 if book.order.market == TWO_MARKET else 1
        self.stories[row["request_id"]] = Story(
            row["request_id"], told, book, event.at, needs=needs, visited={State.REQUESTED}
        )
        self.requests += 1

    def open_of(self, uuid: str | None) -> list[Story]:
        return [s for s in self.stories.values() if s.command.order_uuid == uuid and s.state in OPEN_STATES]

    def _judge_row(self, row: dict[str, Any], before: dict[str, Any] | None) -> None:
        story, lease = self.stories[row["id"]], self.acting.lease
        assert row["state"] == story.state, f"the row is {row['state']}, its moves lead to {story}"
        assert row["sends"] == story.sends, f"{story} counts {row['sends']} DELETEs, not {story.sends}"
        assert row["unanswered"] == len(story.unanswered), f"{story} counts {row['unanswered']} unanswered"
        if story.may_approve:
            assert row["approvals_required"] == story.needs, f"{story} needs {row['approvals_required']} approvals"
            assert row["approvers"] == ",".join(sorted(story.may_approve)), f"{story}: {row['approvers']}"
            assert {*filter(None, row["not_counted"].split(","))} == story.not_counted, f"{story}: {row}"
        if before is not None and lease is not None and lease.request_id == row["id"]:
            changed = {name for name in row if row[name] != before[name]}
            if lease.lane is Lane.SLACK:
                changed -= {"card_next_attempt_at", "card_shown_revision"}  # what was drawn late is drawn once more
            fence = self.lanes[lease.lane.value, lease.request_id].fence
            assert fence == lease.fence or not changed, f"{lease} was taken over by {fence}, and changed {changed}"

    def _judge_lane(self, lane: str, of: int, fence: int, until: datetime | None) -> None:
        holder, acting = self.lanes[lane, of], self.acting
        if fence == holder.fence:
            assert until in {None, holder.until}, f"the lease of {lane} {of} was made longer"
            gave_back = lane == "notice" or acting.owner == holder.owner
            assert until == holder.until or gave_back, f"{acting} gave back {lane} {of}, which {holder} has"
            self.lanes[lane, of] = replace(holder, until=until)
            return
        took_back = acting.kept is not None and (acting.owner, acting.kept.fence) == (holder.owner, holder.fence)
        assert fence == holder.fence + 1, f"fence of {lane} {of}: {holder.fence}, then {fence}"
        assert took_back or holder.is_free(self.now), f"{acting.owner} took {lane} {of} from {holder} at {self.now}"
        # A line that comes too late is given up as it is leased.
        ends_at = None if lane == "notice" and until is None else self.now + LEASE
        assert until == ends_at, f"the lease of {lane} {of} ends {until}, taken at {self.now}"
        self.lanes[lane, of] = Holder(acting.owner, fence, until)
        if lane == Lane.EXCHANGE.value:
            self.leases.setdefault(of, Lease(request_id=of, lane=Lane.EXCHANGE, fence=fence))

    # The end

    def calm(self) -> None:
        """Nothing goes wrong any more: everything ends, and is told. Raises AssertionError."""
        self.plan()
        for _ in range(MAX_CALM_ROUNDS):
            for request_id in list(self.stories):
                self.bots[0].advance(request_id)
                self.bots[0].show(request_id)
            for notice_id in list(self.owed):
                self.bots[0].deliver(notice_id)
            waits = [moment for moment in self._dues() if moment is not None]
            if not waits:
                break
            self.now = max(self.now, min(waits)) + timedelta(milliseconds=1)
        for story in self.stories.values():
            assert story.state in ENDED_STATES, f"{story} never ended"
            self._judge_end(story)
            assert self._kept_of(story) == story.approvals, (
                f"of {story} are kept the approvals of {self._kept_of(story)}"
            )
            self.visited.update(story.visited)
        unpaid = [row for row in self.owed.values() if row["next_attempt_at"] is not None]
        assert not unpaid, f"somebody is still owed a line: {unpaid}"
        self.duplicates += sum(count - 1 for count in self.verdicts.values())

    def _dues(self) -> Iterator[datetime | None]:
        """When each lane can next be taken, None where nothing is due."""
        for row in self.rows.values():
            for due, until in (
                (row["next_attempt_at"], row["leased_until"]),
                (row["card_next_attempt_at"], row["card_leased_until"]),
            ):
                yield max(due, until or due) if due is not None else None
        for row in self.owed.values():
            due, until = row["next_attempt_at"], row["leased_until"]
            yield max(due, until or due) if due is not None else None

    def _kept_of(self, story: Story) -> list[str]:
        """Whose approvals the database holds."""
        query = select(decisions.c.actor_id).where(
            decisions.c.request_id == story.id, decisions.c.kind == DecisionKind.APPROVE.value
        )
        with self.database.read() as connection:
            return list(connection.execute(query.order_by(decisions.c.id)).scalars())

    def _judge_end(self, story: Story) -> None:
        ours = story.nonces & set(story.book.effective)
        assert not (story.state is State.REJECTED and ours), f"{story}, and a DELETE took effect"
        assert story.state is not State.CANCELED or story.book.order.is_canceled, f"{story}: {story.book}"
        assert story.state is not State.FILLED or story.book.order.is_done, f"{story}: {story.book}"
        row = self.rows[story.id]
        if row["card_ts"] is not None:
            shown = self.cards[row["card_channel_id"], row["card_ts"]]
            assert shown == (story.id, story.state), f"the card of {story} shows {shown}"
        if story.state in VERDICT_STATES:
            privately = any(
                line.kind is NoticeKind.VERDICT and line.request is not None and line.request.id == story.id
                for line in self.lines
            )
            assert self.verdicts[story.id, story.state] or privately, f"nobody was told how {story} ended"


UNDER_WAY: Final = (State.APPROVED, State.SENDING, State.ACCEPTED, State.UNRESOLVED)

REPLICAS: Final = st.sampled_from((0, 1))
REQUESTERS: Final = st.sampled_from((REQUESTER, REQUESTER, APPROVER))
CLICKERS: Final = st.sampled_from((APPROVER, SECOND, SECOND, THIRD, REQUESTER, STRANGER, GUEST))
MARKETS: Final = st.sampled_from((ONE_MARKET, ONE_MARKET, TWO_MARKET))
REMOVED: Final = st.sampled_from((None, None, APPROVER, SECOND, THIRD))
DECIDERS: Final = st.sampled_from((APPROVER, SECOND, THIRD))
KINDS: Final = st.sampled_from((*(DecisionKind.APPROVE,) * 5, DecisionKind.DENY, DecisionKind.WITHDRAW))
ORDERS: Final = st.sampled_from((*("wait",) * 6, "done", "cancel", "unknown"))
CHANNELS: Final = st.sampled_from((*(OPEN_CHANNEL,) * 9, CLOSED_CHANNEL))
WAITS_S: Final = st.sampled_from((0.2, 1.0, 2.0, 4.0, 7.0, 7.0, 31.0, 31.0, 61.0, 301.0, 601.0))
REPLIES: Final = st.sampled_from((*(Reply.FINE,) * 2, *(Reply.LOST_BEFORE, Reply.REFUSED) * 2, *Reply))
MOODS: Final = st.sampled_from((*(Mood.FINE,) * 3, *Mood))
STRIKES: Final = st.none() | st.builds(
    Strike,
    st.sampled_from(Trouble),
    st.integers(0, 6),
    seconds=st.sampled_from((4, 10, 31, 31, 61)),
    clicked=st.booleans(),
)


class Histories(RuleBasedStateMachine):
    """What can happen, in any order. Each rule plays it in the product and compares with the model."""

    stage: ClassVar[Stage]

    requests = Bundle[Story]("requests")

    def __init__(self) -> None:
        super().__init__()
        self.stage.begin()

    def teardown(self) -> None:
        # A history that has failed says why; what follows from it would only hide that.
        if sys.exc_info()[0] is None:
            self.stage.calm()

    @initialize(target=requests, requester=REQUESTERS, market=MARKETS, removed=REMOVED)
    def begin(self, *, requester: Actor, market: str, removed: Actor | None) -> Story | MultipleResults[Story]:
        """Each history begins with a request that waits for approval, perhaps by fewer people than there are."""
        if removed is not None:
            self.restart_with_another_list(replica=0, removed=removed)
        begun = self.ask(
            state="wait", market=market, requester=requester, channel_id=OPEN_CHANNEL, replica=0, strike=None
        )
        for request_id in self.stage.stories:
            self.stage.bots[0].advance(request_id)
        return begun

    @precondition(lambda self: len(self.stage.stories) < MAX_REQUESTS)
    @rule(
        target=requests,
        state=ORDERS,
        market=MARKETS,
        requester=REQUESTERS,
        channel_id=CHANNELS,
        replica=REPLICAS,
        strike=STRIKES,
    )
    def ask(
        self, *, state: str, market: str, requester: Actor, channel_id: str, replica: int, strike: Strike | None
    ) -> Story | MultipleResults[Story]:
        """A command for an order that nobody has named before."""
        uuid = order_uuid()
        if state != "unknown":
            shown = order(uuid=uuid, market=market, state=state, volume=Decimal(10), remaining_volume=Decimal(10))
            self.stage.books[uuid] = SeenBook(order=shown)
        asked = command(requester=requester, channel_id=channel_id, order_uuid=uuid)
        return self._ask(asked, replica, strike, is_new=True)

    @precondition(lambda self: len(self.stage.stories) < MAX_REQUESTS)
    @rule(
        target=requests, story=requests, requester=REQUESTERS, delivered=st.booleans(), replica=REPLICAS, strike=STRIKES
    )
    def ask_again(
        self, *, story: Story, requester: Actor, delivered: bool, replica: int, strike: Strike | None
    ) -> Story | MultipleResults[Story]:
        """Slack delivers a command twice, or somebody asks for the same order."""
        again = story.command if delivered else command(requester=requester, order_uuid=story.command.order_uuid)
        return self._ask(again, replica, strike, is_new=not delivered)

    def _ask(
        self, asked: Command, replica: int, strike: Strike | None, *, is_new: bool
    ) -> Story | MultipleResults[Story]:
        stage = self.stage
        stage.commands[asked.trigger_id] = asked
        known = [story for story in stage.stories.values() if story.command is asked]
        is_taken = is_new and bool(stage.open_of(asked.order_uuid))
        for answer in self._play(replica, lambda bot: bot.command(asked, home_team=HOME), strike=strike):
            recorded = [story.id for story in stage.stories.values() if story.command is asked]
            assert (answer.refusal is Reason.ORDER_HAS_OPEN_REQUEST) == is_taken, f"{asked}: {answer}"
            assert recorded == ([] if is_taken else [answer.request_id]), f"{asked}: {answer}, recorded {recorded}"
        made = [story for story in stage.stories.values() if story.command is asked and story not in known]
        return multiple(*made)

    @rule(story=requests, actor=CLICKERS, kind=KINDS, copy_=REPLICAS, replica=REPLICAS, strike=STRIKES)
    def click(
        self, *, story: Story, actor: Actor, kind: DecisionKind, copy_: int, replica: int, strike: Strike | None
    ) -> None:
        """Somebody presses Approve, Deny or Withdraw, who may or may not."""
        stage = self.stage
        pressed = stage.click(story, actor, kind, copy_)
        listed = stage.lists[replica]
        counts = story.counts(pressed, stage.now, listed)
        told = story.foretell_click(pressed, listed) if counts else story.state
        for refusal in self._play(replica, lambda bot: bot.click(pressed), strike=strike):
            assert (refusal is None) == counts, f"{actor.name} {kind} {story}: {refusal}"
            assert not counts or story.remembers(pressed), f"{story} has lost a decision that was acknowledged"
            assert stage.is_struck or story.state is told, f"{actor.name} {kind} {story}, not {told}"

    @precondition(lambda self: self._in(State.PENDING))
    @rule(which=st.integers(0, 3), replica=REPLICAS, reply=REPLIES, strike=STRIKES)
    def approve_and_advance(self, *, which: int, replica: int, reply: Reply, strike: Strike | None) -> None:
        """The way that most requests go: somebody approves, and the cancel is sent at once."""
        pending = self._in(State.PENDING)
        story = pending[which % len(pending)]
        for actor in (SECOND, THIRD)[: story.needs]:
            self.click(story=story, actor=actor, kind=DecisionKind.APPROVE, copy_=0, replica=replica, strike=None)
        self.advance(story=story, patient=False, replica=replica, reply=reply, strike=strike)

    @precondition(lambda self: any(story.needs > 1 for story in self._in(State.PENDING)))
    @rule(
        which=st.integers(0, 3),
        first=DECIDERS,
        removed=REMOVED,
        second=DECIDERS,
        kind=KINDS,
        replica=REPLICAS,
        strike=STRIKES,
    )
    def decide_in_turn(
        self,
        *,
        which: int,
        first: Actor,
        removed: Actor | None,
        second: Actor,
        kind: DecisionKind,
        replica: int,
        strike: Strike | None,
    ) -> None:
        """Somebody approves what two must, perhaps somebody is taken off the allowlist, and then somebody decides."""
        pending = [story for story in self._in(State.PENDING) if story.needs > 1]
        story = pending[which % len(pending)]
        self.click(story=story, actor=first, kind=DecisionKind.APPROVE, copy_=0, replica=replica, strike=None)
        if removed is not None:
            self.restart_with_another_list(replica=replica, removed=removed)
        self.click(story=story, actor=second, kind=kind, copy_=0, replica=replica, strike=strike)

    @precondition(lambda self: any(story.needs > 1 for story in self._in(State.REQUESTED, State.PENDING)))
    @rule(replica=REPLICAS, removed=REMOVED)
    def restart_with_another_list(self, *, replica: int, removed: Actor | None) -> None:
        """Somebody is taken off the allowlist, and whoever had been is put back; a restart makes it so."""
        stage = self.stage
        stage.steps += 1
        stage.lists[replica] = APPROVERS - ({removed.id} if removed is not None else set())
        stage.restart(replica)
        stage.faults["approver taken off the list"] += removed is not None

    @precondition(lambda self: self._in(*UNDER_WAY))
    @rule(which=st.integers(0, 3), replica=REPLICAS, reply=REPLIES, strike=STRIKES)
    def go_on(self, *, which: int, replica: int, reply: Reply, strike: Strike | None) -> None:
        """A replica finds out what came of a cancel."""
        under_way = self._in(*UNDER_WAY)
        self.advance(story=under_way[which % len(under_way)], patient=True, replica=replica, reply=reply, strike=strike)

    def _in(self, *states: State) -> list[Story]:
        return [story for story in self.stage.stories.values() if story.state in states]

    @rule(story=requests, patient=st.booleans(), replica=REPLICAS, reply=REPLIES, strike=STRIKES)
    def advance(self, *, story: Story, patient: bool, replica: int, reply: Reply, strike: Strike | None) -> None:
        """A replica does what is due at the exchange; a patient one waits until it is, for a minute."""
        stage = self.stage
        due = stage.rows[story.id]["next_attempt_at"]
        if patient and due is not None and due - stage.now < timedelta(minutes=1):
            stage.now = max(stage.now, due)
        before = copy.deepcopy(story)
        if self._play(replica, lambda bot: bot.advance(story.id), strike=strike, reply=reply):
            answered = {answer.call.nonce for answer, _ in stage.answers if answer.call.method == "DELETE"}
            missing = answered.difference(*(each.written_down for each in stage.stories.values()))
            assert not missing, f"what the exchange answered to {missing} is in no audit"
        if not stage.is_struck:
            listed = stage.lists[replica]
            told = before.foretell(stage.answers, stage.now, listed) if stage.is_granted else before.state
            assert story.state is told, f"{before} was answered {stage.answers}: {story.state}, not {told}"

    @precondition(lambda self: self._in(State.PENDING))
    @rule(replica=REPLICAS, reply=REPLIES, strike=STRIKES)
    def refresh(self, *, replica: int, reply: Reply, strike: Strike | None) -> None:
        """A replica looks again at the orders of pending requests, once that is due."""
        stage = self.stage
        due = min(stage.rows[story.id]["refresh_at"] for story in self._in(State.PENDING))
        stage.now = max(stage.now, due)
        self._play(replica, lambda bot: bot.refresh(), strike=strike, reply=reply)

    @rule(story=requests, replica=REPLICAS, mood=MOODS, strike=STRIKES)
    def show(self, *, story: Story, replica: int, mood: Mood, strike: Strike | None) -> None:
        """A replica draws the card and tells the thread."""
        self._play(replica, lambda bot: bot.show(story.id), strike=strike, mood=mood)

    @precondition(lambda self: any(row["next_attempt_at"] for row in self.stage.owed.values()))
    @rule(replica=REPLICAS, mood=MOODS, strike=STRIKES)
    def deliver(self, *, replica: int, mood: Mood, strike: Strike | None) -> None:
        """A replica tells somebody privately what they are owed."""
        due = next(notice_id for notice_id, row in self.stage.owed.items() if row["next_attempt_at"])
        self._play(replica, lambda bot: bot.deliver(due), strike=strike, mood=mood)

    @precondition(lambda self: self.stage.leases)
    @rule(story=requests)
    def write_under_a_stale_lease(self, *, story: Story) -> None:
        """Whoever comes back after the lane was taken over can change nothing."""
        stage = self.stage
        stage.steps += 1
        stale = stage.leases.get(story.id)
        if stale is None or stale.fence == stage.lanes[Lane.EXCHANGE.value, story.id].fence:
            return
        stage.faults["write under a stale lease"] += 1
        before = stage.rows[story.id]
        try:
            with WatchedStore(stage, "late").transaction(story.id, lease=stale) as tx:
                tx.change(attempts=99)
        except Overtaken:
            stage.observe()
            assert stage.rows[story.id] == before, f"{story} was changed under {stale}"
        else:
            raise AssertionError(f"{story} was changed under {stale}")

    @precondition(lambda self: self._in(State.UNRESOLVED))
    @rule(story=requests)
    def settle(self, *, story: Story) -> None:
        """A named person says what happened; only where nobody knows."""
        stage = self.stage
        stage.steps += 1
        stage.plan()
        is_unresolved = story.state is State.UNRESOLVED
        try:
            settle(WatchedStore(stage, "cli"), story.id, verdict=Verdict.OPEN, reason="looked", actor=OPERATOR)
        except IllegalTransition:
            assert not is_unresolved
        else:
            assert is_unresolved
            assert story.state is State.SETTLED

    @rule(story=requests, filled=st.sampled_from((0, 3, 3, 10)))
    def trade(self, *, story: Story, filled: int) -> None:
        """Somebody trades with the order or, where nothing is filled, cancels it by hand."""
        self.stage.steps += 1
        story.book.settle(self.stage.now)
        if filled:
            SimulatedExchange.fill(story.book, Decimal(filled))
        elif story.book.is_resting():
            story.book.cancels_at = self.stage.now

    @rule(seconds=WAITS_S)
    def wait(self, *, seconds: float) -> None:
        """Time passes, and nobody works."""
        self.stage.steps += 1
        self.stage.now += timedelta(seconds=seconds)

    def _play(
        self,
        replica: int,
        act: Callable[[CancelWorkflow], T],
        *,
        strike: Strike | None,
        reply: Reply = Reply.FINE,
        mood: Mood = Mood.FINE,
    ) -> tuple[T, ...]:
        """One step of a replica: its answer, or nothing where the replica died or the database failed."""
        stage = self.stage
        stage.steps += 1
        stage.plan(strike, reply, mood, replica)
        try:
            return (act(stage.bots[replica]),)
        except Crash:
            stage.restart(replica)
        except StoreError:
            if not stage.is_struck:
                raise
        return ()


def run(ground: Ground) -> Figures:
    """Play some histories of 50 steps each; a falsifying one is written down as hypothesis tells it."""
    figures = Figures(experiment="model", database=ground.kind)
    stage = Stage(ground.new_database())
    histories = type("Histories", (Histories,), {"stage": stage})
    try:
        run_state_machine_as_test(
            seed(ground.seed)(histories),
            settings=settings(
                max_examples=ground.some(HISTORIES),
                stateful_step_count=STEPS,
                database=None,
                deadline=None,
                derandomize=False,
                verbosity=Verbosity.normal,
                report_multiple_bugs=False,
                suppress_health_check=list(HealthCheck),
                # Making a failing history short takes minutes.
                phases=[Phase.generate] if ground.scale < 1 else [Phase.generate, Phase.shrink],
            ),
        )
    except Exception as error:  # noqa: BLE001 - whatever the product raises is a finding
        figures.faulty.append("\n".join([f"seed {ground.seed}: {error!r}", *getattr(error, "__notes__", [])]))
    verification = verify(stage.database)
    figures.expect(verification.fault is None, f"seed {ground.seed}: {verification.fault}")
    stage.database.close()
    figures.faults, figures.requests, figures.duplicates = stage.faults, stage.requests, stage.duplicates
    figures.note = (
        f"{stage.steps:,} steps in {stage.histories:,} histories, {len(stage.visited)} states, "
        f"{stage.approved_by_two:,} approved by two"
    )
    return figures
