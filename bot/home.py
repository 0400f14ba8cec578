"""The Home tab: what one person finds there, whose Homes a change concerns, and when they are drawn anew.

    opened(…)      somebody opens their Home: it is drawn, and kept up for a week
    take_in()      what has happened since the last time makes the Homes due that it concerns
    draw(home_id)  read what concerns the person, publish it

What has happened is read from the audit: its events stand in one order, and none comes in between later. So nothing
that moves a request knows of Homes, waits for one, or can fail because of one.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, Protocol

from bot.domain.answer import ExchangeHealth
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor
from bot.domain.cancel_request import TRANSITIONS, CancelRequest, DecisionKind
from bot.domain.errors import CannotPost, TryLater
from bot.domain.membership import UNREAD, Membership

MAX_WAITING: Final = 20
MAX_ASKED: Final = 20
MAX_OUTCOMES: Final = 10
"""Rows of each list on one Home: with what stands around them, far fewer blocks than the 100 that Slack takes."""

READ_AT_MOST: Final = 500
"""Requests of each list that are read to be counted."""

MAX_CHANGES: Final = 500
"""Events taken in at a time."""

KEPT_UP_FOR: Final = timedelta(days=7)
"""Whose Home was not opened for so long sees it drawn anew when they open it again."""

REDRAW_GAP_S: Final = 3.0
"""Between two drawings of one Home."""
SETTLE_S: Final = 1.0
"""A change waits for so long for those that follow it: an approval is followed by a verdict."""

RETRY_GAPS_S: Final = (2.0, 5.0, 10.0, 20.0)
RETRY_GAP_S: Final = 60.0

TAKE_IN: Final = 0
"""The job that takes in what has happened; any other is the id of a Home."""

SHOWN_ACTIONS: Final = frozenset(TRANSITIONS) | {Action.APPROVAL_RECORDED, Action.ORDER_CHANGED}
"""What changes something that a Home shows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """The first requests of a list, and how many more there are; `is_cut` where there are even more than that."""

    shown: tuple[CancelRequest, ...] = ()
    more: int = 0
    is_cut: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Health:
    """What this process knows of itself and of the exchange."""

    is_worker_alive: bool
    exchange: ExchangeHealth


@dataclass(frozen=True, kw_only=True, slots=True)
class HomeView:
    """What one person finds on their Home."""

    person: Actor
    drawn_at: datetime  #: by the database's clock: it answered then
    waiting: Listed  #: for this person's approval, the first to expire first
    asked: Listed  #: by this person and not ended, the newest first
    outcomes: tuple[CancelRequest, ...]  #: of what this person asked for or decided, the newest first
    health: Health


