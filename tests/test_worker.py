"""The worker with real threads: every wait is for something that happens, never for time to pass."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

import pytest

from bot.domain.errors import NothingDone
from bot.worker import INTERVAL_S, MAX_QUEUED, PATIENCE_S, QUIET_S, STALE_AFTER_S, Attention, Crew, Job, Worker

SOON_S = 5.0
"""Long enough that only a fault makes a wait run out."""

FAST, SLOW = "fast", "slow"
ONE = Job(FAST, 1)


class Gate:
    """A place where a step stands until it is let through."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def pass_through(self) -> None:
        self.reached.set()
        assert self.opened.wait(SOON_S)


class Steps:
    """What a lane runs: counts the runs of each id, and does what the test wants done."""

    def __init__(self, do: Callable[[int], float | None] = lambda _: None) -> None:
        self.do = do
        self.runs: Counter[int] = Counter()
        self._changed = threading.Condition()

    def __call__(self, job_id: int) -> float | None:
        with self._changed:
            self.runs[job_id] += 1
            self._changed.notify_all()
        return self.do(job_id)

    def wait_for(self, job_id: int, runs: int = 1) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.runs[job_id] >= runs, SOON_S), self.runs

    def wait_for_total(self, runs: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: self.runs.total() >= runs, SOON_S), self.runs.total()


class Due:
    """What the database says is due, and how often it was asked."""

    def __init__(self, answer: Callable[[], Iterable[Job]] = tuple) -> None:
        self.answer = answer
        self.rounds = 0
        self.limits: set[int] = set()
        self._changed = threading.Condition()

    def __call__(self, limit: int) -> Iterable[Job]:
        with self._changed:
            self.rounds += 1
            self.limits.add(limit)
            self._changed.notify_all()
        return self.answer()

    def wait_for_rounds(self, more: int) -> None:
        with self._changed:
            wanted = self.rounds + more
            assert self._changed.wait_for(lambda: self.rounds >= wanted, SOON_S)


class Clock:
    """Time that moves when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Works:
    """Workers that are stopped when the test is over."""

    def __init__(self) -> None:
        self._started: list[Worker] = []

    def start(
        self,
        fast: Steps,
        slow: Steps | None = None,
        *,
        due: Due | None = None,
        clock: Clock | None = None,
        threads: int = 1,
    ) -> Worker:
        crews = [Crew(lanes={FAST: fast}, threads=threads)]
        if slow is not None:
            crews.append(Crew(lanes={SLOW: slow}, threads=threads))
        find_due = due or Due()
        worker = (
            Worker(crews=crews, find_due=find_due, monotonic=clock) if clock else Worker(crews=crews, find_due=find_due)
        )
        worker.start()
        self._started.append(worker)
        return worker

    def stop(self) -> None:
        for worker in self._started:
            worker.stop(timeout_s=SOON_S)


@pytest.fixture
def works() -> Iterator[Works]:
    started = Works()
    yield started
    started.stop()


# What gets done


def test_a_nudge_runs_the_job_at_once(works: Works) -> None:
    """Between the click and the cancel there is no interval to wait for."""
    steps, clock = Steps(), Clock()
    worker = works.start(steps, clock=clock)

    worker.nudge(ONE)

    steps.wait_for(1)  # by this clock no time has passed at all


def test_what_is_due_is_found_without_a_nudge(works: Works) -> None:
    """After a crash nobody nudges: the database alone knows what was acknowledged."""
    steps = Steps()

    works.start(steps, due=Due(lambda: [ONE]))

    steps.wait_for(1)


def test_the_database_is_asked_for_no_more_than_fits(works: Works) -> None:
    """A backlog of a day must not be read into memory at once."""
    due = Due()
    worker = works.start(Steps(), due=due)

    worker.nudge()
    due.wait_for_rounds(1)

    assert due.limits == {MAX_QUEUED}


def test_a_nudge_without_a_job_asks_the_database(works: Works) -> None:
    """A refused click owes somebody a line, whose id the listener does not know."""
    clock, found = Clock(), threading.Event()
    steps = Steps()
    worker = works.start(steps, due=Due(lambda: [ONE] if found.is_set() else []), clock=clock)

    found.set()
    worker.nudge()

    steps.wait_for(1)


def test_asking_takes_a_small_part_of_the_time_however_many_nudge(works: Works) -> None:
    """With hundreds of requests due, asking after each step would cost more than the steps."""
    clock = Clock()

    def ask() -> list[Job]:
        clock.now += 0.1
        return []

    steps, due = Steps(), Due(ask)
    worker = works.start(steps, due=due, clock=clock)
    due.wait_for_rounds(1 - due.rounds)

    for job_id in range(100):
        worker.nudge(Job(FAST, job_id))
        steps.wait_for(job_id)
    assert due.rounds == 1
    clock.now += 0.5
    worker.nudge()

    due.wait_for_rounds(1)


def test_what_a_step_made_due_elsewhere_is_found_at_once(works: Works) -> None:
    """The cancel's lane changes the row, and the card is redrawn by another lane that nobody nudges."""
    clock, changed = Clock(), threading.Event()

    def change(_: int) -> None:
        changed.set()

    fast, slow = Steps(change), Steps()
    worker = works.start(fast, slow, due=Due(lambda: [Job(SLOW, 1)] if changed.is_set() else []), clock=clock)

    worker.nudge(ONE)

    slow.wait_for(1)


