"""Runs what is due: at once after a nudge, at its time, and after a crash.

One loop asks the database what is due, every second and whenever it is nudged, and hands the ids to threads. The
threads call the workflow, whose leases see to it that nobody works twice; so a job that is queued twice, or on two
replicas, does no harm. Waits shorter than the loop's interval are kept here as timers.

Python computes in one thread at a time, so whatever runs here makes people wait who wait for an answer. Lanes that are
patient let them go first, for a moment.
"""

import heapq
import logging
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, NamedTuple

from bot.domain.errors import StoreError

log = logging.getLogger(__name__)

INTERVAL_S: Final = 1.0
MAX_QUEUED: Final = 1000
"""Jobs waiting in one lane; what does not fit is found again by the loop."""
MAX_SHARE_OF_ASKING: Final = 0.2
"""Of the loop's time, what asking the database may take, however often it is nudged."""
PATIENCE_S: Final = 1.0
"""A patient job waits no longer than this, however many people come after each other."""
QUIET_S: Final = 0.03
"""So long after the last answer nobody else must have come: who waits for an answer often comes with others."""
LOOK_FOR_PEOPLE_EVERY_S: Final = 0.01
STALE_AFTER_S: Final = 10.0
"""A loop that has not come round for so long is not alive."""


class Job(NamedTuple):
    lane: str
    id: int


