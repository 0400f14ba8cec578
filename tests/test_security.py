"""What somebody could try, and what comes of it: wrong people, replays, forged buttons, hostile words, rewriting."""

import hashlib
import hmac
import json
import re
import time
import tomllib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults

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
    call,
    click,
    command,
    create_pending,
    execute,
    order,
    order_uuid,
    present,
    rows,
    walk,
    workflow,
)
from click.testing import CliRunner
from databases import migrated
from journey import WITHIN_S, Asked, Journey, started
from packaging.requirements import Requirement
from postgresql import Postgresql
from slack_bolt.adapter.wsgi import SlackRequestHandler

from bot.__main__ import main
from bot.audit.signing import Signer, is_signed
from bot.choosing import Choice, Choosing, Form
from bot.database.audit_log import AuditLog
from bot.database.checkpoints import SqlDailyCheckpoints
from bot.database.engine import Database
from bot.database.exports import SqlExports
from bot.database.migration import check_revision, migrate
from bot.database.schema import metadata
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.answer import Accepted, Call, CancelAnswer, Found, LookAnswer
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor, Reason
from bot.domain.cancel_request import CancelRequest, DecisionKind, State, Verdict
from bot.domain.errors import IllegalTransition, NothingDone
from bot.domain.event_filter import Filter
from bot.domain.membership import Group, Membership
from bot.exporting import ExportCommand, WantedExport
from bot.inquiry import Inquiry
from bot.playground.demo import BEN, CARA, DANA, DESK
from bot.playground.exchange import Mood
from bot.playground.slack_records import Message
from bot.settings import SettingsError, load_settings
from bot.slack import messages
from bot.slack.listeners import Listeners
from bot.slack.notifier import Identity
from bot.web.door import SLACK_PATH, Door, Readiness
from bot.workflow import CancelWorkflow, settle

ROOT: Final = Path(__file__).parents[1]

# --- Who may do what, and when --------------------------------------------------------------------------------------

PEOPLE: Final = {
    "who asked and may approve": Actor(id="U0BOSS", name="boss", team_id=HOME),
    "who asked": REQUESTER,
    "an approver": APPROVER,
    "a member of an approvers' group": Actor(id="U0MEMBER", name="member", team_id=HOME),
    "an approver of the card only": Actor(id="U0GONE", name="gone", team_id=HOME),
    "an approver of today only": Actor(id="U0NEW", name="new", team_id=HOME),
    "a stranger": Actor(id="U0STRANGER", name="stranger", team_id=HOME),
    "an approver's id in another workspace": replace(APPROVER, team_id="T0OTHER"),
    "the bot itself": Actor(id="U0BOT", name="bot", team_id=HOME),
    "nobody": Actor(id="", name="", team_id=HOME),
}
GROUP: Final = "S0DESK"
ON_THE_CARD: Final = frozenset({"U0BOSS", APPROVER.id, "U0GONE", GROUP})
TODAY: Final = frozenset({"U0BOSS", APPROVER.id, "U0NEW", GROUP})
MAY_ASK: Final = frozenset({"U0BOSS", REQUESTER.id, APPROVER.id, GROUP})

MEANING: Final = {
    "yes": None,
    "own": Reason.OWN_REQUEST,
    "no": Reason.NOT_AN_APPROVER,
    "guest": Reason.OTHER_WORKSPACE,
    "early": Reason.NOT_YET_PENDING,
    "late": Reason.ALREADY_DECIDED,
    "over": Reason.EXPIRED,
    "taken": Reason.ORDER_HAS_OPEN_REQUEST,
    "asker": Reason.NOT_A_REQUESTER,
    "theirs": Reason.NOT_THE_REQUESTER,
    "button": Reason.UNKNOWN_BUTTON,
    "value": Reason.UNKNOWN_REQUEST,
}
"""What a word of the table stands for: it counts, or why it does not."""

OPEN: Final = "requested pending approved sending accepted"
NOT_OPEN: Final = (
    "refused denied withdrawn superseded expired lapsed rejected canceled filled unresolved failed settled"
)
DECIDED: Final = (
    "refused approved denied withdrawn superseded lapsed sending accepted rejected canceled filled unresolved failed "
    "settled"
)
ANY: Final = f"{OPEN} {NOT_OPEN}"

ACCESS: Final = (
    # what is tried, the request's state, and what comes of it for each of PEOPLE, in their order
    ("command", OPEN, "taken taken taken taken asker asker asker guest asker asker"),
    ("command", NOT_OPEN, "yes yes yes yes asker asker asker guest asker asker"),
    ("approve", "requested", "early no early early no early no guest no no"),
    ("approve", "pending", "own no yes yes no no no guest no no"),
    ("approve", "expired", "over no over over no over no guest no no"),
    ("approve", DECIDED, "late no late late no late no guest no no"),
    ("deny", "requested", "early no early early no early no guest no no"),
    ("deny", "pending", "yes no yes yes no yes no guest no no"),
    ("deny", "expired", "over no over over no over no guest no no"),
    ("deny", DECIDED, "late no late late no late no guest no no"),
    ("withdraw", "requested", "early early theirs theirs theirs theirs theirs guest theirs theirs"),
    ("withdraw", "pending", "yes yes theirs theirs theirs theirs theirs guest theirs theirs"),
    ("withdraw", "expired", "over over theirs theirs theirs theirs theirs guest theirs theirs"),
    ("withdraw", DECIDED, "late late theirs theirs theirs theirs theirs guest theirs theirs"),
    ("forged button", ANY, "button button button button button button button button button button"),
    ("forged value", ANY, "value value value value value value value value value value"),
)

