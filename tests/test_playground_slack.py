"""The playground's Slack against the real slack_sdk and Bolt: what it verifies, refuses, delivers and shows."""

import contextlib
import http.client
import json
import logging
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import pytest
from slack_bolt import App, BoltRequest
from slack_bolt.adapter.socket_mode import SocketModeHandler
from slack_bolt.adapter.wsgi import SlackRequestHandler
from slack_sdk import WebClient, WebhookClient
from slack_sdk.errors import SlackApiError
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from bot.playground import slack_blocks
from bot.playground.slack import CHANNELS, PEOPLE, SlackWorkspace
from bot.playground.slack_moods import MOODS
from bot.playground.slack_records import SLACK, Channel, Message, Person

DESK = "C0DESK"
DANA = "U0DANA"
BEN = "U0BEN"
GUEST = "U0GUEST"

Blocks = list[dict[str, Any]]


class Clock:
    """A time that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def slack(clock: Clock) -> Iterator[SlackWorkspace]:
    people = [*PEOPLE, Person(GUEST, "gast", team_id="T0OTHER"), Person("U0GONE", "gone", is_deactivated=True)]
    channels = [
        *CHANNELS,
        Channel("C0OPEN", "open", has_bot=False),
        Channel("C0OLD", "old", is_archived=True),
        Channel("C0NEWS", "news", is_read_only=True),
        Channel("C0PRIV", "vault", "private", frozenset({DANA}), has_bot=False),
        Channel("C0CREW", "crew", "private", frozenset({DANA, BEN})),
    ]
    with SlackWorkspace(
        people=people, channels=channels, user_groups={"S0DESK": {BEN, DANA}}, now=clock, choose=random.Random(1)
    ) as workspace:
        yield workspace


@pytest.fixture
def client(slack: SlackWorkspace) -> WebClient:
    return WebClient("xoxb-playground", base_url=slack.api_url, retry_handlers=[], timeout=5)


def error_of(call: Callable[[], object]) -> str:
    with pytest.raises(SlackApiError) as caught:
        call()
    return str(caught.value.response["error"])


def text(words: str = "x", kind: str = "plain_text") -> dict[str, Any]:
    return {"type": kind, "text": words}


def button(action_id: str = "approve", **more: Any) -> dict[str, Any]:
    return {"type": "button", "action_id": action_id, "text": text(action_id.title()), "value": "42", **more}


def actions(*elements: dict[str, Any]) -> dict[str, Any]:
    return {"type": "actions", "elements": list(elements)}


def section(words: str = "x") -> dict[str, Any]:
    return {"type": "section", "text": text(words, "mrkdwn")}


CARD: Blocks = [
    {"type": "header", "text": text("Cancel this order?")},
    {"type": "section", "fields": [text("*Market:*\nKRW-BTC", "mrkdwn"), text("*Side:*\nbid", "mrkdwn")]},
    {"type": "divider"},
    {"type": "context", "elements": [text(f"asked by <@{DANA}>", "mrkdwn")]},
    actions(button("approve", style="primary"), button("deny", style="danger")),
]


def post_card(client: WebClient, slack: SlackWorkspace, channel: str = DESK) -> Message:
    ts = client.chat_postMessage(channel=channel, text="Cancel?", blocks=CARD)["ts"]
    card = slack.message(channel, ts)
    assert card is not None
    return card


# the Web API


def test_the_bot_learns_who_it_is_and_only_with_its_token(slack: SlackWorkspace, client: WebClient) -> None:
    """The bot compares team ids with what auth.test says, so it must be the workspace's own."""
    me = client.auth_test()
    assert (me["team_id"], me["user_id"], me["url"]) == ("T0PLAY", "U0BOT", "https://playground.slack.com/")
    assert error_of(lambda: client.auth_test(token="xoxb-stolen")) == "invalid_auth"
    assert error_of(lambda: client.auth_test(token="xapp-playground")) == "not_allowed_token_type"
    assert error_of(lambda: WebClient(base_url=slack.api_url, retry_handlers=[]).auth_test()) == "not_authed"
    assert error_of(lambda: client.api_call("chat.shout")) == "unknown_method"


def test_a_message_shows_what_was_posted(slack: SlackWorkspace, client: WebClient) -> None:
    """Everything that a test wants to look at is kept as it was sent."""
    metadata = {"event_type": "cancel_request", "event_payload": {"request_id": 42}}
    answer = client.chat_postMessage(
        channel=DESK, text="Cancel?", blocks=CARD, metadata=metadata, client_msg_id="m1", unfurl_links=False
    )
    [card] = slack.messages(DESK)
    assert card.ts == answer["ts"]
    assert (card.metadata, card.client_msg_id, card.unfurl_links) == (metadata, "m1", False)
    assert [each.action_id for each in card.buttons] == ["approve", "deny"]
    assert all(block["block_id"] for block in card.blocks)
    client.chat_postMessage(channel=DESK, text="done", thread_ts=card.ts)
    assert [reply.text for reply in slack.thread(DESK, card.ts)] == ["done"]
    assert client.chat_getPermalink(channel=DESK, message_ts=card.ts)["permalink"].endswith(
        f"/archives/{DESK}/p{card.ts.replace('.', '')}"
    )


def test_a_form_is_read_like_json(slack: SlackWorkspace, client: WebClient) -> None:
    """Slack takes both; other clients than slack_sdk's send forms with JSON inside."""
    client.api_call("chat.postMessage", data={"channel": DESK, "text": "x", "blocks": json.dumps(CARD)})
    assert len(slack.messages(DESK)[0].blocks) == len(CARD)
    arguments = {"channel": DESK, "text": "x", "blocks": "[{"}
    assert error_of(lambda: client.api_call("chat.postMessage", data=arguments)) == "invalid_blocks_format"


