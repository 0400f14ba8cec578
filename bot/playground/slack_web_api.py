"""Slack's Web API as the bot may call it: the methods, their checks in Slack's order, and the response_url.

https://docs.slack.dev/reference/methods and https://docs.slack.dev/apis/web-api
"""

import dataclasses
import json
import math
import urllib.parse
from collections.abc import Callable, Collection, Mapping
from email.message import Message as HttpHeaders
from typing import Any

from bot.playground import slack_blocks
from bot.playground.slack_board import Board, ResponseUrl
from bot.playground.slack_moods import AN_ERROR, Mood, Moods
from bot.playground.slack_records import Block, Call, Channel, Message, SharedFile, View
from bot.playground.slack_server import Reply

POST_TEXT = 40_000
UPDATE_TEXT_BYTES = 4_000  # an edit is held to bytes where a post is cut at characters: reported, not documented
BLOCKS_TEXT = 13_000  # all blocks of a message together: undocumented, seen at about 13,200
VIEW_BYTES = 250_000
RESPONSE_URL = "response_url"  #: its name in `calls` and moods, beside the names of the methods
UPLOAD_URL = "upload_url"  #: the same

Args = dict[str, Any]
Json = dict[str, Any]

SCOPES = {
    "chat.postMessage": "chat:write",
    "chat.postEphemeral": "chat:write",
    "chat.update": "chat:write",
    "conversations.open": "im:write",
    "files.completeUploadExternal": "files:write",
    "files.getUploadURLExternal": "files:write",
    "users.info": "users:read",
    "usergroups.users.list": "usergroups:read",
}


class RefusedError(Exception):
    """Slack says no, with its error's name and what goes with it."""

    def __init__(self, error: str, *, retry_after_s: int | None = None, **more: Any) -> None:
        super().__init__(error)
        self.error = error
        self.retry_after_s = retry_after_s
        self.more = more

    def reply(self) -> Reply:
        body = _json({"ok": False, "error": self.error, **self.more})
        if self.retry_after_s is None:
            return Reply(200, body)
        return Reply(429, body, headers={"Retry-After": str(self.retry_after_s)})


class PostingPace:
    """About one message a second and channel, with a burst (https://docs.slack.dev/apis/web-api/rate-limits)."""

    def __init__(self, *, burst: int, per_s: float, now: Callable[[], float]) -> None:
        self._burst = burst
        self._per_s = per_s
        self._now = now
        self._buckets: dict[str, tuple[float, float]] = {}

    def wait_s(self, channel: str) -> int:
        """Seconds to wait before the next message; 0 takes a place in the bucket."""
        now = self._now()
        tokens, at = self._buckets.get(channel, (float(self._burst), now))
        tokens = min(float(self._burst), tokens + (now - at) * self._per_s)
        free = tokens >= 1
        self._buckets[channel] = (tokens - 1 if free else tokens, now)
        return 0 if free else math.ceil((1 - tokens) / self._per_s)


