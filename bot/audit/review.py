"""Counts a month of events. Pure: events in, the figures of a Review out.

The moment of an event decides its month. What a request did in earlier months is asked for when it appears, so that a
request that was asked for in September and approved in October has its times, its requester and its approvers; what it
is counted for in October is only what happened in October.

In memory are the requests that are not over, counts by name, the lengths of waits as plain numbers, and lists that end
somewhere. Events may have been tampered with, so nothing is taken for granted of their details.
"""

import heapq
import json
import math
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal, InvalidOperation
from itertools import pairwise
from typing import Any, Final, Generic, TypeVar

from bot.audit.figures import (
    BIN_EDGES_S,
    LONGEST_LIST,
    Attempt,
    Change,
    Day,
    Deed,
    Difference,
    Expired,
    Large,
    Listed,
    Pair,
    QuickApproval,
    Refused,
    Review,
    Row,
    Step,
    Trouble,
    Wait,
)
from bot.audit.month import Month
from bot.domain.audit import Action, Outcome, Reason
from bot.domain.cancel_request import ENDED_STATES, TRANSITIONS, State
from bot.domain.stored_event import StoredEvent

TOP: Final = 20
"""Names in a ranking; what is left stands together in its last row."""
LARGEST: Final = 10
MOST_CURRENCIES: Final = 5
MOST_NAMES: Final = 10_000
"""Names that are told apart while counting; from then on new ones count as others."""
LONGEST_TEXT: Final = 300
LONGEST_STORY: Final = 20

AT_ONCE: Final = timedelta(seconds=2)
"""Nobody has read a card and the order on it in that time."""

OTHERS: Final = "others"
UNKNOWN: Final = "unknown"

T = TypeVar("T")


def review(
    month: Month,
    events: Iterable[StoredEvent],
    *,
    before: Callable[[int], Sequence[StoredEvent]],
    unresolved_before: Sequence[int] = (),
) -> Review:
    """Read the month's events in one pass.

    `before` tells what had happened to a request in earlier months, oldest first; `unresolved_before` are the requests
    that had been unresolved then, whether they still were or not.
    """
    counting = _Counting(month, before)
    for request_id in unresolved_before:
        counting.carry_in(request_id)
    for event in events:
        counting.take(event)
    return counting.result()


# One request while it is not over


@dataclass(kw_only=True, slots=True)
class _Request:
    id: int
    state: State = State.REQUESTED
    order_uuid: str | None = None
    market: str | None = None
    requester: str = UNKNOWN
    created_at: datetime | None = None
    opened_at: datetime | None = None
    card_at: datetime | None = None
    approved_at: datetime | None = None
    accepted_at: datetime | None = None
    sent_at: datetime | None = None
    approvals_required: int | None = None
    approvers: list[str] = field(default_factory=list)
    value: Decimal | None = None
    last_error: str = ""
    story: list[Step] = field(default_factory=list)
    large: Large | None = None

    def take(self, event: StoredEvent, details: Mapping[str, Any]) -> None:
        """Remember what matters later, whichever month it happened in."""
        self.order_uuid = event.order_uuid or self.order_uuid
        self.market = event.market or self.market
        match event.action:
            case Action.REQUEST_CREATED:
                self.requester, self.created_at = event.actor, event.occurred_at
            case Action.REQUEST_OPENED:
                self.opened_at = event.occurred_at
                self.value = _amount(details.get("remaining_value"))
                required = details.get("approvals_required")
                self.approvals_required = required if type(required) is int else None
            case Action.APPROVAL_RECORDED:
                self._approve(event.actor)
            case Action.REQUEST_APPROVED:
                self.approved_at = event.occurred_at
                self._approve(event.actor)
                counted = details.get("approvals")
                if isinstance(counted, list) and counted:
                    self.approvers = [str(each) for each in counted[:MOST_NAMES]]
            case Action.CANCEL_UNANSWERED | Action.CANCEL_DOUBTED | Action.CANCEL_UNSENT:
                self.last_error = _text(details.get("error"))
            case _:
                self._note_time(event)
        moves = _MOVES.get(event.action)
        if moves is not None:
            self.state = moves
            self._tell(event, details)

    def _note_time(self, event: StoredEvent) -> None:
        match event.action:
            case Action.CARD_POSTED:
                self.card_at = event.occurred_at
            case Action.CANCEL_SENT:
                self.sent_at = event.occurred_at
            case Action.CANCEL_ACCEPTED:
                self.accepted_at = event.occurred_at
            case _:
                pass

    def _approve(self, person: str) -> None:
        if person not in self.approvers:
            self.approvers.append(person)

    def _tell(self, event: StoredEvent, details: Mapping[str, Any]) -> None:
        """Its story, from the first trouble on."""
        if (event.action in _TROUBLES or self.story) and len(self.story) < LONGEST_STORY:
            self.story.append(Step(at=event.occurred_at, what=self.state.value, why=self._why(event, details)))

    def _why(self, event: StoredEvent, details: Mapping[str, Any]) -> str:
        if event.action == Action.OUTCOME_SETTLED:
            return f"{_text(details.get('verdict'))}, says {event.actor}: {_text(details.get('reason'))}"
        if event.action == Action.ORDER_CANCELED:
            return f"by {_text(details.get('by'))}"
        cause = _text(details.get("error")) or _text(details.get("reason"))
        has_other = self.last_error and self.last_error != cause
        return f"{cause} (last answer: {self.last_error})" if has_other and cause else cause or self.last_error


