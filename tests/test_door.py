"""The WSGI app before Bolt: what gets in, what is turned away, and that nothing makes it stumble."""

import hashlib
import hmac
import http.client
import json
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any
from urllib.parse import parse_qsl, urlencode
from wsgiref.simple_server import WSGIRequestHandler, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment
from wsgiref.validate import validator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from slack_bolt import App
from slack_bolt.adapter.wsgi import SlackRequestHandler
from slack_bolt.authorization import AuthorizeResult

from bot.web.door import Door, Readiness

SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
NOW = 1_790_000_000
FORM = "application/x-www-form-urlencoded"
COMMAND_FIELDS = {
    "command": "/cancel",
    "text": "cdd92199-2897-4e14-9448-f923320408ad wrong price",
    "trigger_id": "1.2.3",
    "user_id": "U1",
    "user_name": "dana",
    "team_id": "T1",
    "channel_id": "C1",
    "response_url": "https://hooks.slack.test/1",
}
COMMAND = urlencode(COMMAND_FIELDS).encode()

Headers = dict[str, str]


def signature(body: bytes, *, timestamp: int | str = NOW, secret: str = SECRET) -> str:
    return "v0=" + hmac.new(secret.encode(), f"v0:{timestamp}:".encode() + body, hashlib.sha256).hexdigest()


def signed(body: bytes, *, timestamp: int | str = NOW, content_type: str = FORM) -> Headers:
    return {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "X-Slack-Request-Timestamp": str(timestamp),
        "X-Slack-Signature": signature(body, timestamp=timestamp),
    }


