"""Five calls to Upbit, and what their answers come to.

    UpbitClient
    ├── Signer      the token of a request (auth)
    ├── _Brake      says when nothing may be sent: too many requests, banned
    ├── _Fared      remembers how the latest calls ended
    └── Watchdog, Line    the total deadline of a call, and the connections (line)

Whether a failed request was *not sent* or is *unknown* is never guessed from the class of an exception. The connection
notes `written` just before it hands the first byte of the request to the socket: what fails before that was surely
not sent, and what fails after it is unknown.

https://global-docs.upbit.com/reference/order-cancel, https://global-docs.upbit.com/reference/get-order,
https://global-docs.upbit.com/reference/list-orders-by-ids, https://global-docs.upbit.com/reference/list-open-orders,
https://global-docs.upbit.com/reference/closed-order
"""

import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from decimal import Decimal
from http import HTTPStatus
from http.client import HTTPException
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

from requests import PreparedRequest, RequestException, Timeout
from urllib3.exceptions import HTTPError
from urllib3.exceptions import TimeoutError as PoolTimeout

from bot.domain.answer import (
    Accepted,
    Call,
    CancelAnswer,
    ExchangeHealth,
    Found,
    FoundOrders,
    LookAnswer,
    NotSent,
    OrdersAnswer,
    Refused,
    Unknown,
)
from bot.domain.order import UUID_PATTERN, MalformedOrder, Order
from bot.upbit.auth import (
    Signer,
    canceled_orders_query,
    open_orders_query,
    order_query,
    orders_query,
    query_hash,
)
from bot.upbit.line import ATTEMPT, Attempt, Closed, Line, Resolve, Watchdog, addresses_of

ORDER_PATH: Final = "/v1/order"
ORDERS_PATH: Final = "/v1/orders/uuids"
OPEN_ORDERS_PATH: Final = "/v1/orders/open"
CLOSED_ORDERS_PATH: Final = "/v1/orders/closed"
MAX_ORDERS: Final = 100
"""Orders in one call of `get_orders` and on one page of `get_open_orders`, by Upbit's limits."""
MAX_CLOSED_ORDERS: Final = 1000
"""Orders in one answer of `get_canceled_orders`, by Upbit's limit."""
USER_AGENT: Final = "upbit-cancel-bot"

MAX_ANSWER_BYTES: Final = 1_000_000
MAX_BODY_CHARS: Final = 2_000
MAX_NAME_CHARS: Final = 100
MAX_MESSAGE_CHARS: Final = 500
MAX_INT_DIGITS: Final = 30

NEXT_SECOND_S: Final = 1.0
"""The limits count per second of Upbit's clock, which is not ours: after a whole second it surely is the next one."""
RESERVED_FOR_CANCELS: Final = 10
"""Of the calls that Upbit allows in a second, those that looks leave over: many looks must not delay a cancel."""
CANCELS_FIRST_S: Final = 0.3
"""For so long after a 429 only cancels go: a look that meets the next 429 must not hold them back for ever."""
MAX_RATE_LIMIT_S: Final = 60.0
DEFAULT_BAN_S: Final = 60.0
MAX_BAN_S: Final = 86_400.0

TOO_MANY_REQUESTS: Final = 429
BANNED: Final = 418

CERTAIN_NAMES: Final = frozenset(
    {
        "validation_error",
        "invalid_parameter",
        "bad_request",
        "QUERY_PARAMETER_NOT_SUPPORTED",
        "invalid_query_payload",
        "jwt_verification",
        "no_authorization_token",
        "invalid_access_key",
        "expired_access_key",
        "no_authorization_ip",
        "no_authorization_i_p",
        "out_of_scope",
    }
)
"""Upbit's errors that prove that nothing was canceled. The name decides, whatever 4xx it came with.

https://global-docs.upbit.com/reference/rest-api-guide. Not here, on purpose: `order_not_found`, since an earlier
try of ours may have worked, and `nonce_used`, since the request that used it may have worked.
"""


# What an answer says ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Upbit said no; the fields are those of `Refused`."""

    name: str
    proves_nothing_happened: bool
    message: str = ""
    retry_after_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Doubt:
    """An answer that says nothing certain; `cause` is that of `Unknown`."""

    cause: str


