"""The listeners: what is read out of Slack's payloads, and what is answered when it cannot be written down."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar
from urllib.parse import urlencode

import pytest
from builders import FixedPrices, OpenExchange, command, order, present
from databases import migrated
from hypothesis import given
from hypothesis import strategies as st
from slack_bolt import App
from slack_bolt.request import BoltRequest
from slack_bolt.response import BoltResponse
from sqlalchemy import select

from bot.choosing import MAX_FORMS, Choice, Choosing, Form
from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.database.store import SqlStore
from bot.domain.answer import Call, CancelAnswer, LookAnswer, OrdersAnswer
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Reason
from bot.domain.cancel_request import CancelRequest, DecisionKind, State
from bot.domain.errors import CannotPost, CommitInDoubt, MessengerError, NothingDone, StoreError, TryLater
from bot.domain.event_filter import Filter
from bot.exporting import ExportCommand, WantedExport
from bot.inquiry import Inquiry, Wanted
from bot.playground.slack_blocks import view_faults
from bot.slack import messages, views
from bot.slack.listeners import (
    Listeners,
    clean,
    parse_click,
    parse_command,
    parse_request_id,
    parse_submission,
    parse_text,
)
from bot.slack.notifier import Identity
from bot.worker import Attention
from bot.workflow import CancelWorkflow, Lane, Lease, Notice, NoticeKind, Posted, Taken, Transaction, Watched

UUID = "cdd92199-2897-4e14-9448-f923320408ad"
OTHER_UUID = "9ca023a5-851b-4fec-9f0a-48cd83c2eaae"

Json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)

FIELDS = ("actions", "user", "team", "container", "channel", "response_url", "trigger_id", "action_id", "value", "id")
Payload = st.dictionaries(
    st.sampled_from(FIELDS) | st.text(max_size=5),
    Json | st.lists(st.dictionaries(st.sampled_from(FIELDS), Json, max_size=4), max_size=2),
    max_size=8,
)


# What was typed


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (UUID, ""),
        (f"  {UUID}  ", ""),
        (f"{UUID} wrong price", "wrong price"),
        (f"{UUID}   wrong   price  ", "wrong price"),
        (f"{UUID} wrong\nprice\ttwice", "wrong price twice"),
        (f"{UUID}\nwrong price", "wrong price"),
        (UUID.upper(), ""),
        (f"`{UUID}`", ""),
        (f"```{UUID}```", ""),
        (f"‘{UUID}’", ""),  # noqa: RUF001 - what a phone makes of quotes
        (f"“{UUID}” typo", "typo"),
        (f'"{UUID}"', ""),
        (f"*{UUID}*", ""),
        (f"<{UUID}>", ""),
        (f"{UUID} <!channel> look", "<!channel> look"),
        (f"{UUID} `{UUID[:8]}` is wrong", f"`{UUID[:8]}` is wrong"),
        (f"{UUID} instead of that one: {OTHER_UUID}", f"instead of that one: {OTHER_UUID}"),
        (f"{UUID} 가격이 틀렸다", "가격이 틀렸다"),
        (f"{UUID} a\x00b", "a b"),
        (f"{UUID} a\ud800b", "a\ufffdb"),
        (f"{UUID} {'x' * 4000}", "x" * 4000),
    ],
)
def test_an_order_is_understood_however_it_was_pasted(text: str, reason: str) -> None:
    """People paste from chats, phones and spreadsheets; the reason is theirs and stays as it is."""
    order_uuid, found, fault = parse_text(clean(text))

    assert (order_uuid, fault) == (UUID, None)
    assert found.split() == reason.split()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", Reason.USAGE),
        ("   ", Reason.USAGE),
        ("\x00", Reason.USAGE),
        ("\n\n", Reason.USAGE),
        ("help", Reason.USAGE),
        ("HELP", Reason.USAGE),
        (f"{UUID} {OTHER_UUID}", Reason.USAGE),
        (f"{UUID} `{UUID.upper()}`", Reason.USAGE),
        ("all", Reason.NOT_A_UUID),
        ("help me", Reason.NOT_A_UUID),
        ("<!channel>", Reason.NOT_A_UUID),
        ("`", Reason.NOT_A_UUID),
        ("“”", Reason.NOT_A_UUID),
        (UUID[:-1], Reason.NOT_A_UUID),
        (f"{UUID}0", Reason.NOT_A_UUID),
        (UUID.replace("-", ""), Reason.NOT_A_UUID),
        (f"{UUID},{OTHER_UUID}", Reason.NOT_A_UUID),
        (f"{UUID}&identifier=x", Reason.NOT_A_UUID),
        (f"{UUID}?", Reason.NOT_A_UUID),
        (f"please {UUID}", Reason.NOT_A_UUID),
        (UUID.replace("2", "２"), Reason.NOT_A_UUID),  # noqa: RUF001 - a digit, and not ours
        (f"{UUID[:-1]}\ud800", Reason.NOT_A_UUID),
        ("x" * 4000, Reason.NOT_A_UUID),
    ],
)
def test_what_is_no_single_order_is_not_guessed_at(text: str, fault: Reason) -> None:
    """A guess would cancel something that nobody asked for."""
    assert parse_text(clean(text))[::2] == (None, fault)


@given(st.text())
def test_any_text_is_an_order_or_a_fault(text: str) -> None:
    """Slack: the text can contain absolutely anything."""
    order_uuid, reason, fault = parse_text(clean(text))

    assert (order_uuid is None) != (fault is None)
    reason.encode()
    assert "\x00" not in reason


@given(Payload)
def test_any_payload_of_a_command_is_read(body: dict[str, Any]) -> None:
    """A listener that raises is an error in Slack's window, without the reason."""
    command = parse_command(body)

    assert command.fault is not None