@dataclass
class InnerApp:
    """Stands where Bolt stands, and remembers the bodies that came through."""

    bodies: list[bytes] = field(default_factory=list)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> list[bytes]:
        self.bodies.append(environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"])))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"acked"]


def door(slack: WSGIApplication | None, *, ready: Callable[[], Readiness] | None = None) -> Door:
    return Door(
        slack=slack,
        signing_secret=SECRET,
        ready=ready or (lambda: Readiness(checks={"database": True})),
        now=lambda: NOW,
    )


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@dataclass(frozen=True)
class Server:
    port: int

    def ask(self, method: str, path: str, body: bytes = b"", headers: Headers | None = None) -> "Answer":
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value.encode("latin-1"))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.read(), dict(response.getheaders()))
        finally:
            connection.close()

    def post(self, body: bytes, headers: Headers | None = None) -> "Answer":
        return self.ask("POST", "/slack/events", body, signed(body) if headers is None else headers)

    def raw(self, request: bytes) -> bytes:
        """Send these bytes and nothing more, and read until the server hangs up."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
            answer = b""
            while chunk := connection.recv(4096):
                answer += chunk
            return answer


@dataclass(frozen=True)
class Answer:
    status: int
    body: bytes
    headers: Headers


@contextmanager
def served(app: WSGIApplication) -> Iterator[Server]:
    with make_server("127.0.0.1", 0, app, handler_class=_Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield Server(server.server_port)
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def inner() -> InnerApp:
    return InnerApp()


@pytest.fixture
def server(inner: InnerApp) -> Iterator[Server]:
    with served(door(inner)) as running:
        yield running


# --- What gets in ---------------------------------------------------------------------------------------------------

CLICK_FIELDS: dict[str, Any] = {
    "type": "block_actions",
    "team": {"id": "T1"},
    "user": {"id": "U1", "username": "dana", "name": "dana", "team_id": "T1"},
    "channel": {"id": "C1"},
    "container": {"channel_id": "C1", "message_ts": "1.000100"},
    "actions": [{"action_id": "approve", "block_id": "b", "value": "7"}],
    "response_url": "https://hooks.slack.test/2",
    "trigger_id": "4.5.6",
}


def click(**changes: Any) -> bytes:
    return urlencode({"payload": json.dumps({**CLICK_FIELDS, **changes})}).encode()


def command(**changes: str | None) -> bytes:
    return urlencode({k: v for k, v in {**COMMAND_FIELDS, **changes}.items() if v is not None}).encode()


CLICK = click()


@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=utf-8"])
@pytest.mark.parametrize("sent", [COMMAND, command(text="주문"), command(token="secret", enterprise_id="E1")])
def test_a_command_comes_through_with_what_the_listeners_read(
    server: Server, inner: InnerApp, sent: bytes, content_type: str
) -> None:
    """The guard must not stand in the way of what Slack really sends."""
    answer = server.post(sent, signed(sent, content_type=content_type))
    assert (answer.status, answer.body) == (200, b"acked")
    told = dict(parse_qsl(sent.decode()))
    assert dict(parse_qsl(inner.bodies[0].decode())) == {name: told[name] for name in COMMAND_FIELDS}


@pytest.mark.parametrize(
    "beside",
    [
        {},
        {"enterprise": 10**300, "authorizations": "x", "event": [], "function_data": 1, "message": None},
        {"token": "secret", "state": {"values": {}}, "is_enterprise_install": "no"},
    ],
)
def test_a_click_comes_through_with_what_the_listeners_read(
    server: Server, inner: InnerApp, beside: dict[str, Any]
) -> None:
    """Bolt looks into the rest and breaks where it is of another kind than it thinks."""
    assert server.post(click(**beside)).status == 200
    payload = json.loads(dict(parse_qsl(inner.bodies[0].decode()))["payload"])
    assert payload == CLICK_FIELDS


SUBMISSION = {
    "type": "view_submission",
    "team": {"id": "T1"},
    "user": {"id": "U1", "username": "ben", "name": "", "team_id": "T1"},
    "view": {
        "id": "V1",
        "type": "modal",
        "callback_id": "a form",
        "private_metadata": "42",
        "hash": "1.a",
        "state": {
            "values": {
                "why": {"text": {"type": "plain_text_input", "value": "because"}},
                "which": {"pick": {"type": "static_select", "selected_option": {"value": "7"}}},
            }
        },
    },
}
HOME_OPENED = {
    "type": "event_callback",
    "team_id": "T1",
    "event": {"type": "app_home_opened", "user": "U1", "tab": "home"},
}


def test_a_submitted_form_comes_through_with_what_was_filled_in(server: Server, inner: InnerApp) -> None:
    """What Slack and the form say beside it goes no further."""
    view = SUBMISSION["view"] | {"blocks": [{"type": 7}], "title": "x", "app_installed_team_id": ["T1"]}  # type: ignore[operator]
    body = urlencode({"payload": json.dumps(SUBMISSION | {"view": view, "response_urls": "x"})}).encode()
    assert server.post(body, signed(body)).status == 200
    assert json.loads(dict(parse_qsl(inner.bodies[0].decode()))["payload"]) == SUBMISSION


def test_who_opens_the_home_tab_comes_through(server: Server, inner: InnerApp) -> None:
    """Of all events, this one has somebody who listens."""
    event = HOME_OPENED["event"] | {"channel": "D1", "view": {"id": []}}  # type: ignore[operator]
    body = json.dumps(HOME_OPENED | {"event": event, "authorizations": 1}).encode()
    assert server.post(body, signed(body, content_type="application/json")).status == 200
    assert json.loads(inner.bodies[0]) == HOME_OPENED


@pytest.mark.parametrize(
    ("body", "content_type", "comes_as"),
    [
        (b"ssl_check=1&token=x", FORM, b"ssl_check=1"),
        (
            b'{"type": "url_verification", "challenge": "3eZb", "token": "x"}',
            "application/json",
            b'{"type":"url_verification","challenge":"3eZb"}',
        ),
    ],
)
def test_what_bolt_answers_by_itself_comes_through(
    server: Server, inner: InnerApp, body: bytes, content_type: str, comes_as: bytes
) -> None:
    """Slack asks these when somebody sets the address up."""
    assert server.post(body, signed(body, content_type=content_type)).status == 200
    assert inner.bodies == [comes_as]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b'{"type": "event_callback", "team_id": "T1", "event": {"type": "message"}}', "application/json"),
        (urlencode({"payload": '{"type": "dialog_submission"}'}).encode(), FORM),
        (urlencode({"payload": '{"type": "interactive_message", "callback_id": "approve"}'}).encode(), FORM),
    ],
)
def test_what_nobody_listens_to_is_acknowledged_and_goes_no_further(
    server: Server, inner: InnerApp, body: bytes, content_type: str
) -> None:
    """Slack would send it again, and a person would see that something failed."""
    assert server.post(body, signed(body, content_type=content_type)).status == 200
    assert not inner.bodies


@pytest.mark.parametrize("offset", [-300, 300])
def test_a_clock_may_be_five_minutes_off(server: Server, inner: InnerApp, offset: int) -> None:
    """Slack allows for as much."""
    assert server.post(COMMAND, signed(COMMAND, timestamp=NOW + offset)).status == 200
    assert len(inner.bodies) == 1


# --- What is turned away --------------------------------------------------------------------------------------------

LONE_BYTES = b"text=\xff\xfe"
GOOD = signed(COMMAND)

TURNED_AWAY: dict[str, tuple[bytes, Headers, int]] = {
    "no signature": (COMMAND, {k: v for k, v in GOOD.items() if k != "X-Slack-Signature"}, 401),
    "empty signature": (COMMAND, {**GOOD, "X-Slack-Signature": ""}, 401),
    "signature of another body": (COMMAND, {**GOOD, "X-Slack-Signature": signature(b"other")}, 401),
    "signature with another secret": (COMMAND, {**GOOD, "X-Slack-Signature": signature(COMMAND, secret="other")}, 401),
    "signature of another version": (COMMAND, {**GOOD, "X-Slack-Signature": GOOD["X-Slack-Signature"][1:]}, 401),
    "signature in upper case": (COMMAND, {**GOOD, "X-Slack-Signature": GOOD["X-Slack-Signature"].upper()}, 401),
    "signature too long": (COMMAND, {**GOOD, "X-Slack-Signature": GOOD["X-Slack-Signature"] + "0"}, 401),
    "signature beyond ASCII": (COMMAND, {**GOOD, "X-Slack-Signature": "v0=" + "é" * 64}, 401),
    "unsigned ssl_check": (b"ssl_check=1", {**signed(b"ssl_check=1"), "X-Slack-Signature": "v0=" + "0" * 64}, 401),
    "no timestamp": (COMMAND, {k: v for k, v in GOOD.items() if k != "X-Slack-Request-Timestamp"}, 401),
    "empty timestamp": (COMMAND, {**GOOD, "X-Slack-Request-Timestamp": ""}, 401),
    "timestamp in words": (COMMAND, signed(COMMAND, timestamp="now"), 401),
    "timestamp with a fraction": (COMMAND, signed(COMMAND, timestamp=f"{NOW}.0"), 401),
    "negative timestamp": (COMMAND, signed(COMMAND, timestamp=-NOW), 401),
    "timestamp in other digits": (COMMAND, {**GOOD, "X-Slack-Request-Timestamp": "¹²³"}, 401),
    "endless timestamp": (COMMAND, signed(COMMAND, timestamp="9" * 5000), 401),
    "old timestamp": (COMMAND, signed(COMMAND, timestamp=NOW - 301), 401),
    "timestamp of the future": (COMMAND, signed(COMMAND, timestamp=NOW + 301), 401),
    "no content length": (b"", {k: v for k, v in GOOD.items() if k != "Content-Length"}, 411),
    "content length in words": (b"", {**GOOD, "Content-Length": "many"}, 400),
    "negative content length": (b"", {**GOOD, "Content-Length": "-1"}, 400),
    "two megabytes announced": (b"", {**GOOD, "Content-Length": "2000000"}, 413),
    "no content type": (COMMAND, {k: v for k, v in GOOD.items() if k != "Content-Type"}, 400),
    "another content type": (COMMAND, signed(COMMAND, content_type="multipart/form-data; boundary=x"), 400),
    "signed, not UTF-8": (LONE_BYTES, signed(LONE_BYTES), 400),
    "signed, broken JSON": (b'{"a": ', signed(b'{"a": ', content_type="application/json"), 400),
    "signed, broken JSON in a form": (b'{"a": ', signed(b'{"a": '), 400),
    "signed, JSON that is no object": (b"[1]", signed(b"[1]", content_type="application/json"), 400),
    "signed, JSON without end": (b"[" * 100_000, signed(b"[" * 100_000, content_type="application/json"), 400),
    "signed, nothing as JSON": (b"", signed(b"", content_type="application/json"), 400),
    "signed, broken payload": (b"payload=%7B", signed(b"payload=%7B"), 400),
    "signed, empty payload": (b"payload=", signed(b"payload="), 400),
    "signed, payload that is no object": (b"payload=1", signed(b"payload=1"), 400),
    **{
        f"signed, {name}": (body, signed(body), 400)
        for name, body in {
            "command of nobody": command(user_id=""),
            "command without a person": command(user_id=None),
            "command with a blank trigger": command(trigger_id=" \x00\u200b"),
            "command without a trigger": command(trigger_id=None),
            "command of no workspace": command(team_id=None),
            "command with a field twice": COMMAND + b"&user_id=U2",
            "command with too many fields": COMMAND + b"&a=1" * 200,
            "click on nothing": click(actions=[]),
            "click on a word": click(actions="approve"),
            "click without an action_id": click(actions=[{"value": "7"}]),
            "click whose action_id is a number": click(actions=[{"action_id": 1}]),
            "click whose value is a number": click(actions=[{"action_id": "approve", "value": 7}]),
            "click of a list": click(user=[]),
            "click of nobody": click(user={"id": ""}),
            "click of half a character": click(user={"id": "\ud800"}),
            "payload of no kind": click(type=None),
            "payload of a kind that is a number": click(type=1),
            "payload of a kind that nobody could read": click(type="x\n" * 50),
        }.items()
    },
}


@pytest.mark.parametrize(("body", "headers", "status"), TURNED_AWAY.values(), ids=TURNED_AWAY.keys())
def test_what_slack_did_not_send_never_reaches_bolt(
    server: Server, inner: InnerApp, body: bytes, headers: Headers, status: int
) -> None:
    """Each of these makes bare Bolt answer 500, log the raw body, or take a stranger for Slack."""
    answer = server.post(body, headers)
    assert answer.status == status
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert len(answer.body) < 100
    assert b"Traceback" not in answer.body
    assert inner.bodies == []


def test_a_body_that_ends_early_is_refused(server: Server, inner: InnerApp) -> None:
    """A torn connection must not look like a shorter command."""
    head = "".join(f"{name}: {value}\r\n" for name, value in GOOD.items())
    answer = server.raw(f"POST /slack/events HTTP/1.1\r\nHost: x\r\n{head}\r\n".encode() + COMMAND[:10])
    assert b" 400 " in answer.splitlines()[0]
    assert inner.bodies == []


def test_a_chunked_body_is_refused(server: Server, inner: InnerApp) -> None:
    """Without a length there is no telling when to stop; Slack always sends one."""
    head = "".join(f"{name}: {value}\r\n" for name, value in GOOD.items() if name != "Content-Length")
    request = f"POST /slack/events HTTP/1.1\r\nHost: x\r\n{head}Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    assert b" 411 " in server.raw(request.encode()).splitlines()[0]
    assert inner.bodies == []


class _Untouchable(BytesIO):
    def read(self, _size: int | None = -1, /) -> bytes:
        raise AssertionError("the body was read")


class _Torn(BytesIO):
    def read(self, _size: int | None = -1, /) -> bytes:
        raise ConnectionResetError


def call(app: WSGIApplication, environ: WSGIEnvironment) -> tuple[int, bytes]:
    """The app called in this process."""
    started: list[str] = []

    def start(status: str, _headers: list[tuple[str, str]], _exc_info: Any = None, /) -> Callable[[bytes], object]:
        started.append(status)
        return lambda _chunk: None

    body = b"".join(app(environ, start))
    [status] = started
    return int(status.split()[0]), body


def environ_of(headers: Headers, body: BytesIO) -> WSGIEnvironment:
    return {
        "REQUEST_METHOD": "POST",
        "PATH_INFO": "/slack/events",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "CONTENT_TYPE": headers.get("Content-Type", ""),
        "CONTENT_LENGTH": headers.get("Content-Length", ""),
        "HTTP_X_SLACK_REQUEST_TIMESTAMP": headers.get("X-Slack-Request-Timestamp", ""),
        "HTTP_X_SLACK_SIGNATURE": headers.get("X-Slack-Signature", ""),
        "wsgi.input": body,
    }


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({**GOOD, "Content-Length": "2000000"}, 413),
        ({**GOOD, "Content-Length": "1000001"}, 413),
        ({**GOOD, "X-Slack-Signature": "v0=short"}, 401),
        (signed(COMMAND, timestamp=NOW - 301), 401),
        ({**GOOD, "Content-Type": "text/html"}, 400),
    ],
)
def test_the_headers_decide_before_the_body_is_read(inner: InnerApp, headers: Headers, status: int) -> None:
    """A stranger must not make the bot read two megabytes to be told no."""
    assert call(door(inner), environ_of(headers, _Untouchable()))[0] == status


def test_a_connection_that_breaks_is_no_crash(inner: InnerApp) -> None:
    """The other side may vanish at any time; that is no error of ours."""
    assert call(door(inner), environ_of(GOOD, _Torn()))[0] == 400


# --- Routes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/slack", "/slack/events/", "/metrics", "/healthz/x", "/%2e%2e/etc/passwd"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_other_paths_are_not_found(server: Server, inner: InnerApp, method: str, path: str) -> None:
    """One way in, no surprises behind it."""
    assert server.ask(method, path, headers={"Content-Length": "0"}).status == 404
    assert inner.bodies == []


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/slack/events", "POST"),
        ("PUT", "/slack/events", "POST"),
        ("DELETE", "/slack/events", "POST"),
        ("POST", "/healthz", "GET, HEAD"),
        ("POST", "/readyz", "GET, HEAD"),
    ],
)
def test_other_methods_are_not_allowed(server: Server, inner: InnerApp, method: str, path: str, allowed: str) -> None:
    """HTTP asks for 405 with `Allow`, and a browser that visits the address learns no more."""
    answer = server.ask(method, path, COMMAND, GOOD)
    assert (answer.status, answer.headers["Allow"]) == (405, allowed)
    assert inner.bodies == []


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("POST", "/slack/events", 200), ("GET", "/healthz", 200), ("HEAD", "/readyz", 200), ("GET", "/slack/events", 405)],
)
def test_the_door_speaks_wsgi_to_the_letter(inner: InnerApp, method: str, path: str, status: int) -> None:
    """Any WSGI server can stand in front of it: the standard library's validator watches both sides."""
    with served(validator(door(validator(inner)))) as server:
        assert server.ask(method, path, COMMAND, GOOD).status == status


