"""Choosing: the form that `/cancel` without a uuid opens, filled with the open orders while the person waits.

A form is opened empty at once, and filled here by another thread. What is to be filled is kept in memory alone: after a
crash the form says how to type the command, and can be opened again. What the person submits is an ordinary command.
"""

import itertools
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, Literal, Protocol, assert_never

from bot.domain.answer import FoundOrders, NotSent, OrdersAnswer, Refused, Unknown
from bot.domain.errors import CannotPost, TryLater
from bot.domain.order import Order

PAGE: Final = 100
"""Orders on one page of Upbit's."""

MAX_PAGES: Final = 5
"""So many are read, the newest first; whoever has more open orders types the uuid."""

MAX_FORMS: Final = 50
"""Forms that wait to be filled; further ones are not opened."""

GIVE_UP_AFTER_S: Final = 10.0
"""Nobody waits longer before an empty form."""

TELL_FOR_S: Final = 30.0
"""For so long Slack is asked to take what is in the form."""

WAIT_S: Final = 0.5
"""Shorter than the worker's interval: only then does its timer bring the job back."""

Trouble = Literal["away", "busy", "key_lacks_view", "refused"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Form:
    """One open form, and the command that opened it."""

    id: str  #: ours, by which Slack finds the view
    trigger_id: str  #: of the command: the same however often the form is submitted
    channel_id: str
    in_private: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """What the form offers: open orders, or why it cannot."""

    orders: tuple[Order, ...] = ()
    has_more: bool = False  #: there are others, which are not here
    trouble: Trouble | None = None


class OpenOrders(Protocol):
    """What is needed of Upbit."""

    def get_open_orders(self, *, page: int) -> OrdersAnswer:
        """A page of the open orders, counted from 1."""
        ...


class Forms(Protocol):
    """What is needed of Slack."""

    def fill_form(self, form: Form, choice: Choice) -> None:
        """Show the choice in the form. Raises CannotPost (nobody has it open any more), TryLater."""
        ...


@dataclass(kw_only=True, slots=True)
class _Filling:
    form: Form
    began_at: float
    orders: dict[str, Order] = field(default_factory=dict)
    page: int = 1
    choice: Choice | None = None


class Choosing:
    """Fills forms, each by its number, a step a call."""

    def __init__(self, *, exchange: OpenOrders, forms: Forms, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._exchange = exchange
        self._forms = forms
        self._monotonic = monotonic
        self._fillings: dict[int, _Filling] = {}
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()

    def has_room(self) -> bool:
        """Whether one more form could be filled."""
        with self._lock:
            self._forget_old()
            return len(self._fillings) < MAX_FORMS

    def begin(self, form: Form) -> int:
        """Remember a form that was opened; `fill` is to be called with the number."""
        with self._lock:
            number = next(self._numbers)
            self._fillings[number] = _Filling(form=form, began_at=self._monotonic())
            return number

    def fill(self, number: int) -> float | None:
        """Do what is due for the form; returns in how many seconds to be called again, or None."""
        filling = self._fillings.get(number)
        if filling is None:
            return None
        while filling.choice is None:
            wait_s = self._look(filling)
            if wait_s is not None:
                return wait_s
        try:
            self._forms.fill_form(filling.form, filling.choice)
        except TryLater:
            if self._age_s(filling) < TELL_FOR_S:
                return WAIT_S
        except CannotPost:
            pass
        self._fillings.pop(number, None)
        return None

    def _look(self, filling: _Filling) -> float | None:
        """Read the next page; how long to wait before that, None where it was read, or given up."""
        answer = self._exchange.get_open_orders(page=filling.page)
        match answer:
            case FoundOrders(orders=orders, listed=listed):
                # An order that ends between two pages moves the others up: some come twice.
                filling.orders |= {order.uuid: order for order in orders}
                is_full = listed >= PAGE
                if is_full and filling.page < MAX_PAGES:
                    filling.page += 1
                else:
                    filling.choice = Choice(orders=tuple(filling.orders.values()), has_more=is_full)
                return None
            case Refused(name="out_of_scope"):
                filling.choice = Choice(trouble="key_lacks_view")
            case Refused(retry_after_s=None):
                filling.choice = Choice(trouble="refused")
            case Refused() | NotSent(cause="rate_limited" | "reserved"):
                return self._wait(filling, "busy")
            case NotSent(cause="banned"):
                filling.choice = Choice(trouble="busy")
            case Unknown() | NotSent():
                return self._wait(filling, "away")
            case _:
                assert_never(answer)
        return None

    def _wait(self, filling: _Filling, trouble: Trouble) -> float | None:
        if self._age_s(filling) + WAIT_S < GIVE_UP_AFTER_S:
            return WAIT_S
        filling.choice = Choice(trouble=trouble)
        return None

    def _age_s(self, filling: _Filling) -> float:
        return self._monotonic() - filling.began_at

    def _forget_old(self) -> None:
        """What a thread has left behind, so that it does not take up room for ever."""
        for number, filling in list(self._fillings.items()):
            if self._age_s(filling) > GIVE_UP_AFTER_S + TELL_FOR_S:
                del self._fillings[number]
