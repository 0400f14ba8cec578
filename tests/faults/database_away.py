"""The database is away: it fails in every way it knows while people ask and decide.

A PostgreSQL of its own crashes and comes back, cuts connections, is read-only, stands still, has no slot left, makes
wait for locks and ends deadlocks. Under SQLite the disk is full, takes no writes, or another process holds the write
lock; then the bot is killed and the end of the write-ahead log is cut off.

Meanwhile and afterwards: what was acknowledged is written down, and what was not, the person is told, within Slack's
three seconds; no DELETE leaves that is not announced; nothing spins; and once the database is back, so is the bot, by
itself. A log that was cut has lost commits that the disk had promised to keep. There the bot must go on from the
commits before the cut, which still verify, and no request may end with what is not so at the exchange.
"""

import os
import queue
import re
import resource
import shutil
import sqlite3
import struct
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from random import Random
from typing import Final, Self

from postgresql import Postgresql
from sqlalchemy import Connection, create_engine, select, text
from sqlalchemy.exc import DBAPIError

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.schema import cancel_requests
from bot.database.verification import verify
from bot.domain.audit import Action
from bot.domain.cancel_request import State
from bot.domain.errors import StoreError
from bot.domain.event_filter import Filter
from bot.playground.demo import DESK, BotProcess
from bot.playground.slack_records import Answer, Message, Person
from bot.slack import messages
from faults.figures import Figures, Ground
from faults.judge import ANSWERS, MAX_EVENTS, judge
from faults.stand import APPROVERS, REQUESTERS, Asked, Pressed, Stand, stand

REQUESTS: Final = 150
"""So many at the least must have been recorded."""
HELD_S: Final = 3.0
"""How long the database is away each time."""
CUT_EVERY_S: Final = 0.3
ASK_EVERY_S: Final = 0.3
ASKERS_EACH: Final = 2
DECIDE_WITHIN_S: Final = 1.0
BACKLOG: Final = 12
"""Requests to be decided when a fault strikes, so that clicks meet it as well as commands."""
LOOK_EVERY_S: Final = 0.1
RECOVERS_WITHIN_S: Final = 10.0
CLICK_COMES_OUT_WITHIN_S: Final = 60.0
DRAINS_WITHIN_S: Final = 120.0
MAX_LINES_PER_S: Final = 20.0
"""In one bot's log, beside the line that each command and click gets that could not be written down."""
MAX_CPU_SHARE: Final = 0.8
MAX_TURNS: Final = 10_000
DEADLOCKS: Final = 3
SLOT_ROUNDS: Final = 10
BOT: Final = "upbit-cancel-bot"

DISK_BYTES: Final = 32 * 1024 * 1024
WAL_HEADER_BYTES: Final = 32
WAL_FRAME_BYTES: Final = 24 + 4096
ORDERS_A_ROUND: Final = 8

RECORDED: Final = re.compile(r"Request #(\d+) is recorded; reading the order…")
PROVOKED: Final = ("not recorded: ", "in doubt: ", "could not be told", "too many people to tell")
"""Lines of the log that answer one command or click each."""


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="database away", database=ground.kind)
    if ground.kind == "postgresql":
        _on_postgresql(ground, figures)
    else:
        _on_sqlite(ground, figures)
    return figures


def _on_postgresql(ground: Ground, figures: Figures) -> None:
    server = Postgresql()
    try:
        server.configure(deadlock_timeout="300ms")
        with stand(replace(ground, new_database=server.create), replicas=2) as here:
            _storm(ground, figures, here, _PostgresqlFaults(server, here, figures).all())
    finally:
        server.stop()


def _on_sqlite(ground: Ground, figures: Figures) -> None:
    with _Disk(ground.folder / "disk") as disk:
        if not disk.is_small:
            figures.note = "no file system could be mounted here: the full disk was a limit on the size of files; "
        urls = (f"sqlite:///{disk.folder / name}.db" for name in ("stormy", "torn"))
        ground = replace(ground, new_database=lambda: next(urls))
        with stand(ground) as here:
            _storm(ground, figures, here, _SqliteFaults(disk, here).all())
        with stand(ground) as here:
            _TornLog(ground, figures, here, disk).play()


# --- People at work while faults strike -----------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Fault:
    """`play` lets the database be away and has brought it back when it returns."""

    name: str
    play: Callable[[], None]
    is_unready: bool = False  #: nothing can be read either, and `/readyz` must say so