@pytest.mark.parametrize(
    ("channel", "error"),
    [
        ("C0NONE", "channel_not_found"),
        ("C0PRIV", "channel_not_found"),
        ("C0OLD", "is_archived"),
        ("C0NEWS", "restricted_action"),
        ("U0GONE", "channel_not_found"),
    ],
)
def test_posting_is_refused_where_the_bot_cannot_write(client: WebClient, channel: str, error: str) -> None:
    """The bot must tell these apart to say the right next step."""
    assert error_of(lambda: client.chat_postMessage(channel=channel, text="x")) == error


def test_scopes_decide_where_and_what(slack: SlackWorkspace, client: WebClient) -> None:
    """`chat:write.public` is what lets a bot post where nobody invited it."""
    client.chat_postMessage(channel="C0OPEN", text="x")
    slack.set_scopes({"chat:write"})
    assert error_of(lambda: client.conversations_open(users=DANA)) == "missing_scope"
    assert error_of(lambda: client.files_getUploadURLExternal(filename="a.csv", length=1)) == "missing_scope"
    assert error_of(lambda: client.chat_postMessage(channel="C0OPEN", text="x")) == "not_in_channel"
    assert error_of(lambda: client.users_info(user=DANA)) == "missing_scope"


def test_a_user_id_as_channel_is_a_direct_message(slack: SlackWorkspace, client: WebClient) -> None:
    """The last way to reach someone privately."""
    first = client.chat_postMessage(channel=DANA, text="psst")
    assert client.conversations_open(users=DANA)["channel"]["id"] == first["channel"]
    assert [message.text for message in slack.dms(DANA)] == ["psst"]
    assert slack.dms(BEN) == []
    assert error_of(lambda: client.conversations_open(users="U0GONE")) == "user_disabled"
    slack.set_messages_tab(enabled=False)
    assert error_of(lambda: client.chat_postMessage(channel=DANA, text="psst")) == "messages_tab_disabled"


def test_a_file_arrives_in_three_steps(slack: SlackWorkspace, client: WebClient) -> None:
    """A ticket, the bytes, and where it goes; a slip in any of them is refused, and a ticket is good for one file."""
    channel = client.conversations_open(users=DANA)["channel"]["id"]
    client.files_upload_v2(channel=channel, filename="a.csv", title="A", content=b"a,b\r\n", initial_comment="here")
    (message,) = slack.dms(DANA)
    assert (message.text, [(file.name, file.title, file.content) for file in message.files]) == (
        "here",
        [("a.csv", "A", b"a,b\r\n")],
    )
    again: list[dict[str, str | None]] = [{"id": message.files[0].id, "title": "A"}]
    assert error_of(lambda: client.files_completeUploadExternal(files=again, channel_id=channel)) == "file_not_found"
    for length in (0, -1):
        refused = error_of(lambda length=length: client.files_getUploadURLExternal(filename="a", length=length))  # type: ignore[misc]
        assert refused == "invalid_arguments"
    ticket = client.files_getUploadURLExternal(filename="a.csv", length=3)
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(ticket["upload_url"], data=b"four")
    unsent: list[dict[str, str | None]] = [{"id": ticket["file_id"]}]
    assert error_of(lambda: client.files_completeUploadExternal(files=unsent, channel_id=channel)) == "file_not_found"
    urllib.request.urlopen(ticket["upload_url"], data=b"abc").close()
    for elsewhere in ("C0PRIV", DANA):
        refused = error_of(lambda where=elsewhere: client.files_completeUploadExternal(files=unsent, channel_id=where))  # type: ignore[misc]
        assert refused == "channel_not_found"


def test_content_is_refused_like_slack_does(client: WebClient) -> None:
    """A card that Slack refuses is never seen; the fake has to refuse it as well."""
    assert error_of(lambda: client.api_call("chat.postMessage", json={"channel": DESK, "blocks": []})) == "no_text"
    assert error_of(lambda: client.chat_postMessage(channel=DESK, text="x" * 40_001)) == "msg_too_long"
    assert error_of(lambda: client.chat_postMessage(channel=DESK, text="x", thread_ts="1.1")) == "thread_not_found"
    metadata = {"event_type": "cancel_request"}
    assert (
        error_of(lambda: client.chat_postMessage(channel=DESK, text="x", metadata=metadata))
        == "invalid_metadata_format"
    )
    with pytest.raises(SlackApiError) as caught:
        client.chat_postMessage(channel=DESK, text="x", blocks=[{"type": "header", "text": text("h" * 151)}])
    assert caught.value.response["error"] == "invalid_blocks"
    assert "/blocks/0/text/text" in caught.value.response["response_metadata"]["messages"][0]


def test_an_edit_keeps_what_was_said_before(slack: SlackWorkspace, client: WebClient) -> None:
    """What is left out stays; an empty list takes the blocks away; the history remains for the test to see."""
    card = post_card(client, slack)
    client.chat_update(channel=DESK, ts=card.ts, text="Canceled")
    client.chat_update(channel=DESK, ts=card.ts, text="Canceled", blocks=[])
    edited = slack.messages(DESK)[0]
    assert edited.blocks == ()
    assert [version.text for version in edited.versions] == ["Cancel?", "Canceled"]
    assert len(edited.versions[1].blocks) == len(CARD)


def test_an_edit_is_refused_where_there_is_nothing_of_ours(slack: SlackWorkspace, client: WebClient) -> None:
    """A card can be gone for good; the bot must not try for ever."""
    said = slack.say(DANA, DESK, "hello")
    card = post_card(client, slack)
    assert error_of(lambda: client.chat_update(channel=DESK, ts="1.1", text="x")) == "message_not_found"
    assert error_of(lambda: client.chat_update(channel=DESK, ts=said.ts, text="x")) == "cant_update_message"
    assert error_of(lambda: client.chat_update(channel=DESK, ts=card.ts, text="€" * 1334)) == "msg_too_long"
    slack.change_channel(DESK, is_archived=True)
    assert error_of(lambda: client.chat_update(channel=DESK, ts=card.ts, text="x")) == "is_inactive"


