"""Hold the orders that the exchange shows as canceled against the audit, and write down what was found.

    reconcile      what the whole comparison comes to, recorded in the audit whatever it is
    └── _Reading   asks the exchange, at a pace, tries again, and gives up in time (Unread)

The exchange lists canceled orders by the time of their *creation*, in windows of 7 days and 1,000 orders, and never
tells when they were canceled. So the span is that of creation for orders, and that of the end for requests; the orders
of the latter are looked up by their uuids where the list did not bring them.

The exchange is always asked before the requests are read: a cancel of ours is committed before it is sent, so what the
exchange shows canceled by us cannot be missing there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final, Protocol

from bot.database.engine import Database
from bot.database.recorded_ends import RecordedEnds
from bot.database.store import SqlStore
from bot.domain.answer import FoundOrders, NotSent, OrdersAnswer, Refused, Unknown
from bot.domain.audit import Action, Actor, Json, Outcome, timestamp
from bot.domain.errors import BotError, NothingDone
from bot.domain.order import Order
from bot.domain.reconciliation import WRONG, Finding, Kind, judge, not_over

PAGE_ORDERS: Final = 1000
LOOKUP_ORDERS: Final = 100
"""What one call to the exchange brings at most: of canceled orders, and of orders by their uuids."""

OVERLAP: Final = timedelta(seconds=1)
"""Each window is asked for with so much more on both sides: whether its ends belong to it is not documented."""
LONGEST_WINDOW: Final = timedelta(days=7) - 2 * OVERLAP
SHORTEST_WINDOW: Final = timedelta(seconds=1)

PACE_S: Final = 0.1
"""Between calls: a third of the exchange's limit, of which the running bot needs the rest."""
TRIES: Final = 3
"""Of a call that got no answer to rely on."""
TRY_AGAIN_S: Final = 0.5
HOLDS: Final = 20
"""How often one call may be held back for the rate limit."""
DEADLINE_S: Final = 1800.0

MAX_RECORDED_FINDINGS: Final = 200
"""Findings that are kept in the event; all of them are counted."""


class Exchange(Protocol):
    """What is asked of it; nothing raises."""

    def get_canceled_orders(self, *, created_from: datetime, created_to: datetime, limit: int) -> OrdersAnswer:
        """The oldest `limit` of the canceled orders that were created in the span; all of an answer, or none."""

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        """Those of the orders that the exchange shows."""


class CannotRecord(BotError):
    """The audit cannot be written, mostly since this account may only read; nothing was asked of the exchange."""


class NoSpan(BotError):
    """The span is empty, or has not begun."""


class Unread(BotError):
    """The exchange could not be read whole: `str` says why to people, `error` is the machine word."""

    def __init__(self, error: str, why: str) -> None:
        super().__init__(why)
        self.error = error


@dataclass(kw_only=True, slots=True)
class Reconciliation:
    """What was compared and found; not the whole of it where `unread` says why."""

    since: datetime
    until: datetime
    canceled_on_exchange: int = 0
    requests: int = 0  #: requests that were compared with their orders
    findings: list[Finding] = field(default_factory=list)
    unread: Unread | None = None

    @property
    def is_wrong(self) -> bool:
        return any(finding.kind in WRONG for finding in self.findings)

    @property
    def outcome(self) -> Outcome:
        if self.unread is not None:
            return Outcome.UNKNOWN
        return Outcome.FAILED if self.is_wrong else Outcome.OK

    def count(self, kind: Kind) -> int:
        return sum(finding.kind is kind for finding in self.findings)

    def to_details(self) -> dict[str, Json]:
        """For the audit: the findings that are wrong come first, and so many that an event can hold them."""
        first = sorted(self.findings, key=lambda finding: finding.kind not in WRONG)[:MAX_RECORDED_FINDINGS]
        return {
            "since": timestamp(self.since),
            "until": timestamp(self.until),
            "canceled_on_exchange": self.canceled_on_exchange,
            "requests": self.requests,
            **{kind.value: self.count(kind) for kind in Kind},
            "findings": [finding.to_json() for finding in first],
            **({} if self.unread is None else {"error": self.unread.error}),
        }


def reconcile(  # noqa: PLR0913 - keyword-only; time is passed in
    database: Database,
    exchange: Exchange,
    *,
    since: datetime,
    until: datetime | None,
    actor: Actor,
    monotonic: Callable[[], float],
    pause: Callable[[float], None],
    page_orders: int = PAGE_ORDERS,
) -> Reconciliation:
    """Compare, and record what came of it as `audit.reconciled`.

    `since` counts from its whole second on, as the exchange tells times; `until` is now where it is None or later.

    Raises CannotRecord and NoSpan before the exchange is asked, StoreError where the database fails.
    """
    store, ends = SqlStore(database), RecordedEnds(database)
    try:
        with store.transaction():
            pass  # the head of the chain could be locked for writing
    except NothingDone as error:
        raise CannotRecord(str(error)) from None
    now = ends.now()
    made = Reconciliation(since=since.replace(microsecond=0), until=now if until is None else min(until, now))
    if made.since >= made.until:
        raise NoSpan
    reading = _Reading(exchange, now=now, monotonic=monotonic, pause=pause, page_orders=page_orders)
    try:
        _compare(made, ends, reading)
    except Unread as unread:
        made.unread = unread
    with store.transaction() as tx:
        tx.record(Action.AUDIT_RECONCILED, actor=actor, outcome=made.outcome, details=made.to_details())
    return made


