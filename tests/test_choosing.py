"""The form that `/cancel` without a uuid opens: filled page by page, within Slack's limits, and honest in trouble."""

import json
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

import pytest
from builders import call, order, order_uuid
from hypothesis import given
from hypothesis import strategies as st
from slack_sdk.models.views import View

from bot.choosing import GIVE_UP_AFTER_S, MAX_FORMS, MAX_PAGES, PAGE, TELL_FOR_S, Choice, Choosing, Form, Trouble
from bot.domain.answer import FoundOrders, NotSent, OrdersAnswer, Refused, Unknown
from bot.domain.errors import CannotPost, TryLater
from bot.domain.order import Order
from bot.playground.slack_blocks import view_faults
from bot.slack import messages, views

FORM: Final = Form(id="choose_order:trigger-1", trigger_id="trigger-1", channel_id="C0DESK", in_private=False)
CALL: Final = call(path="/v1/orders/open")


class Book:
    """Open orders by the page; or what is answered instead, one answer a call, the last for ever."""

    def __init__(self, orders: int = 0, *answers: OrdersAnswer) -> None:
        self.orders = [order(uuid=order_uuid()) for _ in range(orders)]
        self.answers = list(answers)
        self.pages: list[int] = []

    def get_open_orders(self, *, page: int) -> OrdersAnswer:
        self.pages.append(page)
        if self.answers:
            return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        listed = self.orders[(page - 1) * PAGE : page * PAGE]
        return FoundOrders(orders=tuple(listed), listed=len(listed), call=CALL)


class Screen:
    """What the person sees; or a Slack that fails so often."""

    def __init__(self, *failures: Exception) -> None:
        self.shown: list[Choice] = []
        self.failures = list(failures)

    def fill_form(self, form: Form, choice: Choice) -> None:
        if self.failures:
            raise self.failures.pop(0)
        self.shown.append(choice)


class Watch:
    def __init__(self) -> None:
        self.s = 0.0

    def __call__(self) -> float:
        return self.s


def filled(book: Book, screen: Screen | None = None) -> tuple[Choice | None, float]:
    """What the form shows in the end, None where nothing; and after how many seconds."""
    screen, watch = screen or Screen(), Watch()
    choosing = Choosing(exchange=book, forms=screen, monotonic=watch)
    number = choosing.begin(FORM)
    for _ in range(1000):
        wait_s = choosing.fill(number)
        if wait_s is None:
            assert choosing.fill(number) is None
            return (screen.shown[0] if screen.shown else None), watch.s
        assert 0 < wait_s < 1.0, "only a short wait is kept by the worker"
        watch.s += wait_s
    raise AssertionError("never done")


# What is offered


@pytest.mark.parametrize(
    ("count", "pages", "has_more"),
    [(0, 1, False), (1, 1, False), (99, 1, False), (100, 2, False), (300, 4, False), (499, 5, False), (750, 5, True)],
)
def test_every_page_is_read_up_to_a_limit(count: int, pages: int, *, has_more: bool) -> None:
    """A desk with 300 open orders must find each of them; one with thousands is told what is missing."""
    book = Book(count)
    choice, took_s = filled(book)

    assert choice == Choice(orders=tuple(book.orders[: MAX_PAGES * PAGE]), has_more=has_more)
    assert book.pages == list(range(1, pages + 1))
    assert took_s == 0


def test_an_order_that_moves_between_two_pages_is_offered_once() -> None:
    """Orders fill while the pages are read, and the others move up."""
    orders = [order(uuid=order_uuid()) for _ in range(PAGE + 1)]
    first = FoundOrders(orders=tuple(orders[:PAGE]), listed=PAGE, call=CALL)
    second = FoundOrders(orders=tuple(orders[PAGE - 1 :]), listed=2, call=CALL)
    choice, _ = filled(Book(0, first, second))

    assert choice == Choice(orders=tuple(orders))


@pytest.mark.parametrize(
    ("answer", "trouble", "at_once"),
    [
        (Refused(name="out_of_scope", proves_nothing_happened=True, call=CALL), "key_lacks_view", True),
        (Refused(name="invalid_access_key", proves_nothing_happened=True, call=CALL), "refused", True),
        (NotSent(cause="banned", call=CALL, retry_after_s=60), "busy", True),
        (NotSent(cause="reserved", call=CALL), "busy", False),
        (NotSent(cause="rate_limited", call=CALL), "busy", False),
        (Refused(name="too_many_requests", proves_nothing_happened=True, call=CALL, retry_after_s=1), "busy", False),
        (Unknown(cause="timeout", call=CALL), "away", False),
        (Unknown(cause="not_json", call=CALL), "away", False),
        (NotSent(cause="connect_failed", call=CALL), "away", False),
        (NotSent(cause="closed", call=CALL), "away", False),
    ],
)
def test_trouble_is_told_at_once_or_when_waiting_has_not_helped(
    answer: OrdersAnswer, trouble: Trouble, *, at_once: bool
) -> None:
    """An empty list would be read as "no open orders"; and nobody waits for ever."""
    choice, took_s = filled(Book(0, answer))

    assert choice == Choice(trouble=trouble)
    assert (took_s == 0) if at_once else (GIVE_UP_AFTER_S / 2 < took_s < GIVE_UP_AFTER_S)