def test_there_is_no_way_in_for_slack_in_socket_mode() -> None:
    """With Socket Mode nothing comes over HTTP, so nothing is let in."""
    with served(Door(slack=None, signing_secret=None, ready=lambda: Readiness(checks={}), now=lambda: NOW)) as server:
        assert server.post(COMMAND).status == 404
        assert server.ask("GET", "/healthz").status == 200


def test_alive_is_said_even_while_nothing_is_ready() -> None:
    """A platform that restarts the bot because Slack is down makes an outage longer."""

    def fails() -> Readiness:
        raise AssertionError("health must ask nobody")

    with served(door(None, ready=fails)) as server:
        answer = server.ask("GET", "/healthz")
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert (server.ask("HEAD", "/healthz").status, server.ask("HEAD", "/healthz").body) == (200, b"")


def test_a_stuck_process_says_so() -> None:
    """Only a restart mends a process whose own threads are dead."""
    stuck = Door(slack=None, signing_secret=None, ready=lambda: Readiness(checks={}), health=lambda: False)
    with served(stuck) as server:
        assert server.ask("GET", "/healthz").status == 503


@pytest.mark.parametrize(
    ("checks", "status"),
    [
        ({"database": True, "worker": True}, 200),
        ({"database": True, "worker": False}, 503),
        ({"database": "older", "worker": True}, 503),
    ],
)
def test_ready_only_if_every_check_is(checks: dict[str, bool | str], status: int) -> None:
    """A replica that cannot finish a request must get none, and the operator sees which check failed."""
    with served(door(None, ready=lambda: Readiness(checks=checks))) as server:
        answer = server.ask("GET", "/readyz")
        assert (answer.status, json.loads(answer.body)) == (status, checks)
        assert answer.headers["Content-Type"] == "application/json"


