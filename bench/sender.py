"""Sends requests that are written and signed beforehand, over kept connections, and notes how long each answer took.

One thread waits for all connections, in a process of its own: what is measured is whoever answers.
"""

import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from multiprocessing import get_context
from typing import Final, NamedTuple, Protocol

GIVE_UP_AFTER_S: Final = 30.0
"""Without any answer."""
MAX_ANSWER_BYTES: Final = 1_000_000
END_OF_HEAD: Final = b"\r\n\r\n"


class Answered(NamedTuple):
    at_s: float  #: since the first request was due
    took_s: float  #: since this request was due
    status: int
    body: bytes


class Send(Protocol):
    def __call__(
        self, ports: Sequence[int], requests: Sequence[bytes], *, connections: int = 1, per_s: float | None = None
    ) -> list[Answered]:
        """The answers in the order of the requests. Raises ConnectionError, TimeoutError.

        A connection sends its next request once it has the last one's answer; with `per_s`, so many are due in each
        second, and an answer is late also where no connection was free.
        """
        ...


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=GIVE_UP_AFTER_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.number = 0
        self._came = b""

    def begin(self, number: int, request: bytes) -> None:
        self.number, self._came = number, b""
        self.socket.sendall(request)

    def read(self) -> tuple[int, bytes] | None:
        """Status and body, once the whole answer is there. Raises ConnectionError."""
        chunk = self.socket.recv(65_536)
        if not chunk:
            raise ConnectionError("hung up within an answer")
        self._came += chunk
        if len(self._came) > MAX_ANSWER_BYTES:
            raise ConnectionError("an answer without end")
        head, found, body = self._came.partition(END_OF_HEAD)
        if not found:
            return None
        status, *headers = head.decode("latin-1").split("\r\n")
        lengths = [line.partition(":")[2] for line in headers if line.lower().startswith("content-length:")]
        if lengths:
            return (int(status.split()[1]), body) if len(body) >= int(lengths[0]) else None
        return (int(status.split()[1]), body) if body.endswith(b"0\r\n\r\n") else None


def _send_all(ports: Sequence[int], requests: Sequence[bytes], connections: int, per_s: float | None) -> list[Answered]:
    answers: list[Answered | None] = [None] * len(requests)
    waiting = deque(range(len(requests)))
    with ExitStack() as stack, selectors.DefaultSelector() as answering:
        # In turns: a server hangs up on connections that nobody uses.
        free = deque(_Connection(ports[number % len(ports)]) for number in range(connections))
        for connection in free:
            stack.enter_context(connection.socket)
            answering.register(connection.socket, selectors.EVENT_READ, connection)
        began_at = heard_at = time.perf_counter()
        due_at = [began_at + number / per_s if per_s else 0.0 for number in range(len(requests))]
        while waiting or len(free) < connections:
            while free and waiting and (not per_s or due_at[waiting[0]] <= time.perf_counter()):
                number = waiting.popleft()
                if not per_s:
                    due_at[number] = time.perf_counter()
                free.popleft().begin(number, requests[number])
            ready = answering.select(_patience_s(due_at[waiting[0]] if per_s and waiting and free else None))
            for key, _ in ready:
                connection = key.data
                if (answer := connection.read()) is not None:
                    heard_at = time.perf_counter()
                    took_s = heard_at - due_at[connection.number]
                    answers[connection.number] = Answered(heard_at - began_at, took_s, *answer)
                    free.append(connection)
            if not ready and time.perf_counter() - heard_at > GIVE_UP_AFTER_S:
                raise TimeoutError("no answer")
    return [answer for answer in answers if answer is not None]


def _patience_s(next_due_at: float | None) -> float:
    return 1.0 if next_due_at is None else max(0.0, next_due_at - time.perf_counter())


@contextmanager
def sender() -> Iterator[Send]:
    """A process that sends, until the end of the block."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as processes:

        def send(
            ports: Sequence[int], requests: Sequence[bytes], *, connections: int = 1, per_s: float | None = None
        ) -> list[Answered]:
            return processes.submit(_send_all, ports, requests, connections, per_s).result()

        yield send