def test_an_ephemeral_is_seen_by_one_person_of_the_channel(slack: SlackWorkspace, client: WebClient) -> None:
    """A refusal is private: nobody else may read it, and it cannot be edited."""
    ts = client.chat_postEphemeral(channel="C0CREW", user=DANA, text="only you")["message_ts"]
    assert [message.text for message in slack.ephemerals(DANA)] == ["only you"]
    assert slack.messages("C0CREW") == []
    assert error_of(lambda: client.chat_update(channel="C0CREW", ts=ts, text="x")) == "message_not_found"
    assert (
        error_of(lambda: client.chat_postEphemeral(channel="C0CREW", user="U0CARA", text="x")) == "user_not_in_channel"
    )
    assert error_of(lambda: client.chat_postEphemeral(channel=DESK, user="U0NONE", text="x")) == "user_not_found"


def test_people_and_groups_are_looked_up(slack: SlackWorkspace, client: WebClient) -> None:
    """Approvers may be a user group, guests belong to another team, leavers are deactivated."""
    assert client.users_info(user=GUEST)["user"]["team_id"] == "T0OTHER"
    assert client.users_info(user="U0GONE")["user"]["deleted"] is True
    assert error_of(lambda: client.users_info(user="U0NONE")) == "user_not_found"
    assert client.usergroups_users_list(usergroup="S0DESK")["users"] == [BEN, DANA]
    assert error_of(lambda: client.usergroups_users_list(usergroup="S0NONE")) == "no_such_subteam"
    slack.set_user_group("S0DESK", {BEN})
    assert client.usergroups_users_list(usergroup="S0DESK")["users"] == [BEN]


def test_a_workspace_without_groups_says_that_its_plan_has_none() -> None:
    """On the free plan an approver group can never be resolved."""
    with SlackWorkspace() as slack:
        client = WebClient("xoxb-playground", base_url=slack.api_url, retry_handlers=[])
        assert error_of(lambda: client.usergroups_users_list(usergroup="S0DESK")) == "plan_upgrade_required"


# limits

TOO_MUCH: dict[str, Blocks] = {
    "blocks": [section() for _ in range(51)],
    "section text": [section("x" * 3001)],
    "section empty": [{"type": "section"}],
    "fields": [{"type": "section", "fields": [text()] * 11}],
    "field text": [{"type": "section", "fields": [text("x" * 2001)]}],
    "context": [{"type": "context", "elements": [text()] * 11}],
    "actions": [actions(*[button(f"b{n}") for n in range(26)])],
    "no elements": [actions()],
    "button text": [actions(button(text=text("x" * 76)))],
    "button mrkdwn": [actions(button(text=text("x", "mrkdwn")))],
    "value": [actions(button(value="x" * 2001))],
    "style": [actions(button(style="green"))],
    "action_id": [actions(button("x" * 256, text=text()))],
    "action_id twice": [actions(button("a"), button("a"))],
    "block_id twice": [section() | {"block_id": "b"}, section() | {"block_id": "b"}],
    "header mrkdwn": [{"type": "header", "text": text("x", "mrkdwn")}],
    "unknown block": [{"type": "carousel"}],
    "unknown field": [section() | {"txet": "x"}],
    "input in actions": [actions({"type": "plain_text_input"})],
    "option text": [
        actions({"type": "static_select", "placeholder": text(), "options": [{"text": text("x" * 76), "value": "v"}]})
    ],
    "option value": [
        actions({"type": "static_select", "placeholder": text(), "options": [{"text": text(), "value": "v" * 151}]})
    ],
    "confirm title": [
        actions(button(confirm={"title": text("x" * 101), "text": text(), "confirm": text(), "deny": text()}))
    ],
    "confirm label": [
        actions(button(confirm={"title": text(), "text": text(), "confirm": text("x" * 31), "deny": text()}))
    ],
    "confirm text": [
        actions(button(confirm={"title": text(), "text": text("x" * 301), "confirm": text(), "deny": text()}))
    ],
    "no alt text": [{"type": "image", "image_url": "https://example.org/x.png"}],
}


@pytest.mark.parametrize("what", TOO_MUCH)
def test_blocks_beyond_a_limit_are_named(what: str) -> None:
    """Slack refuses the whole message for one of these: each must be found, and found alone."""
    assert len(slack_blocks.faults(TOO_MUCH[what])) == 1


def test_blocks_at_the_limit_are_fine() -> None:
    """A fake that is stricter than Slack would forbid what is legal."""
    confirm = {"title": text("x" * 100), "text": text("x" * 300), "confirm": text("x" * 30), "deny": text("x" * 30)}
    most = button("x" * 255, text=text("x" * 75), value="x" * 2000, style="danger", confirm=confirm)
    full: Blocks = [
        {"type": "header", "text": text("x" * 150)},
        {"type": "section", "text": text("x" * 3000), "fields": [text("x" * 2000)] * 10, "accessory": most},
        {"type": "context", "elements": [text()] * 10},
        actions(*[button(f"b{n}") for n in range(25)]),
        actions(button("b0")),
        *[{"type": "divider"}] * 45,
    ]
    assert slack_blocks.faults(full) == []


@pytest.mark.parametrize(
    "broken", [None, "x", {}, [1], [None], [{"type": "section", "text": "x"}], [{"type": "actions"}]]
)
def test_anything_can_be_sent_as_blocks(broken: object) -> None:
    """Nonsense gets an answer, never a crash."""
    assert slack_blocks.faults(broken)


