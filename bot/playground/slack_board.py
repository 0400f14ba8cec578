"""What is on the wall of the playground's Slack: who is there, what was said, and to whom it shows.

Everything that changes happens under one condition, so that a test can wait for it instead of polling.
"""

import dataclasses
import itertools
import math
import secrets
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from bot.playground import slack_blocks
from bot.playground.slack_records import SLACK, Block, Call, Channel, Message, Person, Version, View

K = TypeVar("K")
V = TypeVar("V")

KEPT = 10_000  #: messages, calls and lines of transcript; the oldest make room
TRIGGER_LIFE_S = 3
RESPONSE_URL_LIFE_S = 30 * 60
RESPONSE_URL_USES = 5


@dataclass(frozen=True, slots=True)
class Installation:
    """The bot as it is installed in the workspace."""

    team_id: str
    team_domain: str
    team_url: str
    bot_token: str
    app_token: str
    signing_secret: str
    app_id: str
    bot_id: str
    bot_user_id: str
    verification_token: str = "playground-verification"  # Slack still sends this legacy field


@dataclass(slots=True)
class Trigger:
    user: str
    expires_at: float
    used: bool = False


@dataclass(slots=True)
class ResponseUrl:
    """Where a command or a click may be answered (https://docs.slack.dev/interactivity/handling-user-interaction)."""

    user: str
    channel: str
    original_ts: str | None
    expires_at: float
    uses_left: int = RESPONSE_URL_USES


@dataclass(slots=True)
class Upload:
    """A file that is on its way: where it may be sent to, and what came."""

    id: str
    name: str
    length: int
    content: bytes | None = None


