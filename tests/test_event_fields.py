"""Every event holds what docs/audit.md promises of its action, and nothing that is not written down there."""

import re
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from builders import APPROVER, REQUESTER, SECOND, STRANGER, click, command, present, take
from desk import ANSWER, CANCELED, KOREAN, PARTLY, Desk
from test_workflow import BLIND, DONE, GONE, LOST, NO_KEY, NOT_SENT, OPEN, ScriptedExchange, sees

from bot.database.audit_log import AuditLog
from bot.database.starts import record_start
from bot.database.store import LEASE
from bot.domain.answer import Accepted, CancelAnswer, Refused
from bot.domain.audit import Action, Reason
from bot.domain.cancel_request import DecisionKind, State
from bot.domain.event_filter import Filter
from bot.workflow import Lane

PAGE = Path(__file__).parent.parent / "docs" / "audit.md"
OF_THE_AUDIT_ITSELF = {
    Action.AUDIT_VERIFIED,
    Action.AUDIT_CHECKPOINTED,
    Action.AUDIT_RECONCILED,
    Action.EVIDENCE_PACKED,
    Action.REPORT_MADE,
    Action.EXPORT_BEGUN,
    Action.AUDIT_EXPORTED,
    Action.EXPORT_DELIVERED,
    Action.AUDIT_PRUNED,
}
"""Their details are tried where they are made."""


IN_ANY = {"clock", "value_krw"}
"""Can stand in any event."""


class Promise(NamedTuple):
    by: str  #: person, system or command line
    always: frozenset[str]  #: names in `details`
    at_times: frozenset[str]


def promises() -> dict[str, Promise]:
    """The table of the page, by action."""
    text = PAGE.read_text(encoding="utf-8").partition("\n## What each event holds\n")[2].partition("\n## ")[0]
    found = {}
    for row in re.findall(r"^\| `([a-z_.]+)` \|(.*)\|$", text, re.MULTILINE):
        by, always, at_times = row[1].split("|")
        found[row[0]] = Promise(
            by.strip(), frozenset(re.findall(r"`(\w+)`", always)), frozenset(re.findall(r"`(\w+)`", at_times))
        )
    return found


class Late(ScriptedExchange):
    """Answers a cancel when somebody else has taken the request up meanwhile."""

    def __init__(self, desk: Desk, request_id: int, answer: CancelAnswer) -> None:
        super().__init__()
        self.desk, self.request_id, self.answer = desk, request_id, answer

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        self.desk.clock.advance(LEASE.total_seconds() + 1)
        present(take(self.desk.store, self.request_id, Lane.EXCHANGE))
        return self.answer


