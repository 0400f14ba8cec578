"""What the audit says of an order's end, held against what the exchange shows.

    judge(order, requests)    every request for one order, and the order as the exchange shows it -> findings
    ended_itself(order)       what in a canceled order proves that the exchange ended it by its own rules

The exchange does not tell who canceled an order, nor when. So a cancel is only called the exchange's own where the
order's fields leave nothing else, and nobody's of ours where no request of ours can have done it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Final

from bot.domain.audit import Json
from bot.domain.cancel_request import ENDED_STATES, State, Verdict
from bot.domain.order import Order, OrderState


class Kind(StrEnum):
    UNASKED = "unasked"  #: canceled, and no request of ours accounts for it
    DIFFERS = "differs"  #: the order did not end as the request says
    NOT_FOUND = "not_found"  #: the exchange does not show the order of a request
    BY_THE_EXCHANGE = "by_the_exchange"  #: canceled by the exchange's own rules, as its fields prove
    NOT_OVER = "not_over"  #: a request that has not ended, so that there is nothing to compare yet


WRONG: Final = frozenset({Kind.UNASKED, Kind.DIFFERS, Kind.NOT_FOUND})
"""The kinds that somebody has to look into."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recorded:
    """What is recorded of one request, as far as it concerns its order's end."""

    request_id: int
    order_uuid: str
    state: State
    sends: int  #: DELETEs that may have left
    canceled_by: str | None = None
    verdict: Verdict | None = None  #: of a settled request: what a person found
    order: Order | None = None  #: at the latest look; None where it was never shown to anybody

    @property
    def is_over(self) -> bool:
        return self.state in ENDED_STATES

    @property
    def end(self) -> OrderState | None:
        """How the order ended, by this record; None where the record does not say that it did."""
        match self.state:
            case State.CANCELED:
                return OrderState.CANCEL
            case State.FILLED:
                return OrderState.DONE
            case State.SETTLED:
                return _VERDICTS.get(self.verdict)
            case State.SUPERSEDED if self.order is not None:
                return _ENDS.get(self.order.state)
            case _:
                return None

    @property
    def amounts(self) -> Order | None:
        """The order as it ended, where it was looked at: a person's word tells no amounts."""
        return None if self.end is None or self.state is State.SETTLED else self.order

    def __str__(self) -> str:
        said = str(self.state)
        if self.canceled_by is not None:
            said += f" by {self.canceled_by}"
        if self.verdict is not None:
            said += f" as {self.verdict}"
        return said if self.amounts is None else f"{said}; {_amounts(self.amounts)}"