@pytest.mark.parametrize(
    ("channel_id", "channel_name", "is_told"),
    [
        ("C0DESK", "desk", False),
        ("C0VAULT", "privategroup", True),
        ("G0VAULT", "privategroup", True),
        ("G0VAULT", "vault", True),
        ("D0DM", "directmessage", True),
        ("D0DM", "ben", True),
        ("C0MANY", "mpdm-dana--ben--cara-1", True),
        ("C0DESK", "", True),
    ],
)
def test_a_place_is_private_unless_slack_tells_its_name(channel_id: str, channel_name: str, *, is_told: bool) -> None:
    """What is typed in a private channel must not be told to the whole workspace later."""
    read = parse_command({"channel_id": channel_id, "channel_name": channel_name})

    assert read.in_private is is_told


# Which request a button means


@pytest.mark.parametrize(("value", "request_id"), [("1", 1), ("42", 42), ("9" * 15, 10**15 - 1)])
def test_a_button_carries_its_request(value: str, request_id: int) -> None:
    """The only way from a card to a row."""
    assert parse_request_id(value) == request_id


@pytest.mark.parametrize(
    "value",
    [
        "",
        "0",
        "007",
        "-1",
        "+1",
        "1.0",
        "1e3",
        " 1",
        "1 ",
        "1_000",
        "0x10",
        "9" * 16,
        "9" * 5000,
        "٣",
        "２",  # noqa: RUF001 - a digit, and not ours
        "²",
        "42;",
        "None",
    ],
)
def test_a_forged_value_is_no_request(value: str) -> None:
    """Whatever `int()` would be kind enough to take; digits of other scripts and numbers beyond the column among it."""
    assert parse_request_id(value) is None


def click_payload(**changed: Any) -> dict[str, Any]:
    return {
        "type": "block_actions",
        "team": {"id": "T0PLAY"},
        "user": {"id": "U0BEN", "username": "ben", "team_id": "T0PLAY"},
        "trigger_id": "trigger-7",
        "container": {"type": "message", "message_ts": "1.000002", "channel_id": "C0DESK"},
        "channel": {"id": "C0OTHER"},
        "actions": [{"action_id": "approve", "block_id": "b", "type": "button", "value": "42"}],
        "response_url": "http://127.0.0.1:9/response",
        **changed,
    }


def test_a_click_is_read_from_the_button_and_the_person_alone() -> None:
    """Nothing is read back from the message, which anybody with the token could have written."""
    click = parse_click(click_payload(message={"metadata": {"event_payload": {"request_id": 7}}, "text": "#7"}))

    assert (click.kind, click.request_id) == (DecisionKind.APPROVE, 42)
    assert (click.actor.id, click.actor.name, click.actor.team_id) == ("U0BEN", "ben", "T0PLAY")
    assert (click.channel_id, click.message_ts, click.trigger_id) == ("C0DESK", "1.000002", "trigger-7")


def test_a_guest_is_told_apart_by_their_own_workspace() -> None:
    """In a shared channel the payload's team is ours, whoever clicks."""
    guest = click_payload(user={"id": "U0BEN", "username": "ben", "team_id": "T0ELSEWHERE"})

    assert parse_click(guest).actor.team_id == "T0ELSEWHERE"


def test_a_person_without_a_workspace_is_of_no_workspace() -> None:
    """Falling back to the payload's team would let a guest in."""
    assert parse_click(click_payload(user={"id": "U0BEN"})).actor.team_id == ""


@pytest.mark.parametrize(
    ("changed", "read"),
    [
        ({"actions": None}, (None, None)),
        ({"actions": []}, (None, None)),
        ({"actions": {"action_id": "approve", "value": "42"}}, (None, None)),
        ({"actions": ["approve"]}, (None, None)),
        ({"actions": [None, {"action_id": "approve", "value": "42"}]}, (None, None)),
        ({"actions": [{"action_id": "approve"}]}, (DecisionKind.APPROVE, None)),
        ({"actions": [{"action_id": "approve", "value": 42}]}, (DecisionKind.APPROVE, None)),
        ({"actions": [{"action_id": "Approve", "value": "42"}]}, (None, 42)),
        ({"actions": [{"action_id": "withdraw", "value": "42"}]}, (DecisionKind.WITHDRAW, 42)),
        ({"actions": [{"action_id": "deny", "value": "42"}]}, (DecisionKind.DENY, 42)),
        (
            {"actions": [{"action_id": "deny", "value": "42"}, {"action_id": "approve", "value": "42"}]},
            (DecisionKind.DENY, 42),
        ),
    ],
)
def test_a_broken_button_decides_nothing(changed: dict[str, Any], read: tuple[DecisionKind | None, int | None]) -> None:
    """A button of another version, or a payload that somebody bent, must not become an approval."""
    click = parse_click(click_payload(**changed))

    assert (click.kind, click.request_id) == read


@given(Payload)
def test_any_payload_of_a_click_is_read(body: dict[str, Any]) -> None:
    """Slack adds fields and shapes; whatever comes, the person gets an answer."""
    click = parse_click(body)

    click.actor.name.encode()
    assert click.request_id is None or click.request_id > 0


# What was filled into a form


