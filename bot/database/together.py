"""Work that comes at the same time shares one transaction: one turn at the chain's head, and one commit.

The thread that came first does the work of all that wait with it.
"""

import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, Generic, TypeVar

from bot.baton import Baton
from bot.domain.errors import CommitInDoubt, NothingDone

Given = TypeVar("Given")
Answer = TypeVar("Answer")

MOST_TOGETHER: Final = 16
"""Pieces of work in one transaction."""
ALONE_WITHIN_S: Final = 0.3
"""What fails so soon may have failed by one piece of it, and each is tried alone; later the database has failed."""


class _Piece(Generic[Given]):
    def __init__(self, work: Callable[[Given], Any]) -> None:
        self.work = work
        self.answer: Any = None
        self.error: BaseException | None = CommitInDoubt("nobody said")  #: until it is known
        self.is_first = False  #: it is for its thread to do what waits
        self.turn = threading.Lock()  #: held until it is first, or done
        self.turn.acquire()


class Together(Generic[Given]):
    """`transaction` begins one; what it gives makes, for each piece of work, what the work is called with."""

    def __init__(
        self,
        transaction: Callable[[], AbstractContextManager[Callable[[], Given]]],
        *,
        patience_s: float,
        baton: Baton,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Work that nobody has begun within `patience_s` is given up."""
        self._baton = baton
        self._monotonic = monotonic
        self._transaction = transaction
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._waiting = deque[_Piece[Given]]()
        self._is_busy = False

    def run(self, work: Callable[[Given], Answer]) -> Answer:
        """What the work returns, once it is committed. It may be called again where the first time is rolled back.

        Raises what the work raises, NothingDone, CommitInDoubt.
        """
        piece = _Piece[Given](work)
        with self._baton.laid_down():
            self._wait(piece)
            if piece.is_first:
                try:
                    self._baton.let_pass()
                    self._do(piece)
                finally:
                    self._hand_over()
        if piece.error is not None:
            raise piece.error
        answer: Answer = piece.answer
        return answer

    def _wait(self, piece: _Piece[Given]) -> None:
        """Until it is first, or done. Raises NothingDone."""
        with self._lock:
            if not self._is_busy:
                self._is_busy = piece.is_first = True
                return
            self._waiting.append(piece)
        if not piece.turn.acquire(timeout=self._patience_s):
            with self._lock:
                if piece in self._waiting:
                    self._waiting.remove(piece)
                    raise NothingDone("write_lock_timeout")
            piece.turn.acquire()  # it has been begun, and the database has time-outs of its own

    def _hand_over(self) -> None:
        with self._lock:
            self._is_busy = bool(self._waiting)
            if self._waiting:
                first = self._waiting.popleft()
                first.is_first = True
                first.turn.release()

    def _next(self) -> _Piece[Given] | None:
        with self._lock:
            return self._waiting.popleft() if self._waiting else None

    def _do(self, first: _Piece[Given]) -> None:
        pieces = [first]
        begun_at = self._monotonic()
        try:
            error = self._commit(pieces, also=self._next)
            may_be_anothers = len(pieces) > 1 and isinstance(error, Exception) and not isinstance(error, CommitInDoubt)
            for piece in pieces:
                if not may_be_anothers:
                    piece.error = error
                elif self._monotonic() - begun_at < ALONE_WITHIN_S:
                    piece.error = self._commit([piece])
                else:
                    piece.error = error if isinstance(error, NothingDone) else NothingDone("rolled_back")
        finally:
            for piece in pieces[1:]:
                piece.turn.release()

    def _commit(
        self, pieces: list[_Piece[Given]], *, also: Callable[[], _Piece[Given] | None] = lambda: None
    ) -> BaseException | None:
        """Do the pieces, and those that come meanwhile, in one transaction. Returns why it was not committed."""
        try:
            with self._transaction() as given:
                for piece in pieces:  # which grows
                    piece.answer = piece.work(given())
                    if len(pieces) < MOST_TOGETHER and (another := also()) is not None:
                        pieces.append(another)
        except BaseException as error:  # noqa: BLE001 - each thread raises it to its own caller
            return error
        return None
