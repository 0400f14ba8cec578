"""CancelWorkflow: the story of one request, from the command to the verdict, and the ports it needs.

Three lanes work on a request, each with a lease of its own, so that Slack being slow never delays a cancel:

    advance(request_id)   the exchange: read the order, send the cancel, find out what happened
    show(request_id)      Slack: the card and its thread, drawn from the row
    deliver(notice_id)    Slack: one private line to one person

Beside them `refresh()` looks again at the orders of all pending requests, and wakes the lane of those that have moved.

Each does what is due and returns in how many seconds it wants to be called again, or None. It is the fast path and the
recovery path alike: called after a click, when a wait is over, and after a crash.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple, Protocol, TypeVar, assert_never

from bot.domain.answer import (
    Accepted,
    Call,
    CancelAnswer,
    Found,
    FoundOrders,
    LookAnswer,
    NotSent,
    OrdersAnswer,
    Refused,
    Unknown,
)
from bot.domain.approval import ApprovalPolicy, reason_fault
from bot.domain.audit import SYSTEM, Action, Actor, Json, Outcome, Reason, timestamp
from bot.domain.cancel_request import (
    ENDED_STATES,
    VERDICT_STATES,
    CancelRequest,
    DecisionKind,
    State,
    Verdict,
    refusal_of,
)
from bot.domain.errors import CannotPost, CommitInDoubt, NothingDone, Overtaken, StoreError, TryLater
from bot.domain.membership import UNREAD, Membership, ids_json
from bot.domain.order import Order
from bot.domain.quote import BestPrices, NoPrices, Quote
from bot.domain.reminder import reminder_window
from bot.domain.tiers import Requirement, remaining_value

LOOK_GAPS_S: Final = (0.1, 0.2, 0.4, 0.8, 1.5, 3.0)
"""Waits before the looks that follow a DELETE; after the last one, every 6 s."""
LOOK_GAP_S: Final = 6.0
UNRESOLVED_GAPS_S: Final = (10.0, 20.0, 40.0, 80.0, 160.0)
"""Waits before the looks while unresolved; after the last one, every 5 min."""
UNRESOLVED_GAP_S: Final = 300.0

READING_GAPS_S: Final = (0.5, 1.0, 2.0, 4.0)
READING_GAP_S: Final = 5.0
SLOW_AFTER: Final = timedelta(seconds=5)
"""Who asked is told that Upbit is slow."""
UNREACHABLE_AFTER: Final = timedelta(seconds=60)
"""A request whose order could not be read by then is refused."""

REFRESH_ORDERS: Final = 100
"""Orders in one look at several."""
REFRESH_LOOKS: Final = 5
"""Of these, how many are looked at singly before the next look at several; a call of `refresh` ends soon."""
REFRESH_REST_S: Final = 0.1
"""Between looks at several: ten thousand requests take ten seconds, and a third of what Upbit allows."""
UNREADABLE: Final = frozenset({"not_json", "too_large"})
"""Causes for which the orders of a list may be looked at singly: one of them may have spoiled it for the others."""

SEND_GAPS_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0)
SEND_GAP_S: Final = 15.0
SHORT_HOLD_S: Final = 1.0
"""What a rate limit holds back for no longer than this is not even taken up meanwhile."""

LONGEST_HOLD_S: Final = 5.0
"""But not for ever: where the limit lasts, its own time-outs must go on."""

MAX_SENDS: Final = 3
"""DELETEs of one request whose answers were lost."""
SEND_GRACE_S: Final = 5.0
"""A DELETE leaves so soon after the step began that commits its `cancel.sent`, or not at all."""

DOUBT_SETTLES_AFTER: Final = timedelta(seconds=1)
"""A refusal that proves nothing becomes a rejection if the order is still open so long after it."""
LOST_ANSWER_SETTLES_AFTER: Final = timedelta(seconds=6)
"""A DELETE whose answer was lost is taken for undone if the order is still open so long after it."""
UNRESOLVED_AFTER: Final = timedelta(seconds=30)
FAILED_AFTER: Final = timedelta(minutes=10)
DOUBT_SETTLES_AFTER_LOOKS: Final = 3
FAILED_AFTER_LOOKS: Final = 3
"""Looks that such a conclusion takes beside the time, as a clock can leap."""
UNRESOLVED_AFTER_LOOKS: Final = 10
"""Looks that stand for the time where the clock was set back to before the cancel."""

SLACK_GAPS_S: Final = (1.0, 2.0, 5.0, 10.0, 20.0)
SLACK_GAP_S: Final = 60.0

MAX_KEPT: Final = 1000
"""Leases remembered while the database is away; the others run out."""

JUDGED_BY_LISTS: Final = frozenset({DecisionKind.APPROVE, DecisionKind.DENY})
"""Decisions for which the audit keeps who was in the approvers' groups."""

MAX_STEPS: Final = 20
"""Steps of one call of `advance`; no path through the states is longer."""


T = TypeVar("T")


class Lane(StrEnum):
    EXCHANGE = "exchange"
    SLACK = "slack"


class NoticeKind(StrEnum):
    """The private lines to one person that are no answer to a command."""

    STILL_READING = "still_reading"
    STILL_ASKING_WHO_MAY = "still_asking_who_may"  # the groups of the approvers are not read yet
    REQUEST_REFUSED = "request_refused"
    CARD_ELSEWHERE = "card_elsewhere"  # where the card is, if not where the command was typed
    CLICK_REFUSED = "click_refused"
    FORM_NOT_OPENED = "form_not_opened"
    VERDICT = "verdict"  # the thread cannot be posted to
    REMINDER = "reminder"  # a line in the thread, for those who may still approve
    REDRAW = "redraw"  # not a line: somebody clicked on a second copy of the card


RESPONSE_URL_LIFETIME: Final = timedelta(minutes=25)
"""Slack takes a response_url for 30 minutes."""

NOTICE_LIFETIME: Final = {
    NoticeKind.STILL_READING: timedelta(seconds=55),
    NoticeKind.STILL_ASKING_WHO_MAY: timedelta(seconds=55),
    NoticeKind.REQUEST_REFUSED: timedelta(hours=24),
    NoticeKind.CARD_ELSEWHERE: timedelta(hours=24),
    NoticeKind.CLICK_REFUSED: timedelta(minutes=25),
    NoticeKind.FORM_NOT_OPENED: timedelta(minutes=5),
    NoticeKind.VERDICT: timedelta(hours=24),
    NoticeKind.REDRAW: timedelta(hours=1),
}
"""A line that comes later than this would confuse more than it tells; a reminder has a time of its own."""

TOLD_ONCE: Final = frozenset({NoticeKind.STILL_READING, NoticeKind.STILL_ASKING_WHO_MAY, NoticeKind.CARD_ELSEWHERE})
"""Owed for a request once, whoever notices it first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Command:
    """What `/cancel <uuid> [reason]` asked for, already parsed."""

    trigger_id: str
    requester: Actor
    team_id: str
    channel_id: str
    in_private: bool = True  #: whether the channel is one that not everybody can read; True where that is not known
    response_url: str | None
    order_uuid: str | None  #: None where the text was not understood
    reason: str = ""
    fault: Reason | None = None  #: why it was not understood
    from_form: bool = False  #: chosen in a form, which somebody may correct and submit again after a refusal


@dataclass(frozen=True, kw_only=True, slots=True)
class CommandAnswer:
    """What the person is told at once: a recorded request, or why there is none."""

    request_id: int | None = None
    refusal: Reason | None = None
    open_request: CancelRequest | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Click:
    """A press on a button, or a form that one has opened and somebody has submitted.

    `request_id` is None where its value is not ours, `kind` where the button or the form is not.
    """

    kind: DecisionKind | None
    request_id: int | None
    actor: Actor
    team_id: str
    channel_id: str
    message_ts: str | None
    response_url: str | None
    trigger_id: str | None
    is_form: bool = False  #: then the form itself tells the person what came of it
    reason: str = ""  #: why, in their own words; only a form asks for it


@dataclass(frozen=True, kw_only=True, slots=True)
class ClickAnswer:
    """What came of a click: why it does not count, or None; and the request as it is now."""

    refusal: Reason | None
    request: CancelRequest | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A private line that is owed to somebody, a reminder, or a stray copy of a card to be redrawn."""

    kind: NoticeKind
    user_id: str
    channel_id: str
    reason: Reason | None = None
    message_ts: str | None = None
    response_url: str | None = None
    id: int = 0
    request: CancelRequest | None = None
    attempts: int = 0
    created_at: datetime | None = None
    not_after: datetime | None = None  #: where that is not the lifetime of its kind
    fence: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Watched:
    """A pending request whose order is to be looked at again, with the order as it was last seen."""

    request_id: int
    order_uuid: str
    order_now: Order
    is_unseen: bool

    def is_as_before(self, seen: Order | None) -> bool:
        """Whether a list that shows the order so says nothing new."""
        return seen is not None and not self.is_unseen and not seen.has_moved_since(self.order_now)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lease:
    """The right to work on one request in one lane until it runs out; the fence tells who took it last."""

    request_id: int
    lane: Lane
    fence: int


