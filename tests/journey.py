"""A journey: the real bot process between a Slack workspace and an exchange on loopback, and what people do there."""

import json
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from databases import migrated
from sqlalchemy import select, update

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.schema import cancel_requests, homes
from bot.database.verification import verify
from bot.domain.event_filter import Filter
from bot.playground.demo import (
    BEN,
    CARA,
    DANA,
    DESK,
    EMIL,
    BotProcess,
    headline_of,
    playground_settings,
)
from bot.playground.exchange import Exchange, Key
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Answer, Channel, Message, Person

Mode = Literal["http", "socket"]
T = TypeVar("T")

GUEST: Final = Person("U0GUEST", "gast", team_id="T0OTHER")
"""Of another workspace; in a shared channel such a person sees the card and can click."""
PRIVATE_WITHOUT_BOT: Final = Channel("C0VAULT", "vault", "private", frozenset({DANA.id, BEN.id}), has_bot=False)
CREW: Final = Channel("C0CREW", "crew", "private", frozenset({DANA.id, BEN.id}))
"""A private channel that the bot was invited to."""
PAIR_WITHOUT_BOT: Final = Channel("D0PAIR", "dana and ben", "dm", frozenset({DANA.id, BEN.id}), has_bot=False)

WITHIN_S: Final = 10.0
LOOK_AGAIN_AFTER_S: Final = 0.02
CANCEL_DELAY_S: Final = 0.05
"""How long the exchange takes to cancel: less than until the bot's first look."""
LOG_TAIL_LINES: Final = 15


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A request that has a card."""

    id: int
    uuid: str
    card: Message


class Journey:
    """The bot and its neighbours, with verbs for what people do and see."""

    def __init__(
        self,
        *,
        slack: SlackWorkspace,
        exchange: Exchange,
        bot: BotProcess,
        database_url: str,
        key: Key,
        checkpoint_key: str = "",
    ) -> None:
        self.key = key
        self.checkpoint_key = checkpoint_key
        self.slack = slack
        self.exchange = exchange
        self.bot = bot
        self.database_url = database_url
        self._database = Database(database_url)

    def close(self) -> None:
        self._database.close()

    # What people do

    def record(self, text: str, *, channel: str = DESK, who: Person = DANA) -> int:
        """Type the command; the id of the request that was recorded."""
        return recorded_id(self.slack.command(who.id, channel, text))

    def ask(self, *, reason: str = "", who: Person = DANA, uuid: str | None = None) -> Asked:
        """Ask for an order to be canceled, a new one unless `uuid` names one, and wait for the card."""
        uuid = uuid or self.exchange.place()
        request_id = self.record(f"{uuid} {reason}".strip(), who=who)
        return Asked(id=request_id, uuid=uuid, card=self.card_of(request_id))

    def press(self, who: Person, asked: Asked, action_id: str) -> None:
        """Press a button of the card; Slack must see it acknowledged in time."""
        assert self.slack.click(who.id, asked.card, action_id).status == "ok"

    def forge(self, who: Person, asked: Asked, action_id: str, *, value: str) -> None:
        """Send a click that no button of the card makes any more, or ever made."""
        assert self.slack.click(who.id, asked.card, action_id, value=value).status == "ok"

    def opens_home(self, *people: Person) -> None:
        """Open the Home tab; Slack must see it acknowledged in time."""
        for who in people:
            assert self.slack.open_home(who.id).status == "ok"

    # What people see

    def home(self, who: Person) -> str:
        """What stands on the person's Home tab now."""
        view = self.slack.home(who.id)
        return "\n".join(self.slack.words(view)) if view else ""

    def home_shows(self, who: Person, *parts: str) -> str:
        """What stands on the person's Home tab, once it has all these parts in it, in this order."""

        def found(_slack: SlackWorkspace) -> str | None:
            shown = self.home(who)
            places = [shown.find(part) for part in parts]
            return shown if -1 not in places and places == sorted(places) else None

        shown = self.slack.wait_for(found, timeout_s=WITHIN_S)
        assert shown is not None
        return shown

    def card_of(self, request_id: int, *, channel: str = DESK) -> Message:
        """The card, once it is posted and its first edit has named the approvers."""

        def found(slack: SlackWorkspace) -> list[Message]:
            return [
                each
                for each in slack.messages(channel)
                if each.versions and each.metadata and each.metadata["event_payload"].get("request_id") == request_id
            ]

        return self.slack.wait_for(found, timeout_s=WITHIN_S)[0]

    def hears(self, who: Person, *parts: str, timeout_s: float = WITHIN_S) -> str:
        """A line that only this person sees, and that has all these parts in it."""

        def found(slack: SlackWorkspace) -> list[str]:
            lines = ["\n".join(slack.words(each)) for each in (*slack.ephemerals(who.id), *slack.dms(who.id))]
            return [line for line in lines if all(part in line for part in parts)]

        return self.slack.wait_for(found, timeout_s=timeout_s)[-1]

    def verdict(self, asked: Asked) -> str:
        """What the thread is told, once it is told."""
        card = asked.card
        thread = self.slack.wait_for(lambda slack: slack.thread(card.channel, card.ts), timeout_s=WITHIN_S)
        return "\n".join(self.slack.words(thread[-1]))

    def shows(self, asked: Asked, words: str) -> Message:
        """The card, once its headline says so."""
        headline = f"Cancel request #{asked.id}: {words}"
        self.slack.wait_for(lambda slack: headline_of(slack, asked.card) == headline, timeout_s=WITHIN_S)
        shown = self.slack.message(asked.card.channel, asked.card.ts)
        assert shown is not None
        return shown

    # What is written down

    def row(self, request_id: int) -> Any:
        with self._database.read() as connection:
            return connection.execute(select(cancel_requests).where(cancel_requests.c.id == request_id)).one()

    def state(self, request_id: int) -> str:
        state: str = self.row(request_id).state
        return state

    def bring_forward(self, request_id: int, *columns: str) -> None:
        """Let a time come at once for which a test cannot wait: when a card expires, when a lease runs out."""
        with self._database.write() as connection:
            past = dict.fromkeys(columns, cancel_requests.c.created_at)
            connection.execute(update(cancel_requests).where(cancel_requests.c.id == request_id).values(past))

    def age(self, request_id: int, minutes: float) -> None:
        """Let a pending request be so much older at once, and its lane due."""
        row = self.row(request_id)
        earlier = {name: getattr(row, name) - timedelta(minutes=minutes) for name in ("opened_at", "expires_at")}
        with self._database.write() as connection:
            due = {**earlier, "next_attempt_at": cancel_requests.c.created_at}
            connection.execute(update(cancel_requests).where(cancel_requests.c.id == request_id).values(due))

    def free_homes(self) -> None:
        """The kill may have met a Home while it was being drawn; nobody waits for its lease."""
        with self._database.write() as connection:
            connection.execute(update(homes).values(leased_until=None))

    def events(self, request_id: int | None = None) -> list[dict[str, Any]]:
        """The audit, of one request or all, the oldest first."""
        wanted = Filter(request_id=request_id)
        return [dict(each) for each in AuditLog(self._database).list(wanted, limit=100_000, newest_first=False)]

    def actions(self, request_id: int) -> list[str]:
        """In their order, but for `card.posted`: a click may come before the bot knows that Slack has the card."""
        return [event["action"] for event in self.events(request_id) if event["action"] != "card.posted"]

    def audited(self, request_id: int, action: str) -> dict[str, Any]:
        """The event, once it is written."""
        found = self.until(lambda: [each for each in self.events(request_id) if each["action"] == action])
        return found[-1]

    def audit_fault(self) -> str | None:
        return verify(self._database).fault

    def until(self, look: Callable[[], T | None], *, timeout_s: float = WITHIN_S) -> T:
        """What `look` returns once it is true: for the database, which does not tell when it changes."""
        pause = threading.Event()
        for _ in range(round(timeout_s / LOOK_AGAIN_AFTER_S)):
            if found := look():
                return found
            pause.wait(LOOK_AGAIN_AFTER_S)
        raise AssertionError(f"not within {timeout_s} s; the bot's last lines:\n{self.log_tail()}")

    def until_exchange(self, look: Callable[[Exchange], object]) -> None:
        assert self.exchange.wait_for(look, timeout_s=WITHIN_S), self.log_tail()

    def complaints(self) -> list[str]:
        """What the bot itself has logged as an error; what Slack's library makes of Slack's moods is its own."""
        lines = self.bot.log().splitlines()
        return [
            line for line in lines if "Traceback" in line or ('"logger": "bot.' in line and '"level": "error"' in line)
        ]

    def shelves(self) -> dict[str, bytes]:
        """Everything that the bot has let out so far, by where it lies."""
        folder = self.bot.log_path.parent
        return {
            "log": self.bot.log().encode(),
            "audit": json.dumps(self.events(), ensure_ascii=False).encode(),
            "messages": "\n".join(self.slack.transcript()).encode(),
            "calls": "\n".join(json.dumps(dict(call.arguments)) for call in self.slack.calls()).encode(),
            **{path.name: path.read_bytes() for path in folder.iterdir() if path.name.startswith("cancels.db")},
        }

    def leaks(self) -> list[tuple[str, str]]:
        """Where a secret, a token or its header lies that must not be there; response_urls are keys, too."""
        key, ours = self.key, self.slack.installation
        tokens = {
            request.headers.get("authorization", "").removeprefix("Bearer ") for request in self.exchange.requests
        }
        secrets = {
            key.secret_key,
            ours.bot_token,
            ours.signing_secret,
            self.checkpoint_key,
            *tokens,
            "Bearer",
            "eyJ",
        } - {""}
        shelves = self.shelves()
        found = [(name, secret) for name, held in shelves.items() for secret in secrets if secret.encode() in held]
        return found + [(name, "/response/") for name in ("log", "audit", "messages") if b"/response/" in shelves[name]]

    def log_tail(self) -> str:
        return "\n".join(self.bot.log().splitlines()[-LOG_TAIL_LINES:])