Cell = tuple[str, str, str]  # what is tried, the request's state, who tries

CELLS: Final[list[tuple[Cell, str]]] = [
    ((action, state, person), outcome)
    for action, states, outcomes in ACCESS
    for state in states.split()
    for person, outcome in zip(PEOPLE, outcomes.split(), strict=True)
]

STEPS: Final[dict[str, tuple[Action, ...]]] = {
    "pending": (),
    "refused": (Action.REQUEST_REFUSED,),
    "denied": (Action.REQUEST_DENIED,),
    "withdrawn": (Action.REQUEST_WITHDRAWN,),
    "superseded": (Action.REQUEST_SUPERSEDED,),
    "expired": (Action.REQUEST_EXPIRED,),
    "approved": (Action.REQUEST_APPROVED,),
    "lapsed": (Action.REQUEST_APPROVED, Action.REQUEST_LAPSED),
    "sending": (Action.REQUEST_APPROVED, Action.CANCEL_SENT),
    "rejected": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.CANCEL_REJECTED),
    "accepted": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.CANCEL_ACCEPTED),
    "canceled": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.ORDER_CANCELED),
    "filled": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.ORDER_FILLED),
    "unresolved": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.OUTCOME_UNRESOLVED),
    "failed": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.OUTCOME_UNRESOLVED, Action.CANCEL_FAILED),
    "settled": (Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.OUTCOME_UNRESOLVED, Action.OUTCOME_SETTLED),
}
"""How a pending request comes into a state."""


class Desk:
    """A database, and the workflow on it with the allowlists that held when the card was posted, or of today."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        migrated(self.database)
        self.store = SqlStore(self.database)

    def workflow(self, approvers: frozenset[str]) -> CancelWorkflow:
        policy = ApprovalPolicy(approvers=approvers, requesters=MAY_ASK, max_open_requests_per_person=10_000)
        return workflow(self.store, policy, groups=self)

    @staticmethod
    def membership() -> Membership:
        return Membership(groups={GROUP: Group(members=frozenset({"U0MEMBER"}), read_at=START)})

    def request_in(self, state: str, *, asked_by: Actor = REQUESTER) -> CancelRequest:
        then = self.workflow(ON_THE_CARD)
        asked = then.command(command(requester=asked_by), home_team=HOME)
        request_id = present(asked.request_id)
        if state != "requested":
            then.advance(request_id)
            walk(self.store, request_id, *STEPS[state])
        return self.read(request_id)

    def read(self, request_id: int) -> CancelRequest:
        return present(self.store.read(request_id))

    def last_event(self) -> dict[str, Any]:
        """The latest one but for that of the card which a click has shown to be there."""
        latest = AuditLog(self.database).list(Filter(), limit=2)
        return dict(next(event for event in latest if event["action"] != Action.CARD_POSTED))

    def last_events(self, count: int) -> list[str]:
        return [str(event["action"]) for event in AuditLog(self.database).list(Filter(), limit=count)]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """Shared: each test asks for an order of its own."""
    opened = Desk(f"sqlite:///{tmp_path_factory.mktemp('desk') / 'cancels.db'}")
    yield opened
    opened.database.close()


@pytest.fixture(scope="module")
def desk_on_postgresql(postgresql: Postgresql) -> Iterator[Desk]:
    opened = Desk(postgresql.create())
    yield opened
    opened.database.close()


def standing(request: CancelRequest) -> tuple[object, ...]:
    """What a refusal must leave as it was."""
    return request.state, request.decisions, request.approved_at, request.send_before, request.sends, request.ended_at


def tried(desk: Desk, action: str, actor: Actor, request: CancelRequest) -> Reason | None:
    today = desk.workflow(TODAY)
    match action:
        case "command":
            asked = command(requester=actor, team_id=actor.team_id, order_uuid=request.order_uuid)
            return today.command(asked, home_team=HOME).refusal
        case "forged button":
            return today.click(click(request.id, actor, kind=None))
        case "forged value":
            return today.click(click(None, actor))
        case _:
            return today.click(click(request.id, actor, kind=DecisionKind(action)))


def assert_cell(desk: Desk, cell: Cell, outcome: str) -> None:
    action, state, person = cell
    actor = PEOPLE[person]
    request = desk.request_in(state, asked_by=actor if person.startswith("who asked") else REQUESTER)
    assert request.state == state

    assert tried(desk, action, actor, request) is MEANING[outcome]

    after, event = desk.read(request.id), desk.last_event()
    assert (event["actor"], event["actor_team"]) == (actor.id, actor.team_id)
    if outcome != "yes":
        assert standing(after) == standing(request)
        assert event["action"] == ("command.refused" if action == "command" else "approval.refused")
        assert event["outcome"] == "refused"
        assert event["details"]["reason"] == present(MEANING[outcome]).value
        assert event["request_id"] == (None if action in {"command", "forged value"} else request.id)
    elif action == "command":
        assert standing(after) == standing(request)
        assert (event["action"], event["order_uuid"]) == ("request.created", request.order_uuid)
        assert event["request_id"] > request.id
    else:
        assert (event["action"], after.state) == {
            "approve": ("request.approved", State.APPROVED),
            "deny": ("request.denied", State.DENIED),
            "withdraw": ("request.withdrawn", State.WITHDRAWN),
        }[action]
        assert [(decision.kind, decision.actor) for decision in after.decisions] == [(DecisionKind(action), actor)]


@pytest.mark.parametrize(("cell", "outcome"), CELLS, ids=[", ".join(cell) for cell, _ in CELLS])
def test_nobody_does_what_the_table_does_not_give_them(desk: Desk, cell: Cell, outcome: str) -> None:
    """The whole of who may do what and when, as an auditor reads it, and not as the code decides it."""
    assert_cell(desk, cell, outcome)


PENDING_CELLS: Final = [each for each in CELLS if each[0][1] == "pending"]


@pytest.mark.parametrize(("cell", "outcome"), PENDING_CELLS, ids=[", ".join(cell) for cell, _ in PENDING_CELLS])
def test_the_table_holds_on_postgresql(desk_on_postgresql: Desk, cell: Cell, outcome: str) -> None:
    """Where something can be decided, on the other database as well."""
    assert_cell(desk_on_postgresql, cell, outcome)


def test_the_table_has_a_cell_for_everything() -> None:
    """A state, a kind of person or a button that nobody thought of must fail here first."""
    actions = {"command", *DecisionKind, "forged button", "forged value"}
    assert sorted(cell for cell, _ in CELLS) == sorted(product(actions, State, PEOPLE))


@pytest.mark.parametrize("state", State)
def test_a_word_at_the_command_line_settles_only_what_is_unresolved(desk: Desk, state: State) -> None:
    """`bot settle` is the one way past the exchange's own word, and leads out of one state only."""
    request = desk.request_in(state)
    before = desk.last_event()

    def say_open() -> None:
        settle(desk.store, request.id, verdict=Verdict.OPEN, reason="looked", actor=Actor(id="cli:ann"))

    if state is State.UNRESOLVED:
        say_open()
        assert desk.read(request.id).state is State.SETTLED
        assert (desk.last_event()["action"], desk.last_event()["actor"]) == ("outcome.settled", "cli:ann")
    else:
        with pytest.raises(IllegalTransition):
            say_open()
        assert desk.read(request.id) == request
        assert desk.last_event() == before


