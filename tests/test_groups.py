"""User groups on the allowlists: reading them from Slack, what is known of them, and what comes of not knowing it."""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

import pytest
from builders import (
    APPROVER,
    HOME,
    REQUESTER,
    SECOND,
    START,
    STRANGER,
    FixedPrices,
    HandClock,
    OpenExchange,
    SilentMessenger,
    at_once,
    click,
    command,
    present,
)
from databases import migrated

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor, Reason, timestamp
from bot.domain.cancel_request import CancelRequest, DecisionKind, State
from bot.domain.event_filter import Filter
from bot.domain.membership import MAX_IDS_IN_AN_EVENT, Group, Membership, ids_json
from bot.playground.slack import SlackWorkspace
from bot.slack.groups import LASTS_S, MAX_MEMBERS, READ_EVERY_S, RETRY_S, GroupReader
from bot.workflow import UNREACHABLE_AFTER, CancelWorkflow, Notice, NoticeKind

DESK: Final = "S0DESK"
RISK: Final = "S0RISK"
METHOD: Final = "usergroups.users.list"
KNOWN: Final = {DESK: Group(members=frozenset({APPROVER.id, SECOND.id}), read_at=START)}
UNREADABLE: Final = {DESK: Group(error="ratelimited")}
BOTH: Final = frozenset({DESK, STRANGER.id})


# --- Reading --------------------------------------------------------------------------------------------------------


class Time:
    """Both clocks of a reader, moved by hand."""

    def __init__(self) -> None:
        self.passed_s = 1000.0

    def now(self) -> datetime:
        return START + timedelta(seconds=self.passed_s - 1000.0)

    def monotonic(self) -> float:
        return self.passed_s


@pytest.fixture
def slack() -> Iterator[SlackWorkspace]:
    with SlackWorkspace(user_groups={DESK: {APPROVER.id, SECOND.id}, RISK: {REQUESTER.id}}) as workspace:
        yield workspace


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def reader(slack: SlackWorkspace, time: Time) -> GroupReader:
    return GroupReader(
        token="xoxb-playground",
        api_url=slack.api_url,
        group_ids={DESK, RISK},
        now=time.now,
        monotonic=time.monotonic,
    )


def test_before_the_first_reading_nothing_is_known_and_nobody_is_asked(
    reader: GroupReader, slack: SlackWorkspace
) -> None:
    """Whoever clicks must not wait for Slack; so looking at the membership makes no call."""
    membership = reader.membership()
    assert membership.is_awaited({DESK})
    assert membership.is_unknown({DESK})
    assert membership.people({DESK, STRANGER.id}) == {STRANGER.id}
    assert slack.calls(METHOD) == []


def test_each_group_is_one_call_and_is_not_read_again_before_its_time(
    reader: GroupReader, slack: SlackWorkspace, time: Time
) -> None:
    """Slack allows about twenty such calls a minute to the whole app."""
    assert reader.refresh() == READ_EVERY_S
    assert [call.arguments["usergroup"] for call in slack.calls(METHOD)] == [DESK, RISK]
    assert reader.membership().people({DESK, RISK}) == {APPROVER.id, SECOND.id, REQUESTER.id}
    time.passed_s += READ_EVERY_S - 1
    assert reader.refresh() == 1
    assert len(slack.calls(METHOD)) == 2
    time.passed_s += 1
    reader.refresh()
    assert len(slack.calls(METHOD)) == 4
    assert READ_EVERY_S + RETRY_S < LASTS_S, "a reading that fails once must not leave a gap"


def test_a_change_in_slack_is_known_at_the_next_reading(reader: GroupReader, slack: SlackWorkspace, time: Time) -> None:
    """Who was taken out of the group, or deactivated, may not approve a minute later."""
    reader.refresh()
    slack.set_user_group(DESK, {SECOND.id})
    assert reader.membership().people({DESK}) == {APPROVER.id, SECOND.id}
    time.passed_s += READ_EVERY_S
    reader.refresh()
    assert reader.membership().people({DESK}) == {SECOND.id}


