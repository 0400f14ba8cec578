"""One request to cancel one order, and the states it goes through.

    requested ── pending ── approved ── sending ── accepted ── canceled
        │           │        │   ↑         │ │         ├────── filled
        │           │        │   └─────────┘ │         └────── unresolved ── settled
        │           │        │   not sent,   │                     │
        │           │        │   or open     └ rejected            ├ canceled, filled
        │           │        └ lapsed                              └ failed
        │           └ denied, withdrawn, superseded, expired, refused (its card could not be posted)
        └ refused

A state names the last thing that is durably true, so it also says where to go on after a crash.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from bot.domain.audit import Action, Actor, Reason
from bot.domain.errors import IllegalTransition
from bot.domain.order import Order
from bot.domain.quote import Quote
from bot.domain.tiers import Tier
from bot.domain.witness import Witness


class State(StrEnum):
    REQUESTED = "requested"  #: recorded and acknowledged; the order has not been read yet
    PENDING = "pending"  #: waits for approval
    REFUSED = "refused"  #: nobody was asked: the order or the place does not allow it
    APPROVED = "approved"  #: may be sent
    DENIED = "denied"
    WITHDRAWN = "withdrawn"  #: who asked took it back
    SUPERSEDED = "superseded"  #: filled or canceled elsewhere before anybody approved
    EXPIRED = "expired"  #: nobody decided in time
    LAPSED = "lapsed"  #: approved, but not sent in time
    SENDING = "sending"  #: from here on it may have been sent; what came of it is not known
    ACCEPTED = "accepted"  #: Upbit took the cancel; the order is not canceled yet
    REJECTED = "rejected"  #: Upbit refused the cancel
    CANCELED = "canceled"  #: the exchange shows the order canceled
    FILLED = "filled"  #: the exchange shows the order fully executed
    UNRESOLVED = "unresolved"  #: not known; people are called, the bot goes on looking
    FAILED = "failed"  #: long after the last try the exchange still shows the order open
    SETTLED = "settled"  #: a named person looked and said what happened


OPEN_STATES: Final = frozenset({State.REQUESTED, State.PENDING, State.APPROVED, State.SENDING, State.ACCEPTED})
"""One order has at most one request in these states."""

TRANSITIONS: Final[Mapping[Action, tuple[frozenset[State], State]]] = {
    Action.REQUEST_CREATED: (frozenset(), State.REQUESTED),
    Action.REQUEST_OPENED: (frozenset({State.REQUESTED}), State.PENDING),
    Action.REQUEST_REFUSED: (frozenset({State.REQUESTED, State.PENDING}), State.REFUSED),
    Action.REQUEST_APPROVED: (frozenset({State.PENDING}), State.APPROVED),
    Action.REQUEST_DENIED: (frozenset({State.PENDING}), State.DENIED),
    Action.REQUEST_WITHDRAWN: (frozenset({State.PENDING}), State.WITHDRAWN),
    Action.REQUEST_SUPERSEDED: (frozenset({State.PENDING}), State.SUPERSEDED),
    Action.REQUEST_EXPIRED: (frozenset({State.PENDING}), State.EXPIRED),
    Action.REQUEST_LAPSED: (frozenset({State.APPROVED}), State.LAPSED),
    Action.CANCEL_SENT: (frozenset({State.APPROVED}), State.SENDING),
    Action.CANCEL_UNSENT: (frozenset({State.SENDING}), State.APPROVED),
    Action.CANCEL_ACCEPTED: (frozenset({State.SENDING}), State.ACCEPTED),
    Action.CANCEL_REJECTED: (frozenset({State.SENDING}), State.REJECTED),
    Action.ORDER_OPEN: (frozenset({State.SENDING}), State.APPROVED),
    Action.ORDER_CANCELED: (frozenset({State.SENDING, State.ACCEPTED, State.UNRESOLVED}), State.CANCELED),
    Action.ORDER_FILLED: (frozenset({State.SENDING, State.ACCEPTED, State.UNRESOLVED}), State.FILLED),
    Action.OUTCOME_UNRESOLVED: (frozenset({State.SENDING, State.ACCEPTED}), State.UNRESOLVED),
    Action.CANCEL_FAILED: (frozenset({State.UNRESOLVED}), State.FAILED),
    Action.OUTCOME_SETTLED: (frozenset({State.UNRESOLVED}), State.SETTLED),
}
"""Action -> (the states it may start from, the state it leads to). An action that is not here moves nothing."""

ENDED_STATES: Final = frozenset(State) - {source for sources, _ in TRANSITIONS.values() for source in sources}
"""Nothing leads out of these."""

VERDICT_STATES: Final = (ENDED_STATES - {State.REFUSED}) | {State.UNRESOLVED}
"""The states that the card's thread is told. A refused request has no thread: its requester is told privately."""


class DecisionKind(StrEnum):
    APPROVE = "approve"
    DENY = "deny"
    WITHDRAW = "withdraw"


class CanceledBy(StrEnum):
    """Whose cancel it was, as far as can be shown."""

    THIS_REQUEST = "this_request"  #: a DELETE of ours was accepted
    UNPROVEN = "unproven"  #: the answer to a DELETE of ours was lost, or a refusal that proves nothing


class Verdict(StrEnum):
    """What a person found at Upbit when the bot could not."""

    CANCELED = "canceled"
    FILLED = "filled"
    OPEN = "open"


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    kind: DecisionKind
    actor: Actor
    decided_at: datetime
    reason: str = ""  #: why, in their own words, where they said so