def decipher(status: int, headers: Mapping[str, str], body: bytes, *, uuid: str) -> Order | Refusal | Doubt:
    """What a whole answer to a request about the order `uuid` says. Never raises.

    An Order comes only out of a 200 with a JSON object that carries this very uuid; a Refusal only out of a 4xx that
    carries an error's name, or out of 429 and 418, which have none. Everything else is a Doubt.
    """
    return _decipher_order(body, uuid=uuid) if status == HTTPStatus.OK else _decipher_no(status, headers, body)


def decipher_orders(
    status: int, headers: Mapping[str, str], body: bytes, *, uuids: Collection[str]
) -> tuple[Order, ...] | Refusal | Doubt:
    """What a whole answer to a request about several orders says. Never raises.

    An order comes only out of a 200 with a JSON list that has it once, whole, and was asked for it; what is wrong with
    one entry takes nothing from the others.
    """
    return _decipher_orders(body, uuids=uuids) if status == HTTPStatus.OK else _decipher_no(status, headers, body)


def decipher_open_orders(status: int, headers: Mapping[str, str], body: bytes) -> "OpenOrders | Refusal | Doubt":
    """What a whole answer to a request for open orders says. Never raises.

    What is no open order with a uuid of its own is left out, and only counted.
    """
    return _decipher_open_orders(body) if status == HTTPStatus.OK else _decipher_no(status, headers, body)


def decipher_canceled_orders(
    status: int, headers: Mapping[str, str], body: bytes
) -> tuple[Order, ...] | Refusal | Doubt:
    """What a whole answer to a request for canceled orders says. Never raises.

    All of them or none: one entry that is no canceled order with a uuid of its own makes the answer a Doubt, since what
    is compared with a list must be compared with the whole list.
    """
    return _decipher_canceled_orders(body) if status == HTTPStatus.OK else _decipher_no(status, headers, body)


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenOrders:
    """A page of open orders; `listed` are its entries, those that are no order included."""

    orders: tuple[Order, ...]
    listed: int


def _decipher_no(status: int, headers: Mapping[str, str], body: bytes) -> Refusal | Doubt:
    """What an answer says that is no 200."""
    if status == TOO_MANY_REQUESTS:
        retry_after_s = min(_retry_after_header_s(headers) or NEXT_SECOND_S, MAX_RATE_LIMIT_S)
        return _refusal_by_status("too_many_requests", body, retry_after_s=retry_after_s)
    if status == BANNED:
        return _refusal_by_status("banned", body, retry_after_s=ban_s(headers, body))
    if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
        return _decipher_error(status, body)
    if HTTPStatus.MULTIPLE_CHOICES <= status < HTTPStatus.BAD_REQUEST:
        return Doubt(cause="redirect")
    return Doubt(cause=f"http_{status}")


def ban_s(headers: Mapping[str, str], body: bytes) -> float:
    """How long a 418 bans, in seconds, from 1 to a day.

    Upbit says that the message tells the time, and not in which form. Looked for: `Retry-After` in seconds, and every
    number in the body that a unit of time follows, in English or Korean ("30 seconds", "2분"). The longest counts;
    where there is none, 60 seconds. https://global-docs.upbit.com/reference/rate-limits
    """
    told_s = [
        float(number) * _UNIT_S[unit[0].lower()]
        for number, unit in _DURATION_PATTERN.findall(body.decode(errors="replace"))
    ]
    longest_s = max([*told_s, _retry_after_header_s(headers)])
    return min(max(longest_s, 1.0), MAX_BAN_S) if longest_s else DEFAULT_BAN_S


_DURATION_PATTERN: Final = re.compile(
    r"(?<![0-9.])([0-9]{1,9})\s*(days?(?![a-z])|일|hours?(?![a-z])|h(?![a-z])|시간|min(?:ute)?s?(?![a-z])|m(?![a-z])|분"
    r"|sec(?:ond)?s?(?![a-z])|s(?![a-z])|초)",
    re.IGNORECASE,
)
_UNIT_S: Final = {"d": 86_400, "일": 86_400, "h": 3_600, "시": 3_600, "m": 60, "분": 60, "s": 1, "초": 1}