# --- Replays and forged buttons, from the signature to the row ------------------------------------------------------

SECRET: Final = "8f742231b10e8888abcd99yyyzzz85a5"
IDENTITY: Final = Identity(team_id=HOME, team_url="https://home.slack.test/", bot_user_id="U0BOT")


class CancelingExchange(OpenExchange):
    """Every order is open until its cancel comes, which is accepted and takes effect at once."""

    def __init__(self) -> None:
        self.canceled: list[str] = []

    def get_order(self, uuid: str) -> LookAnswer:
        state = "cancel" if uuid in self.canceled else "wait"
        return Found(order=order(uuid=uuid, state=state), call=call())

    def hold_s(self, _method: Literal["GET", "DELETE"]) -> float:
        return 0.0

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        return Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash=f"hash of {uuid}")

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        self.canceled.append(uuid)
        return Accepted(order=order(uuid=uuid), call=call(method="DELETE"))


class Unhurried:
    """Afterwards: the test itself does what is due."""

    def nudge(self, request_id: int | None = None, *, is_new: bool = False) -> None:
        pass

    def fill(self, number: int) -> None:
        pass

    def tell_now(self, response_url: str, text: str) -> None:
        raise AssertionError(text)

    def open_view(self, trigger_id: str, view: dict[str, Any]) -> None:
        pass

    def fill_form(self, form: Form, choice: Choice) -> None:
        pass

    def opened(self, *, person_id: str, team_id: str) -> None:
        raise AssertionError(person_id)

    def ask(self, command: ExportCommand, *, home_team: str) -> Reason | None:
        raise AssertionError(command)


