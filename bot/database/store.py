"""The requests in SQL: a change of state and its audit event in one transaction, and leases on the lanes."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any, Final

from sqlalchemy import (
    ColumnElement,
    Connection,
    RowMapping,
    Select,
    Table,
    Update,
    and_,
    bindparam,
    case,
    func,
    insert,
    literal,
    or_,
    select,
    text,
    tuple_,
    update,
)

from bot.baton import Baton
from bot.database.chain import REFUSAL, Chain
from bot.database.engine import STATEMENT_TIMEOUT_MS, Database
from bot.database.schema import UtcTime, audit_head, cancel_requests, decisions, not_over_sql, notices, open_states_sql
from bot.database.together import Answer, Together
from bot.domain.audit import SYSTEM, Action, Actor, AuditEvent, Json, Outcome, Reason
from bot.domain.cancel_request import (
    ENDED_STATES,
    TRANSITIONS,
    VERDICT_STATES,
    CanceledBy,
    CancelRequest,
    Decision,
    DecisionKind,
    State,
    Verdict,
)
from bot.domain.errors import Overtaken
from bot.domain.order import Order, dump_order, load_order
from bot.domain.quote import Quote, dump_quote, load_quote
from bot.domain.tiers import Tier, parse_tier, value_krw
from bot.inquiry import Wanted
from bot.workflow import (
    LONGEST_HOLD_S,
    NOTICE_LIFETIME,
    RESPONSE_URL_LIFETIME,
    TOLD_ONCE,
    Command,
    Known,
    Lane,
    Lease,
    Notice,
    NoticeKind,
    Watched,
)

log = logging.getLogger(__name__)

LEASE: Final = timedelta(seconds=30)
"""Longer than any step: a call to Upbit ends within 5 s, one to Slack within 10 s."""

CLOCK_TOLERANCE: Final = timedelta(seconds=1)
"""A clock that goes back by less is being adjusted, and delays nobody by more."""

LONGEST_TRANSACTION: Final = timedelta(seconds=3)

MAX_LOADED_ORDERS: Final = 1000

TIMER_SLACK: Final = timedelta(milliseconds=20)
"""Timers fire a little early, and SQLite's clock counts milliseconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _LaneColumns:
    due: str
    leased_until: str
    fence: str
    attempts: str