def test_a_short_wait_is_a_timer(works: Works) -> None:
    """The first look at the order comes after 0.1 s, not after the loop's whole second."""
    clock = Clock()
    waits = iter([0.4])
    steps, due = Steps(lambda _: next(waits, None)), Due()
    worker = works.start(steps, due=due, clock=clock)
    worker.nudge(ONE, Job(FAST, 2))
    steps.wait_for(2)  # the only thread has set the timer of the first by then

    clock.now += 0.3
    worker.nudge()
    due.wait_for_rounds(1)
    assert steps.runs[1] == 1
    clock.now += 0.2
    worker.nudge()

    steps.wait_for(1, runs=2)


def test_a_short_wait_rings_by_itself(works: Works) -> None:
    """With the real clock: nobody but the timer asks for the second run."""
    waits = iter([0.05])
    steps = Steps(lambda _: next(waits, None))
    worker = works.start(steps)

    worker.nudge(ONE)

    steps.wait_for(1, runs=2)


def test_a_long_wait_is_left_to_the_database(works: Works) -> None:
    """A card that expires in half an hour needs no memory of this process, which may be gone by then."""
    clock = Clock()
    steps, due = Steps(lambda _: INTERVAL_S), Due()
    worker = works.start(steps, due=due, clock=clock)
    worker.nudge(ONE, Job(FAST, 2))
    steps.wait_for(2)

    clock.now += 10 * INTERVAL_S
    for _ in range(3):
        worker.nudge()
        due.wait_for_rounds(1)
    worker.nudge(Job(FAST, 3))
    steps.wait_for(3)

    assert steps.runs[1] == 1


# What goes wrong


@pytest.mark.parametrize("error", [NothingDone("the disk is full"), RuntimeError("a bug")])
def test_a_job_that_fails_does_not_spin(works: Works, error: Exception) -> None:
    """A full disk must not be met with a thousand tries a second: the loop's next round is soon enough."""
    clock = Clock()

    def fail(_: int) -> None:
        raise error

    steps, due = Steps(fail), Due(lambda: [ONE])
    worker = works.start(steps, due=due, clock=clock)
    steps.wait_for(1)

    for _ in range(5):
        worker.nudge()
        due.wait_for_rounds(1)

    # Each round may queue it once more; nothing else does.
    assert steps.runs[1] <= due.rounds
    assert due.rounds <= 7
    assert worker.is_alive()


def test_a_job_that_failed_is_tried_in_the_next_round(works: Works) -> None:
    """The database comes back, and what it held must not wait for a restart."""
    failures = iter([NothingDone("locked")])

    def fail_once(_: int) -> None:
        for failure in failures:
            raise failure

    steps = Steps(fail_once)
    works.start(steps, due=Due(lambda: [ONE]))

    steps.wait_for(1, runs=2)


@pytest.mark.parametrize("error", [NothingDone("the database is away"), RuntimeError("a bug")])
def test_the_loop_outlives_a_database_that_cannot_be_asked(works: Works, error: Exception) -> None:
    """One failed question must not end the only thread that finds what is due."""
    failures = iter([error])

    def answer() -> Iterable[Job]:
        for failure in failures:
            raise failure
        return [ONE]

    steps, due = Steps(), Due(answer)
    worker = works.start(steps, due=due)
    worker.nudge()

    steps.wait_for(1)
    assert worker.is_alive()


def test_what_is_found_in_part_before_the_database_fails_does_no_harm(works: Works) -> None:
    """The answer is a generator: it can break in the middle."""
    broken = iter([True])

    def answer() -> Iterator[Job]:
        yield ONE
        if next(broken, False):
            raise NothingDone("connection lost")

    steps, due = Steps(), Due(answer)
    worker = works.start(steps, due=due)
    worker.nudge()

    steps.wait_for(1)