def recorded_id(answer: Answer) -> int:
    """The id in `Request #7 is recorded; reading the order…`."""
    found = re.fullmatch(r"Request #(\d+) is recorded; reading the order…", answer.text)
    assert found, answer
    return int(found[1])


@contextmanager
def started(
    folder: Path,
    *,
    mode: Mode = "http",
    database_url: str | None = None,
    key: Key | None = None,
    settings: Mapping[str, str] | None = None,
    user_groups: Mapping[str, Collection[str]] | None = None,
    is_slack_away: bool = False,
    channels: Sequence[Channel] = (),
) -> Iterator[Journey]:
    """A bot that is ready (unless Slack is away), in a folder of its own, with SQLite unless a URL says otherwise.

    The workspace has `channels` beside its own. The bot logs at DEBUG. At the end everything that it let out is
    searched for secrets, and it must stop when it is told.
    """
    key = key or Key()
    database_url = database_url or f"sqlite:///{folder / 'cancels.db'}"
    database = Database(database_url)
    migrated(database)
    database.close()
    with (
        SlackWorkspace(
            people=(DANA, BEN, CARA, EMIL, GUEST),
            channels=(Channel(DESK, "desk"), CREW, PRIVATE_WITHOUT_BOT, PAIR_WITHOUT_BOT, *channels),
            user_groups=user_groups,
            post_burst=1000,
        ) as slack,
        Exchange(keys=(key,), cancel_delay_s=CANCEL_DELAY_S, requests_per_s=1000) as exchange,
    ):
        if is_slack_away:
            slack.set_mood("away")
        ours = playground_settings(slack, exchange, key=key, socket_mode=mode == "socket")
        # No refresh by itself, so that a mood of the exchange meets the call that the test means: see `bring_forward`.
        ours["REFRESH_SECONDS"] = "3600"
        whole = {**ours, "DATABASE_URL": database_url, "LOG_LEVEL": "DEBUG", **(settings or {})}
        with BotProcess(folder=folder, settings=whole) as bot:
            if mode == "http":
                slack.events_url = bot.events_url
            if not is_slack_away:
                bot.wait_until_ready()
            journey = Journey(
                slack=slack,
                exchange=exchange,
                bot=bot,
                database_url=database_url,
                key=key,
                checkpoint_key=whole.get("CHECKPOINT_KEY", ""),
            )
            try:
                yield journey
                leaks = journey.leaks()
                assert not leaks, [(name, secret[:12]) for name, secret in leaks]
                exchange.clear_moods()
                slack.clear_moods()
                assert not bot.is_running() or bot.stop() == 0
            finally:
                journey.close()
