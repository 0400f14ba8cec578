"""The market's price on the card: what an answer proves, how far an order is from it, and that nothing waits for it."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import Any

import pytest
import requests
from builders import START, at_once, order
from hypothesis import given
from hypothesis import strategies as st

from bot.domain.quote import BestPrices, NoPrices, Quote, Side, distance, dump_quote, load_quote
from bot.playground.exchange import Exchange, Mood
from bot.upbit.quotation import FAILED_REST_S, MAX_AT_ONCE, QuotationClient, decipher

PRICES = BestPrices(bid=Decimal(100), ask=Decimal(101))


def book(*units: tuple[str, str], market: str = "KRW-BTC", **more: Any) -> str:
    """An order book with (bid, ask) at each step, numbers as they stand on the wire."""
    steps = ",".join(f'{{"bid_price":{bid},"ask_price":{ask},"bid_size":1.5,"ask_size":2}}' for bid, ask in units)
    return f'[{{"market":"{market}","timestamp":1,"orderbook_units":[{steps}],"level":0}}]'


# What an answer says ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "prices"),
    [
        (book(("100", "101"), ("99", "102")), PRICES),
        (book(("99", "102"), ("100.0", "101.00")), PRICES),
        (book(("0", "101"), ("100", "0")), PRICES),
        (
            book(("0.00000123456789012345", "98765432109876543210.5")),
            BestPrices(bid=Decimal("0.00000123456789012345"), ask=Decimal("98765432109876543210.5")),
        ),
        (book(("1E+2", "1.01e2")), PRICES),
    ],
)
def test_the_best_prices_are_read_to_the_last_digit(text: str, prices: BestPrices) -> None:
    """A float would show a trader a price that nobody offers."""
    assert decipher(200, text.encode(), market="KRW-BTC") == prices


@pytest.mark.parametrize(
    ("status", "text", "cause"),
    [
        (200, "[]", "wrong_market"),
        (200, book(("100", "101"), market="KRW-ETH"), "wrong_market"),
        (200, "[" + ",".join([book(("100", "101"))[1:-1]] * 2) + "]", "wrong_market"),
        (200, '[{"market":"KRW-BTC"}]', "wrong_market"),
        (200, '[{"market":"KRW-BTC","orderbook_units":{}}]', "wrong_market"),
        (200, book(), "empty_book"),
        (200, book(("0", "0")), "empty_book"),
        (200, book(("0.0", "101")), "empty_book"),
        (200, book(("-100", "101")), "empty_book"),
        (200, book(('"100"', "101")), "empty_book"),
        (200, book(("true", "101")), "empty_book"),
        (200, book(("null", "101")), "empty_book"),
        (200, book(("1e999999", "101")), "empty_book"),
        (200, book(("1." + "1" * 5000, "101")), "empty_book"),
        (200, '[{"market":"KRW-BTC","orderbook_units":[7,null,[]]}]', "empty_book"),
        (200, book(("101", "101")), "crossed_book"),
        (200, book(("102", "101")), "crossed_book"),
        (200, book(("NaN", "101")), "not_json"),
        (200, book(("100", "Infinity")), "not_json"),
        (200, "{}", "not_json"),
        (200, "OK", "not_json"),
        (200, "<html></html>", "not_json"),
        (200, "", "not_json"),
        (200, "[" * 100_000, "not_json"),
        (302, "", "http_302"),
        (404, '{"error":{"name":404,"message":"Code not found"}}', "http_404"),
        (429, "Too many API requests.", "too_many_requests"),
        (418, "{}", "banned"),
        (502, "<html></html>", "http_502"),
        (500, book(("100", "101")), "http_500"),
    ],
)
def test_anything_odd_is_no_price(status: int, text: str, cause: str) -> None:
    """A wrong price on the card misleads who decides; none does not."""
    assert decipher(status, text.encode(), market="KRW-BTC") == NoPrices(cause=cause)


@given(body=st.binary(max_size=200), status=st.integers(100, 599))
def test_no_answer_whatever_raises(body: bytes, status: int) -> None:
    """What comes from the network is not ours."""
    assert isinstance(decipher(status, body, market="KRW-BTC"), NoPrices)


# How far the order is ------------------------------------------------------------------------------------------------


def quote(bid: str = "100", ask: str = "101") -> Quote:
    return Quote(bid=Decimal(bid), ask=Decimal(ask), quoted_at=START)


@pytest.mark.parametrize(
    ("side", "price", "from_side", "percent", "is_reached"),
    [
        ("bid", "98", Side.BID, "-2", False),
        ("bid", "100", Side.BID, "0", False),
        ("bid", "100.5", Side.BID, "0.5", False),
        ("bid", "101", Side.ASK, "0", True),
        ("bid", "202", Side.ASK, "100", True),
        ("ask", "202", Side.ASK, "100", False),
        ("ask", "101", Side.ASK, "0", False),
        ("ask", "100", Side.BID, "0", True),
        ("ask", "50", Side.BID, "-50", True),
    ],
)
def test_an_order_is_measured_from_its_own_side_unless_the_other_has_reached_it(
    side: str, price: str, from_side: Side, percent: str, *, is_reached: bool
) -> None:
    """A buy waits among the bids; at or above the best ask it is about to be filled, which is another thing to know."""
    far = distance(order(side=side, price=Decimal(price)), quote())
    assert far is not None
    assert (far.side, far.percent, far.is_reached) == (from_side, Decimal(percent), is_reached)


@pytest.mark.parametrize(
    "changes",
    [
        {"ord_type": "market", "price": None},
        {"ord_type": "price", "side": "bid"},
        {"ord_type": "best", "side": "bid"},
        {"ord_type": "iceberg"},
        {"side": "short"},
        {"price": None},
        {"price": Decimal(0)},
        {"price": Decimal(-1)},
    ],
)
def test_an_order_without_a_price_of_its_own_has_no_distance(changes: dict[str, Any]) -> None:
    """What a market buy calls its price is what it spends in all."""
    assert distance(order(**changes), quote()) is None


far_amounts = st.decimals("1e-29", "1e29", allow_nan=False, allow_infinity=False)


@given(price=far_amounts, bid=far_amounts, ask=far_amounts, side=st.sampled_from(["bid", "ask"]))
def test_any_two_prices_have_a_distance_with_the_right_sign(
    price: Decimal, bid: Decimal, ask: Decimal, side: str
) -> None:
    """Also of prices that are worlds apart."""
    bid, ask = sorted((bid, ask))
    far = distance(order(side=side, price=price), Quote(bid=bid, ask=ask, quoted_at=START))
    assert far is not None
    assert (far.percent > 0, far.percent < 0) == (price > far.best, price < far.best)


def test_a_quote_is_read_as_it_was_written() -> None:
    """Digits and microseconds are the evidence of what approvers saw."""
    exact = Quote(bid=Decimal("0.00000001"), ask=Decimal("98765.43210"), quoted_at=START.replace(microsecond=7))
    assert load_quote(dump_quote(exact)) == exact
    assert json.loads(dump_quote(exact))["bid"] == "0.00000001"


# The call -----------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def exchange(clock: Clock) -> Iterator[Exchange]:
    with Exchange(now=clock) as exchange:
        exchange.set_book("KRW-BTC", bid="100", ask="101")
        yield exchange


@pytest.fixture
def made(exchange: Exchange, clock: Clock) -> Iterator[Callable[..., QuotationClient]]:
    """Makes clients whose brake goes by the exchange's clock."""
    clients: list[QuotationClient] = []

    def make(**settings: Any) -> QuotationClient:
        clients.append(QuotationClient(**{"server_url": exchange.url, "monotonic": clock, **settings}))
        return clients[-1]

    yield make
    exchange.clear_moods()
    for client in clients:
        client.close()


