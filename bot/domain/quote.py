"""What the market bid and asked when a request was opened, and how far from it the order's price is."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Context, Decimal
from enum import StrEnum
from typing import Any, Final

from bot.domain.audit import timestamp
from bot.domain.order import MAX_DIGITS, Order

_PRECISE: Final = Context(prec=4 * MAX_DIGITS)
"""More digits than the difference of two prices can have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BestPrices:
    """The best prices of an order book, which lie apart: `bid` is below `ask`."""

    bid: Decimal
    ask: Decimal


@dataclass(frozen=True, kw_only=True, slots=True)
class NoPrices:
    """There are none to be shown; `cause` is a machine word for the audit."""

    cause: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Quote:
    """Best prices with the time at which they were asked for. It is not refreshed."""

    bid: Decimal
    ask: Decimal
    quoted_at: datetime

    def to_json(self) -> dict[str, str]:
        return {"bid": format(self.bid, "f"), "ask": format(self.ask, "f"), "quoted_at": timestamp(self.quoted_at)}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Quote":
        return cls(
            bid=Decimal(fields["bid"]),
            ask=Decimal(fields["ask"]),
            quoted_at=datetime.fromisoformat(fields["quoted_at"]),
        )


class Side(StrEnum):
    """A side of the book."""

    BID = "bid"
    ASK = "ask"


@dataclass(frozen=True, kw_only=True, slots=True)
class Distance:
    """How far an order's price is from the best price of one side of the book."""

    side: Side
    best: Decimal
    percent: Decimal  #: of the best price; below it where negative
    is_reached: bool  #: the other side of the book offers that price, or a better one


def distance(order: Order, quote: Quote) -> Distance | None:
    """From the best price of the order's own side, or of the other side where that has reached it.

    None where the order has no price of its own, or is not understood.
    """
    if order.ord_type != "limit" or order.price is None or order.price <= 0 or order.side not in set(Side):
        return None
    is_buy = order.side == Side.BID
    is_reached = order.price >= quote.ask if is_buy else order.price <= quote.bid
    side = Side.BID if is_buy != is_reached else Side.ASK
    best = quote.bid if side is Side.BID else quote.ask
    difference = _PRECISE.subtract(order.price, best)
    percent = _PRECISE.divide(_PRECISE.multiply(difference, Decimal(100)), best)
    return Distance(side=side, best=best, percent=percent, is_reached=is_reached)


def dump_quote(quote: Quote) -> str:
    """The quote as canonical JSON text, for the database."""
    return json.dumps(quote.to_json(), sort_keys=True, separators=(",", ":"))


def load_quote(text: str) -> Quote:
    """The quote that `dump_quote` wrote."""
    return Quote.from_json(json.loads(text))
