"""The calls against servers on loopback: the playground's exchange, and raw sockets that break where it hurts."""

import json
import logging
import socket
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from bot.domain.answer import Accepted, Call, ExchangeHealth, Found, FoundOrders, NotSent, Refused, Unknown
from bot.domain.order import Order
from bot.playground.exchange import Exchange, Key, Mood
from bot.upbit.client import (
    CANCELS_FIRST_S,
    CERTAIN_NAMES,
    MAX_ORDERS,
    Doubt,
    Refusal,
    UpbitClient,
    _Brake,
    ban_s,
    decipher,
    decipher_orders,
)
from bot.upbit.line import ATTEMPT, Attempt, PlainConnection

UUID = "cdd92199-2897-4e14-9448-f923320408ad"
OTHER_UUID = "11111111-2897-4e14-9448-f923320408ad"
ACCESS_KEY = "made-up-access-key-0123456789"
SECRET_KEY = "made-up-secret-key-of-forty-characters-.."
KEY = Key(access_key=ACCESS_KEY, secret_key=SECRET_KEY)
DEADLINE_S = 5.0
DAY = datetime(2026, 11, 1, tzinfo=UTC)

ORDER = {
    "uuid": UUID,
    "side": "ask",
    "ord_type": "limit",
    "price": "987654321.12345678",
    "state": "wait",
    "market": "KRW-BTC",
    "created_at": "2026-11-01T12:00:00+09:00",
    "volume": "0.01",
    "remaining_volume": "0.01",
    "executed_volume": "0",
    "trades_count": "0",
    "something_new": [1],
}
ORDER_JSON = json.dumps(ORDER).encode()