def test_what_requests_do_not_need_is_told_and_does_not_count() -> None:
    """Cancels go on without checkpoints; whoever looks sees how they stand."""
    readiness = Readiness(checks={"database": True}, told={"checkpoints": "not_posted: not_in_channel"})
    with served(door(None, ready=lambda: readiness)) as server:
        answer = server.ask("GET", "/readyz")
        shown = {"database": True, "checkpoints": "not_posted: not_in_channel"}
        assert (answer.status, json.loads(answer.body)) == (200, shown)


def test_a_check_that_breaks_is_not_ready(caplog: pytest.LogCaptureFixture) -> None:
    """A failing check says nothing of its values: a database address may hold a password."""

    def breaks() -> Readiness:
        raise RuntimeError("postgresql://bot:hunter2@db")

    with served(door(None, ready=breaks)) as server:
        answer = server.ask("GET", "/readyz")
    assert answer.status == 503
    assert b"hunter2" not in answer.body
    assert "hunter2" not in caplog.text
    assert "RuntimeError in breaks" in caplog.text


@pytest.mark.parametrize("secret", [None, "", "  "])
def test_slack_is_not_let_in_without_a_signing_secret(inner: InnerApp, secret: str | None) -> None:
    """An empty secret signs everything, so the bot must not start with one."""
    with pytest.raises(ValueError, match="signing secret"):
        Door(slack=inner, signing_secret=secret, ready=lambda: Readiness(checks={}))


