"""The story of one request: every answer of the exchange and of Slack, and what must come of it.

The store is the product's own on SQLite; the exchange and Slack say what the test has written down for them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any, Literal

import pytest
from builders import (
    APPROVER,
    HOME,
    REQUESTER,
    RESPONSE_URL,
    SECOND,
    START,
    STRANGER,
    FixedPrices,
    HandClock,
    call,
    click,
    command,
    order,
    present,
    take,
)
from databases import migrated
from sqlalchemy import event

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.store import LEASE, SqlStore, SqlTaken
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
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor, Reason, timestamp
from bot.domain.cancel_request import CanceledBy, CancelRequest, DecisionKind, State, Verdict
from bot.domain.errors import CannotPost, CommitInDoubt, IllegalTransition, NothingDone, TryLater
from bot.domain.event_filter import Filter
from bot.domain.order import Order
from bot.domain.quote import BestPrices, NoPrices, Quote
from bot.domain.tiers import parse_tiers
from bot.workflow import CancelWorkflow, Lane, Lease, Notice, NoticeKind, Posted, settle

GET = call()
DELETE = call(method="DELETE")

OPEN = order()
CANCELED = order(state="cancel")
DONE = order(state="done", executed_volume=Decimal("1.00"), remaining_volume=Decimal(0))

LOST = Unknown(cause="timeout", call=DELETE)
BLIND = Unknown(cause="timeout", call=GET)
NOT_SENT = NotSent(cause="connect_failed", call=DELETE)
GONE = Refused(name="order_not_found", proves_nothing_happened=False, call=DELETE, message="주문을 찾지 못했습니다")
NO_KEY = Refused(name="out_of_scope", proves_nothing_happened=True, call=DELETE)


def limited(retry_after_s: float) -> Refused:
    return Refused(name="too_many_requests", proves_nothing_happened=True, call=DELETE, retry_after_s=retry_after_s)


def sees(seen: Order) -> Found:
    return Found(order=seen, call=GET)


class ScriptedExchange:
    """Answers looks and cancels in the order they were written down; the last answer is repeated."""

    def __init__(self) -> None:
        self.looks: list[LookAnswer] = [sees(OPEN)]
        self.cancels: list[CancelAnswer] = [Accepted(order=OPEN, call=DELETE)]
        self.sent: list[str] = []
        self.looked = 0
        self.holds: dict[str, float] = {}
        self.lists: list[list[str]] = []  # the uuids of each look at several
        self.listed: dict[str, Order] | None = None  # what a list shows, all of it; None: what a look would show
        self.list_fails: OrdersAnswer | None = None

    def get_order(self, uuid: str) -> LookAnswer:
        self.looked += 1
        answer = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return replace(answer, order=replace(answer.order, uuid=uuid)) if isinstance(answer, Found) else answer

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        self.lists.append(list(uuids))
        if self.list_fails is not None:
            return self.list_fails
        if self.listed is not None:
            return FoundOrders(orders=tuple(self.listed.values()), call=GET)
        shown = self.looks[0]
        orders = [replace(shown.order, uuid=uuid) for uuid in uuids] if isinstance(shown, Found) else []
        return FoundOrders(orders=tuple(orders), call=GET)

    def hold_s(self, method: Literal["GET", "DELETE"]) -> float:
        return self.holds.get(method, 0.0)

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        return Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash=f"hash of {uuid}")

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        self.sent.append(nonce)
        return self.cancels.pop(0) if len(self.cancels) > 1 else self.cancels[0]


class ScriptedSlack:
    """Takes everything, unless an error was written down for the verb."""

    def __init__(self) -> None:
        self.errors: dict[str, list[Exception]] = {}
        self.cards: list[tuple[str, str, State]] = []
        self.verdicts: list[State] = []
        self.lines: list[Notice] = []
        self.reminders: list[tuple[int, tuple[str, ...]]] = []
        self.while_posting: list[Callable[[], object]] = []

    def _may_fail(self, verb: str) -> None:
        errors = self.errors.get(verb)
        if errors:
            raise errors.pop(0)

    def post_card(self, request: CancelRequest) -> Posted:
        self._may_fail("post_card")
        self.cards.append((request.card_goes_to, "1.000", request.state))
        for happens in self.while_posting:
            happens()
        return Posted(request.card_goes_to, "1.000", permalink="https://playground.slack.com/archives/C0DESK/p1000")

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        self._may_fail("redraw_card")
        self.cards.append((channel_id, ts, request.state))

    def post_verdict(self, request: CancelRequest) -> Posted:
        self._may_fail("post_verdict")
        self.verdicts.append(request.state)
        return Posted(request.card_goes_to, "2.000", permalink="https://playground.slack.com/archives/C0DESK/p2000")

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        self._may_fail("post_reminder")
        self.reminders.append((request.id, tuple(may_still_approve)))

    def tell(self, notice: Notice) -> None:
        self._may_fail("tell")
        self.lines.append(notice)


class Story:
    """One workflow with its scripted neighbours, on virtual time."""

    def __init__(self, url: str) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        migrated(self.database)
        self.store = SqlStore(self.database)
        self.exchange = ScriptedExchange()
        self.slack = ScriptedSlack()
        self.policy = ApprovalPolicy(approvers=frozenset({APPROVER.id, SECOND.id, REQUESTER.id}))
        self.stalls: list[float] = []
        self.quotations = FixedPrices()
        self.approvals_channel_id: str | None = None

    @property
    def workflow(self) -> CancelWorkflow:
        return CancelWorkflow(
            store=self.store,
            exchange=self.exchange,
            quotations=self.quotations,
            messenger=self.slack,
            policy=self.policy,
            approval_ttl=timedelta(minutes=30),
            send_within=timedelta(minutes=5),
            approvals_channel_id=self.approvals_channel_id,
            new_nonce=lambda: f"nonce-{len(self.exchange.sent)}",
            monotonic=lambda: self.stalls.pop(0) if self.stalls else 0.0,
        )

    def ask(self, **changes: Any) -> int:
        answer = self.workflow.command(command(**changes), home_team=HOME)
        assert answer.request_id is not None, answer
        return answer.request_id

    def asked(self) -> int:
        """A request whose card is posted."""
        request_id = self.ask()
        self.workflow.advance(request_id)
        self.workflow.show(request_id)
        assert self.state(request_id) is State.PENDING
        return request_id

    def approved(self) -> int:
        request_id = self.asked()
        assert self.workflow.click(click(request_id, message_ts="1.000")) is None
        return request_id

    def go_on(self, request_id: int, *, for_s: float) -> None:
        """Let time pass, working whenever something is due."""
        ends_at = self.clock.now + timedelta(seconds=for_s)
        while self.clock.now <= ends_at:
            due = self.store.due(limit=10)
            if not (due.exchange or due.slack or due.notices or due.refresh):
                self.clock.advance(0.05 if for_s < 60 else 1.0)
                continue
            for job in due.exchange:
                self.workflow.advance(job)
            for job in self.store.due(limit=10).slack:
                self.workflow.show(job)
            for job in self.store.due(limit=10).notices:
                self.workflow.deliver(job)
            if self.store.due(limit=10).refresh:
                self.workflow.refresh()

    def request(self, request_id: int) -> CancelRequest:
        return present(self.store.read(request_id))

    def state(self, request_id: int) -> State:
        return self.request(request_id).state

    def actions(self, request_id: int) -> list[str]:
        wanted = Filter(request_id=request_id)
        events = AuditLog(self.database).list(wanted, limit=1000, newest_first=False)
        return [str(event["action"]) for event in events]

    def details(self, request_id: int, action: str) -> dict[str, Any]:
        """The details of the request's latest event of this kind."""
        (event,) = AuditLog(self.database).list(Filter(request_id=request_id, action=action), limit=1)
        details = event["details"]
        assert isinstance(details, dict)
        return details

    def lines(self, kind: NoticeKind) -> list[Notice]:
        return [line for line in self.slack.lines if line.kind is kind]


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    told = Story(f"sqlite:///{tmp_path / 'cancels.db'}")
    yield told
    told.database.close()


# --- Asking -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("look", "reason"),
    [
        (sees(DONE), Reason.ALREADY_DONE),
        (sees(CANCELED), Reason.ALREADY_CANCELED),
        (sees(order(state="frozen")), Reason.NOT_OPEN),
        (Refused(name="order_not_found", proves_nothing_happened=False, call=GET), Reason.ORDER_NOT_FOUND),
        (Refused(name="out_of_scope", proves_nothing_happened=True, call=GET), Reason.KEY_LACKS_VIEW),
        (Refused(name="invalid_access_key", proves_nothing_happened=True, call=GET), Reason.EXCHANGE_REFUSED),
        (Refused(name="brand_new_name", proves_nothing_happened=False, call=GET), Reason.EXCHANGE_REFUSED),
    ],
)
def test_an_order_that_cannot_be_canceled_is_refused_privately(story: Story, look: LookAnswer, reason: Reason) -> None:
    """Nobody is asked to approve what cannot be done, and nobody but the requester hears of it."""
    story.exchange.looks = [look]
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.REFUSED
    assert [line.reason for line in story.lines(NoticeKind.REQUEST_REFUSED)] == [reason]
    assert story.slack.cards == []
    assert story.request(request_id).response_url is None