def submission_payload(callback_id: str, values: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """A submitted form, with the text of each input by its block."""
    state = {block_id: {block_id: {"type": "plain_text_input", "value": value}} for block_id, value in values.items()}
    view = {
        "id": "V1",
        "type": "modal",
        "callback_id": callback_id,
        "private_metadata": "42",
        "state": {"values": state},
    }
    return {
        "type": "view_submission",
        "team": {"id": "T0PLAY"},
        "user": {"id": "U0BEN", "username": "ben", "team_id": "T0PLAY"},
        "trigger_id": "trigger-8",
        "view": {**view, **changed},
    }


def submitted(app: App, callback_id: str, values: dict[str, Any], **changed: Any) -> dict[str, Any]:
    """What the form is answered; empty where it closes."""
    payload = submission_payload(callback_id, values, **changed)
    answer = deliver(app, {"payload": json.dumps(payload)})
    assert answer.status == 200
    return dict(json.loads(answer.body or "{}"))


def test_a_form_is_read_from_what_was_filled_in_and_the_person_alone() -> None:
    """What it is about comes back as we gave it; names and ids come from Slack, never from the form."""
    submission = parse_submission(submission_payload("a_form", {"reason": " a\x00b ", "other": None}))

    assert (submission.callback_id, submission.private_metadata) == ("a_form", "42")
    assert submission.values == {"reason": "a b"}
    assert (submission.actor.id, submission.actor.name, submission.actor.team_id) == ("U0BEN", "ben", "T0PLAY")
    assert (submission.team_id, submission.trigger_id) == ("T0PLAY", "trigger-8")


def test_a_chosen_option_is_read_by_its_value() -> None:
    """A select gives an option where a text field gives a text."""
    chosen = {"order": {"choose": {"type": "static_select", "selected_option": {"value": UUID}}}}

    assert parse_submission(submission_payload("a_form", {}, state={"values": chosen})).values == {"order": UUID}


@given(st.dictionaries(st.sampled_from(["view", "user", "team", "state", "values"]), Json | Payload))
def test_any_payload_of_a_form_is_read(body: dict[str, Any]) -> None:
    """A listener that raises is an error in the person's form, without the reason."""
    submission = parse_submission(body)

    assert all(value.strip() for value in submission.values.values())


# What is answered when it cannot be written down


class Afterwards:
    def __init__(self) -> None:
        self.nudged: list[int | None] = []
        self.new: list[int | None] = []
        self.attention = Attention()
        self.attended: list[bool] = []
        self.told: list[tuple[str, str]] = []
        self.filling: list[int] = []

    def fill(self, number: int) -> None:
        self.filling.append(number)

    def nudge(self, request_id: int | None = None, *, is_new: bool = False) -> None:
        self.nudged.append(request_id)
        self.attended.append(bool(self.attention))
        if is_new:
            self.new.append(request_id)

    def tell_now(self, response_url: str, text: str) -> None:
        self.told.append((response_url, text))


class Forms:
    """The forms that were opened; or a Slack that opens none."""

    def __init__(self, failure: MessengerError | None = None) -> None:
        self.opened: list[tuple[str, views.View]] = []
        self._failure = failure

    def open_view(self, trigger_id: str, view: views.View) -> None:
        if self._failure is not None:
            raise self._failure
        self.opened.append((trigger_id, view))

    def fill_form(self, form: Form, choice: Choice) -> None:
        raise NotImplementedError


class Exports:
    """What was asked for, and what is answered."""

    def __init__(self, answer: Reason | StoreError | None = None) -> None:
        self.asked: list[ExportCommand] = []
        self._answer = answer

    def ask(self, command: ExportCommand, *, home_team: str) -> Reason | None:
        assert home_team == IDENTITY.team_id
        self.asked.append(command)
        if isinstance(self._answer, StoreError):
            raise self._answer
        return self._answer


class Openings:
    """Who has opened their Home; or a database that cannot take it."""

    def __init__(self, failure: StoreError | None = None) -> None:
        self.people: list[tuple[str, str]] = []
        self._failure = failure

    def opened(self, *, person_id: str, team_id: str) -> None:
        if self._failure is not None:
            raise self._failure
        self.people.append((person_id, team_id))


Answer = TypeVar("Answer")


class BrokenStore:
    """A Store whose transactions fail; what reading again brings, or raises, is the test's."""

    def __init__(self, failure: StoreError, read_again: Callable[[], int | None]) -> None:
        self._failure = failure
        self._read_again = read_again

    def transaction(
        self, request_id: int | None = None, *, lease: Lease | None = None
    ) -> AbstractContextManager[Transaction]:
        raise self._failure

    def together(self, work: Callable[[Transaction], Answer]) -> Answer:
        raise self._failure

    def read(self, request_id: int) -> CancelRequest | None:
        self._read_again()
        return None

    def request_of_trigger(self, trigger_id: str) -> int | None:
        return self._read_again()

    def list_requests(self, wanted: Wanted, *, limit: int) -> Sequence[CancelRequest]:
        raise self._failure

    def requester_called(self, name: str) -> str | None:
        raise self._failure

    def lease(self, request_id: int, lane: Lane, *, kept: Lease | None = None) -> AbstractContextManager[Taken | None]:
        raise NotImplementedError

    def release(self, lease: Lease, *, due_in_s: float | None, seen_revision: int) -> float | None:
        raise NotImplementedError

    def take_refresh(self, *, limit: int, again_in_s: float) -> tuple[Watched, ...]:
        raise NotImplementedError

    def refresh_again(self, request_ids: Sequence[int]) -> None:
        raise NotImplementedError

    def saw_unchanged(self, request_ids: Sequence[int]) -> None:
        raise NotImplementedError

    def wake(self, request_id: int) -> None:
        raise NotImplementedError

    def lease_notice(self, notice_id: int) -> Notice | None:
        raise NotImplementedError

    def finish_notice(self, notice: Notice, *, given_up: bool) -> None:
        raise NotImplementedError

    def finish_before(self, notice: Notice) -> bool:
        raise NotImplementedError

    def postpone_notice(self, notice: Notice, *, due_in_s: float) -> None:
        raise NotImplementedError


class Nobody:
    """An exchange and a messenger that a listener must never ask."""

    def get_order(self, uuid: str) -> LookAnswer:
        raise NotImplementedError

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        raise NotImplementedError

    def hold_s(self, _method: Literal["GET", "DELETE"]) -> float:
        raise NotImplementedError

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        raise NotImplementedError

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        raise NotImplementedError

    def post_card(self, request: CancelRequest) -> Posted:
        raise NotImplementedError

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        raise NotImplementedError

    def post_verdict(self, request: CancelRequest) -> Posted:
        raise NotImplementedError

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        raise NotImplementedError

    def tell(self, notice: Notice) -> None:
        raise NotImplementedError


def finds(request_id: int | None) -> Callable[[], int | None]:
    return lambda: request_id


def fails() -> int | None:
    raise NothingDone("the database is still away")


IDENTITY = Identity(team_id="T0PLAY", team_url="https://playground.slack.com/", bot_user_id="U0BOT")


def bolt_app(
    failure: StoreError,
    read_again: Callable[[], int | None],
    *,
    afterwards: Afterwards | None = None,
    identity: Identity | None = IDENTITY,
) -> App:
    return app_on(BrokenStore(failure, read_again), afterwards=afterwards, identity=identity)


def app_on(
    store: SqlStore | BrokenStore,
    *,
    afterwards: Afterwards | None = None,
    forms: Forms | None = None,
    choosing: Choosing | None = None,
    policy: ApprovalPolicy | None = None,
    monotonic: Callable[[], float] = lambda: 0.0,
    homes: Openings | None = None,
    exports: Exports | None = None,
    identity: Identity | None = IDENTITY,
) -> App:
    policy = policy or ApprovalPolicy(approvers=frozenset({"U0BEN"}))
    afterwards = afterwards or Afterwards()
    listeners = Listeners(
        inquiry=Inquiry(records=store, policy=policy),
        workflow=CancelWorkflow(
            store=store,
            exchange=Nobody(),
            quotations=FixedPrices(),
            messenger=Nobody(),
            policy=policy,
            approval_ttl=timedelta(minutes=30),
            send_within=timedelta(minutes=5),
            new_nonce=lambda: "nonce",
        ),
        choosing=choosing or Choosing(exchange=OpenExchange(), forms=Forms()),
        afterwards=afterwards,
        attention=afterwards.attention.paid,
        forms=forms or Forms(),
        homes=homes or Openings(),
        exports=exports or Exports(),
        identity=lambda: identity,
        max_open_requests=20,
        monotonic=monotonic,
    )
    return listeners.bolt_app(bot_token="xoxb-playground", signing_secret=None)


def deliver(app: App, form: dict[str, str]) -> BoltResponse:
    headers: dict[str, str | Sequence[str]] = {"content-type": ["application/x-www-form-urlencoded"]}
    return app.dispatch(BoltRequest(body=urlencode(form), headers=headers))


def command_form(text: str, *, trigger_id: str = "trigger-1") -> dict[str, str]:
    return {
        "command": "/cancel",
        "text": text,
        "trigger_id": trigger_id,
        "user_id": "U0DANA",
        "user_name": "dana",
        "team_id": "T0PLAY",
        "channel_id": "C0DESK",
        "channel_name": "desk",
        "response_url": "http://127.0.0.1:9/response",
    }


def typed(app: App, text: str = UUID, *, trigger_id: str = "trigger-1") -> str:
    answer = deliver(app, command_form(text, trigger_id=trigger_id))
    assert answer.status == 200
    said = json.loads(answer.body)
    assert said["response_type"] == "ephemeral"
    text_said: str = said["text"]
    return text_said


def clicked(app: App, **changed: Any) -> int:
    """The status that Slack gets."""
    return deliver(app, {"payload": json.dumps(click_payload(**changed))}).status


def test_a_command_that_could_not_be_written_down_says_so() -> None:
    """Nothing is done that is not written down, and nobody is left believing otherwise."""
    afterwards = Afterwards()
    app = bolt_app(NothingDone("disk full"), fails, afterwards=afterwards)

    assert typed(app) == messages.nothing_was_done()
    assert afterwards.nudged == []


def test_a_command_whose_commit_is_in_doubt_is_read_again() -> None:
    """The connection broke after COMMIT: the request is there, and the person is told its number."""
    afterwards = Afterwards()
    app = bolt_app(CommitInDoubt("connection lost"), finds(7), afterwards=afterwards)

    assert typed(app) == messages.recorded(7)
    assert afterwards.nudged == [7]


def test_a_command_whose_commit_surely_failed_says_so() -> None:
    """Read again and not found: trying again is safe, and is what the person is told to do."""
    assert typed(bolt_app(CommitInDoubt("connection lost"), finds(None))) == messages.nothing_was_done()


def test_a_command_of_which_nothing_is_known_says_that() -> None:
    """Neither "done" nor "not done" would be true."""
    assert typed(bolt_app(CommitInDoubt("connection lost"), fails)) == messages.in_doubt()


def test_before_slack_has_told_who_we_are_nothing_is_done() -> None:
    """Without knowing our own workspace nobody can be told apart from a guest."""
    app = bolt_app(NothingDone("never asked"), fails, identity=None)

    assert typed(app) == messages.starting()


@pytest.mark.parametrize(
    ("failure", "read_again", "said"),
    [
        (NothingDone("disk full"), fails, messages.nothing_was_done()),
        (CommitInDoubt("connection lost"), finds(None), messages.nothing_was_done()),
        (CommitInDoubt("connection lost"), fails, messages.in_doubt()),
    ],
)
def test_a_click_that_could_not_be_written_down_says_so(
    failure: StoreError, read_again: Callable[[], int | None], said: str
) -> None:
    """The card does not change, so without a line the approver would believe the cancel is on its way."""
    afterwards = Afterwards()

    assert clicked(bolt_app(failure, read_again, afterwards=afterwards)) == 503

    assert afterwards.told == [("http://127.0.0.1:9/response", said)]
    assert afterwards.nudged == []


def test_a_click_that_could_not_be_written_down_is_not_acknowledged() -> None:
    """Slack shows a warning sign beside the button, also to somebody whom no line can reach."""
    afterwards = Afterwards()

    assert clicked(bolt_app(NothingDone("disk full"), fails, afterwards=afterwards), response_url=None) == 503
    assert afterwards.told == []


@pytest.mark.parametrize("action_id", ["retract", "", "deny_with_reason", "line\nbreak", "x" * 255])
def test_every_button_reaches_the_listener(action_id: str) -> None:
    """Bolt answers 404 to a button that nobody listens to, and logs its whole payload."""
    afterwards = Afterwards()
    app = bolt_app(NothingDone("disk full"), fails, afterwards=afterwards)

    clicked(app, actions=[{"action_id": action_id, "block_id": "b", "type": "button", "value": "42"}])

    assert len(afterwards.told) == 1


# What is answered when it can


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    opened = Database(f"sqlite:///{tmp_path / 'cancels.db'}")
    migrated(opened)
    yield SqlStore(opened)
    opened.close()


def test_a_command_is_recorded_acknowledged_and_begun(store: SqlStore) -> None:
    """Commit, acknowledge, nudge: in this order, or a crash loses what the person was promised."""
    afterwards = Afterwards()

    assert typed(app_on(store, afterwards=afterwards)) == messages.recorded(1)

    assert afterwards.nudged == [1]
    assert store.request_of_trigger("trigger-1") == 1


def test_who_waits_for_an_answer_has_the_attention_and_only_a_decision_goes_before(store: SqlStore) -> None:
    """What can wait lets them go first: a new request can, a click that may have decided cannot."""
    afterwards = Afterwards()
    app = app_on(store, afterwards=afterwards)

    typed(app)
    clicked(app)

    assert (len(afterwards.nudged), afterwards.new) == (2, [1])
    assert afterwards.attended == [True, True]


def test_a_command_that_comes_twice_gets_the_same_answer(store: SqlStore) -> None:
    """Slack delivers again what it believes was lost."""
    app = app_on(store)

    assert typed(app) == typed(app) == messages.recorded(1)


@pytest.mark.parametrize(("text", "said"), [("all", "is not the uuid"), ("my <!channel> order", "is not the uuid")])
def test_what_was_not_understood_is_explained_and_pings_nobody(store: SqlStore, text: str, said: str) -> None:
    """The answer quotes what was typed."""
    answer = typed(app_on(store), text)

    assert said in answer
    assert "<!" not in answer


def test_who_asks_for_an_order_that_is_asked_for_is_led_to_its_card(store: SqlStore) -> None:
    """The card is where that order is decided."""
    app = app_on(store)
    typed(app)
    before = typed(app, trigger_id="trigger-2")
    with store.transaction(1) as tx:
        tx.change(card_channel_id="C0DESK", card_ts="1.000002")
    after = typed(app, trigger_id="trigger-3")

    assert "request #1 is still open" in before
    assert "<https://playground.slack.com/archives/C0DESK/p1000002|request #1> is still open" in after


@pytest.mark.parametrize(
    ("action_id", "request_id", "nudged"), [("approve", 1, 1), ("deny", 1, None), ("approve", 2, None)]
)
def test_what_a_click_approved_is_nudged_to_the_exchange(
    store: SqlStore, action_id: str, request_id: int, nudged: int | None
) -> None:
    """So that the cancel leaves now. What any other click makes due, the loop finds."""
    pending(store)
    afterwards = Afterwards()
    button = {"action_id": action_id, "block_id": "b", "type": "button", "value": str(request_id)}

    clicked(app_on(store, afterwards=afterwards), actions=[button])

    assert afterwards.nudged == [nudged]
    assert afterwards.told == []


@pytest.mark.parametrize("callback_id", ["of_another_version", "", "line\nbreak", "x" * 255])
def test_a_form_that_is_not_ours_any_more_is_answered(store: SqlStore, callback_id: str) -> None:
    """Somebody may have it open while the bot is replaced; unanswered, Slack shows an error without a reason."""
    answer = submitted(app_on(store), callback_id, {"reason": "typo"})

    assert answer["response_action"] == "update"
    assert answer["view"]["blocks"][0]["text"]["text"] == messages.unknown_form()
    assert view_faults(answer["view"]) == []


# Deny with a reason


WAY_OUT = {"action_id": "deny_with_reason", "block_id": "b", "type": "button", "value": "1"}


def pending(store: SqlStore) -> None:
    """Request 1, which U0BEN may approve."""
    shown = order(uuid=UUID)
    with store.transaction() as tx:
        made = tx.create(command(order_uuid=UUID, team_id="T0PLAY"))
    with store.transaction(made.id) as tx:
        tx.move(
            Action.REQUEST_OPENED,
            order=shown,
            order_now=shown,
            approvers=("U0BEN",),
            opened_at=tx.now,
            expires_at=tx.now + timedelta(minutes=30),
        )


def state(store: SqlStore) -> State:
    return present(store.read(1)).state


def kinds_told(store: SqlStore) -> list[NoticeKind]:
    """The private lines that are owed."""
    owed = [store.lease_notice(notice_id) for notice_id in store.due(limit=10).notices]
    return [notice.kind for notice in owed if notice is not None]


def test_deny_with_reason_opens_a_form_and_denies_nothing_yet(store: SqlStore) -> None:
    """The form carries the request's id, and belongs to the trigger of this click."""
    pending(store)
    forms = Forms()

    assert clicked(app_on(store, forms=forms), actions=[WAY_OUT]) == 200

    ((trigger_id, form),) = forms.opened
    assert trigger_id == "trigger-7"
    assert (form["callback_id"], form["private_metadata"]) == ("deny_reason", "1")
    assert form["blocks"][1]["element"]["max_length"] == 1000
    assert state(store) is State.PENDING
    assert kinds_told(store) == []


@pytest.mark.parametrize("user", [{"id": "U0CARA", "team_id": "T0PLAY"}, {"id": "U0BEN", "team_id": "T0OTHER"}])
def test_who_may_not_deny_gets_a_line_and_no_form(store: SqlStore, user: dict[str, str]) -> None:
    """The policy is the same as for the click; nobody fills in a form for nothing."""
    pending(store)
    forms = Forms()

    assert clicked(app_on(store, forms=forms), actions=[WAY_OUT], user=user) == 200

    assert forms.opened == []
    assert kinds_told(store) == [NoticeKind.CLICK_REFUSED]


@pytest.mark.parametrize("value", ["99", "", "x"])
def test_a_forged_request_gets_no_form(store: SqlStore, value: str) -> None:
    """There is nothing to be denied, and the person is told so."""
    pending(store)
    forms = Forms()

    assert clicked(app_on(store, forms=forms), actions=[{**WAY_OUT, "value": value}]) == 200

    assert forms.opened == []
    assert kinds_told(store) == [NoticeKind.CLICK_REFUSED]


@pytest.mark.parametrize("failure", [TryLater("timeout"), CannotPost("invalid_arguments")])
def test_a_form_that_slack_does_not_open_is_told_with_the_way_out(store: SqlStore, failure: MessengerError) -> None:
    """Slack is slow or refuses: nothing happened, and Deny works without it."""
    pending(store)

    assert clicked(app_on(store, forms=Forms(failure)), actions=[WAY_OUT]) == 200

    assert state(store) is State.PENDING
    assert kinds_told(store) == [NoticeKind.FORM_NOT_OPENED]


def test_without_a_database_there_is_no_form() -> None:
    """What could not be written down when it is submitted is not asked for."""
    afterwards, forms = Afterwards(), Forms()
    app = app_on(BrokenStore(NothingDone("away"), fails), afterwards=afterwards, forms=forms)

    assert clicked(app, actions=[WAY_OUT]) == 503
    assert forms.opened == []
    assert afterwards.told == [("http://127.0.0.1:9/response", messages.nothing_was_done())]


def test_a_submitted_form_denies_and_closes(store: SqlStore) -> None:
    """The same answer when Slack delivers it again."""
    pending(store)
    afterwards = Afterwards()
    app = app_on(store, afterwards=afterwards)

    for _ in range(2):
        assert submitted(app, "deny_reason", {"reason": "typo"}, private_metadata="1") == {}

    request = present(store.read(1))
    assert (request.state, request.decisions[0].reason) == (State.DENIED, "typo")
    assert afterwards.nudged == [None, None]


def test_a_form_that_comes_too_late_is_told_who_was_first(store: SqlStore) -> None:
    """In the form's place, where the person looks."""
    pending(store)
    app = app_on(store)
    clicked(app, actions=[{**WAY_OUT, "action_id": "deny"}])

    answer = submitted(app, "deny_reason", {"reason": "typo"}, private_metadata="1")

    assert answer["response_action"] == "update"
    assert "already denied by <@U0BEN>" in answer["view"]["blocks"][0]["text"]["text"]
    assert view_faults(answer["view"]) == []
    assert kinds_told(store) == []


@pytest.mark.parametrize("reason", [None, " \n ", "x" * 1001, "<!here>\u202e" * 400])
def test_a_reason_that_will_not_do_is_told_under_the_input(store: SqlStore, reason: str | None) -> None:
    """What was written stays in the form, to be mended."""
    pending(store)
    answer = submitted(app_on(store), "deny_reason", {"reason": reason}, private_metadata="1")

    said = messages.reason_too_long() if reason and reason.strip() else messages.no_reason()
    assert answer == {"response_action": "errors", "errors": {"reason": said}}
    assert state(store) is State.PENDING


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (NothingDone("disk full"), messages.nothing_was_done()),
        (CommitInDoubt("connection lost"), messages.in_doubt()),
    ],
)
def test_a_form_that_could_not_be_written_down_stays_and_says_so(failure: StoreError, said: str) -> None:
    """Closing it would say that it was done; and what was written need not be written again."""
    app = bolt_app(failure, fails)

    assert submitted(app, "deny_reason", {"reason": "typo"}) == {
        "response_action": "errors",
        "errors": {"reason": said},
    }
    unknown = submitted(app, "of_another_version", {"reason": "typo"})
    assert unknown["view"]["blocks"][0]["text"]["text"] == said


