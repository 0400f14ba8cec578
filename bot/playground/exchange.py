"""An Upbit exchange on loopback, for the demo and the tests: real HTTP, checked tokens, orders that live, and moods.

    Exchange
    ├── place, fill, cancel_elsewhere, settle, set_book    what happens on the market
    ├── set_mood, clear_moods                      how the exchange can fail
    ├── order, deletes, requests, wait_for         what it knows, and what reached it
    └── _Server                                    threads and sockets; nothing of Upbit in it

Independent of the bot: the token is checked by hand, so that bot and exchange cannot share a mistake.

https://global-docs.upbit.com/reference/order-cancel, https://global-docs.upbit.com/reference/get-order,
https://global-docs.upbit.com/reference/list-orders-by-ids, https://global-docs.upbit.com/reference/list-open-orders,
https://global-docs.upbit.com/reference/closed-order, https://global-docs.upbit.com/reference/list-orderbooks
"""

import base64
import binascii
import hashlib
import hmac
import json
import re
import socket
import ssl
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final, NoReturn, Self
from urllib.parse import parse_qsl, unquote
from uuid import UUID, uuid4

FEE_RATE: Final = Decimal("0.0005")
MAX_LOGGED_REQUESTS: Final = 10_000
MAX_ORDERS: Final = 100
MAX_CLOSED_ORDERS: Final = 1000
CLOSED_WINDOW: Final = timedelta(days=7)
VIOLATIONS_BEFORE_BAN: Final = 10
FIRST_BAN_S: Final = 60.0
ORDERBOOK_PATH: Final = "/v1/orderbook"
QUOTATIONS_PER_S: Final = 10
CLOCK_STEP_S: Final = 0.02
"""How often `wait_for` looks again, since an order can end by the clock alone."""


class Mood(StrEnum):
    """How a method can fail. What "the work" is: to look up the order, or to accept its cancel."""

    SLOW = "slow"  #: waits `seconds`, then does the work and answers
    HANG = "hang"  #: never answers, until it is cleared; does the work first where `after`
    DROP_BEFORE = "drop_before"  #: closes the connection, having done nothing
    DROP_AFTER = "drop_after"  #: does the work, then closes the connection
    HTTP_500 = "http_500"  #: does nothing
    HTTP_500_AFTER = "http_500_after"  #: does the work
    HTML_502 = "html_502"  #: a gateway's page; does nothing
    REDIRECT = "redirect"  #: 302 to the same path; does nothing
    RATELIMITED_429 = "ratelimited_429"  #: does nothing; plain text where `plain`, else JSON
    BANNED_418 = "banned_418"  #: does nothing, and bans everyone for `seconds`
    REFUSE = "refuse"  #: answers the error `name` with `status`; does the work first where `after`
    ORDER_NOT_FOUND_LIE = "order_not_found_lie"  #: 404, though the order is there; does the work first where `after`
    FILL_DURING_CANCEL = "fill_during_cancel"  #: accepts, and then the order fills
    PARTIAL_FILL_DURING_CANCEL = (
        "partial_fill_during_cancel"  #: accepts, fills `volume` (default half), cancels the rest
    )
    ACCEPT_NEVER_CANCELS = "accept_never_cancels"  #: accepts, and leaves the order open
    WRONG_UUID = "wrong_uuid"  #: does the work, answers 200 with another order
    NOT_JSON_200 = "not_json_200"  #: does the work, answers 200 with text
    HTML_200 = "html_200"  #: does the work, answers 200 with a page
    TRUNCATED = "truncated"  #: does the work, sends half the answer and closes the connection


@dataclass(frozen=True, kw_only=True, slots=True)
class Key:
    """An API key. `ips` None = from everywhere; `expires_at` in seconds of the exchange's clock, None = never."""

    access_key: str = "playground-access-key"
    secret_key: str = "playground-secret-key-with-forty-charact"
    permissions: frozenset[str] = frozenset({"view", "make_orders"})
    ips: frozenset[str] | None = None
    expires_at: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """A request as it came, before anything was done with it."""

    at: float
    method: str
    path: str
    query: str  #: as it came, URL-encoded
    headers: Mapping[str, str]
    body: bytes
    ip: str

    @property
    def fields(self) -> dict[str, str]:
        return dict(self.pairs)

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Name and value, as often as they come."""
        return parse_qsl(self.query, keep_blank_values=True)

    @property
    def uuids(self) -> list[str]:
        """The orders that it names, one by one or in a list."""
        return [value for name, value in self.pairs if name in {"uuid", "uuids[]"}]


@dataclass(frozen=True, kw_only=True, slots=True)
class Delete:
    """A DELETE of one order, and what became of it."""

    at: float
    uuid: str | None
    nonce: str | None  #: as claimed; None where there was no readable token
    verified: bool  #: the token was checked and found good
    effective: bool  #: it set a cancel going
    status: int | None  #: what was answered; None where the connection was closed instead
    error_name: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Reply:
    status: int
    body: bytes
    content_type: str = "application/json; charset=utf-8"
    headers: Mapping[str, str] = field(default_factory=dict)
    error_name: str | None = None
    verified: bool = False
    effective: bool = False
    sent_bytes: int | None = None  #: the connection is closed after so many bytes of the body


class _Refused(Exception):
    """Upbit's error, by status and name."""

    def __init__(self, status: int, name: str, message: str = "") -> None:
        self.status = status
        self.name = name
        self.message = message or f"({name})"