_MOVES: Final = {action.value: target for action, (_, target) in TRANSITIONS.items()}
_TROUBLES: Final = frozenset(
    {Action.CANCEL_REJECTED, Action.OUTCOME_UNRESOLVED, Action.CANCEL_FAILED, Action.REQUEST_LAPSED}
)
_ABOUT_REQUESTS: Final = frozenset(_MOVES) | {
    Action.APPROVAL_RECORDED,
    Action.CARD_POSTED,
    Action.CANCEL_UNANSWERED,
    Action.CANCEL_DOUBTED,
}
_MADE_OF_IT: Final = frozenset({Action.REPORT_MADE, Action.EVIDENCE_PACKED})
_WITHOUT_DETAILS: Final = frozenset(
    {
        Action.REQUEST_CREATED,
        Action.CARD_POSTED,
        Action.CANCEL_SENT,
        Action.CANCEL_ACCEPTED,
        Action.ORDER_OPEN,
        Action.ORDER_FILLED,
    }
)
"""Nothing in their details is counted, and reading them takes time."""
_WAITS: Final = ("from the request to its last approval", "from there to Upbit's acceptance", "from there to the end")


# Counting


class _Tally:
    """Counts by name, some columns each; what comes after MOST_NAMES is counted together."""

    def __init__(self, columns: int) -> None:
        self._columns = columns
        self._counts: dict[str, list[int]] = {}

    def add(self, name: str, column: int) -> None:
        counts = self._counts.get(name)
        if counts is None:
            if len(self._counts) >= MOST_NAMES:
                name = OTHERS
            counts = self._counts.setdefault(name, [0] * self._columns)
        counts[column] += 1

    def top(self, *, by: Sequence[int], limit: int = TOP) -> tuple[Row, ...]:
        """The largest by these columns, one after the other, then the rest together."""
        named = [(name, counts) for name, counts in self._counts.items() if name != OTHERS]
        named.sort(key=lambda each: (*(-each[1][column] for column in by), each[0]))
        rest = [counts for _, counts in named[limit:]]
        if OTHERS in self._counts:
            rest.append(self._counts[OTHERS])
        rows = [Row(name=name, counts=tuple(counts)) for name, counts in named[:limit]]
        if rest:
            sums = (sum(counts[column] for counts in rest) for column in range(self._columns))
            rows.append(Row(name=OTHERS, counts=tuple(sums)))
        return tuple(rows)


class _List(Generic[T]):
    def __init__(self) -> None:
        self._first: list[T] = []
        self._count = 0

    def add(self, each: T) -> None:
        self._count += 1
        if len(self._first) < LONGEST_LIST:
            self._first.append(each)

    def result(self) -> Listed[T]:
        return Listed(first=tuple(self._first), count=self._count)