# --- When the app behind fails --------------------------------------------------------------------------------------


def _raises(environ: WSGIEnvironment, _start: StartResponse) -> list[bytes]:
    raise KeyError(environ["wsgi.input"].read())


def _raises_late(_environ: WSGIEnvironment, start: StartResponse) -> Iterator[bytes]:
    start("200 OK", [("Content-Type", "text/plain")])
    yield b"half"
    raise KeyError(COMMAND)


def _never_starts(_environ: WSGIEnvironment, _start: StartResponse) -> list[bytes]:
    return [b"body without a status"]


@pytest.mark.parametrize("app", [_raises, _raises_late, _never_starts])
def test_a_crash_behind_the_door_is_a_plain_500_and_one_line(
    app: WSGIApplication, caplog: pytest.LogCaptureFixture
) -> None:
    """What was typed must not reach the log, and half an answer must not pass for an ack."""
    caplog.set_level(logging.INFO)
    assert call(door(app), environ_of(GOOD, BytesIO(COMMAND))) == (500, b"something went wrong\n")
    [line] = [record.getMessage() for record in caplog.records]
    assert line.startswith("the Slack app failed: ")
    assert "cdd92199" not in line
    assert caplog.records[0].exc_info is None


def test_a_refusal_is_one_line_that_quotes_nothing(inner: InnerApp, caplog: pytest.LogCaptureFixture) -> None:
    """Bolt logs the whole raw body of a refused request; the door logs why."""
    caplog.set_level(logging.INFO)
    call(door(inner), environ_of({**GOOD, "X-Slack-Signature": signature(b"other")}, BytesIO(COMMAND)))
    assert [record.getMessage() for record in caplog.records] == ["refused a request: 401 no valid signature"]