@dataclass(kw_only=True, slots=True)
class _ActiveMood:
    mood: Mood
    times_left: int | None
    seconds: float
    after: bool
    status: int
    name: str
    plain: bool
    volume: Decimal | None
    over: threading.Event = field(default_factory=threading.Event)

    def effect_of_cancel(self) -> Mood | None:
        return self.mood if self.mood in _CANCEL_MOODS else None


_CANCEL_MOODS: Final = {Mood.FILL_DURING_CANCEL, Mood.PARTIAL_FILL_DURING_CANCEL, Mood.ACCEPT_NEVER_CANCELS}


@dataclass(kw_only=True, slots=True)
class _Order:
    """An order on the market. Amounts that Upbit derives are derived here; `fields` overrules what is shown."""

    uuid: str
    side: str
    ord_type: str
    market: str
    created_at: str
    state: str
    price: Decimal | None
    volume: Decimal | None
    fields: Mapping[str, Any]
    executed: Decimal = Decimal(0)
    trades: int = 0
    ends_at: float | None = None  #: when the accepted cancel takes effect
    fills_at_end: Decimal = Decimal(0)  #: what is executed before it does

    @property
    def is_open(self) -> bool:
        return self.state in {"wait", "watch"}

    @property
    def remaining(self) -> Decimal:
        return Decimal(0) if self.volume is None else self.volume - self.executed

    def fill(self, volume: Decimal) -> None:
        """Execute `volume`; an order of which nothing remains is done."""
        if volume <= 0:
            return
        self.executed += volume if self.volume is None else min(volume, self.remaining)
        self.trades += 1
        if self.remaining == 0:
            self.state = "done"

    def end(self) -> None:
        """The accepted cancel takes effect, on what is still open."""
        self.ends_at = None
        if self.is_open:
            self.fill(self.fills_at_end)
        if self.is_open:
            self.state = "cancel"

    def shown(self) -> dict[str, Any]:
        """The order as Upbit shows it; a field without a value is left out, as for `price` and `best` bids."""
        price = self.price or Decimal(0)
        spend = price if self.volume is None else price * self.volume
        paid_fee = self.executed * price * FEE_RATE if self.volume is not None else Decimal(0)
        reserved_fee = spend * FEE_RATE if self.side == "bid" else Decimal(0)
        remaining_fee = max(reserved_fee - paid_fee, Decimal(0)) if self.is_open else Decimal(0)
        held = self.remaining if self.side == "ask" else spend - self.executed * price
        fields = {
            "uuid": self.uuid,
            "side": self.side,
            "ord_type": self.ord_type,
            "price": _number(self.price),
            "state": self.state,
            "market": self.market,
            "created_at": self.created_at,
            "volume": _number(self.volume),
            "remaining_volume": None if self.volume is None else _number(self.remaining),
            "reserved_fee": _number(reserved_fee),
            "remaining_fee": _number(remaining_fee),
            "paid_fee": _number(paid_fee),
            "locked": _number(max(held, Decimal(0)) + remaining_fee if self.is_open else Decimal(0)),
            "executed_volume": _number(self.executed),
            "trades_count": self.trades,
            "prevented_volume": None if self.volume is None else "0",
            "prevented_locked": "0",
            **self.fields,
        }
        return {name: value for name, value in fields.items() if value is not None}


def _number(amount: Decimal | None) -> str | None:
    return None if amount is None else format(amount, "f")


