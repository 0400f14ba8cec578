"""A stand for experiments: replicas of the real bot between a Slack workspace, an exchange and a database, all real.

    with stand(ground, replicas=2) as here:
        order = here.exchange.place()
        asked = here.ask(order, DANA)
        here.press(asked, BEN)
        here.drain(timeout_s=60)
        here.judge(figures)

It remembers what was acknowledged. `faults.judge` compares that with what is written down and what really happened.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from databases import migrated
from sqlalchemy import func, select, update

from bot.database.engine import Database
from bot.database.schema import cancel_requests, notices
from bot.domain.cancel_request import ENDED_STATES, State
from bot.playground.demo import BEN, CARA, DANA, DESK, EMIL, BotProcess, playground_settings
from bot.playground.exchange import Exchange, Key
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Answer, Channel, Message, Person
from faults.figures import Ground
from faults.tcp_proxy import TcpProxy

T = TypeVar("T")

FAYE: Final = Person("U0FAYE", "faye")
GUS: Final = Person("U0GUS", "gus")
REQUESTERS: Final = (DANA, CARA)
APPROVERS: Final = (BEN, EMIL, FAYE, GUS)

TESTS: Final = Path(__file__).parents[1]

CANCEL_DELAY_S: Final = 0.05
LOOK_AGAIN_AFTER_S: Final = 0.05
LOG_TAIL_LINES: Final = 15
LANES: Final = (
    (cancel_requests, "leased_until"),
    (cancel_requests, "card_leased_until"),
    (notices, "leased_until"),
)
DUE: Final = (
    (cancel_requests, "next_attempt_at"),
    (cancel_requests, "card_next_attempt_at"),
    (notices, "next_attempt_at"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A command that was acknowledged: the request that was recorded for it."""

    id: int
    uuid: str
    requester: Person


@dataclass(frozen=True, kw_only=True, slots=True)
class Pressed:
    """A click that was acknowledged."""

    request_id: int
    person: Person
    action_id: str


class Stand:
    """The replicas and their neighbours, with verbs for what people and experiments do."""

    def __init__(
        self,
        *,
        slack: SlackWorkspace,
        exchange: Exchange,
        bots: list[BotProcess],
        front: TcpProxy,
        database_url: str,
    ) -> None:
        self.slack = slack
        self.exchange = exchange
        self.bots = bots
        self.front = front
        self.database_url = database_url
        self.database = Database(database_url)
        self.asked: dict[int, Asked] = {}
        self.pressed: list[Pressed] = []
        self._lock = threading.Lock()

    # What people do. Everything here may be called from several threads.

    def ask(self, uuid: str, who: Person = DANA, *, reason: str = "", deliveries: int = 1) -> Asked | None:
        """Type the command; what was acknowledged, or None where the person saw anything else."""
        answer = self.slack.command(who.id, DESK, f"{uuid} {reason}".strip(), deliveries=deliveries)
        request_id = next(filter(None, map(_recorded_id, (answer, *answer.copies))), None)
        if request_id is None:
            return None
        asked = Asked(id=request_id, uuid=uuid, requester=who)
        with self._lock:
            self.asked[request_id] = asked
        return asked

    def press(self, request_id: int, who: Person = BEN, action_id: str = "approve", *, copies: int = 1) -> bool:
        """Press a button of the request's card, which must be posted; whether Slack saw it acknowledged."""
        card = self.card_of(request_id)
        assert card is not None, f"request {request_id} has no card"
        answer = self.slack.click(who.id, card, action_id, value=str(request_id), copies=copies)
        is_acknowledged = any(each.ok for each in (answer, *answer.copies))
        if is_acknowledged:
            with self._lock:
                self.pressed.append(Pressed(request_id=request_id, person=who, action_id=action_id))
        return is_acknowledged

    # What is written down

    def card_of(self, request_id: int) -> Message | None:
        """The card as people see it now, once the bot has written down where it is."""
        with self.database.read() as connection:
            place = connection.execute(
                select(cancel_requests.c.card_channel_id, cancel_requests.c.card_ts).where(
                    cancel_requests.c.id == request_id
                )
            ).one_or_none()
        return None if place is None or place.card_ts is None else self.slack.message(*place)

    def ids_in(self, *states: State) -> list[int]:
        """The requests in these states, the oldest first."""
        with self.database.read() as connection:
            return list(
                connection.execute(
                    select(cancel_requests.c.id)
                    .where(cancel_requests.c.state.in_([state.value for state in states]))
                    .order_by(cancel_requests.c.id)
                ).scalars()
            )

    def states(self) -> dict[int, State]:
        with self.database.read() as connection:
            rows = connection.execute(select(cancel_requests.c.id, cancel_requests.c.state))
            return {request_id: State(state) for request_id, state in rows}

    def is_at_rest(self, *, may_wait: frozenset[State] = frozenset()) -> bool:
        """Whether every request has ended (or may wait), every card and thread is drawn and nobody is owed a line."""
        resting = [state.value for state in ENDED_STATES | may_wait]
        with self.database.read() as connection:
            counts = (
                select(func.count()).select_from(cancel_requests).where(cancel_requests.c.state.not_in(resting)),
                select(func.count())
                .select_from(cancel_requests)
                .where(cancel_requests.c.card_next_attempt_at.is_not(None)),
                select(func.count()).select_from(notices).where(notices.c.next_attempt_at.is_not(None)),
            )
            return not any(connection.execute(count).scalar_one() for count in counts)

    def drain(self, *, timeout_s: float, may_wait: frozenset[State] = frozenset()) -> bool:
        """Wait until everything is at rest; whether it came to that."""
        return self.until(lambda: self.is_at_rest(may_wait=may_wait), timeout_s=timeout_s)

    def until(self, look: Callable[[], object], *, timeout_s: float) -> bool:
        """Whether `look` came true in time: for databases and processes, which do not tell when they change."""
        pause = threading.Event()
        ends_at = time.monotonic() + timeout_s
        while time.monotonic() < ends_at:
            if look():
                return True
            pause.wait(LOOK_AGAIN_AFTER_S)
        return bool(look())

    # What experiments do

    def kill(self, replica: int = 0) -> None:
        """Kill -9 to the process and its parent."""
        self.bots[replica].kill()

    def restart(self, replica: int = 0) -> None:
        """Start a replica that is dead, and wait until it is ready."""
        self.bots[replica].start()
        self.bots[replica].wait_until_ready()

    def run_out_leases(self) -> None:
        """Let the leases of the dead run out at once. Only while no replica lives, or two would work at a time."""
        assert not any(bot.is_running() for bot in self.bots)
        self._bring_forward(*LANES)

    def run_out_waits(self) -> None:
        """Let everything that waits for its time be due now."""
        self._bring_forward(*DUE)

    def _bring_forward(self, *columns: tuple[object, str]) -> None:
        with self.database.write() as connection:
            now = self.database.now(connection)
            for table, column in columns:
                waits = table.c[column]  # type: ignore[attr-defined]
                connection.execute(update(table).where(waits > now).values({column: now}))  # type: ignore[arg-type]

    def complaints(self) -> list[str]:
        """What the bots themselves logged as an error, and tracebacks."""
        return [
            line
            for bot in self.bots
            for line in bot.log().splitlines()
            if "Traceback" in line or ('"logger": "bot.' in line and '"level": "error"' in line)
        ]

    def log_tail(self) -> str:
        return "\n".join(line for bot in self.bots for line in bot.log().splitlines()[-LOG_TAIL_LINES:])

    def close(self) -> None:
        self.database.close()