def test_the_market_is_frozen_with_the_order_when_the_request_is_opened(story: Story) -> None:
    """Who decides sees how far the order was from it, and the auditor sees what they saw."""
    story.quotations.prices = BestPrices(bid=Decimal("94000000.5"), ask=Decimal(94_500_000))
    request_id = story.asked()
    request = story.request(request_id)
    assert request.quote == Quote(bid=Decimal("94000000.5"), ask=Decimal(94_500_000), quoted_at=START)
    assert story.details(request_id, "request.opened")["quote"] == {
        "bid": "94000000.5",
        "ask": "94500000",
        "quoted_at": timestamp(START),
    }
    story.quotations.prices = BestPrices(bid=Decimal(1), ask=Decimal(2))
    story.go_on(request_id, for_s=120)
    assert story.quotations.asked == ["KRW-BTC"]
    assert story.request(request_id).quote == request.quote


def test_a_market_that_does_not_answer_opens_the_request_without_a_price(story: Story) -> None:
    """The price is a courtesy; why there is none is for the audit."""
    story.quotations.prices = NoPrices(cause="timeout")
    request_id = story.asked()
    assert story.request(request_id).quote is None
    assert story.details(request_id, "request.opened")["quote"] == {"error": "timeout"}


@pytest.mark.parametrize("look", [DONE, CANCELED, order(state="frozen")])
def test_the_market_is_asked_about_no_order_that_nobody_is_asked_to_cancel(story: Story, look: Order) -> None:
    """Its limit is small, and who mistypes a hundred uuids must not use it up."""
    story.exchange.looks = [sees(look)]
    request_id = story.ask()
    story.workflow.advance(request_id)
    assert story.state(request_id) is State.REFUSED
    assert not story.quotations.asked


def test_the_market_is_asked_about_no_order_that_too_few_may_approve(story: Story) -> None:
    """Nor where the request ends for another reason."""
    story.policy = ApprovalPolicy(approvers=frozenset({APPROVER.id}), tiers=parse_tiers("KRW-*:1=2"))
    request_id = story.ask()
    story.workflow.advance(request_id)
    assert story.state(request_id) is State.REFUSED
    assert not story.quotations.asked


def test_a_slow_exchange_is_told_once_and_given_up_after_a_minute(story: Story) -> None:
    """Who asked must not wait in silence, and a request must not hang for ever."""
    story.exchange.looks = [BLIND]
    request_id = story.ask()
    story.go_on(request_id, for_s=30)
    assert len(story.lines(NoticeKind.STILL_READING)) == 1
    story.go_on(request_id, for_s=40)
    request = story.request(request_id)
    assert request.state is State.REFUSED
    assert request.cause == "exchange_unreachable:timeout"
    assert len(story.lines(NoticeKind.STILL_READING)) == 1


def test_a_limited_look_waits_as_long_as_the_exchange_says(story: Story) -> None:
    """Asking again at once is what gets a key banned."""
    story.exchange.looks = [replace(limited(20.0), call=GET), sees(OPEN)]
    request_id = story.ask()
    story.go_on(request_id, for_s=19)
    assert story.exchange.looked == 1
    story.go_on(request_id, for_s=2)
    assert story.state(request_id) is State.PENDING


def test_a_limit_that_outlasts_the_minute_refuses_the_request(story: Story) -> None:
    """A ban of an hour is no reason to leave somebody without an answer."""
    story.exchange.looks = [replace(limited(3600.0), call=GET)]
    request_id = story.ask()
    story.go_on(request_id, for_s=61)
    assert story.request(request_id).cause == "exchange_unreachable:too_many_requests"


def test_nobody_left_who_could_approve_is_refused_without_asking_the_exchange(story: Story) -> None:
    """A card that nobody may approve would only hang."""
    story.policy = ApprovalPolicy(approvers=frozenset({REQUESTER.id}))
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    assert story.request(request_id).cause == "nobody_can_approve"
    assert story.exchange.looked == 0


def test_a_larger_order_than_its_approvers_may_cancel_is_refused_with_the_numbers(story: Story) -> None:
    """The card would hang until it expires; who asked can have approvers added instead."""
    story.policy = replace(story.policy, tiers=parse_tiers("KRW-*:50000000=3"))
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    request = story.request(request_id)
    assert (request.state, request.cause) == (State.REFUSED, "too_few_approvers")
    assert (request.approvals_required, request.approvers) == (3, (APPROVER.id, SECOND.id))
    assert [line.reason for line in story.lines(NoticeKind.REQUEST_REFUSED)] == [Reason.TOO_FEW_APPROVERS]
    details = story.details(request_id, "request.refused")
    assert (details["approvals_required"], details["approval_rule"]) == (3, "KRW-*:50000000=3")
    assert story.slack.cards == []


def test_the_same_order_is_asked_for_where_enough_people_may_approve(story: Story) -> None:
    """Who asks does not count as one of three; for somebody else they are three."""
    story.policy = replace(story.policy, tiers=parse_tiers("KRW-*:50000000=3"))
    request_id = story.ask(requester=STRANGER)
    story.go_on(request_id, for_s=1)
    assert story.request(request_id).approvals_required == 3


def test_too_few_approvers_for_any_order_are_told_without_asking_the_exchange(story: Story) -> None:
    """What cannot be approved at any value need not be read."""
    story.policy = replace(story.policy, approvals_required=3)
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    assert story.request(request_id).cause == "too_few_approvers"
    assert story.exchange.looked == 0


def test_a_repeated_delivery_gets_the_first_answer_again(story: Story) -> None:
    """Slack delivers twice now and then; one command makes one request, and a refusal stays a refusal."""
    first = command()
    made = story.workflow.command(first, home_team=HOME)
    assert story.workflow.command(first, home_team=HOME) == made
    second = command(order_uuid=first.order_uuid)
    assert story.workflow.command(second, home_team=HOME).refusal is Reason.ORDER_HAS_OPEN_REQUEST
    assert made.request_id is not None
    story.exchange.looks = [sees(DONE)]
    story.go_on(made.request_id, for_s=1)
    assert story.workflow.command(second, home_team=HOME).refusal is Reason.ORDER_HAS_OPEN_REQUEST
    refusals = AuditLog(story.database).list(Filter(action="command.refused"), limit=10)
    assert len(refusals) == 1


@pytest.mark.parametrize(
    ("changes", "policy", "reason"),
    [
        ({"order_uuid": None, "fault": Reason.NOT_A_UUID}, {}, Reason.NOT_A_UUID),
        ({"order_uuid": None}, {}, Reason.USAGE),
        ({"requester": replace(STRANGER, team_id="T0OTHER")}, {}, Reason.OTHER_WORKSPACE),
        ({"requester": STRANGER}, {"requesters": frozenset({REQUESTER.id})}, Reason.NOT_A_REQUESTER),
        ({}, {"max_open_requests_per_person": 0}, Reason.TOO_MANY_OPEN_REQUESTS),
        ({}, {"channels": frozenset({"C0OTHER"})}, Reason.CHANNEL_NOT_ALLOWED),
        ({"order_uuid": None}, {"channels": frozenset({"C0OTHER"})}, Reason.CHANNEL_NOT_ALLOWED),
    ],
)
def test_a_command_that_makes_no_request_is_audited(
    story: Story, changes: dict[str, Any], policy: dict[str, Any], reason: Reason
) -> None:
    """Auditors ask for what was refused, too: who, where, and why."""
    story.policy = ApprovalPolicy(approvers=frozenset({APPROVER.id}), **policy)
    asked = command(**changes)
    assert story.workflow.command(asked, home_team=HOME).refusal is reason
    (event,) = AuditLog(story.database).list(Filter(), limit=10)
    assert event["action"] == "command.refused"
    assert event["outcome"] == "refused"
    assert event["details"] == {"reason": reason.value}
    assert (event["actor"], event["channel_id"], event["trigger_id"]) == (
        asked.requester.id,
        "C0DESK",
        asked.trigger_id,
    )


# --- The card ---------------------------------------------------------------------------------------------------


def test_a_channel_that_takes_no_card_ends_the_request(story: Story) -> None:
    """Pending without a card is a request that nobody could ever approve."""
    story.slack.errors["post_card"] = [CannotPost("not_in_channel")]
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    request = story.request(request_id)
    assert request.state is State.REFUSED
    assert request.cause == "cannot_post:not_in_channel"
    (line,) = story.lines(NoticeKind.REQUEST_REFUSED)
    assert (line.reason, line.response_url) == (Reason.CANNOT_POST, RESPONSE_URL)