def http(body: bytes = ORDER_JSON, status: str = "200 OK", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{headers}\r\n".encode() + body


class RawServer:
    """A server that does with each connection what `script(server, connection)` says, in a thread of its own."""

    def __init__(self, script: Callable[["RawServer", socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self.connections = 0
        self.stopping = threading.Event()
        self.done = threading.Semaphore(0)  # released at the end of each script, after its connection was closed
        self._script = script
        self._tls = tls
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._threads: list[threading.Thread] = []
        self._open: list[socket.socket] = []
        self._accepting = threading.Thread(target=self._accept)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._listener.getsockname()[1]}"

    def read_request(self, connection: socket.socket) -> bytes:
        request = b""
        while not request.endswith(b"\r\n\r\n"):
            received = connection.recv(65_536)
            if not received:
                raise ConnectionError("the client went away")
            request += received
        self.requests.append(request)
        return request

    def __enter__(self) -> Self:
        self._accepting.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listener.close()
        for connection in self._open:
            with suppress(OSError):
                socket.socket.shutdown(connection, socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError), connection:
            if self._tls is not None:
                connection = self._tls.wrap_socket(connection, server_side=True)
            self._open.append(connection)
            with connection:
                self._script(self, connection)
        self.done.release()


def answering(*answers: bytes) -> Callable[[RawServer, socket.socket], None]:
    """Answer the requests of a connection one after the other, then close it."""

    def script(server: RawServer, connection: socket.socket) -> None:
        for answer in answers:
            server.read_request(connection)
            connection.sendall(answer)

    return script


@contextmanager
def client_of(url: str, **settings: Any) -> Iterator[UpbitClient]:
    client = UpbitClient(server_url=url, access_key=ACCESS_KEY, secret_key=SECRET_KEY, **settings)
    try:
        yield client
    finally:
        client.close()


def cancel(client: UpbitClient, uuid: str = UUID) -> Accepted | Refused | Unknown | NotSent:
    return client.cancel_order(uuid, nonce=str(uuid4()))


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with Exchange(keys=[KEY], requests_per_s=10_000) as exchange:
        yield exchange


@pytest.fixture
def client(exchange: Exchange) -> Iterator[UpbitClient]:
    with client_of(exchange.url) as client:
        yield client


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="session")
def server_tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    return context


@pytest.fixture
def ca_bundle(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return str(path)


class Clock:
    """A monotonic clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


# What leaves


def test_a_cancel_is_one_delete_without_a_body() -> None:
    """Upbit answers 400 to a DELETE with a body; and a second DELETE is refused, which reads like a failed cancel."""
    with RawServer(answering(http())) as server, client_of(server.url) as client:
        answer = client.cancel_order(UUID, nonce="5a2f6f0c-0a53-4d5a-8c84-6a8f7c1f6f10")
    assert isinstance(answer, Accepted)
    assert len(server.requests) == 1
    head, body = server.requests[0].decode().split("\r\n\r\n")
    first, *rest = head.split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in rest)
    assert first == f"DELETE /v1/order?uuid={UUID} HTTP/1.1"
    assert body == ""
    assert headers.keys() == {"host", "accept-encoding", "user-agent", "accept", "authorization"}
    assert headers["user-agent"] == "upbit-cancel-bot"
    assert headers["accept-encoding"] == "identity"


def test_accepted_carries_the_order_as_it_was_and_the_facts_of_the_call(
    exchange: Exchange, client: UpbitClient
) -> None:
    """200 means accepted: the order in it is still open, and the audit needs what was sent and answered."""
    uuid = exchange.place(uuid=UUID, price="987654321.12345678")
    answer = client.cancel_order(uuid, nonce="5a2f6f0c-0a53-4d5a-8c84-6a8f7c1f6f10")
    assert isinstance(answer, Accepted)
    assert answer.order.state == "wait"
    assert answer.order.price == Decimal("987654321.12345678")
    call = answer.call
    assert (call.method, call.path, call.status, call.error_name) == ("DELETE", "/v1/order", 200, None)
    assert call.nonce == "5a2f6f0c-0a53-4d5a-8c84-6a8f7c1f6f10"
    assert len(call.query_hash) == 128
    assert call.remaining_req is not None
    assert call.remaining_req.startswith("group=default; min=1800; sec=")
    assert call.body is not None
    assert UUID in call.body
    exchange.settle(uuid)
    look = client.get_order(uuid)
    assert isinstance(look, Found)
    assert look.order.is_canceled


@pytest.mark.parametrize(
    "fields",
    [
        {"side": "bid", "ord_type": "price", "price": "500000", "volume": None},
        {"side": "bid", "ord_type": "best", "price": "500000", "volume": None, "time_in_force": "ioc"},
        {"side": "ask", "ord_type": "market", "price": None},
        {"state": "watch", "identifier": "my-own", "smp_type": "reduce"},
    ],
)
def test_every_kind_of_order_is_read(exchange: Exchange, client: UpbitClient, fields: dict[str, Any]) -> None:
    """Upbit leaves out what a kind of order does not have; such an order must be cancelable all the same."""
    uuid = exchange.place(**fields)
    look = client.get_order(uuid)
    assert isinstance(look, Found)
    assert look.order.is_open
    assert look.order.volume is None or fields.get("volume", "") is not None
    assert isinstance(cancel(client, uuid), Accepted)


def test_each_look_has_a_nonce_of_its_own(exchange: Exchange, client: UpbitClient) -> None:
    """Upbit takes a nonce once."""
    uuid = exchange.place()
    looks = [client.get_order(uuid) for _ in range(5)]
    assert all(isinstance(look, Found) for look in looks)
    assert len({look.call.nonce for look in looks}) == 5


def test_several_orders_are_one_look_with_bare_brackets() -> None:
    """Upbit wants `[` and `]` as they are, on the wire and under the hash."""
    body = json.dumps([ORDER]).encode()
    with RawServer(answering(http(body))) as server, client_of(server.url) as client:
        answer = client.get_orders([UUID, OTHER_UUID])
    assert isinstance(answer, FoundOrders)
    assert [order.uuid for order in answer.orders] == [UUID]
    (request,) = server.requests
    assert request.startswith(f"GET /v1/orders/uuids?uuids[]={UUID}&uuids[]={OTHER_UUID} HTTP/1.1\r\n".encode())


def test_a_hundred_orders_are_read_at_once(exchange: Exchange, client: UpbitClient) -> None:
    """So hundreds of open requests cost a few calls; what Upbit does not know is left out of its answer."""
    uuids = [exchange.place() for _ in range(MAX_ORDERS - 1)]
    exchange.fill(uuids[0])
    exchange.cancel_elsewhere(uuids[1])
    exchange.fill(uuids[2], "0.004")
    answer = client.get_orders([*uuids, str(uuid4())])
    assert isinstance(answer, FoundOrders)
    seen = {order.uuid: order for order in answer.orders}
    assert seen.keys() == set(uuids)
    assert [seen[uuid].state for uuid in uuids[:4]] == ["done", "cancel", "wait", "wait"]
    assert seen[uuids[2]].remaining_volume == Decimal("0.006")
    assert (answer.call.method, answer.call.path, answer.call.status) == ("GET", "/v1/orders/uuids", 200)
    assert len(exchange.requests) == 1


@pytest.mark.parametrize(
    "uuids", [[], [UUID, UUID], [UUID, "X"], [f"{UUID}&uuids[]={OTHER_UUID}"], [str(uuid4()) for _ in range(101)]]
)
def test_what_is_no_list_of_orders_is_not_signed(exchange: Exchange, client: UpbitClient, uuids: list[str]) -> None:
    """None, too many, one twice, or what would read as another list under the same hash."""
    with pytest.raises(ValueError, match="order"):
        client.get_orders(uuids)
    assert not exchange.requests


@pytest.mark.parametrize(
    ("mood", "kind"),
    [
        (Mood.DROP_AFTER, Unknown),
        (Mood.HTTP_500, Unknown),
        (Mood.REDIRECT, Unknown),
        (Mood.HTML_200, Unknown),
        (Mood.TRUNCATED, Unknown),
        (Mood.REFUSE, Refused),
        (Mood.RATELIMITED_429, Refused),
        (Mood.BANNED_418, Refused),
    ],
)
def test_a_look_at_several_orders_fails_like_one_at_one(
    exchange: Exchange, client: UpbitClient, mood: Mood, kind: type
) -> None:
    """The same line, the same brake, the same words."""
    uuid = exchange.place()
    exchange.set_mood("GET /v1/orders/uuids", mood, times=1)
    assert isinstance(client.get_orders([uuid]), kind)
    assert (client.hold_s("GET") > 0) == (mood in {Mood.RATELIMITED_429, Mood.BANNED_418})


def test_open_orders_come_by_the_page_stop_orders_included(exchange: Exchange, client: UpbitClient) -> None:
    """Without its states Upbit leaves the stop orders out, and nobody could cancel them."""
    placed = [exchange.place(state="watch" if n % 2 else "wait") for n in range(MAX_ORDERS + 5)]
    exchange.fill(placed[0])
    exchange.cancel_elsewhere(placed[1])
    newest = list(reversed(placed[2:]))
    first, second, third = (client.get_open_orders(page=page) for page in (1, 2, 3))
    for answer, uuids in ((first, newest[:MAX_ORDERS]), (second, newest[MAX_ORDERS:]), (third, [])):
        assert isinstance(answer, FoundOrders)
        assert [order.uuid for order in answer.orders] == uuids
        assert answer.listed == len(uuids)
        assert (answer.call.method, answer.call.path, answer.call.status) == ("GET", "/v1/orders/open", 200)
    query = "states[]=wait&states[]=watch&page=1&limit=100&order_by=desc"
    assert exchange.requests[0].query == query


@pytest.mark.parametrize(
    ("entries", "uuids", "listed"),
    [
        ([], [], 0),
        ([ORDER, ORDER], [], 2),
        ([ORDER, None, 1, "x", [], {}, {"uuid": OTHER_UUID}], [UUID], 7),
        ([{**ORDER, "state": "done"}, {**ORDER, "uuid": OTHER_UUID}], [OTHER_UUID], 2),
        ([{**ORDER, "uuid": f"{UUID}&identifier=Y"}], [], 1),
        ([{**ORDER, "uuid": OTHER_UUID, "price": "much"}, ORDER], [UUID], 2),
    ],
)
def test_what_is_no_open_order_is_not_offered(entries: list[Any], uuids: list[str], listed: int) -> None:
    """It would be chosen, and what then is asked to be canceled is not what was read."""
    with RawServer(answering(http(json.dumps(entries).encode()))) as server, client_of(server.url) as client:
        answer = client.get_open_orders(page=1)
    assert isinstance(answer, FoundOrders)
    assert [order.uuid for order in answer.orders] == uuids
    assert answer.listed == listed


@pytest.mark.parametrize("body", [b"OK", b"{}", b"null", json.dumps(ORDER).encode(), b"[" * 100_000])
def test_what_is_no_list_of_open_orders_is_unknown(body: bytes) -> None:
    """Not the same as that there are none."""
    with RawServer(answering(http(body))) as server, client_of(server.url) as client:
        assert isinstance(client.get_open_orders(page=1), Unknown)


@pytest.mark.parametrize(
    ("mood", "kind"),
    [(Mood.DROP_AFTER, Unknown), (Mood.HTTP_500, Unknown), (Mood.REFUSE, Refused), (Mood.RATELIMITED_429, Refused)],
)
def test_a_look_at_the_open_orders_fails_like_any_other(
    exchange: Exchange, client: UpbitClient, mood: Mood, kind: type
) -> None:
    """And it is held back by the same brake, so that it takes nothing from a cancel."""
    exchange.set_mood("GET /v1/orders/open", mood, times=1)
    assert isinstance(client.get_open_orders(page=1), kind)
    held = mood is Mood.RATELIMITED_429
    assert isinstance(client.get_open_orders(page=1), NotSent if held else FoundOrders)


def test_canceled_orders_come_by_the_time_of_their_creation(exchange: Exchange, client: UpbitClient) -> None:
    """The times are milliseconds: of ISO 8601 Upbit itself says that the token may not fit."""
    placed = [exchange.place(created_at=f"2026-11-0{day}T09:00:00+09:00") for day in (3, 1, 2, 2, 9)]
    for uuid in (placed[0], placed[1], placed[2], placed[4]):
        exchange.cancel_elsewhere(uuid)
    exchange.fill(placed[3])
    answer = client.get_canceled_orders(created_from=DAY, created_to=DAY + timedelta(days=7))
    assert isinstance(answer, FoundOrders)
    assert [order.uuid for order in answer.orders] == [placed[1], placed[2], placed[0]]
    assert (answer.listed, answer.call.path, answer.call.status) == (3, "/v1/orders/closed", 200)
    first = client.get_canceled_orders(
        created_from=DAY.astimezone(timezone(timedelta(hours=9))), created_to=DAY + timedelta(days=7), limit=1
    )
    assert isinstance(first, FoundOrders)
    assert [order.uuid for order in first.orders] == [placed[1]]
    assert [request.query for request in exchange.requests] == [
        f"states[]=cancel&start_time=1793491200000&end_time=1794096000000&limit={limit}&order_by=asc"
        for limit in (1000, 1)
    ]


@pytest.mark.parametrize(
    ("begins", "lasts", "limit"),
    [
        (DAY, timedelta(days=7, microseconds=1), 1000),
        (DAY, timedelta(microseconds=-1), 1000),
        (DAY.replace(tzinfo=None), timedelta(1), 1000),
        (DAY, timedelta(1), 1001),
        (DAY, timedelta(1), 0),
    ],
)
def test_what_is_no_window_is_not_signed(
    exchange: Exchange, client: UpbitClient, begins: datetime, lasts: timedelta, limit: int
) -> None:
    """Upbit would refuse it, or worse, answer another question."""
    with pytest.raises(ValueError, match=r"offset|7 days|1000"):
        client.get_canceled_orders(created_from=begins, created_to=begins + lasts, limit=limit)
    assert not exchange.requests


CANCELED = {**ORDER, "state": "cancel"}


@pytest.mark.parametrize(
    ("entries", "cause"),
    [
        ([CANCELED, None], "malformed_order"),
        ([CANCELED, CANCELED], "malformed_order"),
        ([CANCELED, {**CANCELED, "uuid": OTHER_UUID, "volume": "much"}], "malformed_order"),
        ([{**CANCELED, "uuid": f"{UUID}&identifier=Y"}], "malformed_order"),
        ([CANCELED, {**ORDER, "uuid": OTHER_UUID}], "wrong_order"),
        ([CANCELED, {**ORDER, "uuid": OTHER_UUID, "state": "done"}], "wrong_order"),
        ({"orders": []}, "not_json"),
    ],
)
def test_a_list_of_canceled_orders_is_whole_or_none(entries: object, cause: str) -> None:
    """What is compared with a part of a list looks finer than it is."""
    with RawServer(answering(http(json.dumps(entries).encode()))) as server, client_of(server.url) as client:
        answer = client.get_canceled_orders(created_from=DAY, created_to=DAY)
    assert isinstance(answer, Unknown)
    assert answer.cause == cause


@pytest.mark.parametrize(
    ("mood", "kind"),
    [
        (Mood.DROP_AFTER, Unknown),
        (Mood.HTTP_500, Unknown),
        (Mood.WRONG_UUID, Unknown),
        (Mood.TRUNCATED, Unknown),
        (Mood.REFUSE, Refused),
        (Mood.RATELIMITED_429, Refused),
        (Mood.BANNED_418, Refused),
    ],
)
def test_a_look_at_the_canceled_orders_fails_like_any_other(
    exchange: Exchange, client: UpbitClient, mood: Mood, kind: type
) -> None:
    """The same line, the same brake, the same words."""
    exchange.set_mood("GET /v1/orders/closed", mood, times=1)
    assert isinstance(client.get_canceled_orders(created_from=DAY, created_to=DAY), kind)
    assert (client.hold_s("GET") > 0) == (mood in {Mood.RATELIMITED_429, Mood.BANNED_418})


def test_how_the_latest_calls_ended_is_remembered_for_who_asks() -> None:
    """People are told whether Upbit answers, and since when it does not, without a call more."""
    clock = Clock()
    with Exchange(keys=(KEY,)) as exchange, client_of(exchange.url, monotonic=clock) as client:
        assert client.health() == ExchangeHealth()
        uuid = exchange.place()
        client.get_order(uuid)
        clock.now_s += 10
        assert client.health() == ExchangeHealth(answered_ago_s=10)
        client.get_order("00000000-0000-4000-8000-000000000000")
        assert client.health() == ExchangeHealth(answered_ago_s=0)  # not found is an answer, too
        exchange.set_mood("GET", Mood.HTTP_500, times=1)
        clock.now_s += 10
        client.get_order(uuid)
        clock.now_s += 1
        assert client.health() == ExchangeHealth(answered_ago_s=11, failed_ago_s=1, cause="http_500")
        client.get_order(uuid)
        assert client.health() == ExchangeHealth(answered_ago_s=0)
        exchange.set_mood("GET", Mood.REFUSE, times=1, status=401, name="expired_access_key")
        client.get_order(uuid)
        assert client.health().cause == "expired_access_key"
        exchange.set_mood("GET", Mood.BANNED_418, times=1, seconds=60)
        client.get_order(uuid)
        held = client.health()
        assert held.is_banned
        assert 59 <= held.held_for_s <= 61
    assert len(exchange.requests) == 6


def test_an_exchange_that_cannot_be_reached_is_no_answer() -> None:
    """Nothing listens there."""
    with Exchange(keys=(KEY,)) as exchange:
        url = exchange.url
    with client_of(url) as client:
        client.get_order(UUID)
        health = client.health()
    assert (health.answered_ago_s, health.cause) == (None, "connect_failed")


@pytest.mark.parametrize("uuid", ["", "X", f"{UUID}&identifier=Y", UUID.upper(), f"{UUID}\n", "../accounts"])
def test_what_is_no_uuid_is_not_signed(exchange: Exchange, client: UpbitClient, uuid: str) -> None:
    """The hash under the token does not bind the structure of the query."""
    with pytest.raises(ValueError, match="uuid"):
        client.get_order(uuid)
    with pytest.raises(ValueError, match="uuid"):
        client.cancel_order(uuid, nonce="n")
    assert not exchange.requests


def test_nothing_but_looks_and_the_cancel_of_one_order_ever_leaves(exchange: Exchange, client: UpbitClient) -> None:
    """The key that cancels can place orders too; this client cannot."""
    for mood in Mood:
        if mood in {Mood.HANG, Mood.SLOW, Mood.BANNED_418, Mood.RATELIMITED_429}:
            continue
        for method in ("GET", "DELETE"):
            exchange.set_mood(method, mood, times=2)
        uuid = exchange.place()
        client.get_order(uuid)
        cancel(client, uuid)
        client.get_order(uuid)
        client.get_orders([uuid])
        client.get_open_orders(page=1)
        client.get_canceled_orders(created_from=DAY, created_to=DAY)
    assert {(seen.method, seen.path) for seen in exchange.requests} == {
        ("GET", "/v1/order"),
        ("GET", "/v1/orders/uuids"),
        ("GET", "/v1/orders/open"),
        ("GET", "/v1/orders/closed"),
        ("DELETE", "/v1/order"),
    }
    verbs = {name for name in dir(UpbitClient) if not name.startswith("_")}
    assert verbs == {
        "get_order",
        "get_orders",
        "get_open_orders",
        "get_canceled_orders",
        "cancel_order",
        "cancel_call",
        "hold_s",
        "banned_s",
        "health",
        "close",
    }


def test_the_environment_changes_nothing(
    exchange: Exchange, client: UpbitClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A proxy would see the token; a .netrc would replace it."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    assert isinstance(client.get_order(exchange.place()), Found)
    assert exchange.requests[0].headers["authorization"].startswith("Bearer ")


def test_cookies_are_not_sent_back() -> None:
    """A gateway's cookie ties requests together that have nothing to do with each other."""
    answers = [http(headers="Set-Cookie: a=b; Path=/\r\n")] * 2
    with RawServer(answering(*answers)) as server, client_of(server.url) as client:
        for _ in range(2):
            assert isinstance(client.get_order(UUID), Found)
    assert not any(b"cookie" in request.lower() for request in server.requests)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://api.upbit.com",
        "https://",
        "api.upbit.com",
        "https://user:pw@api.upbit.com",
        "https://api.upbit.com/v1",
        "https://api.upbit.com?a=b",
    ],
)
def test_a_server_url_is_scheme_and_host(url: str) -> None:
    """A path before ours would send the token somewhere else."""
    with pytest.raises(ValueError, match="server's URL"):
        UpbitClient(server_url=url, access_key=ACCESS_KEY, secret_key=SECRET_KEY)


# What an answer says

ERROR_TABLE = [
    (400, "validation_error", True),
    (400, "invalid_parameter", True),
    (400, "bad_request", True),
    (400, "QUERY_PARAMETER_NOT_SUPPORTED", True),
    (401, "invalid_query_payload", True),
    (401, "jwt_verification", True),
    (401, "no_authorization_token", True),
    (401, "invalid_access_key", True),
    (401, "expired_access_key", True),
    (401, "no_authorization_ip", True),
    (401, "no_authorization_i_p", True),
    (401, "out_of_scope", True),
    (403, "out_of_scope", True),
    (401, "nonce_used", False),
    (404, "order_not_found", False),
    (400, "order_not_found", False),
    (400, "something_new", False),
    (422, "something_else", False),
]


@pytest.mark.parametrize(("status", "name", "certain"), ERROR_TABLE)
def test_an_error_is_read_by_its_name(status: int, name: str, *, certain: bool) -> None:
    """Only the names that prove it may count as "nothing was canceled"; everything else asks for a look."""
    body = json.dumps({"error": {"name": name, "message": "주문을 찾지 못했습니다."}}).encode()
    assert decipher(status, {}, body, uuid=UUID) == Refusal(
        name=name, proves_nothing_happened=certain, message="주문을 찾지 못했습니다."
    )


@pytest.mark.parametrize(("status", "name", "certain"), ERROR_TABLE)
def test_a_refusal_tells_name_and_certainty(
    exchange: Exchange, client: UpbitClient, status: int, name: str, *, certain: bool
) -> None:
    """The same, all the way through the wire."""
    exchange.set_mood("DELETE", Mood.REFUSE, status=status, name=name)
    answer = cancel(client, exchange.place())
    assert isinstance(answer, Refused)
    assert (answer.name, answer.proves_nothing_happened, answer.retry_after_s) == (name, certain, None)
    assert (answer.call.status, answer.call.error_name) == (status, name)


def test_the_certain_names_are_those_of_the_table() -> None:
    """A name added in passing would turn a doubt into a certainty."""
    assert {name for _, name, certain in ERROR_TABLE if certain} == CERTAIN_NAMES


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"", "not_json"),
        (b"OK", "not_json"),
        (b"<html></html>", "not_json"),
        (b"[]", "not_json"),
        (b"null", "not_json"),
        (ORDER_JSON[:-1], "not_json"),
        (ORDER_JSON + b"x", "not_json"),
        (b"\xff" + ORDER_JSON, "not_json"),
        (ORDER_JSON.replace(b'"price": ', b'"price": "1", "price": '), "not_json"),
        (ORDER_JSON.replace(b'"wait"', b"NaN"), "not_json"),
        (ORDER_JSON.replace(b'"0.01"', b"1" * 5_000), "not_json"),
        (ORDER_JSON.replace(b'"0.01"', b"1e99999999999999999999"), "not_json"),
        (ORDER_JSON.replace(b"[1]", b"[" * 100_000 + b"]" * 100_000), "not_json"),
        (ORDER_JSON.replace(b"KRW-BTC", b"KRW-\\ud800"), "not_json"),
        (ORDER_JSON.replace(b"KRW-BTC", b"KRW-\\u0000"), "not_json"),
        (ORDER_JSON.replace(UUID.encode(), OTHER_UUID.encode()), "wrong_order"),
        (ORDER_JSON.replace(UUID.encode(), UUID.upper().encode()), "wrong_order"),
        (b'{"error": {"name": "order_not_found", "message": ""}}', "wrong_order"),
        (b'{"uuid": "%s"}' % UUID.encode(), "malformed_order"),
        (ORDER_JSON.replace(b'"wait"', b"1"), "malformed_order"),
        (ORDER_JSON.replace(b'"987654321.12345678"', b'"1e999999"'), "malformed_order"),
    ],
)
def test_a_200_that_is_not_this_order_is_a_doubt(body: bytes, cause: str) -> None:
    """Somebody else's order, half an order or a page is no proof that this one was accepted."""
    assert decipher(200, {}, body, uuid=UUID) == Doubt(cause=cause)