class WebApi:
    """Answers the bot's calls: path, headers and body in; a reply, or None for a closed connection, out."""

    def __init__(  # noqa: PLR0913 (what it answers from, each named)
        self,
        board: Board,
        *,
        moods: Moods,
        pace: PostingPace,
        scopes: Collection[str],
        user_groups: Mapping[str, Collection[str]] | None,
        socket_url: Callable[[], str],
        base_url: Callable[[], str],
    ) -> None:
        self.scopes = set(scopes)
        self.user_groups = user_groups
        self.messages_tab_enabled = True
        self._board = board
        self._moods = moods
        self._pace = pace
        self._socket_url = socket_url
        self._base_url = base_url
        self._methods: dict[str, Callable[[Args], Json]] = {
            "apps.connections.open": self._connections_open,
            "auth.test": self._auth_test,
            "chat.getPermalink": self._get_permalink,
            "chat.postEphemeral": self._post_ephemeral,
            "chat.postMessage": self._post_message,
            "chat.update": self._update,
            "conversations.open": self._conversations_open,
            "files.completeUploadExternal": self._complete_upload,
            "files.getUploadURLExternal": self._get_upload_url,
            "usergroups.users.list": self._user_group,
            "users.info": self._users_info,
            "views.open": self._views_open,
            "views.publish": self._views_publish,
            "views.update": self._views_update,
        }

    def answer(self, path: str, headers: HttpHeaders, body: bytes) -> Reply | None:
        route, _, query = path.partition("?")
        content_type = headers.get("Content-Type") or ""
        if route.startswith("/response/"):
            return self._in_mood(RESPONSE_URL, {}, lambda: self._respond(route, body))
        if route.startswith("/upload/"):
            return self._in_mood(UPLOAD_URL, {}, lambda: self._upload(route, body))
        if not route.startswith("/api/"):
            return Reply(404, b"not found", "text/plain")
        method = route.removeprefix("/api/")
        try:
            args = _arguments(content_type, body, query)
        except RefusedError as refused:
            return refused.reply()
        token = (headers.get("Authorization") or "").removeprefix("Bearer ").strip() or str(args.pop("token", ""))
        return self._in_mood(method, args, lambda: Reply(200, _json({"ok": True, **self._do(method, token, args)})))

    # one call

    def _in_mood(self, method: str, args: Args, do: Callable[[], Reply]) -> Reply | None:
        """Do it as the mood of the moment has it, and record what the bot will see of it."""
        mood = self._moods.meet(method)
        reply, outcome = _before(mood)
        if outcome is None:
            try:
                reply, outcome = do(), "ok"
            except RefusedError as refused:
                reply, outcome = refused.reply(), refused.error
            reply, outcome = _after(mood, reply, outcome)
        self._board.record(Call(method, self._board.now(), args, outcome))
        return reply

    def _do(self, method: str, token: str, args: Args) -> Json:
        if method not in self._methods:
            raise RefusedError("unknown_method", req_method=method)
        ours = self._board.installation
        expected = ours.app_token if method == "apps.connections.open" else ours.bot_token
        if not token:
            raise RefusedError("not_authed")
        if token != expected:
            raise RefusedError(
                "not_allowed_token_type" if token in {ours.app_token, ours.bot_token} else "invalid_auth"
            )
        needed = SCOPES.get(method)
        if needed and needed not in self.scopes:
            raise RefusedError("missing_scope", needed=needed, provided=",".join(sorted(self.scopes)))
        with self._board.changed:
            return self._methods[method](args)

    # the methods, in the order of the alphabet

    def _connections_open(self, _args: Args) -> Json:
        return {"url": self._socket_url()}

    def _auth_test(self, _args: Args) -> Json:
        ours = self._board.installation
        return {
            "url": ours.team_url,
            "team": ours.team_domain,
            "user": self._board.name_of(ours.bot_user_id),
            "team_id": ours.team_id,
            "user_id": ours.bot_user_id,
            "bot_id": ours.bot_id,
            "is_enterprise_install": False,
        }

    def _get_permalink(self, args: Args) -> Json:
        message = self._board.find(self._visible(args).id, str(args.get("message_ts")))
        if message is None or message.is_ephemeral:
            raise RefusedError("message_not_found")
        base = self._board.installation.team_url.rstrip("/")
        link = f"{base}/archives/{message.channel}/p{message.ts.replace('.', '')}"
        if message.thread_ts:
            link += f"?thread_ts={message.thread_ts}&cid={message.channel}"
        return {"channel": message.channel, "permalink": link}

    def _post_ephemeral(self, args: Args) -> Json:
        channel = self._writable(args)
        user = str(args.get("user"))
        if user not in self._board.people:
            raise RefusedError("user_not_found")
        if not channel.has_member(user) or self._board.people[user].is_deactivated:
            raise RefusedError("user_not_in_channel")
        text, blocks = checked_content(args)
        message = self._board.post(
            channel=channel.id,
            author=self._board.installation.bot_user_id,
            text=text,
            blocks=blocks,
            visible_to=user,
            thread_ts=self._thread(channel, args),
        )
        return {"message_ts": message.ts}

    def _post_message(self, args: Args) -> Json:
        channel = self._writable(args)
        wait_s = self._pace.wait_s(channel.id)
        if wait_s:
            raise RefusedError("ratelimited", retry_after_s=wait_s)
        text, blocks = checked_content(args)
        message = self._board.post(
            channel=channel.id,
            author=self._board.installation.bot_user_id,
            text=text,
            blocks=blocks,
            thread_ts=self._thread(channel, args),
            metadata=_metadata(args),
            client_msg_id=args.get("client_msg_id"),
            unfurl_links=_flag(args.get("unfurl_links")),
        )
        return {"channel": channel.id, "ts": message.ts, "message": message_json(self._board, message)}

    def _update(self, args: Args) -> Json:
        channel = self._visible(args)
        if channel.is_archived:
            raise RefusedError("is_inactive")
        message = self._board.find(channel.id, str(args.get("ts")))
        if message is None or message.is_ephemeral:
            raise RefusedError("message_not_found")
        if message.author != self._board.installation.bot_user_id:
            raise RefusedError("cant_update_message")
        # What is left out stays, an empty list takes the blocks away: https://docs.slack.dev/reference/methods/chat.update
        text, blocks = checked_content({"text": message.text, "blocks": list(message.blocks), **args})
        if len(text.encode()) > UPDATE_TEXT_BYTES:
            raise RefusedError("msg_too_long")
        metadata = _metadata(args) if "metadata" in args else message.metadata
        edited = self._board.edit(message, text=text, blocks=blocks, metadata=metadata)
        return {
            "channel": channel.id,
            "ts": edited.ts,
            "text": edited.text,
            "message": message_json(self._board, edited),
        }

    def _conversations_open(self, args: Args) -> Json:
        users = str(args.get("users") or "")
        if not users:
            raise RefusedError("users_list_not_supplied")
        person = self._board.people.get(users)
        if person is None:
            raise RefusedError("user_not_found")
        if person.is_deactivated:
            raise RefusedError("user_disabled")
        return {"channel": {"id": self._board.dm_with(users).id}}

    # files: https://docs.slack.dev/messaging/working-with-files#upload

    def _get_upload_url(self, args: Args) -> Json:
        name, length = str(args.get("filename") or ""), str(args.get("length") or "")
        if not name or not length.isdecimal() or int(length) == 0:
            raise RefusedError("invalid_arguments")
        path, upload = self._board.new_upload(name=name, length=int(length))
        return {"upload_url": f"{self._base_url()}{path}", "file_id": upload.id}

    def _upload(self, path: str, body: bytes) -> Reply:
        """Needs no token: who has the address may send the file."""
        with self._board.changed:
            upload = self._board.upload_at(path)
            if upload is None:
                return Reply(404, b"not found", "text/plain")
            if len(body) != upload.length:
                return Reply(400, b"size_mismatch", "text/plain")
            upload.content = body
        return Reply(200, b"OK - %d" % len(body), "text/plain")

    def _complete_upload(self, args: Args) -> Json:
        named = _structured(args.get("files"), error="invalid_arguments")
        if not isinstance(named, list) or not named or not all(isinstance(each, dict) for each in named):
            raise RefusedError("invalid_arguments")
        # Unlike a message, a file goes into a conversation that the bot is in, named by its own id.
        channel = self._board.channels.get(str(args.get("channel_id")))
        if channel is None or not channel.has_bot:
            raise RefusedError("channel_not_found")
        if channel.is_archived:
            raise RefusedError("is_archived")
        files = tuple(self._file(each) for each in named)
        self._board.post(
            channel=channel.id,
            author=self._board.installation.bot_user_id,
            text=str(args.get("initial_comment") or ""),
            files=files,
        )
        return {"files": [{"id": file.id, "title": file.title} for file in files]}

    def _file(self, named: Json) -> SharedFile:
        upload = self._board.take_upload(str(named.get("id")))
        if upload is None or upload.content is None:
            raise RefusedError("file_not_found")
        title = str(named.get("title") or upload.name)
        return SharedFile(id=upload.id, name=upload.name, title=title, content=upload.content)

    def _user_group(self, args: Args) -> Json:
        if self.user_groups is None:
            raise RefusedError("plan_upgrade_required")
        members = self.user_groups.get(str(args.get("usergroup")))
        if members is None:
            raise RefusedError("no_such_subteam")
        return {"users": sorted(members)}

    def _users_info(self, args: Args) -> Json:
        person = self._board.people.get(str(args.get("user")))
        if person is None:
            raise RefusedError("user_not_found")
        return {
            "user": {
                "id": person.id,
                "team_id": person.team_id or self._board.installation.team_id,
                "name": person.name,
                "real_name": person.name,
                "deleted": person.is_deactivated,
                "is_bot": person.is_bot,
                "locale": person.locale,
                "is_stranger": self._board.is_guest(person),
                "profile": {"display_name": person.name, "real_name": person.name},
            }
        }

    def _views_open(self, args: Args) -> Json:
        source = _view_source(args, "modal")
        trigger = self._board.use_trigger(str(args.get("trigger_id")))
        if isinstance(trigger, str):
            raise RefusedError(trigger)
        return {"view": view_json(self._board, self._board.show(new_view(self._board, trigger.user, source)))}

    def _views_publish(self, args: Args) -> Json:
        source = _view_source(args, "home")
        user = str(args.get("user_id"))
        if user not in self._board.people:
            raise RefusedError("user_not_found")
        before = self._board.home(user)
        _same_hash(args, before)
        view = new_view(self._board, user, source, view_id=before.id if before else None)
        return {"view": view_json(self._board, self._board.show(view))}

    def _views_update(self, args: Args) -> Json:
        source = _view_source(args, None)
        before = next((view for view in self._board.views.values() if _is_meant(view, args)), None)
        if before is None or not before.is_open:
            raise RefusedError("not_found")
        _same_hash(args, before)
        view = new_view(self._board, before.user, source, view_id=before.id, previous_id=before.previous_id)
        return {"view": view_json(self._board, self._board.show(view))}

    # response_url: https://docs.slack.dev/interactivity/handling-user-interaction#message_responses

    def _respond(self, path: str, body: bytes) -> Reply:
        with self._board.changed:
            target = self._board.use_response_path(path)
            if isinstance(target, str):
                return Reply(404, _json({"ok": False, "error": target}))
            try:
                payload = json.loads(body)
            except ValueError:
                payload = None
            if not isinstance(payload, dict):
                return Reply(400, b"invalid_payload", "text/plain")
            try:
                self._say(target, payload)
            except RefusedError as refused:
                return dataclasses.replace(refused.reply(), status=400)
        return Reply(200, b"ok", "text/plain")

    def _say(self, target: ResponseUrl, payload: Json) -> None:
        original = self._board.find(target.channel, target.original_ts) if target.original_ts else None
        if payload.get("delete_original") and original:
            self._board.delete(original)
            return
        text, blocks = checked_content(payload)
        if payload.get("replace_original") and original:
            self._board.edit(original, text=text, blocks=blocks, metadata=original.metadata)
            return
        self._board.post(
            channel=target.channel,
            author=self._board.installation.bot_user_id,
            text=text,
            blocks=blocks,
            visible_to=None if payload.get("response_type") == "in_channel" else target.user,
            thread_ts=payload.get("thread_ts"),
        )

    # where the bot may write

    def _visible(self, args: Args) -> Channel:
        named = str(args.get("channel"))
        if named in self._board.people and not self._board.people[named].is_deactivated:
            return self._board.dm_with(named)
        channel = self._board.channels.get(named)
        if channel is None or (channel.kind != "public" and not channel.has_bot):
            raise RefusedError("channel_not_found")
        return channel

    def _writable(self, args: Args) -> Channel:
        channel = self._visible(args)
        if channel.is_archived:
            raise RefusedError("is_archived")
        if channel.is_read_only:
            raise RefusedError("restricted_action")
        if channel.kind == "dm" and not self.messages_tab_enabled:
            raise RefusedError("messages_tab_disabled")
        if not channel.has_bot and "chat:write.public" not in self.scopes:
            raise RefusedError("not_in_channel")
        return channel

    def _thread(self, channel: Channel, args: Args) -> str | None:
        if not args.get("thread_ts"):
            return None
        parent = self._board.find(channel.id, str(args["thread_ts"]))
        if parent is None or parent.is_ephemeral:
            raise RefusedError("thread_not_found")
        return parent.thread_ts or parent.ts