class Front:
    """The door, Bolt, the listeners and the core, wired as in the process, on a migrated database; the time is ours."""

    def __init__(self, url: str) -> None:
        self.clock = HandClock()
        self.database = Database(url, clock=self.clock)
        self.store = SqlStore(self.database)
        self.exchange = CancelingExchange()
        self.workflow = CancelWorkflow(
            store=self.store,
            exchange=self.exchange,
            quotations=FixedPrices(),
            messenger=SilentMessenger(),
            policy=ApprovalPolicy(approvers=frozenset({APPROVER.id, SECOND.id})),
            approval_ttl=timedelta(hours=1),
            send_within=timedelta(minutes=5),
            new_nonce=lambda: f"nonce-{len(self.exchange.canceled)}",
            monotonic=lambda: 0.0,
        )
        listeners = Listeners(
            workflow=self.workflow,
            inquiry=Inquiry(records=self.store, policy=ApprovalPolicy(approvers=frozenset())),
            choosing=Choosing(exchange=OpenExchange(), forms=Unhurried()),
            afterwards=Unhurried(),
            forms=Unhurried(),
            homes=Unhurried(),
            exports=Unhurried(),
            identity=lambda: IDENTITY,
            max_open_requests=20,
        )
        self.signed_at = int(time.time())  # Bolt checks the time as well, by the machine's clock
        self.age_s = 0
        self._door = Door(
            slack=SlackRequestHandler(listeners.bolt_app(bot_token="xoxb-made-up", signing_secret=SECRET)),
            signing_secret=SECRET,
            ready=lambda: Readiness(checks={}),
            now=lambda: self.signed_at + self.age_s,
        )

    def deliver(self, form: dict[str, str], *, age_s: int = 0) -> tuple[int, str]:
        """What the same bytes, with the same signature, are answered when they come so long after they were signed."""
        self.age_s = age_s
        body = urlencode(form).encode()
        digest = hmac.new(SECRET.encode(), b"v0:%d:%b" % (self.signed_at, body), hashlib.sha256).hexdigest()
        environ: dict[str, Any] = {
            "REQUEST_METHOD": "POST",
            "PATH_INFO": SLACK_PATH,
            "CONTENT_TYPE": "application/x-www-form-urlencoded",
            "CONTENT_LENGTH": str(len(body)),
            "HTTP_X_SLACK_REQUEST_TIMESTAMP": str(self.signed_at),
            "HTTP_X_SLACK_SIGNATURE": f"v0={digest}",
        }
        setup_testing_defaults(environ)
        environ["wsgi.input"].write(body)
        environ["wsgi.input"].seek(0)
        statuses: list[int] = []

        def start(status: str, headers: object, exc_info: object = None, /) -> Callable[[bytes], object]:
            statuses.append(int(status.split(maxsplit=1)[0]))
            return lambda _: None

        answer = b"".join(self._door(environ, start)).decode()
        return statuses[-1], answer

    def work(self) -> None:
        """Do all that is due within the next minute."""
        for _ in range(60):
            due = self.store.due(limit=50)
            for request_id in due.exchange:
                self.workflow.advance(request_id)
            for request_id in due.slack:
                self.workflow.show(request_id)
            for notice_id in due.notices:
                self.workflow.deliver(notice_id)
            self.clock.advance(1)

    def actions(self, request_id: int | None = None) -> list[str]:
        events = AuditLog(self.database).list(Filter(request_id=request_id), limit=1000, newest_first=False)
        return [str(event["action"]) for event in events]

    def refusals(self) -> list[object]:
        events = AuditLog(self.database).list(Filter(outcome="refused"), limit=1000, newest_first=False)
        return [dict(event)["details"]["reason"] for event in events]  # type: ignore[index,call-overload]


@pytest.fixture
def front(sqlite: Database) -> Iterator[Front]:
    opened = Front(address(sqlite))
    yield opened
    opened.database.close()


