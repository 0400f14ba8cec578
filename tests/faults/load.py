"""Load: an hour of a busy desk in four minutes, and a start with 10,000 open requests.

**The desk.** The database's clock goes fifteen times as fast; every quarter of a second somebody asks, and what is
asked for is approved, denied, filled meanwhile or left to expire. Everything must end as it should, each expiry in its
time, and neither the memory nor the open files nor the threads may grow.

**The start.** 10,000 requests are open, hundreds of them due at once: to be read, to be sent, to be looked at. The bot
must be ready within 5 s and stay below 200 MiB, no call may be banned by the exchange, and cancels that are approved
are not kept waiting by the rest. Once that is done, the orders of all the others are looked at again in their time,
within what the exchange allows in each second, and whoever approves meanwhile has the cancel sent at once.
"""

import json
import random
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Final

from sqlalchemy import insert, select

from bot.database.schema import cancel_requests
from bot.domain.cancel_request import State
from bot.domain.order import Order, dump_order
from bot.playground.demo import DESK, BotProcess
from bot.playground.exchange import Delete, Exchange, Request
from faults.faulty_bot import set_clock
from faults.figures import Figures, Ground
from faults.judge import judge
from faults.stand import APPROVERS, REQUESTERS, Stand, stand

MIB: Final = 2**20
DESK_S: Final = 240.0
"""Real seconds at scale 1: an hour of the database's."""
CLOCK_RATE: Final = 15.0
ASKED_EVERY_S: Final = 0.25
TTL_MINUTES: Final = 10
"""At scale 1."""
FATES: Final = ("approve",) * 7 + ("deny", "expire", "fill")
WARM_AFTER: Final = 0.3
"""Part of the time after which memory, files and threads are what they should stay."""
MAX_GROWTH_BYTES: Final = 30 * MIB
MAX_MORE_HANDLES: Final = 12
LATE_EXPIRY: Final = timedelta(seconds=10 * CLOCK_RATE)

OPEN_AT_START: Final = 10_000
READY_WITHIN_S: Final = 5.0
MAX_MEMORY_BYTES: Final = 200 * MIB
UPBIT_REQUESTS_PER_S: Final = 30
MAX_REFUSED_BY_RATE: Final = 0.1
"""Part of the calls that the exchange may answer with 429 while hundreds of cancels are due at once."""

REFRESH_S: Final = 30
"""At scale 1."""
SMALL_REFRESH_S: Final = 5
REFRESHED_WITHIN_S: Final = 15.0
"""Beside REFRESH_SECONDS, until each order has been looked at again: ten seconds of rests, and a busy machine."""
MEANWHILE: Final = 12
"""Cancels that are approved while the orders are looked at again."""
SENT_WITHIN_S: Final = 3.0
"""From the click to the DELETE's arrival."""
CARD_WITHIN_S: Final = 30.0
LIST: Final = "/v1/orders/uuids"


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="load", database=ground.kind)
    desk = _an_hour_at_the_desk(ground, figures)
    start = _a_start_with_much_to_do(ground, figures)
    figures.note = f"{desk}; {start}"
    return figures


# --- The desk -------------------------------------------------------------------------------------------------------