def message_json(board: Board, message: Message) -> Json:
    """A message as Slack writes it (https://docs.slack.dev/reference/events/message)."""
    ours = board.installation
    whole: Json = {
        "type": "message",
        "user": message.author,
        "ts": message.ts,
        "text": message.text,
        "team": ours.team_id,
    }
    if message.author == ours.bot_user_id:
        whole |= {"bot_id": ours.bot_id, "app_id": ours.app_id}
    if message.blocks:
        whole["blocks"] = list(message.blocks)
    if message.thread_ts:
        whole["thread_ts"] = message.thread_ts
    if message.metadata:
        whole["metadata"] = dict(message.metadata)
    if message.versions:
        whole["edited"] = {"user": ours.bot_user_id, "ts": f"{message.versions[-1].until:.6f}"}
    return whole


def new_view(
    board: Board, user: str, source: Json, *, view_id: str | None = None, previous_id: str | None = None
) -> View:
    """The view that a person gets from what the bot sent."""
    blocks = slack_blocks.with_ids(source["blocks"], lambda: board.new_id("b"))
    return View(
        id=view_id or board.new_id("V"),
        user=user,
        type=source["type"],
        title=source.get("title", {}).get("text", ""),
        blocks=blocks,
        callback_id=source.get("callback_id", ""),
        private_metadata=source.get("private_metadata", ""),
        external_id=source.get("external_id", ""),
        hash=board.new_ts(),
        submit=source.get("submit", {}).get("text"),
        previous_id=previous_id,
        json=source,
    )


