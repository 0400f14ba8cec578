"""What a month of events comes to: counts, lists and lengths of time, for the monthly report."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal
from typing import Final, Generic, TypeVar

from bot.audit.month import Month
from bot.domain.cancel_request import State

LONGEST_LIST: Final = 100
"""Rows of a list; how many there were is told all the same."""

ALWAYS_LEAST: Final = 5
ALWAYS_SHARE: Final = 0.8
"""A pair is worth a look if one person approved so many of the other's requests, and at least this share of them."""

BIN_EDGES_S: Final = (0.0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1200, 1800, 3600, 21_600, 86_400)
"""Where the bins of the waits begin; the last one has no end."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed(Generic[T]):
    """The first of a list, and how many there were."""

    first: tuple[T, ...]
    count: int

    @property
    def left_out(self) -> int:
        return self.count - len(self.first)

    def followed_by(self, others: "Listed[T]") -> "Listed[T]":
        return Listed(first=(self.first + others.first)[:LONGEST_LIST], count=self.count + others.count)


@dataclass(frozen=True, kw_only=True, slots=True)
class Day:
    date: date
    canceled: int
    otherwise: int  #: requests that ended in another way


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A name and its counts, in the order of the ranking's columns."""

    name: str
    counts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Wait:
    """How long something took, in seconds; 0 where there was none. Percentiles by the nearest rank."""

    name: str
    count: int
    p50: float
    p90: float
    p99: float
    longest: float
    bins: tuple[int, ...]  #: how many fell between each of BIN_EDGES_S and the next one


@dataclass(frozen=True, kw_only=True, slots=True)
class Refused:
    """Clicks, or commands, that did not count."""

    count: int
    by_reason: tuple[Row, ...]
    by_person: tuple[tuple[str, str, int], ...]  #: person, reason, how often


@dataclass(frozen=True, kw_only=True, slots=True)
class Attempt:
    """Somebody who tried to approve what they had asked for."""

    seq: int
    at: datetime
    person: str
    request_id: int | None
    market: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class QuickApproval:
    seq: int
    at: datetime
    approver: str
    requester: str
    request_id: int
    market: str | None
    after_s: float  #: since the request was opened
    value: Decimal | None  #: what remained of the order then, in its quote currency


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    requester: str
    approver: str
    count: int  #: requests that this approver approved
    of: int  #: approved requests of this requester

    @property
    def share(self) -> float:
        return self.count / self.of

    @property
    def is_own(self) -> bool:
        return self.requester == self.approver

    @property
    def is_notable(self) -> bool:
        return self.is_own or (self.count >= ALWAYS_LEAST and self.share >= ALWAYS_SHARE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a request came to at some time, and why."""

    at: datetime
    what: str
    why: str


@dataclass(kw_only=True, slots=True)
class Trouble:
    """A request that did not go as hoped after it was approved."""

    request_id: int
    order_uuid: str | None
    market: str | None
    requester: str
    approvers: tuple[str, ...]
    asked_at: datetime | None
    sent_at: datetime | None
    steps: list[Step]
    is_over: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Expired:
    request_id: int
    order_uuid: str | None
    market: str | None
    requester: str
    asked_at: datetime | None
    at: datetime
    approvals: int
    approvals_required: int | None


@dataclass(kw_only=True, slots=True)
class Large:
    """A request by the value of its order when it was opened."""

    request_id: int
    order_uuid: str | None
    market: str
    side: str
    requester: str
    at: datetime
    value: Decimal
    state: str  #: at the end of the month


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A setting that was another one when the bot started."""

    seq: int
    at: datetime
    version: str
    name: str
    before: str
    after: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Deed:
    """Something that was done to the audit itself, or made of it."""

    seq: int
    at: datetime
    action: str
    actor: str
    outcome: str
    facts: str
    is_notable: bool  #: it found something wrong


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """What a comparison with the exchange found, as it was written down."""

    seq: int
    at: datetime
    kind: str
    facts: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Review:
    """The figures of a month. Names of people are ids; `people` has the name that Slack gave last."""

    month: Month
    events: int
    unreadable: int  #: events whose time or details could not be read: only where somebody tampered with them

    carried_in: int  #: requests of earlier months that were not over
    created: int
    ended: int
    open_at_end: Mapping[str, int]  #: by state

    outcomes: Mapping[str, int]  #: how requests ended: the end states, `settled` by its verdict
    by_day: tuple[Day, ...]
    by_market: tuple[Row, ...]  #: ended, canceled
    by_requester: tuple[Row, ...]  #: asked, ended, canceled
    by_approver: tuple[Row, ...]  #: approvals, denials, canceled
    waits: tuple[Wait, ...]

    refused_clicks: Refused
    refused_commands: Refused
    refused_requests: tuple[Row, ...]  #: by reason: nobody was asked to approve
    expired: Listed[Expired]
    own_attempts: Listed[Attempt]
    quick_approvals: Listed[QuickApproval]
    pairs: tuple[Pair, ...]
    other_pairs: int  #: how many are not listed
    notable_pairs: int
    own_approvals: int  #: requests that their own requester approved
    troubles: Listed[Trouble]  #: those that are not over come first
    largest: Mapping[str, tuple[Large, ...]]  #: by quote currency
    without_value: int  #: requests whose order's value cannot be told

    starts: int
    changes: Listed[Change]
    deeds: Listed[Deed]
    failed_deeds: int  #: of them, those that found something wrong
    differences: Listed[Difference]
    checkpoints: int

    people: Mapping[str, str]

    @property
    def canceled(self) -> int:
        return self.outcomes.get(State.CANCELED.value, 0)

    def with_unreadable(self, count: int) -> "Review":
        """The same with so many events that could not even be read from the table."""
        return replace(self, events=self.events + count, unreadable=self.unreadable + count)

    @property
    def open_in_all(self) -> int:
        return sum(self.open_at_end.values())

    @property
    def unresolved_at_end(self) -> int:
        return self.open_at_end.get(State.UNRESOLVED.value, 0)