OTHER = {**ORDER, "uuid": OTHER_UUID, "state": "done"}


@pytest.mark.parametrize(
    ("entries", "found"),
    [
        ([], set()),
        ([ORDER, OTHER], {UUID, OTHER_UUID}),
        ([ORDER, {**OTHER, "uuid": "22222222-2897-4e14-9448-f923320408ad"}], {UUID}),
        ([ORDER, {**OTHER, "uuid": OTHER_UUID.upper()}], {UUID}),
        ([ORDER, OTHER, {**OTHER, "state": "wait"}], {UUID}),
        ([ORDER, OTHER, OTHER], {UUID}),
        ([ORDER, {**OTHER, "state": None}], {UUID}),
        ([ORDER, {**OTHER, "price": "1e999999"}], {UUID}),
        ([ORDER, {"uuid": OTHER_UUID}, None, 1, "x", [], {"uuid": [OTHER_UUID]}], {UUID}),
    ],
)
def test_an_entry_counts_only_where_it_is_whole_and_unambiguous(entries: list[Any], found: set[str]) -> None:
    """One order that is wrong takes nothing from the others, and nothing is known of it afterwards."""
    read = decipher_orders(200, {}, json.dumps(entries).encode(), uuids={UUID, OTHER_UUID})
    assert isinstance(read, tuple)
    assert {order.uuid for order in read} == found