class _Refusals:
    def __init__(self) -> None:
        self._count = 0
        self._by_reason = _Tally(1)
        self._by_person: Counter[tuple[str, str]] = Counter()

    def add(self, person: str, reason: str) -> None:
        self._count += 1
        self._by_reason.add(reason, 0)
        key = (person, reason)
        is_new = key not in self._by_person and len(self._by_person) >= MOST_NAMES
        self._by_person[(OTHERS, reason) if is_new else key] += 1

    def result(self) -> Refused:
        ranked = sorted(self._by_person.items(), key=lambda each: (-each[1], each[0]))
        rows = [(person, reason, count) for (person, reason), count in ranked[:TOP]]
        if ranked[TOP:]:
            rows.append((OTHERS, "", sum(count for _, count in ranked[TOP:])))
        return Refused(count=self._count, by_reason=self._by_reason.top(by=[0], limit=100), by_person=tuple(rows))


class _Counting:
    """One pass over the month. A method for each action that counts for something."""

    def __init__(self, month: Month, before: Callable[[int], Sequence[StoredEvent]]) -> None:
        self._month = month
        self._before = before
        self._requests: dict[int, _Request] = {}
        self._events = self._unreadable = 0
        self._carried_in = self._created = self._starts = self._checkpoints = self._without_value = 0
        self._failed_deeds = 0
        self._outcomes: Counter[str] = Counter()
        self._days = [[0, 0] for _ in month.days]
        self._by_market, self._by_requester, self._by_approver = _Tally(2), _Tally(3), _Tally(3)
        self._waits = tuple(array("d") for _ in _WAITS)
        self._clicks, self._commands = _Refusals(), _Refusals()
        self._refused_requests = _Tally(1)
        self._pairs: Counter[tuple[str, str]] = Counter()
        self._approved_of: Counter[str] = Counter()
        self._expired, self._attempts = _List[Expired](), _List[Attempt]()
        self._quick = _List[QuickApproval]()
        self._troubles, self._unsolved = _List[Trouble](), _List[Trouble]()
        self._changes, self._deeds, self._differences = _List[Change](), _List[Deed](), _List[Difference]()
        self._largest: dict[str, list[tuple[Decimal, int, Large]]] = {}
        self._people: dict[str, str] = {}
        self._counts: dict[str, Callable[[StoredEvent, Mapping[str, Any], _Request], None]] = {
            Action.REQUEST_OPENED: self._opened,
            Action.APPROVAL_RECORDED: self._approved_by,
            Action.REQUEST_APPROVED: self._approved,
            Action.CANCEL_ACCEPTED: self._accepted,
            Action.REQUEST_DENIED: self._denied,
            Action.REQUEST_REFUSED: self._refused,
            Action.REQUEST_EXPIRED: self._expired_one,
        }

    def carry_in(self, request_id: int) -> _Request:
        """A request of an earlier month, as it was when this month began."""
        request = _Request(id=request_id)
        for event in self._before(request_id):
            request.take(event, self._details(event))
        if request.state not in ENDED_STATES:
            self._requests[request_id] = request
            self._carried_in += 1
        return request

    def take(self, event: StoredEvent) -> None:
        self._events += 1
        if event.actor_name and (event.actor in self._people or len(self._people) < MOST_NAMES):
            self._people[event.actor] = event.actor_name
        if event.request_id is not None and event.action in _ABOUT_REQUESTS:
            self._take_request(event, event.request_id)
        elif event.action in {Action.APPROVAL_REFUSED, Action.COMMAND_REFUSED}:
            self._take_refusal(event)
        elif event.action == Action.BOT_STARTED:
            self._take_start(event)
        elif event.action.startswith("audit.") or event.action in _MADE_OF_IT:
            self._take_deed(event)

    def _take_request(self, event: StoredEvent, request_id: int) -> None:
        details = {} if event.action in _WITHOUT_DETAILS else self._details(event)
        request = self._requests.get(request_id)
        if event.action == Action.REQUEST_CREATED:
            self._created += 1
            self._by_requester.add(event.actor, 0)
            request = self._requests[request_id] = _Request(id=request_id)
        elif request is None:
            if event.action not in _MOVES and event.action != Action.APPROVAL_RECORDED:
                return  # said late of a request that is over
            request = self.carry_in(request_id)
        request.take(event, details)
        count = self._counts.get(event.action)
        if count is not None:
            count(event, details, request)
        if request.state in ENDED_STATES:
            self._ended(event, details, request)

    def _opened(self, event: StoredEvent, details: Mapping[str, Any], request: _Request) -> None:
        if request.value is None or not request.market:
            self._without_value += 1
            return
        currency = request.market.partition("-")[0]
        if currency not in self._largest and len(self._largest) >= MOST_NAMES:
            return
        order = details.get("order")
        large = Large(
            request_id=request.id,
            order_uuid=request.order_uuid,
            market=request.market,
            side=_text(order.get("side")) if isinstance(order, dict) else "",
            requester=request.requester,
            at=event.occurred_at,
            value=request.value,
            state=request.state.value,
        )
        ranked = self._largest.setdefault(currency, [])
        entry = (large.value, -event.seq, large)
        if len(ranked) < LARGEST:
            heapq.heappush(ranked, entry)
        elif entry[:2] > ranked[0][:2]:
            heapq.heapreplace(ranked, entry)[2]
        else:
            return
        request.large = large

    def _approved_by(self, event: StoredEvent, _details: Mapping[str, Any], request: _Request) -> None:
        self._by_approver.add(event.actor, 0)
        # Before the bot knew that the card was there, somebody may have clicked on it already.
        shown_at = request.card_at or request.opened_at
        if shown_at is None or event.occurred_at - shown_at > AT_ONCE:
            return
        self._quick.add(
            QuickApproval(
                seq=event.seq,
                at=event.occurred_at,
                approver=event.actor,
                requester=request.requester,
                request_id=request.id,
                market=request.market,
                after_s=(event.occurred_at - shown_at).total_seconds(),
                value=request.value,
            )
        )

    def _approved(self, event: StoredEvent, details: Mapping[str, Any], request: _Request) -> None:
        self._approved_by(event, details, request)
        self._time(0, request.created_at, event.occurred_at)
        if len(self._approved_of) < MOST_NAMES or request.requester in self._approved_of:
            self._approved_of[request.requester] += 1
            for approver in request.approvers:
                pair = (request.requester, approver)
                if len(self._pairs) < MOST_NAMES or pair in self._pairs:
                    self._pairs[pair] += 1

    def _accepted(self, event: StoredEvent, _details: Mapping[str, Any], request: _Request) -> None:
        self._time(1, request.approved_at, event.occurred_at)

    def _denied(self, event: StoredEvent, _details: Mapping[str, Any], _request: _Request) -> None:
        self._by_approver.add(event.actor, 1)

    def _refused(self, _event: StoredEvent, details: Mapping[str, Any], _request: _Request) -> None:
        self._refused_requests.add(_text(details.get("reason")) or UNKNOWN, 0)

    def _expired_one(self, event: StoredEvent, _details: Mapping[str, Any], request: _Request) -> None:
        self._expired.add(
            Expired(
                request_id=request.id,
                order_uuid=request.order_uuid,
                market=request.market,
                requester=request.requester,
                asked_at=request.created_at,
                at=event.occurred_at,
                approvals=len(request.approvers),
                approvals_required=request.approvals_required,
            )
        )

    def _ended(self, event: StoredEvent, details: Mapping[str, Any], request: _Request) -> None:
        self._requests.pop(request.id, None)
        state = request.state.value
        is_canceled = request.state is State.CANCELED
        if request.state is State.SETTLED:
            state = f"{state}: {_text(details.get('verdict')) or UNKNOWN}"
        self._outcomes[state] += 1
        self._days[self._month.day_of(event.occurred_at)][0 if is_canceled else 1] += 1
        market = request.market or UNKNOWN
        self._by_market.add(market, 0)
        self._by_requester.add(request.requester, 1)
        if is_canceled:
            self._by_market.add(market, 1)
            self._by_requester.add(request.requester, 2)
            for approver in request.approvers:
                self._by_approver.add(approver, 2)
        self._time(2, request.accepted_at, event.occurred_at)
        self._close(request, is_over=True)

    def _close(self, request: _Request, *, is_over: bool) -> None:
        if request.large is not None:
            request.large.state = request.state.value
        if request.story:
            (self._troubles if is_over else self._unsolved).add(
                Trouble(
                    request_id=request.id,
                    order_uuid=request.order_uuid,
                    market=request.market,
                    requester=request.requester,
                    approvers=tuple(request.approvers),
                    asked_at=request.created_at,
                    sent_at=request.sent_at,
                    steps=request.story,
                    is_over=is_over,
                )
            )

    def _time(self, which: int, since: datetime | None, until: datetime) -> None:
        if since is not None:
            self._waits[which].append((until - since).total_seconds())

    def _take_refusal(self, event: StoredEvent) -> None:
        reason = _text(self._details(event).get("reason")) or UNKNOWN
        if event.action == Action.COMMAND_REFUSED:
            self._commands.add(event.actor, reason)
            return
        self._clicks.add(event.actor, reason)
        if reason == Reason.OWN_REQUEST:
            self._attempts.add(
                Attempt(
                    seq=event.seq,
                    at=event.occurred_at,
                    person=event.actor,
                    request_id=event.request_id,
                    market=event.market,
                )
            )

    def _take_start(self, event: StoredEvent) -> None:
        self._starts += 1
        details = self._details(event)
        version = _text(details.get("version"))
        for name, before, after in _changed(details):
            self._changes.add(
                Change(seq=event.seq, at=event.occurred_at, version=version, name=name, before=before, after=after)
            )

    def _take_deed(self, event: StoredEvent) -> None:
        if event.action == Action.AUDIT_CHECKPOINTED:
            self._checkpoints += 1
            return
        details = self._details(event)
        deed = Deed(
            seq=event.seq,
            at=event.occurred_at,
            action=event.action,
            actor=event.actor,
            outcome=event.outcome,
            facts=_facts(details),
            is_notable=event.outcome != Outcome.OK,
        )
        if event.action == Action.AUDIT_RECONCILED:
            for kind, facts in _findings(details):
                self._differences.add(Difference(seq=event.seq, at=event.occurred_at, kind=kind, facts=facts))
        self._deeds.add(deed)
        self._failed_deeds += deed.is_notable

    def _details(self, event: StoredEvent) -> dict[str, Any]:
        try:
            details = json.loads(event.details)
        except (ValueError, RecursionError):
            details = None
        if isinstance(details, dict):
            return details
        self._unreadable += 1
        return {}

    def result(self) -> Review:
        for request in self._requests.values():
            self._close(request, is_over=False)
        pairs = sorted(
            (
                Pair(requester=requester, approver=approver, count=count, of=self._approved_of[requester])
                for (requester, approver), count in self._pairs.items()
            ),
            key=lambda pair: (not pair.is_notable, -pair.count, pair.requester, pair.approver),
        )
        notable = sum(pair.is_notable for pair in pairs)
        shown = max(TOP, min(LONGEST_LIST, notable))
        return Review(
            month=self._month,
            events=self._events,
            unreadable=self._unreadable,
            carried_in=self._carried_in,
            created=self._created,
            ended=self._outcomes.total(),
            open_at_end=dict(sorted(Counter(each.state.value for each in self._requests.values()).items())),
            outcomes=dict(sorted(self._outcomes.items(), key=lambda each: (-each[1], each[0]))),
            by_day=tuple(
                Day(date=day, canceled=canceled, otherwise=otherwise)
                for day, (canceled, otherwise) in zip(self._month.days, self._days, strict=True)
            ),
            by_market=self._by_market.top(by=[1, 0]),
            by_requester=self._by_requester.top(by=[2, 1, 0]),
            by_approver=self._by_approver.top(by=[0, 2, 1]),
            waits=tuple(_wait(name, times) for name, times in zip(_WAITS, self._waits, strict=True)),
            refused_clicks=self._clicks.result(),
            refused_commands=self._commands.result(),
            refused_requests=self._refused_requests.top(by=[0], limit=100),
            expired=self._expired.result(),
            own_attempts=self._attempts.result(),
            quick_approvals=self._quick.result(),
            pairs=tuple(pairs[:shown]),
            other_pairs=len(pairs[shown:]),
            notable_pairs=notable,
            own_approvals=sum(pair.count for pair in pairs if pair.is_own),
            troubles=self._unsolved.result().followed_by(self._troubles.result()),
            largest=self._ranked(),
            without_value=self._without_value,
            starts=self._starts,
            changes=self._changes.result(),
            deeds=self._deeds.result(),
            failed_deeds=self._failed_deeds,
            differences=self._differences.result(),
            checkpoints=self._checkpoints,
            people=self._people,
        )

    def _ranked(self) -> dict[str, tuple[Large, ...]]:
        """KRW first, then the currencies with the most requests among the largest."""
        currencies = sorted(self._largest, key=lambda each: (each != "KRW", -len(self._largest[each]), each))
        return {
            currency: tuple(
                large for *_, large in sorted(self._largest[currency], key=lambda each: (-each[0], -each[1]))
            )
            for currency in currencies[:MOST_CURRENCIES]
        }