def _retry_after_header_s(headers: Mapping[str, str]) -> float:
    """`Retry-After` in seconds; 0 where it is absent or a date, which Upbit documents neither."""
    for name, value in headers.items():
        if name.lower() == "retry-after" and re.fullmatch(r"\s*[0-9]{1,9}\s*", value):
            return float(value)
    return 0.0


def _refusal_by_status(name: str, body: bytes, *, retry_after_s: float) -> Refusal:
    """429 and 418 count by their status: they come without a name, as plain text or as JSON."""
    try:
        message = str(_parse(body)["error"]["message"])
    except (ValueError, LookupError, TypeError):
        message = body.decode(errors="replace")
    return Refusal(name=name, proves_nothing_happened=True, message=_cut(message), retry_after_s=retry_after_s)


def _decipher_order(body: bytes, *, uuid: str) -> Order | Doubt:
    try:
        fields = _parse(body)
    except ValueError:
        return Doubt(cause="not_json")
    if not isinstance(fields, dict):
        return Doubt(cause="not_json")
    if fields.get("uuid") != uuid:
        return Doubt(cause="wrong_order")
    try:
        return Order.from_json(fields)
    except MalformedOrder:
        return Doubt(cause="malformed_order")


def _decipher_orders(body: bytes, *, uuids: Collection[str]) -> tuple[Order, ...] | Doubt:
    entries = _entries(body)
    if isinstance(entries, Doubt):
        return entries
    return tuple(order for order in _orders_in(entries) if order.uuid in uuids)


def _decipher_open_orders(body: bytes) -> OpenOrders | Doubt:
    entries = _entries(body)
    if isinstance(entries, Doubt):
        return entries
    orders = tuple(order for order in _orders_in(entries) if order.is_open and UUID_PATTERN.fullmatch(order.uuid))
    return OpenOrders(orders=orders, listed=len(entries))


def _decipher_canceled_orders(body: bytes) -> tuple[Order, ...] | Doubt:
    entries = _entries(body)
    if isinstance(entries, Doubt):
        return entries
    orders = tuple(order for order in _orders_in(entries) if UUID_PATTERN.fullmatch(order.uuid))
    if len(orders) < len(entries):
        return Doubt(cause="malformed_order")
    if not all(order.is_canceled for order in orders):
        return Doubt(cause="wrong_order")
    return orders


def _entries(body: bytes) -> list[Any] | Doubt:
    try:
        entries = _parse(body, _JSON_BY_ENTRY)
    except ValueError:
        return Doubt(cause="not_json")
    return entries if isinstance(entries, list) else Doubt(cause="not_json")


def _orders_in(entries: list[Any]) -> Iterator[Order]:
    """The entries that are orders; a uuid that comes twice is none."""
    named = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("uuid"), str)]
    times = Counter(entry["uuid"] for entry in named)
    for entry in named:
        if times[entry["uuid"]] == 1:
            with suppress(MalformedOrder):
                yield Order.from_json(entry)


def _decipher_error(status: int, body: bytes) -> Refusal | Doubt:
    try:
        error = _parse(body)["error"]
        name, message = error["name"], error.get("message")
    except (ValueError, LookupError, TypeError, AttributeError):
        return Doubt(cause=f"http_{status}")
    if not isinstance(name, str) or not 0 < len(name) <= MAX_NAME_CHARS:
        return Doubt(cause=f"http_{status}")
    return Refusal(
        name=name,
        proves_nothing_happened=name in CERTAIN_NAMES,
        message=_cut(message) if isinstance(message, str) else "",
    )


def _cut(message: str) -> str:
    return _storable(message[:MAX_MESSAGE_CHARS])


def _storable(text: str) -> str:
    """The text without what a database refuses to store: half of a surrogate pair, and NUL."""
    return text.encode(errors="replace").decode().replace("\0", "�")


