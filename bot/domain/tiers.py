"""More approvals for larger orders: the rules of `APPROVAL_TIERS`, and which of them holds for an order.

    KRW-*:50000000=2        what remains of an order on KRW-… is worth more than 50,000,000 KRW: 2 approvals
    KRW-BTC/ask:9000000=3   the same for sells on one market only
    *=1                     any order

Of the rules that match, the one that asks for the most approvals holds. What an order is worth is not always known; it
then counts as more than any amount. Amounts are exact decimals, never floats.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Final

from bot.domain.order import MAX_DIGITS, Order

MAX_APPROVALS: Final = 20
"""Nobody finds more people than that while the market moves; a larger number is a slip."""

SIDES: Final = ("bid", "ask")

_EXACT: Final = Context(prec=8 * MAX_DIGITS)
"""More digits than the product of two amounts can have."""

_MARKET: Final = re.compile(r"\*|([A-Z0-9]*\*?[A-Z0-9]*)-([A-Z0-9]*\*?[A-Z0-9]*)", re.ASCII)
_AMOUNT: Final = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}(?:\.[0-9]{{1,{MAX_DIGITS}}})?", re.ASCII)
_COUNT: Final = re.compile(r"[0-9]{1,9}", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Tier:
    """One rule: orders of this kind need so many approvals."""

    market: str  #: a market, or a pattern in which `*` stands for anything: `KRW-BTC`, `KRW-*`, `*`
    side: str | None = None  #: bid or ask; None for both
    over: Decimal | None = None  #: in the quote currency: it matches what is worth more. None for any value
    approvals: int

    def __str__(self) -> str:
        """The rule as `parse_tier` reads it."""
        side = f"/{self.side}" if self.side is not None else ""
        over = f":{self.over:f}" if self.over is not None else ""
        return f"{self.market}{side}{over}={self.approvals}"

    @property
    def quote_currency(self) -> str:
        """What `over` is counted in."""
        return self.market.partition("-")[0]

    def matches(self, order: Order) -> bool:
        """What the rule cannot tell of the order counts as matching: too many approvals are safer than too few."""
        if not re.fullmatch(re.escape(self.market).replace(r"\*", ".*"), order.market.upper(), re.DOTALL):
            return False
        if self.side is not None and order.side in SIDES and order.side != self.side:
            return False
        value = remaining_value(order)
        return self.over is None or value is None or value > self.over


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirement:
    """How many approvals an order needs, and by which rule; None where no rule asks for as many."""

    approvals: int
    rule: Tier | None = None


def requirement(order: Order, tiers: Sequence[Tier], *, at_least: int) -> Requirement:
    """The strictest of the rules that match, and never less than `at_least`."""
    matching = [tier for tier in tiers if tier.matches(order)]
    strictest = max(matching, key=lambda tier: (tier.approvals, tier.over or Decimal(0)), default=None)
    if strictest is None or strictest.approvals < at_least:
        return Requirement(approvals=at_least)
    return Requirement(approvals=strictest.approvals, rule=strictest)


def remaining_value(order: Order) -> Decimal | None:
    """What remains of the order in its quote currency, None where that cannot be told.

    Without a price it is the amount that is locked, but only for a buy: a sell locks what it sells, which says nothing
    about what that is worth.
    """
    price, locked = _positive(order.price), _positive(order.locked)
    if order.price_is_total:
        return locked or price
    if price is None:
        return locked if order.side == "bid" else None
    volume = order.volume if order.remaining_volume is None else order.remaining_volume
    return _EXACT.multiply(price, volume) if volume is not None and volume >= 0 else None


def value_krw(order: Order) -> str | None:
    """What remains of the order in KRW, as the audit tells it: a decimal, or `unknown`; None on other markets."""
    if order.quote_currency.upper() != "KRW":
        return None
    value = remaining_value(order)
    return UNKNOWN_VALUE if value is None else value_text(value)


UNKNOWN_VALUE: Final = "unknown"


def value_text(value: Decimal) -> str:
    """The one way an amount is written that is compared as text: no exponent, no zeros in front or behind."""
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _positive(amount: Decimal | None) -> Decimal | None:
    """Nothing costs nothing: a price of zero is one that was not told."""
    return amount if amount is not None and amount > 0 else None


def parse_tiers(text: str) -> tuple[Tier, ...]:
    """The rules, separated by commas. Raises ValueError that says which rule is wrong and why, without its text."""
    rules = [rule.strip() for rule in text.split(",") if rule.strip()]
    if not rules:
        raise ValueError("lists no rule: write rules such as KRW-*:50000000=2, or unset it")
    tiers: list[Tier] = []
    places: dict[tuple[str, str | None, Decimal | None], int] = {}
    faults: list[str] = []
    for place, rule in enumerate(rules, start=1):
        try:
            tier = parse_tier(rule)
        except ValueError as error:
            faults.append(f"rule {place} {error}")
            continue
        first = places.setdefault((tier.market, tier.side, tier.over), place)
        if first != place:
            faults.append(f"rule {place} is about the same orders as rule {first}: keep one of them")
        tiers.append(tier)
    if faults:
        raise ValueError("; ".join(faults))
    return tuple(tiers)


def parse_tier(rule: str) -> Tier:
    """One rule, `MARKET[/SIDE][:AMOUNT]=APPROVALS`. Raises ValueError that goes on from the rule's name."""
    orders, equals, count = (part.strip() for part in rule.partition("="))
    if not equals:
        raise ValueError(
            "names no number of approvals: write KRW-*:50000000=2, and amounts without thousands separators"
        )
    kind, colon, amount = (part.strip() for part in orders.partition(":"))
    market, slash, side = (part.strip() for part in kind.partition("/"))
    market, side = market.upper(), side.lower()
    named = _MARKET.fullmatch(market)
    if not named or market.startswith("-") or market.endswith("-"):
        raise ValueError("names no market: write KRW-BTC, KRW-* or *")
    if slash and side not in SIDES:
        raise ValueError("names a side that is neither bid nor ask")
    over = _parse_amount(amount) if colon else None
    if over is not None and "*" in (named[1] or "*"):
        raise ValueError("has an amount, but not the currency that it is in: write KRW-* for all markets in KRW")
    return Tier(market=market, side=side or None, over=over, approvals=_parse_count(count))


def _parse_amount(text: str) -> Decimal:
    if text.startswith("-"):
        raise ValueError("has a negative amount")
    if not _AMOUNT.fullmatch(text):
        raise ValueError("has an amount that is no plain number such as 50000000")
    return Decimal(text)


def _parse_count(text: str) -> int:
    if not _COUNT.fullmatch(text) or not 1 <= int(text) <= MAX_APPROVALS:
        raise ValueError(f"asks for something else than a whole number of approvals from 1 to {MAX_APPROVALS}")
    return int(text)