def _by_value(entry: tuple[Decimal, int, Large]) -> tuple[Decimal, int]:
    value, minus_seq, _ = entry
    return -value, -minus_seq


def _wait(name: str, times: "array[float]") -> Wait:
    ranked = sorted(times)
    at = [bisect_left(ranked, edge) if edge else 0 for edge in BIN_EDGES_S]
    return Wait(
        name=name,
        count=len(ranked),
        p50=_percentile(ranked, 0.5),
        p90=_percentile(ranked, 0.9),
        p99=_percentile(ranked, 0.99),
        longest=ranked[-1] if ranked else 0.0,
        bins=tuple(until - start for start, until in pairwise((*at, len(ranked)))),
    )


def _percentile(ranked: Sequence[float], share: float) -> float:
    return ranked[math.ceil(share * len(ranked)) - 1] if ranked else 0.0


# What details may hold, read without trust


def _text(value: object) -> str:
    """Any JSON value as one short text."""
    if value is None:
        return ""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
    except RecursionError:
        text = "…"
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"


def _amount(value: object) -> Decimal | None:
    if not isinstance(value, str) or len(value) > LONGEST_TEXT:
        return None
    try:
        amount = Decimal(value)
    except InvalidOperation:
        return None
    return amount if amount.is_finite() and abs(amount.adjusted()) < LONGEST_TEXT else None