def _storm(ground: Ground, figures: Figures, here: Stand, faults: list[_Fault]) -> None:
    """Let the first of the faults and as many others as the scale wants strike, one by one, and judge."""
    dice = Random(ground.seed)
    first, *others = faults
    dice.shuffle(others)
    people = _People(here, figures)
    with _Watch(here) as watch, people.at_work():
        weather = _Weather(here, figures, people, watch)
        for fault in [first, *others][: ground.some(len(faults), at_least=2)]:
            here.until(lambda: people.undecided >= BACKLOG, timeout_s=RECOVERS_WITHIN_S)
            weather.strike(fault)
        wanted = ground.some(REQUESTS)
        here.until(lambda: len(here.asked) >= wanted, timeout_s=60)
    figures.expect(len(here.asked) >= wanted, f"only {len(here.asked)} of {wanted} requests were recorded")
    if not here.until(lambda: people.decide_what_is_left() and here.is_at_rest(), timeout_s=DRAINS_WITHIN_S):
        figures.faulty.append(
            f"not at rest {DRAINS_WITHIN_S:.0f} s after the last fault: {Counter(here.states().values())}"
        )
    people.judge()
    judge(here, figures)
    figures.faulty.extend(
        f"the bot complains: {line}" for line in here.complaints() if not any(known in line for known in PROVOKED)
    )
    figures.note += weather.note()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Click:
    """One press of a button, and what its person was told of it: that it failed, or nothing."""

    request_id: int
    person: Person
    told: str | None