class Exchange(Protocol):
    """What the workflow needs of Upbit."""

    def get_order(self, uuid: str) -> LookAnswer:
        """Look at the order."""
        ...

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        """Look at several orders at once; nothing is known of those that the answer leaves out."""
        ...

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        """Send one DELETE, once."""
        ...

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        """What is known of the DELETE before it is sent, for the audit; asks nobody."""
        ...

    def hold_s(self, method: Literal["GET", "DELETE"]) -> float:
        """For how many seconds such a call would not be sent, as Upbit limits or bans us; 0 where it would."""
        ...


class Quotations(Protocol):
    """What the workflow needs of the market, which it can do without."""

    def best_prices(self, market: str) -> BestPrices | NoPrices:
        """The best prices now, or why there are none; within a second, whatever happens."""
        ...


class Posted(NamedTuple):
    """A message that Slack has taken."""

    channel_id: str
    ts: str
    permalink: str | None  #: None while the workspace's own address is not known


class Messenger(Protocol):
    """What the workflow needs of Slack. Every verb raises CannotPost or TryLater."""

    def post_card(self, request: CancelRequest) -> Posted:
        """Post the card where it goes."""
        ...

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        """Draw the card anew from the request."""
        ...

    def post_verdict(self, request: CancelRequest) -> Posted:
        """Post the summary in the card's thread."""
        ...

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        """Post the reminder in the card's thread."""
        ...

    def tell(self, notice: Notice) -> None:
        """Tell one person privately, by the best way that is left."""
        ...


class Groups(Protocol):
    """What the workflow needs to know of the workspace's user groups."""

    def membership(self) -> Membership:
        """Who is in them, as far as it is known now; at once, without asking anybody."""
        ...


class NoGroups:
    """The Groups of allowlists that name people only."""

    @staticmethod
    def membership() -> Membership:
        return UNREAD


@dataclass(frozen=True, kw_only=True, slots=True)
class Known:
    """What is written down already when a command comes."""

    request_id: int | None = None  #: the request that this very delivery made
    refusal: Reason | None = None  #: why this very delivery was refused
    open_request: CancelRequest | None = None  #: of the same order
    open_requests: int = 0  #: how many the requester has