def test_a_card_goes_to_the_approvals_channel_and_who_asked_is_told_where(story: Story) -> None:
    """Approvers watch one channel; who typed the command in another must not wait before an empty one."""
    story.approvals_channel_id = "C0CARDS"
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    request = story.request(request_id)
    assert (request.channel_id, request.card_goes_to, request.card_channel_id) == ("C0DESK", "C0CARDS", "C0CARDS")
    (line,) = story.lines(NoticeKind.CARD_ELSEWHERE)
    assert (line.user_id, line.channel_id, line.response_url) == (REQUESTER.id, "C0DESK", RESPONSE_URL)
    assert present(line.request).card_ts == "1.000"
    assert request.response_url is None
    assert story.details(request_id, "request.created") == {"approvals_channel_id": "C0CARDS"}
    events = AuditLog(story.database).list(Filter(request_id=request_id), limit=10, newest_first=False)
    assert [event["channel_id"] for event in events] == ["C0DESK", "C0DESK", "C0CARDS"]
    assert story.details(request_id, "card.posted") == {
        "ts": "1.000",
        "permalink": "https://playground.slack.com/archives/C0DESK/p1000",
        "value_krw": "95000000",
    }


def test_where_the_command_is_typed_in_the_approvals_channel_nobody_is_sent_elsewhere(story: Story) -> None:
    """The card appears before their eyes."""
    story.approvals_channel_id = "C0DESK"
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    assert not story.request(request_id).is_card_elsewhere
    assert not story.slack.lines


def test_where_a_card_goes_is_frozen_with_the_command(story: Story) -> None:
    """While new settings are rolled out, an old and a new replica must not post a card each, in two channels."""
    story.approvals_channel_id = "C0CARDS"
    request_id = story.ask()
    story.approvals_channel_id = "C0NEW"
    story.workflow.advance(request_id)
    story.workflow.show(request_id)
    assert {channel_id for channel_id, _, _ in story.slack.cards} == {"C0CARDS"}


def test_an_approvals_channel_that_takes_no_card_ends_the_request(story: Story) -> None:
    """Nothing stays pending where nobody sees it; who asked is told in the channel where they are."""
    story.approvals_channel_id = "C0CARDS"
    story.slack.errors["post_card"] = [CannotPost("is_archived")]
    request_id = story.ask()
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.REFUSED
    (line,) = story.lines(NoticeKind.REQUEST_REFUSED)
    assert (line.reason, line.channel_id) == (Reason.CANNOT_POST, "C0DESK")
    assert not story.lines(NoticeKind.CARD_ELSEWHERE)


def test_a_lost_card_elsewhere_is_told_once_when_a_click_finds_it(story: Story) -> None:
    """Slack's answer was lost, so the bot did not know; and it does not tell twice."""
    story.approvals_channel_id = "C0CARDS"
    story.slack.errors["post_card"] = [TryLater("answer lost", retry_after_s=100.0)]
    request_id = story.ask()
    story.workflow.advance(request_id)
    story.workflow.show(request_id)
    for _ in range(2):
        story.workflow.click(click(request_id, STRANGER, channel_id="C0CARDS", message_ts="7.000"))
    story.go_on(request_id, for_s=1)
    assert len(story.lines(NoticeKind.CARD_ELSEWHERE)) == 1
    assert story.request(request_id).card_ts == "7.000"


def test_a_line_about_a_card_elsewhere_leaves_an_old_response_url_alone(story: Story) -> None:
    """Slack was away for half an hour: the address is dead by then, and the line goes another way."""
    story.approvals_channel_id = "C0CARDS"
    request_id = story.ask()
    story.workflow.advance(request_id)
    story.clock.advance(26 * 60)
    story.workflow.show(request_id)
    story.go_on(request_id, for_s=1)
    (line,) = story.lines(NoticeKind.CARD_ELSEWHERE)
    assert line.response_url is None


def test_a_slack_that_is_away_delays_the_card_and_nothing_else(story: Story) -> None:
    """An outage of Slack's must neither end the request nor spin."""
    story.slack.errors["post_card"] = [TryLater("away"), TryLater("ratelimited", retry_after_s=30.0)]
    request_id = story.ask()
    story.go_on(request_id, for_s=20)
    assert story.slack.cards == []
    story.go_on(request_id, for_s=20)
    assert [state for _, _, state in story.slack.cards] == [State.PENDING, State.PENDING]


def test_a_card_that_cannot_be_redrawn_does_not_stop_the_verdict(story: Story) -> None:
    """Somebody may delete the message; the decision and its thread do not depend on it."""
    request_id = story.approved()
    story.exchange.looks = [sees(CANCELED)]
    story.slack.errors["redraw_card"] = [CannotPost("message_not_found")] * 9
    story.go_on(request_id, for_s=2)
    assert story.slack.verdicts == [State.CANCELED]


def test_a_thread_that_takes_no_verdict_sends_it_to_the_requester(story: Story) -> None:
    """How it ended must reach somebody."""
    request_id = story.approved()
    story.exchange.looks = [sees(CANCELED)]
    story.slack.errors["post_verdict"] = [CannotPost("is_archived")]
    story.go_on(request_id, for_s=2)
    assert [line.user_id for line in story.lines(NoticeKind.VERDICT)] == [REQUESTER.id]
    assert story.request(request_id).said_state is State.CANCELED


def test_a_request_that_ended_before_its_card_could_be_posted_is_still_told(story: Story) -> None:
    """A channel archived in the meantime: the requester hears of the expiry all the same."""
    story.slack.errors["post_card"] = [TryLater("away", retry_after_s=2000.0), CannotPost("is_archived")]
    request_id = story.ask()
    story.go_on(request_id, for_s=2100)
    assert story.state(request_id) is State.EXPIRED
    assert len(story.lines(NoticeKind.VERDICT)) == 1


def test_a_click_on_a_lost_card_adopts_it(story: Story) -> None:
    """The answer to the post may be lost: the card is there, and a click tells where."""
    story.slack.errors["post_card"] = [TryLater("answer lost", retry_after_s=100.0)]
    request_id = story.ask()
    story.workflow.advance(request_id)
    story.workflow.show(request_id)
    assert story.workflow.click(click(request_id, STRANGER, message_ts="7.000")) is Reason.NOT_AN_APPROVER
    request = story.request(request_id)
    assert (request.card_channel_id, request.card_ts) == ("C0DESK", "7.000")
    story.go_on(request_id, for_s=1)
    assert story.slack.cards[-1] == ("C0DESK", "7.000", State.PENDING)


def test_a_card_that_is_posted_late_does_not_take_the_place_of_the_one_that_was_clicked(story: Story) -> None:
    """The verdict is in that one's thread; the other shows how it ended all the same."""
    request_id = story.ask()
    story.workflow.advance(request_id)
    story.slack.while_posting = [
        lambda: story.workflow.click(click(request_id, kind=DecisionKind.DENY, message_ts="9.000"))
    ]
    story.workflow.show(request_id)
    assert story.slack.cards[-1] == ("C0DESK", "1.000", State.DENIED)
    story.go_on(request_id, for_s=2)
    assert story.request(request_id).card_ts == "9.000"
    assert story.slack.cards[-1] == ("C0DESK", "9.000", State.DENIED)
    assert story.slack.verdicts == [State.DENIED]


def test_a_click_on_a_second_copy_redraws_that_copy(story: Story) -> None:
    """Two cards can stand there for one request; neither may go on showing buttons that lie."""
    request_id = story.asked()
    assert story.workflow.click(click(request_id, message_ts="9.000")) is None
    story.exchange.looks = [sees(CANCELED)]
    story.go_on(request_id, for_s=2)
    assert ("C0DESK", "9.000") in {(channel_id, ts) for channel_id, ts, _ in story.slack.cards}


def test_a_click_on_an_ended_card_redraws_it(story: Story) -> None:
    """If the buttons are still there, Slack has missed an update."""
    request_id = story.asked()
    story.workflow.click(click(request_id, kind=DecisionKind.DENY, message_ts="1.000"))
    story.go_on(request_id, for_s=1)
    drawn = len(story.slack.cards)
    assert story.workflow.click(click(request_id, SECOND, message_ts="1.000")) is Reason.ALREADY_DECIDED
    story.go_on(request_id, for_s=1)
    assert story.slack.cards[drawn:] == [("C0DESK", "1.000", State.DENIED)]
    assert story.slack.verdicts == [State.DENIED]


def test_a_line_that_slack_will_never_take_is_given_up(story: Story) -> None:
    """A person who left the workspace must not keep the worker busy."""
    story.exchange.looks = [sees(DONE)]
    story.slack.errors["tell"] = [TryLater("away"), CannotPost("user_not_found")]
    request_id = story.ask()
    story.go_on(request_id, for_s=5)
    assert story.slack.lines == []
    assert story.store.due(limit=10).notices == ()