def _parse(body: bytes, decoder: json.JSONDecoder | None = None) -> Any:
    """JSON, strictly: UTF-8, no field twice, no NaN, no number that fills the memory, exact decimals, storable text.

    Raises ValueError.
    """
    text = body.decode()
    if "\\" in text and _UNSTORABLE_PATTERN.search(_SURROGATE_PAIR_PATTERN.sub("", text)):
        raise ValueError("a text that no database stores")
    try:
        return (decoder or _STRICT_JSON).decode(text)
    except (RecursionError, ArithmeticError):
        raise ValueError("nested too deeply, or a number out of bounds") from None


_SURROGATE_PAIR_PATTERN: Final = re.compile(r"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}")
_UNSTORABLE_PATTERN: Final = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")


def _fields_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise ValueError("a field came twice")
    return fields


def _fields_once_or_nothing(pairs: list[tuple[str, Any]]) -> dict[str, Any] | None:
    fields = dict(pairs)
    return fields if len(fields) == len(pairs) else None


def _short_int(digits: str) -> int:
    if len(digits) > MAX_INT_DIGITS:
        raise ValueError("an integer out of bounds")
    return int(digits)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


_STRICT_JSON: Final = json.JSONDecoder(
    object_pairs_hook=_fields_once, parse_float=Decimal, parse_int=_short_int, parse_constant=_no_constant
)
_JSON_BY_ENTRY: Final = json.JSONDecoder(
    object_pairs_hook=_fields_once_or_nothing, parse_float=Decimal, parse_int=_short_int, parse_constant=_no_constant
)
"""As strict, but an object in which a field came twice is None, and its neighbours are read."""


# When not to send ---------------------------------------------------------------------------------------------------


Cause = Literal["banned", "rate_limited", "reserved"]


class _Brake:
    """Holds calls back while Upbit limits or bans, and looks also where little is left; shared by all threads."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._until: dict[Cause, float] = dict.fromkeys(("banned", "rate_limited", "reserved"), float("-inf"))

    def hold(self, cause: Cause, *, for_s: float) -> None:
        with self._lock:
            self._until[cause] = max(self._until[cause], self._monotonic() + for_s)

    def held(self, method: Literal["GET", "DELETE"]) -> tuple[Cause, float] | None:
        """The cause and how long it lasts, in seconds; None where such a call may go."""
        with self._lock:
            now = self._monotonic()
            for cause, until in self._until.items():
                if until > now and (cause != "reserved" or method == "GET"):
                    return cause, until - now
            return None


class _Fared:
    """How the latest calls ended."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._answered_at: float | None = None
        self._failed: tuple[float, str] | None = None

    def well(self) -> None:
        with self._lock:
            self._answered_at, self._failed = self._monotonic(), None

    def badly(self, cause: str) -> None:
        with self._lock:
            self._failed = self._monotonic(), cause

    def health(self) -> ExchangeHealth:
        with self._lock:
            now = self._monotonic()
            return ExchangeHealth(
                answered_ago_s=None if self._answered_at is None else now - self._answered_at,
                failed_ago_s=None if self._failed is None else now - self._failed[0],
                cause=None if self._failed is None else self._failed[1],
            )