class Attention:
    """Counts the people who wait for an answer just now; true while there is one, and a moment longer."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._people = 0
        self._lasts_until = float("-inf")

    def __bool__(self) -> bool:
        return self._people > 0 or self._monotonic() < self._lasts_until

    @contextmanager
    def paid(self) -> Iterator[None]:
        """To one more of them, for the length of the block."""
        with self._lock:
            self._people += 1
        try:
            yield
        finally:
            with self._lock:
                self._people -= 1
                self._lasts_until = self._monotonic() + QUIET_S


@dataclass(frozen=True, kw_only=True, slots=True)
class Crew:
    """The threads of some lanes: what they run, and how many they are. Lanes share a crew that share a neighbour."""

    lanes: Mapping[str, Callable[[int], float | None]]
    threads: int
    patient: frozenset[str] = frozenset()  #: those of the lanes that let people go first


class Worker:
    """`find_due(limit)` gives what is due by the database's clock."""

    def __init__(
        self,
        *,
        crews: Iterable[Crew],
        find_due: Callable[[int], Iterable[Job]],
        attention: Attention | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._crews = tuple(crews)
        self._find_due = find_due
        self._monotonic = monotonic
        self._queues: dict[str, queue.Queue[Job | None]] = {}
        self._run: dict[str, Callable[[int], float | None]] = {}
        self._changed = threading.Condition()
        self._waiting: set[Job] = set()
        self._timers: list[tuple[float, Job]] = []
        self._attention = Attention() if attention is None else attention
        self._patient = frozenset(lane for crew in self._crews for lane in crew.patient)
        self._parked: dict[Job, float] = {}  # until when; the first one is the first to go
        self._let_pass: set[Job] = set()
        self._nudged = False
        self._stopping = False
        self._came_round_at = monotonic()
        self._put_off: Counter[str] = Counter()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the loop and the crews: in the process that serves, after any fork."""
        for number, crew in enumerate(self._crews):
            jobs: queue.Queue[Job | None] = queue.Queue(MAX_QUEUED)
            for lane, run in crew.lanes.items():
                self._queues[lane], self._run[lane] = jobs, run
            self._threads += [
                threading.Thread(target=self._work, args=(jobs,), name=f"crew-{number}-{index}", daemon=True)
                for index in range(crew.threads)
            ]
        self._came_round_at = self._monotonic()
        self._threads.append(threading.Thread(target=self._loop, name="due", daemon=True))
        for thread in self._threads:
            thread.start()

    def nudge(self, *jobs: Job) -> None:
        """Something is due: these jobs at once, and whatever else the database says."""
        with self._changed:
            looks_often = self._nudged and bool(self._parked)
            for job in jobs:
                self._enqueue(job)
            self._nudged = True
            if not looks_often:
                self._changed.notify_all()

    def is_alive(self) -> bool:
        """Whether every thread lives and the loop comes round."""
        came_round = self._monotonic() - self._came_round_at < STALE_AFTER_S
        return came_round and all(thread.is_alive() for thread in self._threads)

    def stop(self, *, timeout_s: float) -> bool:
        """Take nothing new, let the steps under way end; True if they did in time. Leases give back the rest."""
        deadline = self._monotonic() + timeout_s
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for crew_queue in set(self._queues.values()):
            _drain(crew_queue)
        for crew in self._crews:
            for _ in range(crew.threads):
                self._queues[next(iter(crew.lanes))].put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - self._monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def _enqueue(self, job: Job) -> None:
        if job in self._waiting or job in self._parked or self._stopping or self._parks(job):
            return
        try:
            self._queues[job.lane].put_nowait(job)
        except queue.Full:
            return
        self._waiting.add(job)

    def _loop(self) -> None:
        while not self._stopping:
            self._came_round_at = began_at = self._monotonic()
            try:
                due = list(self._find_due(MAX_QUEUED))
            except StoreError as error:
                log.warning("the database cannot be asked what is due: %s", error)
                due = []
            except Exception:
                log.exception("finding what is due failed")
                due = []
            asked_s = self._monotonic() - began_at
            self._tell_what_was_put_off()
            with self._changed:
                for job in due:
                    self._enqueue(job)
                self._wait(rest_s=min(INTERVAL_S, asked_s * (1 / MAX_SHARE_OF_ASKING - 1)))

    def _tell_what_was_put_off(self) -> None:
        """One line for each cause and round, however many jobs there are: the log must not fill the disk as well."""
        with self._changed:
            put_off, self._put_off = self._put_off, Counter()
        for cause, jobs in put_off.items():
            log.warning("put off: %s", cause, extra={"jobs": jobs})

    def _wait(self, *, rest_s: float) -> None:
        """Until the next round: a nudge, or the interval is over. Timers that ring in between are served.

        A nudge ends it after `rest_s` at the earliest.
        """
        now = self._monotonic()
        rest_ends_at, round_ends_at = now + rest_s, now + INTERVAL_S
        while not self._stopping:
            now = self._monotonic()
            while self._timers and self._timers[0][0] <= now:
                self._enqueue(heapq.heappop(self._timers)[1])
            self._unpark(now)
            # Asking the database gives way to people as well.
            is_in_the_way = self._nudged and bool(self._attention)
            ends_at = rest_ends_at if self._nudged and not is_in_the_way else round_ends_at
            if now >= ends_at:
                break
            next_at = min(ends_at, self._timers[0][0] if self._timers else ends_at)
            if self._parked or is_in_the_way:
                next_at = min(next_at, now + LOOK_FOR_PEOPLE_EVERY_S)
            self._changed.wait(max(0.0, next_at - now))
        self._nudged = False

    def _parks(self, job: Job) -> bool:
        """Whether the job waits, since people do; once it has waited for as long as it may, it goes."""
        if job in self._let_pass or job.lane not in self._patient or not self._attention:
            return False
        if len(self._parked) >= MAX_QUEUED:
            return False
        if not self._parked:
            self._changed.notify_all()
        self._parked[job] = self._monotonic() + PATIENCE_S
        return True

    def _unpark(self, now: float) -> None:
        while self._parked:
            job, until = next(iter(self._parked.items()))
            if self._attention and until > now:
                return
            del self._parked[job]
            self._let_pass.add(job)
            self._enqueue(job)
            if job not in self._waiting:  # the lane is full: the loop finds it again
                self._let_pass.discard(job)

    def _work(self, jobs: "queue.Queue[Job | None]") -> None:
        while (job := jobs.get()) is not None:
            with self._changed:
                self._waiting.discard(job)
                is_parked = self._parks(job)
                self._let_pass.discard(job)
            if self._stopping:
                return
            if not is_parked:
                self._do(job)

    def _do(self, job: Job) -> None:
        # After an error there is no nudge, so that nothing spins: the loop's next round finds the job again.
        try:
            due_in_s = self._run[job.lane](job.id)
        except StoreError as error:
            with self._changed:
                self._put_off[str(error)] += 1
                self._ring_in(INTERVAL_S, job)  # the workflow may still hold its lease, which hides it from the loop
        except Exception:
            log.exception("failed", extra={"lane": job.lane, "job": job.id})
        else:
            self._come_back(job, due_in_s)

    def _come_back(self, job: Job, due_in_s: float | None) -> None:
        """Keep the time of a short wait; and what the step has changed may have made another lane due."""
        with self._changed:
            if due_in_s is not None and due_in_s < INTERVAL_S:
                self._ring_in(due_in_s, job)
            self._nudged = True
            self._changed.notify_all()

    def _ring_in(self, seconds: float, job: Job) -> None:
        if len(self._timers) < MAX_QUEUED:
            heapq.heappush(self._timers, (self._monotonic() + seconds, job))


def _drain(jobs: "queue.Queue[Job | None]") -> None:
    try:
        while True:
            jobs.get_nowait()
    except queue.Empty:
        return