# What questions are answered


def test_questions_are_answered_privately_and_change_nothing(store: SqlStore) -> None:
    """Who reads leaves no trace in the audit: nothing has happened."""
    afterwards = Afterwards()
    app = app_on(store, afterwards=afterwards)
    typed(app)
    with store.transaction(1) as tx:
        tx.change(card_channel_id="C0DESK", card_ts="1.000002")

    link = "<https://playground.slack.com/archives/C0DESK/p1000002|"
    assert f"{link}open it>" in typed(app, "status #1", trigger_id="trigger-2")
    assert typed(app, f"status `{UUID.upper()}`", trigger_id="trigger-3").startswith("*Request #1:* reading the order")
    for question in ("open", "history", "history @dana", f"history {UUID} me"):
        assert f"{link}#1>" in typed(app, question, trigger_id=question)
    assert typed(app, "help", trigger_id="trigger-4") == messages.help_text()
    assert "no such request" in typed(app, "status #2", trigger_id="trigger-5")
    assert afterwards.nudged == [1]
    assert [action for action, _ in audited(store)] == ["request.created"]


def audited(store: SqlStore) -> list[tuple[str, str | None]]:
    """Every event, the oldest first, with its reason."""
    with store._database.read() as connection:
        rows = connection.execute(select(audit_events).order_by(audit_events.c.seq)).mappings()
        return [(row["action"], json.loads(row["details"]).get("reason")) for row in rows]