# How much waits


def test_a_job_that_waits_is_not_queued_again(works: Works) -> None:
    """The loop finds the same job every second while all threads are busy."""
    gate = Gate()
    steps = Steps(lambda job_id: gate.pass_through() if job_id == 0 else None)
    worker = works.start(steps)
    worker.nudge(Job(FAST, 0))
    assert gate.reached.wait(SOON_S)

    for _ in range(10):
        worker.nudge(ONE, ONE)
    worker.nudge(Job(FAST, 2))
    gate.opened.set()
    steps.wait_for(2)

    assert steps.runs[1] == 1


def test_a_job_may_be_queued_again_while_it_runs(works: Works) -> None:
    """A click that comes while the step is under way must not be lost."""
    gate = Gate()
    first = iter([True])

    def run(_: int) -> None:
        if next(first, False):
            gate.pass_through()

    steps = Steps(run)
    worker = works.start(steps)
    worker.nudge(ONE)
    assert gate.reached.wait(SOON_S)

    worker.nudge(ONE)
    gate.opened.set()

    steps.wait_for(1, runs=2)


def test_the_queue_is_bounded(works: Works) -> None:
    """What does not fit is not lost, it is in the database; memory is what would be lost."""
    gate = Gate()
    steps = Steps(lambda job_id: gate.pass_through() if job_id == 0 else None)
    worker = works.start(steps)
    worker.nudge(Job(FAST, 0))
    assert gate.reached.wait(SOON_S)

    worker.nudge(*(Job(FAST, number) for number in range(1, 2 * MAX_QUEUED)))
    gate.opened.set()
    steps.wait_for_total(1 + MAX_QUEUED)
    worker.nudge(Job(FAST, -1))
    steps.wait_for(-1)

    assert steps.runs.total() == 1 + MAX_QUEUED + 1


def test_a_slow_lane_does_not_delay_the_other_crew(works: Works) -> None:
    """Slack may hang on every thread that it has: the cancel still leaves."""
    gate = Gate()
    fast, slow = Steps(), Steps(lambda _: gate.pass_through())
    worker = works.start(fast, slow)
    worker.nudge(*(Job(SLOW, number) for number in range(20)))
    assert gate.reached.wait(SOON_S)

    worker.nudge(ONE)

    fast.wait_for(1)
    assert slow.runs.total() == 1
    gate.opened.set()


def test_lanes_of_one_crew_share_its_threads(works: Works) -> None:
    """Cards and private lines go to the same neighbour, so they wait for each other and for nobody else."""
    gate = Gate()
    cards, lines = Steps(lambda _: gate.pass_through()), Steps()
    worker = Worker(crews=[Crew(lanes={"card": cards, "line": lines}, threads=1)], find_due=Due())
    worker.start()
    worker.nudge(Job("card", 1), Job("line", 1))
    assert gate.reached.wait(SOON_S)

    assert lines.runs.total() == 0
    gate.opened.set()
    lines.wait_for(1)
    assert worker.stop(timeout_s=SOON_S)


# Who goes first


def patient_worker(cards: Steps, cancels: Steps, attention: Attention, clock: Clock) -> Worker:
    crew = Crew(lanes={"card": cards, "cancel": cancels}, threads=1, patient=frozenset({"card"}))
    worker = Worker(crews=[crew], find_due=Due(), attention=attention, monotonic=clock)
    worker.start()
    return worker


def test_who_waits_for_an_answer_goes_before_a_card_and_after_a_cancel() -> None:
    """Answers come sooner when nothing else computes; what was decided must not wait for them."""
    cards, cancels, clock = Steps(), Steps(), Clock()
    attention = Attention(monotonic=clock)
    worker = patient_worker(cards, cancels, attention, clock)

    with attention.paid():
        worker.nudge(Job("card", 1))
        worker.nudge(Job("cancel", 1))
        cancels.wait_for(1)
        assert cards.runs.total() == 0
    clock.now += QUIET_S
    cards.wait_for(1)

    assert worker.stop(timeout_s=SOON_S)


def test_a_card_does_not_wait_for_ever_for_people_who_come_after_each_other() -> None:
    """On a busy day somebody always waits for an answer."""
    cards, cancels, clock = Steps(), Steps(), Clock()
    attention = Attention(monotonic=clock)
    worker = patient_worker(cards, cancels, attention, clock)

    with attention.paid():
        worker.nudge(Job("card", 1), Job("cancel", 1))
        cancels.wait_for(1)
        clock.now += PATIENCE_S
        cards.wait_for(1)

    assert worker.stop(timeout_s=SOON_S)