@dataclass(frozen=True, kw_only=True, slots=True)
class Home:
    """A Home that is being drawn."""

    id: int
    person: Actor
    attempts: int  #: that failed, or showed a request without its card, since it was last drawn whole
    fence: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Concerning:
    """What the database holds that concerns one person, all of it from the same moment; of each at most what is read.

    `seq` is the audit's latest event at that moment.
    """

    at: datetime
    seq: int
    pending: tuple[CancelRequest, ...]  #: whose approvers this person is among
    asked: tuple[CancelRequest, ...]
    ended: tuple[CancelRequest, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class DueHomes:
    ids: tuple[int, ...]
    newest_seq: int  #: the audit's latest event
    is_any_kept_up: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """A request that has moved, and the event that tells so."""

    seq: int
    request: CancelRequest


class HomeStore(Protocol):
    """What the Homes need of the database. Every verb raises StoreError."""

    def open_home(self, *, person_id: str, team_id: str) -> None:
        """This person has opened their Home: it is due. The same delivery again does no more."""
        ...

    def due_homes(self, *, limit: int) -> DueHomes: ...

    def changes_after(self, seq: int, *, limit: int) -> tuple[int, tuple[Change, ...]]:
        """What the next `limit` events have changed, and the last event that was looked at."""
        ...

    def make_due(self, latest: Mapping[str, int]) -> None:
        """The Homes of these people are due that do not show this event yet."""
        ...

    def make_all_due(self) -> int:
        """Every Home is due; returns the audit's latest event."""
        ...

    def lease_home(self, home_id: int) -> Home | None:
        """Take it if it is due and free; None otherwise."""
        ...

    def concerning(self, person_id: str, *, limit: int) -> Concerning: ...

    def release_home(self, home: Home, *, shown_seq: int | None, due_in_s: float | None) -> None:
        """Give it back: what it shows now, if it was drawn, and when to draw it again."""
        ...

    def forget_home(self, home: Home) -> None:
        """It cannot be drawn: leave it alone until it is opened again."""
        ...


class HomePublisher(Protocol):
    """What the Homes need of Slack."""

    def publish_home(self, view: HomeView) -> None:
        """Put this before the person. Raises CannotPost, TryLater."""
        ...


def home_view(
    person: Actor, found: Concerning, *, policy: ApprovalPolicy, membership: Membership = UNREAD, health: Health
) -> HomeView:
    """What this person is shown: what they may approve now, what they asked for, and what came of it."""

    def seen(requests: Sequence[CancelRequest]) -> list[CancelRequest]:
        return [each for each in requests if each.team_id == person.team_id and each.may_be_seen_by(person.id)]

    waiting = [
        request
        for request in seen(found.pending)
        if policy.refusal(request, person, DecisionKind.APPROVE, found.at, membership) is None
    ]
    return HomeView(
        person=person,
        drawn_at=found.at,
        waiting=_listed(waiting, MAX_WAITING, is_cut=len(found.pending) >= READ_AT_MOST),
        asked=_listed(seen(found.asked), MAX_ASKED, is_cut=len(found.asked) >= READ_AT_MOST),
        outcomes=tuple(seen(found.ended)[:MAX_OUTCOMES]),
        health=health,
    )


def _listed(requests: Sequence[CancelRequest], limit: int, *, is_cut: bool) -> Listed:
    return Listed(shown=tuple(requests[:limit]), more=max(0, len(requests) - limit), is_cut=is_cut)


def people_concerned(request: CancelRequest) -> frozenset[str]:
    """Whose Homes show this request, or have shown it until now."""
    return frozenset({request.requester.id, *request.approvers, *(each.actor.id for each in request.decisions)})


class Homes:
    """Keeps the Homes of those up who look at them."""

    def __init__(  # noqa: PLR0913 - the composition root names each part
        self,
        *,
        store: HomeStore,
        publisher: HomePublisher,
        policy: ApprovalPolicy,
        membership: Callable[[], Membership],
        health: Callable[[], Health],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._publisher = publisher
        self._policy = policy
        self._membership = membership
        self._health = health
        self._monotonic = monotonic
        self._seen_seq: int | None = None  # None: this process has just begun, and people or rules may have changed
        self._rests_until = float("-inf")

    def opened(self, *, person_id: str, team_id: str) -> None:
        """Committed when this returns. Raises StoreError."""
        self._store.open_home(person_id=person_id, team_id=team_id)

    def due(self, *, limit: int) -> tuple[int, ...]:
        """The jobs for `work`. Raises StoreError."""
        if self._rest_s() > 0:
            return ()
        found = self._store.due_homes(limit=limit)
        if not found.is_any_kept_up:
            self._seen_seq = found.newest_seq  # who opens theirs later sees what is there then
            return ()
        is_news = self._seen_seq is None or found.newest_seq > self._seen_seq
        return (TAKE_IN, *found.ids) if is_news else found.ids

    def work(self, job_id: int) -> float | None:
        """Do one job; returns when to call again, if soon. Raises StoreError."""
        return self.take_in() if job_id == TAKE_IN else self.draw(job_id)

    def take_in(self) -> float | None:
        """Make the Homes due that are concerned by what has happened. Raises StoreError."""
        if self._seen_seq is None:
            self._seen_seq = self._store.make_all_due()
            return None
        last_seq, changes = self._store.changes_after(self._seen_seq, limit=MAX_CHANGES)
        latest: dict[str, int] = {}
        for change in sorted(changes, key=lambda change: change.seq):
            latest.update(dict.fromkeys(people_concerned(change.request), change.seq))
        if latest:
            self._store.make_due(latest)
        is_more = last_seq - self._seen_seq >= MAX_CHANGES
        self._seen_seq = last_seq
        return 0.0 if is_more else None

    def draw(self, home_id: int) -> float | None:
        """Publish one Home as its person may see it now. Raises StoreError."""
        if self._rest_s() > 0:
            return None
        home = self._store.lease_home(home_id)
        if home is None:
            return None
        found = self._store.concerning(home.person.id, limit=READ_AT_MOST)
        view = home_view(home.person, found, policy=self._policy, membership=self._membership(), health=self._health())
        retry_s = RETRY_GAPS_S[home.attempts] if home.attempts < len(RETRY_GAPS_S) else RETRY_GAP_S
        try:
            self._publisher.publish_home(view)
        except CannotPost:
            self._store.forget_home(home)
        except TryLater as error:
            if error.retry_after_s > 0:
                # Slack counts the calls of all Homes together.
                self._rests_until = self._monotonic() + error.retry_after_s
            self._store.release_home(home, shown_seq=None, due_in_s=max(retry_s, error.retry_after_s))
        else:
            self._store.release_home(home, shown_seq=found.seq, due_in_s=retry_s if _lacks_a_card(view) else None)
        return None

    def _rest_s(self) -> float:
        return self._rests_until - self._monotonic()


def _lacks_a_card(view: HomeView) -> bool:
    """Whether a row has no link yet: that a card was posted is no event."""
    shown = (*view.waiting.shown, *view.asked.shown)
    return any(request.card_ts is None and request.opened_at is not None for request in shown)