@pytest.mark.parametrize(
    "mood", ["away", "error:plan_upgrade_required", "error:missing_scope", "error:internal_error", "ratelimited"]
)
def test_a_group_that_cannot_be_read_is_kept_for_a_minute_and_then_unknown(
    reader: GroupReader, slack: SlackWorkspace, time: Time, mood: str
) -> None:
    """A short outage stops nobody; a longer one must not let somebody approve who has left."""
    reader.refresh()
    slack.set_mood(mood, method=METHOD)
    time.passed_s += READ_EVERY_S
    assert reader.refresh() > 0
    assert reader.membership().people({DESK}) == {APPROVER.id, SECOND.id}
    time.passed_s += LASTS_S - READ_EVERY_S + 0.1
    membership = reader.membership()
    assert membership.is_unknown({DESK})
    assert not membership.is_awaited({DESK})
    assert membership.people({DESK}) == frozenset()
    told = membership.to_json({DESK})["membership"]
    assert isinstance(told, dict)
    assert isinstance(told[DESK], dict)
    assert told[DESK]["error"]
    assert told[DESK]["read_at"] == timestamp(START)

    slack.clear_moods()
    time.passed_s += READ_EVERY_S
    reader.refresh()
    assert reader.membership().people({DESK}) == {APPROVER.id, SECOND.id}


def test_nobody_refreshing_makes_a_group_unknown(reader: GroupReader, time: Time) -> None:
    """A reader that hangs or died fails closed by itself."""
    reader.refresh()
    time.passed_s += LASTS_S + 0.1
    assert reader.membership().is_unknown({DESK})
    assert reader.membership().groups[DESK].error == "not_read_in_time"


def test_a_group_that_is_gone_is_empty_at_once(reader: GroupReader, slack: SlackWorkspace, time: Time) -> None:
    """Deleting or disabling the group is how somebody takes all its people off; that is known, and not a failure."""
    reader.refresh()
    slack.remove_user_group(DESK)
    time.passed_s += READ_EVERY_S
    reader.refresh()
    membership = reader.membership()
    assert membership.people({DESK}) == frozenset()
    assert not membership.is_unknown({DESK})
    assert membership.groups[DESK].error == "no_such_subteam"


def test_slacks_limit_is_waited_for(reader: GroupReader, slack: SlackWorkspace) -> None:
    """Asking on would only prolong it."""
    slack.set_mood("ratelimited", method=METHOD, retry_after_s=17)
    assert reader.refresh() == 17


def test_a_group_without_end_is_not_taken_in(reader: GroupReader, slack: SlackWorkspace) -> None:
    """What is held in memory has a bound; so large a group is no list of approvers."""
    slack.set_user_group(DESK, {f"U{number:06}" for number in range(MAX_MEMBERS + 1)})
    reader.refresh()
    assert reader.membership().groups[DESK].error == "too_many_members"
    assert reader.membership().people({RISK}) == {REQUESTER.id}


# --- What an event keeps --------------------------------------------------------------------------------------------


def test_an_event_keeps_who_was_in_the_group_and_when_it_was_read() -> None:
    """A year later Slack no longer tells."""
    assert Membership(groups=KNOWN).to_json({DESK, "U0ANN", RISK}) == {
        "membership": {
            DESK: {"members": [APPROVER.id, SECOND.id], "read_at": timestamp(START)},
            RISK: {"read_at": None},
        }
    }
    assert Membership(groups=KNOWN).to_json({"U0ANN"}) == {}


def test_a_huge_group_is_cut_with_its_size_and_its_hash() -> None:
    """An event has a bound; what is cut off can still be proven by who has the list."""
    ids = [f"U{number:05}" for number in range(MAX_IDS_IN_AN_EVENT + 1)]
    kept = ids_json("members", set(ids))
    assert kept["members"] == ids[:-1]
    assert kept["members_count"] == len(ids)
    assert kept["members_sha256"] == hashlib.sha256(",".join(ids).encode()).hexdigest()
    assert ids_json("members", ids[:-1]) == {"members": ids[:-1]}


# --- The story of a request -----------------------------------------------------------------------------------------


class Ears(SilentMessenger):
    """A Slack that takes everything, and remembers what people were told."""

    def __init__(self) -> None:
        self.lines: list[Notice] = []

    def tell(self, notice: Notice) -> None:
        self.lines.append(notice)