def test_a_question_that_is_not_understood_is_refused_with_the_ways_to_ask(store: SqlStore) -> None:
    """And audited like any refused command."""
    said = typed(app_on(store), "history <!channel> yesterday")

    assert "was not understood, and nothing was done" in said
    assert "<!" not in said
    assert audited(store) == [("command.refused", "not_a_question")]


def test_people_of_another_workspace_are_answered_no_question(store: SqlStore) -> None:
    """They are refused as for a command, and that is written down."""
    elsewhere = Identity(team_id="T0OURS", team_url="https://ours.slack.com/", bot_user_id="U0BOT")
    app = app_on(store, identity=elsewhere)

    for question in ("help", "open", "status #1", "history of everything"):
        assert typed(app, question, trigger_id=question) == messages.command_refused(Reason.OTHER_WORKSPACE)
    assert audited(store) == [("command.refused", "other_workspace")] * 4


def test_a_question_that_cannot_be_read_is_not_answered_with_nothing() -> None:
    """An empty list would be taken for the truth."""
    app = bolt_app(NothingDone("the database is away"), fails)

    for question in ("open", "history @ben", f"status {UUID}", "status #1"):
        assert typed(app, question) == messages.could_not_be_read()


# The form to choose an order in


def open_choice(store: SqlStore, **parts: Any) -> tuple[str, Afterwards, Forms]:
    """Type `/cancel` alone: what is said, and what happened."""
    afterwards, forms = parts.pop("afterwards", Afterwards()), parts.pop("forms", Forms())
    app = app_on(store, afterwards=afterwards, forms=forms, **parts)
    answer = deliver(app, command_form(""))
    assert answer.status == 200
    return json.loads(answer.body)["text"] if answer.body else "", afterwards, forms