def view_json(board: Board, view: View, state: Mapping[str, Any] | None = None) -> Json:
    """A view as Slack writes it (https://docs.slack.dev/reference/interaction-payloads/view-interactions-payload)."""
    ours = board.installation
    return {
        "callback_id": "",
        "private_metadata": "",
        "external_id": "",
        **view.json,
        "id": view.id,
        "team_id": ours.team_id,
        "app_id": ours.app_id,
        "bot_id": ours.bot_id,
        "hash": view.hash,
        "blocks": list(view.blocks),
        "root_view_id": view.previous_id or view.id,
        "previous_view_id": view.previous_id,
        "state": {"values": dict(state or {})},
    }


def checked_view(source: object) -> Json:
    """The view, or a refusal that says what is wrong with it."""
    view = _structured(source, error="invalid_arguments")
    if not isinstance(view, dict):
        raise RefusedError(
            "invalid_arguments", response_metadata={"messages": ["[ERROR] missing required field: view"]}
        )
    found = slack_blocks.view_faults(view)
    if found:
        raise RefusedError("invalid_arguments", response_metadata={"messages": found})
    if len(_json(view)) > VIEW_BYTES:
        raise RefusedError("view_too_large")
    return view


def checked_content(args: Mapping[str, Any]) -> tuple[str, list[Block]]:
    """Text and blocks of a message, or a refusal that says what is wrong with them."""
    text = str(args.get("text") or "")
    blocks = _structured(args.get("blocks"), error="invalid_blocks_format") or []
    found = slack_blocks.faults(blocks)
    if found:
        raise RefusedError("invalid_blocks", errors=found, response_metadata={"messages": found})
    assert isinstance(blocks, list)
    if not text and not blocks:
        raise RefusedError("no_text")
    if len(text) > POST_TEXT:
        raise RefusedError("msg_too_long")
    if slack_blocks.length_of(blocks) > BLOCKS_TEXT:
        raise RefusedError("msg_blocks_too_long")
    return text, blocks