def address(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def typed(uuid: str, *, trigger_id: str = "trigger-typed") -> dict[str, str]:
    """A command as Slack sends it."""
    return {
        "command": "/cancel",
        "text": f"{uuid} wrong price",
        "team_id": HOME,
        "channel_id": "C0DESK",
        "user_id": REQUESTER.id,
        "user_name": REQUESTER.name,
        "response_url": "http://127.0.0.1/response",
        "trigger_id": trigger_id,
    }


def pressed(value: str, *, action_id: str = "approve", ts: str = "1790000000.000100") -> dict[str, str]:
    """A press of an approver as Slack sends it."""
    payload = {
        "type": "block_actions",
        "user": {"id": APPROVER.id, "username": APPROVER.name, "team_id": HOME},
        "team": {"id": HOME},
        "container": {"type": "message", "channel_id": "C0DESK", "message_ts": ts},
        "channel": {"id": "C0DESK"},
        "actions": [{"type": "button", "action_id": action_id, "block_id": "b", "value": value}],
        "response_url": "http://127.0.0.1/response",
        "trigger_id": f"trigger-{value}",
    }
    return {"payload": json.dumps(payload)}


def test_a_replay_within_five_minutes_does_nothing_twice(front: Front) -> None:
    """Slack's signature lets the same bytes in for five minutes, whoever sends them: they must not count again."""
    uuid = order_uuid()
    answer = front.deliver(typed(uuid))
    assert answer[0] == 200
    assert messages.recorded(1) in json.loads(answer[1])["text"]
    front.work()
    assert front.deliver(typed(uuid), age_s=299) == answer

    assert front.deliver(pressed("1")) == (200, "")
    assert front.deliver(pressed("1"), age_s=299) == (200, "")
    front.work()
    assert front.deliver(pressed("1"), age_s=300) == (200, "")
    assert front.deliver(typed(uuid), age_s=300) == answer
    front.work()

    assert front.exchange.canceled == [uuid]
    request = present(front.store.read(1))
    assert request.state is State.CANCELED
    assert [decision.actor.id for decision in request.decisions] == [APPROVER.id]
    assert front.store.read(2) is None
    assert front.actions().count("request.created") == 1
    assert front.actions(1).count("request.approved") == 1
    assert front.refusals() == ["already_decided"] * 2


def test_a_replayed_approval_does_not_count_for_the_next_request(front: Front) -> None:
    """Yesterday's yes to an order is no yes to today's request for it."""
    uuid = order_uuid()
    front.deliver(typed(uuid))
    front.work()
    assert front.deliver(pressed("1", action_id="deny")) == (200, "")
    assert json.loads(front.deliver(typed(uuid, trigger_id="trigger-again"))[1])["text"] == messages.recorded(2)
    front.work()

    front.deliver(pressed("1", action_id="deny"), age_s=200)
    front.work()

    assert [present(front.store.read(number)).state for number in (1, 2)] == [State.DENIED, State.PENDING]
    assert front.exchange.canceled == []


@pytest.mark.parametrize("age_s", [301, 3600, 86_400, -301])
def test_a_replay_after_five_minutes_is_turned_away(front: Front, age_s: int) -> None:
    """What somebody recorded on the way is worth nothing afterwards."""
    front.deliver(typed(order_uuid()))
    front.work()
    before = front.actions()

    for form in (typed(order_uuid(), trigger_id="trigger-late"), pressed("1")):
        status, answer = front.deliver(form, age_s=age_s)
        assert (status, answer) == (401, "the timestamp is too far from now\n")

    assert front.actions() == before
    assert present(front.store.read(1)).state is State.PENDING


def test_a_button_decides_the_request_that_it_names_wherever_it_is_pressed(front: Front) -> None:
    """An approver may approve request 2 on whatever message: the number counts, the message is never read."""
    for number in (1, 2):
        front.deliver(typed(order_uuid(), trigger_id=f"trigger-{number}"))
    front.work()

    assert front.deliver(pressed("2", ts="1790000000.999900")) == (200, "")
    front.work()

    first, second = (present(front.store.read(number)) for number in (1, 2))
    assert (first.state, first.decisions) == (State.PENDING, ())
    assert second.state is State.CANCELED
    assert front.exchange.canceled == [second.order_uuid]


def test_a_button_with_the_number_of_another_workspaces_request_decides_nothing(front: Front) -> None:
    """One database may one day serve two workspaces; an approver is one of their own only."""
    foreign = create_pending(front.store, team_id="T0OTHER", requester=replace(REQUESTER, team_id="T0OTHER"))

    assert front.deliver(pressed(str(foreign.id))) == (200, "")
    front.work()

    assert present(front.store.read(foreign.id)).state is State.PENDING
    assert front.refusals() == ["other_workspace"]
    assert front.exchange.canceled == []


@pytest.mark.parametrize(
    "value",
    ["2", "1 OR 1=1", "1;--", "' OR ''='", "1,2", "0x1", "1e0", "01", " 1 2", "\u0661", str(2**63), "1" + "0" * 14],
)
def test_a_button_with_a_value_that_names_nothing_decides_nothing(front: Front, value: str) -> None:
    """It is no number of a request, or of none that there is; request 1 is there to be hit by mistake."""
    front.deliver(typed(order_uuid()))
    front.work()

    assert front.deliver(pressed(value)) == (200, "")
    front.work()

    assert present(front.store.read(1)).state is State.PENDING
    assert front.refusals() == ["unknown_request"]
    assert front.exchange.canceled == []


# --- Hostile words --------------------------------------------------------------------------------------------------

MARKUP: Final = "<!channel> <@U0EVIL> <https://evil.test|x> `*b*` <b>'; DROP--"
CONTROLS: Final = '\x1b[31m\r\n99  forged\n{"level": 1}\x9b1m\u202e\u200b!'
HOSTILE: Final = MARKUP + CONTROLS
"""Short enough for the name of an error of Upbit's."""

ACTIVE: Final = re.compile(r"<!channel|<@U0EVIL|<https://evil|<b>|[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u200b]")


def as_heard(text: str) -> str:
    """What Slack delivers, as it is stored: controls are spaces."""
    return "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)


def printable(text: str) -> bool:
    """Nothing but lines of characters that a terminal draws where they stand."""
    return all(
        unicodedata.category(char) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for char in text.replace("\n", "")
    )


def texts_in(node: object) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict):
        for value in node.values():
            yield from texts_in(value)
    elif isinstance(node, list | tuple):
        for value in node:
            yield from texts_in(value)


def everything_said(journey: Journey) -> list[str]:
    """Every text that the bot has put before anybody, by whichever way, as it left the bot."""
    seen: list[Message] = [*journey.slack.messages(DESK)]
    for person in (DANA, BEN, CARA):
        seen += [*journey.slack.ephemerals(person.id), *journey.slack.dms(person.id)]
    bot = journey.slack.installation.bot_user_id
    shown = [text for message in seen if message.author == bot for text in texts_in([message.text, message.blocks])]
    return shown + [text for sent in journey.slack.calls() for text in texts_in(dict(sent.arguments))]


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Journey]:
    """A bot to which everybody has said hostile things, the exchange most of all, while both neighbours failed."""
    with started(tmp_path_factory.mktemp("hostile"), is_slack_away=True) as told:
        refused = told.slack.set_mood(f"error:{HOSTILE}", method="auth.test", times=1)
        assert refused.met.wait(WITHIN_S)
        told.slack.clear_moods()
        told.bot.wait_until_ready()
        _say_hostile_things(told)
        yield told


