"""The reminder: once at most, half-way to the expiry, for those who may still approve; on both databases."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from builders import (
    APPROVER,
    HOME,
    REQUESTER,
    SECOND,
    START,
    FixedPrices,
    HandClock,
    OpenExchange,
    SilentMessenger,
    at_once,
    click,
    command,
    insist,
    order,
    present,
)
from databases import migrated

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.store import LEASE, SqlStore
from bot.database.verification import verify
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor
from bot.domain.cancel_request import CancelRequest, Decision, DecisionKind, State
from bot.domain.errors import CannotPost, TryLater
from bot.domain.event_filter import Filter
from bot.domain.reminder import LEAST_TIME_TO_LIVE, reminder_window
from bot.slack import messages
from bot.workflow import CancelWorkflow

POLICY = ApprovalPolicy(approvers=frozenset({APPROVER.id, SECOND.id, REQUESTER.id}), approvals_required=1)


class Thread(SilentMessenger):
    """A Slack that notes its reminders, or fails them as it is told to."""

    def __init__(self) -> None:
        self.reminders: list[tuple[str, ...]] = []
        self.asked = 0
        self.errors: list[Exception] = []

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        self.reminders.append(tuple(may_still_approve))


class Desk:
    """A request that waits for half an hour, and the bot that works on it."""

    def __init__(self, url: str, *, time_to_live: timedelta = timedelta(minutes=30)) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        migrated(self.database)
        self.store = SqlStore(self.database)
        self.thread = Thread()
        self.policy = POLICY
        self.time_to_live = time_to_live
        self.id = 0

    def bot(self) -> CancelWorkflow:
        """The bot as it is after a restart, or another replica."""
        return CancelWorkflow(
            store=self.store,
            exchange=OpenExchange(),
            quotations=FixedPrices(),
            messenger=self.thread,
            policy=self.policy,
            approval_ttl=self.time_to_live,
            send_within=timedelta(minutes=5),
            new_nonce=lambda: "nonce",
        )

    def ask(self, *, card: bool = True) -> None:
        answer = self.bot().command(command(), home_team=HOME)
        self.id = present(answer.request_id)
        self.bot().advance(self.id)
        if card:
            self.bot().show(self.id)

    @property
    def request(self) -> CancelRequest:
        return present(self.store.read(self.id))

    def work(self) -> None:
        """Do what is due now, on two replicas at the same instant."""
        bots = (self.bot(), self.bot())
        for job in self.store.due(limit=10).exchange:
            at_once(*[lambda bot=bot, job=job: insist(lambda: bot.advance(job)) for bot in bots])
        for job in self.store.due(limit=10).notices:
            at_once(*[lambda bot=bot, job=job: insist(lambda: bot.deliver(job)) for bot in bots])

    def wait(self, minutes: float) -> None:
        """Let the time pass at one go, and then work."""
        self.clock.now = START + timedelta(minutes=minutes)
        self.work()

    def announced(self) -> list[dict[str, Any]]:
        wanted = Filter(request_id=self.id, action="reminder.sent")
        return [dict(event) for event in AuditLog(self.database).list(wanted, limit=10)]


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    opened = Desk(database_url)
    yield opened
    assert verify(opened.database).fault is None
    opened.database.close()


def test_who_may_still_approve_is_reminded_half_way_and_once(desk: Desk) -> None:
    """By two replicas that look every minute, and restart each time; written down before it is posted."""
    desk.ask()
    for minute in range(1, 30):
        desk.wait(minute)
        assert len(desk.thread.reminders) == (minute >= 15)

    assert desk.thread.reminders == [(APPROVER.id, SECOND.id)]
    (event,) = desk.announced()
    assert event["details"]["may_still_approve"] == [APPROVER.id, SECOND.id]
    assert event["occurred_at"] == "2026-11-23T09:15:00.000000Z"
    assert desk.request.state is State.PENDING


def test_the_lane_wakes_for_the_reminder_and_then_for_the_expiry(desk: Desk) -> None:
    """Nobody polls: the row itself says when it is due."""
    desk.ask()
    assert desk.request.next_attempt_at == START + timedelta(minutes=15)
    desk.wait(15)
    assert desk.request.next_attempt_at == START + timedelta(minutes=30)


@pytest.mark.parametrize("required", [1, 2])
def test_who_has_approved_is_not_called_again(desk: Desk, required: int) -> None:
    """One of two is there: only the other one is asked for. With one of one, nobody."""
    desk.policy = replace(POLICY, approvals_required=required)
    desk.ask()
    desk.bot().click(click(desk.id, APPROVER))
    desk.wait(15)

    assert desk.thread.reminders == ([(SECOND.id,)] if required == 2 else [])


def test_who_is_no_longer_an_approver_is_not_called(desk: Desk) -> None:
    """The lists of today, as for the click."""
    desk.ask()
    desk.policy = replace(POLICY, approvers=frozenset({SECOND.id}))
    desk.wait(15)
    assert desk.thread.reminders == [(SECOND.id,)]


def test_with_self_approval_who_asked_is_called(desk: Desk) -> None:
    """They may act."""
    desk.policy = replace(POLICY, self_approval=True)
    desk.ask()
    desk.wait(15)
    assert desk.thread.reminders == [(APPROVER.id, REQUESTER.id, SECOND.id)]


@pytest.mark.parametrize("kind", [DecisionKind.APPROVE, DecisionKind.DENY])
def test_a_request_that_is_decided_is_brought_to_nobodys_mind(desk: Desk, kind: DecisionKind) -> None:
    """Also where the decision comes between the note in the audit and the post."""
    desk.ask()
    desk.clock.now = START + timedelta(minutes=15)
    desk.bot().advance(desk.id)
    desk.bot().click(click(desk.id, kind=kind))
    desk.work()

    assert (desk.thread.reminders, desk.thread.asked, len(desk.announced())) == ([], 0, 1)
    assert desk.store.due(limit=10).notices == ()


@pytest.mark.parametrize(("minutes", "count"), [(22.4, 1), (22.5, 0), (29, 0)])
def test_a_reminder_that_would_come_late_does_not_come(desk: Desk, minutes: float, count: int) -> None:
    """The bot was down at half-time: until three quarters it is made up for, and then it would only rush people."""
    desk.ask()
    desk.wait(minutes)
    assert len(desk.thread.reminders) == len(desk.announced()) == count


def test_a_card_that_nobody_has_seen_is_not_brought_to_mind(desk: Desk) -> None:
    """Slack is away: there is no thread yet, and the card itself will be news."""
    desk.ask(card=False)
    desk.wait(15)
    desk.bot().show(desk.id)
    desk.wait(16)
    assert (desk.thread.reminders, desk.announced()) == ([], [])


@pytest.mark.parametrize(("minutes", "count"), [(4, 1), (3.99, 0), (1, 0)])
def test_with_little_time_to_live_nobody_is_reminded(database_url: str, minutes: float, count: int) -> None:
    """Two minutes after a card nobody has forgotten it."""
    desk = Desk(database_url, time_to_live=timedelta(minutes=minutes))
    desk.ask()
    desk.wait(minutes / 2)
    assert len(desk.thread.reminders) == count
    desk.wait(minutes)
    assert desk.request.state is State.EXPIRED
    desk.database.close()


@pytest.mark.parametrize("error", [TryLater("timeout"), TryLater("fatal_error"), CannotPost("is_archived")])
def test_an_answer_that_is_lost_is_not_asked_for_again(desk: Desk, error: Exception) -> None:
    """It may have been posted; two reminders are worse than none."""
    desk.ask()
    desk.thread.errors = [error]
    for minute in range(15, 23):
        desk.wait(minute)
    assert (desk.thread.asked, desk.thread.reminders) == (1, [])
    assert len(desk.announced()) == 1


def test_what_slack_surely_did_not_post_is_tried_again_until_it_would_be_late(desk: Desk) -> None:
    """A rate limit is over soon; and if not, it is no matter."""
    limited = TryLater("ratelimited", retry_after_s=30.0, nothing_done=True)
    desk.ask()
    desk.thread.errors = [limited, limited]
    desk.wait(15)
    desk.wait(15.4)
    assert desk.thread.asked == 1
    desk.wait(15.5)
    desk.wait(16)
    assert (desk.thread.asked, len(desk.thread.reminders), len(desk.announced())) == (3, 1, 1)


def test_a_limit_that_lasts_ends_the_reminder(desk: Desk) -> None:
    """After three quarters of the time it is given up."""
    desk.ask()
    desk.thread.errors = [TryLater("ratelimited", retry_after_s=60.0, nothing_done=True)] * 30
    for minute in range(15, 30):
        desk.wait(minute)
    assert desk.thread.asked == 8
    assert desk.store.due(limit=10).notices == ()


def test_a_crash_after_the_post_reminds_nobody_twice(desk: Desk) -> None:
    """The process died before it could write anything more: it had finished before it asked Slack."""
    desk.ask()
    desk.thread.errors = [KeyboardInterrupt()]  # type: ignore[list-item]
    desk.clock.now = START + timedelta(minutes=15)
    desk.bot().advance(desk.id)
    (notice_id,) = desk.store.due(limit=10).notices
    with pytest.raises(KeyboardInterrupt):
        desk.bot().deliver(notice_id)
    desk.clock.now += LEASE
    desk.work()
    assert (desk.thread.asked, desk.thread.reminders) == (1, [])


def test_who_stood_still_past_the_lease_posts_nothing(desk: Desk) -> None:
    """Another replica has taken it up meanwhile, and has posted."""
    desk.ask()
    desk.clock.now = START + timedelta(minutes=15)
    desk.bot().advance(desk.id)
    (notice_id,) = desk.store.due(limit=10).notices
    late = present(desk.store.lease_notice(notice_id))
    desk.clock.now += LEASE
    desk.work()
    assert not desk.store.finish_before(late)
    desk.store.postpone_notice(late, due_in_s=0)
    desk.work()
    assert len(desk.thread.reminders) == 1


def test_a_line_for_a_request_that_is_gone_is_given_up(desk: Desk) -> None:
    """Somebody took everybody off the list between the note and the post."""
    desk.ask()
    desk.clock.now = START + timedelta(minutes=15)
    desk.bot().advance(desk.id)
    desk.policy = replace(POLICY, approvers=frozenset({"U0NEW"}))
    desk.work()
    assert (desk.thread.asked, desk.store.due(limit=10).notices) == (0, ())


# The window and the words

WAITING = CancelRequest(
    id=42,
    order_uuid="cdd92199-2897-4e14-9448-f923320408ad",
    state=State.PENDING,
    requester=REQUESTER,
    reason="",
    team_id=HOME,
    channel_id="C0DESK",
    trigger_id="t",
    created_at=START,
    order=order(),
    order_now=order(),
    approvals_required=2,
    approvers=(APPROVER.id, SECOND.id),
    opened_at=START,
    expires_at=START + timedelta(hours=1),
)


def test_the_reminder_is_for_the_third_quarter() -> None:
    """From the half to three quarters of what people were given, whatever that is."""
    window = present(reminder_window(WAITING))
    assert [moment - START for moment in window] == [timedelta(minutes=30), timedelta(minutes=45)]


@pytest.mark.parametrize(
    "changes",
    [
        {"state": State.APPROVED},
        {"state": State.REQUESTED},
        {"reminded_at": START},
        {"opened_at": None},
        {"expires_at": None},
        {"expires_at": START + LEAST_TIME_TO_LIVE - timedelta(seconds=1)},
    ],
)
def test_there_is_nothing_to_be_reminded_of(changes: dict[str, Any]) -> None:
    """Not open, not waiting any more, reminded before, or too short."""
    assert reminder_window(replace(WAITING, **changes)) is None


UNTIL = "<!date^1795428000^{date_short_pretty} {time}|2026-11-23 10:00 UTC>"


@pytest.mark.parametrize(
    ("notify", "says"),
    [
        ((), "May still approve it: <@U0SECOND>."),
        (("S0DESK",), "1 person may still approve it. For your attention: <!subteam^S0DESK>."),
        ((SECOND.id, "U0LEAD"), "1 person may still approve it. For your attention: <@U0SECOND>, <@U0LEAD>."),
        ((APPROVER.id, REQUESTER.id), "1 person may still approve it."),
    ],
)
def test_the_reminder_calls_who_is_to_be_called(notify: tuple[str, ...], says: str) -> None:
    """NOTIFY says who is called; without it, those who may still approve. Who has done their part is left alone."""
    approved = Decision(kind=DecisionKind.APPROVE, actor=APPROVER, decided_at=START)
    request = replace(WAITING, decisions=(approved,))
    line = messages.reminder(request, may_still_approve=(SECOND.id,), notify=notify)
    assert line.text == f"Request #42 still needs 1 approval and expires {UNTIL}; see the card above. {says}"
    assert "\n" not in line.text
    assert line.blocks[0]["text"]["text"] == line.text


def test_a_reminder_calls_twelve_people_at_most() -> None:
    """A group of two hundred is no reminder but an alarm."""
    people = tuple(f"U{number:03}" for number in range(200))
    line = messages.reminder(replace(WAITING, approvers=people), may_still_approve=people, notify=())
    assert line.text.count("<@") == 12
    assert "and 188 more" in line.text


def test_may_still_approve_is_the_policy_of_the_click() -> None:
    """One function for each path: whom the reminder names, the click does not refuse."""
    for policy in (POLICY, replace(POLICY, self_approval=True), replace(POLICY, approvers=frozenset({SECOND.id}))):
        for person in (APPROVER, SECOND, REQUESTER, Actor(id="U0STRANGER", team_id=HOME)):
            request = replace(WAITING, approvers=(APPROVER.id, SECOND.id, REQUESTER.id))
            refusal = policy.refusal(request, person, DecisionKind.APPROVE, START)
            assert (person.id in policy.may_still_approve(request)) == (refusal is None)