# pace and moods


def test_a_channel_takes_a_burst_and_then_a_message_a_second(
    slack: SlackWorkspace, client: WebClient, clock: Clock
) -> None:
    """The bot has to live with 429 and Retry-After, per channel."""
    for _ in range(10):
        client.chat_postMessage(channel=DESK, text="x")
    with pytest.raises(SlackApiError) as caught:
        client.chat_postMessage(channel=DESK, text="x")
    assert caught.value.response.status_code == 429
    assert caught.value.response.headers["Retry-After"] == "1"
    client.chat_postMessage(channel="C0CREW", text="another channel")
    clock.now += 1
    client.chat_postMessage(channel=DESK, text="x")
    assert error_of(lambda: client.chat_postMessage(channel=DESK, text="x")) == "ratelimited"
    assert [call.outcome for call in slack.calls("chat.postMessage")].count("ok") == 12


@pytest.mark.parametrize("mood", [*MOODS, "error:is_archived"])
def test_every_mood_passes_when_it_was_for_one_call(slack: SlackWorkspace, client: WebClient, mood: str) -> None:
    """Retries are tested by failing once and working the next time."""
    slack.set_mood(mood, method="chat.postMessage", times=1, delay_s=0.01)
    with contextlib.suppress(Exception):
        client.chat_postMessage(channel=DESK, text="first")
    client.chat_postMessage(channel=DESK, text="second")
    done = {"slow", "fatal_error_after_doing", "drop_answer_after_doing"}
    assert [message.text for message in slack.messages(DESK)] == (["first"] if mood in done else []) + ["second"]
    first, second = slack.calls("chat.postMessage")
    assert (first.outcome == "ok", second.outcome) == (mood == "slow", "ok")


def test_moods_look_like_the_real_failures(slack: SlackWorkspace, client: WebClient) -> None:
    """The bot tells a refusal, a wait and an unknown outcome apart by these."""
    slack.set_mood("error:is_archived")
    assert error_of(client.auth_test) == "is_archived"
    slack.set_mood("fatal_error_after_doing")
    assert error_of(client.auth_test) == "fatal_error"
    slack.set_mood("ratelimited", retry_after_s=30)
    with pytest.raises(SlackApiError) as caught:
        client.auth_test()
    assert (caught.value.response.status_code, caught.value.response.headers["Retry-After"]) == (429, "30")
    slack.set_mood("http_500")
    with pytest.raises(SlackApiError) as caught:
        client.auth_test()
    assert caught.value.response.status_code == 500
    for mood in ("away", "drop_answer_after_doing"):
        slack.set_mood(mood)
        with pytest.raises(http.client.RemoteDisconnected):
            client.auth_test()
    slack.clear_moods()
    client.auth_test()
    with pytest.raises(ValueError, match="no such mood"):
        slack.set_mood("grumpy")


def test_a_slow_answer_is_let_go_when_the_workspace_stops() -> None:
    """A test that ends must not wait for its slowest mood."""
    slack = SlackWorkspace()
    slack.start()
    mood = slack.set_mood("slow", delay_s=3600, times=1)
    outcome: list[object] = []

    def call() -> None:
        try:
            WebClient("xoxb-playground", base_url=slack.api_url, retry_handlers=[]).auth_test()
        except Exception as error:  # noqa: BLE001 (whichever way the connection ended)
            outcome.append(error)
        else:
            outcome.append("answered")

    waiting = threading.Thread(target=call)
    waiting.start()
    assert mood.met.wait(5)
    slack.stop()
    waiting.join(5)
    assert outcome


# views


def modal(**more: Any) -> dict[str, Any]:
    reason = {
        "type": "input",
        "block_id": "reason",
        "label": text("Reason"),
        "element": {"type": "plain_text_input", "action_id": "text", "max_length": 200},
    }
    return {"type": "modal", "callback_id": "deny_reason", "title": text("Deny"), "submit": text("Deny")} | {
        "blocks": [reason],
        **more,
    }


def test_a_modal_that_slack_would_refuse_is_refused(client: WebClient) -> None:
    """Checked before the trigger is used up, as a broken modal must not cost the person the click."""
    for broken in (
        modal(title=text("x" * 25)),
        modal(private_metadata="x" * 3001),
        modal(type="window"),
        {key: value for key, value in modal().items() if key != "submit"},
        modal(blocks=[section()] * 101),
    ):
        with pytest.raises(SlackApiError) as caught:
            client.views_open(trigger_id="1.2.x", view=broken)
        assert caught.value.response["error"] == "invalid_arguments"
        assert caught.value.response["response_metadata"]["messages"]
    assert error_of(lambda: client.views_open(trigger_id="1.2.x", view=modal())) == "invalid_trigger_id"


def test_a_home_tab_is_published_and_replaced(slack: SlackWorkspace, client: WebClient) -> None:
    """One Home tab per person; the hash guards against two writers."""
    view = client.views_publish(user_id=DANA, view={"type": "home", "blocks": [section("one")]})["view"]
    client.views_publish(user_id=DANA, view={"type": "home", "blocks": [section("two")]}, hash=view["hash"])
    home = slack.home(DANA)
    assert home is not None
    assert (home.id, slack.words(home)) == (view["id"], ["two"])
    assert slack.home(BEN) is None
    stale = view["hash"]
    again: dict[str, Any] = {"type": "home", "blocks": []}
    assert error_of(lambda: client.views_publish(user_id=DANA, view=again, hash=stale)) == "hash_conflict"


# a bot at the other end