def _say_hostile_things(journey: Journey) -> None:
    for person in (DANA, BEN, CARA):
        journey.slack.change_person(person.id, name=HOSTILE)
    journey.slack.command(DANA.id, DESK, HOSTILE)

    rejected = _ask_for_a_hostile_order(journey)
    journey.press(CARA, rejected, "approve")
    journey.forge(CARA, rejected, HOSTILE, value=HOSTILE)
    journey.exchange.set_mood("DELETE", Mood.REFUSE, times=1, name=HOSTILE)
    journey.press(BEN, rejected, "approve")
    journey.shows(rejected, "refused by Upbit")

    journey.exchange.set_mood("GET", Mood.REFUSE, times=1, name=HOSTILE)
    refused = journey.record(f"{journey.exchange.place()} {HOSTILE}")
    journey.audited(refused, "request.refused")

    canceled = _ask_for_a_hostile_order(journey)
    journey.exchange.set_mood("DELETE", Mood.DROP_AFTER, times=1)
    for mood in (Mood.REDIRECT, Mood.HTML_200, Mood.WRONG_UUID):
        journey.exchange.set_mood("GET", mood, times=1)
        if mood is Mood.REDIRECT:
            journey.press(BEN, canceled, "approve")
        journey.until_exchange(lambda exchange: not exchange._moods["GET"].times_left)
    journey.audited(canceled.id, "summary.posted")

    journey.press(BEN, denied := _ask_for_a_hostile_order(journey), "deny")
    journey.audited(denied.id, "summary.posted")


def _ask_for_a_hostile_order(journey: Journey) -> Asked:
    uuid = journey.exchange.place(market=HOSTILE, side=HOSTILE, ord_type=HOSTILE, identifier=HOSTILE)
    return journey.ask(uuid=uuid, reason=HOSTILE)


def test_hostile_words_reach_slack_as_words(journey: Journey) -> None:
    """A reason, a name, a market or Upbit's own sentence calls nobody, links nowhere and hides nothing."""
    said = everything_said(journey)
    assert any("&lt;!channel&gt; &lt;@U0EVIL&gt;" in text and "DROP--" in text for text in said)
    assert any("Upbit said: `(&lt;!channel&gt; &lt;@U0EVIL&gt;" in text for text in said)
    assert [text for text in said if ACTIVE.search(text)] == []


def test_hostile_words_forge_no_line_of_the_log(journey: Journey) -> None:
    """Whoever reads or ships the log takes a line for what the bot itself has said."""
    lines = journey.bot.log().split("\n")
    assert lines.pop() == ""
    logged = [json.loads(line) for line in lines]
    assert [line["level"] for line in logged if HOSTILE in line["message"]] == ["warning"]
    assert {type(line["level"]) for line in logged} == {str}
    assert journey.complaints() == []


def test_hostile_words_are_kept_as_they_came(journey: Journey) -> None:
    """The audit is evidence: what was said stands there, not a cleaned picture of it; and no quote ends a statement."""
    created = [event for event in journey.events() if event["action"] == "request.created"]
    assert [event["reason"] for event in created] == [as_heard(HOSTILE)] * len(created)
    assert {event["actor_name"] for event in created} == {as_heard(HOSTILE)}
    opened = [event for event in journey.events() if event["action"] == "request.opened"]
    assert {event["market"] for event in opened} == {HOSTILE}
    assert {event["details"]["order"]["side"] for event in opened} == {HOSTILE}
    errors = {event["details"].get("error") for event in journey.events()}
    assert HOSTILE in errors
    assert journey.audit_fault() is None


def test_hostile_words_are_drawn_by_no_terminal(journey: Journey) -> None:
    """An auditor's terminal obeys escape sequences: a name could turn the text around, or paint a row that is none."""
    listed = journey.bot.command("audit", "list").stdout
    shown = journey.bot.command("audit", "show", "1").stdout
    assert "<!channel>" in listed
    assert printable(listed)
    assert printable(shown)
    assert len(re.findall(r"^\d+ ", listed, re.MULTILINE)) == len(journey.events())


def test_hostile_words_are_data_for_programs(journey: Journey) -> None:
    """One object a line, whatever stands in it, and nothing in it that a terminal obeys."""
    lines = journey.bot.command("audit", "list", "--format", "json").stdout.split("\n")
    events = [json.loads(line) for line in lines[:-1]]
    assert list(reversed(events)) == journey.events()
    assert printable("\n".join(lines))


def test_nothing_but_looks_and_cancels_left_for_the_exchange(journey: Journey) -> None:
    """The key can place orders. What left, in good days and bad, named orders by their uuids and had no body."""
    quotations = [request for request in journey.exchange.requests if request.path == "/v1/orderbook"]
    assert {(request.method, request.query, request.body) for request in quotations} <= {
        ("GET", "markets=KRW-BTC", b"")
    }
    assert not any({"authorization", "cookie", "origin"} & set(request.headers) for request in quotations)
    requests = [request for request in journey.exchange.requests if request.path != "/v1/orderbook"]
    assert len({event["order_uuid"] for event in journey.events()} - {None}) == 4
    calls = {("GET", "/v1/order"), ("GET", "/v1/orders/uuids"), ("DELETE", "/v1/order")}
    assert {(request.method, request.path) for request in requests} <= calls
    assert {("GET", "/v1/order"), ("DELETE", "/v1/order")} <= {(request.method, request.path) for request in requests}
    assert {tuple(request.fields) for request in requests} <= {("uuid",), ("uuids[]",)}
    assert {request.body for request in requests} == {b""}
    asked_for = {event["order_uuid"] for event in journey.events()}
    assert {uuid for request in requests for uuid in request.uuids} <= asked_for


