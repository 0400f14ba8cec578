"""Who may ask, who may decide, and why somebody may not: the one policy of every path."""

from dataclasses import dataclass
from datetime import datetime

from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, DecisionKind, State


@dataclass(frozen=True, kw_only=True, slots=True)
class ApprovalPolicy:
    """The allowlists. An empty `approvers` allows nobody; an empty `requesters` allows everyone in the workspace."""

    approvers: frozenset[str]
    requesters: frozenset[str] = frozenset()
    self_approval: bool = False
    approvals_required: int = 1
    max_open_requests_per_person: int = 20

    def command_refusal(self, requester: Actor, *, home_team: str, open_requests: int) -> Reason | None:
        """Why this person may not make a request now, or None."""
        if requester.team_id != home_team:
            return Reason.OTHER_WORKSPACE
        if self.requesters and requester.id not in self.requesters:
            return Reason.NOT_A_REQUESTER
        if open_requests >= self.max_open_requests_per_person:
            return Reason.TOO_MANY_OPEN_REQUESTS
        return None

    def approvers_of(self, requester: Actor) -> tuple[str, ...]:
        """The ids of those who may approve what this person asks for, sorted."""
        barred = frozenset() if self.self_approval else frozenset({requester.id})
        return tuple(sorted(self.approvers - barred))

    def nobody_can_approve(self, requester: Actor) -> bool:
        return len(self.approvers_of(requester)) < self.approvals_required

    def refusal(self, request: CancelRequest | None, actor: Actor, kind: DecisionKind, now: datetime) -> Reason | None:
        """Why this person's decision does not count, or None if it does.

        A person must be on the allowlist of today and, to approve, on the one that was shown on the card. Who asked
        may deny, but may approve only with `self_approval`. To withdraw is for who asked alone, on whatever list.
        """
        if request is None:
            return Reason.UNKNOWN_REQUEST
        if actor.team_id != request.team_id:
            return Reason.OTHER_WORKSPACE
        if kind is DecisionKind.WITHDRAW:
            if actor.id != request.requester.id:
                return Reason.NOT_THE_REQUESTER
        elif actor.id not in self.approvers:
            return Reason.NOT_AN_APPROVER
        if request.state is not State.PENDING:
            return _no_longer_pending(request)
        if request.expires_at is None or now >= request.expires_at:
            return Reason.EXPIRED
        if kind is DecisionKind.APPROVE:
            return self._approval_refusal(request, actor)
        return None

    def _approval_refusal(self, request: CancelRequest, actor: Actor) -> Reason | None:
        if actor.id == request.requester.id and not self.self_approval:
            return Reason.OWN_REQUEST
        return None if actor.id in request.approvers else Reason.NOT_AN_APPROVER


def _no_longer_pending(request: CancelRequest) -> Reason:
    if request.state is State.REQUESTED:
        return Reason.NOT_YET_PENDING
    return Reason.EXPIRED if request.state is State.EXPIRED else Reason.ALREADY_DECIDED