# --- Bolt behind the door -------------------------------------------------------------------------------------------


@pytest.fixture
def bolt() -> Iterator[Server]:
    """A real Bolt app that answers `/cancel` with what was typed after it."""

    def authorize() -> AuthorizeResult:
        return AuthorizeResult(enterprise_id=None, team_id="T1", bot_user_id="UBOT", bot_token="xoxb-made-up")

    def cancel(ack: Callable[[str], None], command: dict[str, str]) -> None:
        ack(f"heard: {command['text']}")

    app = App(signing_secret=SECRET, authorize=authorize, process_before_response=True)
    app.command("/cancel")(cancel)
    with served(Door(slack=SlackRequestHandler(app), signing_secret=SECRET, ready=lambda: Readiness(checks={}))) as it:
        yield it


@pytest.mark.parametrize("text", ["cdd92199 wrong price", "cdd92199 the payload was wrong", "payload", "payload=1&x"])
def test_a_signed_command_is_answered_by_bolt(bolt: Server, text: str) -> None:
    """Bolt takes any form that holds the word "payload" for one with that field and drops the rest: not here."""
    body = command(text=text)
    answer = bolt.post(body, signed(body, timestamp=int(time.time())))
    assert (answer.status, answer.body.decode()) == (200, f"heard: {text}")