class Team:
    """A workflow whose approvers are a group and one person; the groups are what the test says they are."""

    def __init__(self, url: str) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        migrated(self.database)
        self.store = SqlStore(self.database)
        self.ears = Ears()
        self.groups: Mapping[str, Group] = KNOWN
        self.policy = ApprovalPolicy(approvers=frozenset({DESK}))

    def membership(self) -> Membership:
        return Membership(groups=self.groups)

    @property
    def workflow(self) -> CancelWorkflow:
        return CancelWorkflow(
            store=self.store,
            exchange=OpenExchange(),
            quotations=FixedPrices(),
            messenger=self.ears,
            policy=self.policy,
            groups=self,
            approval_ttl=timedelta(minutes=30),
            send_within=timedelta(minutes=5),
            new_nonce=lambda: "nonce",
        )

    def ask(self, **changes: Any) -> int:
        return present(self.workflow.command(command(**changes), home_team=HOME).request_id)

    def opened(self, **changes: Any) -> int:
        request_id = self.ask(**changes)
        self.workflow.advance(request_id)
        assert self.request(request_id).state is State.PENDING
        return request_id

    def go_on(self, *, for_s: float) -> None:
        ends_at = self.clock.now + timedelta(seconds=for_s)
        while self.clock.now < ends_at:
            due = self.store.due(limit=10)
            for request_id in due.exchange:
                self.workflow.advance(request_id)
            for notice_id in due.notices:
                self.workflow.deliver(notice_id)
            self.clock.advance(0.5)

    def request(self, request_id: int) -> CancelRequest:
        return present(self.store.read(request_id))

    def event(self, action: str) -> dict[str, Any]:
        """The latest of its kind."""
        return dict(AuditLog(self.database).list(Filter(action=action), limit=1)[0])

    def told(self, kind: NoticeKind) -> list[tuple[str, Reason | None]]:
        return [(line.user_id, line.reason) for line in self.ears.lines if line.kind is kind]


@pytest.fixture
def team(database_url: str) -> Iterator[Team]:
    """Once on each database."""
    opened = Team(database_url)
    yield opened
    opened.database.close()


def without(*people: Actor) -> dict[str, Group]:
    members = frozenset({APPROVER.id, SECOND.id}) - {person.id for person in people}
    return {DESK: Group(members=members, read_at=START + timedelta(minutes=1))}


def test_members_of_a_group_approve_and_the_audit_says_who_they_were(team: Team) -> None:
    """Who may approve is what the group held when the card was posted, and still holds at the click."""
    request_id = team.opened()
    assert team.request(request_id).approvers == (APPROVER.id, SECOND.id)
    used = {DESK: {"members": [APPROVER.id, SECOND.id], "read_at": timestamp(START)}}
    assert team.event("request.opened")["details"]["membership"] == used
    assert team.workflow.click(click(request_id, STRANGER)) is Reason.NOT_AN_APPROVER
    assert team.event("approval.refused")["details"]["membership"] == used
    assert team.workflow.click(click(request_id, APPROVER)) is None
    assert team.event("request.approved")["details"]["membership"] == used


@pytest.mark.parametrize("kind", [DecisionKind.APPROVE, DecisionKind.DENY])
def test_a_person_who_left_the_group_between_request_and_click_decides_nothing(team: Team, kind: DecisionKind) -> None:
    """Also somebody who was deactivated: Slack lists them no more."""
    request_id = team.opened()
    team.groups = without(APPROVER)
    assert team.workflow.click(click(request_id, APPROVER, kind=kind)) is Reason.NOT_AN_APPROVER
    team.go_on(for_s=1)
    assert team.told(NoticeKind.CLICK_REFUSED) == [(APPROVER.id, Reason.NOT_AN_APPROVER)]
    details = team.event("approval.refused")["details"]
    assert details["reason"] == "not_an_approver"
    assert details["membership"][DESK]["members"] == [SECOND.id]
    assert team.request(request_id).state is State.PENDING
    assert team.workflow.click(click(request_id, SECOND, kind=kind)) is None


def test_a_person_who_joined_the_group_after_the_request_may_only_deny(team: Team) -> None:
    """The card did not name them; to prevent asks for less."""
    team.groups = without(SECOND)
    request_id = team.opened()
    team.groups = KNOWN
    assert team.workflow.click(click(request_id, SECOND)) is Reason.NOT_AN_APPROVER
    assert team.workflow.click(click(request_id, SECOND, kind=DecisionKind.DENY)) is None
    assert team.event("request.denied")["details"]["membership"][DESK]["members"] == [APPROVER.id, SECOND.id]