class _People:
    """Requesters who go on asking and approvers who each decide one request after the other."""

    def __init__(self, here: Stand, figures: Figures) -> None:
        self.answers: list[tuple[float, Answer]] = []
        self.told_nothing_was_done = 0
        self._here = here
        self._figures = figures
        self._undone: list[str] = []
        self._clicks: list[_Click] = []
        self._undecided: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._enough = threading.Event()

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Requesters ask and approvers decide until the end of the block."""
        with ThreadPoolExecutor() as people:
            work = [people.submit(self._ask_on, who) for who in REQUESTERS for _ in range(ASKERS_EACH)]
            work += [people.submit(self._decide_on, who) for who in APPROVERS]
            try:
                yield
            finally:
                self._enough.set()
            for each in work:
                each.result()

    def ask(self, who: Person) -> bool:
        """Ask for a new order to be canceled; whether it was recorded."""
        uuid = self._here.exchange.place()
        answer = self._here.slack.command(who.id, DESK, uuid)
        self._note(answer, f"{who.name}'s command")
        recorded = RECORDED.fullmatch(answer.text)
        if recorded is not None:
            request_id = int(recorded[1])
            self._here.asked[request_id] = Asked(id=request_id, uuid=uuid, requester=who)
            self._undecided.put(request_id)
        elif answer.text == messages.nothing_was_done():
            self._undone.append(uuid)
        elif answer.ok and answer.text != messages.in_doubt():
            self._figures.faulty.append(f"{who.name}'s command was answered with {answer.text!r}")
        return recorded is not None

    @property
    def undecided(self) -> int:
        return self._undecided.qsize()

    def decide_what_is_left(self) -> bool:
        """Approve what nobody came to, or nobody could be told of; whether nothing was left."""
        left = self._here.ids_in(State.PENDING)
        for request_id in left:
            card = self._card(request_id)
            if card is not None and card.buttons:
                self._decide(APPROVERS[0], request_id, card, "approve")
        return not left

    def judge(self) -> None:
        """What people were told of a failure must be so."""
        self.told_nothing_was_done = len(self._undone) + sum(
            click.told == messages.nothing_was_done() for click in self._clicks
        )
        with self._here.database.read() as connection:
            written = set(connection.execute(select(cancel_requests.c.order_uuid)).scalars())
        for uuid in written & set(self._undone):
            self._figures.wrong.append(f"who asked for {uuid} was told that nothing was done, and it is written down")
        events = AuditLog(self._here.database).list(Filter(), limit=MAX_EVENTS)
        known = {*ANSWERS.values(), Action.APPROVAL_REFUSED.value}
        counted = Counter((event["request_id"], event["actor"]) for event in events if event["action"] in known)
        for pair in {(click.request_id, click.person.id) for click in self._clicks}:
            clicks = [click for click in self._clicks if (click.request_id, click.person.id) == pair]
            possible = sum(click.told != messages.nothing_was_done() for click in clicks)
            if counted[pair] > possible:
                self._figures.wrong.append(
                    f"{pair[1]} was told that a click on request {pair[0]} did nothing, and it did"
                )

    def _ask_on(self, who: Person) -> None:
        for _ in range(MAX_TURNS):
            self.ask(who)
            if self._enough.wait(ASK_EVERY_S):
                return

    def _decide_on(self, who: Person) -> None:
        dice = Random(who.id)
        while not self._enough.is_set():
            try:
                request_id = self._undecided.get(timeout=LOOK_EVERY_S)
            except queue.Empty:
                continue
            card = self._card(request_id)
            if card is None:
                self._undecided.put(request_id)
                self._enough.wait(LOOK_EVERY_S)
            elif card.buttons:
                self._enough.wait(dice.uniform(0, DECIDE_WITHIN_S))
                self._decide(who, request_id, card, "deny" if dice.random() < 0.1 else "approve")

    def _card(self, request_id: int) -> Message | None:
        with suppress(StoreError):
            return self._here.card_of(request_id)
        return None

    def _decide(self, who: Person, request_id: int, card: Message, action_id: str) -> None:
        """Press, and wait for what comes of it; one who reads that nothing was done leaves it to the next."""
        slack = self._here.slack
        lines_before = len(self._bad_news(who))
        answer = slack.click(who.id, card, action_id, value=str(request_id))
        self._note(answer, f"{who.name}'s click on request {request_id}")

        def is_decided() -> bool:
            shown = slack.message(card.channel, card.ts)
            return shown is not None and not shown.buttons

        has_come_out = self._here.until(
            lambda: len(self._bad_news(who)) > lines_before or is_decided(), timeout_s=CLICK_COMES_OUT_WITHIN_S
        )
        news = self._bad_news(who)[lines_before:]
        told = news[-1] if news else None
        if not has_come_out and answer.status != "operation_timeout":
            self._figures.lost.append(f"{who.name} clicked on request {request_id}, and neither card nor line tells")
        self._clicks.append(_Click(request_id=request_id, person=who, told=told))
        if answer.ok and told is None:
            self._here.pressed.append(Pressed(request_id=request_id, person=who, action_id=action_id))
        elif not is_decided():
            self._undecided.put(request_id)

    def _bad_news(self, who: Person) -> list[str]:
        sentences = {messages.nothing_was_done(), messages.in_doubt()}
        return [line.text for line in self._here.slack.ephemerals(who.id) if line.text in sentences]

    def _note(self, answer: Answer, what: str) -> None:
        self.answers.append((time.monotonic(), answer))
        is_honest = answer.ok or answer.http_status == HTTPStatus.SERVICE_UNAVAILABLE
        if not is_honest and answer.status != "operation_timeout":
            self._figures.faulty.append(f"{what} was answered with {answer.status} {answer.http_status}: {answer.body}")


class _Watch:
    """Asks every bot again and again whether it is ready. Use it as a context manager."""

    def __init__(self, here: Stand) -> None:
        self._bots = here.bots
        self._seen: list[tuple[float, int, int | None]] = []
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def said(self, replica: int, *, since: float) -> set[int | None]:
        """The statuses that were answered."""
        return {status for at, each, status in list(self._seen) if each == replica and at >= since}

    def _look_on(self) -> None:
        for _ in range(MAX_TURNS):
            for replica, bot in enumerate(self._bots):
                answered = bot.get("/readyz")
                self._seen.append((time.monotonic(), replica, answered[0] if answered else None))
            if self._enough.wait(LOOK_EVERY_S):
                return


@dataclass(frozen=True, kw_only=True, slots=True)
class _Meter:
    """What a bot has used so far."""

    at: float
    cpu_s: float
    log_bytes: int

    @classmethod
    def read(cls, bot: BotProcess) -> Self:
        return cls(at=time.monotonic(), cpu_s=_cpu_s(bot), log_bytes=bot.log_path.stat().st_size)


class _Weather:
    """Lets a fault strike and measures what the bots do meanwhile, and how soon they are back."""

    def __init__(self, here: Stand, figures: Figures, people: _People, watch: _Watch) -> None:
        self._here = here
        self._figures = figures
        self._people = people
        self._watch = watch
        self._away: list[tuple[float, float, str]] = []
        self._lines_per_s = 0.0
        self._cpu_share = 0.0
        self._back_after_s = 0.0

    def strike(self, fault: _Fault) -> None:
        self._figures.faults[fault.name] += 1
        before = [_Meter.read(bot) for bot in self._here.bots]
        began = time.monotonic()
        fault.play()
        ended = time.monotonic()
        self._away.append((began, ended, fault.name))
        for replica, (bot, meter) in enumerate(zip(self._here.bots, before, strict=True)):
            self._measure(fault, bot, meter)
            if fault.is_unready and 503 not in self._watch.said(replica, since=began):
                self._figures.faulty.append(f"{fault.name}: replica {replica} never said that it is not ready")
        self._recover(fault, ended)

    def note(self) -> str:
        answers = self._people.answers
        late = Counter(self._fault_at(at, answer) for at, answer in answers if answer.status == "operation_timeout")
        slowest_s = max(answer.took_s for _, answer in answers)
        return (
            f"told {self._people.told_nothing_was_done} times that nothing was done; "
            f"{late.total()} of {len(answers):,} answers later than 3 s"
            f"{' ' + str(dict(late)) if late else ''}, the slowest {slowest_s:.1f} s; "
            f"at most {self._lines_per_s:.1f} log lines/s and {self._cpu_share:.0%} of a core while away; "
            f"back within {self._back_after_s:.1f} s"
        )

    def _measure(self, fault: _Fault, bot: BotProcess, before: _Meter) -> None:
        now = _Meter.read(bot)
        with bot.log_path.open("rb") as log:
            log.seek(before.log_bytes)
            printed = log.read().decode().splitlines()
        lines = [line for line in printed if not any(words in line for words in PROVOKED)]
        lines_per_s = len(lines) / (now.at - before.at)
        cpu_share = (now.cpu_s - before.cpu_s) / (now.at - before.at)
        self._lines_per_s, self._cpu_share = max(self._lines_per_s, lines_per_s), max(self._cpu_share, cpu_share)
        if lines_per_s >= MAX_LINES_PER_S:
            self._figures.faulty.append(f"{fault.name}: {lines_per_s:.0f} log lines/s, such as {lines[-1]}")
        if cpu_share >= MAX_CPU_SHARE:
            self._figures.faulty.append(f"{fault.name}: a bot that has nothing to work with takes {cpu_share:.0%} CPU")

    def _recover(self, fault: _Fault, ended: float) -> None:
        """A new command is recorded and every bot says that it is ready, soon, and without a restart."""

        def is_back() -> bool:
            everybody = range(len(self._here.bots))
            return self._people.ask(REQUESTERS[0]) and all(
                200 in self._watch.said(replica, since=ended) for replica in everybody
            )

        is_in_time = self._here.until(is_back, timeout_s=RECOVERS_WITHIN_S)
        self._back_after_s = max(self._back_after_s, time.monotonic() - ended)
        if not is_in_time:
            self._figures.faulty.append(f"{fault.name}: not back within {RECOVERS_WITHIN_S:.0f} s")

    def _fault_at(self, at: float, answer: Answer) -> str:
        asked_at = at - answer.took_s
        return next((name for began, ended, name in self._away if asked_at < ended and at > began), "between")


def _cpu_s(bot: BotProcess) -> float:
    """What it and its children have computed so far."""
    assert bot._process is not None
    ticks = 0
    for each in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            words = each.read_text().rpartition(")")[2].split()
            if int(words[2]) == bot._process.pid:
                ticks += int(words[11]) + int(words[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _hold(seconds: float = HELD_S) -> None:
    threading.Event().wait(seconds)


# --- What goes wrong with PostgreSQL --------------------------------------------------------------------------------


class _PostgresqlFaults:
    def __init__(self, server: Postgresql, here: Stand, figures: Figures) -> None:
        self._server = server
        self._here = here
        self._figures = figures

    def all(self) -> list[_Fault]:
        crash = _Fault(name="server crashed", play=self._crash, is_unready=True)
        cut = _Fault(name="connections cut", play=self._cut)
        return [
            crash,
            *[crash] * 2,
            *[cut] * 2,
            _Fault(name="read-only", play=self._be_read_only),
            _Fault(name="head locked", play=lambda: self._lock("SELECT seq FROM audit_head FOR UPDATE")),
            _Fault(name="rows locked", play=lambda: self._lock("SELECT id FROM cancel_requests FOR UPDATE")),
            _Fault(name="table locked", play=lambda: self._lock("LOCK TABLE cancel_requests IN ACCESS EXCLUSIVE MODE")),
            _Fault(name="deadlocks", play=self._lock_crosswise),
            _Fault(name="no slots", play=self._take_slots, is_unready=True),
            _Fault(name="frozen", play=self._freeze),
        ]

    def _crash(self) -> None:
        self._server.crash()
        _hold()
        self._server.start()

    def _cut(self) -> None:
        for _ in range(round(HELD_S / CUT_EVERY_S)):
            self._server.terminate_backends(BOT)
            _hold(CUT_EVERY_S)

    def _be_read_only(self) -> None:
        self._server.configure(default_transaction_read_only="on")
        _hold()
        self._server.configure(default_transaction_read_only=None)

    def _freeze(self) -> None:
        with self._server.frozen():
            _hold()

    def _lock(self, statement: str) -> None:
        with self._session() as session:
            session.execute(text(statement))
            _hold()

    def _lock_crosswise(self) -> None:
        """Take the head before the rows, while transactions that have a row wait for the head."""
        before = self._deadlocks()
        for _ in range(10 * DEADLOCKS):
            with self._session() as session, suppress(DBAPIError):
                session.execute(text("SET LOCAL deadlock_timeout = '1min'"))  # so that the bot's is the one to be ended
                session.execute(text("SET LOCAL lock_timeout = '2s'"))
                session.execute(text("SELECT seq FROM audit_head FOR UPDATE"))
                self._await_waiters(session)
                session.execute(text("SELECT id FROM cancel_requests FOR UPDATE"))
            if self._deadlocks() - before >= DEADLOCKS:
                break
        ended = self._deadlocks() - before
        self._figures.faults["deadlocks"] += ended - 1
        self._figures.expect(ended, "no deadlock could be made")

    def _deadlocks(self) -> int:
        return sum(bot.log().count("DeadlockDetected") for bot in self._here.bots)

    def _await_waiters(self, session: Connection) -> None:
        waiting = text("SELECT count(*) FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'")
        self._here.until(lambda: session.execute(waiting).scalar_one(), timeout_s=HELD_S)

    def _take_slots(self) -> None:
        self._server.terminate_backends(BOT)  # has opened the connection that it uses below
        with ExitStack() as taken:
            for _ in range(SLOT_ROUNDS):
                with suppress(DBAPIError):
                    for _ in range(MAX_TURNS):
                        taken.enter_context(self._session())
                if not self._server.terminate_backends(BOT):
                    break
            _hold()

    @contextmanager
    def _session(self) -> Iterator[Connection]:
        """A transaction that none of the bot's time-outs ends; rolled back at the end."""
        engine = create_engine(self._here.database_url)
        try:
            with engine.connect() as connection:
                yield connection
        finally:
            engine.dispose()