def test_attention_lasts_a_moment_longer_than_the_answer() -> None:
    """Who works through a list types the next command when the last one is answered."""
    clock = Clock()
    attention = Attention(monotonic=clock)
    assert not attention
    with attention.paid(), attention.paid():
        assert attention
    assert attention
    clock.now += QUIET_S
    assert not attention


# Whether it lives


def test_a_worker_that_comes_round_is_alive(works: Works) -> None:
    """/readyz says so: a healthy bot must not be restarted."""
    assert works.start(Steps()).is_alive()


def test_a_loop_that_stands_still_is_not_alive(works: Works) -> None:
    """A database call that never returns looks healthy to everybody who only asks whether the process is there."""
    clock, gate = Clock(), Gate()

    def stand_still() -> Iterable[Job]:
        gate.pass_through()
        return ()

    worker = works.start(Steps(), due=Due(stand_still), clock=clock)
    assert gate.reached.wait(SOON_S)

    clock.now += STALE_AFTER_S - 1
    assert worker.is_alive()
    clock.now += 1
    assert not worker.is_alive()
    gate.opened.set()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_lost_a_thread_is_not_alive(works: Works) -> None:
    """One thread fewer is one cancel at a time fewer, for ever, and nobody would notice."""
    asked_to_exit = threading.Event()
    thread_of_step: list[threading.Thread] = []

    def exit_thread(_: int) -> None:
        thread_of_step.append(threading.current_thread())
        asked_to_exit.set()
        raise SystemExit

    worker = works.start(Steps(exit_thread))
    worker.nudge(ONE)
    assert asked_to_exit.wait(SOON_S)
    thread_of_step[0].join(SOON_S)

    assert not worker.is_alive()


# How it ends


def test_stop_waits_for_the_step_under_way_and_drops_the_rest() -> None:
    """A cancel that is being sent gets its answer; what waits is in the database for the next process."""
    gate, ended = Gate(), threading.Event()

    def run(_: int) -> None:
        gate.pass_through()
        ended.set()

    steps = Steps(run)
    worker = Worker(crews=[Crew(lanes={FAST: steps}, threads=1)], find_due=Due())
    worker.start()
    worker.nudge(ONE)
    assert gate.reached.wait(SOON_S)
    worker.nudge(*(Job(FAST, number) for number in range(2, 50)))

    result: list[bool] = []
    stopping = threading.Thread(target=lambda: result.append(worker.stop(timeout_s=SOON_S)))
    stopping.start()
    assert not ended.is_set()
    gate.opened.set()
    stopping.join(SOON_S)

    assert result == [True]
    assert ended.is_set()
    assert steps.runs[1] == 1
    assert steps.runs.total() <= 2  # the next one may have been in the thread's hands already


def test_stop_says_so_when_a_step_hangs() -> None:
    """The process ends all the same: the lease gives the request to the next one."""
    gate = Gate()
    worker = Worker(crews=[Crew(lanes={FAST: Steps(lambda _: gate.pass_through())}, threads=1)], find_due=Due())
    worker.start()
    worker.nudge(ONE)
    assert gate.reached.wait(SOON_S)

    assert worker.stop(timeout_s=0.01) is False

    gate.opened.set()


def test_nothing_is_begun_after_stop() -> None:
    """A step that begins while the process ends would be killed in the middle."""
    steps = Steps()
    worker = Worker(crews=[Crew(lanes={FAST: steps}, threads=2)], find_due=Due(lambda: [ONE]))
    worker.start()
    steps.wait_for(1)

    assert worker.stop(timeout_s=SOON_S)
    begun = steps.runs.total()
    worker.nudge(Job(FAST, 2))

    assert steps.runs.total() == begun
    assert not worker.is_alive()


def test_stop_ends_although_the_queue_is_full() -> None:
    """Telling the threads to end must not itself wait for a place in the queue."""
    gate = Gate()
    worker = Worker(crews=[Crew(lanes={FAST: Steps(lambda _: gate.pass_through())}, threads=1)], find_due=Due())
    worker.start()
    worker.nudge(Job(FAST, 0))
    assert gate.reached.wait(SOON_S)
    worker.nudge(*(Job(FAST, number) for number in range(1, MAX_QUEUED + 10)))

    result: list[bool] = []
    stopping = threading.Thread(target=lambda: result.append(worker.stop(timeout_s=0.01)), daemon=True)
    stopping.start()
    stopping.join(SOON_S)

    assert result == [False]  # it came back, although the step under way hangs
    gate.opened.set()