@dataclass(frozen=True, kw_only=True, slots=True)
class CancelRequest:
    """A row of `cancel_requests` with its decisions. Times are aware, in UTC, by the database's clock."""

    id: int  #: shown as #42
    order_uuid: str
    state: State
    requester: Actor
    reason: str
    team_id: str  #: the workspace where the command was typed
    channel_id: str  #: the channel where the command was typed
    trigger_id: str
    created_at: datetime
    approvals_channel_id: str | None = None  #: where its card goes, frozen with the command; None = where it was typed
    in_private: bool = True  #: asked where not everybody can read; True also where that is not known

    # Frozen when the request is opened
    order: Order | None = None  #: the order as approvers were shown it
    quote: Quote | None = None  #: what the market bid and asked then; None where that could not be told
    approvals_required: int = 1
    approval_rule: Tier | None = None  #: the rule that asks for so many; None where `APPROVALS_REQUIRED` does
    approvers: tuple[str, ...] = ()  #: ids of those who may approve
    opened_at: datetime | None = None
    expires_at: datetime | None = None

    decisions: tuple[Decision, ...] = ()
    not_counted: tuple[str, ...] = ()  #: ids of those whose approval did not count when the latest one came
    approved_at: datetime | None = None
    order_approved: Order | None = None  #: the order at the latest look before the last approval that was needed
    send_before: datetime | None = None  #: a DELETE that has not surely left by then is not sent any more

    # What is known of the cancel
    order_now: Order | None = None  #: the order at the latest look
    looked_at: datetime | None = None
    unseen_since: datetime | None = None  #: while it waits for approval: Upbit answers, and does not show the order
    sends: int = 0  #: DELETEs that may have left
    unanswered: int = 0  #: of these, those whose answer is not known
    sent_at: datetime | None = None  #: the last DELETE
    accepted_at: datetime | None = None  #: Upbit accepted one of our DELETEs
    doubt: str | None = None  #: Upbit's name for a refusal that proves nothing; a look decides
    cause: str | None = None  #: why it ended as it did: a Reason or Upbit's error name
    said: str | None = None  #: the exchange's own sentence to that
    canceled_by: CanceledBy | None = None
    settled_verdict: Verdict | None = None
    settled_by: str | None = None
    settled_reason: str | None = None
    ended_at: datetime | None = None

    # The worker's part
    revision: int = 0  #: counts the changes of this row
    attempts: int = 0  #: tries at the present step, for back-off
    next_attempt_at: datetime | None = None
    fence: int = 0

    # The card and the thread
    card_channel_id: str | None = None
    card_ts: str | None = None
    card_shown_revision: int = -1
    card_attempts: int = 0
    reminded_at: datetime | None = None  #: the one reminder in the thread was due, and was left to be posted
    said_state: State | None = None  #: the last verdict told in the thread
    witness_seq: int | None = None  #: the event that moved it into its latest verdict, of which the summary is witness
    witness_hash: str | None = None  #: that event's hash; both None before a verdict, and in rows of older versions
    response_url: str | None = None  #: until the first private answer has used it

    def after(self, action: Action) -> State:
        """The state that the action leads to. Raises IllegalTransition."""
        sources, target = TRANSITIONS.get(action, (frozenset(), self.state))
        if self.state not in sources:
            raise IllegalTransition(f"{action} of request {self.id} in state {self.state}")
        return target

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    @property
    def witness(self) -> Witness | None:
        """What its summary knows of the audit; None where there is nothing to know, or an older version moved it."""
        if self.state not in VERDICT_STATES or self.witness_seq is None or self.witness_hash is None:
            return None
        return Witness(seq=self.witness_seq, hash=self.witness_hash)

    @property
    def card_goes_to(self) -> str:
        """The channel that its card is posted in."""
        return self.approvals_channel_id or self.channel_id

    @property
    def is_card_elsewhere(self) -> bool:
        """Whether who typed the command does not see the card where they typed it."""
        return self.card_goes_to != self.channel_id

    @property
    def market(self) -> str | None:
        order = self.order_now or self.order
        return order.market if order else None

    def decided(self, kind: DecisionKind) -> tuple[Decision, ...]:
        return tuple(decision for decision in self.decisions if decision.kind is kind)

    def counted(self) -> tuple[Decision, ...]:
        """The approvals that counted when the latest one came."""
        return tuple(each for each in self.decided(DecisionKind.APPROVE) if each.actor.id not in self.not_counted)

    def may_be_seen_by(self, person_id: str, *, from_channel: str | None = None) -> bool:
        """Whether this person of our workspace may read what the request says, besides on its card.

        What was asked in public, everybody. What was asked in private, those who may act on it or have, and whoever is
        in the channel of the command or of the card, which typing there shows.
        """
        if not self.in_private:
            return True
        is_there = from_channel is not None and from_channel in {self.channel_id, self.card_channel_id}
        involved = {self.requester.id, *self.approvers, *(each.actor.id for each in self.decisions)}
        return is_there or person_id in involved

    def has_approved(self, person_id: str) -> bool:
        return any(each.actor.id == person_id for each in self.decided(DecisionKind.APPROVE))

    def whose_cancel(self) -> CanceledBy:
        """Whose cancel it was, now that the exchange shows the order canceled.

        A refusal does not prove that it was somebody else's: what refuses may stand before what cancels.
        """
        return CanceledBy.UNPROVEN if self.accepted_at is None else CanceledBy.THIS_REQUEST


def refusal_of(order: Order) -> Reason | None:
    """Why this order cannot be asked to be canceled, or None if it is open."""
    if order.is_open:
        return None
    if order.is_done:
        return Reason.ALREADY_DONE
    return Reason.ALREADY_CANCELED if order.is_canceled else Reason.NOT_OPEN