# --- What goes wrong with SQLite ------------------------------------------------------------------------------------


class _Disk:
    """A folder on a file system so small that it can be filled, where one can be mounted. A context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.is_small = False

    def __enter__(self) -> Self:
        self.folder.mkdir()
        self.is_small = self._mount("-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs")
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_small:
            subprocess.run(["umount", "--lazy", self.folder], check=True)

    def set_read_only(self, *, read_only: bool) -> bool:
        """Whether it could be done: nobody may be writing, and it must be small."""
        return self.is_small and self._mount("-o", f"remount,{'ro' if read_only else 'rw'}")

    @contextmanager
    def full(self) -> Iterator[None]:
        filler = self.folder / "filler"
        try:
            with suppress(OSError), filler.open("wb", buffering=0) as file:
                for size in (65_536, 512):
                    with suppress(OSError):
                        for _ in range(DISK_BYTES // size + 1):
                            file.write(bytes(size))
            yield
        finally:
            filler.unlink()

    def _mount(self, *arguments: str) -> bool:
        try:
            return subprocess.run(["mount", *arguments, self.folder], capture_output=True, check=False).returncode == 0
        except FileNotFoundError:
            return False


class _SqliteFaults:
    def __init__(self, disk: _Disk, here: Stand) -> None:
        self._disk = disk
        self._here = here
        self._path = _path_of(here)

    def all(self) -> list[_Fault]:
        full = _Fault(name="disk full", play=self._fill)
        refusing = _Fault(name="no writes taken", play=self._refuse_writes)
        locked = _Fault(name="write lock held", play=self._hold_lock)
        return [
            full if self._disk.is_small else refusing,
            *[full] * 2 * self._disk.is_small,
            *[refusing] * 2,
            *[locked] * 3,
        ]

    def _fill(self) -> None:
        self._empty_log()
        with self._disk.full():
            _hold()

    def _refuse_writes(self) -> None:
        """Let no file of the bot's grow: any user may do that to an own process, unlike filling a disk."""
        self._empty_log()
        (bot,) = self._here.bots
        # Its own log must still fit.
        limit = bot.log_path.stat().st_size + 200_000
        with _size_limited(bot, limit):
            _hold()

    def _hold_lock(self) -> None:
        with self._opened() as other:
            other.execute("BEGIN IMMEDIATE")
            _hold()
            other.execute("ROLLBACK")

    def _empty_log(self) -> None:
        """Into what the write-ahead log has been before, SQLite could go on writing."""
        with self._opened() as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(self._path, timeout=5, isolation_level=None)) as connection:
            yield connection