def cancel(ack: Any, command: dict[str, Any], client: WebClient) -> None:
    match command["text"]:
        case "blocks":
            ack(text="b", blocks=[section("in *bold*")])
        case "broken":
            ack(text="b", blocks=[{"type": "carousel"}])
        case "fail":
            raise RuntimeError
        case "card":
            client.chat_postMessage(channel=command["channel_id"], text="Cancel?", blocks=CARD)
            ack("heard card")
        case other:
            ack(f"heard {other}")


def approve(ack: Any, body: dict[str, Any], client: WebClient, respond: Any) -> None:
    said = f"approved {body['actions'][0]['value']} by {body['user']['id']} of {body['user']['team_id']}"
    client.chat_update(channel=body["channel"]["id"], ts=body["message"]["ts"], text=said, blocks=[])
    respond("noted", response_type="ephemeral", replace_original=False)
    ack()


def deny(ack: Any, body: dict[str, Any], client: WebClient) -> None:
    client.views_open(trigger_id=body["trigger_id"], view=modal(private_metadata=body["message"]["ts"]))
    ack()


def deny_reason(ack: Any, view: dict[str, Any], client: WebClient) -> None:
    said = view["state"]["values"]["reason"]["text"]["value"]
    if said == "no":
        ack(response_action="errors", errors={"reason": "Say more"})
    else:
        client.chat_postMessage(channel=DESK, text=said, thread_ts=view["private_metadata"])
        ack()


def home_opened(event: dict[str, Any], request: BoltRequest, client: WebClient) -> None:
    if "flaky" in event["tab"] and "x-slack-retry-num" not in request.headers:
        raise ValueError("not this time")
    said = f"{event['user']} opened {event['tab']}, {request.headers.get('x-slack-retry-num', ['first'])[0]}"
    client.views_publish(user_id=event["user"], view={"type": "home", "blocks": [section(said)]})


def tiny_bot(slack: SlackWorkspace) -> App:
    logger = logging.getLogger("tiny-bot")
    logger.setLevel(logging.CRITICAL)
    app = App(
        client=WebClient("xoxb-playground", base_url=slack.api_url, retry_handlers=[]),
        signing_secret="playground-signing-secret",
        process_before_response=True,
        logger=logger,
    )
    app.command("/cancel")(cancel)
    app.action("approve")(approve)
    app.action("deny")(deny)
    app.view("deny_reason")(deny_reason)
    app.event("app_home_opened")(home_opened)
    return app


class ThreadingWSGIServer(ThreadingMixIn, WSGIServer):
    """A thread per request, joined at the end."""

    daemon_threads = False


class SilentRequests(WSGIRequestHandler):
    def log_message(self, *args: Any) -> None:
        """Nothing."""


@contextlib.contextmanager
def served(application: Any) -> Iterator[str]:
    server = make_server("127.0.0.1", 0, application, ThreadingWSGIServer, SilentRequests)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/slack/events"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def over_http(slack: SlackWorkspace, clock: Clock) -> Iterator[SlackWorkspace]:
    # Bolt verifies timestamps against the real time, so the workspace's clock has to be near it here.
    clock.now = time.time()
    with served(SlackRequestHandler(tiny_bot(slack))) as url:
        slack.events_url = url
        yield slack


@contextlib.contextmanager
def connected(slack: SlackWorkspace, *apps: App) -> Iterator[None]:
    bots = [SocketModeHandler(app, "xapp-playground") for app in apps]
    try:
        for bot in bots:
            bot.connect()  # type: ignore[no-untyped-call]
        slack.wait_for(lambda slack: slack.connections == len(apps))
        yield
    finally:
        # The client's own close waits for a read of up to 3 s; it sees at once that Slack hangs up. Its reader must be
        # gone before it is closed, because the two closing at the same time trip over each other.
        for bot in bots:
            bot.client.auto_reconnect_enabled = False
        slack.cut_connections()
        for bot in bots:
            bot.client.current_session_runner.shutdown()  # type: ignore[no-untyped-call]
            bot.close()  # type: ignore[no-untyped-call]


@pytest.fixture
def over_socket(slack: SlackWorkspace) -> Iterator[SlackWorkspace]:
    with connected(slack, tiny_bot(slack)):
        yield slack


@pytest.fixture(params=["over_http", "over_socket"])
def with_bot(request: pytest.FixtureRequest) -> SlackWorkspace:
    workspace = request.getfixturevalue(request.param)
    assert isinstance(workspace, SlackWorkspace)
    return workspace


def test_a_command_is_answered_privately(with_bot: SlackWorkspace) -> None:
    """The ack's body is what the person reads, on both ways."""
    answer = with_bot.command(DANA, DESK, "9ca0 wrong price\nreally")
    assert (answer.status, answer.text) == ("ok", "heard 9ca0 wrong price\nreally")
    assert with_bot.command(DANA, DESK, "blocks").text == "in bold"
    assert [message.text for message in with_bot.ephemerals(DANA)] == ["heard 9ca0 wrong price\nreally", "b"]
    assert with_bot.messages(DESK) == []


def test_a_click_reaches_the_bot_with_the_person_and_the_message(with_bot: SlackWorkspace) -> None:
    """Whose click it was, and of which workspace, is all that an approval stands on."""
    with_bot.command(DANA, DESK, "card")
    [card] = with_bot.messages(DESK)
    assert with_bot.click(GUEST, card, "approve").ok
    [edited] = with_bot.messages(DESK)
    assert edited.text == f"approved 42 by {GUEST} of T0OTHER"
    assert [each.text for each in with_bot.ephemerals(GUEST)] == ["noted"]
    with pytest.raises(AssertionError, match="there is no button approve"):
        with_bot.click(BEN, card, "approve")
    assert with_bot.click(BEN, card, "approve", value="43").ok
    assert with_bot.messages(DESK)[0].text == f"approved 43 by {BEN} of T0PLAY"


