"""The best prices of a market, by Upbit's public quotation, beside the calls about orders and never in their way.

It is worth a second and no more: one try, a second in all, a few at a time, and a rest after every failure. Nothing
is signed. Its limit counts by address and in a group of its own, so what it is refused says nothing about the calls
about orders; but while Upbit bans those, nothing is asked here either.

https://global-docs.upbit.com/reference/list-orderbooks, https://global-docs.upbit.com/reference/rate-limits
"""

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from decimal import Decimal
from http import HTTPStatus
from typing import Any, Final, TypeGuard
from urllib.parse import urlsplit

from requests import PreparedRequest

from bot.domain.order import MAX_DIGITS
from bot.domain.quote import BestPrices, NoPrices
from bot.upbit.client import BANNED, NEXT_SECOND_S, TOO_MANY_REQUESTS, USER_AGENT, ban_s
from bot.upbit.line import ATTEMPT, Attempt, Line, Resolve, Watchdog, addresses_of

ORDERBOOK_PATH: Final = "/v1/orderbook"

DEADLINE_S: Final = 1.0
MAX_AT_ONCE: Final = 4
"""Calls under way: a slow quotation must leave the worker's other threads to cancels."""
FAILED_REST_S: Final = 10.0
"""After a failure that is not about one market; until then cards go without."""
MAX_ANSWER_BYTES: Final = 100_000

_MARKET: Final = re.compile(r"[A-Z0-9]{1,20}-[A-Z0-9]{1,20}", re.ASCII)


def decipher(status: int, body: bytes, *, market: str) -> BestPrices | NoPrices:
    """What a whole answer says of the market. Never raises.

    Prices come only out of a 200 with a JSON list that has the market once, with a best bid below a best ask.
    """
    if status != HTTPStatus.OK:
        return NoPrices(cause={TOO_MANY_REQUESTS: "too_many_requests", BANNED: "banned"}.get(status, f"http_{status}"))
    try:
        books = json.loads(body.decode(), parse_float=Decimal, parse_int=Decimal, parse_constant=_no_constant)
    except (ValueError, ArithmeticError, RecursionError):
        return NoPrices(cause="not_json")
    if not isinstance(books, list):
        return NoPrices(cause="not_json")
    named = [book for book in books if isinstance(book, dict) and book.get("market") == market]
    units = named[0].get("orderbook_units") if len(named) == 1 else None
    if not isinstance(units, list):
        return NoPrices(cause="wrong_market")
    bid = max(_prices(units, "bid"), default=None)
    ask = min(_prices(units, "ask"), default=None)
    if bid is None or ask is None:
        return NoPrices(cause="empty_book")
    return BestPrices(bid=bid, ask=ask) if bid < ask else NoPrices(cause="crossed_book")


def _prices(units: list[Any], side: str) -> list[Decimal]:
    """The prices at which somebody waits; a side of the book that is empty shows zeros."""
    found = [(unit.get(f"{side}_price"), unit.get(f"{side}_size")) for unit in units if isinstance(unit, dict)]
    return [price for price, size in found if _is_amount(price) and (size is None or _is_amount(size))]


def _is_amount(value: object) -> TypeGuard[Decimal]:
    """More than nothing, and no more digits than the database and people can take."""
    if not isinstance(value, Decimal) or not value.is_finite() or value <= 0:
        return False
    return abs(value.adjusted()) < MAX_DIGITS and len(value.as_tuple().digits) <= MAX_DIGITS


def _no_constant(name: str) -> Decimal:
    raise ValueError(f"{name} is no JSON")