class Exchange:
    """A fake Upbit. Use it as a context manager, or `start()` and `stop()` it.

    `now` is its clock in seconds since 1970 and may be a simulated one: an accepted cancel takes effect when the clock
    says so, whoever looks. Only `slow`, `hang` and `wait_for` wait in real time.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each with its default
        self,
        *,
        keys: Sequence[Key] = (Key(),),
        now: Callable[[], float] = time.time,
        new_uuid: Callable[[], str] = lambda: str(uuid4()),
        cancel_delay_s: float = 0.2,
        requests_per_s: int = 30,
        tls: ssl.SSLContext | None = None,
        on_request: Callable[[Request], None] | None = None,
    ) -> None:
        """`tls` is a server's context, for https; `on_request` sees each request before anything is done with it."""
        self.cancel_delay_s = cancel_delay_s
        self.requests_per_s = requests_per_s
        self.on_request = on_request
        self.requests: deque[Request] = deque(maxlen=MAX_LOGGED_REQUESTS)
        self._now = now
        self._new_uuid = new_uuid
        self._changed = threading.Condition(threading.RLock())
        self._keys = {key.access_key: key for key in keys}
        self._orders: dict[str, _Order] = {}
        self._deletes: deque[Delete] = deque(maxlen=MAX_LOGGED_REQUESTS)
        self._statuses: Counter[int | None] = Counter()
        self._moods: dict[str, _ActiveMood] = {}
        self._stopping = False
        self._nonces: set[str] = set()
        self._limit = _Limit()
        self._quotation_limit = _Limit()
        self._books: dict[str, tuple[Decimal, Decimal]] = {}
        #: (method, path) -> permission that it needs, and what it does
        self._routes: dict[tuple[str, str], tuple[str, Callable[[Request, _ActiveMood | None], _Reply]]] = {
            ("GET", "/v1/order"): ("view", self._get_order),
            ("GET", "/v1/orders/uuids"): ("view", self._get_orders),
            ("GET", "/v1/orders/open"): ("view", self._get_open_orders),
            ("GET", "/v1/orders/closed"): ("view", self._get_closed_orders),
            ("DELETE", "/v1/order"): ("make_orders", self._delete_order),
        }
        self._server = _Server(self._answer, tls=tls)

    # Life

    @property
    def url(self) -> str:
        return self._server.url

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Let go of every call that hangs, cut every connection, wait for every thread."""
        with self._changed:
            self._stopping = True
            self.clear_moods()
        self._server.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # The market

    def place(  # noqa: PLR0913 - the fields of an order
        self,
        *,
        uuid: str | None = None,
        side: str = "ask",
        ord_type: str = "limit",
        market: str = "KRW-BTC",
        price: str | None = "100000000",
        volume: str | None = "0.01",
        state: str = "wait",
        created_at: str | None = None,
        **fields: Any,
    ) -> str:
        """Put an order into the book; its uuid. Further fields are shown as given, and not at all where None."""
        placed = _Order(
            uuid=uuid or self._new_uuid(),
            side=side,
            ord_type=ord_type,
            market=market,
            created_at=created_at or datetime.fromtimestamp(self._now(), UTC).isoformat(timespec="seconds"),
            state=state,
            price=None if price is None else Decimal(price),
            volume=None if volume is None else Decimal(volume),
            fields=fields,
        )
        with self._changed:
            self._orders[placed.uuid] = placed
            self._changed.notify_all()
        return placed.uuid

    def fill(self, uuid: str, volume: str | None = None) -> None:
        """Execute `volume` of an open order, all of it where None. Raises KeyError."""
        with self._changed:
            order = self._current(uuid)
            if order.is_open:
                order.fill(order.remaining if volume is None else Decimal(volume))
            self._changed.notify_all()

    def cancel_elsewhere(self, uuid: str) -> None:
        """Somebody cancels the order by other means, at once. Raises KeyError."""
        with self._changed:
            order = self._current(uuid)
            if order.is_open:
                order.state = "cancel"
            self._changed.notify_all()

    def settle(self, uuid: str) -> None:
        """An accepted cancel takes effect now, whatever the clock says. Raises KeyError."""
        with self._changed:
            order = self._current(uuid)
            if order.ends_at is not None:
                order.end()
            self._changed.notify_all()

    def set_book(self, market: str = "KRW-BTC", *, bid: str = "0", ask: str = "0") -> None:
        """The best prices of the market; zero where nobody waits. A market without a book is not known."""
        with self._changed:
            self._books[market] = (Decimal(bid), Decimal(ask))

    def set_key(self, key: Key) -> None:
        """Add a key, or change what it may do."""
        with self._changed:
            self._keys[key.access_key] = key

    # Moods

    def set_mood(  # noqa: PLR0913 - keyword-only, each with its default
        self,
        method: str,
        mood: Mood | str,
        *,
        times: int | None = None,
        seconds: float = 0.5,
        after: bool = False,
        status: int = 400,
        name: str = "validation_error",
        plain: bool = True,
        volume: str | None = None,
    ) -> None:
        """Meet the next `times` calls of `method` with a mood, or all until it is cleared. Mood says who uses what.

        A method and a path, `GET /v1/orders/uuids`, stand for the calls of that path alone; `GET` leaves the public
        quotation alone, which stands beside the calls about orders: that is `GET /v1/orderbook`.
        """
        with self._changed:
            self.clear_moods(method)
            self._moods[method] = _ActiveMood(
                mood=Mood(mood),
                times_left=times,
                seconds=seconds,
                after=after,
                status=status,
                name=name,
                plain=plain,
                volume=None if volume is None else Decimal(volume),
            )

    def clear_moods(self, method: str | None = None) -> None:
        """Back to normal; who waits because of a slow mood goes on, and who hangs is disconnected."""
        with self._changed:
            for each in [method] if method else list(self._moods):
                if active := self._moods.get(each):
                    active.over.set()
                    active.times_left = 0

    # What it knows

    def order(self, uuid: str) -> dict[str, Any]:
        """The truth about an order, as GET would show it now. Raises KeyError."""
        with self._changed:
            return self._current(uuid).shown()

    def deletes(self, uuid: str | None = None) -> list[Delete]:
        """The DELETEs that arrived, for one order or all, the oldest first."""
        with self._changed:
            return [each for each in self._deletes if uuid is None or each.uuid == uuid]

    def statuses(self) -> Counter[int | None]:
        """How often each HTTP status was answered to calls about orders; None stands for connections just closed."""
        with self._changed:
            return self._statuses.copy()

    def wait_for(self, predicate: Callable[[Self], object], *, timeout_s: float) -> bool:
        """Whether the predicate came true within so many seconds of real time."""
        ends_at = time.monotonic() + timeout_s
        with self._changed:
            while not predicate(self):
                if (left_s := ends_at - time.monotonic()) <= 0:
                    return False
                self._changed.wait(min(left_s, CLOCK_STEP_S))
            return True

    # Answering

    def _answer(self, request: Request) -> _Reply | None:
        """What to answer; None closes the connection without an answer."""
        request = replace(request, at=self._now())
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()
        if self.on_request is not None:
            self.on_request(request)
        is_quotation = request.path == ORDERBOOK_PATH
        active = self._met_mood(f"{request.method} {request.path}")
        if active is None and not is_quotation:
            active = self._met_mood(request.method)
        if active and active.mood is Mood.SLOW:
            active.over.wait(active.seconds)
        reply = self._reply(request, active)
        answered = None if self._stopping else self._spoiled(request, reply, active)
        with self._changed:
            if request.method == "DELETE":
                self._deletes.append(_delete(request, reply, answered))
            if not is_quotation:
                self._statuses[None if answered is None else answered.status] += 1
            self._changed.notify_all()
        if active and active.mood is Mood.HANG:
            active.over.wait()
        return answered

    def _met_mood(self, method: str) -> _ActiveMood | None:
        with self._changed:
            active = self._moods.get(method)
            if active is None or self._stopping:
                return None
            if active.times_left is not None:
                if active.times_left <= 0:
                    return None
                active.times_left -= 1
            return active

    def _reply(self, request: Request, active: _ActiveMood | None) -> _Reply | None:
        """Do the work, or what the mood does in its place; None where nothing is done and nothing answered."""
        if active is not None and not active.after:
            match active.mood:
                case Mood.HANG | Mood.DROP_BEFORE:
                    return None
                case Mood.HTTP_500:
                    return _error(500, "server_error", "Something went wrong.")
                case Mood.HTML_502:
                    return _page(502)
                case Mood.REDIRECT:
                    location = f"{self.url}{request.path}?{request.query}"
                    return _Reply(status=302, body=b"", headers={"Location": location})
                case Mood.RATELIMITED_429:
                    return _too_many(plain=active.plain)
                case Mood.BANNED_418:
                    with self._changed:
                        limit = self._quotation_limit if request.path == ORDERBOOK_PATH else self._limit
                        return _banned(limit.ban(self._now(), for_s=active.seconds))
                case Mood.REFUSE:
                    return _error(active.status, active.name)
                case Mood.ORDER_NOT_FOUND_LIE:
                    return _error(404, "order_not_found", "주문을 찾지 못했습니다.")
                case _:
                    pass
        with self._changed:
            return self._worked(request, active)

    def _worked(self, request: Request, active: _ActiveMood | None) -> _Reply:
        now = self._now()
        if request.path == ORDERBOOK_PATH:
            return self._quoted(request, now=now)
        if (ban_left_s := self._limit.ban_left_s(now)) > 0:
            return _banned(ban_left_s)
        left = self._limit.take(now, requests_per_s=self.requests_per_s)
        if left is None:
            return _too_many(plain=True)
        verified = False
        try:
            permission, work = self._routes.get((request.method, request.path), ("", _no_route))
            if permission:
                self._verify(request, permission, now=now)
                verified = True
            reply = work(request, active)
        except _Refused as refused:
            reply = _error(refused.status, refused.name, refused.message)
        remaining = {"Remaining-Req": f"group=default; min=1800; sec={left}"}
        return replace(reply, headers={**reply.headers, **remaining}, verified=verified)

    def _spoiled(self, request: Request, reply: _Reply | None, active: _ActiveMood | None) -> _Reply | None:
        """The answer as the mood lets it out."""
        if reply is None or active is None:
            return reply
        match active.mood:
            case Mood.DROP_AFTER | Mood.HANG:
                return None
            case Mood.HTTP_500_AFTER:
                return _error(500, "server_error", "Something went wrong.")
            case Mood.REFUSE:
                return _error(active.status, active.name)
            case Mood.ORDER_NOT_FOUND_LIE:
                return _error(404, "order_not_found", "주문을 찾지 못했습니다.")
            case Mood.WRONG_UUID:
                with self._changed:
                    shown = [self._orders[uuid].shown() for uuid in request.uuids if uuid in self._orders] or [{}]
                renamed = [{**each, "uuid": self._new_uuid()} for each in shown]
                return _json(200, renamed if request.path.startswith("/v1/orders/") else renamed[0])
            case Mood.NOT_JSON_200:
                return _Reply(status=200, body=b"OK", content_type="text/plain")
            case Mood.HTML_200:
                return _page(200)
            case Mood.TRUNCATED:
                return replace(reply, sent_bytes=len(reply.body) // 2)
            case _:
                return reply

    # The calls

    def _get_order(self, request: Request, _: _ActiveMood | None) -> _Reply:
        return _json(200, self._named(request).shown())

    def _get_orders(self, request: Request, _: _ActiveMood | None) -> _Reply:
        """Those of the orders that are there, the newest first; the others are left out."""
        named = [value for name, value in request.pairs if name == "uuids[]"]
        if not 0 < len(named) <= MAX_ORDERS or len(named) != len(request.pairs):
            raise _Refused(400, "validation_error", f"uuids[] names 1 to {MAX_ORDERS} orders.")
        if not all(_is_uuid(uuid) for uuid in named):
            raise _Refused(400, "invalid_parameter", "uuids[] is malformed.")
        wanted = set(named)
        return _json(200, [self._current(uuid).shown() for uuid in reversed(self._orders) if uuid in wanted])

    def _quoted(self, request: Request, *, now: float) -> _Reply:
        """The public quotation: no token, and a limit of its own. A ban of the address is for this as well."""
        limit = self._quotation_limit
        if (ban_left_s := max(limit.ban_left_s(now), self._limit.ban_left_s(now))) > 0:
            return _banned(ban_left_s)
        left = limit.take(now, requests_per_s=QUOTATIONS_PER_S)
        if left is None:
            return _too_many(plain=True)
        markets = request.fields.get("markets", "").split(",")
        known = [market for market in markets if market in self._books]
        if request.method != "GET" or not markets or known != markets:
            reply = _json(404, {"error": {"name": 404, "message": "Code not found"}})
        else:
            reply = _json(200, [self._shown_book(market, now=now) for market in known])
        # Numbers are no strings here.
        body = re.sub(rb'"#([0-9.]+)"', rb"\1", reply.body)
        remaining = {"Remaining-Req": f"group=orderbook; min=600; sec={left}"}
        return replace(reply, body=body, headers={**reply.headers, **remaining})

    def _shown_book(self, market: str, *, now: float) -> dict[str, Any]:
        """Two steps on each side; a side on which nobody waits shows zeros."""
        bid, ask = self._books[market]
        units = [
            {
                "ask_price": f"#{ask * (1 + step):f}",
                "bid_price": f"#{bid * (1 - step):f}",
                "ask_size": "#0.5" if ask else "#0",
                "bid_size": "#0.25" if bid else "#0",
            }
            for step in (Decimal(0), Decimal("0.001"))
        ]
        return {
            "market": market,
            "timestamp": int(now * 1000),
            "total_ask_size": "#1.0",
            "total_bid_size": "#0.5",
            "orderbook_units": units,
            "level": 0,
        }

    def _get_open_orders(self, request: Request, _: _ActiveMood | None) -> _Reply:
        """A page of the open orders; only those that wait in the book, unless `states[]` says otherwise."""
        known = {"market", "states[]", "state", "page", "limit", "order_by"}
        if not {name for name, _value in request.pairs} <= known:
            raise _Refused(400, "QUERY_PARAMETER_NOT_SUPPORTED")
        states = [value for name, value in request.pairs if name == "states[]"] or [request.fields.get("state", "wait")]
        page, limit = request.fields.get("page", "1"), request.fields.get("limit", str(MAX_ORDERS))
        if not (page.isdecimal() and limit.isdecimal() and int(page) > 0 and 0 < int(limit) <= MAX_ORDERS):
            raise _Refused(400, "validation_error", f"page begins at 1, limit is 1 to {MAX_ORDERS}.")
        if not set(states) <= {"wait", "watch"} or request.fields.get("order_by", "desc") not in {"asc", "desc"}:
            raise _Refused(400, "invalid_parameter", "states[] are wait and watch, order_by asc or desc.")
        shown = [self._current(uuid) for uuid in list(self._orders)]
        shown = [
            each for each in shown if each.state in states and each.market == request.fields.get("market", each.market)
        ]
        if request.fields.get("order_by", "desc") == "desc":
            shown.reverse()
        first = (int(page) - 1) * int(limit)
        return _json(200, [each.shown() for each in shown[first : first + int(limit)]])

    def _get_closed_orders(self, request: Request, _: _ActiveMood | None) -> _Reply:
        """The orders that were created in a window of 7 days at most and are closed; both its ends belong to it.

        Upbit documents the rules, but no names for their errors, nor whether the ends belong to the window.
        https://docs.upbit.com/kr/v1.6.4/reference/list-closed-orders
        """
        known = {"market", "state", "states[]", "start_time", "end_time", "limit", "order_by"}
        fields, names = request.fields, {name for name, _value in request.pairs}
        if not names <= known:
            raise _Refused(400, "QUERY_PARAMETER_NOT_SUPPORTED")
        if {"state", "states[]"} <= names:
            raise _Refused(400, "invalid_parameter", "state and states[] exclude each other.")
        states = [value for name, value in request.pairs if name in {"state", "states[]"}] or ["done", "cancel"]
        limit, order_by = fields.get("limit", str(MAX_ORDERS)), fields.get("order_by", "desc")
        if not (limit.isdecimal() and 0 < int(limit) <= MAX_CLOSED_ORDERS):
            raise _Refused(400, "validation_error", f"limit is 1 to {MAX_CLOSED_ORDERS}.")
        if not set(states) <= {"done", "cancel"} or order_by not in {"asc", "desc"}:
            raise _Refused(400, "invalid_parameter", "states[] are done and cancel, order_by asc or desc.")
        start, end = self._closed_window(fields)
        shown = [self._current(uuid) for uuid in list(self._orders)]
        shown = [
            each
            for each in shown
            if each.state in states
            and each.market == fields.get("market", each.market)
            and start <= datetime.fromisoformat(each.created_at) <= end
        ]
        shown.sort(key=lambda each: datetime.fromisoformat(each.created_at), reverse=order_by == "desc")
        return _json(200, [each.shown() for each in shown[: int(limit)]])

    def _closed_window(self, fields: Mapping[str, str]) -> tuple[datetime, datetime]:
        """From and to; who names one of them gets 7 days from or to it, and who names none the latest 7 days."""
        start, end = (_moment(fields[name]) if name in fields else None for name in ("start_time", "end_time"))
        if end is None:
            end = start + CLOSED_WINDOW if start is not None else datetime.fromtimestamp(self._now(), UTC)
        if start is None:
            start = end - CLOSED_WINDOW
        if not timedelta(0) <= end - start <= CLOSED_WINDOW:
            raise _Refused(400, "invalid_parameter", "start_time and end_time are 7 days apart at most.")
        return start, end

    def _delete_order(self, request: Request, active: _ActiveMood | None) -> _Reply:
        """Accept the cancel: 200 with the order as it was. A second one finds nothing to cancel."""
        if request.body:
            raise _Refused(400, "bad_request", "A DELETE takes its parameters from the query.")
        order = self._named(request)
        if not order.is_open or order.ends_at is not None:
            raise _Refused(404, "order_not_found", "주문을 찾지 못했습니다.")
        shown = order.shown()
        effect = active.effect_of_cancel() if active else None
        if effect is not Mood.ACCEPT_NEVER_CANCELS:
            order.ends_at = self._now() + self.cancel_delay_s
        if effect is Mood.FILL_DURING_CANCEL:
            order.fills_at_end = order.remaining
        if effect is Mood.PARTIAL_FILL_DURING_CANCEL and active is not None:
            order.fills_at_end = active.volume or order.remaining / 2
        return replace(_json(200, shown), effective=effect is not Mood.ACCEPT_NEVER_CANCELS)

    def _named(self, request: Request) -> _Order:
        """The order that the query names; `uuid` wins over `identifier`."""
        uuid, identifier = request.fields.get("uuid"), request.fields.get("identifier")
        if uuid is None and identifier is None:
            raise _Refused(400, "validation_error", "uuid or identifier is needed.")
        if uuid is None:
            found = (each.uuid for each in self._orders.values() if each.fields.get("identifier") == identifier)
            uuid = next(found, "")
        elif not _is_uuid(uuid):
            raise _Refused(400, "invalid_parameter", "uuid is malformed.")
        try:
            return self._current(uuid)
        except KeyError:
            raise _Refused(404, "order_not_found", "주문을 찾지 못했습니다.") from None

    def _current(self, uuid: str) -> _Order:
        """The order, after what the clock did to it."""
        order = self._orders[uuid]
        if order.ends_at is not None and (not order.is_open or self._now() >= order.ends_at):
            order.end()
        return order

    # Who may

    def _verify(self, request: Request, permission: str, *, now: float) -> None:
        """Check the token as Upbit does: https://global-docs.upbit.com/reference/auth. Raises _Refused."""
        token = _Token.read(request.headers.get("authorization", ""))
        key = self._keys.get(str(token.claims.get("access_key")))
        if key is None:
            raise _Refused(401, "invalid_access_key")
        if not token.signed_with(key.secret_key):
            raise _Refused(401, "jwt_verification")
        if key.expires_at is not None and now >= key.expires_at:
            raise _Refused(401, "expired_access_key")
        if key.ips is not None and request.ip not in key.ips:
            raise _Refused(401, "no_authorization_ip")
        if not token.nonce:
            raise _Refused(401, "jwt_verification")
        if token.nonce in self._nonces:
            raise _Refused(401, "nonce_used")
        self._nonces.add(token.nonce)
        if not token.binds(request.query):
            raise _Refused(401, "invalid_query_payload")
        if permission not in key.permissions:
            raise _Refused(401, "out_of_scope")


