"""The network between bot and exchange: slow, narrow, deaf, and cut.

First the bot: in each weather requests are opened, approved and brought to their end, most of them without ever seeing
the sky clear. Then a real UpbitClient alone, called by many threads, whose every call is timed here.

What must hold: every request ends, and as the exchange's book says; no call lasts longer than its total deadline, give
or take a tenth and what a call costs this machine in fair weather; and `NotSent` is never said of a call that has
reached the exchange.
"""

import base64
import json
import random
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from time import monotonic
from typing import Any, Final, cast

from bot.database.audit_log import AuditLog
from bot.domain.answer import Accepted, NotSent
from bot.domain.audit import Action
from bot.domain.cancel_request import ENDED_STATES, State
from bot.domain.event_filter import Filter
from bot.playground.exchange import Exchange, Key
from bot.upbit.client import UpbitClient
from bot.workflow import FAILED_AFTER
from faults.figures import Figures, Ground
from faults.judge import judge
from faults.lies import hurry, move_back
from faults.stand import REQUESTERS, Stand, stand
from faults.tcp_proxy import FAIR, TcpProxy, Weather

BRIEF_S: Final = 0.05
"""Connections are not kept for longer where each call is to roll the dice."""
CUTS: Final = "cuts"
WEATHERS: Final = {
    "2 s there and back": Weather(latency_s=1.0),
    "30 % resets": Weather(reset_share=0.3, keep_alive_s=BRIEF_S),
    "half-open": Weather(silent_share=0.3, keep_alive_s=BRIEF_S),
    "1 kB/s": Weather(bytes_per_s=1_000),
    "all at once": Weather(latency_s=0.1, reset_share=0.3, silent_share=0.1, bytes_per_s=1_000, keep_alive_s=BRIEF_S),
    CUTS: Weather(latency_s=0.1),
}
"""What the bot works in."""
FAIR_WEATHER: Final = "fair"
TRICKLE: Final = "a trickle"
"""Something always comes, so that no time-out per read ends the call."""
WEATHERS_OF_CALLS: Final = {
    FAIR_WEATHER: FAIR,
    **WEATHERS,
    "4 s there and back": Weather(latency_s=2.0),
    TRICKLE: Weather(bytes_per_s=200),
    "nothing comes through": Weather(silent_share=1.0),
}

ENOUGH_TO_JUDGE: Final = 12
"""Of fewer requests in one weather, none may come through by chance."""

A_FEW: Final = ("30 % resets", CUTS, FAIR_WEATHER, TRICKLE)
"""The weathers of a small experiment."""
SMALL: Final = 0.1

REQUESTS: Final = 26  #: in each weather
CALLS: Final = 56  #: in each weather
CALLERS: Final = 28
CALLS_TO_NOBODY: Final = 10
DEADLINE_S: Final = 5.0
TOLERANCE: Final = 1.1
BARELY_S: Final = 4.5
"""A call that took so long was ended by the total deadline: a single read waits for 4 s."""

FILLED_SHARE: Final = 0.2
CUT_EVERY_S: Final = 0.5
MAX_CUTS: Final = 2_000
DECIDED_WITHIN_S: Final = 120.0
"""A request whose order cannot be read is refused after 60 s."""
ENDED_WITHIN_S: Final = 60.0
TURN_S: Final = 1.0
TURNS_IN_FAIR_WEATHER: Final = 60
EVENTS: Final = 100_000


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="network", database=ground.kind)
    calls = Calls()
    with _clients_in_all_weathers(ground, calls) as exchange:
        audited_s, ended_early = _play(ground, figures)
        arrived = _nonces_at(exchange)  # so long after, also what came late
        accepted = {each.nonce for each in exchange.deletes() if each.status is not None}
    figures.faults += calls.struck
    figures.faulty += [f"NotSent was said of {nonce}, which the exchange has got" for nonce in calls.unsent & arrived]
    figures.faulty += [f"Accepted was said of {nonce}, which it did not answer" for nonce in calls.accepted - accepted]
    figures.expect(len(calls.unsent) >= CALLS_TO_NOBODY, "calls to nobody were not NotSent")

    fair_s = calls.longest_s[FAIR_WEATHER]
    allowed_s = DEADLINE_S * TOLERANCE + fair_s
    for weather, longest_s in calls.longest_s.items():
        figures.expect(longest_s <= allowed_s, f"in weather {weather!r} a call took {longest_s:.2f} s")
    figures.expect(calls.longest_s[TRICKLE] >= BARELY_S, "no call was ended by the total deadline")
    figures.expect(audited_s <= allowed_s, f"a call of the bot took {audited_s:.2f} s")
    figures.note = (
        f"{calls.count} timed calls, the longest {max(calls.longest_s.values()):.2f} s of {DEADLINE_S:.0f}, "
        f"of the bot's own {audited_s:.2f} s, in fair weather {fair_s * 1000:.0f} ms; {ended_early} requests ended in "
        f"bad weather"
    )
    return figures