def test_what_passes_is_waited_for() -> None:
    """A rate limit lasts a second; the page that it met is asked for again, and no other."""
    found = FoundOrders(orders=(order(),), listed=1, call=CALL)
    book = Book(0, NotSent(cause="reserved", call=CALL), Unknown(cause="timeout", call=CALL), found)

    assert filled(book)[0] == Choice(orders=found.orders)
    assert book.pages == [1, 1, 1]


# When Slack does not take it


def test_a_form_that_is_closed_is_forgotten() -> None:
    """Nobody is there to be shown anything."""
    assert filled(Book(1), Screen(CannotPost("not_found"))) == (None, 0)


def test_a_slack_that_is_away_is_asked_again_for_a_while() -> None:
    """And Upbit is not: what it said is still there."""
    book = Book(1)
    shown, _ = filled(book, Screen(TryLater("timeout"), TryLater("ratelimited")))
    assert shown == Choice(orders=tuple(book.orders))
    assert book.pages == [1]

    nothing, took_s = filled(Book(1), Screen(*[TryLater("timeout")] * 1000))
    assert nothing is None
    assert took_s >= TELL_FOR_S


def test_no_more_forms_are_opened_than_can_be_filled() -> None:
    """A crowd, or a thread that was lost, must fill neither the memory nor the exchange's limit."""
    watch = Watch()
    choosing = Choosing(exchange=Book(1), forms=Screen(), monotonic=watch)
    numbers = [choosing.begin(FORM) for _ in range(MAX_FORMS)]
    assert not choosing.has_room()
    assert choosing.fill(numbers[0]) is None
    assert choosing.has_room()
    choosing.begin(FORM)
    assert not choosing.has_room()
    watch.s += GIVE_UP_AFTER_S + TELL_FOR_S + 1
    assert choosing.has_room()
    assert choosing.fill(numbers[1]) is None
    assert choosing.fill(999) is None


# What the form looks like


def many(count: int, **changes: Any) -> tuple[Order, ...]:
    return tuple(order(uuid=order_uuid(), **changes) for _ in range(count))


LONG: Final = Decimal("9" * 29 + "." + "9" * 29)
STRANGE: Final = {"side": "<!here>" * 20, "ord_type": "x" * 200, "market": "&<>`\u202e" * 40}

CASES: Final[dict[str, Callable[[], views.View]]] = {
    "loading": lambda: views.loading(FORM),
    "no orders": lambda: views.choice(FORM, Choice()),
    "one": lambda: views.choice(FORM, Choice(orders=many(1))),
    "three hundred of one market": lambda: views.choice(FORM, Choice(orders=many(300))),
    "five hundred and more": lambda: views.choice(FORM, Choice(orders=many(500), has_more=True)),
    "more markets than groups": lambda: views.choice(
        FORM, Choice(orders=tuple(order(uuid=order_uuid(), market=f"KRW-{n:03}") for n in range(500)))
    ),
    "the longest values": lambda: views.choice(
        FORM, Choice(orders=many(500, **STRANGE, price=LONG, volume=LONG, remaining_volume=LONG))
    ),
    "nothing told": lambda: views.choice(
        FORM, Choice(orders=many(2, price=None, volume=None, remaining_volume=None, executed_volume=None))
    ),
    "away": lambda: views.choice(FORM, Choice(trouble="away")),
    "busy": lambda: views.choice(FORM, Choice(trouble="busy")),
    "no permission": lambda: views.choice(FORM, Choice(trouble="key_lacks_view")),
    "refused": lambda: views.choice(FORM, Choice(trouble="refused")),
    "recorded": lambda: views.told(messages.recorded_from_form(42, "C0DESK"), title="Recorded"),
    "not confirmed": lambda: views.told(messages.in_doubt(), title="Not confirmed"),
    "long ids": lambda: views.loading(replace(FORM, id="x" * 255, trigger_id="x" * 500, channel_id="C" * 300)),
}

VIEW_BYTES: Final = 250_000


@pytest.mark.parametrize("name", CASES)
def test_each_view_is_what_slack_takes(name: str) -> None:
    """A form that Slack refuses is a person who waits before *loading…*."""
    view = CASES[name]()

    assert view_faults(view) == []
    View(**view).validate_json()
    assert len(json.dumps(view).encode()) <= VIEW_BYTES


def options_of(view: views.View) -> list[tuple[str, str]]:
    """What can be chosen: the words and the value of each option, and above them nothing but markets."""
    (select,) = [block["element"] for block in view["blocks"] if block.get("block_id") == views.ORDER_BLOCK]
    return [(each["text"]["text"], each["value"]) for group in select["option_groups"] for each in group["options"]]


