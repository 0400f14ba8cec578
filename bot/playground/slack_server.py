"""The HTTP door of the playground's Slack: a bounded server on loopback that closes without leaving anything behind."""

import socket
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_BODY_BYTES = 1_000_000
MAX_CONNECTIONS = 64
READ_TIMEOUT_S = 10


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)


#: (path, headers, body) -> what to answer; None closes the connection without an answer
Answering = Callable[[str, Message, bytes], Reply | None]


class LoopbackServer(ThreadingHTTPServer):
    """Serves POST on 127.0.0.1 and a port that is free; one thread per connection, a fixed number of them at most."""

    daemon_threads = False
    request_queue_size = MAX_CONNECTIONS

    def __init__(self, answering: Answering, *, name: str) -> None:
        super().__init__(("127.0.0.1", 0), _Post)
        self.answering = answering
        self._slots = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), name=name)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cut what is open, wait for every thread, close the socket."""
        # Before shutdown, because its loop may be waiting for a slot; and after it, for who came in between.
        self._cut()
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        self._cut()
        self.server_close()

    def _cut(self) -> None:
        with self._lock:
            for connection in self._connections:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue

    def process_request(self, request: Any, client_address: Any) -> None:
        self._slots.acquire()
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)
        self._slots.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller who hangs up is no fault of ours; anything else is printed with its traceback."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Post(BaseHTTPRequestHandler):
    server: LoopbackServer
    timeout = READ_TIMEOUT_S

    def do_POST(self) -> None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            self._send(Reply(413, b"too large", "text/plain"))
            return
        reply = self.server.answering(self.path, self.headers, self.rfile.read(int(length)))
        if reply is not None:
            self._send(reply)

    def _send(self, reply: Reply) -> None:
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name is the base class's)
        """Nothing: the calls are kept and can be asked for."""
