"""A decision by form: the same path as a click, with the person's own words; on both databases."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from builders import (
    APPROVER,
    REQUESTER,
    SECOND,
    STRANGER,
    HandClock,
    at_once,
    click,
    create_pending,
    insist,
    present,
    rows,
    workflow,
)
from databases import migrated

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.approval import MAX_REASON_CHARS, ApprovalPolicy
from bot.domain.audit import Actor, Reason
from bot.domain.cancel_request import CancelRequest, DecisionKind, State
from bot.domain.event_filter import Filter
from bot.workflow import Click, ClickAnswer

HOSTILE = "<!here> \u202egnp.exe " + "&" * 900 + " the end"


class Desk:
    """A pending request, and what people do with its form."""

    def __init__(self, url: str) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        migrated(self.database)
        self.store = SqlStore(self.database)
        self.workflow = workflow(self.store)
        self.id = create_pending(self.store).id

    @property
    def request(self) -> CancelRequest:
        return present(self.store.read(self.id))

    def form(self, reason: str, actor: Actor = APPROVER, **changes: Any) -> Click:
        fields = {"kind": DecisionKind.DENY, "channel_id": "", "message_ts": None, "response_url": None}
        return click(self.id, actor, is_form=True, reason=reason, **{**fields, **changes})

    def submit(self, reason: str, actor: Actor = APPROVER, **changes: Any) -> ClickAnswer:
        return self.workflow.decide(self.form(reason, actor, **changes))

    def events(self, action: str) -> list[dict[str, Any]]:
        wanted = Filter(request_id=self.id, action=action)
        return [dict(event) for event in AuditLog(self.database).list(wanted, limit=100, newest_first=False)]

    def notices(self) -> list[str]:
        return [kind for (kind,) in rows(self.database, "SELECT kind FROM notices ORDER BY id")]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    opened = Desk(database_url)
    yield opened
    assert verify(opened.database).fault is None
    opened.database.close()


def test_a_denial_keeps_its_reason(desk: Desk) -> None:
    """Who asked wants to know why, and a year later the auditor does: in the row and, whole, in the audit."""
    answer = desk.submit(HOSTILE)

    assert answer.refusal is None
    assert present(answer.request).state is State.DENIED
    (decision,) = desk.request.decisions
    assert (decision.kind, decision.actor, decision.reason) == (DecisionKind.DENY, APPROVER, HOSTILE)
    (event,) = desk.events("request.denied")
    assert (event["actor"], event["reason"]) == (APPROVER.id, HOSTILE)
    assert desk.notices() == []


def test_a_denial_by_the_button_needs_no_reason(desk: Desk) -> None:
    """Deny stays one click."""
    assert desk.workflow.click(click(desk.id, kind=DecisionKind.DENY)) is None

    assert desk.request.decisions[0].reason == ""
    assert desk.events("request.denied")[0]["reason"] is None


def test_a_form_that_is_delivered_again_denies_once_and_is_answered_the_same(desk: Desk) -> None:
    """Slack delivers again what it believes was lost; an error then would make a denial look undone."""
    form = desk.form("typo")

    assert [desk.workflow.decide(form).refusal for _ in range(3)] == [None] * 3
    assert len(desk.events("request.denied")) == 1
    assert desk.events("approval.refused") == []


def test_a_refused_form_that_is_delivered_again_is_refused_the_same_and_audited_once(desk: Desk) -> None:
    """The second delivery is no second attempt."""
    form = desk.form("typo", STRANGER)

    assert [desk.workflow.decide(form).refusal for _ in range(3)] == [Reason.NOT_AN_APPROVER] * 3
    assert len(desk.events("approval.refused")) == 1


@pytest.mark.parametrize("first", [DecisionKind.DENY, DecisionKind.APPROVE])
def test_a_form_that_comes_too_late_is_told_who_was_first_and_is_audited(desk: Desk, first: DecisionKind) -> None:
    """A form can be open for minutes; what was written into it is kept with the refusal."""
    desk.workflow.click(click(desk.id, SECOND, kind=first))
    answer = desk.submit("typo")

    assert answer.refusal is Reason.ALREADY_DECIDED
    assert present(answer.request).decisions[0].actor == SECOND
    (event,) = desk.events("approval.refused")
    assert event["details"] == {"reason": "already_decided", "kind": "deny", "value_krw": "95000000"}
    assert (event["actor"], event["reason"]) == (APPROVER.id, "typo")
    assert desk.notices() == []  # the form itself tells it


def test_a_form_after_the_time_is_too_late(desk: Desk) -> None:
    """Expired is not denied, whoever filled in what."""
    desk.clock.now = present(desk.request.expires_at)

    assert desk.submit("typo").refusal is Reason.EXPIRED
    assert desk.request.state is State.PENDING


def test_a_person_removed_while_the_form_was_open_denies_nothing(desk: Desk) -> None:
    """The policy is asked when the form opens, and again when it is submitted."""
    form = desk.form("typo")
    assert desk.workflow.may_decide(form).refusal is None
    later = workflow(desk.store, ApprovalPolicy(approvers=frozenset({SECOND.id})))

    assert later.decide(form).refusal is Reason.NOT_AN_APPROVER
    assert desk.request.state is State.PENDING


@pytest.mark.parametrize(
    ("reason", "refusal"),
    [
        ("", Reason.NO_REASON),
        ("  ", Reason.NO_REASON),
        ("x" * (MAX_REASON_CHARS + 1), Reason.REASON_TOO_LONG),
        ("x" * 3000, Reason.REASON_TOO_LONG),
        ("x" * MAX_REASON_CHARS, None),
        ("가" * MAX_REASON_CHARS, None),
    ],
)
def test_a_reason_has_its_bounds_on_the_server_too(desk: Desk, reason: str, refusal: Reason | None) -> None:
    """The form's own limit is the client's; nothing is cut in silence."""
    assert desk.submit(reason).refusal is refusal

    assert desk.request.state is (State.DENIED if refusal is None else State.PENDING)
    refused = [event["details"]["reason"] for event in desk.events("approval.refused")]
    assert refused == ([] if refusal is None else [refusal.value])


def test_asking_whether_somebody_may_deny_decides_nothing(desk: Desk) -> None:
    """A form that is opened and closed again leaves no trace."""
    before = desk.request
    answer = desk.workflow.may_decide(click(desk.id, kind=DecisionKind.DENY, message_ts=before.card_ts))

    assert answer.refusal is None
    assert present(answer.request) == before == desk.request
    assert desk.notices() == []


@pytest.mark.parametrize(
    ("actor", "refusal"),
    [(STRANGER, Reason.NOT_AN_APPROVER), (replace(APPROVER, team_id="T0OTHER"), Reason.OTHER_WORKSPACE)],
)
def test_who_may_not_deny_is_told_at_once_and_audited(desk: Desk, actor: Actor, refusal: Reason) -> None:
    """Nobody writes a reason for nothing."""
    assert desk.workflow.may_decide(click(desk.id, actor, kind=DecisionKind.DENY)).refusal is refusal

    (event,) = desk.events("approval.refused")
    assert (event["actor"], event["details"]["reason"]) == (actor.id, refusal.value)
    assert desk.notices() == ["click_refused"]


def test_a_form_of_another_version_decides_nothing_and_is_audited(desk: Desk) -> None:
    """It may name a request, and is not known to deny it."""
    assert desk.submit("typo", kind=None).refusal is Reason.UNKNOWN_FORM
    assert desk.request.state is State.PENDING
    assert desk.events("approval.refused")[0]["details"]["reason"] == "unknown_form"


def test_two_forms_at_the_same_instant_have_one_outcome(desk: Desk) -> None:
    """Two approvers write their reasons; one of them is told who was first."""
    answers = at_once(
        lambda: insist(lambda: desk.submit("mine")), lambda: insist(lambda: desk.submit("theirs", SECOND))
    )

    refusals = [answer.refusal for answer in answers if isinstance(answer, ClickAnswer)]
    assert sorted(map(str, refusals)) == ["None", "already_decided"]
    assert len(desk.events("request.denied")) == len(desk.request.decisions) == 1


@pytest.mark.parametrize("kind", [DecisionKind.APPROVE, DecisionKind.DENY])
@pytest.mark.parametrize("late_by_us", [-1, 0])
def test_a_click_in_the_second_of_the_expiry_has_one_outcome(desk: Desk, kind: DecisionKind, late_by_us: int) -> None:
    """The clock and a person race for the row; the audit has one of them, and the person is told which."""
    desk.clock.now = present(desk.request.expires_at) + timedelta(microseconds=late_by_us)
    with desk.store.transaction(desk.id) as tx:
        tx.change(next_attempt_at=tx.now)
    clicked, _ = at_once(
        lambda: insist(lambda: desk.workflow.click(click(desk.id, kind=kind))),
        lambda: str(insist(lambda: desk.workflow.advance(desk.id))),
    )
    desk.clock.advance(1)
    desk.workflow.advance(desk.id)

    ends = [desk.events(action) for action in ("request.approved", "request.denied", "request.expired")]
    if late_by_us < 0:
        assert clicked is None
        assert [len(found) for found in ends] == [kind is DecisionKind.APPROVE, kind is DecisionKind.DENY, 0]
    else:
        assert clicked is Reason.EXPIRED
        assert [len(found) for found in ends] == [0, 0, 1]
        assert desk.request.state is State.EXPIRED
        assert desk.request.decisions == ()
        assert desk.events("approval.refused")[0]["details"]["reason"] == "expired"


def test_who_asked_may_deny_with_a_reason_only_as_an_approver(desk: Desk) -> None:
    """The requester is on no allowlist here."""
    assert desk.submit("changed my mind", REQUESTER).refusal is Reason.NOT_AN_APPROVER


def test_an_approval_keeps_the_order_as_it_was_seen(desk: Desk) -> None:
    """The card and the thread tell later what was filled before it, and what after."""
    order_now = present(desk.request.order_now)
    moved = replace(order_now, executed_volume=order_now.volume)
    with desk.store.transaction(desk.id) as tx:
        tx.change(order_now=moved)
    desk.workflow.click(click(desk.id))

    assert desk.request.order_approved == moved
    (event,) = desk.events("request.approved")
    assert json.dumps(event["details"]["order"], sort_keys=True) == json.dumps(moved.to_json(), sort_keys=True)