def test_every_order_can_be_chosen_and_told_from_the_others() -> None:
    """Two orders alike in price and volume differ by their uuid, also where the rest had to be cut."""
    orders = many(300, price=LONG, volume=LONG, remaining_volume=LONG)
    options = options_of(views.choice(FORM, Choice(orders=orders)))

    assert [value for _, value in options] == [each.uuid for each in orders]
    assert all(words.endswith(f" · {value[:8]}") for words, value in options)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "KRW-BTC Sell 1 at 95,000,000"),
        ({"remaining_volume": Decimal("0.58")}, "KRW-BTC Sell 0.58 at 95,000,000"),
        ({"remaining_volume": None}, "KRW-BTC Sell 1 at 95,000,000"),
        ({"side": "bid", "state": "watch"}, "KRW-BTC Buy 1 at 95,000,000 (stop)"),
        (
            {"side": "bid", "ord_type": "price", "price": Decimal(1500000), "volume": None, "remaining_volume": None},
            "KRW-BTC Buy for 1,500,000 in all",
        ),
        ({"ord_type": "market", "price": None}, "KRW-BTC Sell 1 at the market price"),
        ({"ord_type": "best", "price": None}, "KRW-BTC Sell 1 price not told"),
        ({"volume": None, "remaining_volume": None}, "KRW-BTC Sell (volume not told) at 95,000,000"),
    ],
)
def test_an_order_reads_as_one_line_whatever_it_lacks(changes: dict[str, Any], words: str) -> None:
    """Nothing is invented where Upbit tells nothing."""
    assert messages.order_in_a_line(order(**changes)) == words


def test_markets_stand_together() -> None:
    """So that somebody finds an order among three hundred."""
    orders = [order(uuid=order_uuid(), market=market) for market in ("KRW-ETH", "KRW-BTC", "KRW-ETH")]
    view = views.choice(FORM, Choice(orders=tuple(orders)))
    (select,) = [block["element"] for block in view["blocks"] if block.get("block_id") == views.ORDER_BLOCK]

    assert [(group["label"]["text"], len(group["options"])) for group in select["option_groups"]] == [
        ("KRW-BTC", 1),
        ("KRW-ETH", 2),
    ]


@pytest.mark.parametrize(
    ("name", "blocks"),
    [
        ("loading", []),
        ("no orders", []),
        ("one", [views.ORDER_BLOCK, views.REASON_BLOCK]),
        ("away", [views.UUID_BLOCK, views.REASON_BLOCK]),
        ("busy", [views.UUID_BLOCK, views.REASON_BLOCK]),
        ("refused", [views.UUID_BLOCK, views.REASON_BLOCK]),
        ("no permission", []),
    ],
)
def test_only_what_can_come_to_something_can_be_submitted(name: str, blocks: list[str]) -> None:
    """Where Upbit is away the uuid is enough; a key that may not read would refuse that as well."""
    view = CASES[name]()

    assert [block["block_id"] for block in view["blocks"] if block["type"] == "input"] == blocks
    assert ("submit" in view) == bool(blocks)


def test_where_orders_are_missing_the_form_says_so() -> None:
    """Who does not find theirs must not conclude that it is gone."""
    whole = json.dumps(views.choice(FORM, Choice(orders=many(3))))
    cut = json.dumps(views.choice(FORM, Choice(orders=many(3), has_more=True)))

    assert "Only 3 orders are here." not in whole
    assert "Only 3 orders are here." in cut
    assert "Only 100 orders are here." in json.dumps(CASES["more markets than groups"]())


def test_a_form_comes_back_as_it_was_opened() -> None:
    """The request belongs to where the command was typed, and to that command."""
    again = views.read_form(views.loading(FORM)["private_metadata"], FORM.id)

    assert again == FORM
    private = replace(FORM, in_private=True)
    assert views.read_form(views.choice(private, Choice())["private_metadata"], FORM.id) == private


@given(st.text() | st.recursive(st.none() | st.booleans() | st.text(), st.lists).map(json.dumps))
def test_what_is_no_form_of_ours_is_none(private_metadata: str) -> None:
    """A version of the bot before this one, or after it, wrote something else there."""
    assert views.read_form(private_metadata) is None


@pytest.mark.parametrize("kept", [{}, {"trigger": 1, "channel": "C", "private": True}, {"trigger": "t", "channel": ""}])
def test_a_form_that_lacks_something_is_none(kept: dict[str, Any]) -> None:
    """Half of it would be a request that belongs nowhere."""
    assert views.read_form(json.dumps(kept)) is None


def test_a_place_that_is_not_told_to_be_public_is_private() -> None:
    """As for a typed command."""
    kept = {"trigger": "t", "channel": "C0DESK", "private": None}
    form = views.read_form(json.dumps(kept))
    assert form is not None
    assert form.in_private