# --- Deciding ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("actor", "changes", "reason"),
    [
        (STRANGER, {}, Reason.NOT_AN_APPROVER),
        (REQUESTER, {}, Reason.OWN_REQUEST),
        (replace(APPROVER, team_id="T0OTHER"), {}, Reason.OTHER_WORKSPACE),
        (APPROVER, {"kind": None}, Reason.UNKNOWN_BUTTON),
    ],
)
def test_a_click_that_does_not_count_is_answered_and_audited(
    story: Story, actor: Actor, changes: dict[str, Any], reason: Reason
) -> None:
    """No click is met with silence, and none moves what it may not."""
    request_id = story.asked()
    assert story.workflow.click(click(request_id, actor, message_ts="1.000", **changes)) is reason
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.PENDING
    assert [(line.user_id, line.reason) for line in story.lines(NoticeKind.CLICK_REFUSED)] == [(actor.id, reason)]
    assert story.actions(request_id)[-1] == "approval.refused"
    assert story.exchange.sent == []


def test_a_click_on_a_request_that_does_not_exist_is_answered(story: Story) -> None:
    """A forged or foreign value resolves to nothing, and says so."""
    for request_id in (None, 4711):
        assert story.workflow.click(click(request_id)) is Reason.UNKNOWN_REQUEST
    assert story.workflow.click(click(None, message_ts=None, kind=None)) is Reason.UNKNOWN_BUTTON
    assert len(AuditLog(story.database).list(Filter(action="approval.refused"), limit=10)) == 3


def test_a_person_removed_between_request_and_click_may_not_approve(story: Story) -> None:
    """The allowlist of today decides, and so does the one on the card."""
    request_id = story.asked()
    story.policy = ApprovalPolicy(approvers=frozenset({SECOND.id}))
    assert story.workflow.click(click(request_id, APPROVER)) is Reason.NOT_AN_APPROVER
    story.policy = ApprovalPolicy(approvers=frozenset({SECOND.id, STRANGER.id}))
    assert story.workflow.click(click(request_id, STRANGER)) is Reason.NOT_AN_APPROVER
    assert story.workflow.click(click(request_id, SECOND)) is None


def test_the_requester_may_deny_what_they_asked_for(story: Story) -> None:
    """Four eyes guard the cancel, not the change of mind of somebody who may decide."""
    request_id = story.asked()
    assert story.workflow.click(click(request_id, REQUESTER, kind=DecisionKind.DENY)) is None
    assert story.state(request_id) is State.DENIED


def test_who_asked_withdraws_and_nothing_is_sent(story: Story) -> None:
    """A mistake is taken back at once, and the order is free to be asked for again."""
    request_id = story.asked()
    withdraw = {"kind": DecisionKind.WITHDRAW, "message_ts": "1.000"}
    assert story.workflow.click(click(request_id, APPROVER, **withdraw)) is Reason.NOT_THE_REQUESTER
    assert story.workflow.click(click(request_id, STRANGER, **withdraw)) is Reason.NOT_THE_REQUESTER
    assert story.state(request_id) is State.PENDING

    assert story.workflow.click(click(request_id, REQUESTER, **withdraw)) is None
    assert story.workflow.click(click(request_id, REQUESTER, **withdraw)) is Reason.ALREADY_DECIDED
    assert story.workflow.click(click(request_id, APPROVER)) is Reason.ALREADY_DECIDED
    story.go_on(request_id, for_s=5)

    request = story.request(request_id)
    assert (request.state, request.ended_at) == (State.WITHDRAWN, request.decisions[0].decided_at)
    assert story.slack.verdicts == [State.WITHDRAWN]
    assert story.slack.cards[-1][2] is State.WITHDRAWN
    assert (story.exchange.sent, story.exchange.looked) == ([], 1)
    assert story.actions(request_id).count("approval.refused") == 4
    assert story.ask(order_uuid=request.order_uuid) > request_id


def test_what_was_approved_can_no_longer_be_withdrawn(story: Story) -> None:
    """By then the cancel may have left; saying withdrawn would be a lie."""
    request_id = story.approved()
    assert story.workflow.click(click(request_id, REQUESTER, kind=DecisionKind.WITHDRAW)) is Reason.ALREADY_DECIDED
    assert story.state(request_id) is State.APPROVED


def test_with_self_approval_the_requester_may_approve(story: Story) -> None:
    """The setting does what it says."""
    story.policy = ApprovalPolicy(approvers=frozenset({REQUESTER.id}), self_approval=True)
    request_id = story.asked()
    assert story.workflow.click(click(request_id, REQUESTER)) is None


def test_a_card_expires_at_its_time_and_not_before(story: Story) -> None:
    """Expired is not denied, and a click in the same second has one outcome."""
    request_id = story.asked()
    story.go_on(request_id, for_s=1795)
    assert story.state(request_id) is State.PENDING
    story.clock.now = present(story.request(request_id).expires_at)
    assert story.workflow.click(click(request_id)) is Reason.EXPIRED
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.EXPIRED
    assert story.workflow.click(click(request_id)) is Reason.EXPIRED
    assert story.slack.verdicts == [State.EXPIRED]


# --- Several approvals ------------------------------------------------------------------------------------------


def test_two_of_two_approve_and_each_approval_is_written_down(story: Story) -> None:
    """An approval that is not the last moves nothing, sends nothing, and is audited with the order as it was seen."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    before = story.request(request_id)
    assert story.workflow.click(click(request_id, APPROVER, message_ts="1.000")) is None
    story.go_on(request_id, for_s=1)
    recorded = story.request(request_id)
    assert (recorded.state, recorded.expires_at) == (State.PENDING, before.expires_at)
    assert [each.actor for each in recorded.counted()] == [APPROVER]
    assert story.slack.cards[-1] == ("C0DESK", "1.000", State.PENDING)
    assert recorded.card_shown_revision == recorded.revision > before.revision
    details = story.details(request_id, "approval.recorded")
    assert details["order"] == order(uuid=recorded.order_uuid).to_json()
    assert (details["approvals"], details["approvals_required"]) == ([APPROVER.id], 2)
    assert story.exchange.sent == []

    assert story.workflow.click(click(request_id, SECOND, message_ts="1.000")) is None
    assert story.state(request_id) is State.APPROVED
    assert story.details(request_id, "request.approved")["approvals"] == [APPROVER.id, SECOND.id]
    story.exchange.looks = [sees(CANCELED)]
    story.go_on(request_id, for_s=2)
    assert story.state(request_id) is State.CANCELED
    assert story.actions(request_id)[3:6] == ["approval.recorded", "request.approved", "cancel.sent"]


def test_a_crash_after_the_first_approval_loses_nothing(story: Story, tmp_path: Path) -> None:
    """Acknowledged is committed: the next process shows one of two, and the second approval is the last."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    assert story.workflow.click(click(request_id, APPROVER, message_ts="1.000")) is None
    after = Story(f"sqlite:///{tmp_path / 'cancels.db'}")
    after.policy = story.policy
    after.go_on(request_id, for_s=1)
    assert after.slack.cards == [("C0DESK", "1.000", State.PENDING)]
    assert after.workflow.click(click(request_id, APPROVER)) is Reason.ALREADY_APPROVED
    assert after.workflow.click(click(request_id, SECOND)) is None
    assert after.state(request_id) is State.APPROVED
    after.database.close()


def test_one_person_never_counts_twice(story: Story) -> None:
    """A double click is not a second pair of eyes; it is refused, told and audited, and the buttons stay."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    assert story.workflow.click(click(request_id, APPROVER, message_ts="1.000")) is None
    for _ in range(2):
        assert story.workflow.click(click(request_id, APPROVER, message_ts="1.000")) is Reason.ALREADY_APPROVED
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.PENDING
    assert [line.reason for line in story.lines(NoticeKind.CLICK_REFUSED)] == [Reason.ALREADY_APPROVED] * 2
    assert story.actions(request_id)[3:] == ["approval.recorded", *["approval.refused"] * 2]
    assert len(story.request(request_id).decisions) == 1


def test_who_asked_is_not_one_of_two(story: Story) -> None:
    """Four eyes are other people's."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    assert story.workflow.click(click(request_id, APPROVER)) is None
    assert story.workflow.click(click(request_id, REQUESTER)) is Reason.OWN_REQUEST
    story.policy = replace(story.policy, self_approval=True)
    assert story.workflow.click(click(request_id, REQUESTER)) is Reason.NOT_AN_APPROVER, "the card does not name them"


def test_with_self_approval_who_asked_is_one_of_two(story: Story) -> None:
    """The setting does what it says, and no more: another person is still needed."""
    story.policy = replace(story.policy, approvals_required=2, self_approval=True)
    request_id = story.asked()
    assert story.workflow.click(click(request_id, REQUESTER)) is None
    assert story.workflow.click(click(request_id, REQUESTER)) is Reason.ALREADY_APPROVED
    assert story.workflow.click(click(request_id, APPROVER)) is None
    assert story.state(request_id) is State.APPROVED