@dataclass(frozen=True, kw_only=True, slots=True)
class _Token:
    """A JSON Web Token, taken apart by hand."""

    signed: bytes
    algorithm: str
    signature: bytes
    claims: Mapping[str, Any]

    @classmethod
    def read(cls, authorization: str) -> Self:
        """Raises _Refused."""
        scheme, _, text = authorization.partition(" ")
        if scheme != "Bearer" or not text:
            raise _Refused(401, "no_authorization_token")
        try:
            header, claims, signature = text.split(".")
            kind = json.loads(_unbase64(header))
            return cls(
                signed=f"{header}.{claims}".encode(),
                algorithm=str(kind["alg"]),
                signature=_unbase64(signature),
                claims=dict(json.loads(_unbase64(claims))),
            )
        except (ValueError, TypeError, LookupError):
            raise _Refused(401, "jwt_verification") from None

    @property
    def nonce(self) -> str | None:
        nonce = self.claims.get("nonce")
        return nonce if isinstance(nonce, str) else None

    def signed_with(self, secret_key: str) -> bool:
        digest = {"HS256": hashlib.sha256, "HS512": hashlib.sha512}.get(self.algorithm)
        if digest is None:
            return False
        return hmac.compare_digest(self.signature, hmac.new(secret_key.encode(), self.signed, digest).digest())

    def binds(self, query: str) -> bool:
        """Whether the hash is that of the query as sent, not URL-encoded; there is none where there is no query."""
        if not query:
            return "query_hash" not in self.claims
        expected = hashlib.sha512(unquote(query).encode()).hexdigest()
        return self.claims.get("query_hash") == expected and self.claims.get("query_hash_alg") == "SHA512"