class Board:
    """The state of the workspace; every method takes the lock, `changed` tells who waits."""

    def __init__(
        self,
        *,
        installation: Installation,
        people: Iterable[Person],
        channels: Iterable[Channel],
        now: Callable[[], float],
    ) -> None:
        self.installation = installation
        self.now = now
        self.changed = threading.Condition()
        self.people = {person.id: person for person in people}
        self.channels = {channel.id: channel for channel in channels}
        self.calls: deque[Call] = deque(maxlen=KEPT)
        self.transcript: deque[str] = deque(maxlen=KEPT)
        self.views: dict[str, View] = {}
        self._messages: dict[tuple[str, str], Message] = {}
        self._removed: dict[tuple[str, str], Message] = {}
        self._triggers: dict[str, Trigger] = {}
        self._response_urls: dict[str, ResponseUrl] = {}
        self._uploads: dict[str, Upload] = {}  # by their path
        self._last_ts_micros = 0
        self._ids = itertools.count(1)

    # who and where

    def is_guest(self, person: Person) -> bool:
        return bool(person.team_id) and person.team_id != self.installation.team_id

    def name_of(self, any_id: str) -> str:
        if any_id == SLACK:
            return "Slack"
        who = self.people.get(any_id) or self.channels.get(any_id)
        return who.name if who else any_id

    def place(self, channel_id: str) -> str:
        channel = self.channels[channel_id]
        return f"#{channel.name}" if channel.kind != "dm" else f"DM {channel.name}"

    def dm_with(self, user: str) -> Channel:
        """The bot's direct messages with someone; opened when first asked for."""
        with self.changed:
            for channel in self.channels.values():
                if channel.kind == "dm" and channel.has_bot and channel.has_member(user):
                    return channel
            opened = Channel(f"D{self.new_id('DM')}", self.name_of(user), "dm", frozenset({user}))
            self.channels[opened.id] = opened
            return opened

    def new_id(self, prefix: str) -> str:
        return f"{prefix}{next(self._ids):06d}"

    def new_ts(self) -> str:
        """A message's id and time: unique, and never running backwards."""
        with self.changed:
            self._last_ts_micros = max(self._last_ts_micros + 1, math.floor(self.now() * 1_000_000))
            return f"{self._last_ts_micros // 1_000_000}.{self._last_ts_micros % 1_000_000:06d}"

    # what was said

    def find(self, channel: str, ts: str) -> Message | None:
        with self.changed:
            return self._messages.get((channel, ts))

    def messages(self) -> list[Message]:
        with self.changed:
            return list(self._messages.values())

    def removed(self) -> list[Message]:
        with self.changed:
            return list(self._removed.values())

    def post(self, *, channel: str, author: str, text: str, blocks: Sequence[Block] = (), **more: Any) -> Message:
        with self.changed:
            message = Message(
                channel=channel,
                ts=self.new_ts(),
                author=author,
                text=text,
                blocks=slack_blocks.with_ids(blocks, lambda: self.new_id("b")),
                **more,
            )
            _keep(self._messages, (channel, message.ts), message)
            self._tell(message, "")
            return message

    def edit(
        self, message: Message, *, text: str, blocks: Sequence[Block], metadata: Mapping[str, Any] | None
    ) -> Message:
        with self.changed:
            current = self._messages[message.channel, message.ts]
            edited = dataclasses.replace(
                current,
                text=text,
                blocks=slack_blocks.with_ids(blocks, lambda: self.new_id("b")),
                metadata=metadata,
                versions=(*current.versions, Version(current.text, current.blocks, self.now())),
            )
            self._messages[message.channel, message.ts] = edited
            self._tell(edited, " changes its message")
            return edited

    def delete(self, message: Message) -> None:
        with self.changed:
            gone = self._messages.pop((message.channel, message.ts), None)
            if gone is not None:
                version = Version(gone.text, gone.blocks, self.now())
                gone = dataclasses.replace(gone, text="", blocks=(), versions=(*gone.versions, version))
                _keep(self._removed, (gone.channel, gone.ts), gone)
                self._tell(gone, " removes its message")

    # views

    def show(self, view: View) -> View:
        """Put a view before its person, in place of its earlier state."""
        with self.changed:
            _keep(self.views, view.id, view)
            what = f'the dialog "{view.title}"' if view.type == "modal" else "the Home tab"
            if view.is_open:
                self.note(f"{self.name_of(view.user)} sees {what}:", self.words(view.blocks, view.title))
            for error in view.errors.values():
                self.note(f'{self.name_of(view.user)} sees in {what}: "{error}"')
            self.changed.notify_all()
            return view

    def modals(self, user: str) -> list[View]:
        with self.changed:
            return [
                view for view in self.views.values() if (view.user, view.type, view.is_open) == (user, "modal", True)
            ]

    def home(self, user: str) -> View | None:
        with self.changed:
            return next((view for view in self.views.values() if (view.user, view.type) == (user, "home")), None)

    # tickets that run out

    def new_trigger(self, user: str, trigger_id: str | None = None) -> str:
        with self.changed:
            trigger_id = trigger_id or f"{self.new_id('')}.{next(self._ids)}.{secrets.token_hex(8)}"
            _keep(self._triggers, trigger_id, Trigger(user, self.now() + TRIGGER_LIFE_S))
            return trigger_id

    def use_trigger(self, trigger_id: str) -> Trigger | str:
        """Whom a modal may be shown to, or the error (https://docs.slack.dev/reference/methods/views.open)."""
        with self.changed:
            trigger = self._triggers.get(trigger_id)
            if trigger is None:
                return "invalid_trigger_id"
            if trigger.used:
                return "exchanged_trigger_id"
            if self.now() >= trigger.expires_at:
                return "expired_trigger_id"
            trigger.used = True
            return trigger

    def new_response_path(self, *, user: str, channel: str, original_ts: str | None) -> str:
        with self.changed:
            path = f"/response/{self.installation.team_id}/{self.new_id('')}/{secrets.token_urlsafe(16)}"
            _keep(self._response_urls, path, ResponseUrl(user, channel, original_ts, self.now() + RESPONSE_URL_LIFE_S))
            return path

    def use_response_path(self, path: str) -> ResponseUrl | str:
        with self.changed:
            target = self._response_urls.get(path)
            if target is None:
                return "no_such_url"
            if self.now() >= target.expires_at:
                return "expired_url"
            if not target.uses_left:
                return "used_url"
            target.uses_left -= 1
            return target

    def new_upload(self, *, name: str, length: int) -> tuple[str, Upload]:
        """A ticket to send a file with: its path, and the file to be."""
        with self.changed:
            path, upload = f"/upload/v1/{secrets.token_urlsafe(16)}", Upload(self.new_id("F"), name, length)
            _keep(self._uploads, path, upload)
            return path, upload

    def upload_at(self, path: str) -> Upload | None:
        with self.changed:
            return self._uploads.get(path)

    def take_upload(self, file_id: str) -> Upload | None:
        """The file, where all of it has come; once."""
        with self.changed:
            for path, upload in self._uploads.items():
                if upload.id == file_id and upload.content is not None:
                    return self._uploads.pop(path)
            return None

    # what people read

    def record(self, call: Call) -> None:
        with self.changed:
            self.calls.append(call)
            self.changed.notify_all()

    def note(self, line: str, more: Sequence[str] = ()) -> None:
        """Add to the transcript; a single further line joins the first."""
        with self.changed:
            if len(more) == 1:
                self.transcript.append(f"{line} {more[0]}")
            else:
                self.transcript.append(line)
                self.transcript.extend(f"    {each}" for each in more)
            self.changed.notify_all()

    def words(self, blocks: Sequence[Block], text: str) -> list[str]:
        """What a person reads: the blocks where there are some, else the text."""
        return (
            slack_blocks.in_words(blocks, self.name_of)
            if blocks
            else slack_blocks.plain(text, self.name_of).splitlines()
        )

    def _tell(self, message: Message, doing: str) -> None:
        where = [self.place(message.channel)]
        if message.thread_ts:
            where.append("thread")
        if message.visible_to:
            where.append(f"only {self.name_of(message.visible_to)} sees")
        removed = not (message.text or message.blocks)
        head = f"{' · '.join([*where, self.name_of(message.author)])}{doing}{'.' if removed else ':'}"
        self.note(head, [*self.words(message.blocks, message.text), *(f"[{file.name}]" for file in message.files)])


def _keep(shelf: dict[K, V], key: K, value: V) -> None:
    """Put it on the shelf; where the shelf is full the oldest thing falls off."""
    shelf[key] = value
    if len(shelf) > KEPT:
        del shelf[next(iter(shelf))]
