"""Requests as they go at a desk, by the real workflow, for who looks at the audit afterwards."""

from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

from builders import APPROVER, HOME, REQUESTER, SECOND, STRANGER, call, click, order
from test_workflow import LOST, Story, sees

from bot.domain.answer import Accepted, Unknown
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor
from bot.domain.cancel_request import DecisionKind, State, Verdict
from bot.domain.membership import Group, Membership
from bot.workflow import CancelWorkflow, settle

GROUP = "S0TREASURY"
KOREAN = Actor(id="U0MINJI", name="김민지", team_id=HOME)
PARTLY = order(remaining_volume=Decimal("0.58"), executed_volume=Decimal("0.42"))
CANCELED = order(state="cancel", remaining_volume=Decimal("0.58"), executed_volume=Decimal("0.42"))
ANSWER = call(method="DELETE", body='{"uuid":"x","state":"wait"}', remaining_req="group=order; min=59; sec=4")


@dataclass(frozen=True)
class OneGroup:
    """A workspace whose only user group was read."""

    members: frozenset[str]

    def membership(self) -> Membership:
        return Membership(groups={GROUP: Group(members=self.members)})


class Desk(Story):
    """A workflow whose approvers are a user group, and what people do there."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.people = frozenset({APPROVER.id, SECOND.id, KOREAN.id})
        self.policy = ApprovalPolicy(approvers=frozenset({GROUP}), approvals_required=2)

    @property
    def workflow(self) -> CancelWorkflow:
        return CancelWorkflow(
            store=self.store,
            exchange=self.exchange,
            quotations=self.quotations,
            messenger=self.slack,
            policy=self.policy,
            groups=OneGroup(self.people),
            approval_ttl=timedelta(minutes=30),
            send_within=timedelta(minutes=5),
            approvals_channel_id=self.approvals_channel_id,
            new_nonce=lambda: f"nonce-{len(self.exchange.sent)}",
        )

    def press(self, request_id: int, who: Actor, kind: DecisionKind = DecisionKind.APPROVE, **changes: Any) -> None:
        self.clock.advance(3.25)
        self.workflow.click(click(request_id, who, kind=kind, message_ts="1.000", **changes))

    def canceled(self, **asked: Any) -> int:
        """Two of three approve, after two clicks that do not count, and the exchange cancels what is left."""
        self.exchange.looks = [sees(PARTLY)]
        request_id = self.ask(**{"reason": "잘못 낸 주문", **asked})
        self.workflow.advance(request_id)
        self.workflow.show(request_id)
        self.press(request_id, REQUESTER)
        self.press(request_id, STRANGER)
        self.press(request_id, APPROVER)
        self.press(request_id, KOREAN)
        self.exchange.cancels = [Accepted(order=PARTLY, call=ANSWER)]
        self.exchange.looks = [sees(CANCELED)]
        self.go_on(request_id, for_s=2)
        assert self.state(request_id) is State.CANCELED
        return request_id

    def asked(self) -> int:
        self.exchange.looks = [sees(PARTLY)]
        return super().asked()

    def denied(self) -> int:
        request_id = self.asked()
        self.press(request_id, APPROVER)
        self.press(request_id, KOREAN, DecisionKind.DENY, reason="시장가가 너무 가깝다", is_form=True)
        self.go_on(request_id, for_s=1)
        assert self.state(request_id) is State.DENIED
        return request_id

    def withdrawn(self) -> int:
        request_id = self.asked()
        self.press(request_id, REQUESTER, DecisionKind.WITHDRAW)
        self.go_on(request_id, for_s=1)
        assert self.state(request_id) is State.WITHDRAWN
        return request_id

    def settled(self) -> int:
        """Neither the cancel nor any look is answered; somebody looks at Upbit."""
        request_id = self.asked()
        self.press(request_id, APPROVER)
        self.press(request_id, SECOND)
        self.exchange.cancels = [LOST]
        self.exchange.looks = [Unknown(cause="timeout", call=call(status=None))]
        self.go_on(request_id, for_s=60)
        assert self.state(request_id) is State.UNRESOLVED
        settle(self.store, request_id, verdict=Verdict.CANCELED, reason="saw it", actor=Actor(id="cli:ops"))
        self.go_on(request_id, for_s=1)
        return request_id