def test_an_entry_with_a_field_twice_takes_nothing_from_the_others() -> None:
    """Which of the two would count is anybody's guess."""
    twice = json.dumps(OTHER).replace('"state": ', '"state": "wait", "state": ')
    read = decipher_orders(200, {}, f"[{json.dumps(ORDER)}, {twice}]".encode(), uuids={UUID, OTHER_UUID})
    assert isinstance(read, tuple)
    assert [order.uuid for order in read] == [UUID]


@pytest.mark.parametrize(
    "body", [b"", b"OK", ORDER_JSON, b"null", b"[" + ORDER_JSON, b"[NaN]", b"\xff[]", b'["\\ud800"]']
)
def test_a_200_that_is_no_list_is_a_doubt(body: bytes) -> None:
    """A page of a gateway says nothing of any order."""
    assert decipher_orders(200, {}, body, uuids={UUID}) == Doubt(cause="not_json")


def test_amounts_keep_every_digit_as_text_or_number() -> None:
    """A float would lose the last digits of 987654321.12345678."""
    for price in (b'"987654321.12345678"', b"987654321.12345678"):
        order = decipher(200, {}, ORDER_JSON.replace(b'"987654321.12345678"', price), uuid=UUID)
        assert isinstance(order, Order)
        assert order.price == Decimal("987654321.12345678")


@pytest.mark.parametrize("status", [100, 101, 103, 201, 204, 301, 302, 307, 308, 404, 408, 500, 502, 503, 599])
@pytest.mark.parametrize("body", [b"", b"<html>", ORDER_JSON, b'{"error": 5}', b'{"error": {"name": 400}}'])
def test_a_status_without_an_errors_name_is_a_doubt(status: int, body: bytes) -> None:
    """A gateway's page is not Upbit's word, whatever number it carries."""
    cause = "redirect" if 300 <= status < 400 else f"http_{status}"
    assert decipher(status, {}, body, uuid=UUID) == Doubt(cause=cause)


@pytest.mark.parametrize("body", [b"Too many API requests.", b"", b'{"error": {"message": "Too many"}}', b"\xff{"])
def test_429_and_418_are_understood_with_and_without_json(body: bytes) -> None:
    """Neither has a documented name, and 429 was seen as plain text."""
    limited = decipher(429, {}, body, uuid=UUID)
    assert isinstance(limited, Refusal)
    assert (limited.name, limited.proves_nothing_happened, limited.retry_after_s) == ("too_many_requests", True, 1.0)
    banned = decipher(418, {}, body, uuid=UUID)
    assert isinstance(banned, Refusal)
    assert (banned.name, banned.proves_nothing_happened, banned.retry_after_s) == ("banned", True, 60.0)


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({}, "", 60),
        ({}, "30", 60),
        ({}, "Blocked for 30 seconds.", 30),
        ({}, "blocked for 1 second", 1),
        ({}, "blocked for 0 seconds", 60),
        ({}, "Blocked for 2 minutes and 30 sec", 120),
        ({}, "30 requests per 1 second exceeded; wait 2 hours", 7_200),
        ({}, "10분 동안 차단되었습니다", 600),
        ({}, "90초간", 90),
        ({}, "1시간", 3_600),
        ({}, "3 days", 86_400),
        ({}, "999999999 hours", 86_400),
        ({}, "error 5 md5 7 hosts", 60),
        ({"retry-after": "15"}, "", 15),
        ({"Retry-After": "15"}, "30 seconds", 30),
        ({"Retry-After": "soon"}, "", 60),
        ({"Retry-After": "9" * 50}, "", 60),
    ],
)
def test_the_time_of_a_ban_is_read_from_what_upbit_tells(headers: dict[str, str], body: str, seconds: float) -> None:
    """Too short a pause makes the ban longer; a number that is no time must not stop the bot for a day."""
    assert ban_s(headers, body.encode()) == seconds


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)
orders = st.fixed_dictionaries(
    {}, optional={**{name: json_values | st.just(value) for name, value in ORDER.items()}, "error": json_values}
)
bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | orders.map(lambda value: json.dumps(value).encode())
)