def _compare(made: Reconciliation, ends: RecordedEnds, reading: "_Reading") -> None:
    """Add to `made` what is found. Raises Unread, with what was found until then in it."""
    compared: set[str] = set()  # orders that somebody asked for here
    for orders in reading.canceled(since=made.since, until=made.until):
        made.canceled_on_exchange += len(orders)
        requests = ends.of_orders([order.uuid for order in orders])
        for order in orders:
            made.findings += judge(order.uuid, order, requests.get(order.uuid, ()))
        compared |= requests.keys()
        made.requests += sum(map(len, requests.values()))
    for uuids in ends.ended(since=made.since, until=made.until):
        others = [uuid for uuid in uuids if uuid not in compared]
        compared.update(others)
        for first in range(0, len(others), LOOKUP_ORDERS):
            some = others[first : first + LOOKUP_ORDERS]
            shown = {order.uuid: order for order in reading.looked_up(some)}
            requests = ends.of_orders(some)
            for uuid in some:
                made.findings += judge(uuid, shown.get(uuid), requests[uuid])
            made.requests += sum(map(len, requests.values()))
    made.findings += map(not_over, ends.not_over(until=made.until))


class _Reading:
    """The exchange, asked one call after the other. Every method raises Unread."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        now: datetime,
        monotonic: Callable[[], float],
        pause: Callable[[float], None],
        page_orders: int,
    ) -> None:
        self._exchange = exchange
        self._now = now
        self._monotonic = monotonic
        self._pause = pause
        self._page_orders = page_orders
        self._ends_at = monotonic() + DEADLINE_S

    def canceled(self, *, since: datetime, until: datetime) -> Iterator[list[Order]]:
        """The canceled orders that were created in the span, window by window, each order once.

        A window that is full may have hidden some: it is asked for again in halves. One that is nearly empty lets the
        next be longer.
        """
        begins, length, seen = since, LONGEST_WINDOW, frozenset[str]()
        while begins < until:
            ends = min(begins + length, until)
            orders = self._window(begins, ends)
            if orders is None:
                if length <= SHORTEST_WINDOW:
                    raise Unread("too_many_orders", f"it shows too many canceled orders of one second, {begins}")
                length = max(min(length, ends - begins) / 2, SHORTEST_WINDOW)
                continue
            yield [order for order in orders if order.uuid not in seen and _is_created_in(order, since, until)]
            seen = frozenset(order.uuid for order in orders)
            begins = ends
            if len(orders) < self._page_orders // 4:
                length = min(2 * length, LONGEST_WINDOW)

    def looked_up(self, uuids: Sequence[str]) -> tuple[Order, ...]:
        answer = self._answer(lambda: self._exchange.get_orders(uuids))
        if answer is None:
            raise Unread("too_large", "its answer is too large")
        return answer.orders

    def _window(self, begins: datetime, ends: datetime) -> tuple[Order, ...] | None:
        """The canceled orders of one window, or None where there may be more than come in one answer."""
        answer = self._answer(
            lambda: self._exchange.get_canceled_orders(
                created_from=begins - OVERLAP,
                created_to=max(begins, min(ends + OVERLAP, self._now)),
                limit=self._page_orders,
            )
        )
        return None if answer is None or answer.listed >= self._page_orders else answer.orders

    def _answer(self, ask: Callable[[], OrdersAnswer]) -> FoundOrders | None:
        """The answer, or None where it was too large. Looks may be repeated."""
        tries = holds = 0
        while True:
            self._wait(PACE_S)
            answer = ask()
            if isinstance(answer, FoundOrders):
                return answer
            if isinstance(answer, Unknown) and answer.cause == "too_large":
                return None
            if (hold_s := _hold_s(answer)) is not None and holds < HOLDS:
                holds += 1
                self._wait(hold_s)
                continue
            tries += 1
            if isinstance(answer, Refused) or hold_s is not None or _is_banned(answer) or tries >= TRIES:
                raise _unread(answer)
            self._wait(TRY_AGAIN_S)

    def _wait(self, for_s: float) -> None:
        if self._monotonic() + for_s > self._ends_at:
            raise Unread("deadline", f"it was not read within {DEADLINE_S / 60:.0f} minutes: take a shorter span")
        self._pause(for_s)


def _is_created_in(order: Order, since: datetime, until: datetime) -> bool:
    """Whether it belongs to the span; an order whose time cannot be read is rather compared than passed over."""
    try:
        created_at = datetime.fromisoformat(order.created_at)
    except ValueError:
        return True
    return created_at.tzinfo is None or since <= created_at.astimezone(UTC) < until


def _hold_s(answer: Refused | Unknown | NotSent) -> float | None:
    """How long to wait for the rate limit, which is nobody's fault; None where it is something else."""
    match answer:
        case Refused(name="too_many_requests", retry_after_s=retry_after_s):
            return retry_after_s or 1.0
        case NotSent(cause="rate_limited" | "reserved", retry_after_s=retry_after_s):
            return retry_after_s
        case _:
            return None


def _is_banned(answer: Refused | Unknown | NotSent) -> bool:
    return isinstance(answer, NotSent) and answer.cause == "banned"


def _unread(answer: Refused | Unknown | NotSent) -> Unread:
    match answer:
        case Refused(name="out_of_scope"):
            return Unread("out_of_scope", "the key may not view orders: give it 주문조회 (View Orders)")
        case Refused(name="banned", retry_after_s=left_s) | NotSent(cause="banned", retry_after_s=left_s):
            return Unread("banned", f"it has banned this address or account for {left_s or 0:.0f} s")
        case Refused(name="too_many_requests") | NotSent(cause="rate_limited" | "reserved"):
            return Unread("too_many_requests", "too many requests reach it from this account; try again later")
        case Refused(name=name):
            return Unread(name, f"refused: {name}")
        case _:
            return Unread(answer.cause, f"no answer to rely on: {answer.cause}")