def test_a_group_that_cannot_be_read_refuses_the_click_and_says_so(team: Team) -> None:
    """Nobody is told that they may not, when the truth is that the bot could not find out."""
    request_id = team.opened()
    team.groups = UNREADABLE
    assert team.workflow.click(click(request_id, APPROVER)) is Reason.MEMBERSHIP_UNKNOWN
    assert team.workflow.click(click(request_id, APPROVER, kind=DecisionKind.DENY)) is Reason.MEMBERSHIP_UNKNOWN
    assert team.workflow.click(click(request_id, STRANGER)) is Reason.NOT_AN_APPROVER, "the card does not name them"
    team.go_on(for_s=1)
    assert team.told(NoticeKind.CLICK_REFUSED)[0] == (APPROVER.id, Reason.MEMBERSHIP_UNKNOWN)
    assert team.request(request_id).state is State.PENDING
    assert team.event("approval.refused")["details"]["membership"] == {DESK: {"read_at": None, "error": "ratelimited"}}
    assert team.workflow.click(click(request_id, REQUESTER, kind=DecisionKind.WITHDRAW)) is None


def test_people_who_are_named_decide_whatever_becomes_of_a_group(team: Team) -> None:
    """One group that cannot be read must not stop those who need no group."""
    team.policy = replace(team.policy, approvers=BOTH)
    request_id = team.opened()
    team.groups = UNREADABLE
    assert team.workflow.click(click(request_id, STRANGER)) is None
    assert team.request(request_id).state is State.APPROVED


def test_an_earlier_approval_counts_only_while_its_group_vouches_for_it(team: Team) -> None:
    """The membership of the first approval is not that of the second: who left in between is no pair of eyes."""
    team.policy = replace(team.policy, approvers=BOTH, approvals_required=2)
    request_id = team.opened()
    assert team.workflow.click(click(request_id, APPROVER)) is None
    team.groups = without(APPROVER)
    assert team.workflow.click(click(request_id, STRANGER)) is None
    request = team.request(request_id)
    assert (request.state, request.not_counted) == (State.PENDING, (APPROVER.id,))
    details = team.event("approval.recorded")["details"]
    assert (details["approvals"], details["not_counted"]) == ([STRANGER.id], [APPROVER.id])
    assert details["membership"][DESK]["members"] == [SECOND.id]
    assert team.workflow.click(click(request_id, SECOND)) is None
    assert team.request(request_id).state is State.APPROVED


def test_an_approval_that_could_not_be_confirmed_counts_again_when_it_can(team: Team) -> None:
    """Unreadable at the second approval is not gone: once the group is read again, a click says they are enough."""
    team.policy = replace(team.policy, approvers=BOTH, approvals_required=2)
    request_id = team.opened()
    assert team.workflow.click(click(request_id, APPROVER)) is None
    team.groups = UNREADABLE
    assert team.workflow.click(click(request_id, STRANGER)) is None
    assert team.request(request_id).state is State.PENDING
    assert team.workflow.click(click(request_id, STRANGER)) is Reason.ALREADY_APPROVED
    team.groups = KNOWN
    assert team.workflow.click(click(request_id, STRANGER)) is None
    assert team.request(request_id).state is State.APPROVED


def test_two_second_approvals_at_the_same_instant_make_one_cancel(team: Team) -> None:
    """Two of three: whoever of the last two is first completes it, the other is told that it is decided."""
    team.policy = replace(team.policy, approvers=BOTH, approvals_required=2)
    request_id = team.opened()
    assert team.workflow.click(click(request_id, STRANGER)) is None
    presses: list[Callable[[], Reason | None]] = [
        lambda actor=actor: team.workflow.click(click(request_id, actor))  # type: ignore[misc]
        for actor in (APPROVER, SECOND)
    ]
    outcomes = at_once(*presses)
    assert sorted(map(str, outcomes)) == ["None", "already_decided"]
    assert team.request(request_id).state is State.APPROVED
    assert len(team.event("request.approved")["details"]["approvals"]) == 2
    assert len(AuditLog(team.database).list(Filter(action="request.approved"), limit=10)) == 1