_LANES: Final = {
    Lane.EXCHANGE: _LaneColumns(due="next_attempt_at", leased_until="leased_until", fence="fence", attempts="attempts"),
    Lane.SLACK: _LaneColumns(
        due="card_next_attempt_at",
        leased_until="card_leased_until",
        fence="card_fence",
        attempts="card_attempts",
    ),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """What waits to be done: ids of requests in each lane, and of notices."""

    exchange: tuple[int, ...]
    unread: frozenset[int]  #: those of them whose orders nobody has read yet
    slack: tuple[int, ...]
    notices: tuple[int, ...]
    refresh: bool  #: orders of pending requests are to be looked at again


class SqlStore:
    """The Store of `bot.workflow` on SQLite and PostgreSQL."""

    def __init__(self, database: Database, *, baton: Baton | None = None) -> None:
        self._database = database
        self._latest: datetime | None = None  # the time at the last round of `due`
        self._end_waits_at: list[datetime] = []
        self._together = Together(self._shared, patience_s=STATEMENT_TIMEOUT_MS / 1000, baton=baton or Baton())

    @contextmanager
    def transaction(self, request_id: int | None = None, *, lease: Lease | None = None) -> Iterator["SqlTransaction"]:
        with self._database.write() as connection:
            # Lock order everywhere: the request's row, then the audit's head; the time is asked under both.
            request = _select_request(connection, request_id, lock=True) if request_id is not None else None
            if lease is not None:
                assert lease.lane is Lane.EXCHANGE
                if request is None or request.fence != lease.fence:
                    raise Overtaken(f"request {request_id} has been taken over")
            with self._chained(connection, request) as tx:
                yield tx

    @contextmanager
    def _chained(
        self, connection: Connection, request: CancelRequest | None, *, with_first: dict[str, Any] | None = None
    ) -> Iterator["SqlTransaction"]:
        chain = Chain(self._database, connection)
        yield SqlTransaction(connection, chain, request=request, now=chain.now, with_first=with_first)
        chain.write()

    def together(self, work: Callable[["SqlTransaction"], Answer]) -> Answer:
        return self._together.run(work)

    @contextmanager
    def _shared(self) -> Iterator[Callable[[], "SqlTransaction"]]:
        with self.transaction() as tx:
            yield tx.without_request

    def read(self, request_id: int) -> CancelRequest | None:
        with self._database.read() as connection:
            return _select_request(connection, request_id)

    def request_of_trigger(self, trigger_id: str) -> int | None:
        with self._database.read() as connection:
            return connection.execute(_OF_TRIGGER, {"trigger_id": trigger_id}).scalar_one_or_none()

    def list_requests(self, wanted: Wanted, *, limit: int) -> Sequence[CancelRequest]:
        table = cancel_requests
        newest_first = (table.c.created_at.desc(), table.c.id.desc())
        conditions = _fitting(wanted)
        with self._database.read() as connection:
            if wanted.before is not None:
                asked_at = _created_at(connection, wanted.before)
                if asked_at is None:
                    return ()
                place = tuple_(table.c.created_at, table.c.id)
                conditions.append(place < tuple_(literal(asked_at, UtcTime()), literal(wanted.before)))
            return select_requests(connection, *conditions, order_by=newest_first, limit=limit)

    def requester_called(self, name: str) -> str | None:
        table = cancel_requests
        query = select(table.c.requester_id).where(table.c.requester_name == name)
        with self._database.read() as connection:
            latest = query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(1)
            return connection.execute(latest).scalar_one_or_none()

    @contextmanager
    def lease(self, request_id: int, lane: Lane, *, kept: Lease | None = None) -> Iterator["SqlTaken | None"]:
        names = _LANES[lane]
        with self._database.write() as connection:
            locked = self._database.lock(connection, _REQUEST_LOCKED, request_id=request_id)
            if locked is None or not _may_take(*locked, names, kept):
                yield None
                return
            row, now = locked
            lease = Lease(request_id=request_id, lane=lane, fence=row[names.fence] + 1)
            values: dict[str, Any] = {names.leased_until: now + LEASE, names.fence: lease.fence}
            request = _from_row({**row, **values}, _select_decisions(connection, request_id))
            yield SqlTaken(
                lease=lease,
                request=request,
                transaction=lambda: self._chained(connection, request, with_first=values),
            )
            if values:
                connection.execute(_BY_ID, {**values, "request_id": request_id})

    def release(self, lease: Lease, *, due_in_s: float | None, seen_revision: int) -> float | None:
        names = _LANES[lease.lane]
        table = cancel_requests
        with self._database.write() as connection:
            now = self._database.now(connection)
            row = connection.execute(
                _LEASED[lease.lane], {"request_id": lease.request_id, "kept_fence": lease.fence}
            ).one_or_none()
            if row is None:
                if lease.lane is Lane.SLACK:
                    # What was drawn late may be older than what the next one drew: it has to be drawn once more.
                    late = {names.due: now, "card_shown_revision": -1}
                    connection.execute(update(table).where(table.c.id == lease.request_id).values(late))
                return None
            if row.revision != seen_revision:
                due_in_s = 0.0
            due = None if due_in_s is None else now + timedelta(seconds=due_in_s)
            if due is not None and lease.lane is Lane.EXCHANGE and row.state == State.PENDING.value:
                due = min(due, row.expires_at)  # a time of day, whatever the clock did since it was set
            values: dict[str, Any] = {
                names.leased_until: None,
                names.due: due,
                names.attempts: 0 if due_in_s is None else row.attempts + 1,
            }
            if lease.lane is Lane.SLACK and due_in_s is None:
                values["card_shown_revision"] = seen_revision
            connection.execute(_BY_ID, {**values, "request_id": lease.request_id})
        return due_in_s

    def take_refresh(self, *, limit: int, again_in_s: float) -> tuple[Watched, ...]:
        table = cancel_requests
        with self._database.write() as connection:
            now = self._database.now(connection)
            taken = connection.execute(
                select(table.c.id, table.c.order_uuid, table.c.order_now, table.c.unseen_since, table.c.refresh_at)
                .where(is_pending(), table.c.refresh_at <= now)
                .order_by(table.c.refresh_at)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            self._refresh_at(connection, [row.id for row in taken], now + timedelta(seconds=again_in_s))
        return tuple(
            Watched(
                request_id=row.id,
                order_uuid=row.order_uuid,
                order_now=load_order(row.order_now),
                is_unseen=row.unseen_since is not None,
            )
            # Those of one refresh have the same time, and PostgreSQL gives them in any order.
            for row in sorted(taken, key=lambda row: (row.refresh_at, row.id))
        )

    def refresh_again(self, request_ids: Sequence[int]) -> None:
        with self._database.write() as connection:
            ids = _pending_of(connection, request_ids)
            self._refresh_at(connection, ids, self._database.now(connection))

    @staticmethod
    def _refresh_at(connection: Connection, request_ids: Sequence[int], at: datetime) -> None:
        table = cancel_requests
        connection.execute(update(table).where(table.c.id.in_(request_ids)).values(refresh_at=at))

    def saw_unchanged(self, request_ids: Sequence[int]) -> None:
        table = cancel_requests
        with self._database.write() as connection:
            ids = _pending_of(connection, request_ids)
            now = self._database.now(connection)
            connection.execute(update(table).where(table.c.id.in_(ids)).values(looked_at=now))

    def wake(self, request_id: int) -> None:
        table = cancel_requests
        with self._database.write() as connection:
            now = self._database.now(connection)
            connection.execute(
                update(table)
                .where(table.c.id == request_id, table.c.state == State.PENDING.value)
                .values(next_attempt_at=now)
            )

    def lease_notice(self, notice_id: int) -> Notice | None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            times = {"due_by": now + TIMER_SLACK, "now": now, "until": now + LEASE}
            row = connection.execute(_TAKE_NOTICE, {"notice_id": notice_id, **times}).one_or_none()
            if row is None:
                return None
            if row.not_after <= now:
                connection.execute(_END_NOTICE, {"notice_id": notice_id, "given_up": True, "sent_at": None})
                return None
            request = _select_request(connection, row.request_id) if row.request_id is not None else None
            usable_until = row.created_at + RESPONSE_URL_LIFETIME
            return Notice(
                id=row.id,
                kind=NoticeKind(row.kind),
                reason=Reason(row.reason) if row.reason else None,
                user_id=row.user_id,
                channel_id=row.channel_id,
                message_ts=row.message_ts,
                response_url=row.response_url if now < usable_until else None,
                request=request,
                attempts=row.attempts - 1,
                created_at=row.created_at,
                fence=row.fence,
            )

    def finish_notice(self, notice: Notice, *, given_up: bool) -> None:
        with self._database.write() as connection:
            at = None if given_up else self._database.now(connection)
            connection.execute(_END_NOTICE, {"notice_id": notice.id, "given_up": given_up, "sent_at": at})

    def finish_before(self, notice: Notice) -> bool:
        with self._database.write() as connection:
            ends = {"notice_id": notice.id, "kept_fence": notice.fence, "given_up": False}
            ended = connection.execute(_END_OWN_NOTICE, {**ends, "sent_at": self._database.now(connection)})
            return ended.rowcount == 1

    def postpone_notice(self, notice: Notice, *, due_in_s: float) -> None:
        with self._database.write() as connection:
            due = self._database.now(connection) + timedelta(seconds=due_in_s)
            connection.execute(
                update(notices)
                .where(notices.c.id == notice.id, notices.c.fence == notice.fence)
                .values(leased_until=None, next_attempt_at=due, sent_at=None)
            )

    def due(self, *, limit: int, looks: bool = True) -> Due:
        """What is due now in each lane, `limit` of each at most: the most urgent first, then the longest waiting.

        Without `looks` the requests are left out that wait for a look at their orders.
        """
        with self._database.read() as connection:
            now = self._database.now(connection)
            told = self._latest or connection.execute(select(audit_head.c.occurred_at)).scalar_one()

            which: dict[str, Any] = {"now": now, "most": limit}
            if looks:
                exchange = connection.execute(_DUE_ON_EXCHANGE, which).all()
            else:
                held_since = now - timedelta(seconds=LONGEST_HOLD_S)
                exchange = connection.execute(_DUE_WITHOUT_LOOKS, {**which, "held_since": held_since}).all()
            due = Due(
                exchange=tuple(row.id for row in exchange),
                unread=frozenset(row.id for row in exchange if row.state == State.REQUESTED.value),
                slack=tuple(connection.execute(_DUE_ON_SLACK, which).scalars()),
                notices=tuple(connection.execute(_DUE_NOTICES, which).scalars()),
                refresh=looks and connection.execute(_REFRESH_DUE, {"now": now}).first() is not None,
            )
        if now < told - CLOCK_TOLERANCE:
            log.warning("the database's clock was set back: nothing waits for the time that it showed")
            # Once more for who had asked the time before and commits only now.
            self._end_waits_at = [now, now + LONGEST_TRANSACTION]
        if self._end_waits_at and self._end_waits_at[0] <= now:
            self._end_waits()
            self._end_waits_at.pop(0)
        self._latest = now
        return due

    def _end_waits(self) -> None:
        """Make due what waits; else it would wait for as long as the clock was set back, too.

        A pending request waits for its expiry, which is a time that people were told. Leases are cut to their length.
        """
        with self._database.write() as connection:
            now = self._database.now(connection)
            for table, names in (
                (cancel_requests, _LANES[Lane.EXCHANGE]),
                (cancel_requests, _LANES[Lane.SLACK]),
                (notices, _LANES[Lane.EXCHANGE]),
            ):
                due, leased_until = table.c[names.due], table.c[names.leased_until]
                waits = update(table).where(due > now)
                if table is cancel_requests and names is _LANES[Lane.EXCHANGE]:
                    waits = waits.where(table.c.state != State.PENDING.value)
                connection.execute(waits.values({names.due: now}))
                connection.execute(
                    update(table).where(leased_until > now + LEASE).values({names.leased_until: now + LEASE})
                )
            refresh_at = cancel_requests.c.refresh_at
            connection.execute(update(cancel_requests).where(is_pending(), refresh_at > now).values(refresh_at=now))


@dataclass(frozen=True, kw_only=True, slots=True)
class SqlTaken:
    """The Taken of `bot.workflow`."""

    lease: Lease
    request: CancelRequest
    transaction: Callable[[], AbstractContextManager["SqlTransaction"]]


class SqlTransaction:
    """The Transaction of `bot.workflow`: one connection that holds the row and the head."""

    def __init__(
        self,
        connection: Connection,
        chain: Chain,
        *,
        request: CancelRequest | None,
        now: datetime,
        with_first: dict[str, Any] | None = None,
    ) -> None:
        """`with_first` are values that go with the first change of the request's row; it is empty after that."""
        self._with_first = {} if with_first is None else with_first
        self._connection = connection
        self._chain = chain
        self._request = request
        self.now = now

    @property
    def request(self) -> CancelRequest | None:
        return self._request

    def without_request(self) -> "SqlTransaction":
        """The same transaction for other work in it."""
        return SqlTransaction(self._connection, self._chain, request=None, now=self.now)

    def refusal_of_trigger(self, trigger_id: str) -> Reason | None:
        return self._chain.refusal_of_trigger(trigger_id)

    def known_of(self, command: Command) -> Known:
        asked = {
            "trigger_id": command.trigger_id,
            "order_uuid": command.order_uuid,
            "requester_id": command.requester.id,
        }
        row = self._connection.execute(_KNOWN, asked).one()
        return Known(
            request_id=row.request_id,
            refusal=self._chain.refusal_in(row.refusal, command.trigger_id),
            open_request=None if row.open_id is None else _select_request(self._connection, row.open_id),
            open_requests=row.open_requests,
        )

    def create(self, command: Command, *, approvals_channel_id: str | None = None) -> CancelRequest:
        assert command.order_uuid is not None
        _, state = TRANSITIONS[Action.REQUEST_CREATED]
        asked: dict[str, Any] = {
            "order_uuid": command.order_uuid,
            "reason": command.reason,
            "team_id": command.team_id,
            "channel_id": command.channel_id,
            "approvals_channel_id": approvals_channel_id,
            "in_private": command.in_private,
            "trigger_id": command.trigger_id,
            "response_url": command.response_url,
            "created_at": self.now,
            "next_attempt_at": self.now,
        }
        requester = replace(command.requester, team_id=command.team_id)
        values = {**asked, "state": state.value, "requester_id": requester.id, "requester_name": requester.name}
        request_id = self._connection.execute(_CREATE, values).scalar_one()
        self._request = request = CancelRequest(id=request_id, state=state, requester=requester, **asked)
        self._append(
            Action.REQUEST_CREATED,
            request,
            actor=command.requester,
            details={} if approvals_channel_id is None else {"approvals_channel_id": approvals_channel_id},
            reason=command.reason,
            trigger_id=command.trigger_id,
        )
        return request

    def move(  # noqa: PLR0913 - see Transaction
        self,
        action: Action,
        *,
        actor: Actor = SYSTEM,
        outcome: Outcome = Outcome.OK,
        details: dict[str, Json] | None = None,
        trigger_id: str | None = None,
        team_id: str | None = None,
        channel_id: str | None = None,
        reason: str | None = None,
        due_in_s: float | None = None,
        **changes: Any,
    ) -> CancelRequest:
        request = self._present()
        target = request.after(action)
        values = {**changes, "state": target, "card_next_attempt_at": self.now, "card_attempts": 0}
        if target in ENDED_STATES:
            values["next_attempt_at"] = None
        elif due_in_s is not None:
            values["next_attempt_at"] = self.now + timedelta(seconds=due_in_s)
        moved = self._update(_MOVES[action], values, is_revised=True)
        facts: dict[str, Json] = {"state": target.value, **(details or {})}
        self._append(
            action,
            moved,
            actor=actor,
            outcome=outcome,
            details=facts,
            trigger_id=trigger_id,
            team_id=team_id,
            channel_id=channel_id,
            reason=reason,
        )
        if target in VERDICT_STATES:
            self.change(witness_seq=self._chain.seq, witness_hash=self._chain.hash)
        return self._present()

    def record(  # noqa: PLR0913 - see Transaction
        self,
        action: Action,
        *,
        actor: Actor = SYSTEM,
        outcome: Outcome = Outcome.OK,
        details: dict[str, Json] | None = None,
        trigger_id: str | None = None,
        team_id: str | None = None,
        channel_id: str | None = None,
        order_uuid: str | None = None,
        reason: str | None = None,
        **changes: Any,
    ) -> None:
        assert action not in TRANSITIONS
        if changes:
            self.change(**changes)
        if self._request is not None:
            self._append(
                action,
                self._request,
                actor=actor,
                outcome=outcome,
                details=details or {},
                trigger_id=trigger_id,
                team_id=team_id,
                channel_id=channel_id,
                reason=reason,
            )
            return
        self._chain.append(
            AuditEvent(
                action=action,
                outcome=outcome,
                actor=actor,
                order_uuid=order_uuid,
                team_id=team_id,
                channel_id=channel_id,
                reason=reason,
                trigger_id=trigger_id,
                details=details or {},
            ),
            occurred_at=self.now,
        )

    def decide(self, kind: DecisionKind, actor: Actor, *, reason: str = "") -> None:
        request = self._present()
        values = {
            "request_id": request.id,
            "kind": kind.value,
            "actor_id": actor.id,
            "actor_name": actor.name,
            "actor_team": actor.team_id,
            "decided_at": self.now,
            "reason": reason,
        }
        self._connection.execute(_DECIDE, values)
        made = Decision(kind=kind, actor=actor, decided_at=self.now, reason=reason)
        self._request = replace(request, decisions=(*request.decisions, made))

    def change(self, *, redraw: bool = False, **changes: Any) -> None:
        if redraw:
            self._update(_REVISED, {**changes, "card_next_attempt_at": self.now}, is_revised=True)
        else:
            self._update(_GUARDED, changes, is_revised=False)

    def tell(self, notice: Notice) -> None:
        request_id = self._request.id if self._request is not None else None
        if notice.kind in TOLD_ONCE and self._is_told(request_id, notice.kind):
            return
        values = {
            "request_id": request_id,
            "kind": notice.kind.value,
            "reason": notice.reason.value if notice.reason is not None else None,
            "user_id": notice.user_id,
            "channel_id": notice.channel_id,
            "message_ts": notice.message_ts,
            "response_url": notice.response_url,
            "created_at": self.now,
            "not_after": notice.not_after or self.now + NOTICE_LIFETIME[notice.kind],
            "next_attempt_at": self.now,
        }
        self._connection.execute(_TELL, values)

    def _is_told(self, request_id: int | None, kind: NoticeKind) -> bool:
        told = self._connection.execute(
            select(notices.c.id).where(notices.c.request_id == request_id, notices.c.kind == kind.value).limit(1)
        )
        return told.first() is not None

    def _append(  # noqa: PLR0913 - one event has that many facts
        self,
        action: Action,
        request: CancelRequest,
        *,
        actor: Actor,
        outcome: Outcome = Outcome.OK,
        details: Mapping[str, Json] | None = None,
        trigger_id: str | None = None,
        team_id: str | None = None,
        channel_id: str | None = None,
        reason: str | None = None,
    ) -> None:
        self._chain.append(
            AuditEvent(
                action=action,
                outcome=outcome,
                actor=actor,
                request_id=request.id,
                order_uuid=request.order_uuid,
                market=request.market,
                team_id=team_id or request.team_id,
                channel_id=channel_id or request.card_channel_id or request.channel_id,
                reason=reason,
                trigger_id=trigger_id,
                details={**(details or {}), **_worth(request)},
            ),
            occurred_at=self.now,
        )

    def _present(self) -> CancelRequest:
        assert self._request is not None, "this transaction locked no request"
        return self._request

    def _update(self, statement: Update, changes: Mapping[str, Any], *, is_revised: bool) -> CancelRequest:
        """Write the changes by a statement that is guarded; raises Overtaken where the guard holds no more."""
        request = self._present()
        guarded = {"guarded_id": request.id, "guarded_revision": request.revision}
        values = {**self._with_first, **_to_sql(changes)}
        if self._connection.execute(statement, {**values, **guarded}).rowcount != 1:
            raise Overtaken(f"request {request.id} has moved on")
        self._with_first.clear()
        known = {name: value for name, value in changes.items() if name in CancelRequest.__dataclass_fields__}
        self._request = replace(request, **known, revision=request.revision + is_revised)
        return self._request


def _worth(request: CancelRequest) -> dict[str, Json]:
    """By what an event is found that concerns more than an amount: the order as it was when approval was asked for."""
    value = value_krw(request.order) if request.order is not None else None
    return {} if value is None else {"value_krw": value}


# Statements that run all the time are built once: building one takes longer than running it.


def _is_open() -> ColumnElement[bool]:
    # Literals, not parameters: only then does SQLite see that the partial index fits.
    return text(open_states_sql())  # type: ignore[return-value]


_OF_TRIGGER: Final = select(cancel_requests.c.id).where(cancel_requests.c.trigger_id == bindparam("trigger_id"))
_OPEN_OF_ORDER: Final = select(cancel_requests.c.id).where(
    cancel_requests.c.order_uuid == bindparam("order_uuid"), _is_open()
)
_COUNT_OPEN_OF: Final = (
    select(func.count())
    .select_from(cancel_requests)
    .where(cancel_requests.c.requester_id == bindparam("requester_id"), _is_open())
)
_KNOWN: Final = select(
    _OF_TRIGGER.scalar_subquery().label("request_id"),
    REFUSAL.scalar_subquery().label("refusal"),
    _OPEN_OF_ORDER.scalar_subquery().label("open_id"),
    _COUNT_OPEN_OF.scalar_subquery().label("open_requests"),
)
_CREATE: Final = insert(cancel_requests).returning(cancel_requests.c.id)
_DECIDE: Final = insert(decisions)
_TELL: Final = insert(notices)
_GUARDED: Final = update(cancel_requests).where(
    cancel_requests.c.id == bindparam("guarded_id"), cancel_requests.c.revision == bindparam("guarded_revision")
)
"""The values come with the execution, and make a statement of their own that is compiled once."""
_REVISED: Final = _GUARDED.values(revision=cancel_requests.c.revision + 1)
_MOVES: Final = {
    action: _REVISED.where(cancel_requests.c.state.in_([source.value for source in sources]))
    for action, (sources, _) in TRANSITIONS.items()
}


def _is_due(table: Table, names: _LaneColumns, due_by: str) -> ColumnElement[bool]:
    """Due by the time in this parameter, and nobody's at `now`."""
    leased_until = table.c[names.leased_until]
    return and_(table.c[names.due] <= bindparam(due_by), or_(leased_until.is_(None), leased_until <= bindparam("now")))


def _may_take(row: RowMapping, now: datetime, names: _LaneColumns, kept: Lease | None) -> bool:
    """Whether something is due in a lane that is nobody's, or that nobody has taken since the kept lease."""
    due, leased_until = row[names.due], row[names.leased_until]
    is_due = due is not None and due <= now + TIMER_SLACK
    is_nobodys = leased_until is None or leased_until <= now
    return is_due and (is_nobodys or (kept is not None and kept.fence == row[names.fence]))


def _leased(names: _LaneColumns) -> Select[Any]:
    """What giving a lease back must know, while it is still ours: the row stays locked."""
    table = cancel_requests
    attempts = table.c[names.attempts].label("attempts")
    is_ours = and_(table.c.id == bindparam("request_id"), table.c[names.fence] == bindparam("kept_fence"))
    return select(table.c.revision, table.c.state, table.c.expires_at, attempts).where(is_ours).with_for_update()


_BY_ID: Final = update(cancel_requests).where(cancel_requests.c.id == bindparam("request_id"))
_LEASED: Final = {lane: _leased(names) for lane, names in _LANES.items()}
_TAKE_NOTICE: Final = (
    update(notices)
    .where(notices.c.id == bindparam("notice_id"), _is_due(notices, _LANES[Lane.EXCHANGE], "due_by"))
    .values(leased_until=bindparam("until"), fence=notices.c.fence + 1, attempts=notices.c.attempts + 1)
    .returning(*notices.c)
)

_OUTCOMES: Final = [State.SENDING.value, State.ACCEPTED.value, State.UNRESOLVED.value]
_LOOKING: Final = [State.REQUESTED.value, *_OUTCOMES]
_URGENCY: Final = case(
    (cancel_requests.c.state == State.APPROVED.value, 0),
    (cancel_requests.c.state.in_(_OUTCOMES), 1),
    (cancel_requests.c.state == State.REQUESTED.value, 2),
    else_=3,
)
"""Sending goes before finding out what came of it, then come the orders of new requests, then those of pending ones."""


def is_pending() -> ColumnElement[bool]:
    # A literal, not a parameter: only then does SQLite see that the partial index fits.
    return text(f"cancel_requests.state = '{State.PENDING}'")  # type: ignore[return-value]


def _pending_of(connection: Connection, request_ids: Sequence[int]) -> list[int]:
    """Those of the requests that are pending, locked; what somebody else works on is left to them."""
    table = cancel_requests
    query = select(table.c.id).where(table.c.id.in_(request_ids), table.c.state == State.PENDING.value)
    return list(connection.execute(query.order_by(table.c.id).with_for_update(skip_locked=True)).scalars())


def _needs_no_look() -> ColumnElement[bool]:
    """A pending request is looked at unless it is over. What has waited since `held_since` goes on all the same."""
    state = cancel_requests.c.state
    is_over = and_(state == State.PENDING.value, cancel_requests.c.expires_at <= bindparam("now"))
    has_waited = cancel_requests.c.next_attempt_at <= bindparam("held_since")
    return or_(state.not_in([*_LOOKING, State.PENDING.value]), is_over, has_waited)


def _due(
    table: Table, names: _LaneColumns, *narrowed: ColumnElement[bool], first: Sequence[ColumnElement[int]] = ()
) -> Select[Any]:
    """Ids of what is due `now`, `most` of them: the longest waiting first."""
    due = select(table.c.id).where(_is_due(table, names, "now"), *narrowed)
    return due.order_by(*first, table.c[names.due]).limit(bindparam("most"))


_DUE_ON_EXCHANGE: Final = _due(cancel_requests, _LANES[Lane.EXCHANGE], first=[_URGENCY]).add_columns(
    cancel_requests.c.state
)
_DUE_WITHOUT_LOOKS: Final = _DUE_ON_EXCHANGE.where(_needs_no_look())
_DUE_ON_SLACK: Final = _due(cancel_requests, _LANES[Lane.SLACK])
_DUE_NOTICES: Final = _due(notices, _LANES[Lane.EXCHANGE])
_REFRESH_DUE: Final = (
    select(cancel_requests.c.id).where(is_pending(), cancel_requests.c.refresh_at <= bindparam("now")).limit(1)
)


_END_NOTICE: Final = (
    update(notices)
    .where(notices.c.id == bindparam("notice_id"))
    .values(next_attempt_at=None, leased_until=None, response_url=None)
)
"""With `sent_at` and `given_up`. The response_url is a key to the person's screen: it goes with the notice."""
_END_OWN_NOTICE: Final = _END_NOTICE.where(
    notices.c.fence == bindparam("kept_fence"), notices.c.next_attempt_at.is_not(None)
)


_REQUEST: Final = select(cancel_requests).where(cancel_requests.c.id == bindparam("request_id"))
_REQUEST_LOCKED: Final = _REQUEST.with_for_update()
_DECISIONS: Final = select(decisions).where(decisions.c.request_id == bindparam("request_id")).order_by(decisions.c.id)


def _select_request(connection: Connection, request_id: int, *, lock: bool = False) -> CancelRequest | None:
    which = {"request_id": request_id}
    row = connection.execute(_REQUEST_LOCKED if lock else _REQUEST, which).mappings().one_or_none()
    if row is None:
        return None
    return _from_row(row, _select_decisions(connection, request_id))


def _select_decisions(connection: Connection, request_id: int) -> tuple[Decision, ...]:
    made = connection.execute(_DECISIONS, {"request_id": request_id}).mappings()
    return tuple(_decision(decision) for decision in made)


def _fitting(wanted: Wanted) -> list[ColumnElement[bool]]:
    """The conditions of a question, but for its page."""
    table = cancel_requests
    requester: ColumnElement[str] = table.c.requester_id
    market: ColumnElement[str] = table.c.market
    if wanted.only_open or wanted.order_uuid is not None:
        # That is little, and much may be one person's: an index that leads to theirs must not be taken.
        requester, market = requester.concat(""), market.concat("")
    same: tuple[tuple[ColumnElement[Any], Any], ...] = (
        (table.c.id, wanted.request_id),
        (table.c.order_uuid, wanted.order_uuid),
        (requester, wanted.requester_id),
        (market, wanted.market),
    )
    conditions: list[ColumnElement[bool]] = [column == value for column, value in same if value is not None]
    if wanted.since is not None:
        conditions.append(table.c.created_at >= wanted.since)
    if wanted.only_open:
        # Literals, not parameters: only then does SQLite see that the partial index fits.
        conditions.append(text(not_over_sql()))  # type: ignore[arg-type]
    return conditions


def _created_at(connection: Connection, request_id: int) -> datetime | None:
    query = select(cancel_requests.c.created_at).where(cancel_requests.c.id == request_id)
    return connection.execute(query).scalar_one_or_none()


def select_requests(
    connection: Connection, *conditions: ColumnElement[bool], order_by: Sequence[ColumnElement[Any]], limit: int
) -> tuple[CancelRequest, ...]:
    """The first requests for which the conditions hold, with their decisions."""
    found = (
        connection.execute(select(cancel_requests).where(*conditions).order_by(*order_by).limit(limit)).mappings().all()
    )
    made: dict[int, list[Decision]] = {row["id"]: [] for row in found}
    of_these = select(decisions).where(decisions.c.request_id.in_(made)).order_by(decisions.c.id)
    for row in connection.execute(of_these).mappings():
        made[row["request_id"]].append(_decision(row))
    return tuple(_from_row(row, tuple(made[row["id"]])) for row in found)


_TEXT_LISTS: Final = {"approvers", "not_counted"}
_ORDERS: Final = {"order", "order_now", "order_approved"}


def _to_sql(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes in the domain's types as the columns hold them; with the order its market, by which it is found."""
    values = {name: _value_to_sql(name, value) for name, value in changes.items()}
    order = changes.get("order_now")
    return {**values, "market": order.market} if isinstance(order, Order) else values


def _value_to_sql(name: str, value: Any) -> Any:
    if name in _ORDERS and isinstance(value, Order):
        return dump_order(value)
    if isinstance(value, Quote):
        return dump_quote(value)
    if isinstance(value, Tier):
        return str(value)
    if isinstance(value, StrEnum):
        return value.value
    return ",".join(value) if name in _TEXT_LISTS else value


def _text_list(text: str) -> tuple[str, ...]:
    return tuple(text.split(",")) if text else ()


_load_order: Final = lru_cache(maxsize=MAX_LOADED_ORDERS)(load_order)
"""A row holds three orders, mostly the same, and is read at each step."""


def _decision(row: RowMapping) -> Decision:
    return Decision(
        kind=DecisionKind(row["kind"]),
        actor=Actor(id=row["actor_id"], name=row["actor_name"], team_id=row["actor_team"]),
        decided_at=row["decided_at"],
        reason=row["reason"],
    )


_SAME_NAME: Final = tuple(
    name
    for name in CancelRequest.__dataclass_fields__
    if name in cancel_requests.c
    and name
    not in {*_ORDERS, *_TEXT_LISTS, "state", "quote", "approval_rule", "said_state", "canceled_by", "settled_verdict"}
)


def _from_row(row: Mapping[Any, Any], made: tuple[Decision, ...]) -> CancelRequest:
    plain = {name: row[name] for name in _SAME_NAME}
    return CancelRequest(
        **plain,
        state=State(row["state"]),
        requester=Actor(id=row["requester_id"], name=row["requester_name"], team_id=row["team_id"]),
        order=_load_order(row["order"]) if row["order"] else None,
        order_now=_load_order(row["order_now"]) if row["order_now"] else None,
        quote=load_quote(row["quote"]) if row["quote"] else None,
        order_approved=_load_order(row["order_approved"]) if row["order_approved"] else None,
        approval_rule=parse_tier(row["approval_rule"]) if row["approval_rule"] else None,
        approvers=_text_list(row["approvers"]),
        not_counted=_text_list(row["not_counted"]),
        said_state=State(row["said_state"]) if row["said_state"] else None,
        canceled_by=CanceledBy(row["canceled_by"]) if row["canceled_by"] else None,
        settled_verdict=Verdict(row["settled_verdict"]) if row["settled_verdict"] else None,
        decisions=made,
    )