class Day(Desk):
    """Everything that can happen to a request, one after the other."""

    def go_on(self, request_id: int, *, for_s: float) -> None:
        """In longer strides, and of no other request."""
        for _ in range(round(for_s / 0.5) + 1):
            self.workflow.advance(request_id)
            self.workflow.show(request_id)
            self.clock.advance(0.5)

    def approved_by_two(self) -> int:
        request_id = self.asked()
        self.press(request_id, APPROVER)
        self.press(request_id, SECOND)
        return request_id

    def ended(self, *cancels: CancelAnswer, looks: list[Any], for_s: float = 2) -> State:
        """A request that two approve, these answers, and these looks at the order after them."""
        request_id = self.approved_by_two()
        self.exchange = ScriptedExchange()
        self.exchange.cancels, self.exchange.looks = list(cancels), looks
        self.go_on(request_id, for_s=for_s)
        return self.state(request_id)

    def commands(self) -> None:
        self.workflow.command(command(order_uuid=None, fault=Reason.USAGE, reason="my order"), home_team="T0HOME")
        open_request = self.request(self.asked())
        self.workflow.command(command(order_uuid=open_request.order_uuid), home_team="T0HOME")
        self.workflow.command(command(), home_team="T0OTHER")

    def clicks(self) -> None:
        request_id = self.asked()
        self.press(request_id, STRANGER)
        self.press(request_id, APPROVER, DecisionKind.WITHDRAW)
        self.workflow.click(click(4711, APPROVER))
        self.workflow.click(click(request_id, APPROVER, kind=None))
        self.press(request_id, APPROVER, DecisionKind.DENY, reason="", is_form=True, channel_id="")

    def waits(self) -> None:
        """Reminded, changed, unseen, not refreshed, and expired."""
        request_id = self.asked()
        self.clock.advance(15 * 60 + 1)
        self.workflow.advance(request_id)
        for look in (sees(OPEN), BLIND):
            self.exchange.looks = [look]
            self.store.wake(request_id)
            self.workflow.advance(request_id)
        self.exchange.list_fails = BLIND
        self.workflow.refresh()
        self.exchange.list_fails = None
        self.clock.advance(15 * 60)
        self.workflow.advance(request_id)
        assert self.state(request_id) is State.EXPIRED

    def superseded(self) -> None:
        request_id = self.asked()
        self.exchange.looks = [sees(DONE)]
        self.store.wake(request_id)
        self.workflow.advance(request_id)
        assert self.state(request_id) is State.SUPERSEDED

    def refused(self, *looks: Any) -> None:
        self.exchange.looks = list(looks)
        request_id = self.ask()
        self.go_on(request_id, for_s=3)
        assert self.state(request_id) is State.REFUSED

    def failed(self) -> None:
        """Accepted, and ten minutes later still open."""
        request_id = self.approved_by_two()
        for wait_s in (0, 31, *[300] * 4):
            self.clock.advance(wait_s)
            self.workflow.advance(request_id)
        assert self.state(request_id) is State.FAILED

    def lapsed(self) -> None:
        request_id = self.approved_by_two()
        self.exchange.cancels = [NOT_SENT]
        self.workflow.advance(request_id)
        self.clock.advance(5 * 60 + 1)
        self.workflow.advance(request_id)
        assert self.state(request_id) is State.LAPSED
        self.exchange = ScriptedExchange()

    def answered_late(self, answer: CancelAnswer) -> None:
        request_id = self.approved_by_two()
        self.exchange = Late(self, request_id, answer)
        self.workflow.advance(request_id)
        self.exchange = ScriptedExchange()


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The events of such a day, by action."""
    day = Day(f"sqlite:///{tmp_path_factory.mktemp('day') / 'cancels.db'}")
    record_start(day.database, version="1.2.3", replica="host:1", settings={"APPROVERS": "S0TREASURY"})
    day.commands()
    day.clicks()
    day.canceled()
    day.denied()
    day.withdrawn()
    day.waits()
    day.superseded()
    day.refused(GONE)
    day.refused(BLIND, sees(CANCELED))
    day.lapsed()
    day.failed()
    assert day.ended(Accepted(order=PARTLY, call=ANSWER), looks=[sees(DONE)]) is State.FILLED
    assert day.ended(NO_KEY, looks=[sees(PARTLY)]) is State.REJECTED
    doubted = Refused(name="new_error", proves_nothing_happened=False, call=ANSWER)
    assert day.ended(doubted, looks=[sees(PARTLY)], for_s=4) is State.REJECTED
    again = (LOST, Accepted(order=PARTLY, call=ANSWER))
    assert day.ended(*again, looks=[*[sees(PARTLY)] * 8, sees(CANCELED)], for_s=20) is State.CANCELED
    day.answered_late(Accepted(order=PARTLY, call=ANSWER))
    day.answered_late(LOST)
    day.settled()
    found = defaultdict(list)
    for event in AuditLog(day.database).list(Filter(), limit=10_000, newest_first=False):
        found[str(event["action"])].append(dict(event))
    day.database.close()
    return dict(found)


def test_the_page_says_of_every_action_what_it_holds() -> None:
    """Who asks a year later must know beforehand what will be there."""
    assert set(promises()) == set(Action) - OF_THE_AUDIT_ITSELF


@pytest.mark.parametrize("action", sorted(set(Action) - OF_THE_AUDIT_ITSELF))
def test_each_event_holds_what_is_promised_of_its_action(action: str, events: dict[str, list[dict[str, Any]]]) -> None:
    """A fact that is missing from an append-only table can never be added."""
    promise = promises()[action]
    assert action in events, "the day has none: let it happen there"
    for event in events[action]:
        held = set(event["details"])
        assert promise.always <= held, f"{promise.always - held} is missing"
        assert held <= promise.always | promise.at_times | IN_ANY, "something is there that the page does not tell"
        told = {name: event[name] for name in ("actor_name", "actor_team", "team_id", "channel_id", "trigger_id")}
        if promise.by == "person":
            assert event["actor"].startswith("U")
            assert all(told.values()), told
        elif promise.by == "system":
            assert (event["actor"], event["actor_name"], event["trigger_id"]) == ("system", "", None)
        else:
            assert event["actor"].startswith("cli:")
        if event["request_id"] is not None:
            assert all(event[name] for name in ("order_uuid", "team_id", "channel_id"))
        for facts in [event["details"]["call"]] if "call" in held else []:
            assert {"method", "path", "nonce", "query_hash", "elapsed_ms"} <= set(facts)


def test_a_sent_cancel_can_be_told_from_its_events_alone(events: dict[str, list[dict[str, Any]]]) -> None:
    """What was sent and answered, when, and the order before and after: without the exchange, and years later."""
    (canceled, *_) = events["order.canceled"]
    sent, accepted = (
        next(each for each in events[action] if each["request_id"] == canceled["request_id"])
        for action in ("cancel.sent", "cancel.accepted")
    )
    told = sent["details"]
    uuid = canceled["order_uuid"]
    assert {name: told[name] for name in ("method", "path", "uuid", "query_hash", "attempt")} == {
        "method": "DELETE",
        "path": "/v1/order",
        "uuid": uuid,
        "query_hash": f"hash of {uuid}",
        "attempt": 1,
    }
    assert told["nonce"]
    assert (told["order"]["state"], told["order"]["remaining_volume"]) == ("wait", "0.58")
    answered = accepted["details"]["call"]
    assert (answered["status"], answered["remaining_req"]) == (200, "group=order; min=59; sec=4")
    assert answered["body"] == '{"uuid":"x","state":"wait"}'
    assert sent["occurred_at"] <= accepted["occurred_at"] <= canceled["occurred_at"]
    assert canceled["details"]["order"]["state"] == "cancel"


def test_a_click_tells_where_it_was_made(events: dict[str, list[dict[str, Any]]]) -> None:
    """Also of a card's copy in another channel, and of a request that is not there."""
    unknown = [each for each in events["approval.refused"] if each["request_id"] is None]
    assert [each["details"]["unknown_request_id"] for each in unknown] == [4711]
    assert {each["team_id"] for each in unknown} == {"T0HOME"}
    assert {each["actor"] for each in events["approval.recorded"]} <= {APPROVER.id, SECOND.id, KOREAN.id}
    assert {each["actor"] for each in events["request.withdrawn"]} == {REQUESTER.id}