Made = Callable[..., QuotationClient]


def test_the_prices_are_asked_for_without_a_token(made: Made, exchange: Exchange) -> None:
    """The key has no business in a public call; an `Origin` would cut the limit to one in ten seconds."""
    assert made().best_prices("KRW-BTC") == PRICES
    (seen,) = exchange.requests
    assert (seen.method, seen.path, seen.query, seen.body) == ("GET", "/v1/orderbook", "markets=KRW-BTC", b"")
    assert set(seen.headers) <= {"host", "user-agent", "accept", "accept-encoding", "connection"}


@pytest.mark.parametrize("market", ["", "BTC", "KRW-BTC&x=1", "KRW-BTC,KRW-ETH", "krw-btc", "KRW-BTC\n", "K" * 300])
def test_a_market_of_another_shape_is_not_asked_for(made: Made, exchange: Exchange, market: str) -> None:
    """The name came from the exchange, and goes into an address."""
    assert made().best_prices(market) == NoPrices(cause="no_market")
    assert not exchange.requests


@pytest.mark.parametrize(
    ("mood", "cause"),
    [
        (Mood.DROP_BEFORE, "connection_lost"),
        (Mood.HTTP_500, "http_500"),
        (Mood.HTML_502, "http_502"),
        (Mood.REDIRECT, "http_302"),
        (Mood.HTML_200, "not_json"),
        (Mood.NOT_JSON_200, "not_json"),
        (Mood.WRONG_UUID, "not_json"),
    ],
)
def test_after_a_failure_cards_go_without_for_a_while(
    made: Made, exchange: Exchange, clock: Clock, mood: Mood, cause: str
) -> None:
    """One try, no retry: a quotation that is down must not cost every request its second."""
    exchange.set_mood("GET /v1/orderbook", mood)
    client = made()
    assert client.best_prices("KRW-BTC") == NoPrices(cause=cause)
    for _ in range(20):
        assert client.best_prices("KRW-BTC") == NoPrices(cause="not_asked")
    assert len(exchange.requests) == 1
    exchange.clear_moods()
    clock.now_s += FAILED_REST_S
    assert client.best_prices("KRW-BTC") == PRICES


