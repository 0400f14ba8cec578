"""Commands that come at the same time share a transaction; each has its own answer, and its own faults."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final

import pytest
from builders import command
from sqlalchemy import event

from bot.baton import PATIENCE_S, Baton
from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.database.together import ALONE_WITHIN_S, MOST_TOGETHER, Together
from bot.database.verification import verify
from bot.domain.errors import CommitInDoubt, NothingDone

SOON_S: Final = 10.0


class Ledger:
    """A database that notes what was committed together; its transactions can be held up, or fail."""

    def __init__(self, *, patience_s: float = SOON_S) -> None:
        self.committed: list[list[str]] = []
        self.begun = threading.Semaphore(0)
        self.may_begin = threading.Event()
        self.may_begin.set()
        self.fails: BaseException | None = None
        self.now_s = 0.0
        self.takes_s = 0.0
        self.together = Together(self._transaction, patience_s=patience_s, baton=Baton(), monotonic=lambda: self.now_s)

    @contextmanager
    def _transaction(self) -> Iterator[Callable[[], list[str]]]:
        written: list[str] = []
        self.begun.release()
        assert self.may_begin.wait(SOON_S)
        self.now_s += self.takes_s
        yield lambda: written
        if self.fails is not None:
            raise self.fails
        self.committed.append(written)

    def write(self, word: str) -> str:
        def work(written: list[str]) -> str:
            if word == "wrong":
                raise ValueError(word)
            written.append(word)
            return f"{word} is written"

        return self.together.run(work)

    def wait_until_they_wait(self, count: int) -> None:
        turned = threading.Event()
        ends_at = SOON_S
        while len(self.together._waiting) < count:
            ends_at -= 0.001
            assert ends_at > 0
            turned.wait(0.001)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2 * MOST_TOGETHER + 2) as pool:
        yield pool


def test_what_waits_is_committed_together_and_each_has_its_answer(threads: ThreadPoolExecutor) -> None:
    """One commit for all of them: it costs as much as some commands."""
    ledger = Ledger()
    ledger.may_begin.clear()
    words = [f"word {number}" for number in range(2 * MOST_TOGETHER + 1)]
    answers = [threads.submit(ledger.write, word) for word in words]
    ledger.wait_until_they_wait(2 * MOST_TOGETHER)
    ledger.may_begin.set()
    assert [answer.result(SOON_S) for answer in answers] == [f"{word} is written" for word in words]
    assert sorted(word for some in ledger.committed for word in some) == sorted(words)
    assert [len(some) for some in ledger.committed] == [MOST_TOGETHER, MOST_TOGETHER, 1]


def test_one_fault_is_nobody_elses(threads: ThreadPoolExecutor) -> None:
    """All is rolled back with it, and done again for the others."""
    ledger = Ledger()
    ledger.may_begin.clear()
    first = threads.submit(ledger.write, "first")
    assert ledger.begun.acquire(timeout=SOON_S)
    wrong, last = threads.submit(ledger.write, "wrong"), threads.submit(ledger.write, "last")
    ledger.wait_until_they_wait(2)
    ledger.may_begin.set()
    assert (first.result(SOON_S), last.result(SOON_S)) == ("first is written", "last is written")
    assert isinstance(wrong.exception(SOON_S), ValueError)
    assert ledger.committed == [["first"], ["last"]]


def test_a_slow_database_is_not_asked_once_for_each(threads: ThreadPoolExecutor) -> None:
    """Everybody has waited long enough, and hears it; nothing of theirs is left behind."""
    ledger = Ledger()
    ledger.may_begin.clear()
    ledger.takes_s = 2 * ALONE_WITHIN_S
    answers = [threads.submit(ledger.write, "first")]
    assert ledger.begun.acquire(timeout=SOON_S)
    answers.append(threads.submit(ledger.write, "wrong"))
    ledger.wait_until_they_wait(1)
    ledger.may_begin.set()
    assert [type(answer.exception(SOON_S)) for answer in answers] == [NothingDone, NothingDone]
    assert not ledger.begun.acquire(blocking=False)
    assert ledger.committed == []


@pytest.mark.parametrize("failure", [CommitInDoubt("lost"), SystemExit(1)])
def test_what_may_have_been_committed_is_not_done_again(threads: ThreadPoolExecutor, failure: BaseException) -> None:
    """Each is told, and looks for itself."""
    ledger = Ledger()
    ledger.may_begin.clear()
    ledger.fails = failure
    answers = [threads.submit(ledger.write, word) for word in ("one", "two")]
    assert ledger.begun.acquire(timeout=SOON_S)
    ledger.wait_until_they_wait(1)
    ledger.may_begin.set()
    assert [answer.exception(SOON_S) for answer in answers] == [failure, failure]
    assert not ledger.begun.acquire(blocking=False)
    ledger.fails = None
    assert ledger.write("three") == "three is written"
    assert ledger.committed == [["three"]]


def test_who_has_waited_too_long_is_told_that_nothing_was_done(threads: ThreadPoolExecutor) -> None:
    """Slack waits for three seconds; what nobody has begun by then must not be done later."""
    ledger = Ledger(patience_s=0.01)
    ledger.may_begin.clear()
    first = threads.submit(ledger.write, "first")
    assert ledger.begun.acquire(timeout=SOON_S)
    with pytest.raises(NothingDone, match="write_lock_timeout"):
        ledger.write("late")
    ledger.may_begin.set()
    assert first.result(SOON_S) == "first is written"
    assert ledger.committed == [["first"]]


def test_commands_of_one_instant_are_all_recorded(database: Database, threads: ThreadPoolExecutor) -> None:
    """Each with its event; on one chain; and in fewer transactions than there are commands."""
    store, commits = SqlStore(database), 0

    def count(_connection: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(database.engine, "commit", count)
    everybody = threading.Barrier(MOST_TOGETHER)

    def ask(number: int) -> int:
        asked = command(trigger_id=f"trigger {number}", order_uuid=f"order {number}")
        everybody.wait(SOON_S)
        return store.together(lambda tx: tx.create(asked).id)

    ids = list(threads.map(ask, range(MOST_TOGETHER)))
    assert sorted(ids) == list(range(1, MOST_TOGETHER + 1))
    verified = verify(database)
    assert (verified.fault, verified.events) == (None, MOST_TOGETHER)
    assert 1 <= commits < MOST_TOGETHER
    assert all(store.read(request_id) for request_id in ids)


# The baton


def test_one_carries_it_and_who_waits_too_long_goes_without(threads: ThreadPoolExecutor) -> None:
    """It says who goes first; a slow one stands in nobody's way for long."""
    baton, may_end = Baton(), threading.Event()
    has_it = threading.Event()

    def be_slow() -> None:
        with baton.carried():
            has_it.set()
            assert may_end.wait(SOON_S)

    slow = threads.submit(be_slow)
    assert has_it.wait(SOON_S)
    with baton.carried():
        assert not may_end.is_set()
    may_end.set()
    slow.result(SOON_S)
    assert PATIENCE_S < 0.1


def test_it_is_laid_down_by_who_waits(threads: ThreadPoolExecutor) -> None:
    """Else all would wait for the one who waits for them."""
    baton = Baton()

    def carry() -> bool:
        with baton.carried():
            return bool(baton._own.has_it)

    with baton.carried():
        with baton.laid_down():
            assert threads.submit(carry).result(SOON_S)
            baton.let_pass()
        assert baton._own.has_it


def test_who_carries_nothing_lays_nothing_down() -> None:
    """Listeners over Socket Mode, and the command line."""
    baton = Baton()
    with baton.laid_down():
        baton.let_pass()
    with baton.carried():
        assert baton._own.has_it