def _an_hour_at_the_desk(ground: Ground, figures: Figures) -> str:
    clock_file = ground.folder / "clock"
    set_clock(clock_file, rate=CLOCK_RATE)
    faults = json.dumps({"clock_file": str(clock_file), "clock_of": "database"})
    ttl_minutes = ground.some(TTL_MINUTES, at_least=2)
    with stand(ground, settings={"APPROVAL_TTL_MINUTES": str(ttl_minutes)}, faults={0: faults}) as here:
        desk = _Desk(here, random.Random(ground.seed))
        lasts_s = max(DESK_S * ground.scale, 5.0)
        desk.work(lasts_s=lasts_s * WARM_AFTER)
        warm = _Handles.of(here.bots[0])
        desk.work(lasts_s=lasts_s * (1 - WARM_AFTER))
        cold = _Handles.of(here.bots[0])
        figures.expect(
            here.drain(timeout_s=ttl_minutes * 60 / CLOCK_RATE + 60), f"the desk never came to rest\n{here.log_tail()}"
        )
        judge(here, figures)
        figures.faults.update(desk.done)
        _expect_expiries_in_time(here, figures)
        figures.expect(not here.complaints(), f"the bot complains: {here.complaints()[:3]}")
        figures.expect(
            cold.memory_bytes - warm.memory_bytes < MAX_GROWTH_BYTES,
            f"memory grew from {warm.memory_bytes / MIB:.0f} to {cold.memory_bytes / MIB:.0f} MiB",
        )
        figures.expect(
            cold.files - warm.files < MAX_MORE_HANDLES and cold.threads - warm.threads < MAX_MORE_HANDLES,
            f"open files grew from {warm.files} to {cold.files}, threads from {warm.threads} to {cold.threads}",
        )
        return f"desk: {len(here.asked)} asked, memory {warm.memory_bytes / MIB:.0f}→{cold.memory_bytes / MIB:.0f} MiB"


@dataclass(kw_only=True, slots=True)
class _Handles:
    """What a process holds."""

    memory_bytes: int
    files: int
    threads: int

    @classmethod
    def of(cls, bot: BotProcess) -> "_Handles":
        process = Path(f"/proc/{bot.serving_pid}")
        return cls(
            memory_bytes=bot.memory_bytes,
            files=sum(1 for _ in (process / "fd").iterdir()),
            threads=sum(1 for _ in (process / "task").iterdir()),
        )


@dataclass(slots=True)
class _Desk:
    """People who ask, and people who decide as fate has it."""

    here: Stand
    rng: random.Random
    fates: dict[int, str] = field(default_factory=dict)
    done: Counter[str] = field(default_factory=Counter)

    def work(self, *, lasts_s: float) -> None:
        pause = threading.Event()
        for tick in range(round(lasts_s / ASKED_EVERY_S)):
            began_at = time.monotonic()
            self._ask(tick)
            self._decide()
            pause.wait(max(0.0, ASKED_EVERY_S - (time.monotonic() - began_at)))

    def _ask(self, tick: int) -> None:
        asked = self.here.ask(self.here.exchange.place(), self.rng.choice(REQUESTERS), reason=f"reason {tick}")
        assert asked is not None, self.here.log_tail()
        self.fates[asked.id] = self.rng.choice(FATES)

    def _decide(self) -> None:
        for request_id in self.here.ids_in(State.PENDING):
            fate = self.fates.get(request_id)
            if fate in {None, "expire"} or self.here.card_of(request_id) is None:
                continue
            if fate == "fill":
                self.here.exchange.fill(self.here.asked[request_id].uuid)
            action_id = "deny" if fate == "deny" else "approve"
            if self.here.press(request_id, self.rng.choice(APPROVERS), action_id):
                del self.fates[request_id]
                self.done["filled meanwhile"] += fate == "fill"


def _expect_expiries_in_time(here: Stand, figures: Figures) -> None:
    table = cancel_requests.c
    with here.database.read() as connection:
        rows = connection.execute(
            select(table.id, table.expires_at, table.ended_at).where(table.state == State.EXPIRED.value)
        ).all()
    figures.expect(rows, "nothing expired")
    for row in rows:
        late = row.ended_at - row.expires_at
        figures.expect(timedelta(0) <= late <= LATE_EXPIRY, f"request {row.id} expired {late} after its time")


# --- The start ------------------------------------------------------------------------------------------------------