def _some(ground: Ground, weathers: Mapping[str, Weather]) -> dict[str, Weather]:
    return {name: weather for name, weather in weathers.items() if ground.scale >= SMALL or name in A_FEW}


# The client alone ---------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Calls:
    """What became of the calls of the clients."""

    count: int = 0
    longest_s: dict[str, float] = field(default_factory=dict)  #: by weather
    unsent: set[str] = field(default_factory=set)  #: the nonces of which NotSent was said
    accepted: set[str] = field(default_factory=set)  #: the nonces of which Accepted was said
    struck: Counter[str] = field(default_factory=Counter)
    lock: threading.Lock = field(default_factory=threading.Lock)


@contextmanager
def _clients_in_all_weathers(ground: Ground, calls: Calls) -> Iterator[Exchange]:
    """Call the exchange in all weathers side by side, and a client whom nobody answers; then leave all as it is."""
    some = ground.some(CALLS, at_least=CALLERS // 2)
    with Exchange(requests_per_s=100_000) as exchange, ExitStack() as stack:
        ways = {}
        for number, (name, weather) in enumerate(_some(ground, WEATHERS_OF_CALLS).items()):
            ways[name] = stack.enter_context(_way_to(exchange, seed=ground.seed + number))
            ways[name].weather = weather
        with _way_to(exchange, seed=ground.seed) as closed:
            nobody = closed.port
        with ThreadPoolExecutor(len(ways)) as pool, _cutting(ways[CUTS]):
            list(pool.map(lambda name: _call(exchange, ways[name].port, name, some, calls), ways))
        _call(exchange, nobody, "nobody there", CALLS_TO_NOBODY, calls)
        for way in ways.values():
            calls.struck += way.struck
        yield exchange


def _call(exchange: Exchange, port: int, weather: str, count: int, calls: Calls) -> None:
    """So many calls, by many threads; every second one a DELETE."""
    key = Key()
    client = UpbitClient(
        server_url=f"http://127.0.0.1:{port}",
        access_key=key.access_key,
        secret_key=key.secret_key,
        deadline_s=DEADLINE_S,
        max_connections=CALLERS,
    )

    def call(number: int) -> float:
        uuid = exchange.place()
        began_at = monotonic()
        nonce = f"{weather} {number}"
        answer = client.cancel_order(uuid, nonce=nonce) if number % 2 else client.get_order(uuid)
        took_s = monotonic() - began_at
        with calls.lock:
            calls.count += 1
            if isinstance(answer, NotSent):
                calls.unsent.add(answer.call.nonce)
            if isinstance(answer, Accepted):
                calls.accepted.add(answer.call.nonce)
        return took_s

    with ThreadPoolExecutor(CALLERS) as pool:
        longest_s = max(pool.map(call, range(count)))
    client.close()
    with calls.lock:
        calls.longest_s[weather] = longest_s


# The bot ------------------------------------------------------------------------------------------------------------


def _play(ground: Ground, figures: Figures) -> tuple[float, int]:
    """A bot in each weather; how long the longest call lasted, and how many requests ended before it cleared up."""
    with ExitStack() as stack:
        stages = []
        for number, name in enumerate(_some(ground, WEATHERS)):
            proxy = stack.enter_context(TcpProxy([], rng=random.Random(ground.seed + number)))
            # One after the other: migrations know no threads.
            here = stack.enter_context(stand(replace(ground, seed=ground.seed + number), network=proxy))
            stages.append(Stage(name, here, proxy, random.Random(ground.seed + number)))
        count = ground.some(REQUESTS, at_least=4)
        with ThreadPoolExecutor(len(stages)) as pool:
            list(pool.map(lambda stage: stage.play(count), stages))
        came_through = sum(stage.came_through for stage in stages)
        figures.expect(
            _is_enough(came_through, of=count * len(stages)),
            f"only {came_through} of {count * len(stages)} requests came through",
        )
        for stage in stages:
            judge(stage.here, figures)
            stage.judge_calls()
            figures.faults += stage.proxy.struck
            figures.faulty += stage.faulty
        return max(stage.longest_s for stage in stages), sum(stage.ended_early for stage in stages)


def _is_enough(came_through: int, *, of: int) -> bool:
    """So much comes through in any weather, if there is enough of it."""
    return came_through * 4 >= of


class Stage:
    """One bot in one weather."""

    def __init__(self, weather: str, here: Stand, proxy: TcpProxy, rng: random.Random) -> None:
        self.weather = weather
        self.here = here
        self.proxy = proxy
        self.faulty: list[str] = []
        self.longest_s = 0.0
        self.ended_early = 0
        self.came_through = 0
        self._rng = rng

    def play(self, count: int) -> None:
        here = self.here
        self.proxy.weather = WEATHERS[self.weather]
        with ExitStack() as stack:
            if self.weather == CUTS:
                stack.enter_context(_cutting(self.proxy))
            self._ask_and_approve(count)
            here.drain(timeout_s=ENDED_WITHIN_S)
            self.ended_early = len(here.ids_in(*ENDED_STATES))
        self.proxy.weather = FAIR
        self.proxy.cut()
        for _ in range(TURNS_IN_FAIR_WEATHER):
            # Where every DELETE was lost, the bot looks for ten minutes before it says that the order is still open.
            move_back(here, here.ids_in(State.UNRESOLVED), "sent_at", FAILED_AFTER.total_seconds())
            hurry(here)
            if here.drain(timeout_s=TURN_S):
                break
        self.came_through = len(here.ids_in(State.CANCELED, State.FILLED))
        if count >= ENOUGH_TO_JUDGE and not _is_enough(self.came_through, of=count):
            self.faulty.append(f"in weather {self.weather!r} only {self.came_through} of {count} requests came through")
        self.faulty += [f"the bot complains: {line}" for line in here.complaints()]

    def _ask_and_approve(self, count: int) -> None:
        """Approve each as soon as it is open; a few orders fill while their cancel is under way."""
        here = self.here
        waiting = {}
        for number in range(count):
            uuid = here.exchange.place()
            asked = here.ask(uuid, REQUESTERS[number % len(REQUESTERS)])
            if asked is None:
                self.faulty.append(f"the command for {uuid} was not acknowledged")
            else:
                waiting[asked.id] = uuid
        ends_at = monotonic() + DECIDED_WITHIN_S
        while waiting and monotonic() < ends_at:
            here.until(partial(self._have_some_left, State.REQUESTED, waiting), timeout_s=TURN_S)
            states = here.states()
            for request_id, uuid in list(waiting.items()):
                is_open = states[request_id] is State.PENDING and here.card_of(request_id) is not None
                if is_open:
                    here.press(request_id)
                    if self._rng.random() < FILLED_SHARE:
                        here.exchange.fill(uuid)
                if is_open or states[request_id] is State.REFUSED:
                    del waiting[request_id]
        self.faulty += [f"request {each} was neither opened nor refused" for each in waiting]

    def _have_some_left(self, state: State, waiting: dict[int, str]) -> bool:
        states = self.here.states()
        return any(states[each] is not state for each in waiting)

    def judge_calls(self) -> None:
        """How long the bot's calls lasted by its own audit, and whether what it did not send did not arrive."""
        arrived = _nonces_at(self.here.exchange)
        events = AuditLog(self.here.database).list(Filter(), limit=EVENTS)
        for action, details in ((event["action"], cast("dict[str, Any]", event["details"])) for event in events):
            call = details.get("call")
            if call is None:
                continue
            self.longest_s = max(self.longest_s, call["elapsed_ms"] / 1000)
            if action == Action.CANCEL_UNSENT and "status" not in call and call["nonce"] in arrived:
                self.faulty.append(f"{self.weather}: {call['nonce']} was not sent, and has arrived")


# What both need -----------------------------------------------------------------------------------------------------


def _way_to(exchange: Exchange, *, seed: int) -> TcpProxy:
    port = int(exchange.url.rpartition(":")[2])
    return TcpProxy([("127.0.0.1", port)], rng=random.Random(seed))


@contextmanager
def _cutting(proxy: TcpProxy) -> Iterator[None]:
    """Cut every connection, again and again."""
    is_over = threading.Event()

    def cut() -> None:
        for _ in range(MAX_CUTS):
            if is_over.wait(CUT_EVERY_S):
                break
            proxy.cut()

    thread = threading.Thread(target=cut, name="cutting")
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def _nonces_at(exchange: Exchange) -> set[str]:
    """The nonces of all requests that have reached it; one that was cut off within its token has not."""
    nonces: set[str] = set()
    for request in exchange.requests:
        _, _, claims = request.headers.get("authorization", "").partition(".")
        claims = claims.partition(".")[0]
        with suppress(ValueError):
            nonces.add(json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))["nonce"])
    return nonces
