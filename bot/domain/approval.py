"""Who may ask, who may decide, and why somebody may not: the one policy of every path."""

from dataclasses import dataclass
from datetime import datetime

from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, Decision, DecisionKind, State
from bot.domain.order import Order
from bot.domain.tiers import Requirement, Tier, requirement


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalPolicy:
    """The allowlists. An empty `approvers` allows nobody; an empty `requesters` allows everyone in the workspace."""

    approvers: frozenset[str]
    requesters: frozenset[str] = frozenset()
    self_approval: bool = False
    approvals_required: int = 1
    tiers: tuple[Tier, ...] = ()  #: more approvals for larger orders
    max_open_requests_per_person: int = 20

    def command_refusal(self, requester: Actor, *, home_team: str, open_requests: int) -> Reason | None:
        """Why this person may not make a request now, or None."""
        stranger = self.reading_refusal(requester, home_team=home_team)
        if stranger is not None:
            return stranger
        if self.requesters and requester.id not in self.requesters:
            return Reason.NOT_A_REQUESTER
        if open_requests >= self.max_open_requests_per_person:
            return Reason.TOO_MANY_OPEN_REQUESTS
        return None

    def reading_refusal(self, person: Actor, *, home_team: str) -> Reason | None:
        """Why this person may not ask about requests, or None: everybody of the workspace may, on whatever list."""
        return None if person.team_id == home_team else Reason.OTHER_WORKSPACE

    def approvers_of(self, requester: Actor) -> tuple[str, ...]:
        """The ids of those who may approve what this person asks for, sorted."""
        barred = frozenset() if self.self_approval else frozenset({requester.id})
        return tuple(sorted(self.approvers - barred))

    def requirement(self, order: Order) -> Requirement:
        """How many approvals this order needs, and by which rule."""
        return requirement(order, self.tiers, at_least=self.approvals_required)

    def opening_refusal(self, requester: Actor, *, approvals: int) -> Reason | None:
        """Why nobody is asked to approve what needs so many approvals, or None if enough people may."""
        count = len(self.approvers_of(requester))
        if count >= approvals:
            return None
        return Reason.TOO_FEW_APPROVERS if count else Reason.NOBODY_CAN_APPROVE

    def refusal(self, request: CancelRequest | None, actor: Actor, kind: DecisionKind, now: datetime) -> Reason | None:
        """Why this person's decision does not count, or None if it does.

        A person must be on the allowlist of today and, to approve, on the one that was shown on the card. Who asked
        may deny, but may approve only with `self_approval`. Nobody counts twice; but where the approvals that are there
        have come to be enough, because somebody is on the allowlist again, anyone of those may say so. To withdraw is
        for who asked alone, on whatever list.
        """
        if request is None:
            return Reason.UNKNOWN_REQUEST
        barred = self._decision_bar(request, actor, kind)
        if barred is not None:
            return barred
        if request.state is not State.PENDING:
            return _no_longer_pending(request)
        if request.expires_at is None or now >= request.expires_at:
            return Reason.EXPIRED
        if kind is not DecisionKind.APPROVE:
            return None
        is_repeated = request.has_approved(actor.id) and not self.is_enough(request)
        return self._approval_bar(request, actor) or (Reason.ALREADY_APPROVED if is_repeated else None)

    def counting(self, request: CancelRequest) -> tuple[Decision, ...]:
        """The recorded approvals that count by the lists of today: somebody's who may no longer approve does not."""
        return tuple(
            each
            for each in request.decided(DecisionKind.APPROVE)
            if self._decision_bar(request, each.actor, each.kind) is None
            and self._approval_bar(request, each.actor) is None
        )

    def is_enough(self, request: CancelRequest) -> bool:
        """Whether the approvals that count are as many as the request needs."""
        return len(self.counting(request)) >= request.approvals_required

    def _decision_bar(self, request: CancelRequest, actor: Actor, kind: DecisionKind) -> Reason | None:
        """Why this person may decide nothing of this kind here."""
        if actor.team_id != request.team_id:
            return Reason.OTHER_WORKSPACE
        if kind is DecisionKind.WITHDRAW:
            return None if actor.id == request.requester.id else Reason.NOT_THE_REQUESTER
        if actor.id not in self.approvers:
            return Reason.NOT_AN_APPROVER
        return None

    def _approval_bar(self, request: CancelRequest, actor: Actor) -> Reason | None:
        """Why this person may not approve, though they may decide."""
        if actor.id == request.requester.id and not self.self_approval:
            return Reason.OWN_REQUEST
        return None if actor.id in request.approvers else Reason.NOT_AN_APPROVER


def _no_longer_pending(request: CancelRequest) -> Reason:
    if request.state is State.REQUESTED:
        return Reason.NOT_YET_PENDING
    return Reason.EXPIRED if request.state is State.EXPIRED else Reason.ALREADY_DECIDED