def choose(app: App, values: dict[str, Any], **form: Any) -> dict[str, Any]:
    opened = Form(id="f", trigger_id="trigger-1", channel_id="C0DESK", in_private=False)
    kept = views.loading(replace(opened, **form))["private_metadata"]
    return submitted(app, views.CHOOSE_ORDER, values, private_metadata=kept)


def told_in(answer: dict[str, Any]) -> str:
    """The sentence that took the form's place."""
    assert answer["response_action"] == "update"
    (block,) = answer["view"]["blocks"]
    text: str = block["text"]["text"]
    return text


def test_a_command_without_an_order_opens_a_form_and_has_it_filled(store: SqlStore) -> None:
    """At once, while the trigger lives; the orders come after the ack."""
    said, afterwards, forms = open_choice(store)

    assert said == ""
    ((trigger_id, view),) = forms.opened
    assert (trigger_id, view["callback_id"]) == ("trigger-1", views.CHOOSE_ORDER)
    assert "*loading…*" in json.dumps(view, ensure_ascii=False)
    assert afterwards.filling == [1]
    assert audited(store) == []


def test_who_may_not_ask_gets_no_form_but_the_reason(store: SqlStore) -> None:
    """To fill in a form and be refused then is a waste of a trader's minute."""
    policy = ApprovalPolicy(approvers=frozenset({"U0BEN"}), requesters=frozenset({"U0BEN"}))
    said, afterwards, forms = open_choice(store, policy=policy)

    assert said == messages.command_refused(Reason.NOT_A_REQUESTER)
    assert (forms.opened, afterwards.filling) == ([], [])
    assert audited(store) == [("command.refused", "not_a_requester")]


