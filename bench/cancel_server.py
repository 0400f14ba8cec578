"""A server that takes cancels and does nothing else, so that what is measured is who sends them.

Every DELETE is checked as Upbit does: the signature, the hash of the query or of the body's fields, the nonce. It runs
in a process of its own and is asked in the end how many were good.
"""

import base64
import hashlib
import hmac
import json
import socket
import ssl
import threading
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

ACCESS_KEY: Final = "playground-access-key"
SECRET_KEY: Final = "playground-secret-key-with-forty-charact"
DIGESTS: Final = {"HS256": hashlib.sha256, "HS512": hashlib.sha512}
MAX_REQUEST_BYTES: Final = 65_536
STOP_WITHIN_S: Final = 10.0
HEAD: Final = (
    "HTTP/1.1 200 OK\r\nContent-Type: application/json; charset=utf-8\r\n"
    "Remaining-Req: group=order; min=1800; sec=30\r\nContent-Length: {}\r\n\r\n"
)
ORDER: Final = {
    "uuid": "",
    "side": "ask",
    "ord_type": "limit",
    "price": "100000000",
    "state": "wait",
    "market": "KRW-BTC",
    "created_at": "2026-11-23T17:30:00+09:00",
    "volume": "0.01",
    "remaining_volume": "0.01",
    "reserved_fee": "0",
    "remaining_fee": "0",
    "paid_fee": "0",
    "locked": "0.01",
    "executed_volume": "0",
    "trades_count": 0,
}


class Told(NamedTuple):
    good: int  #: DELETEs that were signed, bound to their order, and the only ones of their nonce
    bad: int


@dataclass(slots=True)
class _Seen:
    uuids: set[str] = field(default_factory=set)
    nonces: set[str] = field(default_factory=set)
    bad: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class CancelServer(NamedTuple):
    port: int
    pipe: Connection

    def told(self) -> Told:
        """What came since it was last asked."""
        self.pipe.send("told")
        good, bad = self.pipe.recv()
        return Told(good, bad)


@contextmanager
def cancel_server(*, certificate: Path | None = None) -> Iterator[CancelServer]:
    """`certificate` is a PEM file with key and chain, for TLS."""
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, certificate), daemon=True)
    process.start()
    try:
        yield CancelServer(ours.recv(), ours)
    finally:
        ours.send("stop")
        process.join(STOP_WITHIN_S)
        process.kill()


def _serve(pipe: Connection, certificate: Path | None) -> None:
    seen, tls = _Seen(), None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(certificate)
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_accept, args=(server, tls, seen), daemon=True).start()
        pipe.send(server.getsockname()[1])
        while pipe.recv() == "told":
            with seen.lock:
                pipe.send((len(seen.uuids), seen.bad))
                seen.uuids, seen.bad = set(), 0


def _accept(server: socket.socket, tls: ssl.SSLContext | None, seen: _Seen) -> None:
    while True:
        connection, _ = server.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_converse, args=(connection, tls, seen), daemon=True).start()


def _converse(connection: socket.socket, tls: ssl.SSLContext | None, seen: _Seen) -> None:
    with suppress(OSError), connection:
        talk = connection if tls is None else tls.wrap_socket(connection, server_side=True)
        came = b""
        while chunk := talk.recv(MAX_REQUEST_BYTES):
            came += chunk
            head, found, body = came.partition(b"\r\n\r\n")
            if not found or len(came) > MAX_REQUEST_BYTES:
                continue
            first, *lines = head.decode("latin-1").split("\r\n")
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if len(body) < int(headers.get("content-length", "0")):
                continue
            order_uuid = _checked(first, headers, body.decode(), seen)
            answer = json.dumps({**ORDER, "uuid": order_uuid}).encode()
            talk.sendall(HEAD.format(len(answer)).encode() + answer)
            came = b""


def _checked(first: str, headers: dict[str, str], body: str, seen: _Seen) -> str:
    """The order's uuid; what is wrong is counted."""
    method, target, _ = first.split(" ")
    path, _, query = target.partition("?")
    # pyupbit sends the fields as JSON, and hashes them as a query.
    query = query or urllib.parse.urlencode(json.loads(body or "{}"))
    fields = dict(urllib.parse.parse_qsl(query))
    claims = _claims(headers.get("authorization", ""))
    hashed = hashlib.sha512(urllib.parse.unquote(query).encode()).hexdigest()
    is_good = (method, path) == ("DELETE", "/v1/order") and claims.get("access_key") == ACCESS_KEY
    is_good = is_good and claims.get("query_hash") == hashed and "uuid" in fields
    with seen.lock:
        if is_good and claims["nonce"] not in seen.nonces:
            seen.nonces.add(claims["nonce"])
            seen.uuids.add(fields["uuid"])
        else:
            seen.bad += 1
    return fields.get("uuid", "")


def _claims(authorization: str) -> dict[str, str]:
    """What the token claims; nothing where its signature is wrong."""
    head, _, signature = authorization.removeprefix("Bearer ").rpartition(".")
    kind, _, claims = head.partition(".")
    try:
        digest = DIGESTS[json.loads(_unbase64(kind))["alg"]]
        signed = hmac.compare_digest(
            hmac.new(SECRET_KEY.encode(), head.encode(), digest).digest(), _unbase64(signature)
        )
        return dict(json.loads(_unbase64(claims))) if signed else {}
    except (ValueError, LookupError):
        return {}


def _unbase64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
