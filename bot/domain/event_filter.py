"""Which events of the audit somebody wants to see."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

from bot.domain.audit import Json, timestamp
from bot.domain.tiers import value_text


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """What is given holds together; None stands for all."""

    order_uuid: str | None = None
    request_id: int | None = None
    actor: str | None = None
    market: str | None = None
    action: str | None = None
    outcome: str | None = None
    details_reason: str | None = None  #: a word of Reason, as `details.reason` holds it
    over_krw: Decimal | None = None  #: only of requests for orders that were worth more, or nobody knows how much
    own: bool | None = None  #: only approvals by the person who asked; False stands for all as well
    since: datetime | None = None
    until: datetime | None = None
    before_seq: int | None = None  #: only events that come before this one

    def to_json(self) -> dict[str, Json]:
        """What is given, by its names."""
        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: _plain(value) for name, value in given.items() if value is not None}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "Filter":
        """What `to_json` made. Raises TypeError, ValueError."""
        return cls(**{name: _READ[name](value) if name in _READ else value for name, value in given.items()})


def read_amount(text: str) -> Decimal | None:
    """An amount as it is typed, None where it is none, or could be read in two ways, as `50,000` could."""
    return Decimal(text) if _AMOUNT.fullmatch(text) else None


_READ: Final[dict[str, Callable[[str], Any]]] = {
    "over_krw": Decimal,
    "since": datetime.fromisoformat,
    "until": datetime.fromisoformat,
}
_AMOUNT: Final = re.compile(r"[0-9]{1,30}(\.[0-9]{1,30})?", re.ASCII)


def _plain(value: datetime | Decimal | str | int) -> Json:
    if isinstance(value, datetime):
        return timestamp(value)
    return value_text(value) if isinstance(value, Decimal) else value