def test_half_an_answer_is_no_price(made: Made, exchange: Exchange) -> None:
    """The connection broke in the middle."""
    exchange.set_mood("GET /v1/orderbook", Mood.TRUNCATED)
    assert isinstance(made().best_prices("KRW-BTC"), NoPrices)


def test_an_odd_book_of_one_market_does_not_take_the_price_from_others(made: Made, exchange: Exchange) -> None:
    """A market that was just listed has an empty book; one that Upbit does not know answers 404."""
    exchange.set_book("KRW-NEW", bid="0", ask="5")
    client = made()
    assert client.best_prices("KRW-NEW") == NoPrices(cause="empty_book")
    assert client.best_prices("KRW-GONE") == NoPrices(cause="http_404")
    assert client.best_prices("KRW-BTC") == PRICES


@pytest.mark.parametrize("mood", [Mood.HANG, Mood.SLOW])
def test_no_answer_is_waited_for_longer_than_the_deadline(made: Made, exchange: Exchange, mood: Mood) -> None:
    """A card that comes a second later is fine; one that comes ten seconds later is not."""
    exchange.set_mood("GET /v1/orderbook", mood, seconds=30)
    began_at = time.monotonic()
    assert made(deadline_s=0.2).best_prices("KRW-BTC") == NoPrices(cause="timeout")
    assert time.monotonic() - began_at < 5


def test_a_name_that_is_not_resolved_is_waited_for_no_longer(made: Made) -> None:
    """The system's resolver cannot be interrupted, and takes up to half a minute."""
    over = threading.Event()

    def never(_host: str, _port: int) -> Sequence[str]:
        over.wait(30)
        return ()

    began_at = time.monotonic()
    assert made(deadline_s=0.2, resolve=never).best_prices("KRW-BTC") == NoPrices(cause="timeout")
    over.set()
    assert time.monotonic() - began_at < 5


def test_a_refused_connection_is_no_price(made: Made, exchange: Exchange) -> None:
    """Nobody listens there."""
    client = made(server_url="http://127.0.0.1:1")
    assert client.best_prices("KRW-BTC") == NoPrices(cause="connect_failed")


