"""The real bot, in a process that dies where it is told to and whose clock lies: `python -m faults.faulty_bot run`.

Everything is the product's own. Around each commit and each call there is a point at which the process, with its
parent, kills itself. FAULTS in the environment says what is to happen, as JSON:

    {"crash_at": "after commit cancel.sent", "on_visit": 2, "clock_file": "/…/clock"}

The clock file holds by how many seconds this machine's clock is wrong, and how many times too fast it goes from then
on; whoever writes it changes the clock of the running process. PostgreSQL's clock is its own machine's, so that only
the process and SQLite are wrong, unless `"clock_of": "database"` makes just the database's clock wrong, of either kind.
"""

import inspect
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal, Self

from sqlalchemy import Connection, event

from bot.app import Neighbours, build_neighbours, configure_logging, run
from bot.database.engine import Database
from bot.domain.answer import CancelAnswer, LookAnswer, OrdersAnswer
from bot.domain.audit import Action
from bot.domain.cancel_request import CancelRequest
from bot.domain.quote import BestPrices, NoPrices
from bot.settings import Settings, load_settings
from bot.slack.notifier import Notifier
from bot.upbit.client import UpbitClient
from bot.upbit.quotation import QuotationClient
from bot.workflow import Notice, Posted

BOOKKEEPING: Final = "bookkeeping"
"""Commits that write no event: leases, where a card is, what somebody is owed."""

REFRESHING: Final = ("take_refresh", "saw_unchanged", "refresh_again", "wake")
"""The store's verbs of the refresh. They write no event either, and each has a point of its own."""

COMMITS: Final = tuple(f"commit {what}" for what in (*Action, *REFRESHING, BOOKKEEPING))
CALLS: Final = (
    "exchange.get_order",
    "exchange.get_orders",
    "exchange.cancel_order",
    "exchange.best_prices",
    "slack.post_card",
    "slack.redraw_card",
    "slack.post_verdict",
    "slack.tell",
)
POINTS: Final = tuple(f"{when} {what}" for what in (*COMMITS, *CALLS) for when in ("before", "after"))
"""Where the process can be made to die."""

CALLERS: Final = 4
"""From the begin of a transaction through `contextlib` to the verb of the store."""

_ACTIONS: Final = frozenset(action.value for action in Action)


@dataclass(kw_only=True)
class Faults:
    """What is to go wrong in this process."""

    crash_at: str | None = None
    on_visit: int = 1
    clock_file: str | None = None
    clock_of: Literal["machine", "database"] = "machine"

    @classmethod
    def from_environment(cls) -> Self:
        return cls(**json.loads(os.environ.get("FAULTS", "{}")))

    def __post_init__(self) -> None:
        if self.crash_at is not None and self.crash_at not in POINTS:
            raise ValueError(f"there is no point {self.crash_at!r}")
        self._visits_left = self.on_visit
        self._lock = threading.Lock()

    def reach(self, point: str) -> None:
        """Die here, if it is here and the time has come."""
        if point != self.crash_at:
            return
        with self._lock:
            self._visits_left -= 1
            if self._visits_left == 0:
                os.killpg(os.getpgrp(), signal.SIGKILL)
                signal.pause()  # the signal is on its way: nothing more may happen

    @contextmanager
    def around(self, call: str) -> Iterator[None]:
        self.reach(f"before {call}")
        yield
        self.reach(f"after {call}")