# --- Where the key goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://10.0.0.1",
        "http://192.168.1.1:8080",
        "http://0.0.0.0",
        "http://2130706433",
        "http://0x7f.1",
        "http://[::ffff:8.8.8.8]",
        "http://localhost.example.com",
        "http://localhost@example.com",
        "http://127.0.0.1@example.com",
        "http://127.0.0.1:80@example.com",
        "http://user:pw@127.0.0.1",
        "http://api.upbit.com:80",
    ],
)
def test_the_key_leaves_the_machine_encrypted_or_not_at_all(url: str) -> None:
    """Plain HTTP is for the playground; an address on the own machine is easily imitated in writing."""
    with pytest.raises(SettingsError) as refused:
        load_settings({"UPBIT_OPEN_API_SERVER_URL": url}, None)
    assert any(fault.startswith("UPBIT_OPEN_API_SERVER_URL must be") for fault in refused.value.faults)


# --- Who may touch the audit ----------------------------------------------------------------------------------------

BOT_MAY: Final = {
    "audit_events": "SELECT, INSERT",
    "audit_head": "SELECT, UPDATE (seq, hash, occurred_at)",
    "checkpoints": "SELECT, INSERT, UPDATE (channel_id, message_ts, attempts, next_attempt_at, fence)",
    "alembic_version": "SELECT",
    "cancel_requests": "SELECT, INSERT, UPDATE",
    "decisions": "SELECT, INSERT, UPDATE",
    "notices": "SELECT, INSERT, UPDATE",
    "homes": "SELECT, INSERT, UPDATE",
    "exports": "SELECT, INSERT, UPDATE",
}
"""What docs/audit.md grants to the account with which the bot runs."""

AUDITOR_MAY: Final = dict.fromkeys(("audit_events", "audit_head", "checkpoints", "alembic_version"), "SELECT")

COPIED: Final = "occurred_at, action, outcome, actor, actor_name, actor_team, details, entry"
UPSERT: Final = (
    f"INSERT INTO audit_events (seq, prev_hash, hash, {COPIED}) SELECT seq, prev_hash, hash, {COPIED} "
    "FROM audit_events WHERE seq = 1 ON CONFLICT (seq) DO UPDATE SET reason = 'another'"
)
REWRITES: Final = (
    "UPDATE audit_events SET reason = 'another'",
    "DELETE FROM audit_events",
    "TRUNCATE audit_events",
    "TRUNCATE cancel_requests CASCADE",
    "DROP TABLE audit_events",
    "DROP TRIGGER audit_events_no_change ON audit_events",
    "ALTER TABLE audit_events DISABLE TRIGGER audit_events_no_change",
    "ALTER TABLE audit_events DISABLE TRIGGER ALL",
    "ALTER TABLE audit_events RENAME TO audit_events_of_yesterday",
    "CREATE OR REPLACE FUNCTION audit_events_refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
    "SET session_replication_role = replica",
    UPSERT,
    "SELECT * FROM audit_events FOR UPDATE",
    "UPDATE audit_head SET base_seq = 1, base_hash = hash",
    "DELETE FROM audit_head",
    "UPDATE checkpoints SET hash = 'another'",
    "DELETE FROM checkpoints",
    "INSERT INTO audit_head (id, seq, hash, occurred_at) SELECT 2, seq, hash, occurred_at FROM audit_head",
    "DELETE FROM decisions",
    "DELETE FROM cancel_requests",
)

REFUSED_BY_RIGHTS: Final = "InsufficientPrivilege"


@pytest.fixture
def owner(postgresql: Postgresql) -> Iterator[Database]:
    """The database as the account sees it that migrates and owns everything."""
    opened = Database(postgresql.create())
    migrate(opened)
    yield opened
    opened.close()


def account(owner: Database, name: str, rights: dict[str, str]) -> str:
    """The URL of a new account that owns nothing and has these rights."""
    schema = present(owner.url.username)
    role = f"{schema}_{name}"
    execute(
        owner,
        f"CREATE ROLE {role} LOGIN",
        f"ALTER ROLE {role} SET search_path = {schema}",
        f"GRANT USAGE ON SCHEMA {schema} TO {role}",
        *(f"GRANT {verbs} ON {table} TO {role}" for table, verbs in rights.items()),
        *([f"GRANT USAGE ON ALL SEQUENCES IN SCHEMA {schema} TO {role}"] if rights is BOT_MAY else []),
    )
    return owner.url.set(username=role).render_as_string(hide_password=False)


def assert_cannot_rewrite(account: Database) -> None:
    """Every statement is refused by the account's rights, before a trigger has to."""
    for statement in REWRITES:
        with pytest.raises(NothingDone, match=REFUSED_BY_RIGHTS):
            execute(account, statement)


