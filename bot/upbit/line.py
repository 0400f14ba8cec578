"""The way to Upbit: connections that know how far a request came, and a total deadline over each.

Watchdog     one thread; ends the attempts that outlast the total deadline
Line         requests' transport: one pool of kept connections; no redirect, proxy, .netrc, cookie or retry
└── PlainConnection | TlsConnection    tell the Attempt how far it came
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from queue import Empty, SimpleQueue
from typing import Any, Final
from urllib.parse import SplitResult

from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import NewConnectionError
from urllib3.util.connection import allowed_gai_family, create_connection
from urllib3.util.ssl_ import create_urllib3_context


class Attempt:
    """How far one request came. Its own thread and the watchdog both use it."""

    def __init__(self, *, deadline_s: float, resolve: "Resolve") -> None:
        self.resolve = resolve
        self.written = False  #: the first byte of the request may have left
        self.expired = False  #: the watchdog ended it
        self.stage = "connect_failed"  #: the cause of NotSent, should it fail before `written`
        self._ends_at = time.monotonic() + deadline_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    def left_s(self) -> float:
        return self._ends_at - time.monotonic()

    def writes_to(self, sock: socket.socket) -> None:
        """The first byte goes out next, and from now on the watchdog can shut down the socket.

        Raises TimeoutError where the time is up already: then nothing goes out.
        """
        with self._lock:
            if self.expired:
                raise TimeoutError
            self._socket = sock
            self.written = True

    def expire(self) -> None:
        with self._lock:
            self.expired = True
            if self._socket is not None:
                _shut_down(self._socket)

    def finish(self) -> None:
        with self._lock:
            self._socket = None


def _shut_down(sock: socket.socket) -> None:
    """Wake whoever waits on the socket.

    Not `SSLSocket.shutdown`: that drops the encryption before it ends the connection, and in between another thread
    could write in the clear.
    """
    with suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)


ATTEMPT: Final[ContextVar[Attempt]] = ContextVar("ATTEMPT")
"""The attempt of this thread, for the connection that urllib3 picks or opens for it."""


class Closed(Exception):
    """No new attempt begins."""


class Watchdog:
    """Ends attempts at their total deadline. One thread for all, begun with the first attempt.

    The time-outs of requests are per read: without it, a byte now and then keeps a call alive for ever.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._attempts: dict[Attempt, None] = {}  # each lasts as long, so the first is the next to end
        self._thread: threading.Thread | None = None
        self._idle = False
        self._closed = threading.Event()

    @contextmanager
    def guards(self, attempt: Attempt) -> Iterator[None]:
        """Raises Closed."""
        with self._changed:
            if self._closed.is_set():
                raise Closed
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="upbit-watchdog", daemon=True)
                self._thread.start()
            self._attempts[attempt] = None
            if self._idle:
                self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._attempts.pop(attempt, None)
                if self._closed.is_set():
                    self._changed.notify()
            attempt.finish()

    def close(self) -> None:
        """Let the attempts under way end, each within its deadline, and no other begin."""
        with self._changed:
            self._closed.set()
            self._changed.notify()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        with self._changed:
            while self._attempts or not self._closed.is_set():
                first = next(iter(self._attempts), None)
                if first is None:
                    self._idle = True
                    self._changed.wait()
                    self._idle = False
                elif (left_s := first.left_s()) > 0:
                    self._changed.wait(left_s)
                else:
                    del self._attempts[first]
                    first.expire()


Resolve = Callable[[str, int], Sequence[str]]


def addresses_of(host: str, port: int) -> list[str]:
    return [str(found[4][0]) for found in socket.getaddrinfo(host, port, allowed_gai_family(), socket.SOCK_STREAM)]