@pytest.mark.parametrize(
    "parts",
    [
        {"forms": Forms(TryLater("timeout"))},
        {"forms": Forms(CannotPost("expired_trigger_id"))},
        {"monotonic": itertools.count(0, 1.3).__next__},
    ],
    ids=["Slack is slow", "too late", "the database was slow"],
)
def test_where_no_form_opens_the_person_is_told_how_to_type_it(store: SqlStore, parts: dict[str, Any]) -> None:
    """And nothing is filled that nobody sees."""
    said, afterwards, _ = open_choice(store, **parts)

    assert said == messages.form_did_not_open()
    assert afterwards.filling == []


def test_where_too_many_forms_wait_no_other_is_opened(store: SqlStore) -> None:
    """It would stay at *loading…*."""
    forms = Forms()
    choosing = Choosing(exchange=OpenExchange(), forms=forms, monotonic=lambda: 0.0)
    for number in range(MAX_FORMS):
        choosing.begin(Form(id=str(number), trigger_id="t", channel_id="C0DESK", in_private=False))

    assert open_choice(store, forms=forms, choosing=choosing)[0] == messages.form_did_not_open()
    assert forms.opened == []


def test_a_form_that_cannot_be_permitted_is_not_opened() -> None:
    """Without the database nobody knows who may ask."""
    forms = Forms()
    app = app_on(BrokenStore(NothingDone("disk full"), fails), forms=forms)

    assert typed(app, "") == messages.nothing_was_done()
    assert forms.opened == []


@pytest.mark.parametrize("block", [views.ORDER_BLOCK, views.UUID_BLOCK])
def test_what_was_chosen_is_the_same_request_as_a_typed_one(store: SqlStore, block: str) -> None:
    """Same record, same audit; it belongs to the channel where `/cancel` was typed."""
    afterwards = Afterwards()
    answer = choose(app_on(store, afterwards=afterwards), {block: f"`{UUID.upper()}`", "reason": "wrong\nprice"})

    assert told_in(answer) == messages.recorded_from_form(1, "C0DESK")
    assert answer["view"]["title"]["text"] == "Recorded"
    assert afterwards.nudged == [1]
    made = store.read(1)
    assert made is not None
    assert (made.order_uuid, made.reason, made.channel_id) == (UUID, "wrong price", "C0DESK")
    assert (made.requester.id, made.in_private, made.response_url) == ("U0BEN", False, None)


def test_a_form_that_is_submitted_twice_is_one_request(store: SqlStore) -> None:
    """Slack may deliver it again, and people press twice; also where the second one names another order."""
    app = app_on(store)
    first = choose(app, {views.ORDER_BLOCK: UUID})

    assert choose(app, {views.ORDER_BLOCK: UUID}) == first
    assert choose(app, {views.ORDER_BLOCK: OTHER_UUID}) == first
    assert store.read(2) is None
    assert audited(store) == [("request.created", None)]


def test_a_refused_form_can_be_corrected(store: SqlStore) -> None:
    """Each try is judged anew; a typed command that comes again gets its first answer."""
    app = app_on(store)
    wrong = choose(app, {views.UUID_BLOCK: "my order"})
    assert wrong == views.keep_open(views.UUID_BLOCK, messages.not_a_uuid_in_form())

    assert told_in(choose(app, {views.UUID_BLOCK: UUID})) == messages.recorded_from_form(1, "C0DESK")
    assert audited(store) == [("command.refused", "not_a_uuid"), ("request.created", None)]