def _unbase64(text: str) -> bytes:
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError("not base64url") from error


def _moment(text: str) -> datetime:
    """ISO 8601 with an offset, or milliseconds in 13 digits. Raises _Refused."""
    try:
        is_timestamp = re.fullmatch(r"[0-9]{13}", text) is not None
        moment = datetime.fromtimestamp(int(text) / 1000, UTC) if is_timestamp else datetime.fromisoformat(text)
    except ValueError:
        raise _Refused(400, "invalid_parameter", "That is no time.") from None
    if moment.tzinfo is None:
        raise _Refused(400, "invalid_parameter", "A time needs its offset.")
    return moment


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False


@dataclass(slots=True)
class _Limit:
    """So many requests a second; who goes on asking is banned, each time for longer.

    https://global-docs.upbit.com/reference/rate-limits
    """

    second: int = 0
    taken: int = 0
    violations: int = 0
    bans: int = 0
    banned_until: float = float("-inf")

    def ban_left_s(self, now: float) -> float:
        return self.banned_until - now

    def ban(self, now: float, *, for_s: float) -> float:
        self.banned_until = now + for_s
        return for_s

    def take(self, now: float, *, requests_per_s: int) -> int | None:
        """What is left in this second; None where there was nothing to take."""
        if int(now) != self.second:
            self.violations = self.violations if self.taken >= requests_per_s else 0
            self.second, self.taken = int(now), 0
        if self.taken >= requests_per_s:
            self.violations += 1
            if self.violations >= VIOLATIONS_BEFORE_BAN:
                self.ban(now, for_s=FIRST_BAN_S * 2**self.bans)
                self.bans, self.violations = self.bans + 1, 0
            return None
        self.taken += 1
        return requests_per_s - self.taken


