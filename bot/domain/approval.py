"""Who may ask, who may decide, and why somebody may not: the one policy of every path."""

from dataclasses import dataclass
from datetime import datetime
from typing import Final

from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, Decision, DecisionKind, State
from bot.domain.membership import UNREAD, Membership
from bot.domain.order import Order
from bot.domain.tiers import Requirement, Tier, requirement

MAX_REASON_CHARS: Final = 1000
"""Of a decision's reason: what a card shows whole."""


def reason_fault(kind: DecisionKind, reason: str) -> Reason | None:
    """What is wrong with what somebody filled in as the reason of a decision, or None. Only a denial needs one."""
    if len(reason) > MAX_REASON_CHARS:
        return Reason.REASON_TOO_LONG
    return Reason.NO_REASON if kind is DecisionKind.DENY and not reason.strip() else None


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalPolicy:
    """The allowlists. No `approvers` means nobody; no `requesters` and no `channels` mean everyone, everywhere.

    They hold ids of people and of user groups. Who is in these comes with each question: a group whose members are not
    known counts as empty, and who is refused for that hears so instead of "you may not".
    """

    approvers: frozenset[str]
    requesters: frozenset[str] = frozenset()
    channels: frozenset[str] = frozenset()  #: where a request may be made; what is decided of it is not bound to them
    self_approval: bool = False
    approvals_required: int = 1
    tiers: tuple[Tier, ...] = ()  #: more approvals for larger orders
    max_open_requests_per_person: int = 20
    auditors: frozenset[str] = frozenset()  #: who may have the audit exported in Slack; empty = nobody

    def command_refusal(
        self,
        requester: Actor,
        *,
        home_team: str,
        channel_id: str,
        open_requests: int,
        membership: Membership = UNREAD,
    ) -> Reason | None:
        """Why this person may not make a request here and now, or None."""
        stranger = self.reading_refusal(requester, home_team=home_team)
        if stranger is not None:
            return stranger
        if self.requesters and requester.id not in membership.people(self.requesters):
            return Reason.MEMBERSHIP_UNKNOWN if membership.is_unknown(self.requesters) else Reason.NOT_A_REQUESTER
        if self.channels and channel_id not in self.channels:
            return Reason.CHANNEL_NOT_ALLOWED
        if open_requests >= self.max_open_requests_per_person:
            return Reason.TOO_MANY_OPEN_REQUESTS
        return None

    def reading_refusal(self, person: Actor, *, home_team: str) -> Reason | None:
        """Why this person may not ask about requests, or None: everybody of the workspace may, on whatever list."""
        return None if person.team_id == home_team else Reason.OTHER_WORKSPACE

    def export_refusal(self, person: Actor, *, home_team: str, membership: Membership = UNREAD) -> Reason | None:
        """Why this person may not have the audit exported, or None."""
        stranger = self.reading_refusal(person, home_team=home_team)
        if stranger is not None:
            return stranger
        if person.id in membership.people(self.auditors):
            return None
        return Reason.MEMBERSHIP_UNKNOWN if membership.is_unknown(self.auditors) else Reason.NOT_AN_AUDITOR

    def approvers_of(self, requester: Actor, membership: Membership = UNREAD) -> tuple[str, ...]:
        """The ids of those who may approve what this person asks for, sorted."""
        barred = frozenset() if self.self_approval else frozenset({requester.id})
        return tuple(sorted(membership.people(self.approvers) - barred))

    def can_approve_anything(self, membership: Membership) -> bool:
        """Whether enough people are known for the request that needs the fewest approvals, whoever asks."""
        return len(membership.people(self.approvers)) >= self.approvals_required

    def requirement(self, order: Order) -> Requirement:
        """How many approvals this order needs, and by which rule."""
        return requirement(order, self.tiers, at_least=self.approvals_required)

    def opening_refusal(self, requester: Actor, *, approvals: int, membership: Membership = UNREAD) -> Reason | None:
        """Why nobody is asked to approve what needs so many approvals, or None if enough people may.

        `membership_unknown` is no last word: it is known soon, and the request waits for it. A group that is still to
        be read is waited for also where others are enough, so that its members are on the card.
        """
        if membership.is_awaited(self.approvers):
            return Reason.MEMBERSHIP_UNKNOWN
        count = len(self.approvers_of(requester, membership))
        if count >= approvals:
            return None
        if membership.is_unknown(self.approvers):
            return Reason.MEMBERSHIP_UNKNOWN
        return Reason.TOO_FEW_APPROVERS if count else Reason.NOBODY_CAN_APPROVE

    def refusal(
        self,
        request: CancelRequest | None,
        actor: Actor,
        kind: DecisionKind,
        now: datetime,
        membership: Membership = UNREAD,
    ) -> Reason | None:
        """Why this person's decision does not count, or None if it does.

        A person must be on the allowlist of today and, to approve, on the one that was shown on the card. Who asked
        may deny, but may approve only with `self_approval`. Nobody counts twice; but where the approvals that are there
        have come to be enough, because somebody is on the allowlist again, anyone of those may say so. To withdraw is
        for who asked alone, on whatever list.
        """
        if request is None:
            return Reason.UNKNOWN_REQUEST
        barred = self._decision_bar(request, actor, kind, membership)
        if barred is not None:
            return barred
        if request.state is not State.PENDING:
            return _no_longer_pending(request)
        if request.expires_at is None or now >= request.expires_at:
            return Reason.EXPIRED
        if kind is not DecisionKind.APPROVE:
            return None
        is_repeated = request.has_approved(actor.id) and not self.is_enough(request, membership)
        return self._approval_bar(request, actor) or (Reason.ALREADY_APPROVED if is_repeated else None)

    def counting(self, request: CancelRequest, membership: Membership = UNREAD) -> tuple[Decision, ...]:
        """The recorded approvals that count by the lists of today.

        Somebody's who may no longer approve, or of whom that is not known now, does not.
        """
        return tuple(
            each
            for each in request.decided(DecisionKind.APPROVE)
            if self._decision_bar(request, each.actor, each.kind, membership) is None
            and self._approval_bar(request, each.actor) is None
        )

    def may_still_approve(self, request: CancelRequest, membership: Membership = UNREAD) -> tuple[str, ...]:
        """The ids of those whose approval would count now and is not there yet: on the card, and on today's list."""
        people = (Actor(id=person_id, team_id=request.team_id) for person_id in request.approvers)
        return tuple(
            person.id
            for person in people
            if not request.has_approved(person.id)
            and self._decision_bar(request, person, DecisionKind.APPROVE, membership) is None
            and self._approval_bar(request, person) is None
        )

    def is_enough(self, request: CancelRequest, membership: Membership = UNREAD) -> bool:
        """Whether the approvals that count are as many as the request needs."""
        return len(self.counting(request, membership)) >= request.approvals_required

    def _decision_bar(
        self, request: CancelRequest, actor: Actor, kind: DecisionKind, membership: Membership
    ) -> Reason | None:
        """Why this person may decide nothing of this kind here."""
        if actor.team_id != request.team_id:
            return Reason.OTHER_WORKSPACE
        if kind is DecisionKind.WITHDRAW:
            return None if actor.id == request.requester.id else Reason.NOT_THE_REQUESTER
        if actor.id in membership.people(self.approvers):
            return None
        # Who is not on the card may not approve whatever the group would say: to send them back would be no help.
        is_on_no_card = kind is DecisionKind.APPROVE and request.opened_at and actor.id not in request.approvers
        is_unknown = membership.is_unknown(self.approvers) and not is_on_no_card
        return Reason.MEMBERSHIP_UNKNOWN if is_unknown else Reason.NOT_AN_APPROVER

    def _approval_bar(self, request: CancelRequest, actor: Actor) -> Reason | None:
        """Why this person may not approve, though they may decide."""
        if actor.id == request.requester.id and not self.self_approval:
            return Reason.OWN_REQUEST
        return None if actor.id in request.approvers else Reason.NOT_AN_APPROVER


def _no_longer_pending(request: CancelRequest) -> Reason:
    if request.state is State.REQUESTED:
        return Reason.NOT_YET_PENDING
    return Reason.EXPIRED if request.state is State.EXPIRED else Reason.ALREADY_DECIDED