@pytest.mark.parametrize("denier", [APPROVER, SECOND, REQUESTER])
def test_one_denial_ends_it_also_by_who_had_approved(story: Story, denier: Actor) -> None:
    """To stop a cancel takes one, whatever others said and they themselves said before."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    assert story.workflow.click(click(request_id, APPROVER)) is None
    assert story.workflow.click(click(request_id, denier, kind=DecisionKind.DENY)) is None
    assert story.state(request_id) is State.DENIED
    assert story.workflow.click(click(request_id, SECOND)) is Reason.ALREADY_DECIDED
    story.go_on(request_id, for_s=5)
    assert story.exchange.sent == []
    assert story.slack.verdicts == [State.DENIED]


def test_the_approval_of_somebody_who_was_taken_off_does_not_count(story: Story) -> None:
    """The lists are asked again when the last approval comes, for everybody who approved before."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.ask(requester=STRANGER)
    story.go_on(request_id, for_s=1)
    assert story.workflow.click(click(request_id, APPROVER)) is None
    story.policy = replace(story.policy, approvers=frozenset({SECOND.id, REQUESTER.id}))
    assert story.workflow.click(click(request_id, SECOND)) is None
    request = story.request(request_id)
    assert (request.state, request.not_counted) == (State.PENDING, (APPROVER.id,))
    assert [each.actor for each in request.counted()] == [SECOND]
    details = story.details(request_id, "approval.recorded")
    assert (details["approvals"], details["not_counted"]) == ([SECOND.id], [APPROVER.id])
    assert story.workflow.click(click(request_id, APPROVER)) is Reason.NOT_AN_APPROVER
    assert story.workflow.click(click(request_id, REQUESTER)) is None
    assert story.state(request_id) is State.APPROVED
    assert story.details(request_id, "request.approved")["approvals"] == [SECOND.id, REQUESTER.id]


def test_approvals_that_have_come_to_be_enough_take_effect_at_a_click(story: Story) -> None:
    """Who is put back on the list counts again; their second click says so, and is no second approval."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    everybody = story.policy
    assert story.workflow.click(click(request_id, APPROVER)) is None
    story.policy = replace(everybody, approvers=frozenset({SECOND.id}))
    assert story.workflow.click(click(request_id, SECOND)) is None
    assert story.state(request_id) is State.PENDING
    story.policy = everybody
    assert story.workflow.click(click(request_id, APPROVER)) is None
    request = story.request(request_id)
    assert (request.state, request.not_counted, len(request.decisions)) == (State.APPROVED, (), 2)


def test_one_of_two_expires_like_none(story: Story) -> None:
    """An approval does not lengthen the time, and half of what is needed sends nothing."""
    story.policy = replace(story.policy, approvals_required=2)
    request_id = story.asked()
    story.go_on(request_id, for_s=1700)
    assert story.workflow.click(click(request_id, APPROVER)) is None
    story.go_on(request_id, for_s=110)
    assert story.state(request_id) is State.EXPIRED
    assert story.workflow.click(click(request_id, SECOND)) is Reason.EXPIRED
    assert story.exchange.sent == []


def test_what_a_request_needs_is_frozen_when_it_is_opened(story: Story) -> None:
    """The card has said two; a restart with other rules must not make it one, nor the order shrinking."""
    story.policy = replace(story.policy, tiers=parse_tiers("KRW-*:50000000=2"))
    request_id = story.asked()
    details = story.details(request_id, "request.opened")
    assert (details["approvals_required"], details["approval_rule"]) == (2, "KRW-*:50000000=2")
    assert Decimal(details["remaining_value"]) == 95_000_000
    story.policy = replace(story.policy, tiers=())
    assert story.workflow.click(click(request_id, APPROVER)) is None
    request = story.request(request_id)
    assert (request.state, request.approvals_required) == (State.PENDING, 2)
    assert str(request.approval_rule) == "KRW-*:50000000=2"


# --- Sending and finding out ------------------------------------------------------------------------------------


def ended(story: Story, cancels: list[CancelAnswer], looks: list[LookAnswer], *, for_s: float = 5) -> CancelRequest:
    """The request after its approval, with these answers."""
    request_id = story.approved()
    story.exchange.cancels, story.exchange.looks = cancels, looks
    story.go_on(request_id, for_s=for_s)
    return story.request(request_id)


def test_accepted_is_canceled_only_once_the_order_says_so(story: Story) -> None:
    """A 200 to the DELETE means that Upbit will try."""
    request_id = story.approved()
    story.exchange.looks = [sees(OPEN), sees(OPEN), sees(CANCELED)]
    story.workflow.advance(request_id)
    assert story.state(request_id) is State.ACCEPTED
    story.go_on(request_id, for_s=2)
    request = story.request(request_id)
    assert (request.state, request.canceled_by) == (State.CANCELED, CanceledBy.THIS_REQUEST)
    assert story.exchange.sent == ["nonce-0"]
    assert story.slack.verdicts == [State.CANCELED]
    assert story.actions(request_id)[:7] == [
        "request.created",
        "request.opened",
        "card.posted",
        "request.approved",
        "cancel.sent",
        "cancel.accepted",
        "order.canceled",
    ]


def test_filled_before_the_cancel_took_effect_is_filled(story: Story) -> None:
    """The order won the race; saying canceled would be a lie."""
    assert ended(story, [Accepted(order=OPEN, call=DELETE)], [sees(DONE)]).state is State.FILLED


def test_a_lost_answer_is_never_answered_by_sending_blindly(story: Story) -> None:
    """The look comes first, and what it shows cannot be claimed as ours for sure."""
    request = ended(story, [LOST], [sees(CANCELED)])
    assert (request.state, request.canceled_by) == (State.CANCELED, CanceledBy.UNPROVEN)
    assert len(story.exchange.sent) == 1


def test_a_lost_answer_with_the_order_still_open_is_sent_again_three_times_at_most(story: Story) -> None:
    """Lost on the way there: try again, but not for ever, and let people know."""
    request_id = story.approved()
    story.exchange.cancels = [LOST]
    story.go_on(request_id, for_s=29)
    assert len(story.exchange.sent) == 3
    story.go_on(request_id, for_s=60)
    assert story.state(request_id) is State.UNRESOLVED
    story.go_on(request_id, for_s=900)
    assert story.state(request_id) is State.FAILED
    assert len(story.exchange.sent) == 3
    assert story.slack.verdicts == [State.UNRESOLVED, State.FAILED]


def test_not_found_after_a_lost_answer_is_no_refusal(story: Story) -> None:
    """The first DELETE may have worked: then the second finds nothing. Only the order tells."""
    looks: list[LookAnswer] = [*[sees(OPEN)] * 6, sees(CANCELED)]
    request = ended(story, [LOST, GONE], looks, for_s=30)
    assert (request.state, request.canceled_by) == (State.CANCELED, CanceledBy.UNPROVEN)
    assert len(story.exchange.sent) == 2


def test_a_certain_refusal_after_a_lost_answer_is_no_rejection(story: Story) -> None:
    """The key may have lost its permission since; the DELETE before may have worked."""
    looks: list[LookAnswer] = [*[sees(OPEN)] * 6, sees(CANCELED)]
    request = ended(story, [LOST, NO_KEY], looks, for_s=30)
    assert (request.state, request.canceled_by) == (State.CANCELED, CanceledBy.UNPROVEN)


def test_not_found_on_the_first_try_does_not_prove_who_canceled(story: Story) -> None:
    """Most likely somebody was faster at Upbit; but what refuses may stand before what cancels."""
    request = ended(story, [GONE], [sees(CANCELED)])
    assert (request.state, request.canceled_by) == (State.CANCELED, CanceledBy.UNPROVEN)


def test_not_found_while_the_order_is_open_is_rejected_after_a_second_thought(story: Story) -> None:
    """The two answers contradict each other: one look is not enough, and more than a few are no use."""
    request = ended(story, [GONE], [sees(OPEN)])
    assert (request.state, request.cause, request.said) == (State.REJECTED, "order_not_found", GONE.message)
    assert story.exchange.looked > 3


def test_a_refusal_for_the_key_is_rejected_at_once(story: Story) -> None:
    """Upbit's name for it proves that nothing happened."""
    request = ended(story, [NO_KEY], [sees(OPEN)])
    assert (request.state, request.cause) == (State.REJECTED, "out_of_scope")
    assert story.exchange.looked == 1
    assert story.slack.verdicts == [State.REJECTED]


@pytest.mark.parametrize("answer", [NOT_SENT, limited(1.0)])
def test_what_surely_did_nothing_is_sent_again_by_itself(story: Story, answer: CancelAnswer) -> None:
    """A refused connection and a 429 cost a moment, not the request."""
    request = ended(story, [answer, answer, Accepted(order=OPEN, call=DELETE)], [sees(CANCELED)])
    assert (request.state, request.sends, request.unanswered) == (State.CANCELED, 1, 0)
    assert story.actions(request.id).count("cancel.unsent") == 2


def test_an_approval_that_could_not_be_sent_in_time_lapses(story: Story) -> None:
    """An approval is for now: five minutes later the market is another one."""
    request = ended(story, [NOT_SENT], [sees(OPEN)], for_s=301)
    assert (request.state, request.sends) == (State.LAPSED, 0)
    assert story.slack.verdicts == [State.LAPSED]
    assert len(story.exchange.sent) < 40


def test_an_approval_that_waited_for_a_restart_lapses(story: Story) -> None:
    """The bot was down for an hour: it must not send then."""
    request_id = story.approved()
    story.clock.advance(3600)
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.LAPSED
    assert story.exchange.sent == []