def _a_start_with_much_to_do(ground: Ground, figures: Figures) -> str:
    count = ground.some(OPEN_AT_START, at_least=300)
    to_read, to_send = count // 25, count // 50
    refresh_s = REFRESH_S if ground.scale >= 1 else SMALL_REFRESH_S
    settings = {"REFRESH_SECONDS": str(refresh_s)}
    with stand(ground, settings=settings, requests_per_s=UPBIT_REQUESTS_PER_S) as here:
        here.kill()
        _fill_with_open_requests(here, count=count, to_read=to_read, to_send=to_send)
        here.exchange.on_request = looks = _Looks()
        began_at = time.monotonic()
        here.restart()
        ready_s = time.monotonic() - began_at
        figures.expect(ready_s < READY_WITHIN_S, f"ready after {ready_s:.1f} s with {count} open requests")
        sent = here.exchange.wait_for(lambda exchange: len(_effective(exchange)) >= to_send, timeout_s=120)
        sent_s = time.monotonic() - began_at
        figures.expect(sent, f"only {len(_effective(here.exchange))} of {to_send} approved cancels left in 120 s")
        # With 30 calls a second some looks come late, so that people are called first; these must end as well.
        due = (State.REQUESTED, State.APPROVED, State.SENDING, State.ACCEPTED, State.UNRESOLVED)
        came_round = here.until(lambda: not here.ids_in(*due), timeout_s=120)
        figures.expect(came_round, f"{len(here.ids_in(*due))} requests are still waiting for the exchange")
        figures.requests += count
        canceled = len(here.ids_in(State.CANCELED))
        figures.expect(canceled == to_send, f"{canceled} of {to_send} approved cancels are canceled")
        figures.expect(len(_effective(here.exchange)) == to_send, "more cancels took effect than were approved")
        _expect_restraint(here, figures)
        refreshed = _expect_refresh(here, figures, looks, within_s=refresh_s + REFRESHED_WITHIN_S)
        memory_bytes = here.bots[0].memory_bytes
        figures.expect(memory_bytes < MAX_MEMORY_BYTES, f"{memory_bytes / MIB:.0f} MiB with {count} open requests")
        figures.expect(not here.complaints(), f"the bot complains: {here.complaints()[:3]}")
        sent_in = f"{to_send} sent in {sent_s:.0f} s"
        return f"start: ready {ready_s:.1f} s, {sent_in}, {refreshed}, {memory_bytes / MIB:.0f} MiB"


@dataclass(slots=True)
class _Looks:
    """Notes of each request to the exchange when it came, and of each order when a list was asked for it."""

    in_second: Counter[int] = field(default_factory=Counter)
    listed_at: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self, request: Request) -> None:
        with self._lock:
            self.in_second[int(request.at)] += 1
            for uuid in request.uuids if request.path == LIST else ():
                self.listed_at[uuid].append(request.at)

    def seen_since(self, since: float) -> int:
        """How many orders have been asked for in a list since then."""
        with self._lock:
            return sum(times[-1] >= since for times in self.listed_at.values())

    def most_in_a_second(self, *, since: float) -> int:
        with self._lock:
            return max((calls for second, calls in self.in_second.items() if second > since), default=0)

    def longest_gap_s(self) -> float:
        """Between two looks at one order."""
        with self._lock:
            gaps_s = (later - earlier for times in self.listed_at.values() for earlier, later in pairwise(times))
            return max(gaps_s, default=0.0)