@given(
    status=st.integers() | st.sampled_from([200, 200, 200, 400, 404, 418, 429]),
    headers=st.dictionaries(st.text() | st.just("Retry-After"), st.text() | st.integers().map(str)),
    body=bodies,
    uuid=st.sampled_from([UUID, OTHER_UUID]),
)
def test_whatever_is_answered_is_deciphered(status: int, headers: dict[str, str], body: bytes, uuid: str) -> None:
    """An exception here would lose a cancel that may have worked, and another order's answer must never count."""
    match decipher(status, headers, body, uuid=uuid):
        case Order() as order:
            assert status == 200
            assert order.uuid == uuid
            json.dumps(order.to_json(), ensure_ascii=False).encode()
        case Refusal() as refusal:
            assert 400 <= status < 500
            assert status in {418, 429} or refusal.name in CERTAIN_NAMES or not refusal.proves_nothing_happened
            (refusal.name + refusal.message).encode()
        case Doubt() as doubt:
            assert doubt.cause


# Surely not sent


def test_a_refused_connection_is_not_sent() -> None:
    """Not a byte left: it may be sent again."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with client_of(f"http://127.0.0.1:{port}") as client:
        answer = cancel(client)
    assert isinstance(answer, NotSent)
    assert answer.cause == "connect_failed"
    assert answer.call.status is None


def test_a_host_that_does_not_answer_the_connection_is_not_sent() -> None:
    """A connect time-out comes before the request."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = [socket.socket() for _ in range(4)]  # fill the queue, so that the next one gets no answer
        for each in waiting:
            each.settimeout(0)
            each.connect_ex(listener.getsockname())
        with client_of(f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_s=0.2) as client:
            answer = cancel(client)
        for each in waiting:
            each.close()
    assert isinstance(answer, NotSent)
    assert answer.cause == "connect_timeout"


def test_a_name_that_does_not_resolve_is_not_sent() -> None:
    """DNS failed: there was nobody to send anything to."""

    def no_such_name(host: str, port: int) -> Sequence[str]:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")

    with client_of("http://upbit.invalid", resolve=no_such_name) as client:
        answer = cancel(client)
    assert isinstance(answer, NotSent)
    assert answer.cause == "dns"


def test_a_resolver_that_hangs_is_left_behind_at_the_deadline() -> None:
    """The system's resolver cannot be interrupted and takes up to half a minute."""
    over = threading.Event()

    def hanging(host: str, port: int) -> Sequence[str]:
        over.wait()
        return ()

    with client_of("http://upbit.invalid", resolve=hanging, deadline_s=0.3) as client:
        began_at = time.monotonic()
        answer = cancel(client)
        lasted_s = time.monotonic() - began_at
    over.set()
    assert isinstance(answer, NotSent)
    assert answer.cause == "dns"
    assert 0.25 < lasted_s < 0.6


def test_the_next_address_is_tried_where_the_first_refuses(exchange: Exchange) -> None:
    """A host has several addresses so that one of them may be down."""
    port = int(exchange.url.rpartition(":")[2])

    def two(host: str, asked_port: int) -> Sequence[str]:
        assert (host, asked_port) == ("upbit.invalid", port)
        return ["127.0.0.2", "127.0.0.1"]

    with client_of(f"http://upbit.invalid:{port}", resolve=two) as client:
        assert isinstance(client.get_order(exchange.place()), Found)


def test_an_untrusted_certificate_is_not_sent(server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch) -> None:
    """The token must not reach a server that cannot prove who it is, whatever the environment says."""
    monkeypatch.setenv("PYTHONHTTPSVERIFY", "0")
    with Exchange(keys=[KEY], tls=server_tls) as exchange, client_of(exchange.url) as client:
        answer = cancel(client, exchange.place())
        assert isinstance(answer, NotSent)
        assert answer.cause == "tls_handshake"
        assert not exchange.requests


def test_a_certificate_for_another_host_is_not_sent(server_tls: ssl.SSLContext, ca_bundle: str) -> None:
    """A good certificate of somebody else proves nothing."""
    with Exchange(keys=[KEY], tls=server_tls) as exchange:
        url = exchange.url.replace("127.0.0.1", "upbit.invalid")
        with client_of(url, ca_bundle=ca_bundle, resolve=lambda *_: ["127.0.0.1"]) as client:
            answer = cancel(client, exchange.place())
        assert isinstance(answer, NotSent)
        assert answer.cause == "tls_handshake"
        assert not exchange.requests


def test_the_environment_adds_no_certificate_authority(
    server_tls: ssl.SSLContext, ca_bundle: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who may vouch for Upbit is decided in one place."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", ca_bundle)
    monkeypatch.setenv("CURL_CA_BUNDLE", ca_bundle)
    with Exchange(keys=[KEY], tls=server_tls) as exchange, client_of(exchange.url) as client:
        assert isinstance(cancel(client, exchange.place()), NotSent)
        assert not exchange.requests


def answers_garbage(server: RawServer, connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"this is not TLS\r\n\r\n")


def closes_at_once(server: RawServer, connection: socket.socket) -> None:
    connection.recv(1)


def says_nothing(server: RawServer, connection: socket.socket) -> None:
    server.stopping.wait()