def test_a_process_that_stood_still_after_its_commit_sends_nothing(story: Story) -> None:
    """A DELETE that leaves minutes after it was announced could overtake what others have concluded."""
    request_id = story.approved()
    story.stalls = [0.0, 60.0]
    story.workflow.advance(request_id)
    assert story.exchange.sent == []
    assert story.state(request_id) is State.APPROVED
    story.exchange.looks = [sees(CANCELED)]
    story.go_on(request_id, for_s=5)
    assert story.state(request_id) is State.CANCELED


def test_a_crash_after_the_commit_is_found_out_by_a_look(story: Story) -> None:
    """Nobody knows whether the DELETE left: the order does."""
    request_id = story.approved()
    story.exchange.cancels = [LOST]

    def dies(uuid: str, *, nonce: str) -> CancelAnswer:
        raise KeyboardInterrupt

    workflow = story.workflow
    workflow._exchange = type("Dying", (ScriptedExchange,), {"cancel_order": staticmethod(dies)})()
    with pytest.raises(KeyboardInterrupt):
        workflow.advance(request_id)
    assert story.state(request_id) is State.SENDING
    story.exchange.looks = [sees(CANCELED)]
    story.go_on(request_id, for_s=5)
    assert story.state(request_id) is State.SENDING
    story.clock.advance(LEASE.total_seconds())
    story.go_on(request_id, for_s=1)
    assert story.state(request_id) is State.CANCELED
    assert story.exchange.sent == []


def test_thirty_seconds_without_certainty_call_people(story: Story) -> None:
    """Unresolved is loud, and the bot goes on looking until the exchange answers again."""
    request_id = story.approved()
    story.exchange.looks = [BLIND]
    story.go_on(request_id, for_s=29)
    assert story.state(request_id) is State.ACCEPTED
    story.go_on(request_id, for_s=70)
    assert story.state(request_id) is State.UNRESOLVED
    story.exchange.looks = [sees(CANCELED)]
    story.go_on(request_id, for_s=200)
    assert story.state(request_id) is State.CANCELED
    assert story.slack.verdicts == [State.UNRESOLVED, State.CANCELED]


def test_unresolved_looks_become_rare(story: Story) -> None:
    """An exchange that is away for hours is asked every five minutes, not every second."""
    request_id = story.approved()
    story.exchange.looks = [BLIND]
    story.go_on(request_id, for_s=620)
    looked = story.exchange.looked
    story.go_on(request_id, for_s=1800)
    assert 5 <= story.exchange.looked - looked <= 7
    assert story.state(request_id) is State.UNRESOLVED


def test_unresolved_does_not_block_a_new_request(story: Story) -> None:
    """People must be able to ask again for an order that nobody is sure about."""
    request_id = story.approved()
    story.exchange.looks = [BLIND]
    story.go_on(request_id, for_s=40)
    again = command(order_uuid=story.request(request_id).order_uuid)
    assert story.workflow.command(again, home_team=HOME).request_id is not None


def test_a_fill_while_looking_redraws_the_card(story: Story) -> None:
    """The card shows what the row says, and the row what was last seen."""
    partly = order(executed_volume=Decimal("0.40"), remaining_volume=Decimal("0.60"))
    request_id = story.approved()
    story.exchange.looks = [sees(OPEN), sees(partly)]
    story.go_on(request_id, for_s=3)
    assert present(story.request(request_id).order_now).executed_volume == Decimal("0.40")


def test_an_order_in_an_unknown_state_stays_uncertain(story: Story) -> None:
    """A word that Upbit has not documented proves nothing."""
    request = ended(story, [Accepted(order=OPEN, call=DELETE)], [sees(order(state="frozen"))], for_s=40)
    assert request.state in {State.ACCEPTED, State.UNRESOLVED}


def test_an_answer_after_the_lease_was_lost_is_audited(story: Story) -> None:
    """Who took over decides by looking, but what Upbit said is evidence of whose cancel it was."""
    request_id = story.approved()
    taken_over = story

    class Hanging(ScriptedExchange):
        def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
            taken_over.clock.advance(LEASE.total_seconds() + 1)
            assert take(taken_over.store, request_id, Lane.EXCHANGE) is not None
            return super().cancel_order(uuid, nonce=nonce)

    story.exchange = Hanging()
    assert story.workflow.advance(request_id) is None
    assert story.state(request_id) is State.SENDING
    assert story.actions(request_id)[-1] == "cancel.answered_late"
    story.exchange = ScriptedExchange()
    story.exchange.looks = [sees(CANCELED)]
    story.clock.advance(LEASE.total_seconds() + 1)
    story.go_on(request_id, for_s=1)
    assert story.request(request_id).canceled_by is CanceledBy.THIS_REQUEST


def test_a_lane_that_somebody_else_holds_is_left_to_them(story: Story) -> None:
    """Two replicas see the same row; one works."""
    request_id = story.approved()
    assert take(story.store, request_id, Lane.EXCHANGE) is not None
    assert take(story.store, request_id, Lane.SLACK) is not None
    assert story.workflow.advance(request_id) is None
    assert story.workflow.show(request_id) is None
    assert story.exchange.sent == []


# --- The order moves while people think --------------------------------------------------------------------------

PARTLY = order(remaining_volume=Decimal("0.80"), executed_volume=Decimal("0.20"))


@pytest.mark.parametrize(
    ("gone", "reason"), [(DONE, Reason.ALREADY_DONE), (CANCELED, Reason.ALREADY_CANCELED)], ids=["filled", "canceled"]
)
def test_an_order_that_ends_elsewhere_ends_its_request(story: Story, gone: Order, reason: Reason) -> None:
    """Nobody should think about a cancel of nothing; the buttons go, and who asked is told."""
    request_id = story.asked()
    story.exchange.looks = [sees(gone)]
    story.go_on(request_id, for_s=29)
    assert story.state(request_id) is State.PENDING
    story.go_on(request_id, for_s=5)
    request = story.request(request_id)
    assert (request.state, request.cause, request.sends) == (State.SUPERSEDED, reason.value, 0)
    assert present(request.order_now).state == gone.state
    assert present(request.order).state == "wait"
    assert story.slack.verdicts == [State.SUPERSEDED]
    assert story.slack.cards[-1][2] is State.SUPERSEDED
    assert story.exchange.sent == []
    assert story.workflow.click(click(request_id)) is Reason.ALREADY_DECIDED
    assert "request.superseded" in story.actions(request_id)
    assert story.ask(order_uuid=request.order_uuid) > request_id


def test_a_fill_while_people_think_redraws_the_card_and_is_what_is_approved(story: Story) -> None:
    """The frozen order stays what was asked; the approval holds the order as it was seen at the click."""
    request_id = story.asked()
    drawn = len(story.slack.cards)
    story.exchange.looks = [sees(PARTLY)]
    story.go_on(request_id, for_s=31)
    request = story.request(request_id)
    assert present(request.order).executed_volume == 0
    assert present(request.order_now).executed_volume == Decimal("0.20")
    assert len(story.slack.cards) == drawn + 1
    assert story.workflow.click(click(request_id)) is None
    events = AuditLog(story.database).list(Filter(request_id=request_id), limit=1000, newest_first=False)
    approved = next(event for event in events if event["action"] == "request.approved")
    details: Any = approved["details"]
    assert details["order"]["executed_volume"] == "0.20"
    assert details["looked_at"] == timestamp(present(request.looked_at))
    assert story.actions(request_id).count("order.changed") == 1


def test_a_refresh_that_finds_nothing_new_writes_no_event_and_draws_nothing(story: Story) -> None:
    """Ten thousand waiting cards must not fill the audit or Slack; when the order was seen is kept all the same."""
    request_id = story.asked()
    before, drawn, looked = story.request(request_id), len(story.slack.cards), story.exchange.looked
    events = story.actions(request_id)
    story.go_on(request_id, for_s=95)
    after = story.request(request_id)
    assert len(story.exchange.lists) == 3
    assert (story.exchange.looked, len(story.slack.cards), story.actions(request_id)) == (looked, drawn, events)
    assert present(after.looked_at) - present(before.looked_at) >= timedelta(seconds=89)
    assert after.revision == before.revision


@pytest.mark.parametrize("listed", [{}, {"x": DONE}], ids=["left out", "another one"])
def test_a_list_that_does_not_show_the_order_concludes_nothing(story: Story, listed: dict[str, Order]) -> None:
    """Only a look at the order itself does."""
    request_id = story.asked()
    story.exchange.listed = listed
    story.go_on(request_id, for_s=31)
    assert story.state(request_id) is State.PENDING
    assert story.exchange.looked == 2


def test_a_list_that_lies_concludes_nothing(story: Story) -> None:
    """It calls the order filled; the order itself does not."""
    request_id = story.asked()
    story.exchange.listed = {"x": replace(DONE, uuid=story.request(request_id).order_uuid)}
    story.go_on(request_id, for_s=65)
    assert story.state(request_id) is State.PENDING
    assert story.exchange.looked == 3
    assert "order.changed" not in story.actions(request_id)


