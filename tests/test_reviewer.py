"""A reviewer's questions, answered by the commands that `docs/audit.md` names, and a request's story in words."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from builders import APPROVER, HOME, REQUESTER, SECOND, STRANGER, order, rows
from click.testing import CliRunner, Result
from desk import ANSWER, KOREAN, Desk
from test_docs import section
from test_workflow import sees

from bot.__main__ import main
from bot.audit.signing import Signer
from bot.audit.story import LONGEST_VALUE, MAX_STEPS, tell_story
from bot.domain.answer import Accepted
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor
from bot.settings import Settings

KEY = "11" * 32
UNSET: dict[str, str | None] = {
    f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")
}
OCTOBER = datetime(2026, 10, 20, 9, tzinfo=UTC)


@pytest.fixture
def desk(database_url: str) -> Iterator[Desk]:
    """A desk that opened in October."""
    made = Desk(database_url)
    made.clock.now = OCTOBER
    yield made
    made.database.close()


@pytest.fixture
def sqlite_desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(f"sqlite:///{tmp_path / 'cancels.db'}")
    yield made
    made.database.close()


def bot(desk: Desk, *arguments: str) -> Result:
    url = desk.database.url.render_as_string(hide_password=False)
    environ = {**UNSET, "DATABASE_URL": url, "CHECKPOINT_KEY": KEY}
    return CliRunner().invoke(main, arguments, env=environ, prog_name="bot")


def questions() -> dict[str, str]:
    table = section("docs/audit.md", "## Questions of a reviewer")
    return dict(re.findall(r"^\| ([^|]+\?) \| `bot ([^`]+)` \|$", table, re.MULTILINE))


Answer = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def answer(desk: Desk) -> Answer:
    """Asks what the page says, with other names in it, and gives the events that are told, as programs read them."""

    def ask(question: str, **names: str) -> list[dict[str, Any]]:
        command = questions()[question]
        for name, real in names.items():
            named = {"order": r"[0-9a-f-]{36}", "person": r"U0BEN"}[name]
            command, count = re.subn(named, real, command)
            assert count == 1, command
        for_people, for_programs = bot(desk, *command.split()), bot(desk, *command.split(), "--format", "json")
        assert (for_people.exit_code, for_programs.exit_code) == (0, 0), for_people.output
        told = [json.loads(line) for line in for_programs.stdout.splitlines()]
        numbers = re.findall(r"^(\d+) +\d{4}-", for_people.stdout, re.MULTILINE)
        assert numbers == [str(event["seq"]) for event in told]
        return told

    return ask


def uuid_of(desk: Desk, request_id: int) -> str:
    return str(rows(desk.database, f"SELECT order_uuid FROM cancel_requests WHERE id = {request_id}")[0][0])


def test_every_question_is_on_the_page_once() -> None:
    """And every one of them is tried below."""
    asked = set(re.findall(r'answer\(\n?\s*"([^"]+\?)"', Path(__file__).read_text(encoding="utf-8")))
    assert set(questions()) == asked | {"Was anything altered since the checkpoint of day D?"}


def test_who_approved_the_cancel_of_an_order(desk: Desk, answer: Answer) -> None:
    """All whose approval counted, not only the last; and nobody for an order that was denied."""
    canceled, denied = desk.canceled(), desk.denied()
    (event,) = answer("Who approved the cancel of this order?", order=uuid_of(desk, canceled))
    assert (event["actor"], event["details"]["approvals"]) == (KOREAN.id, [APPROVER.id, KOREAN.id])
    command = ("audit", "list", "--request", str(canceled), "--action", "request.approved")
    assert f"approvals={APPROVER.id},{KOREAN.id}" in "".join(bot(desk, *command).stdout.split())
    assert answer("Who approved the cancel of this order?", order=uuid_of(desk, denied)) == []


def test_what_a_person_did_in_october(desk: Desk, answer: Answer) -> None:
    """Neither what others did then nor what they did later."""
    desk.canceled()
    before = answer("What did this person do in October?", person=APPROVER.id)
    desk.clock.advance(timedelta(days=30).total_seconds())
    desk.denied()
    assert answer("What did this person do in October?", person=APPROVER.id) == before
    assert [event["action"] for event in before] == ["approval.recorded"]
    assert answer("What did this person do in October?", person=SECOND.id) == []


def test_which_clicks_were_refused(desk: Desk, answer: Answer) -> None:
    """With who clicked, and why it did not count."""
    assert answer("Which clicks were refused?") == []
    desk.canceled()
    refused = answer("Which clicks were refused?")
    assert [(event["actor"], event["details"]["reason"]) for event in refused] == [
        (STRANGER.id, "not_an_approver"),
        (REQUESTER.id, "not_an_approver"),
    ]


def canceled_worth(desk: Desk, price: Decimal) -> int:
    """A request for half of something at this price."""
    shown = order(price=price, remaining_volume=Decimal("0.50"), executed_volume=Decimal("0.50"))
    desk.exchange.looks = [sees(shown)]
    request_id = desk.ask()
    desk.workflow.advance(request_id)
    desk.press(request_id, APPROVER)
    desk.press(request_id, SECOND)
    desk.exchange.cancels = [Accepted(order=shown, call=ANSWER)]
    desk.exchange.looks = [sees(replace(shown, state="cancel"))]
    desk.go_on(request_id, for_s=2)
    return request_id


def test_which_cancels_were_over_an_amount(desk: Desk, answer: Answer) -> None:
    """Not the one of exactly that amount, and not one that was only asked for."""
    desk.denied()
    canceled_worth(desk, Decimal(100_000_000))
    assert answer("Which cancels were over 50,000,000 KRW?") == []
    large = canceled_worth(desk, Decimal("100000000.2"))
    canceled_worth(desk, Decimal(9_900_000))
    found = answer("Which cancels were over 50,000,000 KRW?")
    assert [(event["request_id"], event["details"]["value_krw"]) for event in found] == [(large, "50000000.1")]


def test_whether_anything_was_approved_by_its_own_requester(desk: Desk, answer: Answer) -> None:
    """Also where the rules allowed it; a click that was refused is not an approval."""
    desk.canceled()
    assert answer("Was anything approved by its own requester?") == []
    desk.people |= {REQUESTER.id}
    desk.policy = ApprovalPolicy(approvers=desk.policy.approvers, approvals_required=2, self_approval=True)
    request_id = desk.asked()
    desk.press(request_id, REQUESTER)
    desk.press(request_id, APPROVER)
    (event,) = answer("Was anything approved by its own requester?")
    assert (event["request_id"], event["action"], event["actor"]) == (request_id, "approval.recorded", REQUESTER.id)


def test_that_nothing_was_altered_since_a_checkpoint(desk: Desk, tmp_path: Path, monkeypatch: Any) -> None:
    """And that a rewritten tail is told."""
    monkeypatch.chdir(tmp_path)
    desk.canceled()
    assert bot(desk, "audit", "checkpoint", "--out", "day-d.json").exit_code == 0
    desk.denied()
    command = questions()["Was anything altered since the checkpoint of day D?"].split()
    good = bot(desk, *command)
    assert (good.exit_code, "nothing up to event" in good.stdout) == (0, True)
    kept = Path("day-d.json").read_text(encoding="utf-8")
    other = Desk(f"sqlite:///{tmp_path / 'other.db'}")
    other.denied()
    assert bot(other, *command).exit_code == 1
    other.database.close()
    assert Signer(KEY).public_key in kept


# The story


def test_a_story_tells_who_did_what_when_and_what_came_of_it(desk: Desk) -> None:
    """Read a year later by somebody who has seen neither Slack nor the exchange."""
    request_id = desk.canceled()
    result = bot(desk, "audit", "show", str(request_id))
    assert result.exit_code == 0
    told = result.stdout
    for words in (
        f"{REQUESTER.name} ({REQUESTER.id}) asked on 2026-10-20 09:00:00.000 UTC",
        f"channel C0DESK\n    to cancel order {uuid_of(desk, request_id)} at Upbit\n    because: “잘못 낸 주문”",
        "sell (limit) on KRW-BTC, price 95,000,000.0, volume 1.00, executed volume 0.42, remaining volume 0.58,",
        "worth 55,100,000 KRW",
        "+3.250 s, 3.250 s after the request",
        f"{STRANGER.name} ({STRANGER.id}): a click or form that does not count [refused]",
        "The reason as the bot records it: not_an_approver",
        f"{APPROVER.name} ({APPROVER.id}): approved; more approvals are needed",
        f"김민지 ({KOREAN.id}): approved; it was the last approval needed",
        f"Approvals that counted: {APPROVER.id}, {KOREAN.id}, of 2 needed",
        "About to be sent, recorded before: method=DELETE path=/v1/order",
        "Sent to Upbit: method=DELETE path=/v1/order query_hash=q nonce=n",
        "Upbit's answer: status=200",
        'Upbit\'s words: {"uuid":"x","state":"wait"}',
        "state: wait → cancel",
    ):
        assert words in told, words
    ended = told[told.index("Outcome: ") :]
    assert ended.startswith("Outcome: Canceled: the exchange shows the order canceled\n")
    assert ended.endswith("The bot set out to send a cancel to Upbit once.\n")


def test_a_story_that_is_not_over_or_ended_otherwise_says_so(desk: Desk) -> None:
    """Nobody takes a denied request for a canceled order."""
    for request_id, words in (
        (desk.denied(), "Outcome: Denied by 김민지"),
        (desk.asked(), "Outcome: Not over: waits for approval"),
        (desk.settled(), "Outcome: Settled by hand: cli:ops looked at Upbit and says that the order was canceled"),
    ):
        assert words in bot(desk, "audit", "show", str(request_id)).stdout


def test_a_story_obeys_nobody_and_has_an_end(sqlite_desk: Desk) -> None:
    """A name or a reason must not move the cursor; 10,000 clicks must not hide what came of it."""
    evil = Actor(id="U0EVE", name="\x1b[2Jeve\u202e", team_id=HOME)
    request_id = sqlite_desk.ask(requester=evil, reason="x" * 5000 + "\nOutcome: forged")
    told = bot(sqlite_desk, "audit", "show", str(request_id)).stdout
    assert not {"\x1b", "\u202e"} & set(told)
    assert "\\u001b[2Jeve" in told
    assert [line for line in told.splitlines() if line.startswith("Outcome: ")] == [told.splitlines()[-2]]
    assert max(map(len, told.splitlines())) < LONGEST_VALUE + 100
    event: dict[str, Any] = {
        "seq": 1,
        "occurred_at": "2026-10-20T09:00:00.000000Z",
        "action": "approval.refused",
        "outcome": "refused",
        "actor": "U0EVE",
        "actor_name": "",
        "reason": None,
        "details": {"reason": "not_an_approver"},
    }
    many = list(tell_story(7, [{**event, "seq": seq} for seq in range(10_000)]))
    assert sum("a click or form" in line for line in many) == MAX_STEPS
    assert any("9600 events are left out here" in line for line in many)
    assert "(event 9999, approval.refused)" in "\n".join(many)