def test_a_modal_is_opened_filled_in_and_submitted(with_bot: SlackWorkspace) -> None:
    """Slack itself insists on required fields; the bot's own errors keep the dialog open."""
    with_bot.command(DANA, DESK, "card")
    [card] = with_bot.messages(DESK)
    with_bot.click(BEN, card, "deny")
    [view] = with_bot.views(BEN)
    with pytest.raises(AssertionError, match="Reason must be filled in"):
        with_bot.submit_view(BEN, view, {"text": ""})
    with_bot.submit_view(BEN, view, {"text": "no"})
    assert with_bot.views(BEN)[0].errors == {"reason": "Say more"}
    with_bot.submit_view(BEN, view, {"text": "too big"})
    assert with_bot.views(BEN) == []
    [reply] = with_bot.thread(DESK, card.ts)
    assert reply.text == "too big"


def test_a_click_outside_of_a_message_says_where_it_was(slack: SlackWorkspace, client: WebClient) -> None:
    """The Home tab has no channel and no response_url; an ephemeral message is not in the payload."""
    heard: list[dict[str, Any]] = []

    def listener(environ: Any, start_response: Any) -> list[bytes]:
        form = urllib.parse.parse_qs(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())
        heard.append(json.loads(form["payload"][0]))
        start_response("200 OK", [])
        return [b""]

    rows: Blocks = [actions(button("withdraw", value="1")), actions(button("withdraw", value="2"))]
    client.views_publish(user_id=DANA, view={"type": "home", "blocks": rows})
    client.chat_postEphemeral(channel=DESK, user=DANA, text="x", blocks=rows[:1])
    home = slack.home(DANA)
    assert home is not None
    with served(listener) as url:
        slack.events_url = url
        with pytest.raises(AssertionError, match="say which value"):
            slack.click(DANA, home, "withdraw")
        slack.click(DANA, home, "withdraw", value="2")
        slack.click(DANA, slack.ephemerals(DANA)[0], "withdraw")
    at_home, ephemeral = heard
    assert (at_home["container"]["type"], at_home["view"]["id"]) == ("view", home.id)
    assert not {"channel", "message", "response_url"} & set(at_home)
    assert at_home["actions"][0]["value"] == "2"
    assert ephemeral["container"]["is_ephemeral"] is True
    assert "message" not in ephemeral


def test_who_opens_the_home_tab_is_told_to_the_bot(with_bot: SlackWorkspace) -> None:
    """An event comes as JSON over HTTP, not as a form, and in an envelope of its own kind over Socket Mode."""
    assert with_bot.open_home(DANA).ok
    home = with_bot.home(DANA)
    assert home is not None
    assert with_bot.words(home)[0].startswith(f"{DANA} opened home, ")
    assert with_bot.transcript()[0] == "dana opens the Home tab"
    assert with_bot.open_home(DANA, tab="messages").ok


def test_an_event_is_delivered_again_with_its_number(with_bot: SlackWorkspace) -> None:
    """Slack does so where no answer came in time, and by itself where the answer was none."""
    answer = with_bot.open_home(DANA, deliveries=3)
    assert [answer.ok, *(each.ok for each in answer.copies)] == [True] * 3
    home = with_bot.home(DANA)
    assert home is not None
    assert with_bot.words(home) == [f"{DANA} opened home, 2"]


def test_an_event_that_is_not_acknowledged_is_delivered_again(over_http: SlackWorkspace) -> None:
    """So a bot that could not write it down gets another chance."""
    answer = over_http.open_home(DANA, tab="flaky")
    assert [answer.ok, *(each.ok for each in answer.copies)] == [False, True]


def test_the_dm_with_the_bot_takes_commands(over_http: SlackWorkspace) -> None:
    """A direct message has a channel of its own, whose name Slack does not tell."""
    assert over_http.command(DANA, over_http.dm_channel(DANA), "x").text == "heard x"
    assert over_http.transcript()[0] == "DM dana · dana types /cancel x"


def test_a_double_click_arrives_twice(with_bot: SlackWorkspace) -> None:
    """Two presses are two interactions with a trigger each; the bot has to make one decision of them."""
    with_bot.command(DANA, DESK, "card")
    answer = with_bot.click(BEN, with_bot.messages(DESK)[0], "approve", copies=2)
    assert [answer.status, *(each.status for each in answer.copies)] == ["ok", "ok"]
    assert len(with_bot.messages(DESK)[0].versions) == 2


def test_a_repeated_command_carries_the_same_trigger(over_http: SlackWorkspace) -> None:
    """Redeliveries are recognized by their trigger_id."""
    answer = over_http.command(DANA, DESK, "x", trigger_id="1.2.abc", deliveries=2)
    assert answer.ok
    assert [each.text for each in answer.copies] == ["heard x"]


def test_a_failure_of_the_bot_is_what_the_person_reads(over_http: SlackWorkspace) -> None:
    """No command is met with silence, not even by a bot that is broken or away."""
    assert over_http.command(DANA, DESK, "broken").status == "invalid_command_response"
    assert over_http.command(DANA, DESK, "fail").status == "http_service_error"
    assert over_http.command(DANA, DESK, "x", command="/unknown").status == "http_client_error"
    over_http.events_url = "http://127.0.0.1:9/slack/events"
    assert over_http.command(DANA, DESK, "x").status == "dispatch_failed"
    seen = over_http.ephemerals(DANA)
    assert {message.author for message in seen} == {SLACK}
    assert seen[-1].text == '/cancel failed with the error "dispatch_failed"'