# --- Anything at all ------------------------------------------------------------------------------------------------

TEXTS = st.text(st.characters(codec="latin-1"), max_size=80)
BODIES = st.one_of(
    st.binary(max_size=200),
    st.sampled_from([COMMAND, CLICK, b"{}", b"[]", b"payload=[]", LONE_BYTES, b'{"a":' * 2000, b"payload=%FF"]),
)


@st.composite
def requests(draw: st.DrawFn) -> tuple[WSGIEnvironment, bytes]:
    """Half of them with one good part or more, so that every check is reached."""
    body = draw(BODIES)
    headers = signed(body)
    for name in headers:
        if draw(st.integers(0, 4)) == 0:
            headers[name] = draw(TEXTS | st.sampled_from(["", "0", "-1", str(NOW - 999), "application/json", "1e3"]))
    environ = environ_of(headers, BytesIO(body))
    environ["REQUEST_METHOD"] = draw(st.sampled_from(["POST", "POST", "POST", "GET", "HEAD", ""]))
    environ["PATH_INFO"] = draw(st.sampled_from(["/slack/events", "/slack/events", "/healthz", "/readyz"]) | TEXTS)
    return environ, body


@settings(max_examples=400, deadline=None)
@given(request=requests())
def test_no_request_makes_the_door_stumble(request: tuple[WSGIEnvironment, bytes]) -> None:
    """Never an exception, never a 5xx, and never a body behind the door that Slack did not sign."""
    environ, body = request
    inner = InnerApp()
    status, _ = call(door(inner), environ)
    assert status < 500
    if inner.bodies:
        timestamp = environ["HTTP_X_SLACK_REQUEST_TIMESTAMP"]
        taken = body[: int(environ["CONTENT_LENGTH"])]
        assert environ["HTTP_X_SLACK_SIGNATURE"] == signature(taken, timestamp=timestamp)
        assert abs(int(timestamp) - NOW) <= 300
