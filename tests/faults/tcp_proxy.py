"""A TCP proxy on loopback that loses, delays and cuts: the network between the bot and its neighbours.

With several upstreams it is a load balancer: each connection goes to one at random, and where that one does not listen,
to another.
"""

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

CHUNK_BYTES: Final = 16_384
MAX_CONNECTIONS: Final = 512
CONNECT_WITHIN_S: Final = 5.0
IDLE_S: Final = 120.0
"""A connection on which nothing has moved for so long is closed."""

Address = tuple[str, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """What becomes of a connection; fair weather changes nothing. Shares are between 0 and 1."""

    latency_s: float = 0.0  #: before each chunk, in both directions
    reset_share: float = 0.0  #: of the connections; half of these after the upstream has got all it was sent
    silent_share: float = 0.0  #: of the connections; opened, and then nothing comes through any more
    bytes_per_s: float | None = None  #: of each direction
    keep_alive_s: float = IDLE_S  #: after an answer; then the connection is closed, and the next one rolls the dice


FAIR: Final = Weather()


class TcpProxy:
    """Use it as a context manager. `weather` can be changed while it runs; it rules connections opened from then on."""

    def __init__(self, upstreams: Sequence[Address], *, rng: random.Random) -> None:
        self.upstreams = list(upstreams)
        self.weather = FAIR
        self.struck: Counter[str] = Counter()
        self._rng = rng
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=MAX_CONNECTIONS)
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, name="proxy", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        # Closing alone would not wake the thread that accepts.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Reset every connection that is open now."""
        with self._lock:
            held = list(self._open)
            self.struck["cut"] += len(held) // 2
        for each in held:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)  # wakes who reads from it
            _reset(each)

    def _accept(self) -> None:
        while not self._closing.is_set():
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if not self._slots.acquire(blocking=False):
                _reset(client)
                continue
            threading.Thread(target=self._serve, args=(client,), name="proxied", daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            with self._held(client):
                self._carry(client)
        finally:
            self._slots.release()

    def _held(self, connection: socket.socket) -> "_Held":
        return _Held(connection, self._open, self._lock)

    def _carry(self, client: socket.socket) -> None:
        weather = self.weather
        with self._lock:
            resets = self._rng.random() < weather.reset_share
            late = self._rng.random() < 0.5
            silent = self._rng.random() < weather.silent_share
        if resets and not late:
            self._strike("reset before")
            _reset(client)
            return
        upstream = self._connected()
        if upstream is None:
            _reset(client)
            return
        with self._held(upstream):
            if weather.latency_s:
                self._strike("latency")
            if weather.bytes_per_s is not None:
                self._strike("bandwidth")
            if silent:
                self._strike("half-open")
                self._closing.wait(IDLE_S)
                return
            there = threading.Thread(
                target=self._pump, args=(client, upstream, weather), name="proxied-there", daemon=True
            )
            there.start()
            if resets:
                # The answer is on its way: what was asked for has been done, and nobody learns of it.
                _wait_readable(upstream)
                self._strike("reset after")
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RD)  # wakes who reads from it: until then it would not be closed
                _reset(client)
            else:
                self._pump(upstream, client, weather, then_idle_s=weather.keep_alive_s)
                for each in (client, upstream):
                    with suppress(OSError):
                        each.shutdown(socket.SHUT_RDWR)
            there.join(IDLE_S)

    def _connected(self) -> socket.socket | None:
        with self._lock:
            order = self._rng.sample(self.upstreams, len(self.upstreams))
        for address in order:
            with suppress(OSError):
                return socket.create_connection(address, CONNECT_WITHIN_S)
        return None

    def _pump(
        self, source: socket.socket, target: socket.socket, weather: Weather, *, then_idle_s: float = IDLE_S
    ) -> None:
        size = CHUNK_BYTES if weather.bytes_per_s is None else max(1, int(weather.bytes_per_s / 10))
        with suppress(OSError):
            source.settimeout(IDLE_S)
            while chunk := source.recv(size):
                wait_s = weather.latency_s + (len(chunk) / weather.bytes_per_s if weather.bytes_per_s else 0.0)
                if wait_s and self._closing.wait(wait_s):
                    break
                target.sendall(chunk)
                source.settimeout(then_idle_s)
        for each, way in ((source, socket.SHUT_RD), (target, socket.SHUT_WR)):
            with suppress(OSError):
                each.shutdown(way)

    def _strike(self, fault: str) -> None:
        with self._lock:
            self.struck[fault] += 1


class _Held:
    """A socket that is known while it is open, so that it can be cut."""

    def __init__(self, held: socket.socket, among: set[socket.socket], lock: threading.Lock) -> None:
        self._socket, self._among, self._lock = held, among, lock

    def __enter__(self) -> None:
        with self._lock:
            self._among.add(self._socket)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._among.discard(self._socket)
        self._socket.close()


def _reset(connection: socket.socket) -> None:
    """End it with RST."""
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def _wait_readable(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.settimeout(IDLE_S)
        connection.recv(1, socket.MSG_PEEK)