class QuotationClient:
    """Asks for the best prices of a market, for many threads. No call raises, and none outlasts its deadline."""

    def __init__(  # noqa: PLR0913 - keyword-only, each with its default
        self,
        *,
        server_url: str,
        deadline_s: float = DEADLINE_S,
        ca_bundle: str | None = None,
        banned_s: Callable[[], float] = lambda: 0.0,
        monotonic: Callable[[], float] = time.monotonic,
        resolve: Resolve = addresses_of,
    ) -> None:
        """`server_url` is scheme, host and port only; `banned_s` says for how long calls about orders are banned."""
        self._server_url = server_url
        self._deadline_s = deadline_s
        self._banned_s = banned_s
        self._monotonic = monotonic
        self._resolve = resolve
        self._places = threading.BoundedSemaphore(MAX_AT_ONCE)
        self._lock = threading.Lock()
        self._rests_until = float("-inf")
        self._watchdog = Watchdog()
        self._line = Line(urlsplit(server_url), ca_bundle=ca_bundle, max_connections=MAX_AT_ONCE)

    def best_prices(self, market: str) -> BestPrices | NoPrices:
        """Of the market now, or why not."""
        if not _MARKET.fullmatch(market):
            return NoPrices(cause="no_market")
        if self._banned_s() > 0 or self._is_resting():
            return NoPrices(cause="not_asked")
        if not self._places.acquire(blocking=False):
            return NoPrices(cause="busy")
        try:
            return self._ask(market)
        except Exception as error:  # noqa: BLE001 - whatever it is, a request is opened without a price
            self._rest(FAILED_REST_S)
            return NoPrices(cause=f"unexpected_{type(error).__name__}")
        finally:
            self._places.release()

    def close(self) -> None:
        """Wait for the calls under way, no longer than the deadline; later ones find nothing."""
        self._watchdog.close()
        self._line.close()

    def _ask(self, market: str) -> BestPrices | NoPrices:
        attempt = Attempt(deadline_s=self._deadline_s, resolve=self._resolve)
        ATTEMPT.set(attempt)
        try:
            with self._watchdog.guards(attempt):
                status, headers, body = self._get(f"{ORDERBOOK_PATH}?markets={market}")
        except Exception:  # noqa: BLE001 - the libraries raise as they like when a connection fails
            is_late = attempt.expired or attempt.left_s() <= 0
            self._rest(FAILED_REST_S)
            return NoPrices(cause="timeout" if is_late else "connection_lost" if attempt.written else attempt.stage)
        if attempt.expired:
            self._rest(FAILED_REST_S)
            return NoPrices(cause="timeout")
        answer = decipher(status, body, market=market)
        self._rest(_rest_s(status, headers, body, answer))
        return answer

    def _get(self, path: str) -> tuple[int, Mapping[str, str], bytes]:
        request = PreparedRequest()
        request.method = "GET"
        request.url = f"{self._server_url}{path}"
        request.prepare_headers({"User-Agent": USER_AGENT, "Accept": "application/json"})
        raw = self._line.send(request, stream=True, timeout=(self._deadline_s, self._deadline_s)).raw
        body = b""
        try:
            body = raw.read(MAX_ANSWER_BYTES)
        finally:
            if not body or len(body) == MAX_ANSWER_BYTES:
                raw.close()  # there may be more of it: this connection is not used again
            raw.release_conn()
        return raw.status, raw.headers, body

    def _is_resting(self) -> bool:
        with self._lock:
            return self._monotonic() < self._rests_until

    def _rest(self, for_s: float) -> None:
        with self._lock:
            self._rests_until = max(self._rests_until, self._monotonic() + for_s)


def _rest_s(status: int, headers: Mapping[str, str], body: bytes, answer: BestPrices | NoPrices) -> float:
    """For how long not to ask again, after this answer."""
    if status == TOO_MANY_REQUESTS:
        return NEXT_SECOND_S
    if status == BANNED:
        return ban_s(headers, body)
    if isinstance(answer, NoPrices) and (answer.cause == "not_json" or _is_fault(status)):
        return FAILED_REST_S
    is_used_up = re.search(r"\bsec=0(?![0-9])", headers.get("Remaining-Req") or "", re.ASCII)
    return NEXT_SECOND_S if is_used_up else 0.0


def _is_fault(status: int) -> bool:
    """Not of one market: that is a 200 with an odd book, or a 4xx."""
    return status != HTTPStatus.OK and not HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