def _before(mood: Mood | None) -> tuple[Reply | None, str | None]:
    """What happens instead of the work; no outcome means that the work is to be done."""
    match mood.name if mood else None:
        case "away":
            return None, "away"
        case "http_500":
            return Reply(500, b"Internal Server Error", "text/plain"), "http_500"
        case "ratelimited" if mood:
            refused = RefusedError("ratelimited", retry_after_s=mood.retry_after_s)
            return refused.reply(), refused.error
        case "slow" if mood:
            mood.over.wait(mood.delay_s)
            return None, None
        case str(name) if name.startswith(AN_ERROR):
            error = name.removeprefix(AN_ERROR)
            return RefusedError(error).reply(), error
        case _:
            return None, None


def _after(mood: Mood | None, reply: Reply | None, outcome: str) -> tuple[Reply | None, str]:
    """What the bot sees of work that was done."""
    match mood.name if mood else None:
        case "drop_answer_after_doing":
            return None, "drop_answer_after_doing"
        case "fatal_error_after_doing" if outcome == "ok":
            return RefusedError("fatal_error").reply(), "fatal_error"
        case _:
            return reply, outcome


def _arguments(content_type: str, body: bytes, query: str) -> Args:
    """The arguments of a call, from JSON or a form (https://docs.slack.dev/apis/web-api/#post-bodies)."""
    if content_type.startswith("application/json"):
        try:
            args = json.loads(body or b"{}")
        except ValueError:
            raise RefusedError("invalid_json") from None
        if not isinstance(args, dict):
            raise RefusedError("json_not_object")
        return args
    if body and not content_type.startswith("application/x-www-form-urlencoded"):
        raise RefusedError("invalid_post_type")
    try:
        return dict(urllib.parse.parse_qsl(f"{query}&{body.decode()}", keep_blank_values=True))
    except UnicodeDecodeError:
        raise RefusedError("invalid_charset") from None