def drips_a_handshake(server: RawServer, connection: socket.socket) -> None:
    connection.recv(65_536)
    connection.sendall(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc")  # a long ServerHello begins
    while not server.stopping.wait(0.1):
        connection.sendall(b"\x03")


@pytest.mark.parametrize("script", [answers_garbage, closes_at_once, says_nothing, drips_a_handshake])
def test_a_handshake_that_fails_is_not_sent(script: Callable[[RawServer, socket.socket], None]) -> None:
    """The request is written after the handshake only; one that hangs ends at the deadline."""
    with RawServer(script) as server, client_of(server.url.replace("http:", "https:"), deadline_s=0.4) as client:
        began_at = time.monotonic()
        answer = cancel(client)
        lasted_s = time.monotonic() - began_at
    assert isinstance(answer, NotSent)
    assert answer.cause == "tls_handshake"
    assert lasted_s < 0.7


def test_the_deadline_counts_the_resolver_the_connection_and_the_handshake_together() -> None:
    """Three limits one after the other would keep people waiting for three times as long."""
    never = threading.Event()

    def slow(host: str, port: int) -> Sequence[str]:
        never.wait(0.3)
        return ["127.0.0.1"]

    with RawServer(says_nothing) as server:
        url = server.url.replace("http://127.0.0.1", "https://upbit.invalid")
        with client_of(url, resolve=slow, deadline_s=0.5) as client:
            began_at = time.monotonic()
            answer = cancel(client)
            lasted_s = time.monotonic() - began_at
    assert isinstance(answer, NotSent)
    assert answer.cause == "tls_handshake"
    assert 0.45 < lasted_s < 0.5 * 1.1 + 0.15


# Unknown


def closes_before_reading(server: RawServer, connection: socket.socket) -> None:
    """Leaves the request to the system, which takes it and answers with a reset."""


def closes_after_reading(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)


def resets_after_reading(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def half_chunked(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n400\r\n" + ORDER_JSON[:100])


LOST = [
    ("connection_lost", closes_before_reading),
    ("connection_lost", closes_after_reading),
    ("connection_lost", resets_after_reading),
    ("connection_lost", half_chunked),
    ("connection_lost", answering(http()[:60])),
    ("connection_lost", answering(http()[:-20])),
    ("connection_lost", answering(b"garbage\r\n\r\n")),
    ("connection_lost", answering(b"HTTP/1.1 abc OK\r\n\r\n")),
    ("connection_lost", answering(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 1_000 + b"\r\n")),
    ("connection_lost", answering(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n")),
    ("not_json", answering(b"HTTP/1.1 200 OK\r\n\r\n" + ORDER_JSON[:-20])),
    ("not_json", answering(http(headers="Content-Encoding: gzip\r\n", body=b"\x1f\x8b"))),
    ("http_103", answering(b"HTTP/1.1 103 Early Hints\r\n\r\n" + http())),
    ("http_101", answering(b"HTTP/1.1 101 Switching Protocols\r\n\r\n" + http())),
    ("http_204", answering(b"HTTP/1.1 204 No Content\r\n\r\n")),
]


@pytest.mark.parametrize(("cause", "script"), LOST)
def test_an_answer_that_is_lost_or_broken_is_unknown(
    cause: str, script: Callable[[RawServer, socket.socket], None]
) -> None:
    """The request left: the cancel may have worked, and it is not sent again."""
    with RawServer(script) as server, client_of(server.url) as client:
        answer = cancel(client)
    assert isinstance(answer, Unknown)
    assert answer.cause == cause
    assert server.connections == 1
    assert len(server.requests) <= 1


def test_a_reset_before_the_request_is_never_more_than_unknown() -> None:
    """It may come while connecting (not sent) or while writing (unknown): both are the truth, nothing else is."""

    def resets_at_once(server: RawServer, connection: socket.socket) -> None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with RawServer(resets_at_once) as server, client_of(server.url) as client:
        answers = [cancel(client) for _ in range(30)]
    assert {type(answer) for answer in answers} <= {Unknown, NotSent}
    assert not server.requests


@pytest.fixture
def line() -> Iterator[tuple[PlainConnection, socket.socket]]:
    """A connection that is open already, and its other end."""
    ours, theirs = socket.socketpair()
    connection = PlainConnection("upbit.invalid", 80)
    connection.sock = ours
    with theirs:
        yield connection, theirs
    connection.close()


def test_a_write_that_fails_counts_as_written(line: tuple[PlainConnection, socket.socket]) -> None:
    """How much of it left is not known: the system says only that not all of it was taken."""
    connection, theirs = line
    theirs.close()
    attempt = Attempt(deadline_s=5, resolve=lambda *_: ())
    ATTEMPT.set(attempt)
    with pytest.raises(BrokenPipeError):
        connection.send(b"DELETE")
    assert attempt.written


def test_nothing_is_written_after_the_deadline(line: tuple[PlainConnection, socket.socket]) -> None:
    """Time that ran out before the first byte makes it surely not sent."""
    connection, theirs = line
    attempt = Attempt(deadline_s=5, resolve=lambda *_: ())
    ATTEMPT.set(attempt)
    attempt.expire()
    with pytest.raises(TimeoutError):
        connection.send(b"DELETE")
    assert not attempt.written
    theirs.setblocking(False)  # noqa: FBT003 - the signature is socket's
    with pytest.raises(BlockingIOError):
        theirs.recv(1)


@pytest.mark.parametrize(
    "script", [closes_after_reading, resets_after_reading, answering(http()[:60]), answering(b"HTTP/1.1 20")]
)
def test_tls_that_breaks_after_the_request_is_unknown(
    server_tls: ssl.SSLContext, ca_bundle: str, script: Callable[[RawServer, socket.socket], None]
) -> None:
    """A TLS error is *not sent* in the handshake only; later it says nothing about the cancel."""
    with RawServer(script, server_tls) as server, client_of(server.url, ca_bundle=ca_bundle) as client:
        answer = cancel(client)
    assert isinstance(answer, Unknown)
    assert answer.cause == "connection_lost"
    assert len(server.requests) == 1


def test_a_broken_tls_record_after_the_request_is_unknown(server_tls: ssl.SSLContext, ca_bundle: str) -> None:
    """The same exception class as a failed handshake, and the opposite meaning."""

    def breaks_the_record(server: RawServer, connection: socket.socket) -> None:
        server.read_request(connection)
        assert isinstance(connection, ssl.SSLSocket)
        with socket.socket(fileno=connection.detach()) as below:
            below.sendall(b"\x17\x03\x03\x00\x20" + b"x" * 32)
            server.stopping.wait()

    with RawServer(breaks_the_record, server_tls) as server, client_of(server.url, ca_bundle=ca_bundle) as client:
        answer = cancel(client)
    assert isinstance(answer, Unknown)
    assert answer.cause == "connection_lost"
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("mood", "cause"),
    [
        (Mood.DROP_BEFORE, "connection_lost"),
        (Mood.DROP_AFTER, "connection_lost"),
        (Mood.HTTP_500, "http_500"),
        (Mood.HTTP_500_AFTER, "http_500"),
        (Mood.HTML_502, "http_502"),
        (Mood.REDIRECT, "redirect"),
        (Mood.WRONG_UUID, "wrong_order"),
        (Mood.NOT_JSON_200, "not_json"),
        (Mood.HTML_200, "not_json"),
        (Mood.TRUNCATED, "connection_lost"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE"])
def test_a_mood_of_the_exchange_is_unknown_and_tried_once(
    exchange: Exchange, client: UpbitClient, mood: Mood, cause: str, method: str
) -> None:
    """Other clients resend the DELETE, follow the redirect with a GET, or take a page for a result."""
    uuid = exchange.place()
    exchange.set_mood(method, mood)
    answer = client.get_order(uuid) if method == "GET" else cancel(client, uuid)
    assert isinstance(answer, Unknown)
    assert answer.cause == cause
    assert [seen.method for seen in exchange.requests] == [method]


@pytest.mark.parametrize("framing", ["Content-Length: 5000000\r\n", "Transfer-Encoding: chunked\r\n", ""])
def test_an_endless_answer_is_not_read(framing: str) -> None:
    """An answer about one order has a few hundred bytes; a megabyte comes from something that is not Upbit."""
    sent = []

    def endless(server: RawServer, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(f"HTTP/1.1 200 OK\r\n{framing}\r\n".encode())
        chunk = b" " * 65_536
        while not server.stopping.is_set():
            connection.sendall(b"10000\r\n" + chunk + b"\r\n" if "chunked" in framing else chunk)
            sent.append(len(chunk))

    with RawServer(endless) as server, client_of(server.url) as client:
        answer = cancel(client)
        assert server.done.acquire(timeout=5)
    assert isinstance(answer, Unknown)
    assert answer.cause == "too_large"
    assert answer.call.body is not None
    assert len(answer.call.body) == 2_000
    assert sum(sent) < 20_000_000


# Time


def drips_the_body(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    connection.sendall(f"HTTP/1.1 200 OK\r\nContent-Length: {len(ORDER_JSON)}\r\n\r\n".encode())
    for byte in ORDER_JSON:
        connection.sendall(bytes([byte]))
        if server.stopping.wait(0.2):
            return


def drips_the_head(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    for byte in http():
        connection.sendall(bytes([byte]))
        if server.stopping.wait(0.2):
            return


def never_answers(server: RawServer, connection: socket.socket) -> None:
    server.read_request(connection)
    server.stopping.wait()


@pytest.mark.parametrize("script", [drips_the_body, drips_the_head, never_answers])
@pytest.mark.parametrize("encrypted", [False, True])
def test_one_deadline_ends_everything(
    server_tls: ssl.SSLContext,
    ca_bundle: str,
    script: Callable[[RawServer, socket.socket], None],
    *,
    encrypted: bool,
) -> None:
    """The time-outs of requests are per read: a byte now and then would keep an approver waiting for ever."""
    with (
        RawServer(script, server_tls if encrypted else None) as server,
        client_of(server.url, deadline_s=0.5, ca_bundle=ca_bundle) as client,
    ):
        began_at = time.monotonic()
        answer = cancel(client)
        lasted_s = time.monotonic() - began_at
    assert isinstance(answer, Unknown)
    assert answer.cause == "timeout"
    assert 0.45 < lasted_s < 0.5 * 1.1 + 0.2
    assert len(server.requests) == 1


def test_a_read_that_takes_too_long_is_unknown(exchange: Exchange) -> None:
    """Shorter than the deadline, and the same outcome."""
    uuid = exchange.place()
    exchange.set_mood("DELETE", Mood.HANG, after=True)
    with client_of(exchange.url, read_timeout_s=0.2) as client:
        answer = cancel(client, uuid)
    assert isinstance(answer, Unknown)
    assert answer.cause == "timeout"
    assert len(exchange.deletes(uuid)) == 1


def test_the_deadline_of_one_call_does_not_touch_the_others(exchange: Exchange) -> None:
    """One watchdog serves all threads."""
    exchange.set_mood("DELETE", Mood.HANG)
    uuids = [exchange.place() for _ in range(20)]
    with client_of(exchange.url, deadline_s=0.4) as client, ThreadPoolExecutor(8) as threads:
        hanging = threads.submit(cancel, client, uuids[0])
        ends_at = time.monotonic() + 0.6
        looks = []
        while time.monotonic() < ends_at:
            looks += list(threads.map(client.get_order, uuids))
        answer = hanging.result()
        watchdogs = [thread for thread in threading.enumerate() if thread.name == "upbit-watchdog"]
    assert isinstance(answer, Unknown)
    assert all(isinstance(look, Found) for look in looks)
    assert len(watchdogs) == 1


def test_after_a_deadline_the_next_call_is_fine(exchange: Exchange) -> None:
    """The connection that was ended is not used again."""
    uuid = exchange.place()
    with client_of(exchange.url, deadline_s=0.2) as client:
        for _ in range(3):
            exchange.set_mood("GET", Mood.HANG, times=1)
            assert isinstance(client.get_order(uuid), Unknown)
            assert isinstance(client.get_order(uuid), Found)


# Kept connections


def test_one_connection_is_kept() -> None:
    """A handshake with Korea costs more than the call itself."""
    with RawServer(answering(*[http()] * 20)) as server, client_of(server.url) as client:
        assert all(isinstance(client.get_order(UUID), Found) for _ in range(20))
        assert server.connections == 1


@pytest.mark.parametrize("encrypted", [False, True])
def test_no_cancel_is_lost_where_the_server_closed_the_idle_connection(
    server_tls: ssl.SSLContext, ca_bundle: str, *, encrypted: bool
) -> None:
    """People cancel minutes apart; by then the server has long closed the kept connection."""
    with (
        RawServer(answering(http()), server_tls if encrypted else None) as server,
        client_of(server.url, ca_bundle=ca_bundle) as client,
    ):
        for _ in range(30):
            assert isinstance(cancel(client), Accepted)
            assert server.done.acquire(timeout=5)  # it is closed now
    assert server.connections == len(server.requests) == 30


def test_a_kept_connection_that_closes_while_the_request_is_written_is_unknown() -> None:
    """The race that nobody can see beforehand: the server may have read the cancel, so it is not sent again."""

    def second_is_lost(server: RawServer, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(http())
        server.read_request(connection)

    with RawServer(second_is_lost) as server, client_of(server.url) as client:
        assert isinstance(cancel(client), Accepted)
        answer = cancel(client)
        assert isinstance(answer, Unknown)
        assert answer.cause == "connection_lost"
        assert isinstance(cancel(client), Accepted)
    assert server.connections == 2
    assert len(server.requests) == 3


def test_an_interim_answer_ends_the_connection() -> None:
    """The real answer to the first request may follow on it, and would be read as that of the second."""
    late = http(ORDER_JSON.replace(b'"wait"', b'"cancel"'))

    def interim(server: RawServer, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(http() if server.connections > 1 else b"HTTP/1.1 103 Early Hints\r\n\r\n")
        server.read_request(connection)
        connection.sendall(late)

    with RawServer(interim) as server, client_of(server.url) as client:
        assert isinstance(client.get_order(UUID), Unknown)
        look = client.get_order(UUID)
    assert isinstance(look, Found)
    assert look.order.state == "wait"
    assert server.connections == 2


def test_what_comes_after_an_answer_is_not_the_next_answer() -> None:
    """A second answer on the line is nobody's: it must not be read as that of the next request."""
    stale = http(ORDER_JSON.replace(b'"wait"', b'"cancel"'))

    def too_much(server: RawServer, connection: socket.socket) -> None:
        server.read_request(connection)
        connection.sendall(http() + stale)
        server.stopping.wait(0.05)
        connection.sendall(stale)
        server.done.release()
        server.stopping.wait()

    with RawServer(too_much) as server, client_of(server.url) as client:
        for _ in range(2):
            look = client.get_order(UUID)
            assert isinstance(look, Found)
            assert look.order.state == "wait"
            assert server.done.acquire(timeout=5)


def test_eight_threads_cancel_at_once(exchange: Exchange, client: UpbitClient) -> None:
    """The worker has eight threads and one client."""
    uuids = [exchange.place() for _ in range(200)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda uuid: cancel(client, uuid), uuids))
    for uuid, answer in zip(uuids, answers, strict=True):
        assert isinstance(answer, Accepted)
        assert answer.order.uuid == uuid
        assert len(exchange.deletes(uuid)) == 1


def test_under_tls_it_is_the_same(server_tls: ssl.SSLContext, ca_bundle: str) -> None:
    """Upbit is reached over https only."""
    with Exchange(keys=[KEY], tls=server_tls, requests_per_s=1_000) as exchange:
        uuids = [exchange.place() for _ in range(40)]
        with client_of(exchange.url, ca_bundle=ca_bundle) as client, ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda uuid: cancel(client, uuid), uuids))
    assert all(isinstance(answer, Accepted) for answer in answers)


def test_a_closed_client_sends_nothing_and_leaves_nothing_behind(exchange: Exchange) -> None:
    """At a stop, a late worker must not begin a cancel that nobody will finish."""
    uuid = exchange.place()
    with client_of(exchange.url) as client:
        assert isinstance(client.get_order(uuid), Found)
    answer = cancel(client, uuid)
    assert isinstance(answer, NotSent)
    assert answer.cause == "closed"
    assert not exchange.deletes(uuid)
    assert not [thread for thread in threading.enumerate() if thread.name == "upbit-watchdog"]
    client.close()


def test_closing_closes_the_kept_connections() -> None:
    """An open socket would keep a server thread of Upbit's and a descriptor of ours."""
    with RawServer(answering(*[http()] * 2)) as server, client_of(server.url) as client:
        assert isinstance(client.get_order(UUID), Found)
        client.close()
        assert server.done.acquire(timeout=5)


def test_closing_waits_for_the_call_under_way(exchange: Exchange) -> None:
    """A cancel whose answer is coming is worth a moment."""
    uuid = exchange.place()
    exchange.set_mood("DELETE", Mood.SLOW, seconds=0.3)
    with (
        ThreadPoolExecutor(1) as threads,
        client_of(exchange.url) as client,
    ):
        answer = threads.submit(cancel, client, uuid)
        assert exchange.wait_for(lambda it: it.requests, timeout_s=5)
        assert isinstance(answer.result(), Accepted)


# When not to send


@pytest.mark.parametrize("plain", [False, True])
def test_after_429_nothing_is_sent_until_the_next_second(exchange: Exchange, *, plain: bool) -> None:
    """Going on after a 429 ends in a ban."""
    clock = Clock()
    uuid = exchange.place()
    exchange.set_mood("DELETE", Mood.RATELIMITED_429, times=1, plain=plain)
    with client_of(exchange.url, monotonic=clock) as client:
        answer = cancel(client, uuid)
        assert isinstance(answer, Refused)
        assert (answer.name, answer.proves_nothing_happened, answer.retry_after_s) == ("too_many_requests", True, 1.0)
        clock.now_s += 0.4
        for held in (client.get_order(uuid), cancel(client, uuid)):
            assert isinstance(held, NotSent)
            assert held.cause == "rate_limited"
            assert held.retry_after_s == pytest.approx(0.6)
        assert len(exchange.requests) == 1
        clock.now_s += 0.6
        assert isinstance(cancel(client, uuid), Accepted)


def test_after_429_a_cancel_goes_before_the_next_look(exchange: Exchange) -> None:
    """Where looks alone meet the limit, each would hold the cancels back for another second."""
    clock = Clock()
    uuid = exchange.place()
    exchange.set_mood("GET", Mood.RATELIMITED_429)
    with client_of(exchange.url, monotonic=clock) as client:
        assert isinstance(client.get_order(uuid), Refused)
        clock.now_s += 1.0
        look = client.get_order(uuid)
        assert isinstance(look, NotSent)
        assert (look.cause, client.hold_s("DELETE")) == ("reserved", 0)
        assert isinstance(cancel(client, uuid), Accepted)
        clock.now_s += CANCELS_FIRST_S
        assert isinstance(client.get_order(uuid), Refused)


def test_a_ban_stops_everything_for_the_time_told() -> None:
    """Each request during a ban makes it longer."""
    clock = Clock()
    with (
        RawServer(answering(http(b"Blocked for 90 seconds", "418 I'm a teapot"), http())) as server,
        client_of(server.url, monotonic=clock) as client,
    ):
        banned = client.get_order(UUID)
        assert isinstance(banned, Refused)
        assert (banned.name, banned.proves_nothing_happened, banned.retry_after_s) == ("banned", True, 90.0)
        clock.now_s += 89.5
        held = cancel(client)
        assert isinstance(held, NotSent)
        assert (held.cause, held.retry_after_s) == ("banned", 0.5)
        assert (server.connections, len(server.requests)) == (1, 1)
        clock.now_s += 0.5
        assert isinstance(cancel(client), Accepted)


def test_a_shorter_hold_does_not_end_a_longer_one() -> None:
    """Calls that were under way when the ban came bring their own answers, later and in any order."""
    clock = Clock()
    brake = _Brake(clock)
    brake.hold("banned", for_s=90)
    brake.hold("banned", for_s=60)
    brake.hold("rate_limited", for_s=100)
    assert brake.held("DELETE") == ("banned", 90)
    clock.now_s += 90
    assert brake.held("DELETE") == ("rate_limited", 10)
    clock.now_s += 10
    assert brake.held("DELETE") is None


@pytest.mark.parametrize(("status", "name"), [("418 Banned", "banned"), ("429 Too Many", "too_many_requests")])
def test_a_ban_counts_even_where_its_message_is_lost(status: str, name: str) -> None:
    """The status alone proves that nothing was done, and that the next request would make it worse."""
    with RawServer(answering(http(b"x" * 50, status)[:-10])) as server, client_of(server.url) as client:
        answer = cancel(client)
        assert isinstance(answer, Refused)
        assert (answer.name, answer.proves_nothing_happened) == (name, True)
        assert isinstance(cancel(client), NotSent)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    ("header", "looks_go_on", "cancels_go_on"),
    [
        ("group=default; min=1800; sec=0", False, False),
        ("group=default; min=1800; sec=000", False, False),
        ("group=default; min=1800; sec=1", False, True),
        ("group=default; min=1800; sec=09", False, True),
        ("group=default; min=1800; sec=10", True, True),
        ("group=default; min=0; sec=29", True, True),
        ("group=default; min=1800; sec=99999999999", True, True),
        ("nonsense", True, True),
        ("", True, True),
    ],
)
def test_what_is_left_of_this_second_belongs_to_cancels(header: str, *, looks_go_on: bool, cancels_go_on: bool) -> None:
    """Hundreds of looks at once must not keep a cancel waiting; and with nothing left, nobody goes on."""
    clock = Clock()
    answers = [http(headers=f"Remaining-Req: {header}\r\n")] * 4
    with RawServer(answering(*answers)) as server, client_of(server.url, monotonic=clock) as client:
        look = client.get_order(UUID)
        assert isinstance(look, Found)
        assert look.call.remaining_req == header
        assert isinstance(client.get_order(UUID), Found if looks_go_on else NotSent)
        assert isinstance(cancel(client, UUID), Accepted if cancels_go_on else NotSent)
        clock.now_s += 1
        assert isinstance(client.get_order(UUID), Found)


def test_a_hundred_looks_stay_within_the_limit() -> None:
    """With the exchange's own limit and no patience at all there is never a 429."""
    with Exchange(keys=[KEY], requests_per_s=5) as exchange, client_of(exchange.url) as client:
        uuid = exchange.place()
        answers = [client.get_order(uuid) for _ in range(100)]
    assert {type(answer) for answer in answers} == {Found, NotSent}


# Secrets


def frames_of(trace: TracebackType | None) -> str:
    """Every variable of every frame but the test's own, as a reporter that captures locals would show them."""
    shown = ""
    while trace is not None:
        if trace.tb_frame.f_code.co_filename != __file__:
            shown += repr(trace.tb_frame.f_locals)
        trace = trace.tb_next
    return shown


def assert_no_secret(text: str) -> None:
    assert ACCESS_KEY not in text
    assert SECRET_KEY not in text
    assert "eyJ" not in text


def test_a_refused_constructor_does_not_show_the_keys() -> None:
    """A wrong setting is the likeliest exception at the start, and its traceback goes to the log."""
    for server_url, access_key in (("nonsense", ACCESS_KEY), ("http://127.0.0.1", "")):
        with pytest.raises(ValueError) as caught:  # noqa: PT011 - which one does not matter
            UpbitClient(server_url=server_url, access_key=access_key, secret_key=SECRET_KEY)
        assert_no_secret(frames_of(caught.value.__traceback__))
        assert_no_secret(str(caught.value))
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None


def test_no_secret_in_reprs_logs_answers_and_tracebacks(
    caplog: pytest.LogCaptureFixture, exchange: Exchange, client: UpbitClient
) -> None:
    """Whatever happens on the way: logs are read by many, answers are kept in the audit for years."""
    caplog.set_level(logging.DEBUG)
    answers: list[object] = [client]
    for mood in Mood:
        if mood in {Mood.HANG, Mood.BANNED_418, Mood.RATELIMITED_429}:
            continue
        exchange.set_mood("DELETE", mood, seconds=0.01)
        answers.append(cancel(client, exchange.place()))
    with pytest.raises(ValueError, match="uuid") as caught:
        client.get_order("nonsense")
    trace = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert_no_secret("".join(trace.format()).replace("ACCESS_KEY", "").replace("SECRET_KEY", ""))
    assert_no_secret(frames_of(caught.value.__traceback__))
    assert_no_secret(repr(answers))
    assert "DELETE /v1/order" in caplog.text  # the libraries did log
    assert_no_secret(caplog.text)
    assert "Bearer" not in caplog.text


def test_a_failure_nobody_thought_of_is_unknown_and_does_not_escape() -> None:
    """An exception that escaped would carry the request with its token, and lose what is known about the cancel."""
    began = threading.Event()

    def nonsense(server: RawServer, connection: socket.socket) -> None:
        server.read_request(connection)
        began.set()
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: nonsense\r\nTransfer-Encoding: \xff\r\n\r\n")

    with RawServer(nonsense) as server, client_of(server.url) as client:
        assert isinstance(cancel(client), Unknown)
    with RawServer(nonsense) as server, client_of(server.url, resolve=lambda *_: 1 / 0) as client:
        assert isinstance(cancel(client), NotSent)  # whatever the resolver raises
    assert began.is_set()


def test_an_answer_that_echoes_the_request_is_scrubbed() -> None:
    """A gateway's error page may repeat the headers it was sent."""

    def echo(server: RawServer, connection: socket.socket) -> None:
        request = server.read_request(connection)
        token = request.split(b"Bearer ")[1].split(b"\r\n")[0].decode()
        error = {"name": f"bad {ACCESS_KEY}", "message": f"{token} \0 \ud800 {SECRET_KEY}"}
        body = json.dumps({"error": error}, ensure_ascii=False).encode(errors="surrogatepass")
        connection.sendall(http(body, "400 Bad Request", f"Remaining-Req: {ACCESS_KEY}\r\n"))
        request = server.read_request(connection)
        connection.sendall(http(json.dumps({"error": {**error, "message": token}}).encode(), "400 Bad Request"))

    with RawServer(echo) as server, client_of(server.url) as client:
        answers = [cancel(client), cancel(client)]
    assert isinstance(answers[0], Unknown)  # its JSON is broken
    assert isinstance(answers[1], Refused)
    assert answers[1].name == answers[1].call.error_name == "bad ***"
    assert_no_secret(repr(answers))
    for answer in answers:
        assert answer.call.body is not None
        assert "\0" not in answer.call.body
        answer.call.body.encode()


def test_a_call_never_sent_has_no_answer_in_it() -> None:
    """The audit must not show an answer that never came."""
    with client_of("http://127.0.0.1:9", resolve=lambda *_: ()) as client:
        answer = client.get_order(UUID)
    assert answer.call == Call(
        method="GET",
        path="/v1/order",
        nonce=answer.call.nonce,
        query_hash=answer.call.query_hash,
        elapsed_ms=answer.call.elapsed_ms,
    )