def test_an_order_that_upbit_does_not_show_stays_pending_and_is_told_once(story: Story) -> None:
    """Not found proves nothing; but who decides should know it. Found again, the card says so no more."""
    request_id = story.asked()
    story.exchange.looks = [replace(GONE, call=GET)]
    story.go_on(request_id, for_s=95)
    request = story.request(request_id)
    assert (request.state, request.unseen_since is not None) == (State.PENDING, True)
    assert story.actions(request_id).count("order.unseen") == 1
    story.exchange.looks = [sees(OPEN)]
    story.go_on(request_id, for_s=31)
    assert story.request(request_id).unseen_since is None
    assert story.state(request_id) is State.PENDING


def test_the_first_look_that_fails_is_written_down_until_the_order_is_seen(story: Story) -> None:
    """Before the card and after the cancel as well: why nothing moved is asked a year later, too."""
    story.exchange.looks = [BLIND, BLIND, limited(0.5), sees(OPEN)]
    request_id = story.ask()
    story.go_on(request_id, for_s=8)
    assert story.actions(request_id) == ["request.created", "order.unseen", "request.opened", "card.posted"]
    assert story.request(request_id).unseen_since is None
    story.exchange.looks = [BLIND, BLIND, sees(OPEN), NOT_SENT, NOT_SENT, sees(CANCELED)]
    story.workflow.click(click(request_id, message_ts="1.000"))
    story.go_on(request_id, for_s=20)
    unseen = ["order.unseen", "order.unseen"]
    assert story.actions(request_id)[5:] == [
        *("cancel.sent", "cancel.accepted", *unseen, "order.canceled", "summary.posted")
    ]
    assert story.request(request_id).unseen_since is None


def test_to_be_told_to_wait_is_no_look_that_fails(story: Story) -> None:
    """A busy minute must not fill the audit with what says nothing about any order."""
    story.exchange.looks = [limited(0.5), replace(NOT_SENT, cause="rate_limited"), sees(OPEN)]
    request_id = story.ask()
    story.go_on(request_id, for_s=4)
    assert story.actions(request_id) == ["request.created", "request.opened", "card.posted"]


def test_a_list_that_fails_is_written_down_once(story: Story) -> None:
    """An exchange that is away for an hour must not fill the audit."""
    request_id = story.asked()
    workflow = story.workflow
    story.exchange.list_fails = BLIND
    for _ in range(3):
        story.clock.advance(31)
        assert workflow.refresh() is not None
    assert _everything(story).count("refresh.failed") == 1
    story.exchange.list_fails = None
    story.clock.advance(31)
    workflow.refresh()
    story.exchange.list_fails = BLIND
    story.clock.advance(31)
    workflow.refresh()
    assert _everything(story).count("refresh.failed") == 2
    assert story.state(request_id) is State.PENDING


def _everything(story: Story) -> list[str]:
    return [str(event["action"]) for event in AuditLog(story.database).list(Filter(), limit=1000)]


def test_a_list_that_cannot_be_read_is_made_up_for_by_single_looks(story: Story) -> None:
    """One order may have spoiled the answer for ninety-nine others."""
    request_id = story.asked()
    story.exchange.list_fails = Unknown(cause="not_json", call=GET)
    story.exchange.looks = [sees(DONE)]
    story.go_on(request_id, for_s=31)
    assert story.state(request_id) is State.SUPERSEDED


def test_what_a_rate_limit_holds_back_is_refreshed_as_soon_as_it_is_over(story: Story) -> None:
    """Nothing is taken in vain, and nothing is asked meanwhile."""
    request_id = story.asked()
    story.clock.advance(31)
    story.exchange.holds["GET"] = 0.5
    assert story.workflow.refresh() == 0.5
    assert story.exchange.lists == []
    story.exchange.holds.clear()
    story.exchange.looks = [sees(CANCELED)]
    story.workflow.refresh()
    assert story.state(request_id) is State.SUPERSEDED


def test_two_replicas_do_not_ask_for_the_same(story: Story) -> None:
    """What one has taken is not due for the other until its time, also if the one dies with it."""
    story.asked()
    story.clock.advance(31)
    first = story.store.take_refresh(limit=100, again_in_s=30)
    assert len(first) == 1
    assert story.store.take_refresh(limit=100, again_in_s=30) == ()
    story.clock.advance(30)
    assert story.store.take_refresh(limit=100, again_in_s=30) == first


def test_many_orders_that_moved_are_all_looked_at_a_few_at_a_time(story: Story) -> None:
    """The first of them must not stand before the last, and one call of refresh ends soon."""
    asked = [story.ask(requester=Actor(id=f"U0R{n}", team_id=HOME)) for n in range(12)]
    for request_id in asked:
        story.workflow.advance(request_id)
    story.clock.advance(31)
    story.exchange.looks = [sees(DONE)]
    rounds = 0
    while story.store.due(limit=10).refresh:
        rounds += 1
        assert rounds < 10
        story.workflow.refresh()
    assert rounds == 3
    assert {story.state(request_id) for request_id in asked} == {State.SUPERSEDED}


def test_a_clock_that_is_set_back_stops_no_refresh(story: Story) -> None:
    """Otherwise no order would be looked at for as long as the clock was set back."""
    story.asked()
    story.store.due(limit=10)
    story.clock.advance(-3600)
    story.store.due(limit=10)
    assert story.store.due(limit=10).refresh


def test_an_approval_before_the_conclusion_wins_and_the_cancel_finds_out(story: Story) -> None:
    """The look was under way when somebody approved: one outcome, and the cancel is sent."""
    request_id = story.asked()
    story.clock.advance(31)
    told = story.workflow

    class Approved(ScriptedExchange):
        def get_order(self, uuid: str) -> LookAnswer:
            if self.looked == 0:
                assert told.click(click(request_id)) is None
            return super().get_order(uuid)

    approving = Approved()
    approving.looks = [sees(DONE)]
    approving.cancels = [GONE]
    story.exchange = approving
    told._exchange = approving
    told.refresh()
    assert approving.sent == ["nonce-0"]
    story.go_on(request_id, for_s=5)
    assert story.state(request_id) is State.FILLED
    assert "request.superseded" not in story.actions(request_id)


# --- Settling ---------------------------------------------------------------------------------------------------


def test_a_person_settles_what_the_bot_cannot_know(story: Story) -> None:
    """The account was closed, say: somebody looked, and their name stands under it."""
    request_id = story.approved()
    story.exchange.looks = [BLIND]
    story.go_on(request_id, for_s=40)
    operator = Actor(id="cli:operator")
    settled = present(
        settle(story.store, request_id, verdict=Verdict.CANCELED, reason="seen in the app", actor=operator)
    )
    assert (settled.state, settled.settled_verdict) == (State.SETTLED, Verdict.CANCELED)
    story.go_on(request_id, for_s=1)
    assert story.slack.verdicts[-1] is State.SETTLED
    assert settle(story.store, 4711, verdict=Verdict.OPEN, reason="?", actor=operator) is None
    with pytest.raises(IllegalTransition):
        settle(story.store, request_id, verdict=Verdict.OPEN, reason="again", actor=operator)


# --- A database that fails --------------------------------------------------------------------------------------


def test_a_database_that_is_away_means_that_nothing_was_done(story: Story) -> None:
    """The person is told so, and it is true."""
    request_id = story.asked()
    story.database.engine.dispose()
    broken = Story.__new__(Story)
    broken.__dict__.update(story.__dict__)
    away = Database("sqlite:////nowhere/cancels.db", clock=story.clock)
    broken.store = SqlStore(away)
    with pytest.raises(NothingDone):
        broken.workflow.command(command(), home_team=HOME)
    with pytest.raises(NothingDone):
        broken.workflow.click(click(request_id))
    away.close()
    assert story.state(request_id) is State.PENDING


class FlickeringStore(SqlStore):
    """A database that is away just when a lane is given back."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.is_away = False

    def release(self, lease: Lease, *, due_in_s: float | None, seen_revision: int) -> float | None:
        if self.is_away:
            raise NothingDone("away")
        return super().release(lease, due_in_s=due_in_s, seen_revision=seen_revision)


class DoubtfulStore(SqlStore):
    """A database that is cut off while the taking of a lane is committed."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.is_cut_off = False

    @contextmanager
    def lease(self, request_id: int, lane: Lane, *, kept: Lease | None = None) -> Iterator[SqlTaken | None]:
        with super().lease(request_id, lane, kept=kept) as taken:
            yield taken
        if self.is_cut_off:
            raise CommitInDoubt("cut off")


def test_nothing_is_sent_where_its_announcement_is_in_doubt(story: Story) -> None:
    """Only who knows that it is written down may send it. The others look, and send it once it is surely too late."""
    store = DoubtfulStore(story.database)
    story.store = store
    request_id = story.approved()
    workflow = story.workflow
    store.is_cut_off = True
    with pytest.raises(CommitInDoubt):
        workflow.advance(request_id)
    assert story.exchange.sent == []
    assert story.state(request_id) is State.SENDING
    store.is_cut_off = False
    looked = story.exchange.looked
    assert workflow.advance(request_id) is not None
    assert (story.exchange.sent, story.exchange.looked) == ([], looked + 1)