def _structured(value: object, *, error: str) -> object:
    """A list or an object; in a form it comes as JSON in a string."""
    if not isinstance(value, str):
        return value
    try:
        parsed: object = json.loads(value or "null")
    except ValueError:
        raise RefusedError(error) from None
    return parsed


def _metadata(args: Args) -> Mapping[str, Any] | None:
    """https://docs.slack.dev/messaging/message-metadata."""
    metadata = _structured(args.get("metadata"), error="invalid_metadata_format")
    if not metadata:
        return None
    if not isinstance(metadata, dict):
        raise RefusedError("invalid_metadata_format")
    if not isinstance(metadata.get("event_type"), str) or not isinstance(metadata.get("event_payload"), dict):
        raise RefusedError("invalid_metadata_format")
    return metadata


def _view_source(args: Args, kind: str | None) -> Json:
    view = checked_view(args.get("view"))
    if kind and view["type"] != kind:
        raise RefusedError(
            "invalid_arguments", response_metadata={"messages": [f"[ERROR] must be {kind} [json-pointer:/view/type]"]}
        )
    return view


def _same_hash(args: Args, before: View | None) -> None:
    if args.get("hash") and before and args["hash"] != before.hash:
        raise RefusedError("hash_conflict")


def _is_meant(view: View, args: Args) -> bool:
    if args.get("view_id"):
        return view.id == str(args["view_id"])
    return bool(view.external_id) and view.external_id == str(args.get("external_id"))


def _flag(value: object) -> bool | None:
    return None if value is None else str(value).lower() in {"1", "true"}


def _json(value: object) -> bytes:
    return json.dumps(value, default=str).encode()