@contextmanager
def _size_limited(bot: BotProcess, limit_bytes: int) -> Iterator[None]:
    """No file that this bot writes grows over so many bytes."""
    assert bot._process is not None
    group = bot._process.pid
    pids = [int(each.name) for each in Path("/proc").glob("[0-9]*") if _group_of(int(each.name)) == group]
    before = {pid: resource.prlimit(pid, resource.RLIMIT_FSIZE) for pid in pids}
    try:
        for pid, (_, hard) in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (limit_bytes, hard))
        yield
    finally:
        for pid, limits in before.items():
            resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)


def _group_of(pid: int) -> int | None:
    with suppress(OSError):
        return os.getpgid(pid)
    return None


def _path_of(here: Stand) -> Path:
    return Path(here.database_url.removeprefix("sqlite:///"))


# --- A write-ahead log that lost its end ----------------------------------------------------------------------------


class _TornLog:
    """Kills the bot under load, cuts off the end of the log, and lets it go on, several times."""

    def __init__(self, ground: Ground, figures: Figures, here: Stand, disk: _Disk) -> None:
        self._rounds = ground.some(6)
        self._folder = ground.folder
        self._figures = figures
        self._here = here
        self._disk = disk
        self._dice = Random(ground.seed)
        self._path = _path_of(here)
        self._announced: set[object] = set()
        self._lost_events = 0

    def play(self) -> None:
        for number in range(self._rounds):
            self._work_until_killed()
            self._cut(self._folder / f"round-{number}")
            if number == 0:
                self._start_on_read_only_disk()
            self._here.run_out_leases()
            self._here.restart()
        if not self._here.until(lambda: self._press_again() and self._here.is_at_rest(), timeout_s=DRAINS_WITHIN_S):
            self._figures.faulty.append(f"torn log: never at rest: {Counter(self._here.states().values())}")
        self._judge()
        self._figures.note += f"; {self._lost_events} events were cut off with the log"

    def _work_until_killed(self) -> None:
        with ThreadPoolExecutor(ORDERS_A_ROUND) as people:
            orders = [self._here.exchange.place() for _ in range(ORDERS_A_ROUND)]
            asked = [each for each in people.map(self._here.ask, orders) if each is not None]
            self._here.until(lambda: all(self._here.card_of(each.id) for each in asked), timeout_s=20)
            for each in asked:
                people.submit(self._here.press, each.id, self._dice.choice(APPROVERS))
            _hold(self._dice.uniform(0.05, 1.0))
            self._here.kill()

    def _press_again(self) -> bool:
        """What people pressed may not have been taken, or be lost with the log: they see a card that still asks."""
        for request_id in self._here.ids_in(State.PENDING):
            if self._here.card_of(request_id) is not None:
                self._here.press(request_id, self._dice.choice(APPROVERS))
        return True

    def _cut(self, kept: Path) -> None:
        """Cut somewhere between what the main file holds already and the last commit."""
        kept.mkdir()
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(f"{self._path}{suffix}", kept / f"whole.db{suffix}")
        index = (kept / "whole.db-shm").read_bytes()
        (last_frame,) = struct.unpack_from("=I", index, 16)
        copied_frames = max(struct.unpack_from("=I", index, 96) + struct.unpack_from("=I", index, 128))
        first, last = (WAL_HEADER_BYTES + frames * WAL_FRAME_BYTES for frames in (copied_frames, last_frame))
        cut_at = self._dice.randint(min(first, last), last)
        # The last one to close the database would empty the log: so it is closed first and then put back.
        self._here.database.close()
        for suffix in ("-wal", "-shm"):
            self._path.with_name(self._path.name + suffix).unlink(missing_ok=True)
            (kept / "whole.db-shm").unlink(missing_ok=True)
        shutil.copy(kept / "whole.db", self._path)
        shutil.copy(kept / "whole.db", kept / "cut.db")
        log = (kept / "whole.db-wal").read_bytes()[:cut_at]
        for place in (self._path, kept / "cut.db"):
            place.with_name(place.name + "-wal").write_bytes(log)
        self._figures.faults["log cut"] += 1
        self._compare(kept, cut_at)

    def _compare(self, kept: Path, cut_at: int) -> None:
        """What is left must be sound, and as it was some commits ago."""
        whole, left = (_Reading.of(kept / name) for name in ("whole.db", "cut.db"))
        self._announced |= whole.nonces
        self._lost_events += len(whole.hashes) - len(left.hashes)
        at = f"torn log, cut at {cut_at}, {kept.name}"
        self._figures.expect(left.fault is None, f"{at}: {left.fault}")
        self._figures.expect(left.hashes == whole.hashes[: len(left.hashes)], f"{at}: the audit is another one")

    def _start_on_read_only_disk(self) -> None:
        if not self._disk.set_read_only(read_only=True):
            self._figures.note += "no disk could be made read-only here; "
            return
        self._figures.faults["start on a read-only disk"] += 1
        (bot,) = self._here.bots
        folder = self._folder / "read-only"
        folder.mkdir()
        with BotProcess(folder=folder, settings=bot._environment) as refused:
            has_ended = self._here.until(lambda: not refused.is_running(), timeout_s=20)
            self._figures.expect(has_ended, "the bot serves on a disk that takes no writes")
            self._figures.expect("Traceback" not in refused.log(), f"on a read-only disk: {refused.log()}")
            self._figures.expect("Read-only" in refused.log(), f"on a read-only disk: {refused.log()}")
        self._disk.set_read_only(read_only=False)

    def _judge(self) -> None:
        """What a request ended with is so at the exchange; DELETEs were announced before they left."""
        here, figures = self._here, self._figures
        reading = _Reading.of(self._path)
        figures.expect(reading.fault is None, f"torn log, at the end: {reading.fault}")
        announced = self._announced | reading.nonces
        for delete in here.exchange.deletes():
            if delete.verified and delete.nonce not in announced:
                figures.double.append(f"torn log: a DELETE of {delete.uuid} that no cancel.sent announced")
        allowed = {State.CANCELED: {"cancel"}, State.FILLED: {"done"}, State.FAILED: {"wait", "watch"}}
        with here.database.read() as connection:
            rows = connection.execute(select(cancel_requests)).all()
        figures.requests += len(rows)
        for row in rows:
            truth = here.exchange.order(row.order_uuid)["state"]
            if truth not in allowed.get(State(row.state), {truth}):
                figures.wrong.append(f"torn log: request {row.id} is {row.state}, and its order is {truth}")
        figures.faulty.extend(f"torn log: the bot complains: {line}" for line in here.complaints())


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reading:
    """A SQLite database as it is read once."""

    nonces: set[object]
    hashes: list[object]
    fault: str | None

    @classmethod
    def of(cls, path: Path) -> Self:
        database = Database(f"sqlite:///{path}")
        try:
            events = AuditLog(database).list(Filter(), limit=MAX_EVENTS, newest_first=False)
            with database.read() as connection:
                said = connection.execute(text("PRAGMA integrity_check")).scalar_one()
            fault = verify(database).fault or (None if said == "ok" else f"SQLite says {said}")
        finally:
            database.close()
        return cls(
            nonces={_nonce(event["details"]) for event in events if event["action"] == Action.CANCEL_SENT.value},
            hashes=[event["hash"] for event in events],
            fault=fault,
        )


def _nonce(details: object) -> object:
    assert isinstance(details, dict)
    return details["nonce"]