def _no_route(_: Request, __: _ActiveMood | None) -> NoReturn:
    raise _Refused(404, "not_found", "There is no such route.")


def _json(status: int, body: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> _Reply:
    return _Reply(status=status, body=json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode())


def _error(status: int, name: str, message: str = "") -> _Reply:
    return replace(_json(status, {"error": {"name": name, "message": message or f"({name})"}}), error_name=name)


def _page(status: int) -> _Reply:
    body = f"<html><body><h1>{status}</h1></body></html>".encode()
    return _Reply(status=status, body=body, content_type="text/html")


def _too_many(*, plain: bool) -> _Reply:
    if plain:
        return _Reply(status=429, body=b"Too many API requests.", content_type="text/plain")
    return _json(429, {"error": {"message": "Too many API requests."}})


def _banned(for_s: float) -> _Reply:
    return _json(418, {"error": {"message": f"Too many API requests. Blocked for {max(round(for_s), 1)} seconds."}})


def _delete(request: Request, reply: _Reply | None, answered: _Reply | None) -> Delete:
    try:
        nonce = _Token.read(request.headers.get("authorization", "")).nonce
    except _Refused:
        nonce = None
    return Delete(
        at=request.at,
        uuid=request.fields.get("uuid"),
        nonce=nonce,
        verified=reply is not None and reply.verified,
        effective=reply is not None and reply.effective,
        status=None if answered is None else answered.status,
        error_name=None if answered is None else answered.error_name,
    )


class _Server(ThreadingHTTPServer):
    """Threads and sockets: one thread per connection, all of them gone after `stop`."""

    daemon_threads = False
    request_queue_size = 128

    def __init__(self, answer: Callable[[Request], _Reply | None], *, tls: ssl.SSLContext | None) -> None:
        super().__init__(("127.0.0.1", 0), _Conversation)
        self.answer = answer
        self._tls = tls
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(CLOCK_STEP_S,), name="playground-exchange")

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.server_port}"

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self.shutdown()
            self._thread.join()
        with self._lock:
            for connection in self._connections:
                with suppress(OSError):
                    # Of the plain socket: that of TLS would pull the encryption from under the other thread.
                    socket.socket.shutdown(connection, socket.SHUT_RDWR)
        self.server_close()

    def get_request(self) -> tuple[Any, Any]:
        connection, address = super().get_request()
        if self._tls is not None:
            # The handshake comes with the first read, in the connection's own thread.
            connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return connection, address

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no fault; everything else is shown."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Conversation(BaseHTTPRequestHandler):
    """The requests of one connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 65_536
    server: _Server

    def _converse(self) -> None:
        path, _, query = self.path.partition("?")
        headers = {name.lower(): value for name, value in self.headers.items()}
        reply = self.server.answer(
            Request(
                at=0.0,
                method=self.command,
                path=path,
                query=query,
                headers=headers,
                body=self._body(headers),
                ip=str(self.client_address[0]),
            )
        )
        if reply is None:
            self.close_connection = True
            return
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.content_type)
        self.send_header("Content-Length", str(len(reply.body)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(reply.body[: reply.sent_bytes])
        if reply.sent_bytes is not None:
            self.close_connection = True

    do_GET = do_DELETE = do_POST = do_PUT = do_PATCH = _converse  # noqa: N815 - http.server's names

    def _body(self, headers: Mapping[str, str]) -> bytes:
        if "transfer-encoding" in headers:
            self.close_connection = True
            return b"(chunked)"
        length = headers.get("content-length", "0")
        return self.rfile.read(int(length)) if length.isdigit() else b""

    def version_string(self) -> str:
        return "playground"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - http.server's name
        """Nothing: what came is in `Exchange.requests`."""