def _resolve_in_time(attempt: Attempt, host: str, port: int) -> Sequence[str]:
    """The addresses of a host. The system's resolver cannot be interrupted, so it is left behind when time is up.

    Raises OSError.
    """
    answers: SimpleQueue[Sequence[str]] = SimpleQueue()

    def ask() -> None:
        try:
            answers.put(attempt.resolve(host, port))
        except Exception:  # noqa: BLE001 - whatever it is, the caller must not wait for it
            answers.put(())

    threading.Thread(target=ask, name="upbit-dns", daemon=True).start()
    try:
        addresses = answers.get(timeout=max(attempt.left_s(), 0))
    except Empty:
        raise TimeoutError(f"{host} was not resolved in time") from None
    if not addresses:
        raise OSError(f"{host} has no address")
    return addresses


class PlainConnection(HTTPConnection):
    """A connection that tells its attempt how far it came, and connects within what is left of the total deadline."""

    def _new_conn(self) -> socket.socket:
        """A connected socket. Its errors are urllib3's, as the caller expects: it passes over some OSErrors."""
        attempt = ATTEMPT.get()
        try:
            attempt.stage = "dns"
            addresses = _resolve_in_time(attempt, self.host, self.port)
            attempt.stage = "connect_failed"
            return self._connect_to_first(addresses, attempt)
        except OSError as error:
            raise NewConnectionError(self, f"{attempt.stage}: {error}") from error

    def _connect_to_first(self, addresses: Sequence[str], attempt: Attempt) -> socket.socket:
        last_error = OSError("no address")
        for address in addresses:
            if (left_s := attempt.left_s()) <= 0:
                break
            timeout_s = min(self.timeout or left_s, left_s)
            try:
                sock = create_connection((address, self.port), timeout_s, socket_options=self.socket_options)
            except OSError as error:
                attempt.stage = "connect_timeout" if isinstance(error, TimeoutError) else "connect_failed"
                last_error = error
            else:
                # Python's ssl counts a time-out over the whole handshake, so this one needs no watchdog.
                sock.settimeout(max(min(timeout_s, attempt.left_s()), 0.001))
                return sock
        raise last_error

    def putrequest(self, method: str, url: str, *args: Any, **kwargs: Any) -> None:
        """urllib3 encodes `[]`, which Upbit wants bare; nothing else of our queries is ever encoded."""
        super().putrequest(method, url.replace("%5B%5D=", "[]="), *args, **kwargs)

    def send(self, data: Any) -> None:
        """What http.client writes the request with; connects first where the connection is new, or was dropped."""
        if self.sock is None:
            self.connect()
        ATTEMPT.get().writes_to(self.sock)
        super().send(data)


class TlsConnection(PlainConnection, HTTPSConnection):
    """The same under TLS."""

    def _new_conn(self) -> socket.socket:
        sock = super()._new_conn()
        ATTEMPT.get().stage = "tls_handshake"
        return sock


class _PlainPool(HTTPConnectionPool):
    ConnectionCls = PlainConnection


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = TlsConnection


class Line(HTTPAdapter):
    """requests' transport, tied to one server.

    Used without a `requests.Session`: what a session adds (redirects, cookies, proxies and .netrc from the
    environment) must not happen here. The pool is safe for threads and hands each call a connection of its own.
    """

    def __init__(self, server: SplitResult, *, ca_bundle: str | None, max_connections: int) -> None:
        super().__init__(max_retries=0)
        self._pool = _pool(server, ca_bundle=ca_bundle, max_connections=max_connections)

    def get_connection_with_tls_context(self, *_: Any, **__: Any) -> HTTPConnectionPool:
        return self._pool

    def cert_verify(self, *_: Any, **__: Any) -> None:
        """Nothing to set here: the pool's own TLS context verifies, always."""

    def close(self) -> None:
        self._pool.close()
        super().close()


def _pool(server: SplitResult, *, ca_bundle: str | None, max_connections: int) -> HTTPConnectionPool:
    host = server.hostname or ""
    if server.scheme == "http":
        return _PlainPool(host, server.port, maxsize=max_connections)
    context = create_urllib3_context()
    context.load_verify_locations(ca_bundle or DEFAULT_CA_BUNDLE_PATH)
    return _TlsPool(host, server.port, maxsize=max_connections, cert_reqs="CERT_REQUIRED", ssl_context=context)