# The client ---------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class _Reply:
    """What has come of an answer so far."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    too_large: bool = False


_Read = TypeVar("_Read", Order, tuple[Order, ...], OpenOrders)
"""What is read out of a 200."""


def _new_nonce() -> str:
    return str(uuid4())


class UpbitClient:
    """Reads orders and cancels one at a time, for many threads.

    No call raises but for a uuid that is none (ValueError); whatever happens on the way becomes an answer, since an
    exception would carry the request, and with it the token, to whoever logs it.
    """

    def __init__(  # noqa: PLR0913 - keyword-only, each with its default
        self,
        *,
        server_url: str,
        access_key: str,
        secret_key: str,
        connect_timeout_s: float = 2.0,
        read_timeout_s: float = 4.0,
        deadline_s: float = 5.0,
        ca_bundle: str | None = None,
        max_connections: int = 16,
        monotonic: Callable[[], float] = time.monotonic,
        new_nonce: Callable[[], str] = _new_nonce,
        resolve: Resolve = addresses_of,
    ) -> None:
        """`server_url` is scheme, host and port only; `ca_bundle` a PEM file instead of certifi's.

        `connect_timeout_s` is per address, `read_timeout_s` per read, `deadline_s` over all of one call.
        `resolve(host, port)` gives a host's addresses. Raises ValueError.
        """
        try:
            self._signer = Signer(access_key=access_key, secret_key=secret_key)
        finally:
            del access_key, secret_key  # a traceback that shows variables shows these too
        server = urlsplit(server_url)
        if server.scheme not in {"http", "https"} or not server.hostname or server.netloc.count("@"):
            raise ValueError("the server's URL needs http or https and a host, and no user")
        if server.path.strip("/") or server.query or server.fragment:
            raise ValueError("the server's URL ends after the host")
        self._server_url = f"{server.scheme}://{server.netloc}"
        self._timeouts_s = (min(connect_timeout_s, deadline_s), min(read_timeout_s, deadline_s))
        self._deadline_s = deadline_s
        self._monotonic = monotonic
        self._new_nonce = new_nonce
        self._resolve = resolve
        self._brake = _Brake(monotonic)
        self._fared = _Fared(monotonic)
        self._watchdog = Watchdog()
        self._line = Line(server, ca_bundle=ca_bundle, max_connections=max_connections)

    def __repr__(self) -> str:
        return "UpbitClient(access_key=***, secret_key=***)"

    def get_order(self, uuid: str) -> LookAnswer:
        """The order as it is now.

        https://global-docs.upbit.com/reference/get-order. Raises ValueError for a uuid that is none.
        """
        return self._call_for_order("GET", uuid, nonce=self._new_nonce())

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        """Those of the orders that Upbit shows, as they are now; at most MAX_ORDERS.

        https://global-docs.upbit.com/reference/list-orders-by-ids. An order that is not in the answer is one of which
        nothing is known. Raises ValueError for a uuid that is none, one that comes twice, and too many or none of them.
        """
        if len(uuids) > MAX_ORDERS:
            raise ValueError(f"no more than {MAX_ORDERS} orders in one call")
        query = orders_query(uuids)
        asked_for = frozenset(uuids)
        answer, call = self._call(
            Call(method="GET", path=ORDERS_PATH, nonce=self._new_nonce(), query_hash=query_hash(query)),
            query,
            read=lambda status, headers, body: decipher_orders(status, headers, body, uuids=asked_for),
        )
        return FoundOrders(orders=answer, call=call) if isinstance(answer, tuple) else answer

    def get_open_orders(self, *, page: int) -> OrdersAnswer:
        """A page of the open orders, stop orders included, the newest first; pages are counted from 1.

        https://global-docs.upbit.com/reference/list-open-orders
        """
        query = open_orders_query(page=page, limit=MAX_ORDERS)
        answer, call = self._call(
            Call(method="GET", path=OPEN_ORDERS_PATH, nonce=self._new_nonce(), query_hash=query_hash(query)),
            query,
            read=decipher_open_orders,
        )
        if isinstance(answer, OpenOrders):
            return FoundOrders(orders=answer.orders, listed=answer.listed, call=call)
        return answer

    def get_canceled_orders(
        self, *, created_from: datetime, created_to: datetime, limit: int = MAX_CLOSED_ORDERS
    ) -> OrdersAnswer:
        """The orders that were created between the two times and are canceled; the oldest `limit` of them.

        Upbit lists closed orders by the time of their creation, and tells no time at which they were closed. Whether
        the ends belong to the span it does not say. An answer as long as `limit` may not be all.
        https://global-docs.upbit.com/reference/closed-order,
        https://docs.upbit.com/kr/v1.6.4/reference/list-closed-orders

        Raises ValueError for a time without an offset, a span of more than 7 days or that ends before it begins, and a
        limit beyond Upbit's.
        """
        if not 0 < limit <= MAX_CLOSED_ORDERS:
            raise ValueError(f"no more than {MAX_CLOSED_ORDERS} orders in one call")
        query = canceled_orders_query(created_from=created_from, created_to=created_to, limit=limit)
        answer, call = self._call(
            Call(method="GET", path=CLOSED_ORDERS_PATH, nonce=self._new_nonce(), query_hash=query_hash(query)),
            query,
            read=decipher_canceled_orders,
        )
        return FoundOrders(orders=answer, listed=len(answer), call=call) if isinstance(answer, tuple) else answer

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        """Ask Upbit to cancel: at most one DELETE, never sent again by itself.

        Accepted is not canceled; only `get_order` tells that. https://global-docs.upbit.com/reference/order-cancel
        Raises ValueError for a uuid that is none.
        """
        answer = self._call_for_order("DELETE", uuid, nonce=nonce)
        return Accepted(order=answer.order, call=answer.call) if isinstance(answer, Found) else answer

    @staticmethod
    def cancel_call(uuid: str, *, nonce: str) -> Call:
        """What is known of such a DELETE before it is sent. Raises ValueError for a uuid that is none."""
        return Call(method="DELETE", path=ORDER_PATH, nonce=nonce, query_hash=query_hash(order_query(uuid)))

    def hold_s(self, method: Literal["GET", "DELETE"]) -> float:
        """For how many seconds such a call would not be sent; 0 where it would."""
        held = self._brake.held(method)
        return held[1] if held else 0.0

    def banned_s(self) -> float:
        """For how many seconds Upbit bans us; 0 where it does not."""
        cause, held_s = self._brake.held("DELETE") or (None, 0.0)
        return held_s if cause == "banned" else 0.0

    def health(self) -> ExchangeHealth:
        """How the calls have fared lately; asks nobody."""
        held = self._brake.held("GET")
        cause, held_for_s = held or (None, 0.0)
        return replace(self._fared.health(), held_for_s=held_for_s, is_banned=cause == "banned")

    def close(self) -> None:
        """Wait for the calls under way (no longer than the deadline), then close every connection.

        Later calls answer NotSent(cause="closed").
        """
        self._watchdog.close()
        self._line.close()

    def _call_for_order(self, method: Literal["GET", "DELETE"], uuid: str, *, nonce: str) -> LookAnswer:
        query = order_query(uuid)
        answer, call = self._call(
            Call(method=method, path=ORDER_PATH, nonce=nonce, query_hash=query_hash(query)),
            query,
            read=lambda status, headers, body: decipher(status, headers, body, uuid=uuid),
        )
        return Found(order=answer, call=call) if isinstance(answer, Order) else answer

    def _call(
        self, call: Call, query: str, *, read: Callable[[int, Mapping[str, str], bytes], _Read | Refusal | Doubt]
    ) -> tuple[_Read | Refused | Unknown | NotSent, Call]:
        """What `read` makes of the answer, or why there is none to make something of; and the facts of the call."""
        if held := self._brake.held("DELETE" if call.method == "DELETE" else "GET"):
            return NotSent(cause=held[0], call=call, retry_after_s=held[1]), call

        attempt = Attempt(deadline_s=self._deadline_s, resolve=self._resolve)
        reply = _Reply()
        began_at = self._monotonic()
        failure = self._exchange(call, query, attempt=attempt, reply=reply)
        call = self._told(call, reply, elapsed_s=self._monotonic() - began_at)

        if not attempt.written:
            self._fared.badly(failure or attempt.stage)
            return NotSent(cause=failure or attempt.stage, call=call), call
        outcome = _outcome(reply, failure=failure, read=read)
        self._learn(outcome, call)
        self._note(outcome, call)
        if isinstance(outcome, Doubt):
            return Unknown(cause=outcome.cause, call=call), call
        if not isinstance(outcome, Refusal):
            return outcome, call
        name = self._presentable(outcome.name)
        refused = Refused(
            name=name,
            proves_nothing_happened=outcome.proves_nothing_happened,
            message=self._presentable(outcome.message),
            retry_after_s=outcome.retry_after_s,
            call=replace(call, error_name=name),
        )
        return refused, refused.call

    def _exchange(self, call: Call, query: str, *, attempt: Attempt, reply: _Reply) -> str | None:
        """Send the request and read the answer into `reply`; None, or the machine word for what went wrong."""
        ATTEMPT.set(attempt)
        try:
            with self._watchdog.guards(attempt):
                self._read(self._send(call, query), reply)
        except Closed:
            return "closed"
        except Exception as error:  # noqa: BLE001 - it would hold the token; and what was written is unknown, always
            if not attempt.written:
                return attempt.stage
            if attempt.expired or isinstance(error, Timeout | PoolTimeout | TimeoutError):
                return "timeout"
            if isinstance(error, RequestException | HTTPError | HTTPException | OSError):
                return "connection_lost"
            return f"unexpected_{type(error).__name__}"
        return "timeout" if attempt.expired else None

    def _send(self, call: Call, query: str) -> Any:
        """urllib3's response, its body still to be read."""
        request = PreparedRequest()
        request.method = call.method
        request.url = f"{self._server_url}{call.path}?{query}"
        request.prepare_headers({"User-Agent": USER_AGENT, "Accept": "application/json"})
        request.headers["Authorization"] = f"Bearer {self._signer.token(query_hash=call.query_hash, nonce=call.nonce)}"
        return self._line.send(request, stream=True, timeout=self._timeouts_s).raw

    def _read(self, raw: Any, reply: _Reply) -> None:
        """Read no more than MAX_ANSWER_BYTES. A connection whose answer was not read to its end is not used again."""
        reply.status, reply.headers = raw.status, raw.headers
        ended = False
        try:
            while raw.status >= HTTPStatus.OK and len(reply.body) <= MAX_ANSWER_BYTES:
                chunk = raw.read(65_536)
                if not chunk:
                    ended = True
                    break
                reply.body += chunk
            reply.too_large = len(reply.body) > MAX_ANSWER_BYTES
        finally:
            if not ended:
                raw.close()
            raw.release_conn()

    def _told(self, call: Call, reply: _Reply, *, elapsed_s: float) -> Call:
        """The call with what was answered, as far as it came."""
        elapsed_ms = round(elapsed_s * 1000)
        if reply.status is None:
            return replace(call, elapsed_ms=elapsed_ms)
        remaining_req = reply.headers.get("Remaining-Req")
        return replace(
            call,
            status=reply.status,
            body=self._presentable(reply.body[: 4 * MAX_BODY_CHARS].decode(errors="replace"))[:MAX_BODY_CHARS],
            remaining_req=None if remaining_req is None else self._presentable(remaining_req[:MAX_NAME_CHARS]),
            elapsed_ms=elapsed_ms,
        )

    def _presentable(self, text: str) -> str:
        return self._signer.scrub(_storable(text))

    def _learn(self, outcome: object, call: Call) -> None:
        """Hold back the next calls where Upbit asks for it: https://global-docs.upbit.com/reference/rate-limits."""
        if call.status == BANNED and isinstance(outcome, Refusal):
            self._brake.hold("banned", for_s=outcome.retry_after_s or DEFAULT_BAN_S)
        elif call.status == TOO_MANY_REQUESTS and isinstance(outcome, Refusal):
            hold_s = outcome.retry_after_s or NEXT_SECOND_S
            self._brake.hold("rate_limited", for_s=hold_s)
            self._brake.hold("reserved", for_s=hold_s + CANCELS_FIRST_S)
        elif told := re.search(r"\bsec=(\d{1,6})(?!\d)", call.remaining_req or "", re.ASCII):
            left = int(told[1])
            if left < RESERVED_FOR_CANCELS:
                self._brake.hold("reserved" if left else "rate_limited", for_s=NEXT_SECOND_S)

    def _note(self, outcome: object, call: Call) -> None:
        """Whether Upbit answers, and takes the key; what it says of one order is neither here nor there."""
        if isinstance(outcome, Doubt):
            self._fared.badly(outcome.cause)
        elif isinstance(outcome, Refusal) and call.status == HTTPStatus.UNAUTHORIZED:
            self._fared.badly(self._presentable(outcome.name))
        else:
            self._fared.well()


def _outcome(
    reply: _Reply, *, failure: str | None, read: Callable[[int, Mapping[str, str], bytes], _Read | Refusal | Doubt]
) -> _Read | Refusal | Doubt:
    """429 and 418 count by their status, even where the rest of the answer was lost; nothing else does."""
    if reply.status not in {TOO_MANY_REQUESTS, BANNED}:
        if failure is not None:
            return Doubt(cause=failure)
        if reply.too_large:
            return Doubt(cause="too_large")
    if reply.status is None:
        return Doubt(cause="connection_lost")
    return read(reply.status, reply.headers, bytes(reply.body))