def test_the_bots_account_cancels_and_cannot_rewrite(owner: Database) -> None:
    """Whoever steals the bot's password can add to the story, and take nothing back."""
    assert set(BOT_MAY) == {*metadata.tables, "alembic_version"}
    front = Front(account(owner, "bot", BOT_MAY))
    check_revision(front.database)
    for decision in ("approve", "deny"):
        uuid = order_uuid()
        answer = front.deliver(typed(uuid, trigger_id=f"trigger-{decision}"))
        front.work()
        request_id = present(front.store.request_of_trigger(f"trigger-{decision}"))
        assert json.loads(answer[1])["text"] == messages.recorded(request_id)
        front.deliver(pressed("999"))
        front.deliver(pressed(str(request_id), action_id=decision))
        front.work()
        assert front.actions(request_id)[-1] == "summary.posted"
    assert [present(front.store.read(number)).state for number in (1, 2)] == [State.CANCELED, State.DENIED]
    assert len(front.exchange.canceled) == 1
    signer = Signer("11" * 32)
    daily = SqlDailyCheckpoints(
        front.database, sign=signer.sign, key=signer.public_key, is_good=is_signed, is_to_post=True
    )
    assert daily.make_daily(rest=lambda: None)
    daily.posted(present(daily.lease(1)), channel_id="C0AUDIT", ts="1.000001")
    exports = SqlExports(front.database)
    wanted = ExportCommand(
        trigger_id="trigger-export",
        person=APPROVER,
        team_id=IDENTITY.team_id,
        channel_id="C0DESK",
        text="export",
        wanted=WantedExport(),
    )
    assert exports.ask(wanted, None, {}) is None
    exports.delivered(present(exports.lease(1)))
    before = rows(owner, "SELECT * FROM audit_events ORDER BY seq")

    assert_cannot_rewrite(front.database)

    front.database.close()
    assert rows(owner, "SELECT * FROM audit_events ORDER BY seq") == before
    assert verify(owner).fault is None


def test_an_auditors_account_reads_everything_and_changes_nothing(owner: Database) -> None:
    """Who checks the bot needs no right to change it, and must not be suspected of having done so."""
    request = create_pending(SqlStore(owner))
    url = account(owner, "auditor", AUDITOR_MAY)
    before = rows(owner, "SELECT * FROM audit_events ORDER BY seq")

    told = [
        CliRunner().invoke(main, ["audit", *arguments], env={"DATABASE_URL": url})
        for arguments in (["list"], ["show", str(request.id)], ["verify"])
    ]
    assert [result.exit_code for result in told] == [0, 0, 0], [result.output for result in told]
    assert all("request.opened" in result.stdout for result in told[:2])
    assert told[2].stdout.startswith("2 events verified; the chain ends at 2 ")

    auditor = Database(url)
    assert_cannot_rewrite(auditor)
    for statement in (
        "UPDATE audit_head SET seq = 0",
        f"INSERT INTO audit_events (seq, prev_hash, hash, {COPIED}) SELECT 3, 'x', 'y', {COPIED} FROM audit_events",
        "SELECT * FROM cancel_requests",
    ):
        with pytest.raises(NothingDone, match=REFUSED_BY_RIGHTS):
            execute(auditor, statement)
    auditor.close()
    assert rows(owner, "SELECT * FROM audit_events ORDER BY seq") == before


# --- The key that signs checkpoints -----------------------------------------------------------------------------------


@pytest.mark.parametrize("slip", ["", "0", "z"])
def test_the_key_that_signs_checkpoints_is_never_shown(
    slip: str, sqlite: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever has it can sign a chain of their own; with one digit too many it is still nearly the key."""
    key = "c0ffee" * 10 + "5eed"
    url = sqlite.url.render_as_string(hide_password=False)
    monkeypatch.chdir(Path(present(sqlite.url.database)).parent)
    told = [
        CliRunner().invoke(main, arguments, env={"DATABASE_URL": url, "CHECKPOINT_KEY": key + slip})
        for arguments in (
            ["audit", "checkpoint", "--out", f"kept{slip}.txt"],
            ["audit", "checkpoint", "--out", "no/such/folder"],
            ["audit", "verify", "--checkpoint", f"kept{slip}.txt"],
            ["check"],
        )
    ]
    assert told[0].exit_code == (1 if slip else 0)
    shown = [*(result.output for result in told), *(repr(result.exception) for result in told), caplog.text]
    shown.append(json.dumps(AuditLog(sqlite).list(Filter(), limit=9)))
    shown += [path.read_text(encoding="utf-8") for path in Path.cwd().glob("*.txt")]
    assert not [text for text in shown if key in text.lower()]


# --- What may be installed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "unsafe"),
    [
        ("slack-sdk", "3.42.99"),  # an empty signing secret verified everything
        ("slack-bolt", "1.28.99"),  # ssl_check=1 skipped the signature
    ],
)
def test_the_versions_that_skipped_slacks_signature_cannot_be_chosen(name: str, unsafe: str) -> None:
    """Who installs the wheel without the lock must not get one of these, however old their mirror is."""
    dependencies = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    (wanted,) = [each for each in map(Requirement, dependencies) if each.name == name]
    assert not wanted.specifier.contains(unsafe, prereleases=True)