_VERDICTS: Final[Mapping[Verdict | None, OrderState]] = {
    Verdict.CANCELED: OrderState.CANCEL,
    Verdict.FILLED: OrderState.DONE,
}
_ENDS: Final[Mapping[str, OrderState]] = {state.value: state for state in (OrderState.CANCEL, OrderState.DONE)}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that was found; `recorded` and `exchange` are short texts for people."""

    kind: Kind
    order_uuid: str
    request_id: int | None = None
    recorded: str = "no request"
    exchange: str = ""

    def to_json(self) -> dict[str, Json]:
        return {
            "kind": self.kind.value,
            "order_uuid": self.order_uuid,
            "request_id": self.request_id,
            "recorded": self.recorded,
            "exchange": self.exchange,
        }


def judge(uuid: str, order: Order | None, requests: Sequence[Recorded]) -> tuple[Finding, ...]:
    """What is found of one order: as the exchange shows it, None where it does not, and every request for it.

    Requests that are not over yet account for a cancel that they have sent, and are no finding here.
    """
    over = [request for request in requests if request.is_over]
    if order is None:
        shown_once = [request for request in over if request.order is not None or request.end is not None]
        return _about(Kind.NOT_FOUND, uuid, shown_once[-1:], exchange="not shown")
    shown = _shown(order)
    if differing := [request for request in over if _differs(request, order)]:
        return _about(Kind.DIFFERS, uuid, differing, exchange=shown)
    if not order.is_canceled or any(_accounts_for_cancel(request) for request in requests):
        return ()
    if (rule := ended_itself(order)) is not None:
        exchange = f"{shown}; {rule}"
        return _about(Kind.BY_THE_EXCHANGE, uuid, requests[-1:], exchange=exchange) or (
            Finding(kind=Kind.BY_THE_EXCHANGE, order_uuid=uuid, exchange=exchange),
        )
    if sent := [request for request in over if request.sends]:
        # Recorded as not canceled; our late cancel or somebody's own, which nothing can tell apart.
        return _about(Kind.DIFFERS, uuid, sent[-1:], exchange=shown)
    return _about(Kind.UNASKED, uuid, requests[-1:], exchange=shown) or (
        Finding(kind=Kind.UNASKED, order_uuid=uuid, exchange=shown),
    )


def not_over(request: Recorded) -> Finding:
    return Finding(
        kind=Kind.NOT_OVER,
        order_uuid=request.order_uuid,
        request_id=request.request_id,
        recorded=str(request),
        exchange="not looked at",
    )


def ended_itself(order: Order) -> str | None:
    """What proves that the exchange canceled the order by its own rules, or None where nothing does.

    Orders at the market price, at the best price, IOC and FOK never rest in the book: what could not be executed at
    once is canceled. Self-match prevention ended an order of which nothing was left but what it prevented. A post-only
    order may have been ended by the exchange, or by somebody later: that proves nothing.

    https://docs.upbit.com/kr/v1.6.4/reference/list-closed-orders, https://docs.upbit.com/kr/v1.6.4/docs/smp
    """
    if not order.is_canceled:
        return None
    if order.ord_type in _NEVER_RESTING:
        return f"ord_type {order.ord_type}"
    if order.time_in_force in _NEVER_WAITING:
        return f"time_in_force {order.time_in_force}"
    prevented, volume = order.prevented_volume, order.volume
    if prevented and volume and prevented + (order.executed_volume or Decimal(0)) >= volume:
        return f"self-match prevention, prevented_volume {prevented:f}"
    return None


_NEVER_RESTING: Final = frozenset({"price", "market", "best"})
_NEVER_WAITING: Final = frozenset({"ioc", "fok"})


def _accounts_for_cancel(request: Recorded) -> bool:
    """Whether this request canceled the order by its record, or may have: its cancel was sent and is not over."""
    if request.is_over:
        return request.state in {State.CANCELED, State.SETTLED} and request.end is OrderState.CANCEL
    return request.sends > 0


def _differs(request: Recorded, order: Order) -> bool:
    """Whether the order ended otherwise, or elsewhere, than the request says."""
    if request.end is None:
        return False
    return request.end != order.state or (request.amounts is not None and _other_amounts(request.amounts, order))


def _other_amounts(recorded: Order, order: Order) -> bool:
    """What only one of the two looks tells is no difference."""
    pairs = (
        (recorded.executed_volume, order.executed_volume),
        (recorded.remaining_volume, order.remaining_volume),
    )
    return any(before is not None and now is not None and before != now for before, now in pairs)


def _about(kind: Kind, uuid: str, requests: Sequence[Recorded], *, exchange: str) -> tuple[Finding, ...]:
    return tuple(
        Finding(kind=kind, order_uuid=uuid, request_id=each.request_id, recorded=str(each), exchange=exchange)
        for each in requests
    )


def _shown(order: Order) -> str:
    return f"{order.state}; {_amounts(order)}; {order.market} {order.side} {order.ord_type}, of {order.created_at}"


def _amounts(order: Order) -> str:
    return ", ".join(_amounts_told(order)) or "no amounts"


def _amounts_told(order: Order) -> Iterator[str]:
    for word, amount in (("executed", order.executed_volume), ("remaining", order.remaining_volume)):
        if amount is not None:
            yield f"{word} {amount:f}"
