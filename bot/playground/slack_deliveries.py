"""What Slack sends to the bot: commands, clicks, submitted views and events; signed over HTTP, or over Socket Mode.

https://docs.slack.dev/authentication/verifying-requests-from-slack and https://docs.slack.dev/reference/interaction-payloads
"""

import dataclasses
import hashlib
import hmac
import http.client
import json
import time
import urllib.parse
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bot.playground.slack_board import Board
from bot.playground.slack_records import Answer, Button, Channel, Message, Person, View
from bot.playground.slack_server import MAX_BODY_BYTES
from bot.playground.slack_socket import SocketMode
from bot.playground.slack_web_api import message_json, view_json

MAX_COPIES = 20
HTTP_ERROR = 400
HTTP_SERVER_ERROR = 500
COMMAND = "slash_commands"
INTERACTIVE = "interactive"
EVENT = "events_api"
RETRY_REASON = "http_timeout"

Json = dict[str, Any]


class Payloads:
    """Builds what Slack sends, with its triggers and response_urls."""

    def __init__(self, board: Board, *, base_url: Callable[[], str]) -> None:
        self._board = board
        self._base_url = base_url

    def command(self, person: Person, channel: Channel, command: str, text: str, trigger_id: str | None) -> Json:
        """https://docs.slack.dev/interactivity/implementing-slash-commands."""
        ours = self._board.installation
        return {
            "token": ours.verification_token,
            "team_id": ours.team_id,
            "team_domain": ours.team_domain,
            "channel_id": channel.id,
            "channel_name": _name_for_payload(channel),
            "user_id": person.id,
            "user_name": person.name,
            "command": command,
            "text": text,
            "api_app_id": ours.app_id,
            "is_enterprise_install": "false",
            "response_url": self._response_url(person, channel, None),
            "trigger_id": self._board.new_trigger(person.id, trigger_id),
        }

    def click(self, person: Person, place: Message | View, action: Json) -> Json:
        """https://docs.slack.dev/reference/interaction-payloads/block_actions-payload."""
        payload = self._interaction("block_actions", person)
        payload["actions"] = [{**action, "action_ts": self._board.new_ts()}]
        if isinstance(place, View):
            return payload | {
                "container": {"type": "view", "view_id": place.id},
                "view": view_json(self._board, place),
            }
        channel = self._board.channels[place.channel]
        container = {
            "type": "message",
            "message_ts": place.ts,
            "channel_id": channel.id,
            "is_ephemeral": place.is_ephemeral,
        }
        payload |= {
            "container": container | ({"thread_ts": place.thread_ts} if place.thread_ts else {}),
            "channel": {"id": channel.id, "name": _name_for_payload(channel)},
            "state": {"values": {}},
            "response_url": self._response_url(person, channel, place.ts),
        }
        return payload if place.is_ephemeral else payload | {"message": message_json(self._board, place)}

    def submission(self, person: Person, view: View, values: Mapping[str, Any]) -> Json:
        """https://docs.slack.dev/reference/interaction-payloads/view-interactions-payload."""
        payload = self._interaction("view_submission", person)
        return payload | {"view": view_json(self._board, view, values), "response_urls": []}

    def home_opened(self, person: Person, tab: str) -> Json:
        """https://docs.slack.dev/reference/events/app_home_opened, in the envelope of the Events API."""
        ours = self._board.installation
        team_id = person.team_id or ours.team_id
        ts = self._board.new_ts()
        event = {
            "type": "app_home_opened",
            "user": person.id,
            "channel": self._board.dm_with(person.id).id,
            "tab": tab,
            "event_ts": ts,
        }
        home = self._board.home(person.id)
        return {
            "token": ours.verification_token,
            "team_id": team_id,
            "api_app_id": ours.app_id,
            "event": event if home is None or tab != "home" else event | {"view": view_json(self._board, home)},
            "type": "event_callback",
            "event_id": self._board.new_id("Ev"),
            "event_time": int(float(ts)),
            "authorizations": [
                {
                    "enterprise_id": None,
                    "team_id": team_id,
                    "user_id": ours.bot_user_id,
                    "is_bot": True,
                    "is_enterprise_install": False,
                }
            ],
            "is_ext_shared_channel": False,
        }

    def _interaction(self, kind: str, person: Person) -> Json:
        ours = self._board.installation
        return {
            "type": kind,
            "team": {"id": ours.team_id, "domain": ours.team_domain},
            "user": {
                "id": person.id,
                "username": person.name,
                "name": person.name,
                "team_id": person.team_id or ours.team_id,
            },
            "api_app_id": ours.app_id,
            "token": ours.verification_token,
            "enterprise": None,
            "is_enterprise_install": False,
            "trigger_id": self._board.new_trigger(person.id),
        }

    def _response_url(self, person: Person, channel: Channel, original_ts: str | None) -> str:
        path = self._board.new_response_path(user=person.id, channel=channel.id, original_ts=original_ts)
        return self._base_url() + path


