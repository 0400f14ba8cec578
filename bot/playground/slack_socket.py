"""Socket Mode: the websocket over which Slack delivers to a bot that has no public address.

https://docs.slack.dev/apis/events-api/using-socket-mode
"""

import concurrent.futures
import http
import json
import random
import secrets
import threading
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from websockets.http11 import Request, Response
    from websockets.sync.server import Server, ServerConnection

MAX_CONNECTIONS = 10
MAX_TICKETS = 100
PING_INTERVAL_S = 10
CLOSE_TIMEOUT_S = 1


class SocketMode:
    """A websocket server; it listens from the first ticket on."""

    def __init__(self, *, app_id: str, choose: random.Random, changed: threading.Condition) -> None:
        self._app_id = app_id
        self._choose = choose
        self._changed = changed
        self._tickets: dict[str, None] = {}
        self._connections: list[ServerConnection] = []
        self._arriving = 0
        self._leaving: list[ServerConnection] = []
        self._waiting: dict[str, concurrent.futures.Future[Any]] = {}
        self._server: Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def connections(self) -> int:
        with self._changed:
            return len(self._connections)

    def ticket_url(self) -> str:
        """A URL that opens one connection, as `apps.connections.open` answers it."""
        with self._changed:
            server = self._server or self._start()
            ticket = secrets.token_urlsafe(16)
            self._tickets[ticket] = None
            if len(self._tickets) > MAX_TICKETS:
                del self._tickets[next(iter(self._tickets))]
            return f"ws://127.0.0.1:{server.socket.getsockname()[1]}/link/?ticket={ticket}&app_id={self._app_id}"

    def deliver(self, kind: str, payload: Mapping[str, Any], *, timeout_s: float, **more: Any) -> Any:
        """Send an envelope over any one connection and wait for its ack's payload; `more` goes beside the payload.

        Who was let in and has not heard `hello` yet is waited for: the bot may take itself for connected by then.
        Raises ConnectionError where nobody is connected and TimeoutError where nobody acks in time.
        """
        envelope_id = str(uuid.uuid4())
        envelope = {
            "envelope_id": envelope_id,
            "type": kind,
            "accepts_response_payload": kind != "events_api",
            "payload": payload,
            **more,
        }
        answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
        with self._changed:
            self._waiting[envelope_id] = answer
            self._changed.wait_for(lambda: self._connections or not self._arriving, timeout_s)
        try:
            self._send_to_one(json.dumps(envelope))
            return answer.result(timeout_s)
        finally:
            with self._changed:
                del self._waiting[envelope_id]

    def ask_to_reconnect(self, reason: str) -> None:
        """Tell every connection that its time is over, as Slack does about once an hour.

        They get no more deliveries, and are closed when a new one is there.
        """
        message = {"type": "disconnect", "reason": reason, "debug_info": {"host": "playground"}}
        leaving = self._let_go()
        with self._changed:
            self._leaving += leaving
        for connection in leaving:
            self._send(connection, json.dumps(message))

    def cut(self) -> None:
        """Close every connection without a word."""
        for connection in self._let_go():
            connection.close()

    def stop(self) -> None:
        with self._changed:
            server, thread = self._server, self._thread
        if server is not None and thread is not None:
            server.shutdown()
            thread.join()

    def _start(self) -> "Server":
        from websockets.sync.server import serve  # noqa: PLC0415 (only who uses Socket Mode needs it)

        self._server = serve(
            self._converse,
            "127.0.0.1",
            0,
            process_request=self._admit,
            ping_interval=PING_INTERVAL_S,
            close_timeout=CLOSE_TIMEOUT_S,
        )
        self._thread = threading.Thread(target=self._server.serve_forever, name="slack-socket-mode")
        self._thread.start()
        return self._server

    def _admit(self, connection: "ServerConnection", request: "Request") -> "Response | None":
        """Let in who brings a ticket of ours; each opens the door once."""
        ticket = request.path.partition("ticket=")[2].partition("&")[0]
        with self._changed:
            known = self._tickets.pop(ticket, "unknown") is None
            full = len(self._connections) >= MAX_CONNECTIONS
            self._arriving += known and not full
        if not known:
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "no such ticket\n")
        return connection.respond(http.HTTPStatus.TOO_MANY_REQUESTS, "too many connections\n") if full else None

    def _converse(self, connection: "ServerConnection") -> None:
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415

        try:
            with self._changed:
                self._arriving -= 1
                self._connections.append(connection)
                replaced, self._leaving = self._leaving, []
                # Under the lock, so that no delivery comes before it.
                connection.send(json.dumps(self._hello()))
                self._changed.notify_all()
            for old in replaced:
                old.close()
            for message in connection:
                self._hear(message)
        except ConnectionClosed:
            return
        finally:
            with self._changed:
                if connection in self._connections:
                    self._connections.remove(connection)
                self._changed.notify_all()

    def _hello(self) -> dict[str, Any]:
        return {
            "type": "hello",
            "num_connections": self.connections,
            "connection_info": {"app_id": self._app_id},
            "debug_info": {"host": "playground", "build_number": 1, "approximate_connection_time": 3600},
        }

    def _hear(self, message: str | bytes) -> None:
        """An ack answers the envelope that it names; a late one has nobody left to answer."""
        try:
            ack = json.loads(message)
            envelope_id = ack["envelope_id"]
        except (ValueError, KeyError, TypeError):
            return
        with self._changed:
            waiting = self._waiting.get(envelope_id)
            if waiting is not None and not waiting.done():
                waiting.set_result(ack.get("payload"))

    def _send_to_one(self, message: str) -> None:
        connections = self._snapshot()
        self._choose.shuffle(connections)
        if not any(self._send(connection, message) for connection in connections):
            raise ConnectionError("no Socket Mode connection is open")

    def _send(self, connection: "ServerConnection", message: str) -> bool:
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415

        try:
            connection.send(message)
        except ConnectionClosed:
            return False
        return True

    def _let_go(self) -> "list[ServerConnection]":
        with self._changed:
            connections, self._connections = self._connections, []
            self._changed.notify_all()
            return connections

    def _snapshot(self) -> "list[ServerConnection]":
        with self._changed:
            return list(self._connections)