class Transaction(Protocol):
    """One database transaction that holds the request's row and the audit's head, and knows the time.

    Whatever it changes or records becomes visible at once, when it commits, or not at all.
    """

    @property
    def now(self) -> datetime: ...

    @property
    def request(self) -> CancelRequest | None:
        """The request as it is now, changes of this transaction included."""
        ...

    def refusal_of_trigger(self, trigger_id: str) -> Reason | None:
        """Why this delivery was refused before, if it was."""
        ...

    def known_of(self, command: Command) -> Known:
        """What a command depends on, by one look."""
        ...

    def create(self, command: Command, *, approvals_channel_id: str | None = None) -> CancelRequest:
        """Insert the request in state `requested`, due at once, and its audit event.

        `approvals_channel_id` is where its card goes, None where the command was typed.
        """
        ...

    def move(  # noqa: PLR0913 - one event has that many facts
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
        """Do the transition with its audit event. Raises Overtaken if the row has moved, IllegalTransition.

        Without `team_id` and `channel_id` it happened where the request is.
        """
        ...

    def record(  # noqa: PLR0913 - one event has that many facts
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
        """Write an audit event that moves nothing; `changes` go into the request's row."""
        ...

    def decide(self, kind: DecisionKind, actor: Actor, *, reason: str = "") -> None:
        """Record a person's decision; the state is moved by `move`."""
        ...

    def change(self, *, redraw: bool = False, **changes: Any) -> None:
        """Change the row without an event: what only the lanes need. `redraw` counts as a new revision."""
        ...

    def tell(self, notice: Notice) -> None:
        """Owe somebody a private line; those of TOLD_ONCE, once."""
        ...


class Taken(Protocol):
    """A lane that is being taken, in a database transaction that holds the request's row."""

    @property
    def lease(self) -> Lease: ...

    @property
    def request(self) -> CancelRequest: ...

    def transaction(self) -> AbstractContextManager[Transaction]:
        """The same transaction, for what can be done before anybody is asked: it commits with the lease."""
        ...


class Store(Protocol):
    """What the workflow needs of the database. Every verb raises StoreError."""

    def transaction(
        self, request_id: int | None = None, *, lease: Lease | None = None
    ) -> AbstractContextManager[Transaction]:
        """Lock the request (if any), then the audit's head, then ask the time.

        With a lease of the exchange lane it raises Overtaken at once if somebody else has taken the lane since.
        """
        ...

    def together(self, work: Callable[[Transaction], T]) -> T:
        """Do the work in a transaction without a request, which it may share with others that come at the same time.

        Committed when this returns. The work may be called twice, if its first time was rolled back.
        """
        ...

    def read(self, request_id: int) -> CancelRequest | None: ...

    def request_of_trigger(self, trigger_id: str) -> int | None: ...

    def lease(
        self, request_id: int, lane: Lane, *, kept: Lease | None = None
    ) -> AbstractContextManager["Taken | None"]:
        """Take the lane if it is free and something is due; None otherwise. The lease is there once this is committed.

        A lane that nobody has taken since the `kept` lease is free, too.
        """
        ...

    def release(self, lease: Lease, *, due_in_s: float | None, seen_revision: int) -> float | None:
        """Give the lane back. Returns in how many seconds it is due.

        That is `due_in_s`, unless the row's revision is no longer the one that was seen: then it is due at once.
        In the Slack lane None says that the card shows that revision. None where the lease had been lost.
        """
        ...

    def take_refresh(self, *, limit: int, again_in_s: float) -> tuple[Watched, ...]:
        """The pending requests whose orders are due to be looked at again, the longest waiting first.

        Taken is put off by `again_in_s`: nobody else asks for the same meanwhile, and what a dead process had taken is
        taken again after that.
        """
        ...

    def refresh_again(self, request_ids: Sequence[int]) -> None:
        """Give back what was taken and not looked at."""
        ...

    def saw_unchanged(self, request_ids: Sequence[int]) -> None:
        """The orders of these, as far as they are pending, were seen just now as they were before."""
        ...

    def wake(self, request_id: int) -> None:
        """Make the exchange's lane of a pending request due: its order is looked at."""
        ...

    def lease_notice(self, notice_id: int) -> Notice | None: ...

    def finish_notice(self, notice: Notice, *, given_up: bool) -> None: ...

    def finish_before(self, notice: Notice) -> bool:
        """Finish what may be told once at most, before it is told; False if somebody else has taken it since."""
        ...

    def postpone_notice(self, notice: Notice, *, due_in_s: float) -> None:
        """Take it up again later, also where it was finished before."""
        ...


class CancelWorkflow:
    """Decides nothing about SQL, HTTP or Slack: it tells the story through its ports."""

    def __init__(  # noqa: PLR0913 - the composition root names each part
        self,
        *,
        store: Store,
        exchange: Exchange,
        quotations: Quotations,
        messenger: Messenger,
        policy: ApprovalPolicy,
        groups: Groups | None = None,
        approval_ttl: timedelta,
        send_within: timedelta,
        refresh_every: timedelta = timedelta(seconds=30),
        approvals_channel_id: str | None = None,
        new_nonce: Callable[[], str],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._exchange = exchange
        self._quotations = quotations
        self._messenger = messenger
        self._policy = policy
        self._groups = groups or NoGroups()
        self._approval_ttl = approval_ttl
        self._send_within = send_within
        self._refresh_every = refresh_every
        self._approvals_channel_id = approvals_channel_id
        self._refresh_failed = False  # the failure is written down already
        self._new_nonce = new_nonce
        self._monotonic = monotonic
        # Leases of steps that the database has ended: nobody works under them, so they need not run out first.
        self._kept: dict[tuple[int, Lane], Lease] = {}
        self._held_since: dict[int, float] = {}

    # What people ask for

    def command(self, command: Command, *, home_team: str) -> CommandAnswer:
        """Record the request, or why there is none. Committed when this returns.

        Raises NothingDone, or CommitInDoubt where even reading again does not tell.
        """
        try:
            return self._store.together(lambda tx: self._answer(tx, command, home_team=home_team))
        except CommitInDoubt:
            request_id = self._read_again(lambda: self._store.request_of_trigger(command.trigger_id))
            if request_id is None:
                raise NothingDone("commit_failed") from None
            return CommandAnswer(request_id=request_id)

    def _answer(self, tx: Transaction, command: Command, *, home_team: str) -> CommandAnswer:
        known = tx.known_of(command)
        open_request = known.open_request
        if known.request_id is not None:
            return CommandAnswer(request_id=known.request_id)
        if known.refusal is not None and not command.from_form:
            return CommandAnswer(refusal=known.refusal, open_request=open_request)
        membership = self._groups.membership()
        refusal = self._command_refusal(known, command, home_team=home_team, membership=membership)
        if refusal is None:
            # Frozen here, so that another replica with other settings posts no second card.
            elsewhere = None if self._approvals_channel_id == command.channel_id else self._approvals_channel_id
            return CommandAnswer(request_id=tx.create(command, approvals_channel_id=elsewhere).id)
        self._refuse_command(tx, command, refusal, membership=membership, open_request=open_request)
        return CommandAnswer(refusal=refusal, open_request=open_request)

    def may_choose(self, command: Command, *, home_team: str) -> Reason | None:
        """Why this person gets no form to choose an order in, recorded; or None. Raises NothingDone, CommitInDoubt."""
        with self._store.transaction() as tx:
            known = tx.known_of(command)
            if known.refusal is not None:
                return known.refusal
            membership = self._groups.membership()
            refusal = self._policy_refusal(known, command, home_team=home_team, membership=membership)
            if refusal is not None:
                self._refuse_command(tx, command, refusal, membership=membership)
            return refusal

    def _refuse_command(
        self,
        tx: Transaction,
        command: Command,
        refusal: Reason,
        *,
        membership: Membership,
        open_request: CancelRequest | None = None,
    ) -> None:
        details: dict[str, Json] = {"reason": refusal.value, **membership.to_json(self._policy.requesters)}
        if open_request is not None and refusal is Reason.ORDER_HAS_OPEN_REQUEST:
            details["open_request_id"] = open_request.id
        tx.record(
            Action.COMMAND_REFUSED,
            actor=command.requester,
            outcome=Outcome.REFUSED,
            details=details,
            trigger_id=command.trigger_id,
            team_id=command.team_id,
            channel_id=command.channel_id,
            order_uuid=command.order_uuid,
            reason=command.reason,
        )

    def _command_refusal(
        self, known: Known, command: Command, *, home_team: str, membership: Membership
    ) -> Reason | None:
        refusal = self._policy_refusal(known, command, home_team=home_team, membership=membership)
        if refusal is Reason.OTHER_WORKSPACE:
            return refusal
        if command.fault is Reason.NOT_A_QUESTION:
            return command.fault  # everybody may ask a question, so nobody is told that they may not
        if refusal is not None and refusal is not Reason.TOO_MANY_OPEN_REQUESTS:
            return refusal
        if command.order_uuid is None:
            return command.fault or Reason.USAGE
        return refusal if known.open_request is None else Reason.ORDER_HAS_OPEN_REQUEST

    def _policy_refusal(
        self, known: Known, command: Command, *, home_team: str, membership: Membership
    ) -> Reason | None:
        return self._policy.command_refusal(
            command.requester,
            home_team=home_team,
            channel_id=command.channel_id,
            open_requests=known.open_requests,
            membership=membership,
        )

    def click(self, click: Click) -> Reason | None:
        """Decide, or record why the click does not count. Committed when this returns the refusal or None.

        Raises NothingDone, or CommitInDoubt where even reading again does not tell.
        """
        return self.decide(click).refusal

    def decide(self, click: Click) -> ClickAnswer:
        """The same for who needs the request to say what came of it."""
        refusal: Reason | None = None
        decided: CancelRequest | None = None
        try:
            with self._store.transaction(click.request_id) as tx:
                refusal = self._decide(tx, click)
                decided = tx.request
        except CommitInDoubt:
            if not self._read_again(lambda: self._is_written(click, decided)):
                raise NothingDone("commit_failed") from None
            if refusal is not None:
                raise  # what is written is an earlier click of theirs: neither "it counts" nor "nothing" is the truth
        return ClickAnswer(refusal=refusal, request=decided)

    def may_decide(self, click: Click) -> ClickAnswer:
        """Whether the click would count now, before a form is opened; why not is recorded and told as for any click.

        Nothing is decided. Raises StoreError.
        """
        with self._store.transaction(click.request_id) as tx:
            membership = self._groups.membership()
            refusal = self._click_refusal(tx, click, membership)
            if refusal is None:
                self._adopt_or_redraw(tx, click)
            else:
                self._refuse_click(tx, click, refusal, membership)
            return ClickAnswer(refusal=refusal, request=tx.request)

    def form_not_opened(self, click: Click) -> None:
        """Owe the person the line that says so. Raises StoreError."""
        with self._store.transaction(click.request_id) as tx:
            tx.tell(
                Notice(
                    kind=NoticeKind.FORM_NOT_OPENED,
                    user_id=click.actor.id,
                    channel_id=click.channel_id,
                    response_url=click.response_url,
                )
            )

    def _click_refusal(self, tx: Transaction, click: Click, membership: Membership) -> Reason | None:
        if click.kind is None:
            return Reason.UNKNOWN_FORM if click.is_form else Reason.UNKNOWN_BUTTON
        return self._policy.refusal(tx.request, click.actor, click.kind, tx.now, membership)

    def _decide(self, tx: Transaction, click: Click) -> Reason | None:
        refused_before = self._refused_before(tx, click)
        if refused_before is not None:
            return refused_before
        membership = self._groups.membership()
        refusal = self._click_refusal(tx, click, membership)
        if refusal is not None and _is_repeated(tx.request, click):
            return None
        if refusal is None and click.is_form and click.kind is not None:
            refusal = reason_fault(click.kind, click.reason)
        if refusal is not None:
            return self._refuse_click(tx, click, refusal, membership)
        assert click.kind is not None
        if not (click.kind is DecisionKind.APPROVE and _locked(tx).has_approved(click.actor.id)):
            tx.decide(click.kind, click.actor, reason=click.reason)
        if click.kind is DecisionKind.APPROVE:
            self._count_approvals(tx, click, membership)
        else:
            denies = click.kind is DecisionKind.DENY
            tx.move(
                Action.REQUEST_DENIED if denies else Action.REQUEST_WITHDRAWN,
                actor=click.actor,
                trigger_id=click.trigger_id,
                team_id=click.team_id or None,
                channel_id=click.channel_id or None,
                reason=click.reason or None,
                details=membership.to_json(self._policy.approvers) if denies else None,
                ended_at=tx.now,
            )
        self._adopt(tx, click)
        return None

    def _count_approvals(self, tx: Transaction, click: Click, membership: Membership) -> None:
        """The approval is recorded: move the request if it is the last that was needed, else write that down."""
        request = _locked(tx)
        counting = tuple(each.actor.id for each in self._policy.counting(request, membership))
        approved = [each.actor.id for each in request.decided(DecisionKind.APPROVE)]
        not_counted = tuple(person_id for person_id in approved if person_id not in counting)
        details: dict[str, Json] = {
            "order": _order_json(request.order_now),
            "looked_at": timestamp(request.looked_at) if request.looked_at else None,
            "requester": request.requester.id,
            "approvals": list(counting),
            "approvals_required": request.approvals_required,
            **ids_json("approvers", request.approvers),
            **membership.to_json(self._policy.approvers),
        }
        if not_counted:
            details["not_counted"] = list(not_counted)
        if self._policy.is_enough(request, membership):
            tx.move(
                Action.REQUEST_APPROVED,
                actor=click.actor,
                trigger_id=click.trigger_id,
                team_id=click.team_id or None,
                channel_id=click.channel_id or None,
                reason=click.reason or None,
                due_in_s=0,
                details=details,
                not_counted=not_counted,
                order_approved=request.order_now,
                approved_at=tx.now,
                send_before=tx.now + self._send_within,
                attempts=0,
            )
            return
        tx.change(redraw=True, not_counted=not_counted)
        tx.record(
            Action.APPROVAL_RECORDED,
            actor=click.actor,
            trigger_id=click.trigger_id,
            team_id=click.team_id or None,
            channel_id=click.channel_id or None,
            reason=click.reason or None,
            details=details,
        )

    @staticmethod
    def _refused_before(tx: Transaction, click: Click) -> Reason | None:
        """A form that is delivered again is answered as before, and written down once."""
        if not click.is_form or click.trigger_id is None:
            return None
        return tx.refusal_of_trigger(click.trigger_id)

    def _refuse_click(self, tx: Transaction, click: Click, refusal: Reason, membership: Membership) -> Reason:
        details: dict[str, Json] = {"reason": refusal.value, "kind": click.kind.value if click.kind else None}
        if click.kind in JUDGED_BY_LISTS:
            details |= membership.to_json(self._policy.approvers)
        if tx.request is None:
            details["unknown_request_id"] = click.request_id
        tx.record(
            Action.APPROVAL_REFUSED,
            actor=click.actor,
            outcome=Outcome.REFUSED,
            details=details,
            trigger_id=click.trigger_id,
            team_id=click.team_id or None,
            channel_id=click.channel_id or None,
            reason=click.reason or None,
        )
        if not click.is_form:
            tx.tell(
                Notice(
                    kind=NoticeKind.CLICK_REFUSED,
                    reason=refusal,
                    user_id=click.actor.id,
                    channel_id=click.channel_id,
                    response_url=click.response_url,
                )
            )
        self._adopt_or_redraw(tx, click)
        return refusal

    def _adopt_or_redraw(self, tx: Transaction, click: Click) -> None:
        """See to it that the card that was clicked shows the truth, though the click has changed nothing."""
        request = tx.request
        has_moved_on = request is not None and request.state is not State.PENDING
        if has_moved_on and click.message_ts is not None and click.message_ts == _locked(tx).card_ts:
            tx.change(redraw=True)
        self._adopt(tx, click)

    def _adopt(self, tx: Transaction, click: Click) -> None:
        """Take the card that was clicked for the request's, if Slack kept us from knowing it; redraw another one."""
        request = tx.request
        if request is None or click.message_ts is None:
            return
        if request.card_ts is None:
            self._tell_where_card_is(tx)
            tx.change(redraw=True, card_channel_id=click.channel_id, card_ts=click.message_ts)
            details: dict[str, Json] = {"ts": click.message_ts, "seen_in": "click"}
            tx.record(Action.CARD_POSTED, details=details)
        elif click.message_ts != request.card_ts:
            tx.tell(
                Notice(
                    kind=NoticeKind.REDRAW,
                    user_id=click.actor.id,
                    channel_id=click.channel_id,
                    message_ts=click.message_ts,
                )
            )

    def _is_written(self, click: Click, decided: CancelRequest | None) -> bool:
        """Whether the database holds the decision, and the move that it made, if any."""
        request = self._store.read(click.request_id) if click.request_id is not None else None
        if request is None or decided is None or click.kind is None:
            return False
        is_recorded = any(each.actor.id == click.actor.id for each in request.decided(click.kind))
        return is_recorded and (decided.state is State.PENDING or request.state is not State.PENDING)

    @staticmethod
    def _read_again(read: Callable[[], T]) -> T:
        try:
            return read()
        except StoreError as error:
            raise CommitInDoubt(str(error)) from None

    # The exchange's lane

    def advance(self, request_id: int) -> float | None:
        """Do what is due at the exchange; returns in how many seconds to be called again, or None. Raises StoreError.

        A lane that somebody else holds is left to them.
        """
        held_s = self._hold_of(request_id)
        if held_s is not None:
            return held_s
        began_at = self._monotonic()
        with self._taken(request_id, Lane.EXCHANGE) as taken:
            if taken is None:
                return None
            begun = self._begin(taken, began_at=began_at)
        return self._work(taken.lease, lambda: self._take_steps(taken.lease, begun))

    def may_look(self) -> bool:
        """False for the rest of a second whose looks are used up. A longer hold is none: time-outs go on in a ban."""
        return not 0 < self._exchange.hold_s("GET") <= SHORT_HOLD_S

    def _hold_of(self, request_id: int) -> float | None:
        """For how long to leave the request as it is, since Upbit's rate limit keeps its call back; None to go on."""
        if self.may_look():
            return None
        request = self._store.read(request_id)
        if request is None or request.state is State.PENDING or request.state in ENDED_STATES:
            return None
        held_s = self._exchange.hold_s("DELETE" if request.state is State.APPROVED else "GET")
        now_s = self._monotonic()
        if len(self._held_since) >= MAX_KEPT:
            self._held_since.clear()
        is_long = now_s - self._held_since.setdefault(request_id, now_s) >= LONGEST_HOLD_S
        if is_long:
            del self._held_since[request_id]
        return held_s if 0 < held_s <= SHORT_HOLD_S and not is_long else None

    def _begin(self, taken: Taken, *, began_at: float) -> "Step | _Announced":
        """Where nobody has to be asked first, the first step is committed with the lease."""
        if taken.request.state is not State.APPROVED:
            return Step(request=taken.request, due_in_s=0.0)
        with taken.transaction() as tx:
            return self._announce(tx, began_at=began_at)

    def _take_steps(self, lease: Lease, begun: "Step | _Announced") -> "Step":
        step = begun if isinstance(begun, Step) else self._send_announced(lease, begun)
        for _ in range(MAX_STEPS):
            if step.due_in_s != 0.0:
                break
            step = self._step(lease, step.request)
        return step

    @contextmanager
    def _taken(self, request_id: int, lane: Lane) -> Iterator[Taken | None]:
        """Take the lane; None where somebody else holds it."""
        taken: Taken | None = None
        try:
            with self._store.lease(request_id, lane, kept=self._kept.get((request_id, lane))) as taken:
                yield taken
        except CommitInDoubt:
            if taken is not None:
                self._keep(taken.lease)
            raise
        self._kept.pop((request_id, lane), None)

    def _work(self, lease: Lease, work: Callable[[], "Step"]) -> float | None:
        """Work in the lane that was taken, and give it back; None where somebody else has taken it over."""
        try:
            done = work()
        except Overtaken:
            return None
        except StoreError:
            # What Slack was told and could not be written down would be told again at once: there the lease runs out.
            if lease.lane is Lane.EXCHANGE:
                self._keep(lease)
            raise
        try:
            return self._store.release(lease, due_in_s=done.due_in_s, seen_revision=done.request.revision)
        except StoreError:
            self._keep(lease)
            raise

    def _keep(self, lease: Lease) -> None:
        if len(self._kept) < MAX_KEPT:
            self._kept[lease.request_id, lease.lane] = lease

    def _step(self, lease: Lease, request: CancelRequest) -> "Step":
        match request.state:
            case State.REQUESTED:
                return self._open(lease, request)
            case State.PENDING:
                return self._wait(lease)
            case State.APPROVED:
                return self._send(lease)
            case State.SENDING | State.ACCEPTED | State.UNRESOLVED:
                return self._look(lease, request)
            case _:
                return Step(request=request, due_in_s=None)

    def _open(self, lease: Lease, request: CancelRequest) -> "Step":
        """requested: read the order; ask for approval, or say why not."""
        least = Requirement(approvals=self._policy.approvals_required)
        membership = self._groups.membership()
        too_few = self._policy.opening_refusal(request.requester, approvals=least.approvals, membership=membership)
        if too_few is not None:
            return self._turn_away(lease, request, too_few, membership=membership, needed=least)
        answer = self._exchange.get_order(request.order_uuid)
        match answer:
            case Found(order=order):
                reason = refusal_of(order)
                if reason is not None:
                    return self._refuse(lease, reason, order=order, answer=answer)
                needed = self._policy.requirement(order)
                membership = self._groups.membership()
                too_few = self._policy.opening_refusal(
                    request.requester, approvals=needed.approvals, membership=membership
                )
                if too_few is not None:
                    return self._turn_away(
                        lease, request, too_few, membership=membership, order=order, answer=answer, needed=needed
                    )
                prices = self._quotations.best_prices(order.market)
                return self._ask(lease, answer, needed, membership=membership, prices=prices)
            case Refused(name="order_not_found"):
                return self._refuse(lease, Reason.ORDER_NOT_FOUND, answer=answer)
            case Refused(name="out_of_scope"):
                return self._refuse(lease, Reason.KEY_LACKS_VIEW, answer=answer)
            case Refused(retry_after_s=None, name=name) if name != "nonce_used":
                return self._refuse(lease, Reason.EXCHANGE_REFUSED, answer=answer, cause=name)
            case Refused() | NotSent() | Unknown():
                return self._read_later(lease, request, answer)
            case _:
                assert_never(answer)

    def _turn_away(  # noqa: PLR0913 - one event has that many facts
        self,
        lease: Lease,
        request: CancelRequest,
        reason: Reason,
        *,
        membership: Membership,
        needed: Requirement,
        order: Order | None = None,
        answer: LookAnswer | None = None,
    ) -> "Step":
        """Too few may approve: refuse, or wait for a while where that is because groups have not been read."""
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            waited = tx.now - request.created_at
            if reason is not Reason.MEMBERSHIP_UNKNOWN or waited >= UNREACHABLE_AFTER:
                refused = self._move_to_refused(
                    tx, reason, order=order, answer=answer, needed=needed, membership=membership
                )
                return Step(request=refused, due_in_s=None)
            if waited >= SLOW_AFTER:
                self._tell_to_wait(tx, NoticeKind.STILL_ASKING_WHO_MAY)
            request = _locked(tx)
        gap_s = _gap(READING_GAPS_S, request.attempts, READING_GAP_S)
        return Step(request=request, due_in_s=min(gap_s, (UNREACHABLE_AFTER - waited).total_seconds()))

    def _ask(
        self,
        lease: Lease,
        answer: Found,
        needed: Requirement,
        *,
        membership: Membership,
        prices: BestPrices | NoPrices,
    ) -> "Step":
        order = answer.order
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            request = _locked(tx)
            approvers = self._policy.approvers_of(request.requester, membership)
            quote, quote_json = _frozen(prices, tx.now)
            opened = tx.move(
                Action.REQUEST_OPENED,
                details={
                    "order": _order_json(order),
                    **_needed_json(needed, order),
                    **ids_json("approvers", approvers),
                    **membership.to_json(self._policy.approvers),
                    "quote": quote_json,
                    "call": _call_json(answer.call),
                },
                order=order,
                quote=quote,
                order_now=order,
                looked_at=tx.now,
                unseen_since=None,
                approvals_required=needed.approvals,
                approval_rule=needed.rule,
                approvers=approvers,
                opened_at=tx.now,
                refresh_at=tx.now + self._refresh_every,
                expires_at=tx.now + self._approval_ttl,
                attempts=0,
            )
            return Step(request=opened, due_in_s=_wait_s(opened, tx.now))

    def _refuse(
        self,
        lease: Lease,
        reason: Reason,
        *,
        order: Order | None = None,
        answer: LookAnswer | None = None,
        cause: str | None = None,
    ) -> "Step":
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            refused = self._move_to_refused(tx, reason, order=order, answer=answer, cause=cause)
            return Step(request=refused, due_in_s=None)

    def _move_to_refused(  # noqa: PLR0913 - one event has that many facts
        self,
        tx: Transaction,
        reason: Reason,
        *,
        order: Order | None = None,
        answer: LookAnswer | None = None,
        cause: str | None = None,
        needed: Requirement | None = None,
        membership: Membership = UNREAD,
    ) -> CancelRequest:
        request = _locked(tx)
        details: dict[str, Json] = {"reason": reason.value}
        if cause is not None:
            details["error"] = cause
        if order is not None:
            details["order"] = _order_json(order)
        if answer is not None:
            details["call"] = _call_json(answer.call)
        frozen: dict[str, Any] = {}
        if needed is not None:
            approvers = self._policy.approvers_of(request.requester, membership)
            details |= {**_needed_json(needed, order), **ids_json("approvers", approvers)}
            details |= membership.to_json(self._policy.approvers)
            frozen = {
                "approvals_required": needed.approvals,
                "approval_rule": needed.rule,
                "approvers": approvers,
            }
        refused = tx.move(
            Action.REQUEST_REFUSED,
            outcome=Outcome.REFUSED,
            details=details,
            cause=reason.value if cause is None else f"{reason.value}:{cause}",
            said=_sentence_of(answer),
            order_now=order or request.order_now,
            response_url=None,
            ended_at=tx.now,
            **frozen,
        )
        tx.tell(
            Notice(
                kind=NoticeKind.REQUEST_REFUSED,
                reason=reason,
                user_id=request.requester.id,
                channel_id=request.channel_id,
                response_url=_usable_response_url(request, tx.now),
            )
        )
        return refused

    def _read_later(self, lease: Lease, request: CancelRequest, answer: Refused | NotSent | Unknown) -> "Step":
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            waited = tx.now - request.created_at
            if waited >= UNREACHABLE_AFTER:
                cause = _cause_of(answer)
                refused = self._move_to_refused(tx, Reason.EXCHANGE_UNREACHABLE, answer=answer, cause=cause)
                return Step(request=refused, due_in_s=None)
            self._record_unseen(tx, answer)
            if waited >= SLOW_AFTER:
                self._tell_to_wait(tx, NoticeKind.STILL_READING)
            request = _locked(tx)
        wait_s = max(_gap(READING_GAPS_S, request.attempts, READING_GAP_S), _retry_after_s(answer))
        return Step(request=request, due_in_s=min(wait_s, (UNREACHABLE_AFTER - waited).total_seconds()))

    @staticmethod
    def _tell_to_wait(tx: Transaction, kind: NoticeKind) -> None:
        request = _locked(tx)
        tx.tell(
            Notice(
                kind=kind,
                user_id=request.requester.id,
                channel_id=request.channel_id,
                response_url=request.response_url,
            )
        )

    def _wait(self, lease: Lease) -> "Step":
        """pending: until somebody decides or the time is over. Whose lane was woken before that is to be looked at."""
        step = self._expire(lease)
        if step.request.state is not State.PENDING or step.due_in_s is None:
            return step
        held_s = self._exchange.hold_s("GET")
        if held_s > 0:
            return Step(request=step.request, due_in_s=min(held_s, step.due_in_s))
        answer = self._exchange.get_order(step.request.order_uuid)
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            request = _locked(tx)
            if request.state is not State.PENDING:
                return Step(request=request, due_in_s=0.0)
            if not isinstance(answer, Found):
                self._miss(tx, answer)
            elif answer.order.is_done or answer.order.is_canceled:
                return Step(request=self._move_to_superseded(tx, answer), due_in_s=None)
            else:
                self._see(tx, answer)
            return Step(request=_locked(tx), due_in_s=max(0.0, _wait_s(_locked(tx), tx.now)))

    @staticmethod
    def _move_to_superseded(tx: Transaction, answer: Found) -> CancelRequest:
        reason = Reason.ALREADY_DONE if answer.order.is_done else Reason.ALREADY_CANCELED
        return tx.move(
            Action.REQUEST_SUPERSEDED,
            details={
                "reason": reason.value,
                "order": _order_json(answer.order),
                "call": _call_json(answer.call),
            },
            cause=reason.value,
            order_now=answer.order,
            looked_at=tx.now,
            unseen_since=None,
            ended_at=tx.now,
        )

    @staticmethod
    def _see(tx: Transaction, answer: Found) -> None:
        """The order is as it was, or has moved: then the card shows it as it is now."""
        request, order = _locked(tx), answer.order
        seen: dict[str, Any] = {"order_now": order, "looked_at": tx.now, "unseen_since": None}
        if order == request.order_now:
            tx.change(redraw=request.unseen_since is not None, **seen)
            return
        details: dict[str, Json] = {"order": _order_json(order), "call": _call_json(answer.call)}
        tx.record(Action.ORDER_CHANGED, details=details, redraw=True, **seen)

    def _miss(self, tx: Transaction, answer: Refused | Unknown | NotSent) -> None:
        """Upbit does not show the order. That concludes nothing; but who decides shall know it, and it is told once."""
        if not isinstance(answer, NotSent) and not _retry_after_s(answer):
            self._record_unseen(tx, answer, redraw=True)

    @staticmethod
    def _record_unseen(tx: Transaction, answer: Refused | Unknown | NotSent, *, redraw: bool = False) -> None:
        """Once until it is seen again: an exchange that is away must not fill the audit. To be told to wait is none."""
        if _locked(tx).unseen_since is not None or _is_told_to_wait(answer):
            return
        tx.record(
            Action.ORDER_UNSEEN,
            outcome=Outcome.UNKNOWN,
            details={"error": _cause_of(answer), "call": _call_json(answer.call)},
            redraw=redraw,
            unseen_since=tx.now,
        )

    def _expire(self, lease: Lease) -> "Step":
        """pending: over, if its time is."""
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            request = _locked(tx)
            if request.state is not State.PENDING:
                return Step(request=request, due_in_s=0.0)
            assert request.expires_at is not None
            if tx.now < request.expires_at:
                self._remind(tx)
                return Step(request=_locked(tx), due_in_s=_wait_s(_locked(tx), tx.now))
            expired = tx.move(Action.REQUEST_EXPIRED, details={"reason": Reason.EXPIRED.value}, ended_at=tx.now)
        return Step(request=expired, due_in_s=None)

    def _remind(self, tx: Transaction) -> None:
        """pending: write down that the reminder is sent, and leave it to Slack's threads, if it is due now."""
        request = _locked(tx)
        window = reminder_window(request)
        may_still_approve = self._policy.may_still_approve(request, self._groups.membership())
        if window is None or not window.begins_at <= tx.now < window.ends_at:
            return
        if request.card_ts is None or request.card_channel_id is None or not may_still_approve:
            return
        tx.tell(
            Notice(
                kind=NoticeKind.REMINDER,
                user_id=request.requester.id,
                channel_id=request.card_channel_id,
                not_after=window.ends_at,
            )
        )
        details: dict[str, Json] = {"may_still_approve": list(may_still_approve)}
        tx.record(Action.REMINDER_SENT, details=details, reminded_at=tx.now)

    def _send(self, lease: Lease) -> "Step":
        """approved: commit that it is being sent, then send it once."""
        began_at = self._monotonic()
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            announced = self._announce(tx, began_at=began_at)
        return announced if isinstance(announced, Step) else self._send_announced(lease, announced)

    def _announce(self, tx: Transaction, *, began_at: float) -> "Step | _Announced":
        """approved: write down that it is being sent, in a transaction that began at `began_at` or later."""
        request = _locked(tx)
        if request.state is not State.APPROVED:
            return Step(request=request, due_in_s=0.0)
        assert request.send_before is not None
        left_s = (request.send_before - tx.now).total_seconds()
        if left_s <= 0:
            return Step(request=self._move_to_lapsed(tx), due_in_s=None)
        held_s = self._exchange.hold_s("DELETE")
        if held_s > 0:
            return Step(request=request, due_in_s=min(held_s, left_s))
        call = self._exchange.cancel_call(request.order_uuid, nonce=self._new_nonce())
        sending = tx.move(
            Action.CANCEL_SENT,
            details={
                "method": call.method,
                "path": call.path,
                "uuid": request.order_uuid,
                "nonce": call.nonce,
                "query_hash": call.query_hash,
                "attempt": request.sends + 1,
                "order": _order_json(request.order_now),
                "looked_at": timestamp(request.looked_at) if request.looked_at else None,
            },
            sends=request.sends + 1,
            unanswered=request.unanswered + 1,
            sent_at=tx.now,
            doubt=None,
        )
        return _Announced(request=sending, call=call, not_after=began_at + SEND_GRACE_S)

    def _send_announced(self, lease: Lease, announced: "_Announced") -> "Step":
        answer = self._cancel(announced)
        try:
            return self._record_answer(lease, answer)
        except Overtaken:
            self._record_late(lease.request_id, answer)
            raise

    def _cancel(self, announced: "_Announced") -> CancelAnswer:
        if self._monotonic() > announced.not_after:
            # The process stood still; by now somebody else may have concluded something.
            return NotSent(cause="stalled", call=announced.call, retry_after_s=0.0)
        return self._exchange.cancel_order(announced.request.order_uuid, nonce=announced.call.nonce)

    @staticmethod
    def _move_to_lapsed(tx: Transaction) -> CancelRequest:
        return tx.move(
            Action.REQUEST_LAPSED,
            outcome=Outcome.FAILED,
            details={"reason": Reason.TOO_LATE_TO_SEND.value},
            cause=Reason.TOO_LATE_TO_SEND.value,
            ended_at=tx.now,
        )

    def _record_answer(self, lease: Lease, answer: CancelAnswer) -> "Step":
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            request = _locked(tx)
            answered: dict[str, Any] = {"unanswered": request.unanswered - 1}
            details: dict[str, Json] = {"call": _call_json(answer.call)}
            match answer:
                case Accepted(order=order):
                    moved = tx.move(
                        Action.CANCEL_ACCEPTED,
                        details={**details, "order": _order_json(order)},
                        accepted_at=tx.now,
                        order_now=order,
                        looked_at=tx.now,
                        attempts=0,
                        **answered,
                    )
                    return Step(request=moved, due_in_s=LOOK_GAPS_S[0])
                case NotSent():
                    return self._send_later(tx, answer, details)
                case Refused(retry_after_s=retry_after_s) if retry_after_s is not None:
                    return self._send_later(tx, answer, details)
                case Refused(proves_nothing_happened=True, name=name) if request.unanswered == 1:
                    answered["said"] = _sentence_of(answer)
                    return Step(request=self._move_to_rejected(tx, name, details, **answered), due_in_s=None)
                case Refused(name=name):
                    tx.record(
                        Action.CANCEL_DOUBTED,
                        outcome=Outcome.UNKNOWN,
                        details={**details, "error": name},
                        doubt=name,
                        said=_sentence_of(answer),
                        attempts=0,
                        **answered,
                    )
                case Unknown(cause=cause):
                    tx.record(
                        Action.CANCEL_UNANSWERED,
                        outcome=Outcome.UNKNOWN,
                        details={**details, "error": cause},
                        attempts=0,
                    )
                case _:
                    assert_never(answer)
            return Step(request=_locked(tx), due_in_s=LOOK_GAPS_S[0])

    def _send_later(self, tx: Transaction, answer: NotSent | Refused, details: dict[str, Json]) -> "Step":
        """It surely did nothing: back to approved, to be sent again while there is time."""
        request = _locked(tx)
        cause = answer.cause if isinstance(answer, NotSent) else answer.name
        approved = tx.move(
            Action.CANCEL_UNSENT,
            outcome=Outcome.FAILED,
            details={**details, "error": cause},
            sends=request.sends - 1,
            unanswered=request.unanswered - 1,
            cause=cause,
        )
        assert request.send_before is not None
        wait_s = max(_gap(SEND_GAPS_S, request.attempts, SEND_GAP_S), _retry_after_s(answer))
        left_s = (request.send_before - tx.now).total_seconds()
        return Step(request=approved, due_in_s=max(0.001, min(wait_s, left_s)))

    @staticmethod
    def _move_to_rejected(tx: Transaction, name: str, details: dict[str, Json], **changes: Any) -> CancelRequest:
        return tx.move(
            Action.CANCEL_REJECTED,
            outcome=Outcome.REFUSED,
            details={**details, "error": name},
            cause=name,
            ended_at=tx.now,
            **changes,
        )

    def _record_late(self, request_id: int, answer: CancelAnswer) -> None:
        """The lease was lost while the exchange answered: the looks decide, but what it said is evidence."""
        with self._store.transaction(request_id) as tx:
            details: dict[str, Json] = {"call": _call_json(answer.call), "answer": type(answer).__name__.lower()}
            proof: dict[str, Any] = {}
            if isinstance(answer, Accepted):
                details["order"] = _order_json(answer.order)
                proof["accepted_at"] = tx.now
            else:
                details["error"] = _cause_of(answer)
            tx.record(
                Action.CANCEL_ANSWERED_LATE,
                outcome=Outcome.UNKNOWN if isinstance(answer, Unknown) else Outcome.OK,
                details=details,
                **proof,
            )

    def _look(self, lease: Lease, request: CancelRequest) -> "Step":
        """sending, accepted, unresolved: only the order itself tells what happened."""
        answer = self._exchange.get_order(request.order_uuid)
        with self._store.transaction(lease.request_id, lease=lease) as tx:
            request = _locked(tx)
            if request.state not in {State.SENDING, State.ACCEPTED, State.UNRESOLVED}:
                return Step(request=request, due_in_s=0.0)
            if isinstance(answer, Found):
                return self._conclude(tx, answer)
            self._record_unseen(tx, answer)
            return self._doubt(tx, answer.call, wait_s=_retry_after_s(answer))

    def _conclude(self, tx: Transaction, answer: Found) -> "Step":
        request, order = _locked(tx), answer.order
        details: dict[str, Json] = {"order": _order_json(order), "call": _call_json(answer.call)}
        seen: dict[str, Any] = {"order_now": order, "looked_at": tx.now, "unseen_since": None}
        if order.is_canceled:
            by = request.whose_cancel()
            details["by"] = by.value
            moved = tx.move(Action.ORDER_CANCELED, details=details, canceled_by=by.value, ended_at=tx.now, **seen)
            return Step(request=moved, due_in_s=None)
        if order.is_done:
            return Step(request=tx.move(Action.ORDER_FILLED, details=details, ended_at=tx.now, **seen), due_in_s=None)
        if order.is_open:
            moved_on = self._conclude_open(tx, details, seen)
            if moved_on is not None:
                return moved_on
        if order != request.order_now:
            tx.change(redraw=True, **seen)
        elif request.unseen_since is not None:
            tx.change(unseen_since=None)
        return self._doubt(tx, answer.call, wait_s=0.0)

    def _conclude_open(self, tx: Transaction, details: dict[str, Json], seen: dict[str, Any]) -> "Step | None":
        """What an open order proves by now, or None if it proves nothing yet."""
        request = _locked(tx)
        assert request.sent_at is not None
        since = tx.now - request.sent_at
        if request.state is State.UNRESOLVED and since >= FAILED_AFTER and request.attempts >= FAILED_AFTER_LOOKS:
            failed = tx.move(
                Action.CANCEL_FAILED,
                outcome=Outcome.FAILED,
                details={**details, "reason": Reason.STILL_OPEN.value},
                cause=Reason.STILL_OPEN.value,
                ended_at=tx.now,
                **seen,
            )
            return Step(request=failed, due_in_s=None)
        if request.state is not State.SENDING:
            return None
        if request.doubt is not None and not request.unanswered:
            is_settled = since >= DOUBT_SETTLES_AFTER and request.attempts >= DOUBT_SETTLES_AFTER_LOOKS
            if not is_settled:
                return None
            return Step(request=self._move_to_rejected(tx, request.doubt, details, **seen), due_in_s=None)
        assert request.send_before is not None
        may_send_again = request.sends < MAX_SENDS and tx.now < request.send_before
        if may_send_again and since >= LOST_ANSWER_SETTLES_AFTER:
            return Step(request=tx.move(Action.ORDER_OPEN, details=details, attempts=0, **seen), due_in_s=0.0)
        return None

    @staticmethod
    def _doubt(tx: Transaction, call: Call, *, wait_s: float) -> "Step":
        """Still nothing certain: look again later, and call people once it has lasted."""
        request = _locked(tx)
        assert request.sent_at is not None
        since = tx.now - request.sent_at
        was_set_back = since < timedelta(0)
        has_lasted = request.attempts >= UNRESOLVED_AFTER_LOOKS if was_set_back else since >= UNRESOLVED_AFTER
        if request.state is not State.UNRESOLVED and has_lasted:
            unresolved = tx.move(
                Action.OUTCOME_UNRESOLVED,
                outcome=Outcome.UNKNOWN,
                details={
                    "reason": Reason.NOTHING_CERTAIN.value,
                    "order": _order_json(request.order_now),
                    "call": _call_json(call),
                },
                attempts=0,
            )
            return Step(request=unresolved, due_in_s=max(UNRESOLVED_GAPS_S[0], wait_s))
        if request.state is State.UNRESOLVED:
            gap_s = _gap(UNRESOLVED_GAPS_S, request.attempts + 1, UNRESOLVED_GAP_S)
        else:
            gap_s = _gap(LOOK_GAPS_S, request.attempts + 1, LOOK_GAP_S)
        return Step(request=request, due_in_s=max(gap_s, wait_s))

    # The orders of pending requests

    def refresh(self) -> float | None:
        """Look again at up to a hundred orders of pending requests; returns when to be called again if more are due.

        What the list says is a hint: an order that it shows moved, or does not show, is looked at by itself, under the
        lease of its lane, and only that look concludes anything. Raises StoreError.
        """
        held_s = self._exchange.hold_s("GET")
        if held_s > 0:
            return held_s
        watched = self._store.take_refresh(limit=REFRESH_ORDERS, again_in_s=self._refresh_every.total_seconds())
        if not watched:
            return None
        answer = self._exchange.get_orders([each.order_uuid for each in watched])
        held_s = self._exchange.hold_s("GET")
        if isinstance(answer, FoundOrders):
            self._refresh_failed = False
        elif held_s > 0:
            self._store.refresh_again([each.request_id for each in watched])
            return held_s
        else:
            self._record_failed_refresh(answer)
        if isinstance(answer, FoundOrders) or (isinstance(answer, Unknown) and answer.cause in UNREADABLE):
            self._take_in(watched, answer.orders if isinstance(answer, FoundOrders) else ())
        return REFRESH_REST_S

    def _take_in(self, watched: Sequence[Watched], orders: Sequence[Order]) -> None:
        seen = {order.uuid: order for order in orders}
        unchanged = [each.request_id for each in watched if each.is_as_before(seen.get(each.order_uuid))]
        if unchanged:
            self._store.saw_unchanged(unchanged)
        others = [each.request_id for each in watched if not each.is_as_before(seen.get(each.order_uuid))]
        looked = 0
        for request_id in others[:REFRESH_LOOKS]:
            if self._exchange.hold_s("GET") > 0:
                break
            self._store.wake(request_id)
            self.advance(request_id)
            looked += 1
        if others[looked:]:
            self._store.refresh_again(others[looked:])

    def _record_failed_refresh(self, answer: Refused | Unknown | NotSent) -> None:
        """Once, until a refresh succeeds: an exchange that is away must not fill the audit."""
        if self._refresh_failed:
            return
        with self._store.transaction() as tx:
            tx.record(
                Action.REFRESH_FAILED,
                outcome=Outcome.FAILED,
                details={"error": _cause_of(answer), "call": _call_json(answer.call)},
            )
        self._refresh_failed = True

    # Slack's lane

    def show(self, request_id: int) -> float | None:
        """Bring the card and its thread to what the row says; returns when to be called again. Raises StoreError."""
        with self._taken(request_id, Lane.SLACK) as taken:
            if taken is None:
                return None
        return self._work(taken.lease, lambda: self._draw_or_wait(taken.request))

    def _draw_or_wait(self, request: CancelRequest) -> "Step":
        # Nothing here asks for the lease again: what Slack has taken is true, whoever has the lane by then.
        try:
            self._draw(request)
        except TryLater as error:
            wait_s = error.retry_after_s or _gap(SLACK_GAPS_S, request.card_attempts, SLACK_GAP_S)
            return Step(request=request, due_in_s=wait_s)
        return Step(request=request, due_in_s=None)

    def _draw(self, request: CancelRequest) -> None:
        if request.state in {State.REQUESTED, State.REFUSED}:
            return
        if request.card_ts is None:
            try:
                posted = self._messenger.post_card(request)
            except CannotPost as error:
                self._give_up_card(request.id, error)
                return
            with self._store.transaction(request.id) as tx:
                known = _locked(tx)
                is_the_card = known.card_ts in {None, posted.ts}  # known already where a click on it came first
                if is_the_card:
                    self._tell_where_card_is(tx)
                    tx.change(card_channel_id=posted.channel_id, card_ts=posted.ts, response_url=None)
                if known.card_ts is None:
                    tx.record(Action.CARD_POSTED, details=_posted_json(posted))
            if not is_the_card:
                # Posted twice, by a process that stood still: what was said is in the other card's thread.
                self._redraw(replace(known, card_channel_id=posted.channel_id, card_ts=posted.ts))
                return
            request = replace(request, card_channel_id=posted.channel_id, card_ts=posted.ts)
            self._redraw(request)
        elif request.card_shown_revision < request.revision:
            self._redraw(request)
        if request.state in VERDICT_STATES and request.said_state is not request.state:
            self._say(request)

    @staticmethod
    def _tell_where_card_is(tx: Transaction) -> None:
        """Who asked does not see the card where they typed the command, if it goes elsewhere."""
        request = _locked(tx)
        if request.is_card_elsewhere:
            tx.tell(
                Notice(
                    kind=NoticeKind.CARD_ELSEWHERE,
                    user_id=request.requester.id,
                    channel_id=request.channel_id,
                    response_url=_usable_response_url(request, tx.now),
                )
            )

    def _redraw(self, request: CancelRequest) -> None:
        assert request.card_channel_id is not None
        assert request.card_ts is not None
        # A card that Slack will not let us draw any more is a pity; the thread still tells, and the row is the truth.
        with suppress(CannotPost):
            self._messenger.redraw_card(request, channel_id=request.card_channel_id, ts=request.card_ts)

    def _give_up_card(self, request_id: int, error: CannotPost) -> None:
        """Nobody can see the card, so nobody could approve: a pending request ends here."""
        with self._store.transaction(request_id) as tx:
            request = _locked(tx)
            if request.card_ts is None and request.state is State.PENDING:
                self._move_to_refused(tx, Reason.CANNOT_POST, cause=error.error)
            elif request.state in VERDICT_STATES:
                self._record_said(tx, request, error=error.error)

    def _say(self, request: CancelRequest) -> None:
        posted: Posted | None = None
        error = None
        try:
            posted = self._messenger.post_verdict(request)
        except CannotPost as refusal:
            error = refusal.error
        with self._store.transaction(request.id) as tx:
            self._record_said(tx, request, posted=posted, error=error)

    @staticmethod
    def _record_said(
        tx: Transaction, request: CancelRequest, *, posted: Posted | None = None, error: str | None = None
    ) -> None:
        details: dict[str, Json] = {"state": request.state.value}
        if posted is not None:
            details |= _posted_json(posted)
        if error is not None:
            details["error"] = error
            tx.tell(Notice(kind=NoticeKind.VERDICT, user_id=request.requester.id, channel_id=request.channel_id))
        tx.record(
            Action.SUMMARY_POSTED,
            outcome=Outcome.OK if error is None else Outcome.FAILED,
            details=details,
            said_state=request.state.value,
        )

    # Private lines

    def deliver(self, notice_id: int) -> float | None:
        """Tell one person what they are owed; returns when to be called again. Raises StoreError."""
        notice = self._store.lease_notice(notice_id)
        if notice is None:
            return None
        if notice.kind is NoticeKind.REMINDER:
            return self._post_reminder(notice)
        try:
            if notice.kind is NoticeKind.REDRAW:
                self._redraw_copy(notice)
            else:
                self._messenger.tell(notice)
        except CannotPost:
            self._store.finish_notice(notice, given_up=True)
            return None
        except TryLater as error:
            due_in_s = error.retry_after_s or _gap(SLACK_GAPS_S, notice.attempts, SLACK_GAP_S)
            self._store.postpone_notice(notice, due_in_s=due_in_s)
            return due_in_s
        self._store.finish_notice(notice, given_up=False)
        return None

    def _post_reminder(self, notice: Notice) -> float | None:
        """Once at most: it is finished before Slack is asked, and taken up again only if Slack surely did nothing."""
        request = notice.request
        people = self._policy.may_still_approve(request, self._groups.membership()) if request is not None else ()
        if request is None or request.state is not State.PENDING or not people:
            self._store.finish_notice(notice, given_up=True)
            return None
        if not self._store.finish_before(notice):
            return None
        try:
            self._messenger.post_reminder(request, may_still_approve=people)
        except CannotPost:
            self._store.finish_notice(notice, given_up=True)
        except TryLater as error:
            if error.nothing_done:
                due_in_s = error.retry_after_s or _gap(SLACK_GAPS_S, notice.attempts, SLACK_GAP_S)
                self._store.postpone_notice(notice, due_in_s=due_in_s)
                return due_in_s
        return None

    def _redraw_copy(self, notice: Notice) -> None:
        if notice.request is not None and notice.message_ts is not None:
            self._messenger.redraw_card(notice.request, channel_id=notice.channel_id, ts=notice.message_ts)


def settle(store: Store, request_id: int, *, verdict: Verdict, reason: str, actor: Actor) -> CancelRequest | None:
    """Write down what a named person found at Upbit. None if there is no such request.

    Raises IllegalTransition unless the request is unresolved, StoreError.
    """
    with store.transaction(request_id) as tx:
        if tx.request is None:
            return None
        return tx.move(
            Action.OUTCOME_SETTLED,
            actor=actor,
            details={"verdict": verdict.value, "reason": reason},
            settled_verdict=verdict.value,
            settled_by=actor.id,
            settled_reason=reason,
            ended_at=tx.now,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What one step of `advance` came to: the request as it is now, and when the next step is due.

    0 means at once, in the same call; None means never.
    """

    request: CancelRequest
    due_in_s: float | None


class _Announced(NamedTuple):
    """A DELETE whose sending is written down, and that nobody has sent yet."""

    request: CancelRequest
    call: Call
    not_after: float  #: on the process's own clock


def _is_repeated(request: CancelRequest | None, click: Click) -> bool:
    """Whether this very form has decided already, and its answer was lost."""
    if request is None or click.kind is None or not click.is_form:
        return False
    return any(
        (each.actor.id, each.actor.team_id, each.reason) == (click.actor.id, click.actor.team_id, click.reason)
        for each in request.decided(click.kind)
    )


def _locked(tx: Transaction) -> CancelRequest:
    request = tx.request
    assert request is not None
    return request


def _usable_response_url(request: CancelRequest, now: datetime) -> str | None:
    """The response_url of the command, as long as Slack takes it."""
    return request.response_url if now - request.created_at < RESPONSE_URL_LIFETIME else None


def _wait_s(request: CancelRequest, now: datetime) -> float:
    """pending: until the reminder is due, or else until the time is over."""
    assert request.expires_at is not None
    window = reminder_window(request)
    is_before = window is not None and now < window.begins_at
    return ((window.begins_at if window is not None and is_before else request.expires_at) - now).total_seconds()


def _gap(gaps_s: Sequence[float], attempt: int, last_s: float) -> float:
    return gaps_s[attempt] if attempt < len(gaps_s) else last_s


def _retry_after_s(answer: LookAnswer) -> float:
    retry_after_s = answer.retry_after_s if isinstance(answer, Refused | NotSent) else None
    return retry_after_s or 0.0


def _is_told_to_wait(answer: Refused | Unknown | NotSent) -> bool:
    """Whether Upbit's rate limit kept the look back, which says nothing about the order or about Upbit."""
    limits = {"rate_limited", "too_many_requests"}
    return not isinstance(answer, Unknown) and _cause_of(answer) in limits


def _cause_of(answer: Refused | Unknown | NotSent) -> str:
    """The machine word for why there is no order."""
    return answer.name if isinstance(answer, Refused) else answer.cause


def _sentence_of(answer: LookAnswer | CancelAnswer | None) -> str | None:
    """The exchange's own words, if it said any."""
    return (answer.message or None) if isinstance(answer, Refused) else None


def _order_json(order: Order | None) -> Json:
    return dict(order.to_json()) if order is not None else None


def _needed_json(needed: Requirement, order: Order | None) -> dict[str, Json]:
    """How many approvals, why so many, and the value that the rules were asked about."""
    value = remaining_value(order) if order is not None else None
    return {
        "approvals_required": needed.approvals,
        "approval_rule": str(needed.rule) if needed.rule is not None else None,
        "remaining_value": format(value, "f") if value is not None else None,
    }


def _frozen(prices: BestPrices | NoPrices, now: datetime) -> tuple[Quote | None, Json]:
    """What approvers are shown of the market, for the row and for the audit, which also keeps why there is nothing."""
    if isinstance(prices, NoPrices):
        return None, {"error": prices.cause}
    quote = Quote(bid=prices.bid, ask=prices.ask, quoted_at=now)
    return quote, dict(quote.to_json())


def _posted_json(posted: Posted) -> dict[str, Json]:
    return {"ts": posted.ts, "permalink": posted.permalink}


def _call_json(call: Call) -> Json:
    """The facts of a call, without those that it has not."""
    facts: dict[str, Json] = {
        "method": call.method,
        "path": call.path,
        "nonce": call.nonce,
        "query_hash": call.query_hash,
        "status": call.status,
        "error": call.error_name,
        "body": call.body,
        "remaining_req": call.remaining_req,
        "elapsed_ms": call.elapsed_ms,
    }
    return {name: value for name, value in facts.items() if value is not None}