def test_the_form_is_judged_again_when_it_is_submitted(store: SqlStore) -> None:
    """Between opening and submitting somebody else asks for the order, or the person is taken off the list."""
    app = app_on(store)
    typed(app, UUID)
    taken = told_in(choose(app, {views.ORDER_BLOCK: UUID}, trigger_id="trigger-2"))
    assert "request #1 is still open" in taken

    strict = ApprovalPolicy(approvers=frozenset({"U0BEN"}), requesters=frozenset({"U0DANA"}))
    barred = choose(app_on(store, policy=strict), {views.ORDER_BLOCK: OTHER_UUID}, trigger_id="trigger-3")
    assert told_in(barred) == messages.command_refused(Reason.NOT_A_REQUESTER)
    elsewhere = app_on(store, identity=Identity(team_id="T0OURS", team_url="https://o.slack.com/", bot_user_id="U"))
    stranger = choose(elsewhere, {views.ORDER_BLOCK: OTHER_UUID}, trigger_id="trigger-4")
    assert told_in(stranger) == messages.command_refused(Reason.OTHER_WORKSPACE)
    assert [reason for _, reason in audited(store)[1:]] == [
        "order_has_open_request",
        "not_a_requester",
        "other_workspace",
    ]


def test_a_forged_choice_is_told_in_place_of_the_form(store: SqlStore) -> None:
    """There is no input that an error could stand under."""
    assert "is not the uuid of an order" in told_in(choose(app_on(store), {views.ORDER_BLOCK: "all"}))
    assert told_in(submitted(app_on(store), views.CHOOSE_ORDER, {"order": UUID})) == messages.unknown_form()


@pytest.mark.parametrize(
    ("failure", "read_again", "said", "title"),
    [
        (NothingDone("disk full"), fails, messages.nothing_was_done(), "Nothing was done"),
        (CommitInDoubt("connection lost"), finds(None), messages.nothing_was_done(), "Nothing was done"),
        (CommitInDoubt("connection lost"), fails, messages.in_doubt(), "Not confirmed"),
        (CommitInDoubt("connection lost"), finds(7), messages.recorded_from_form(7, "C0DESK"), "Recorded"),
    ],
)
def test_a_form_that_could_not_be_written_down_says_so(
    failure: StoreError, read_again: Callable[[], int | None], said: str, title: str
) -> None:
    """As for a typed command: neither "done" nor "not done" is said where it is not true."""
    answer = choose(bolt_app(failure, read_again), {views.ORDER_BLOCK: UUID})

    assert told_in(answer) == said
    assert answer["view"]["title"]["text"] == title


def test_before_slack_has_told_who_we_are_a_form_is_not_read() -> None:
    """As for a typed command."""
    app = bolt_app(NothingDone("never asked"), fails, identity=None)

    assert told_in(choose(app, {views.ORDER_BLOCK: UUID})) == messages.starting()


# Who opens the Home tab


def opens_home(app: App, *, team_id: str = "T0PLAY", **changed: Any) -> int:
    """The status that Slack gets."""
    event = {"type": "app_home_opened", "user": "U0DANA", "tab": "home", **changed}
    body = json.dumps({"type": "event_callback", "team_id": team_id, "event": event})
    return app.dispatch(BoltRequest(body=body, headers={"content-type": ["application/json"]})).status


def test_who_opens_their_home_is_written_down_before_it_is_acknowledged(store: SqlStore) -> None:
    """And the loop is nudged: the person is looking at it now."""
    homes, afterwards = Openings(), Afterwards()

    assert opens_home(app_on(store, homes=homes, afterwards=afterwards)) == 200
    assert homes.people == [("U0DANA", "T0PLAY")]
    assert afterwards.nudged == [None]


def test_an_opening_that_could_not_be_written_down_is_delivered_again(store: SqlStore) -> None:
    """Slack delivers again what is not acknowledged; an acknowledged one would leave the tab empty."""
    afterwards = Afterwards()

    assert opens_home(app_on(store, homes=Openings(NothingDone("away")), afterwards=afterwards)) == 503
    assert opens_home(app_on(store, identity=None)) == 503
    assert afterwards.nudged == []


@pytest.mark.parametrize(
    "changed", [{"tab": "messages"}, {"tab": ""}, {"team_id": "T0OTHER"}, {"user": ""}, {"user": ["U0DANA"]}]
)
def test_what_is_not_the_home_of_somebody_here_is_acknowledged_and_left(
    store: SqlStore, changed: dict[str, Any]
) -> None:
    """The Messages tab has nothing to draw, and people of other workspaces are shown nothing of this one."""
    homes = Openings()

    assert opens_home(app_on(store, homes=homes), **changed) == 200
    assert homes.people == []


@pytest.mark.parametrize(
    ("answer", "said", "nudges"),
    [
        (None, messages.export_recorded(), [None]),
        (Reason.NOT_AN_AUDITOR, messages.command_refused(Reason.NOT_AN_AUDITOR), []),
        (Reason.EXPORT_WAITING, messages.command_refused(Reason.EXPORT_WAITING), []),
        (Reason.NOT_A_QUESTION, messages.export_not_understood("export JSONL me"), []),
        (NothingDone("disk full"), messages.nothing_was_done(), []),
        (CommitInDoubt("connection lost"), messages.export_in_doubt(), []),
    ],
)
def test_an_export_is_acknowledged_once_it_is_written_down(
    answer: Reason | StoreError | None, said: str, nudges: list[None]
) -> None:
    """Each answer of the database has its sentence; and only what is recorded is begun."""
    exports, afterwards = Exports(answer), Afterwards()
    app = app_on(BrokenStore(NothingDone("never asked"), fails), afterwards=afterwards, exports=exports)

    assert typed(app, "export JSONL me") == said
    assert afterwards.nudged == nudges
    (asked,) = exports.asked
    assert asked.wanted == WantedExport(form="jsonl", selection=Filter(actor="U0DANA"))
    assert (asked.trigger_id, asked.person.id, asked.channel_id, asked.text) == (
        "trigger-1",
        "U0DANA",
        "C0DESK",
        "export JSONL me",
    )