class WrongClock:
    """This machine's clock as the clock file has it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._true_time = time.time

    def time(self) -> float:
        now = self._true_time()
        offset_s, rate, since = (float(word) for word in self._path.read_text(encoding="ascii").split())
        return now + offset_s + (rate - 1) * (now - since)


def set_clock(path: Path, *, offset_s: float = 0.0, rate: float = 1.0) -> None:
    """Make the clock of the processes that read this file wrong by so much, from now on `rate` times as fast."""
    written = path.with_suffix(".new")
    written.write_text(f"{offset_s} {rate} {time.time()}", encoding="ascii")
    written.replace(path)


class FaultyDatabase(Database):
    """Commits with a point before and after each, and perhaps a clock that is wrong."""

    def __init__(self, url: str, *, faults: Faults, clock: WrongClock | None) -> None:
        super().__init__(url)
        if clock is not None and (self.is_sqlite or faults.clock_of == "database"):
            self._clock = lambda _connection: datetime.fromtimestamp(clock.time(), UTC)
        self._faults = faults
        self._writing_now = threading.local()
        event.listen(self.engine, "before_cursor_execute", self._notice)

    @contextmanager
    def write(self) -> Iterator[Connection]:
        self._writing_now.what = _verb_under_way() or BOOKKEEPING
        with super().write() as connection:
            yield connection
            what = f"commit {self._writing_now.what}"
            self._faults.reach(f"before {what}")
        self._faults.reach(f"after {what}")

    def _notice(self, _connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        """Which event is being written: a commit is called by the last one in it."""
        if statement.startswith("INSERT INTO audit_events"):
            # Several events at once are a list of their parameters, and one's parameters are a tuple or a dictionary.
            last = parameters[-1] if isinstance(parameters, list) else parameters
            values = last.values() if isinstance(last, dict) else last
            self._writing_now.what = next(value for value in values if value in _ACTIONS)


def _verb_under_way() -> str | None:
    """Which verb of the refresh has begun this transaction, if one has."""
    frame = inspect.currentframe()
    for _ in range(CALLERS):
        frame = frame.f_back if frame else None
        if frame and frame.f_code.co_name in REFRESHING:
            return frame.f_code.co_name
    return None


class FaultyUpbit(UpbitClient):
    """Calls with a point before and after each."""

    faults: Faults

    def get_order(self, uuid: str) -> LookAnswer:
        with self.faults.around("exchange.get_order"):
            return super().get_order(uuid)

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        with self.faults.around("exchange.get_orders"):
            return super().get_orders(uuids)

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        with self.faults.around("exchange.cancel_order"):
            return super().cancel_order(uuid, nonce=nonce)


class FaultyQuotations(QuotationClient):
    """Calls with a point before and after each."""

    faults: Faults

    def best_prices(self, market: str) -> BestPrices | NoPrices:
        with self.faults.around("exchange.best_prices"):
            return super().best_prices(market)


class FaultyNotifier(Notifier):
    """Calls with a point before and after each."""

    faults: Faults

    def post_card(self, request: CancelRequest) -> Posted:
        with self.faults.around("slack.post_card"):
            return super().post_card(request)

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        with self.faults.around("slack.redraw_card"):
            super().redraw_card(request, channel_id=channel_id, ts=ts)

    def post_verdict(self, request: CancelRequest) -> Posted:
        with self.faults.around("slack.post_verdict"):
            return super().post_verdict(request)

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        with self.faults.around("slack.post_reminder"):
            super().post_reminder(request, may_still_approve=may_still_approve)

    def tell(self, notice: Notice) -> None:
        with self.faults.around("slack.tell"):
            super().tell(notice)


def build_faulty_neighbours(settings: Settings, *, faults: Faults, clock: WrongClock | None) -> Neighbours:
    """The neighbours that the product builds, as subclasses with points in them."""
    sound = build_neighbours(settings)
    sound.database.close()
    sound.upbit.__class__ = FaultyUpbit
    sound.notifier.__class__ = FaultyNotifier
    sound.quotations.__class__ = FaultyQuotations
    upbit, quotations, notifier = sound.upbit, sound.quotations, sound.notifier
    assert isinstance(upbit, FaultyUpbit)
    assert isinstance(quotations, FaultyQuotations)
    assert isinstance(notifier, FaultyNotifier)
    upbit.faults = quotations.faults = notifier.faults = faults
    database = FaultyDatabase(settings.database_url.get_secret_value(), faults=faults, clock=clock)
    return replace(sound, database=database)


def main() -> None:
    if sys.argv[1:] != ["run"]:
        sys.exit("this program only runs")
    faults = Faults.from_environment()
    clock = WrongClock(Path(faults.clock_file)) if faults.clock_file else None
    if clock is not None and faults.clock_of == "machine":
        time.time = clock.time
    settings = load_settings(os.environ, None)
    configure_logging(settings.log_level)
    run(settings, build=lambda told: build_faulty_neighbours(told, faults=faults, clock=clock))


if __name__ == "__main__":
    main()