def test_between_the_click_and_the_cancel_lie_two_commits(story: Story) -> None:
    """The decision, and the lease with the announcement: each waits for the disk, and somebody waits for the cancel."""
    request_id = story.asked()
    commits, before_sending = list[None](), list[int]()

    class Noting(ScriptedExchange):
        def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
            before_sending.append(len(commits))
            return super().cancel_order(uuid, nonce=nonce)

    story.exchange = Noting()
    event.listen(story.database.engine, "commit", lambda _connection: commits.append(None))
    assert story.workflow.click(click(request_id, message_ts="1.000")) is None
    story.workflow.advance(request_id)
    assert before_sending == [2]


@pytest.mark.parametrize("lane", [Lane.EXCHANGE, Lane.SLACK])
def test_a_lane_that_could_not_be_given_back_is_taken_up_again_at_once(story: Story, lane: Lane) -> None:
    """Nobody works under that lease any more: a hiccup of the database must not hold up a cancel for half a minute."""
    store = FlickeringStore(story.database)
    story.store = store
    request_id = story.approved()
    workflow = story.workflow
    work = workflow.advance if lane is Lane.EXCHANGE else workflow.show
    store.is_away = True
    with pytest.raises(NothingDone):
        work(request_id)
    store.is_away = False
    assert take(story.store, request_id, lane) is None
    story.exchange.looks = [sees(CANCELED)]
    if lane is Lane.EXCHANGE:
        assert story.state(request_id) is State.ACCEPTED
        assert workflow.advance(request_id) is None
        assert story.state(request_id) is State.CANCELED
    else:
        workflow.show(request_id)
        assert story.request(request_id).card_shown_revision == story.request(request_id).revision


# When the exchange wants to be left alone


def test_what_a_rate_limit_holds_back_is_left_as_it_is(story: Story) -> None:
    """Hundreds of requests that each wrote down that nothing was done would be the next overload."""
    request_id = story.approved()
    before = story.request(request_id)
    story.exchange.holds = {"GET": 0.4, "DELETE": 0.4}
    assert not story.workflow.may_look()
    assert story.workflow.advance(request_id) == 0.4
    assert story.request(request_id) == before
    assert story.exchange.sent == []


def test_a_limit_that_lasts_does_not_stop_the_clock(story: Story) -> None:
    """With an exchange that answers 429 all the time, who asked must still hear soon that it cannot be read."""
    request_id = present(story.workflow.command(command(), home_team=HOME).request_id)
    story.exchange.holds = {"GET": 0.4}
    story.exchange.looks = [NotSent(cause="rate_limited", call=GET, retry_after_s=0.4)]
    workflow = story.workflow
    workflow._monotonic = lambda: float(story.clock.now.timestamp())
    for _ in range(200):
        workflow.advance(request_id)
        story.clock.advance(0.5)
        if story.state(request_id) is State.REFUSED:
            break
    assert story.state(request_id) is State.REFUSED
    assert story.clock.now - START < timedelta(seconds=70)


def test_a_cancel_goes_where_only_looks_are_held_back(story: Story) -> None:
    """The last calls of a second are kept for cancels."""
    request_id = story.approved()
    story.exchange.holds = {"GET": 0.4}
    story.workflow.advance(request_id)
    assert story.exchange.sent == ["nonce-0"]
    looked = story.exchange.looked
    assert story.workflow.advance(request_id) == 0.4
    assert story.exchange.looked == looked


def test_a_pending_request_expires_while_the_exchange_holds_everything_back(story: Story) -> None:
    """Its time was told to people, and nothing of Upbit's is needed for it."""
    request_id = story.asked()
    story.clock.advance(1801)
    story.exchange.holds = {"GET": 0.4, "DELETE": 0.4}
    story.workflow.advance(request_id)
    assert story.state(request_id) is State.EXPIRED


def test_during_a_ban_nothing_is_announced_and_the_cancel_lapses_in_its_time(story: Story) -> None:
    """`cancel.sent` says that a cancel may have left: not while it is known that it cannot."""
    request_id = story.approved()
    story.exchange.holds = {"GET": 600.0, "DELETE": 600.0}
    assert story.workflow.may_look()
    story.go_on(request_id, for_s=299)
    assert story.state(request_id) is State.APPROVED
    story.go_on(request_id, for_s=3)
    assert story.state(request_id) is State.LAPSED
    assert "cancel.sent" not in story.actions(request_id)


# When the clock is set


def test_a_clock_that_leaps_does_not_make_one_look_enough_for_failed(story: Story) -> None:
    """The cancel is on its way, and ten minutes pass in a moment: people are called, and the order is looked at."""
    request_id = story.approved()
    story.workflow.advance(request_id)
    story.clock.advance(600)
    story.exchange.looks = [sees(OPEN), sees(OPEN), sees(CANCELED)]
    story.go_on(request_id, for_s=59)
    assert "outcome.unresolved" in story.actions(request_id)
    assert story.state(request_id) is State.CANCELED


def test_a_clock_that_leaps_does_not_make_one_look_enough_for_rejected(story: Story) -> None:
    """Upbit said that there is no such order, and the first look shows it open: it may yet be canceled."""
    request_id = story.approved()
    story.exchange.cancels = [GONE]
    story.workflow.advance(request_id)
    story.clock.advance(20)
    story.exchange.looks = [sees(OPEN), sees(CANCELED)]
    story.go_on(request_id, for_s=5)
    assert story.state(request_id) is State.CANCELED


def test_a_clock_that_leaps_does_not_send_again_what_was_refused(story: Story) -> None:
    """Only a lost answer is a reason to send again; a refusal is answered."""
    request_id = story.approved()
    story.exchange.cancels = [GONE]
    story.workflow.advance(request_id)
    story.clock.advance(20)
    story.go_on(request_id, for_s=5)
    assert story.state(request_id) is State.REJECTED
    assert story.exchange.sent == ["nonce-0"]


def test_people_are_called_after_ten_looks_where_the_clock_was_set_back(story: Story) -> None:
    """By the clock it has not been long; by what was tried it has."""
    request_id = story.approved()
    story.workflow.advance(request_id)
    story.clock.advance(-86_400)
    story.go_on(request_id, for_s=59)
    assert story.state(request_id) is State.UNRESOLVED
    assert story.exchange.looked < 20


@pytest.mark.parametrize("back_s", [2, 600, 86_400])
def test_a_clock_that_is_set_back_delays_no_cancel(story: Story, back_s: float) -> None:
    """Everything that waits would otherwise wait for as long as the clock was set back."""
    request_id = story.approved()
    story.exchange.cancels = [NOT_SENT, Accepted(order=OPEN, call=DELETE)]
    story.exchange.looks = [sees(CANCELED)]
    story.workflow.advance(request_id)  # not sent: it waits to be sent again
    story.store.due(limit=10)
    story.clock.advance(-back_s)
    story.go_on(request_id, for_s=3)
    assert story.state(request_id) is State.CANCELED
    assert story.slack.verdicts == [State.CANCELED]
    times = [
        str(event["occurred_at"]) for event in AuditLog(story.database).list(Filter(), limit=100, newest_first=False)
    ]
    assert times == sorted(times)


def test_a_request_expires_by_the_clock_also_after_it_was_set_back(story: Story) -> None:
    """The card tells a time of day."""
    request_id = story.asked()
    story.store.due(limit=10)
    story.clock.advance(-600)
    story.go_on(request_id, for_s=2390)
    assert story.state(request_id) is State.PENDING
    story.go_on(request_id, for_s=20)
    assert story.state(request_id) is State.EXPIRED


def test_a_lease_that_a_clock_made_long_is_cut(story: Story) -> None:
    """Who held it may be dead; who lives is protected by the fence."""
    request_id = story.approved()
    held = present(take(story.store, request_id, Lane.EXCHANGE))
    story.store.due(limit=10)
    story.clock.advance(-600)
    story.store.due(limit=10)
    assert take(story.store, request_id, Lane.EXCHANGE) is None
    story.clock.advance(LEASE.total_seconds())
    taken = present(take(story.store, request_id, Lane.EXCHANGE))
    assert taken.fence == held.fence + 1


# Who comes late


def test_a_card_that_was_drawn_late_is_drawn_once_more(story: Story) -> None:
    """It stood still in the middle of drawing; meanwhile somebody else drew what is true now."""
    request_id = story.asked()
    with story.store.transaction(request_id) as tx:
        tx.change(redraw=True)
    late = present(take(story.store, request_id, Lane.SLACK))
    story.clock.advance(LEASE.total_seconds())
    assert story.workflow.show(request_id) is None
    assert story.store.due(limit=1).slack == ()
    assert story.store.release(late, due_in_s=None, seen_revision=0) is None
    assert story.store.due(limit=1).slack == (request_id,)
    drawn = len(story.slack.cards)
    story.workflow.show(request_id)
    assert len(story.slack.cards) == drawn + 1