def _facts(details: Mapping[str, Any]) -> str:
    """The plain facts of an event in one line; of lists how long they are."""
    facts = []
    for name, value in details.items():
        if isinstance(value, list):
            facts.append(f"{name}: {len(value)}")
        elif value is not None and not isinstance(value, dict):
            facts.append(f"{name}={_text(value)}")
    return _text(", ".join(facts))


def _findings(details: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """What a reconciliation found: each finding's kind, and the rest of it in one line."""
    findings = details.get("findings")
    for found in findings if isinstance(findings, list) else ():
        if isinstance(found, dict):
            yield _text(found.get("kind")), _facts({name: value for name, value in found.items() if name != "kind"})


def _changed(details: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """The settings that were others before: name, before, after; what is not told is empty."""
    changed = details.get("changed")
    if isinstance(changed, dict):
        return [(_text(name), *_before_and_after(value)) for name, value in list(changed.items())[:LONGEST_LIST]]
    if not isinstance(changed, list):
        return [(_text(changed), "", "")] if changed else []
    rows = []
    for each in changed[:LONGEST_LIST]:
        if isinstance(each, dict):
            name = _text(each.get("name") or each.get("setting"))
            rows.append((name or _text(each), *(_before_and_after(each) if name else ("", ""))))
        else:
            rows.append((_text(each), *_beside(details, _text(each))))
    return rows


def _before_and_after(value: object) -> tuple[str, str]:
    if not isinstance(value, dict):
        return "", _text(value)
    before = value.get("before", value.get("from"))
    return _text(before), _text(value.get("after", value.get("to")))


def _beside(details: Mapping[str, Any], name: str) -> tuple[str, str]:
    """The setting's values, where the event holds all settings beside the names of those that changed."""

    def of(*places: str) -> str:
        for place in places:
            held = details.get(place)
            if isinstance(held, dict):
                found = held.get(name, held.get(name.lower()))
                if found is not None:
                    return _text(found)
        return ""

    return of("before", "previous"), of("after", "settings", "configuration") or _text(
        details.get(name, details.get(name.lower()))
    )