class Deliveries:
    """Brings payloads to the bot and its answers back."""

    def __init__(self, board: Board, socket_mode: SocketMode, *, answer_within_s: float) -> None:
        self.events_url: str | None = None
        self.answer_within_s = answer_within_s
        self._board = board
        self._socket_mode = socket_mode

    def send(self, kind: str, payloads: list[Json]) -> Answer:
        """Deliver each payload at the same time as the others; the first one's answer carries the rest."""
        if len(payloads) == 1:
            return self._send_one(kind, payloads[0])
        if len(payloads) not in range(1, MAX_COPIES + 1):
            raise ValueError(f"from 1 to {MAX_COPIES} copies, not {len(payloads)}")
        with ThreadPoolExecutor(max_workers=len(payloads), thread_name_prefix="slack-delivery") as threads:
            first, *others = threads.map(lambda payload: self._send_one(kind, payload), payloads)
        return dataclasses.replace(first, copies=tuple(others))

    def send_event(self, payload: Json, *, retry: int = 0) -> Answer:
        """Deliver an event; `retry` counts its earlier deliveries (https://docs.slack.dev/apis/events-api/#retries)."""
        if self.events_url is None:
            return self._send_over_socket(EVENT, payload, retry=retry)
        body = json.dumps(payload).encode()
        headers = self.signed_headers(body) | {"Content-Type": "application/json"}
        if retry:
            headers |= {"X-Slack-Retry-Num": str(retry), "X-Slack-Retry-Reason": RETRY_REASON}
        return self.post(headers, body)

    def sign(self, body: bytes, timestamp: int) -> str:
        base = b"v0:%d:%b" % (timestamp, body)
        return "v0=" + hmac.new(self._board.installation.signing_secret.encode(), base, hashlib.sha256).hexdigest()

    def signed_headers(self, body: bytes) -> dict[str, str]:
        timestamp = int(self._board.now())
        return {
            "Content-Type": "application/x-www-form-urlencoded",
            "User-Agent": "Slackbot 1.0 (+https://api.slack.com/robots)",
            "X-Slack-Request-Timestamp": str(timestamp),
            "X-Slack-Signature": self.sign(body, timestamp),
        }

    def post(self, headers: Mapping[str, str], body: bytes) -> Answer:
        """POST to the bot as it is, and judge the answer as Slack does."""
        assert self.events_url, "set events_url to the bot's /slack/events first"
        url = urllib.parse.urlsplit(self.events_url)
        assert url.scheme == "http", "the playground speaks plain HTTP on loopback"
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=self.answer_within_s)
        began = time.monotonic()
        try:
            connection.request("POST", url.path, body=body, headers=dict(headers))
            response = connection.getresponse()
            text = response.read(MAX_BODY_BYTES).decode("utf-8", "replace")
        except TimeoutError:
            return Answer(status="operation_timeout", took_s=time.monotonic() - began)
        except (OSError, http.client.HTTPException):
            return Answer(status="dispatch_failed", took_s=time.monotonic() - began)
        finally:
            connection.close()
        took_s = time.monotonic() - began
        return Answer(
            status=_status(response.status, took_s, self.answer_within_s),
            http_status=response.status,
            content_type=response.headers.get_content_type(),
            body=text,
            took_s=took_s,
        )

    def _send_one(self, kind: str, payload: Json) -> Answer:
        if self.events_url is None:
            return self._send_over_socket(kind, payload)
        form = payload if kind == COMMAND else {"payload": json.dumps(payload)}
        body = urllib.parse.urlencode(form).encode()
        return self.post(self.signed_headers(body), body)

    def _send_over_socket(self, kind: str, payload: Json, *, retry: int | None = None) -> Answer:
        began = time.monotonic()
        retries = {} if retry is None else {"retry_attempt": retry, "retry_reason": RETRY_REASON if retry else ""}
        try:
            answer = self._socket_mode.deliver(kind, payload, timeout_s=self.answer_within_s, **retries)
        except ConnectionError:
            return Answer(status="dispatch_failed")
        except TimeoutError:
            return Answer(status="operation_timeout", took_s=time.monotonic() - began)
        return Answer(
            status="ok",
            content_type="application/json",
            body="" if answer is None else json.dumps(answer),
            took_s=time.monotonic() - began,
        )


def action_of(button: Button) -> Json:
    """What a click says about its button."""
    shown = {key: button.element[key] for key in ("text", "value", "style", "confirm") if key in button.element}
    return {"type": "button", "action_id": button.action_id, "block_id": button.block_id, **shown}


def _status(http_status: int, took_s: float, within_s: float) -> str:
    if took_s > within_s:
        return "operation_timeout"
    if http_status >= HTTP_SERVER_ERROR:
        return "http_service_error"
    return "http_client_error" if http_status >= HTTP_ERROR else "ok"


def _name_for_payload(channel: Channel) -> str:
    """Payloads do not tell the names of private conversations."""
    return {"public": channel.name, "private": "privategroup", "dm": "directmessage"}[channel.kind]