def _expect_refresh(here: Stand, figures: Figures, looks: _Looks, *, within_s: float) -> str:
    """Each pending order is looked at again in time and within the exchange's limit; cancels do not wait for that."""
    since, answers = time.time(), here.exchange.statuses()
    pending = len(here.ids_in(State.PENDING))
    with ThreadPoolExecutor(1) as people:
        meanwhile = people.submit(_cancel_meanwhile, here, figures)
        in_time = here.until(lambda: looks.seen_since(since) >= pending, timeout_s=within_s)
        took_s = time.time() - since
        waits_s = meanwhile.result()
    figures.expect(
        in_time, f"{looks.seen_since(since)} of {pending} pending orders were looked at again in {within_s:.0f} s"
    )
    refused = here.exchange.statuses() - answers
    figures.expect(not refused[429] and not refused[418], f"the refresh asked for too much: {dict(refused)}")
    most = looks.most_in_a_second(since=since)
    figures.expect(most <= UPBIT_REQUESTS_PER_S, f"{most} requests in one second")
    slowest_s = max(waits_s, default=0.0)
    figures.expect(
        len(waits_s) == MEANWHILE and slowest_s < SENT_WITHIN_S,
        f"{len(waits_s)} of {MEANWHILE} cancels left while orders were looked at, the slowest after {slowest_s:.1f} s",
    )
    figures.faults["approved during a refresh"] += len(waits_s)
    return (
        f"all {pending:,} looked at again in {took_s:.0f} s, {looks.longest_gap_s():.0f} s apart, {most}/s at most, "
        f"cancels meanwhile after {median(waits_s or [0]):.2f} s, at most {slowest_s:.2f} s"
    )


def _cancel_meanwhile(here: Stand, figures: Figures) -> list[float]:
    """One after the other; how long each DELETE took to arrive after the click."""
    waits_s = []
    for number in range(MEANWHILE):
        uuid = here.exchange.place()
        asked = here.ask(uuid, REQUESTERS[1], reason=f"meanwhile {number}")
        if asked is None or not here.until(partial(here.card_of, asked.id), timeout_s=CARD_WITHIN_S):
            figures.lost.append(f"there is no card for order {uuid}, asked for during a refresh")
            continue
        clicked_at = time.time()
        here.press(asked.id, APPROVERS[number % len(APPROVERS)])
        if here.until(partial(here.exchange.deletes, uuid), timeout_s=CARD_WITHIN_S):
            waits_s.append(here.exchange.deletes(uuid)[0].at - clicked_at)
    return waits_s


def _effective(exchange: Exchange) -> list[Delete]:
    return [each for each in exchange.deletes() if each.effective]


def _expect_restraint(here: Stand, figures: Figures) -> None:
    """The exchange bans who goes on asking after it has said that it is too much."""
    answers = here.exchange.statuses()
    figures.faults["refused by the rate limit"] += answers[429]
    figures.expect(not answers[418], f"the exchange banned the bot: {dict(answers)}")
    figures.expect(
        answers[429] <= MAX_REFUSED_BY_RATE * answers.total(), f"too many calls for the rate limit: {dict(answers)}"
    )


def _fill_with_open_requests(here: Stand, *, count: int, to_read: int, to_send: int) -> None:
    """Rows as the bot would have left them; most wait for a decision, the rest is due now."""
    with here.database.write() as connection:
        now = here.database.now(connection)
        rows: list[dict[str, Any]] = []
        for number in range(count):
            is_due = number < to_read + to_send
            order_uuid = here.exchange.place()
            state = State.REQUESTED if number < to_read else State.APPROVED if is_due else State.PENDING
            order = None if state is State.REQUESTED else dump_order(Order.from_json(here.exchange.order(order_uuid)))
            rows.append(
                {
                    "order_uuid": order_uuid,
                    "state": state.value,
                    "requester_id": REQUESTERS[0].id,
                    "requester_name": REQUESTERS[0].name,
                    "reason": "",
                    "team_id": here.slack.installation.team_id,
                    "channel_id": DESK,
                    "trigger_id": f"trigger-{number}",
                    "created_at": now,
                    "opened_at": now,
                    "order": order,
                    "order_now": order,
                    "looked_at": now,
                    "refresh_at": now,
                    "expires_at": now + timedelta(hours=1),
                    "approved_at": now if state is State.APPROVED else None,
                    "send_before": now + timedelta(minutes=10) if state is State.APPROVED else None,
                    "next_attempt_at": now if is_due else now + timedelta(hours=1),
                    "approvers": ",".join(person.id for person in APPROVERS),
                }
            )
        connection.execute(insert(cancel_requests), rows)