# --- Asking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "required", "reason"),
    [
        ({DESK: Group(members=frozenset(), read_at=START)}, 1, Reason.NOBODY_CAN_APPROVE),
        ({DESK: Group(members=frozenset({REQUESTER.id}), read_at=START)}, 1, Reason.NOBODY_CAN_APPROVE),
        ({DESK: Group(members=frozenset({REQUESTER.id, SECOND.id}), read_at=START)}, 2, Reason.TOO_FEW_APPROVERS),
        ({DESK: Group(members=frozenset(), read_at=START, error="no_such_subteam")}, 1, Reason.NOBODY_CAN_APPROVE),
    ],
)
def test_what_too_few_members_could_approve_is_refused_at_once_with_the_numbers(
    team: Team, groups: dict[str, Group], required: int, reason: Reason
) -> None:
    """A group is as many approvers as it has members, who asked not counted."""
    team.groups = groups
    team.policy = replace(team.policy, approvals_required=required)
    request_id = team.ask()
    team.workflow.advance(request_id)
    request = team.request(request_id)
    assert (request.state, request.cause, request.approvals_required) == (State.REFUSED, reason.value, required)
    details = team.event("request.refused")["details"]
    assert details["approvers"] == [id_ for id_ in [SECOND.id] if id_ in (groups[DESK].members or ())]
    assert DESK in details["membership"]


def test_a_request_waits_until_the_groups_are_read(team: Team) -> None:
    """A bot that has just started acknowledges and waits, instead of refusing what it cannot judge yet."""
    team.groups = {}
    request_id = team.ask()
    team.go_on(for_s=20)
    assert team.request(request_id).state is State.REQUESTED
    assert team.told(NoticeKind.STILL_ASKING_WHO_MAY) == [(REQUESTER.id, None)]
    team.groups = KNOWN
    team.go_on(for_s=10)
    assert team.request(request_id).state is State.PENDING


def test_a_card_waits_for_a_group_also_where_others_are_enough(team: Team) -> None:
    """Its members would not be on the card otherwise, and could not approve it for as long as it stands."""
    team.policy = replace(team.policy, approvers=BOTH)
    team.groups = {}
    request_id = team.ask()
    team.workflow.advance(request_id)
    assert team.request(request_id).state is State.REQUESTED
    team.groups = UNREADABLE
    team.go_on(for_s=2)
    assert team.request(request_id).approvers == (STRANGER.id,)


def test_a_request_whose_approvers_stay_unknown_is_given_up_after_a_minute(team: Team) -> None:
    """Bounded, and with a reason of its own."""
    team.groups = UNREADABLE
    request_id = team.ask()
    team.go_on(for_s=UNREACHABLE_AFTER.total_seconds() - 2)
    assert team.request(request_id).state is State.REQUESTED
    team.go_on(for_s=6)
    request = team.request(request_id)
    assert (request.state, request.cause) == (State.REFUSED, "membership_unknown")
    assert team.told(NoticeKind.REQUEST_REFUSED) == [(REQUESTER.id, Reason.MEMBERSHIP_UNKNOWN)]
    assert team.event("request.refused")["details"]["membership"][DESK]["error"] == "ratelimited"


@pytest.mark.parametrize(
    ("groups", "refusal"),
    [
        (KNOWN, Reason.NOT_A_REQUESTER),
        (UNREADABLE, Reason.MEMBERSHIP_UNKNOWN),
        ({}, Reason.MEMBERSHIP_UNKNOWN),
        ({DESK: Group(members=frozenset({REQUESTER.id}), read_at=START)}, None),
    ],
)
def test_a_command_of_a_group_is_asked_for_in_the_same_way(
    team: Team, groups: dict[str, Group], refusal: Reason | None
) -> None:
    """Refused honestly and audited with what was known; a list of groups that are empty is not an empty list."""
    team.groups = groups
    team.policy = replace(team.policy, requesters=frozenset({DESK}))
    answer = team.workflow.command(command(), home_team=HOME)
    assert answer.refusal is refusal
    if refusal is not None:
        details = team.event("command.refused")["details"]
        assert (details["reason"], set(details["membership"])) == (refusal.value, {DESK})