def _recorded_id(answer: Answer) -> int | None:
    head, _, rest = answer.text.partition("Request #")
    number, _, told = rest.partition(" ")
    return int(number) if not head and number.isdecimal() and told.startswith("is recorded") else None


@contextmanager
def stand(
    ground: Ground,
    *,
    replicas: int = 1,
    settings: Mapping[str, str] | None = None,
    faults: Mapping[int, str] | None = None,
    network: TcpProxy | None = None,
    requests_per_s: int = 1000,
    post_burst: int = 100_000,
) -> Iterator[Stand]:
    """So many replicas that are ready, on a database of their own, with `settings` beside what they need.

    `faults` gives a replica's FAULTS, see `faulty_bot`. `network` is the way to the exchange: its upstream is set here.
    """
    url = ground.new_database()
    database = Database(url)
    migrated(database)
    database.close()
    key = Key()
    with ExitStack() as stack:
        slack = stack.enter_context(
            SlackWorkspace(people=(*REQUESTERS, *APPROVERS), channels=(Channel(DESK, "desk"),), post_burst=post_burst)
        )
        exchange = stack.enter_context(
            Exchange(keys=(key,), cancel_delay_s=CANCEL_DELAY_S, requests_per_s=requests_per_s)
        )
        whole = {
            **playground_settings(slack, exchange, key=key, socket_mode=False),
            "APPROVERS": ",".join(person.id for person in APPROVERS),
            "MAX_OPEN_REQUESTS_PER_PERSON": "1000",
            "DATABASE_URL": url,
            "LOG_LEVEL": "INFO",
            "PYTHONPATH": f"{TESTS}:{TESTS.parent}",
        }
        if network is not None:
            network.upstreams = [("127.0.0.1", _port_of(exchange.url))]
            whole["UPBIT_OPEN_API_SERVER_URL"] = f"http://127.0.0.1:{network.port}"
        bots = []
        for number in range(replicas):
            folder = ground.folder / f"replica-{number}-{time.monotonic_ns()}"
            folder.mkdir()
            bots.append(
                BotProcess(
                    folder=folder,
                    settings={**whole, **(settings or {}), "FAULTS": (faults or {}).get(number, "{}")},
                    module="faults.faulty_bot",
                )
            )
        front = stack.enter_context(TcpProxy([("127.0.0.1", bot.port) for bot in bots], rng=random.Random(ground.seed)))
        slack.events_url = f"http://127.0.0.1:{front.port}/slack/events"
        here = Stand(slack=slack, exchange=exchange, bots=bots, front=front, database_url=url)
        stack.callback(here.close)
        for bot in bots:
            stack.enter_context(bot)
        for bot in bots:
            bot.wait_until_ready()
        yield here


def _port_of(url: str) -> int:
    return int(url.rpartition(":")[2].rstrip("/"))
