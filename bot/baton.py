"""Hands the computing of people's requests from thread to thread, one at a time and seldom.

Python computes in one thread at a time, too, but lets all that could compute fight for it at each call into the
database or the network, and on several cores each such change costs about as much as a statement. Threads that wait for
the baton take no part in that.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

PATIENCE_S: Final = 0.02
"""Who has waited so long goes on without it: nobody waits for one that is slow."""


class Baton:
    """For the threads of one process; it says who goes first, and keeps nobody from anything."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition()
        self._runners = 0
        self._own = threading.local()

    @contextmanager
    def carried(self) -> Iterator[None]:
        """For the length of a request."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def laid_down(self) -> Iterator[None]:
        """While a thread that carries it waits for others; for another thread this does nothing."""
        if not getattr(self._own, "runs", False):
            yield
            return
        self._give()
        try:
            yield
        finally:
            self._take()

    def let_pass(self) -> None:
        """Wait for those who carry it or are about to, but not for long. Only where it is laid down."""
        with self._changed:
            self._changed.wait_for(lambda: not self._runners, PATIENCE_S)

    def _take(self) -> None:
        with self._changed:
            self._runners += 1
        self._own.runs = True
        self._own.has_it = self._lock.acquire(timeout=PATIENCE_S)

    def _give(self) -> None:
        if self._own.has_it:
            self._lock.release()
        self._own.runs = self._own.has_it = False
        with self._changed:
            self._runners -= 1
            if not self._runners:
                self._changed.notify_all()
