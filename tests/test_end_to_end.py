"""The whole way, with the real process: Slack and Upbit are on loopback, and everything between them is the bot."""

import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from journey import (
    GUEST,
    PAIR_WITHOUT_BOT,
    PRIVATE_WITHOUT_BOT,
    WITHIN_S,
    Journey,
    Mode,
    recorded_id,
    started,
)
from postgresql import Postgresql

from bot.app import EXCHANGE_THREADS
from bot.playground.demo import BEN, CARA, DANA, DESK, EMIL, free_port, play, press_at_once
from bot.playground.exchange import Key, Mood
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Message

MARKER = "a word that must be found wherever secrets are looked for"
SENT = ["cancel.sent", "cancel.accepted", "order.canceled", "summary.posted"]


@pytest.fixture(scope="module")
def journey(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """A bot that the tests of this module share, of the kind that the test asks for: each test has its own order."""
    mode: Mode
    mode, kind = request.param
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    with started(
        tmp_path_factory.mktemp(f"{mode}-{kind}"),
        mode=mode,
        database_url=postgresql.create() if postgresql else None,
    ) as shared:
        yield shared
        assert shared.bot.stop() == 0
        assert not shared.complaints()
        assert shared.audit_fault() is None


KINDS: dict[str, tuple[Mode, str]] = {
    "http-sqlite": ("http", "sqlite"),
    "socket-postgresql": ("socket", "postgresql"),
    "http-postgresql": ("http", "postgresql"),
    "socket-sqlite": ("socket", "sqlite"),
}


def _with(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("journey", [KINDS[kind] for kind in kinds], ids=kinds, indirect=True, scope="module")


everywhere = _with(*KINDS)
both_ways = _with("http-sqlite", "socket-postgresql")
once = _with("http-sqlite")


# --- The main job ---------------------------------------------------------------------------------------------------


@everywhere
def test_a_cancel_is_asked_for_approved_sent_once_and_told(journey: Journey) -> None:
    """This is what the bot is for; it must be the same over HTTP and Socket Mode, on SQLite and PostgreSQL."""
    answer = journey.slack.command(DANA.id, DESK, "my btc order")
    assert "is not the uuid of an order" in answer.text

    uuid = journey.exchange.place(volume="1")
    journey.exchange.fill(uuid, "0.42")
    asked = journey.ask(uuid=uuid, reason="spread too wide")
    lines = journey.slack.words(asked.card)
    assert lines[0] == f"Cancel this order? Request #{asked.id}"
    assert {
        "Remaining: 0.58 BTC",
        "Executed: 0.42 BTC",
        "Reason: `spread too wide`",
        "[Approve] [Deny] [Deny with a reason…] [Withdraw (who asked)]",
    } <= set(lines)

    journey.press(CARA, asked, "approve")
    assert "It needs 1 approval of: @ben, @emil." in journey.hears(CARA, f"You may not decide request #{asked.id}")
    journey.press(DANA, asked, "approve")
    journey.hears(DANA, f"You asked for request #{asked.id} yourself")
    assert not journey.exchange.deletes(uuid)

    journey.press(BEN, asked, "approve")
    assert journey.verdict(asked).startswith("Canceled: 0.58 of 1 BTC; 0.42 BTC had been filled.")
    assert not journey.shows(asked, "canceled").buttons
    (delete,) = journey.exchange.deletes(uuid)
    assert delete.verified
    assert delete.effective
    assert journey.exchange.order(uuid)["state"] == "cancel"

    said = journey.audited(asked.id, "summary.posted")
    (summary,) = journey.slack.thread(asked.card.channel, asked.card.ts)
    assert (said["channel_id"], said["details"]["ts"]) == (summary.channel, summary.ts)
    assert (
        said["details"]["permalink"]
        == f"https://playground.slack.com/archives/{summary.channel}/p{summary.ts.replace('.', '')}"
    )
    posted = journey.audited(asked.id, "card.posted")
    assert (posted["channel_id"], posted["details"]["ts"]) == (asked.card.channel, asked.card.ts)
    events = [event for event in journey.events(asked.id) if event["action"] != "card.posted"]
    assert [(event["action"], event["actor"]) for event in events] == [
        ("request.created", DANA.id),
        ("request.opened", "system"),
        ("approval.refused", CARA.id),
        ("approval.refused", DANA.id),
        ("request.approved", BEN.id),
        *((action, "system") for action in SENT),
    ]
    assert [event["details"]["reason"] for event in events[2:4]] == ["not_an_approver", "own_request"]
    sent, canceled = events[5], events[7]
    assert sent["details"]["nonce"] == delete.nonce
    assert canceled["details"]["by"] == "this_request"
    assert events[0]["reason"] == "spread too wide"
    assert journey.audit_fault() is None


@everywhere
def test_who_asked_withdraws_and_nobody_else(journey: Journey) -> None:
    """A mistake is taken back without waiting for an approver; the button is everyone's to see, and one person's."""
    asked = journey.ask()
    journey.press(BEN, asked, "withdraw")
    assert "may withdraw it" in journey.hears(BEN, "Only @dana", f"request #{asked.id}")

    journey.press(DANA, asked, "withdraw")
    assert journey.verdict(asked).startswith("Withdrawn by @dana, who asked for it: nothing was sent to Upbit.")
    assert not journey.shows(asked, "withdrawn, nothing was sent").buttons
    journey.forge(BEN, asked, "approve", value=str(asked.id))
    journey.hears(BEN, f"Request #{asked.id} was already withdrawn by @dana")
    journey.audited(asked.id, "summary.posted")

    refused = [event["details"]["reason"] for event in journey.events(asked.id) if event["outcome"] == "refused"]
    assert refused == ["not_the_requester", "already_decided"]
    assert "request.withdrawn" in journey.actions(asked.id)
    assert not journey.exchange.deletes(asked.uuid)


@everywhere
@pytest.mark.parametrize(("ends", "says"), [("fill", "the order was fully executed"), ("cancel", "canceled elsewhere")])
def test_an_order_that_ends_elsewhere_ends_its_request(journey: Journey, ends: str, says: str) -> None:
    """Nobody is left with a button that cancels nothing, and who asked is told why."""
    asked = journey.ask()
    if ends == "fill":
        journey.exchange.fill(asked.uuid)
    else:
        journey.exchange.cancel_elsewhere(asked.uuid)
    journey.bring_forward(asked.id, "refresh_at")
    verdict = journey.verdict(asked)
    assert verdict.startswith("Superseded: ")
    assert says in verdict
    assert "Asked by @dana" in verdict
    assert not journey.shows(asked, "the order ended elsewhere, nothing was sent").buttons
    journey.forge(BEN, asked, "approve", value=str(asked.id))
    assert says in journey.hears(BEN, f"Request #{asked.id} ended before your click")
    journey.audited(asked.id, "summary.posted")
    assert journey.actions(asked.id)[2] == "request.superseded"
    assert not journey.exchange.deletes(asked.uuid)


@everywhere
def test_a_card_follows_its_order_while_people_think(journey: Journey) -> None:
    """Who approves sees what is left, and the thread says what has changed since the request."""
    uuid = journey.exchange.place(volume="1")
    asked = journey.ask(uuid=uuid)
    journey.exchange.fill(uuid, "0.2")
    journey.bring_forward(asked.id, "refresh_at")

    def is_redrawn() -> bool:
        card = journey.slack.message(DESK, asked.card.ts)
        return card is not None and "Remaining: 0.8 BTC" in journey.slack.words(card)

    assert journey.until(is_redrawn)
    journey.press(BEN, asked, "approve")
    verdict = journey.verdict(asked)
    assert verdict.startswith("Canceled: 0.8 of 1 BTC; 0.2 BTC had been filled.")
    assert "Remaining: 1 BTC → 0.8 BTC" in verdict
    approved = journey.audited(asked.id, "request.approved")
    assert approved["details"]["order"]["executed_volume"] == "0.2"
    assert "order.changed" in journey.actions(asked.id)


@both_ways
def test_a_denied_request_sends_nothing(journey: Journey) -> None:
    """A denial is final: the order stays as it is, and who asked reads who denied."""
    asked = journey.ask()
    journey.press(EMIL, asked, "deny")
    assert journey.verdict(asked).startswith("Denied by @emil: nothing was sent to Upbit.")
    assert not journey.shows(asked, "denied, nothing was sent").buttons
    journey.audited(asked.id, "summary.posted")
    assert journey.actions(asked.id) == ["request.created", "request.opened", "request.denied", "summary.posted"]
    assert not journey.exchange.deletes(asked.uuid)
    assert journey.exchange.order(asked.uuid)["state"] == "wait"


@everywhere
def test_a_denial_with_a_reason_tells_everyone_why(journey: Journey) -> None:
    """The form opens for who may deny, and what is written into it is on the card, in the thread and in the audit."""
    why = "<!here> \u202efat finger & " + "x" * 970
    asked = journey.ask()
    journey.press(CARA, asked, "deny_with_reason")
    journey.hears(CARA, f"You may not decide request #{asked.id}")
    assert journey.slack.views(CARA.id) == []

    journey.press(EMIL, asked, "deny_with_reason")
    form = journey.slack.wait_for(lambda slack: slack.views(EMIL.id), timeout_s=WITHIN_S)[-1]
    assert (form.callback_id, form.private_metadata) == ("deny_reason", str(asked.id))
    assert journey.state(asked.id) == "pending"
    assert journey.slack.submit_view(EMIL.id, form, {"reason": why}).ok
    assert form.id not in [view.id for view in journey.slack.views(EMIL.id)]

    verdict = journey.verdict(asked)
    assert verdict.startswith(
        "Denied by @emil: nothing was sent to Upbit. Their reason: `<!here> \ufffdfat finger & xxx"
    )
    card = journey.shows(asked, "denied, nothing was sent")
    assert not card.buttons
    assert "&lt;!here&gt; \ufffdfat finger &amp; xxx" in card.text
    assert "<!here>" not in json.dumps(card.blocks)
    denied = journey.audited(asked.id, "request.denied")
    assert (denied["actor"], denied["reason"]) == (EMIL.id, why)
    assert not journey.exchange.deletes(asked.uuid)


@both_ways
def test_a_form_submitted_after_the_request_ended_is_told_so_in_its_place(journey: Journey) -> None:
    """A form can be open for minutes; it must not close as if it had denied."""
    asked = journey.ask()
    journey.press(EMIL, asked, "deny_with_reason")
    form = journey.slack.wait_for(lambda slack: slack.views(EMIL.id), timeout_s=WITHIN_S)[-1]
    journey.press(BEN, asked, "approve")
    journey.shows(asked, "canceled")

    assert journey.slack.submit_view(EMIL.id, form, {"reason": "typo"}).ok
    told = journey.slack.views(EMIL.id)[-1]
    assert told.title == "Nothing was done"
    assert any(f"Request #{asked.id} was already approved by @ben" in line for line in journey.slack.words(told))
    refused = journey.audited(asked.id, "approval.refused")
    assert (refused["actor"], refused["reason"]) == (EMIL.id, "typo")
    assert refused["details"]["reason"] == "already_decided"
    journey.slack.close_view(EMIL.id, told)


@both_ways
def test_a_form_that_slack_does_not_open_leaves_deny(journey: Journey) -> None:
    """A slow Slack costs the reason, not the denial; and the click is answered in time."""
    asked = journey.ask()
    mood = journey.slack.set_mood("slow", method="views.open", delay_s=30.0)
    try:
        journey.press(EMIL, asked, "deny_with_reason")
    finally:
        journey.slack.clear_moods()
    assert mood.met.is_set()
    journey.hears(EMIL, f"Slack did not open the form for request #{asked.id}", "Deny, which denies at once")
    journey.press(EMIL, asked, "deny")
    assert journey.verdict(asked).startswith("Denied by @emil")


@everywhere
def test_the_thread_is_told_once_half_way_to_the_expiry(journey: Journey) -> None:
    """Those whom NOTIFY names are called, in the card's thread; the request waits on, and can be decided as before."""
    asked = journey.ask()
    journey.age(asked.id, 14)
    journey.age(asked.id, 2)
    reminder = journey.verdict(asked)
    assert reminder.startswith(f"Request #{asked.id} still needs 1 approval and expires ")
    assert reminder.endswith("2 people may still approve it. For your attention: @ben.")
    reminded = journey.audited(asked.id, "reminder.sent")["details"]
    assert reminded["may_still_approve"] == sorted([BEN.id, EMIL.id])

    journey.age(asked.id, 1)
    journey.press(EMIL, asked, "deny")
    journey.shows(asked, "denied, nothing was sent")
    journey.audited(asked.id, "summary.posted")
    assert len(journey.slack.thread(DESK, asked.card.ts)) == 2
    assert journey.actions(asked.id).count("reminder.sent") == 1


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_without_notify_the_reminder_calls_who_may_still_approve(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Not who asked, and not who has approved already: after one of two, the other one."""
    database_url = request.getfixturevalue("postgresql").create() if kind == "postgresql" else None
    rules = {"APPROVERS": f"{BEN.id},{EMIL.id},{DANA.id}", "APPROVALS_REQUIRED": "2", "NOTIFY": ""}
    with started(tmp_path, mode="socket", database_url=database_url, settings=rules) as journey:
        asked = journey.ask()
        journey.press(BEN, asked, "approve")
        journey.audited(asked.id, "approval.recorded")
        journey.age(asked.id, 16)
        reminder = journey.verdict(asked)
        assert reminder.startswith(f"Request #{asked.id} still needs 1 approval and expires ")
        assert reminder.endswith("May still approve it: @emil.")


@once
def test_who_asked_may_take_it_back_by_denying(journey: Journey) -> None:
    """An approver may not approve what they asked for, but stopping it needs no second person."""
    asked = journey.ask()
    journey.press(DANA, asked, "deny")
    assert journey.verdict(asked).startswith("Denied by @dana")


@pytest.mark.parametrize(("mode", "kind"), KINDS.values())
def test_two_of_three_approve_a_large_order(
    mode: Mode, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The whole way of several approvals: the rule on the card, one of two, no second vote, then the cancel."""
    database_url = request.getfixturevalue("postgresql").create() if kind == "postgresql" else None
    rules = {
        "APPROVERS": f"{BEN.id},{EMIL.id},{CARA.id}",
        "APPROVAL_TIERS": "KRW-*:50000000=2, *=1",
    }
    with started(tmp_path, mode=mode, database_url=database_url, settings=rules) as journey:
        small = journey.ask(uuid=journey.exchange.place(price="95000000", volume="0.5"))
        journey.press(BEN, small, "approve")
        assert journey.verdict(small).startswith("Canceled:")

        asked = journey.ask(uuid=journey.exchange.place(price="95000000", volume="1"))
        lines = journey.slack.words(asked.card)
        assert any(line.startswith("Needs 2 approvals: over 50,000,000 KRW") for line in lines), lines
        journey.press(BEN, asked, "approve")
        journey.press(BEN, asked, "approve")
        journey.hears(BEN, f"You have already approved request #{asked.id}", "1 of 2 approvals")

        def one_of_two(slack: SlackWorkspace) -> Message | None:
            card = slack.message(DESK, asked.card.ts)
            return card if card and any(line.startswith("Approvals: 1 of 2") for line in slack.words(card)) else None

        shown = journey.slack.wait_for(one_of_two, timeout_s=WITHIN_S)
        assert shown is not None
        assert shown.buttons
        assert journey.state(asked.id) == "pending"
        assert not journey.exchange.deletes(asked.uuid)
        assert any("approved by @ben" in line for line in journey.slack.words(shown))

        answers = press_at_once(journey.slack, asked.card, (CARA, "approve"), (EMIL, "approve"))
        assert all(answer.ok for answer in answers)
        assert journey.verdict(asked).startswith("Canceled:")
        journey.audited(asked.id, "summary.posted")
        actions = journey.actions(asked.id)
        assert [action for action in actions if action not in {"approval.refused", *SENT}] == [
            "request.created",
            "request.opened",
            "approval.recorded",
            "request.approved",
        ]
        assert actions.count("approval.refused") == 2
        (delete,) = journey.exchange.deletes(asked.uuid)
        assert delete.effective
        assert journey.audit_fault() is None


@pytest.mark.parametrize(("mode", "kind"), [KINDS["http-sqlite"], KINDS["socket-postgresql"]])
def test_a_group_approves_until_somebody_leaves_it_or_it_cannot_be_read(
    mode: Mode, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The whole way of user groups: who is in them decides at the click; what could not be found out is said."""
    desk = "S0DESK"
    with started(
        tmp_path,
        mode=mode,
        database_url=request.getfixturevalue("postgresql").create() if kind == "postgresql" else None,
        settings={"APPROVERS": f"{desk},{BEN.id}", "REQUESTERS": f"{desk},{DANA.id}", "NOTIFY": desk},
        user_groups={desk: {CARA.id, EMIL.id}},
    ) as journey:
        checked = journey.bot.command("check")
        assert checked.returncode == 0, checked.stdout
        assert "user group S0DESK: 2 members: U0CARA, U0EMIL" in checked.stdout
        assert "approvers: 3 can approve today: U0BEN, members of S0DESK" in checked.stdout

        first = journey.ask()
        journey.press(CARA, first, "approve")
        assert journey.verdict(first).startswith("Canceled:")
        used = journey.audited(first.id, "request.approved")["details"]["membership"]
        assert used[desk]["members"] == [CARA.id, EMIL.id]

        asked = journey.ask()
        journey.slack.set_user_group(desk, {EMIL.id})
        restart(journey)
        journey.press(CARA, asked, "approve")
        journey.hears(CARA, f"You may not decide request #{asked.id}")
        refused = journey.audited(asked.id, "approval.refused")["details"]
        assert (refused["reason"], refused["membership"][desk]["members"]) == ("not_an_approver", [EMIL.id])

        journey.slack.set_mood("error:plan_upgrade_required", method="usergroups.users.list")
        restart(journey)
        journey.press(EMIL, asked, "approve")
        journey.hears(EMIL, "could not read the user groups", f"request #{asked.id}", "Try again in a minute")
        assert "could not read the user groups" in journey.slack.command(EMIL.id, DESK, journey.exchange.place()).text
        assert journey.state(asked.id) == "pending"
        assert not journey.exchange.deletes(asked.uuid)
        journey.press(BEN, asked, "approve")
        assert journey.verdict(asked).startswith("Canceled:")
        reasons = [each["details"]["reason"] for each in journey.events() if each["outcome"] == "refused"]
        assert reasons == ["not_an_approver", "membership_unknown", "membership_unknown"]
        assert journey.audit_fault() is None


def restart(journey: Journey) -> None:
    """The bot anew: it reads the groups at once, for which a test cannot wait."""
    assert journey.bot.stop() == 0
    journey.bot.start()
    journey.bot.wait_until_ready()


def test_a_bot_with_groups_is_ready_once_somebody_can_approve(tmp_path: Path) -> None:
    """It starts while Slack is away, so that what was approved goes on; but it is not what anybody should rely on."""
    with started(
        tmp_path,
        settings={"APPROVERS": "S0DESK"},
        user_groups={"S0DESK": {BEN.id}},
        is_slack_away=True,
    ) as journey:
        status, told = journey.until(lambda: journey.bot.get("/readyz"))
        assert status == 503
        assert "nobody_can_approve" in told
        journey.until(lambda: "nobody can approve" in journey.bot.log())
        journey.slack.clear_moods()
        journey.bot.wait_until_ready()


@once
def test_the_audit_is_read_and_verified_at_the_command_line_while_the_bot_runs(journey: Journey) -> None:
    """An auditor does not stop the bot to look, and sees what the bot has just done."""
    asked = journey.ask()
    journey.press(BEN, asked, "approve")
    journey.audited(asked.id, "summary.posted")

    shown = journey.bot.command("audit", "show", str(asked.id), "--format", "json")
    actions = [json.loads(line)["action"] for line in shown.stdout.splitlines()]
    assert actions == ["request.created", "request.opened", "card.posted", "request.approved", *SENT]
    verified = journey.bot.command("audit", "verify")
    assert verified.returncode == 0
    assert "events verified" in verified.stdout


# --- One cancel in effect -------------------------------------------------------------------------------------------


@both_ways
def test_two_approvers_press_at_the_same_instant(journey: Journey) -> None:
    """One decision wins and makes the one DELETE; the other person is told who won, instead of being ignored."""
    asked = journey.ask()
    answers = press_at_once(journey.slack, asked.card, (BEN, "approve"), (EMIL, "approve"))
    assert all(answer.ok for answer in answers)
    assert journey.verdict(asked).startswith("Canceled:")
    approved = journey.audited(asked.id, "request.approved")
    winner, loser = (BEN, EMIL) if approved["actor"] == BEN.id else (EMIL, BEN)
    journey.hears(loser, f"Request #{asked.id} was already approved by @{winner.name}")
    journey.audited(asked.id, "summary.posted")
    assert journey.actions(asked.id).count("request.approved") == 1
    assert journey.audited(asked.id, "approval.refused")["details"]["reason"] == "already_decided"
    assert len(journey.exchange.deletes(asked.uuid)) == 1


@both_ways
def test_a_double_click_cancels_once(journey: Journey) -> None:
    """People click twice, and Slack may deliver twice: both are acknowledged, one counts."""
    asked = journey.ask()
    answer = journey.slack.click(BEN.id, asked.card, "approve", copies=5)
    assert [each.ok for each in (answer, *answer.copies)] == [True] * 5
    journey.hears(BEN, f"Request #{asked.id} was already approved by @ben")
    journey.shows(asked, "canceled")
    journey.audited(asked.id, "summary.posted")
    assert journey.actions(asked.id).count("request.approved") == 1
    assert journey.actions(asked.id).count("approval.refused") == 4
    assert len(journey.exchange.deletes(asked.uuid)) == 1


@both_ways
def test_approve_and_deny_at_the_same_instant_have_one_outcome(journey: Journey) -> None:
    """Whichever wins, the order is canceled if and only if the card says so."""
    asked = journey.ask()
    answers = press_at_once(journey.slack, asked.card, (BEN, "approve"), (EMIL, "deny"))
    assert all(answer.ok for answer in answers)
    verdict = journey.verdict(asked)
    is_canceled = journey.state(asked.id) == "canceled"
    assert verdict.startswith("Canceled:" if is_canceled else "Denied by @emil")
    journey.shows(asked, "canceled" if is_canceled else "denied, nothing was sent")
    if is_canceled:
        journey.hears(EMIL, f"Request #{asked.id} was already approved by @ben")
    else:
        journey.hears(BEN, f"Request #{asked.id} was already denied by @emil")
    assert len(journey.exchange.deletes(asked.uuid)) == is_canceled


@both_ways
def test_a_redelivered_command_gets_the_first_answer_again(journey: Journey) -> None:
    """Slack may deliver a command twice: that is no second request, and no refusal either."""
    uuid = journey.exchange.place()
    answer = journey.slack.command(DANA.id, DESK, uuid, deliveries=3)
    request_id = recorded_id(answer)
    assert [copy.text for copy in answer.copies] == [answer.text] * 2
    journey.card_of(request_id)
    assert journey.actions(request_id).count("request.created") == 1
    assert {event["request_id"] for event in journey.events() if event["order_uuid"] == uuid} == {request_id}


@once
def test_a_redelivered_refusal_is_audited_once(journey: Journey) -> None:
    """One wrong command is one event, however often Slack brings it."""
    answer = journey.slack.command(DANA.id, DESK, "not-a-uuid-either", deliveries=2)
    assert answer.copies[0].text == answer.text
    refused = [event["reason"] for event in journey.events() if event["action"] == "command.refused"]
    assert refused.count("not-a-uuid-either") == 1


@once
def test_an_order_with_an_open_request_leads_to_its_card(journey: Journey) -> None:
    """Two requests for one order would make two cards that contradict each other."""
    asked = journey.ask()
    answer = journey.slack.command(BEN.id, DESK, asked.uuid)
    address = f"https://playground.slack.com/archives/{DESK}/p{asked.card.ts.replace('.', '')}"
    assert f"<{address}|request #{asked.id}>" in answer.text
    journey.press(BEN, asked, "deny")
    journey.shows(asked, "denied, nothing was sent")
    journey.ask(uuid=asked.uuid)


# --- Refusals, none of them silent ----------------------------------------------------------------------------------


@once
def test_a_click_on_a_decided_request_is_told_who_decided(journey: Journey) -> None:
    """The buttons may still be on somebody's screen when the card has changed."""
    asked = journey.ask()
    journey.press(BEN, asked, "deny")
    journey.shows(asked, "denied, nothing was sent")
    journey.forge(EMIL, asked, "approve", value=str(asked.id))
    journey.hears(EMIL, f"Request #{asked.id} was already denied by @ben")
    assert journey.state(asked.id) == "denied"
    assert not journey.exchange.deletes(asked.uuid)


@everywhere
def test_a_click_after_the_time_to_live_does_not_count(journey: Journey) -> None:
    """An old card is not a standing permission, even in the second before the worker has drawn it as expired."""
    asked = journey.ask()
    journey.bring_forward(asked.id, "expires_at")
    journey.press(BEN, asked, "approve")
    journey.hears(BEN, f"Request #{asked.id} expired")
    assert journey.state(asked.id) == "pending"
    journey.bring_forward(asked.id, "next_attempt_at")
    assert journey.verdict(asked).startswith("Expired: it had 0 of 1 approvals")
    assert not journey.shows(asked, "expired, nothing was sent").buttons
    journey.forge(EMIL, asked, "approve", value=str(asked.id))
    journey.hears(EMIL, f"Request #{asked.id} expired")
    assert not journey.exchange.deletes(asked.uuid)


@once
@pytest.mark.parametrize("value", ["999999", "0", "-1", "1 OR 1=1", "٣", "9" * 300, "{}"])
def test_a_forged_value_decides_nothing(journey: Journey, value: str) -> None:
    """A click is resolved by the request id it carries and nothing else; what is no id of ours is nobody's request."""
    asked = journey.ask()
    before, events = len(journey.slack.ephemerals(BEN.id)), len(journey.events())
    journey.forge(BEN, asked, "approve", value=value)
    told = journey.slack.wait_for(lambda slack: slack.ephemerals(BEN.id)[before:])
    assert told[0].text.startswith("The bot does not know the request of this card")
    refused = [event for event in journey.events()[events:] if event["action"] == "approval.refused"]
    assert [event["details"]["reason"] for event in refused] == ["unknown_request"]
    assert journey.state(asked.id) == "pending"
    assert not journey.exchange.deletes(asked.uuid)


@once
def test_an_unknown_button_is_answered(journey: Journey) -> None:
    """A card of another version may have buttons that this one does not know."""
    asked = journey.ask()
    before = len(journey.slack.ephemerals(BEN.id))
    journey.forge(BEN, asked, "explode", value=str(asked.id))
    told = journey.slack.wait_for(lambda slack: slack.ephemerals(BEN.id)[before:])
    assert told[0].text.startswith("This version of the bot does not know that button")
    assert journey.state(asked.id) == "pending"


@both_ways
def test_a_guest_of_another_workspace_cannot_decide(journey: Journey) -> None:
    """In a shared channel people of other companies see the card, and Slack lets them click."""
    asked = journey.ask()
    journey.press(GUEST, asked, "approve")
    journey.hears(GUEST, f"Request #{asked.id} belongs to another workspace than yours")
    assert journey.audited(asked.id, "approval.refused")["details"]["reason"] == "other_workspace"
    assert journey.state(asked.id) == "pending"


@once
@pytest.mark.parametrize(
    ("order", "reason", "told"),
    [
        (None, "order_not_found", "Upbit knows no order"),
        ("done", "already_done", "is already fully executed"),
        ("cancel", "already_canceled", "is already canceled"),
    ],
)
def test_an_order_that_is_not_open_is_refused_privately(
    journey: Journey, order: str | None, reason: str, told: str
) -> None:
    """There is nothing to approve, so nobody is asked to."""
    uuid = str(uuid4()) if order is None else journey.exchange.place(state=order)
    request_id = journey.record(uuid)
    assert told in journey.hears(DANA, f"Request #{request_id} was refused, and nothing was sent to Upbit.")
    assert journey.audited(request_id, "request.refused")["details"]["reason"] == reason
    assert not [each for each in journey.slack.messages(DESK) if uuid in each.text]


@both_ways
@pytest.mark.parametrize("channel", [PRIVATE_WITHOUT_BOT, PAIR_WITHOUT_BOT], ids=["private channel", "direct message"])
def test_where_the_bot_cannot_post_nothing_stays_pending(journey: Journey, channel: Any) -> None:
    """A card that nobody can see could only expire; who asked is told at once what to do."""
    request_id = journey.record(journey.exchange.place(), channel=channel.id)
    line = journey.hears(DANA, f"Request #{request_id} was refused", "`/invite`")
    assert "direct message between people that is not possible" in line
    refused = journey.audited(request_id, "request.refused")
    assert refused["details"]["reason"] == "cannot_post"
    assert journey.state(request_id) == "refused"


@once
def test_a_refusal_reaches_people_where_the_bot_can_write_no_direct_messages(journey: Journey) -> None:
    """Where the bot is in no channel and its messages tab is off, only the command's response_url gets through."""
    journey.slack.set_messages_tab(enabled=False)
    try:
        request_id = journey.record(journey.exchange.place(), channel=PRIVATE_WITHOUT_BOT.id)
        journey.audited(request_id, "request.refused")
        journey.hears(DANA, f"Request #{request_id} was refused", timeout_s=2.0)
    finally:
        journey.slack.set_messages_tab(enabled=True)


# --- What people type -----------------------------------------------------------------------------------------------


@once
def test_a_reason_pings_nobody_and_links_nowhere(journey: Journey) -> None:
    """A reason is shown to approvers; it must not call the whole channel, or look like the bot's own words."""
    asked = journey.ask(reason="<!channel> <@U0CARA> <https://example.com|look> `*bold* & so on")
    journey.press(BEN, asked, "approve")
    journey.shows(asked, "canceled")
    journey.verdict(asked)
    sent = [json.dumps(dict(call.arguments)) for call in journey.slack.calls() if call.method.startswith("chat.")]
    assert any("&lt;!channel&gt;" in call for call in sent)
    assert not any("<!channel>" in call or "<@U0CARA>" in call or "<https://example.com" in call for call in sent)


@once
@pytest.mark.parametrize("typed", ["`{}`", "“{}”", "<{}>", "*{}*"])
def test_a_uuid_is_understood_as_people_paste_it(journey: Journey, typed: str) -> None:
    """Slack and phones put quotes around what is pasted, and Upbit's own pages may show capitals."""
    uuid = journey.exchange.place()
    request_id = journey.record(typed.format(uuid.upper()))
    journey.card_of(request_id)
    assert journey.row(request_id).order_uuid == uuid


# --- When the exchange is not well ----------------------------------------------------------------------------------


@both_ways
def test_a_lost_answer_is_found_out_by_looking(journey: Journey) -> None:
    """The cancel worked and its answer was lost: sending again would be wrong, and so would claiming it as ours."""
    asked = journey.ask()
    journey.exchange.set_mood("DELETE", Mood.DROP_AFTER, times=1)
    journey.press(BEN, asked, "approve")
    verdict = journey.verdict(asked)
    assert verdict.startswith("Canceled:")
    assert "its answer was lost, so it is not proven" in verdict
    assert journey.audited(asked.id, "order.canceled")["details"]["by"] == "unproven"
    assert "cancel.unanswered" in journey.actions(asked.id)
    assert len(journey.exchange.deletes(asked.uuid)) == 1


@once
def test_a_cancel_that_did_nothing_is_sent_again(journey: Journey) -> None:
    """An error 500 proves nothing; once the order has surely stayed open, the approved cancel is tried again."""
    asked = journey.ask()
    journey.exchange.set_mood("DELETE", Mood.HTTP_500, times=1)
    journey.press(BEN, asked, "approve")
    assert journey.verdict(asked).startswith("Canceled:")
    assert [delete.effective for delete in journey.exchange.deletes(asked.uuid)] == [False, True]
    nonces = {delete.nonce for delete in journey.exchange.deletes(asked.uuid)}
    assert len(nonces) == 2
    assert "order.open" in journey.actions(asked.id)


@once
def test_a_cancel_that_was_turned_away_for_the_rate_limit_is_sent_again(journey: Journey) -> None:
    """Upbit did nothing with it and said so: the approval still holds."""
    asked = journey.ask()
    journey.exchange.set_mood("DELETE", Mood.RATELIMITED_429, times=1)
    journey.press(BEN, asked, "approve")
    assert journey.verdict(asked).startswith("Canceled:")
    assert "cancel.unsent" in journey.actions(asked.id)
    assert [delete.effective for delete in journey.exchange.deletes(asked.uuid)] == [False, True]


@once
def test_an_order_that_fills_meanwhile_is_told_as_filled(journey: Journey) -> None:
    """Accepted is not canceled: the market can be faster, and then people own what they wanted to get rid of."""
    asked = journey.ask()
    journey.exchange.set_mood("DELETE", Mood.FILL_DURING_CANCEL, times=1)
    journey.press(BEN, asked, "approve")
    assert journey.verdict(asked).startswith("Filled before the cancel took effect: 0.01 BTC was executed.")
    journey.shows(asked, "filled before the cancel took effect")
    assert "order.canceled" not in journey.actions(asked.id)


@once
def test_a_refused_cancel_is_told_with_its_remedy(journey: Journey) -> None:
    """The key may not cancel: people learn that nothing happened, and the one who runs the bot what to change."""
    asked = journey.ask()
    journey.exchange.set_mood("DELETE", Mood.REFUSE, times=1, status=401, name="out_of_scope")
    journey.press(BEN, asked, "approve")
    verdict = journey.verdict(asked)
    assert verdict.startswith("Refused by Upbit:")
    assert "주문하기" in verdict
    assert "For your attention: @ben" in verdict
    assert journey.state(asked.id) == "rejected"
    assert journey.exchange.order(asked.uuid)["state"] == "wait"


@once
@pytest.mark.parametrize("mood", [Mood.HANG, Mood.HTTP_500, Mood.HTML_502, Mood.NOT_JSON_200])
def test_a_request_waits_until_the_exchange_is_well_again(journey: Journey, mood: Mood) -> None:
    """A command that was acknowledged is not forgotten because Upbit stumbled."""
    uuid = journey.exchange.place()
    seen = len(journey.exchange.requests)
    journey.exchange.set_mood("GET", mood)
    request_id = journey.record(uuid)
    journey.until_exchange(lambda exchange: len(exchange.requests) > seen)
    assert journey.state(request_id) == "requested"
    journey.exchange.clear_moods()
    journey.card_of(request_id)


# --- When Slack is not well -----------------------------------------------------------------------------------------


@both_ways
@pytest.mark.parametrize("mood", ["away", "ratelimited", "http_500"])
def test_the_cancel_does_not_wait_for_slack(journey: Journey, mood: str) -> None:
    """An approved cancel is urgent, and a card is not: Slack being away delays only what people see."""
    asked = journey.ask()
    journey.slack.set_mood(mood)
    try:
        journey.press(BEN, asked, "approve")
        journey.audited(asked.id, "order.canceled")
        assert len(journey.exchange.deletes(asked.uuid)) == 1
        assert not journey.slack.thread(DESK, asked.card.ts)
    finally:
        journey.slack.clear_moods()
    journey.shows(asked, "canceled")
    assert journey.verdict(asked).startswith("Canceled:")


# --- Starting, stopping, dying --------------------------------------------------------------------------------------


def test_what_was_acknowledged_is_finished_after_the_process_was_killed(tmp_path: Path) -> None:
    """Once Slack has shown a person that it worked, no crash may undo it: not an approval, and not a command."""
    with started(tmp_path) as journey:
        asked = journey.ask()
        journey.exchange.set_mood("GET", Mood.HANG)
        for _ in range(EXCHANGE_THREADS):
            journey.record(journey.exchange.place())
        # Every thread is busy from here on: what comes now is committed and acknowledged, and no more than that.
        journey.until_exchange(
            lambda exchange: sum(request.method == "GET" for request in exchange.requests) > EXCHANGE_THREADS
        )
        journey.press(BEN, asked, "approve")
        recorded = journey.record(journey.exchange.place())
        journey.bot.kill()
        assert journey.state(asked.id) == "approved"
        assert journey.state(recorded) == "requested"
        assert not journey.exchange.deletes()

        # The kill may have met the card while it was being redrawn; the cancel itself was nobody's yet.
        journey.bring_forward(asked.id, "card_leased_until")
        journey.exchange.clear_moods()
        journey.bot.start()
        assert journey.verdict(asked).startswith("Canceled:")
        journey.card_of(recorded)
        assert len(journey.exchange.deletes(asked.uuid)) == 1
        journey.audited(asked.id, "summary.posted")
        assert journey.actions(asked.id).count("request.approved") == 1
        assert journey.audit_fault() is None


def test_a_cancel_under_way_when_the_process_is_killed_is_not_sent_twice(tmp_path: Path) -> None:
    """After the crash nobody knows whether the DELETE arrived; the order tells, and a second DELETE would not."""
    with started(tmp_path) as journey:
        asked = journey.ask()
        journey.exchange.set_mood("DELETE", Mood.HANG, after=True)
        journey.press(BEN, asked, "approve")
        journey.until_exchange(lambda exchange: exchange.deletes(asked.uuid))
        journey.bot.kill()
        assert journey.state(asked.id) == "sending"

        journey.exchange.clear_moods()
        journey.bring_forward(asked.id, "leased_until", "card_leased_until")
        journey.bot.start()
        assert "its answer was lost, so it is not proven" in journey.verdict(asked)
        assert len(journey.exchange.deletes(asked.uuid)) == 1


@pytest.mark.parametrize(
    ("mood", "answered", "whose"),
    [(Mood.SLOW, "cancel.accepted", "this_request"), (Mood.HANG, "cancel.unanswered", "unproven")],
)
def test_a_stop_while_a_cancel_is_under_way_waits_for_its_answer(
    tmp_path: Path, mood: Mood, answered: str, whose: str
) -> None:
    """A deployment in the wrong moment must not make an outcome unknown, and must not wait for ever either."""
    with started(tmp_path) as journey:
        asked = journey.ask()
        journey.exchange.set_mood("DELETE", mood, seconds=1.0, after=True)
        journey.press(BEN, asked, "approve")
        journey.until_exchange(lambda exchange: any(request.method == "DELETE" for request in exchange.requests))
        assert journey.bot.stop(timeout_s=10) == 0
        assert answered in journey.actions(asked.id)

        journey.exchange.clear_moods()
        journey.bot.start()
        assert journey.verdict(asked).startswith("Canceled:")
        assert journey.audited(asked.id, "order.canceled")["details"]["by"] == whose
        assert len(journey.exchange.deletes(asked.uuid)) == 1


def test_a_bot_that_starts_while_slack_is_away_is_alive_and_not_ready(tmp_path: Path) -> None:
    """An orchestrator must not kill it for Slack's fault, and must not send it traffic either."""
    with started(tmp_path, is_slack_away=True) as journey:
        answered = journey.until(lambda: journey.bot.get("/healthz"), timeout_s=30)
        assert answered[0] == 200
        not_ready = journey.bot.get("/readyz")
        assert not_ready is not None
        assert not_ready[0] == 503
        assert json.loads(not_ready[1])["slack"] is False
        answer = journey.slack.command(DANA.id, DESK, journey.exchange.place())
        assert answer.text.startswith("The bot is just starting, and nothing was done.")

        journey.slack.clear_moods()
        journey.bot.wait_until_ready()
        journey.ask()


@both_ways
def test_the_health_routes_say_that_all_is_well(journey: Journey) -> None:
    """They are what orchestrators look at."""
    assert (journey.bot.get("/healthz") or (0, ""))[0] == 200
    status, body = journey.bot.get("/readyz") or (0, "")
    assert status == 200
    assert all(json.loads(body).values())


@once
def test_a_second_bot_on_the_same_sqlite_file_is_refused(journey: Journey) -> None:
    """Two processes on one SQLite file would fight for its only writer."""
    second = journey.bot.command("run", settings={"PORT": str(free_port())})
    assert second.returncode == 1
    assert "another `bot run`" in second.stderr


@once
def test_check_finds_a_wrong_key_before_the_first_cancel_does(journey: Journey) -> None:
    """Whoever sets the bot up wants to know now, and without anything being sent."""
    fine = journey.bot.command("check")
    assert fine.returncode == 0, fine.stdout + fine.stderr
    assert "✗" not in fine.stdout
    wrong = journey.bot.command("check", settings={"UPBIT_OPEN_API_SECRET_KEY": "of-another-key-altogether-0123456789"})
    assert wrong.returncode == 1
    assert "✗ Upbit" in wrong.stdout
    assert not [
        delete for delete in journey.exchange.deletes() if delete.uuid == "00000000-0000-0000-0000-000000000000"
    ]


@once
def test_a_run_with_wrong_settings_names_every_fault_at_once(journey: Journey) -> None:
    """Faults told one at a time cost a restart each; and a bot that nobody can approve at must not start."""
    faulty = {
        "APPROVERS": "",
        "UPBIT_OPEN_API_SERVER_URL": "https://example.com",
        "APPROVAL_TTL_MINUTES": "soon",
        "APPROVALS_REQUIRED": "two",
    }
    refused = journey.bot.command("run", settings=faulty)
    assert refused.returncode == 1
    assert all(any(line.startswith(name) for line in refused.stderr.splitlines()) for name in faulty), refused.stderr


# --- The demo -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("socket_mode", [False, True], ids=["http", "socket"])
def test_the_demo_comes_out_right(socket_mode: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """It is the first thing that a newcomer runs; it checks itself, and says so."""
    printed: list[str] = []
    status = play(socket_mode=socket_mode, write=printed.append)
    assert status == 0, "\n".join(printed)
    assert printed[-1].startswith("\nAll came out as it must")


# --- A database that cannot be written ------------------------------------------------------------------------------


def test_while_nothing_can_be_written_nothing_is_done_and_people_are_told(tmp_path: Path) -> None:
    """Nothing is sent unless it is audited first, and people hear that it was not within Slack's three seconds."""
    with started(tmp_path) as journey:
        asked = journey.ask()
        other = journey.exchange.place()
        with closing(sqlite3.connect(tmp_path / "cancels.db", isolation_level=None)) as somebody_else:
            somebody_else.execute("BEGIN IMMEDIATE")
            answer = journey.slack.command(DANA.id, DESK, other)
            assert answer.text.startswith("This could not be written down, so nothing was done.")
            assert not journey.slack.click(BEN.id, asked.card, "approve").ok
            journey.hears(BEN, "This could not be written down, so nothing was done.")
            somebody_else.execute("ROLLBACK")
        assert journey.state(asked.id) == "pending"
        assert journey.exchange.deletes() == []
        assert {event["order_uuid"] for event in journey.events()} - {None} == {asked.uuid}
        journey.press(BEN, asked, "approve")
        assert "Canceled" in journey.verdict(asked)
        assert journey.audit_fault() is None


def test_who_sends_half_a_request_does_not_keep_the_bot_from_others(tmp_path: Path) -> None:
    """Sixteen threads serve; sixteen strangers who never finish their request must not make the bot deaf."""
    with started(tmp_path) as journey, ExitStack() as held:
        halves = [
            held.enter_context(socket.create_connection(("127.0.0.1", journey.bot.port), timeout=20)) for _ in range(20)
        ]
        for half in halves:
            half.sendall(b"POST /slack/events HTTP/1.1\r\nHost: bot.test\r\nContent-Length: 9\r\n")
        journey.until(lambda: journey.bot.get("/healthz") == (200, "ok\n"), timeout_s=20)
        assert {half.recv(1) for half in halves} == {b""}


# --- Secrets --------------------------------------------------------------------------------------------------------


def test_secrets_appear_nowhere(tmp_path: Path) -> None:
    """Logs are shipped, audits exported and messages read by many: none of them may hold what signs an order."""
    key = Key(access_key="canary-access-key-71f0", secret_key="canary-secret-key-with-forty-characters-8e2d")
    signing = {"CHECKPOINT_KEY": "5ec2e7" * 10 + "cafe", "CHECKPOINT_CHANNEL": DESK}
    with started(tmp_path, key=key, settings=signing) as journey:
        _go_through_thick_and_thin(journey)
        listed = journey.bot.command("audit", "list", "--format", "json", "--limit", "100000").stdout
        assert journey.bot.stop() == 0

        shelves = {**journey.shelves(), "audit": listed.encode()}
        assert all(MARKER.encode() in shelves[name] for name in ("audit", "messages", "calls", "cancels.db"))
        assert b"connected to workspace" in shelves["log"]
        assert not journey.leaks()
        assert key.access_key.encode() not in b"".join(shelves.values())
        assert signing["CHECKPOINT_KEY"].encode() not in b"".join(shelves.values())
        assert b'"audit.checkpointed"' in shelves["audit"]


def _go_through_thick_and_thin(journey: Journey) -> None:
    """One conversation with everything in it that is likely to be logged: errors of both neighbours, refusals."""
    journey.slack.command(DANA.id, DESK, "not-a-uuid")
    asked = journey.ask(reason=MARKER)
    journey.press(CARA, asked, "approve")
    journey.hears(CARA, f"You may not decide request #{asked.id}")
    journey.exchange.set_mood("DELETE", Mood.DROP_AFTER, times=1)
    journey.exchange.set_mood("GET", Mood.HTTP_500, times=1)
    journey.slack.set_mood("http_500", times=2)
    journey.press(BEN, asked, "approve")
    journey.verdict(asked)
    rejected = journey.ask()
    journey.exchange.set_mood("DELETE", Mood.REFUSE, times=1, status=401, name="jwt_verification")
    journey.press(BEN, rejected, "approve")
    journey.verdict(rejected)
    journey.slack.wait_for(lambda slack: slack.calls("response_url"), timeout_s=WITHIN_S)
    unsigned = {
        "Content-Type": "application/x-www-form-urlencoded",
        "X-Slack-Signature": "v0=00",
        "X-Slack-Request-Timestamp": "1",
    }
    assert journey.slack.deliver_raw(unsigned, b"payload={}").http_status == 401