def test_a_bot_that_answers_too_late_is_not_heard() -> None:
    """Slack gives up after its time; the answer after that reaches nobody."""
    release = threading.Event()

    def late(_environ: Any, start_response: Any) -> list[bytes]:
        release.wait(10)
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"late"]

    with SlackWorkspace(answer_within_s=0.1) as slack, served(late) as url:
        slack.events_url = url
        answer = slack.command(DANA, DESK, "x")
        release.set()
        assert answer.status == "operation_timeout"
        assert "operation_timeout" in slack.ephemerals(DANA)[0].text


def test_nobody_can_do_what_slack_does_not_let_them() -> None:
    """A test that clicks as someone who is gone or cannot see the card proves nothing, so it fails."""
    people = [*PEOPLE, Person(GUEST, "gast", team_id="T0OTHER"), Person("U0GONE", "gone", is_deactivated=True)]
    channels = [*CHANNELS, Channel("C0CREW", "crew", "private", frozenset({BEN}))]
    slack = SlackWorkspace(people=people, channels=channels)
    with slack:
        for user, channel in ((GUEST, DESK), ("U0GONE", DESK), (DANA, "C0CREW")):
            with pytest.raises(AssertionError):
                slack.command(user, channel, "x")
        with pytest.raises(AssertionError, match="does not see"):
            slack.click(DANA, slack.say(BEN, "C0CREW", "x"), "approve")


def test_signatures_are_what_bolt_accepts_and_forgeries_are_not(over_http: SlackWorkspace) -> None:
    """The bot's door is tested with well signed, badly signed and old requests."""
    form = {"command": "/cancel", "text": "x", "user_id": DANA, "team_id": "T0PLAY", "channel_id": DESK}
    body = urllib.parse.urlencode(form).encode()
    good = over_http.signed_headers(body)
    assert over_http.deliver_raw(good, body).body == "heard x"
    assert over_http.deliver_raw(good, body + b"y").http_status == 401
    old = int(good["X-Slack-Request-Timestamp"]) - 301
    stale = good | {"X-Slack-Request-Timestamp": str(old), "X-Slack-Signature": over_http.sign(body, old)}
    assert over_http.deliver_raw(stale, body).http_status == 401


def test_a_trigger_opens_one_modal_within_three_seconds(over_http: SlackWorkspace, clock: Clock) -> None:
    """The bot must open its modal first and work later."""
    client = WebClient("xoxb-playground", base_url=over_http.api_url, retry_handlers=[])
    over_http.command(DANA, DESK, "x", trigger_id="1.2.abc")
    client.views_open(trigger_id="1.2.abc", view=modal())
    assert error_of(lambda: client.views_open(trigger_id="1.2.abc", view=modal())) == "exchanged_trigger_id"
    over_http.command(DANA, DESK, "x", trigger_id="1.2.def")
    clock.now += 3
    assert error_of(lambda: client.views_open(trigger_id="1.2.def", view=modal())) == "expired_trigger_id"
    view_id = over_http.views(DANA)[0].id
    client.views_update(view_id=view_id, view=modal(title=text("Why?")))
    assert over_http.views(DANA)[0].title == "Why?"
    assert error_of(lambda: client.views_update(view_id="V0", view=modal())) == "not_found"


# response_url


@pytest.fixture
def response_url(slack: SlackWorkspace) -> str:
    """The response_url of a click by Ben on a card."""
    heard: list[str] = []

    def listener(environ: Any, start_response: Any) -> list[bytes]:
        form = urllib.parse.parse_qs(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])).decode())
        heard.append(json.loads(form["payload"][0])["response_url"])
        start_response("200 OK", [])
        return [b""]

    card = post_card(WebClient("xoxb-playground", base_url=slack.api_url), slack)
    with served(listener) as url:
        slack.events_url = url
        slack.click(BEN, card, "approve")
    return heard[0]


def test_a_response_url_answers_five_times(slack: SlackWorkspace, response_url: str) -> None:
    """The sixth private line must go another way."""
    hook = WebhookClient(response_url)
    assert hook.send(text="private").body == "ok"
    assert hook.send(text="for all", response_type="in_channel").status_code == 200
    assert hook.send(text="decided", replace_original=True, blocks=[]).status_code == 200
    assert hook.send_dict({"delete_original": True}).status_code == 200
    assert (hook.send(text="").status_code, hook.send(text="x").status_code) == (400, 404)
    assert hook.send(text="x").body == '{"ok": false, "error": "used_url"}'
    assert [message.text for message in slack.ephemerals(BEN)] == ["private"]
    assert [message.text for message in slack.messages(DESK)] == ["for all"]
    [card] = slack.removed(DESK)
    assert [version.text for version in card.versions] == ["Cancel?", "decided"]


def test_a_response_url_ends_after_half_an_hour(slack: SlackWorkspace, response_url: str, clock: Clock) -> None:
    """A request may live longer than its response_url."""
    hook = WebhookClient(response_url)
    clock.now += 30 * 60 - 1
    assert hook.send(text="x").status_code == 200
    clock.now += 1
    refused = hook.send(text="x")
    assert (refused.status_code, json.loads(refused.body)["error"]) == (404, "expired_url")
    assert WebhookClient(f"{response_url}x").send(text="x").status_code == 404


def test_a_response_url_has_moods_too(slack: SlackWorkspace, response_url: str) -> None:
    """The private answer has to find another way when this one fails."""
    slack.set_mood("http_500", method="response_url", times=1)
    hook = WebhookClient(response_url)
    assert hook.send(text="x").status_code == 500
    assert hook.send(text="x").status_code == 200


# Socket Mode


def test_each_delivery_goes_to_one_of_several_connections(slack: SlackWorkspace) -> None:
    """Replicas share the work; none may rely on having seen what came before."""
    heard: list[int] = []

    def replica(number: int) -> App:
        app = tiny_bot(slack)

        @app.command("/who")
        def who(ack: Any) -> None:
            heard.append(number)
            ack(str(number))

        return app

    with connected(slack, replica(1), replica(2)):
        for _ in range(8):
            assert slack.command(DANA, DESK, "", command="/who").ok
    assert set(heard) == {1, 2}
    assert len(heard) == 8


