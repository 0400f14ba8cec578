"""An order as Upbit shows it, in Upbit's words.

Field names and meanings: https://global-docs.upbit.com/reference/order-cancel
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Any, Final

UUID_PATTERN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""An order's uuid as it is signed and stored: lower case, nothing around it."""

MAX_TEXT_CHARS: Final = 200
"""No text field of an order is longer; one that is comes from something that is not Upbit."""

MAX_DIGITS: Final = 30
"""No amount of money needs more digits before or after the point; `1e999999999` would fill the memory when written."""

MAX_COUNT: Final = 2**53
"""Beyond it, JSON's numbers are no longer whole everywhere."""


class OrderState(StrEnum):
    """The states that Upbit documents; an order may carry another word, and is then neither open nor ended."""

    WAIT = "wait"  #: resting in the book
    WATCH = "watch"  #: a stop order that waits for its trigger
    DONE = "done"  #: fully executed
    CANCEL = "cancel"  #: canceled; some of it may have been executed before


class MalformedOrder(ValueError):
    """What came is not an order: a required field is absent, or a field is of the wrong kind."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """One order at one moment.

    Amounts are exact decimals. `side`, `ord_type`, `state` and `time_in_force` stay text, since Upbit adds words to
    them. Every field but the first six can be absent, and is then None.
    """

    uuid: str
    side: str
    ord_type: str
    state: str
    market: str
    created_at: str
    price: Decimal | None = None
    volume: Decimal | None = None
    remaining_volume: Decimal | None = None
    executed_volume: Decimal | None = None
    reserved_fee: Decimal | None = None
    remaining_fee: Decimal | None = None
    paid_fee: Decimal | None = None
    locked: Decimal | None = None
    trades_count: int | None = None
    time_in_force: str | None = None
    identifier: str | None = None
    smp_type: str | None = None
    prevented_volume: Decimal | None = None
    prevented_locked: Decimal | None = None

    @property
    def is_open(self) -> bool:
        return self.state in {OrderState.WAIT, OrderState.WATCH}

    @property
    def is_canceled(self) -> bool:
        return self.state == OrderState.CANCEL

    @property
    def is_done(self) -> bool:
        return self.state == OrderState.DONE

    @property
    def base_currency(self) -> str:
        """What is bought or sold: BTC of KRW-BTC."""
        return self.market.partition("-")[2]

    @property
    def quote_currency(self) -> str:
        """What it is paid in: KRW of KRW-BTC."""
        return self.market.partition("-")[0]

    def has_moved_since(self, earlier: "Order") -> bool:
        """Whether this look shows another state or another amount than an earlier one.

        Upbit's list of orders need not tell every field that a look at one of them tells: what only one of the two
        looks tells is no move.
        """
        return any(
            now is not None and before is not None and now != before
            for now, before in ((getattr(self, name), getattr(earlier, name)) for name in _MOVING)
        )

    @property
    def price_is_total(self) -> bool:
        """Whether `price` is what is to be spent in all, as it is for buys that name no volume."""
        return self.side == "bid" and self.ord_type in {"price", "best"}

    def to_json(self) -> dict[str, str | int]:
        """The fields that are present, amounts as text: what `from_json` reads back unchanged."""
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {
            name: format(value, "f") if isinstance(value, Decimal) else value
            for name, value in fields.items()
            if value is not None
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "Order":
        """Read an order from Upbit's JSON object. Unknown fields are passed over.

        Raises MalformedOrder.
        """
        fee_name = "remaining_fee" if "remaining_fee" in fields else "remaing_fee"
        values: dict[str, Any] = {name: _required_text(fields, name) for name in _REQUIRED}
        values |= {name: _decimal(fields, name) for name in _AMOUNTS}
        values |= {name: _text(fields, name) for name in _OPTIONAL_TEXTS}
        return cls(**values, remaining_fee=_decimal(fields, fee_name), trades_count=_count(fields, "trades_count"))


_REQUIRED: Final = ("uuid", "side", "ord_type", "state", "market", "created_at")
_AMOUNTS: Final = (
    "price",
    "volume",
    "remaining_volume",
    "executed_volume",
    "reserved_fee",
    "paid_fee",
    "locked",
    "prevented_volume",
    "prevented_locked",
)
_MOVING: Final = ("state", "price", "volume", "remaining_volume", "executed_volume", "trades_count")
_OPTIONAL_TEXTS: Final = ("time_in_force", "identifier", "smp_type")

_UNSTORABLE: Final = frozenset("\x00")  # PostgreSQL keeps no NUL in text


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS or not _UNSTORABLE.isdisjoint(value):
        raise MalformedOrder(f"{name} is not a short text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise MalformedOrder(f"{name} is not Unicode text") from None
    return value


def _required_text(fields: Mapping[str, Any], name: str) -> str:
    value = _text(fields, name)
    if not value:
        raise MalformedOrder(f"{name} is absent")
    return value


def _decimal(fields: Mapping[str, Any], name: str) -> Decimal | None:
    """An amount that came as a NumberString, or as a JSON number that was parsed without a float."""
    value = fields.get(name)
    if value is None or value == "":
        return None
    if isinstance(value, bool) or not isinstance(value, str | int | Decimal):
        raise MalformedOrder(f"{name} is not a number")
    try:
        number = Decimal(value)
    except (InvalidOperation, ValueError):
        raise MalformedOrder(f"{name} is not a number") from None
    # Written out, as the database keeps it, it has no more digits than may be read back.
    if not number.is_finite() or abs(number.adjusted()) >= MAX_DIGITS or len(format(number, "f")) > 2 * MAX_DIGITS:
        raise MalformedOrder(f"{name} is not an amount of money")
    return number


def _count(fields: Mapping[str, Any], name: str) -> int | None:
    number = _decimal(fields, name)
    if number is None:
        return None
    if number != number.to_integral_value() or not 0 <= number <= MAX_COUNT:
        raise MalformedOrder(f"{name} is not a count")
    return int(number)


def dump_order(order: Order) -> str:
    """The order as canonical JSON text, for the database."""
    return json.dumps(order.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def load_order(text: str) -> Order:
    """The order that `dump_order` wrote."""
    return Order.from_json(json.loads(text))