def test_few_calls_are_under_way_at_once(made: Made, exchange: Exchange) -> None:
    """The threads that wait here are those that send cancels."""
    client = made(deadline_s=1.0)
    exchange.set_mood("GET /v1/orderbook", Mood.HANG)
    answers = at_once(*[lambda: client.best_prices("KRW-BTC")] * 12)
    assert len(exchange.requests) <= MAX_AT_ONCE
    assert answers.count(NoPrices(cause="timeout")) == len(exchange.requests)
    assert set(map(str, answers)) <= {str(NoPrices(cause=cause)) for cause in ("timeout", "busy", "not_asked")}


def test_what_upbit_allows_in_a_second_is_not_overdrawn(made: Made, exchange: Exchange, clock: Clock) -> None:
    """Ten in a second; who goes on asking is banned, by address."""
    client = made()
    answers = [client.best_prices("KRW-BTC") for _ in range(40)]
    assert answers.count(PRICES) == 10
    assert answers.count(NoPrices(cause="not_asked")) == 30
    clock.now_s += 1
    assert client.best_prices("KRW-BTC") == PRICES


def test_a_429_is_over_in_the_next_second_and_a_ban_when_upbit_says(
    made: Made, exchange: Exchange, clock: Clock
) -> None:
    """To go on asking makes a ban longer."""
    client = made()
    exchange.set_mood("GET /v1/orderbook", Mood.RATELIMITED_429, times=1)
    assert client.best_prices("KRW-BTC") == NoPrices(cause="too_many_requests")
    assert client.best_prices("KRW-BTC") == NoPrices(cause="not_asked")
    clock.now_s += 1
    assert client.best_prices("KRW-BTC") == PRICES
    exchange.set_mood("GET /v1/orderbook", Mood.BANNED_418, times=1, seconds=30)
    assert client.best_prices("KRW-BTC") == NoPrices(cause="banned")
    clock.now_s += 29
    assert client.best_prices("KRW-BTC") == NoPrices(cause="not_asked")
    assert len(exchange.requests) == 3
    clock.now_s += 2
    assert client.best_prices("KRW-BTC") == PRICES


def test_while_calls_about_orders_are_banned_nothing_is_asked_here_either(made: Made, exchange: Exchange) -> None:
    """A ban may be for the address, and then it is for this as well."""
    banned_s = [30.0]
    client = made(banned_s=lambda: banned_s[0])
    assert client.best_prices("KRW-BTC") == NoPrices(cause="not_asked")
    assert not exchange.requests
    banned_s[0] = 0.0
    assert client.best_prices("KRW-BTC") == PRICES


def test_a_closed_client_finds_nothing(made: Made, exchange: Exchange) -> None:
    """The process is stopping; the next one posts the card."""
    client = made()
    client.close()
    assert isinstance(client.best_prices("KRW-BTC"), NoPrices)
    assert not exchange.requests


# The playground -----------------------------------------------------------------------------------------------------


def test_the_playground_shows_books_as_upbit_does(exchange: Exchange) -> None:
    """Numbers are no strings there, the best is the first, and the limit is in a group of its own."""
    answer = requests.get(f"{exchange.url}/v1/orderbook?markets=KRW-BTC", timeout=5)
    assert answer.status_code == 200
    assert answer.headers["Remaining-Req"] == "group=orderbook; min=600; sec=9"
    (shown,) = json.loads(answer.text, parse_float=Decimal, parse_int=Decimal)
    assert shown["market"] == "KRW-BTC"
    first, second = shown["orderbook_units"]
    assert (first["bid_price"], first["ask_price"]) == (100, 101)
    assert (second["bid_price"], second["ask_price"]) == (Decimal("99.9"), Decimal("101.101"))
    assert requests.get(f"{exchange.url}/v1/orderbook?markets=KRW-GONE", timeout=5).status_code == 404
    for _ in range(8):
        requests.get(f"{exchange.url}/v1/orderbook?markets=KRW-BTC", timeout=5)
    assert requests.get(f"{exchange.url}/v1/orderbook?markets=KRW-BTC", timeout=5).status_code == 429
    assert not exchange.statuses()