def test_a_bot_reconnects_when_it_is_told_to(over_socket: SlackWorkspace) -> None:
    """Slack refreshes connections about once an hour; commands must go on working."""
    over_socket.ask_to_reconnect()
    over_socket.wait_for(lambda slack: slack.connections == 1)
    assert len(over_socket.calls("apps.connections.open")) == 2
    assert over_socket.command(DANA, DESK, "x").ok


def test_who_was_let_in_gets_what_is_typed_from_then_on(slack: SlackWorkspace, client: WebClient) -> None:
    """A bot takes itself for connected once it was let in; what is typed at that very moment must reach it."""
    for _ in range(20):
        url = client.apps_connections_open(app_token="xapp-playground")["url"]
        with ThreadPoolExecutor(max_workers=1) as typing, connect(url) as connection:
            typed = typing.submit(slack.command, DANA, DESK, "x")
            assert json.loads(connection.recv(5))["type"] == "hello"
            connection.send(json.dumps({"envelope_id": json.loads(connection.recv(5))["envelope_id"]}))
            assert typed.result(5).status == "ok"
        slack.wait_for(lambda slack: slack.connections == 0)


def test_without_a_connection_a_command_fails_loudly(slack: SlackWorkspace) -> None:
    """A bot that is down is visible to who types."""
    assert slack.command(DANA, DESK, "x").status == "dispatch_failed"


def test_an_envelope_that_nobody_acks_times_out() -> None:
    """A bot that hangs is seen as such, and its late ack reaches nobody."""
    with SlackWorkspace(answer_within_s=0.05) as slack:
        client = WebClient("xoxb-playground", base_url=slack.api_url, retry_handlers=[])
        with connect(client.apps_connections_open(app_token="xapp-playground")["url"]) as connection:
            slack.wait_for(lambda slack: slack.connections == 1)
            assert json.loads(connection.recv(5))["num_connections"] == 1
            assert slack.command(DANA, DESK, "x").status == "operation_timeout"
            envelope = json.loads(connection.recv(5))
            assert (envelope["type"], envelope["payload"]["text"]) == ("slash_commands", "x")
            connection.send("nonsense")
            connection.send(json.dumps({"envelope_id": envelope["envelope_id"], "payload": {"text": "late"}}))
        slack.wait_for(lambda slack: slack.connections == 0)
        assert "operation_timeout" in slack.ephemerals(DANA)[0].text


def test_a_connection_needs_a_ticket(slack: SlackWorkspace, client: WebClient) -> None:
    """Tickets come from the app-level token only, and open one connection each."""
    assert error_of(lambda: client.apps_connections_open(app_token="xoxb-playground")) == "not_allowed_token_type"
    url = client.apps_connections_open(app_token="xapp-playground")["url"]
    with connect(url) as connection:
        assert json.loads(connection.recv(5))["type"] == "hello"
        with pytest.raises(InvalidStatus):
            connect(url)


# what people read


def test_the_transcript_reads_like_the_conversation(over_http: SlackWorkspace) -> None:
    """The demo prints it: who, where, for whom, and every button."""
    over_http.command(DANA, DESK, "card")
    over_http.click(BEN, over_http.messages(DESK)[0], "approve")
    assert over_http.transcript() == [
        "#desk · dana types /cancel card",
        "#desk · Cancel Bot:",
        "    Cancel this order?",
        "    Market: KRW-BTC",
        "    Side: bid",
        "    ────────",
        "    asked by @dana",
        "    [Approve] [Deny]",
        "#desk · only dana sees · Cancel Bot: heard card",
        "#desk · ben presses [Approve]",
        f"#desk · Cancel Bot changes its message: approved 42 by {BEN} of T0PLAY",
        "#desk · only ben sees · Cancel Bot: noted",
    ]


def test_mrkdwn_is_read_as_words() -> None:
    """An unescaped mention would ping everyone; the reader of a transcript must be able to see the difference."""
    names = {"U1": "dana", "C1": "desk", "S1": "approvers"}.get
    written = (
        "<@U1> in <#C1>: *now* <!channel> &lt;!here&gt; <!subteam^S1> <!date^1^{time}|noon> <https://x.y|link> a*b*c"
    )
    assert slack_blocks.plain(written, lambda key: names(key) or key) == (
        "@dana in #desk: now @channel <!here> @approvers noon link (https://x.y) a*b*c"
    )


def test_waiting_in_vain_shows_what_happened(slack: SlackWorkspace) -> None:
    """A failed test says how far the conversation came."""
    slack.say(DANA, DESK, "hello")
    with pytest.raises(AssertionError, match="#desk · dana: hello"):
        slack.wait_for(lambda slack: slack.messages("C0CREW"), timeout_s=0.01)


def test_nothing_is_left_behind() -> None:
    """Threads that outlive their test disturb the next one."""
    before = set(threading.enumerate())
    with SlackWorkspace() as slack:
        client = WebClient("xoxb-playground", base_url=slack.api_url, retry_handlers=[])
        client.apps_connections_open(app_token="xapp-playground")
        client.auth_test()
    slack.stop()
    assert set(threading.enumerate()) <= before


def test_too_large_a_body_is_not_read(slack: SlackWorkspace) -> None:
    """Whoever runs the playground cannot be made to fill its memory."""
    address = urllib.parse.urlsplit(slack.api_url)
    connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=5)
    with contextlib.closing(connection):
        connection.putrequest("POST", "/api/auth.test")
        connection.putheader("Content-Length", "1000001")
        connection.endheaders()
        assert connection.getresponse().status == 413
