"""The exchange lies: it fails a method in every way it knows, at every step of a request, with and without a restart.

A round is one lie told to one bot. Where GET lies, four requests each wait in `requested`, `sending`, `accepted` and
`unresolved` while they are lied to; where DELETE lies, six are being sent, for a moment or until the bot gives up.
Some of their orders are meanwhile filled, partly filled or canceled by others. Then the bot is killed and started
again, or not, and the exchange comes to its senses.

What must hold: each verdict is what the exchange's book says; it is of the kind that TABLE derives from the lie, so
that doubting everything would be noticed; only a truth that could not be known makes a request unresolved, and soon
after the exchange is back it ends by itself.

A refusal whose name proves that nothing happened is believed, so none is told here that did the work nevertheless. An
accepted cancel counts as the cause of what it asked for, so nobody else cancels where it is accepted and not done.
"""

import queue
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Final

from sqlalchemy import select, update

from bot.database.audit_log import AuditLog
from bot.database.schema import cancel_requests
from bot.domain.audit import Action
from bot.domain.cancel_request import ENDED_STATES, CanceledBy, State
from bot.domain.errors import NothingDone, StoreError
from bot.domain.event_filter import Filter
from bot.playground.exchange import Mood
from faults.figures import Figures, Ground
from faults.judge import judge
from faults.stand import CANCEL_DELAY_S, Stand, stand

STANDS: Final = 4
TRIES: Final = 5
"""Of a change in a database that many write to."""
EVENTS_OF_ONE: Final = 1000
NEVER_S: Final = 3600.0
"""How long an accepted cancel takes where the round says when it takes effect."""
PREPARED_WITHIN_S: Final = 30.0
LIED_TO_WITHIN_S: Final = 20.0
BACK_WITHIN_S: Final = 45.0
"""All ends so soon after the exchange is back, where what waits is made due every second: a few calls that hang."""
TURN_S: Final = 1.0
LOST_S: Final = 6.0
UNRESOLVED_S: Final = 30.0
HELD_TURNS: Final = 40
FAILED_S: Final = 600.0
FIRST_GAPS_S: Final = 10.0 + 20.0
"""In real time an unresolved request is looked at once within its first two gaps."""

End = tuple[State, CanceledBy | None]

OURS: Final[End] = (State.CANCELED, CanceledBy.THIS_REQUEST)
UNPROVEN: Final[End] = (State.CANCELED, CanceledBy.UNPROVEN)
CANCELED: Final[End] = (State.CANCELED, None)  #: whose cancel it was is left to the judge
FILLED: Final[End] = (State.FILLED, None)
REJECTED: Final[End] = (State.REJECTED, None)
REFUSED: Final[End] = (State.REFUSED, None)
LAPSED: Final[End] = (State.LAPSED, None)
FAILED: Final[End] = (State.FAILED, None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Lie:
    """How a method fails, and to what that must come where nothing else happens to the order.

    `end` is that of a lie of a moment. `held` is that of a DELETE that is lied to until the bot gives up. A GET has
    only the `end` of a request that is lied to while it is `requested`: whatever it is told later decides nothing.
    """

    method: str
    mood: Mood
    end: End
    held: End | None = None
    is_final: bool = False  #: no look follows: the refusal itself is the end
    brakes: bool = False  #: the bot itself holds back its calls for a while
    options: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        told = " ".join(f"{name}={value}" for name, value in self.options.items())
        return f"{self.method} {self.mood} {told}".strip()


def _get(mood: Mood, end: End = OURS, *, brakes: bool = False, **options: Any) -> Lie:
    return Lie(method="GET", mood=mood, end=end, brakes=brakes, options=options)


def _delete(mood: Mood, end: End, *, held: End | None = None, brakes: bool = False, **options: Any) -> Lie:
    return Lie(method="DELETE", mood=mood, end=end, held=held, brakes=brakes, options=options)


def _certain(name: str, *, status: int = 401) -> Lie:
    options = {"name": name, "status": status}
    return Lie(method="DELETE", mood=Mood.REFUSE, end=REJECTED, is_final=True, options=options)


TABLE: Final = (
    _get(Mood.SLOW, seconds=0.3),
    _get(Mood.SLOW, seconds=5.5),
    _get(Mood.HANG),
    _get(Mood.DROP_BEFORE),
    _get(Mood.DROP_AFTER),
    _get(Mood.HTTP_500),
    _get(Mood.HTTP_500_AFTER),
    _get(Mood.HTML_502),
    _get(Mood.REDIRECT),
    _get(Mood.RATELIMITED_429, plain=True, brakes=True),
    _get(Mood.RATELIMITED_429, plain=False, brakes=True),
    _get(Mood.BANNED_418, seconds=2.0, brakes=True),
    _get(Mood.REFUSE, REFUSED, name="order_not_found", status=404),
    _get(Mood.REFUSE, REFUSED, name="validation_error", status=400),
    _get(Mood.REFUSE, REFUSED, name="out_of_scope", status=401),
    _get(Mood.REFUSE, REFUSED, name="invalid_access_key", status=401),
    _get(Mood.REFUSE, REFUSED, name="jwt_verification", status=401),
    _get(Mood.REFUSE, REFUSED, name="a_name_nobody_knows", status=422),
    _get(Mood.REFUSE, name="nonce_used", status=401),
    _get(Mood.REFUSE, name="out_of_scope", status=503),
    _get(Mood.ORDER_NOT_FOUND_LIE, REFUSED),
    _get(Mood.WRONG_UUID),
    _get(Mood.NOT_JSON_200),
    _get(Mood.HTML_200),
    _get(Mood.TRUNCATED),
    _delete(Mood.SLOW, OURS, seconds=0.3),
    _delete(Mood.SLOW, CANCELED, seconds=5.5),
    _delete(Mood.HANG, OURS, held=FAILED),
    _delete(Mood.HANG, UNPROVEN, after=True),
    _delete(Mood.DROP_BEFORE, OURS, held=FAILED),
    _delete(Mood.DROP_AFTER, UNPROVEN),
    _delete(Mood.HTTP_500, OURS, held=FAILED),
    _delete(Mood.HTTP_500_AFTER, UNPROVEN),
    _delete(Mood.HTML_502, OURS, held=FAILED),
    _delete(Mood.REDIRECT, OURS, held=FAILED),
    _delete(Mood.RATELIMITED_429, OURS, held=LAPSED, plain=True, brakes=True),
    _delete(Mood.RATELIMITED_429, OURS, held=LAPSED, plain=False, brakes=True),
    _delete(Mood.BANNED_418, OURS, held=LAPSED, seconds=2.0, brakes=True),
    _certain("validation_error", status=400),
    _certain("out_of_scope"),
    _certain("invalid_access_key"),
    _certain("jwt_verification"),
    _certain("no_authorization_ip"),
    _certain("out_of_scope", status=404),
    _delete(Mood.REFUSE, REJECTED, name="order_not_found", status=404),
    _delete(Mood.REFUSE, CANCELED, name="order_not_found", status=404, after=True),
    _delete(Mood.REFUSE, REJECTED, name="nonce_used", status=401),
    _delete(Mood.REFUSE, CANCELED, name="nonce_used", status=401, after=True),
    _delete(Mood.REFUSE, REJECTED, name="a_name_nobody_knows", status=422),
    _delete(Mood.REFUSE, CANCELED, name="a_name_nobody_knows", status=422, after=True),
    _delete(Mood.REFUSE, OURS, held=FAILED, name="out_of_scope", status=503),
    _delete(Mood.ORDER_NOT_FOUND_LIE, REJECTED),
    _delete(Mood.ORDER_NOT_FOUND_LIE, CANCELED, after=True),
    _delete(Mood.FILL_DURING_CANCEL, FILLED),
    _delete(Mood.PARTIAL_FILL_DURING_CANCEL, OURS),
    _delete(Mood.ACCEPT_NEVER_CANCELS, FAILED, held=FAILED),
    _delete(Mood.WRONG_UUID, UNPROVEN),
    _delete(Mood.NOT_JSON_200, UNPROVEN),
    _delete(Mood.HTML_200, UNPROVEN),
    _delete(Mood.TRUNCATED, UNPROVEN),
)


class Fate(StrEnum):
    """What happens to an order on the market: before its cancel is approved, or while the bot is lied to."""

    NONE = "nothing"
    PARTLY_FILLED = "partly filled"
    FILLED = "filled"
    CANCELED = "canceled elsewhere"
    FILLED_BEFORE = "filled before"
    CANCELED_BEFORE = "canceled before"


BY_TRUTH: Final = {"done": State.FILLED, "cancel": State.CANCELED}
WAYS_INTO_DOUBT: Final = {Mood.DROP_AFTER: UNPROVEN, Mood.HTTP_500_AFTER: UNPROVEN, Mood.SLOW: OURS}
"""What becomes of the DELETE where the looks are lied to in real time; `slow` by nothing is honest."""
FATES_OF_GET: Final = (Fate.NONE, Fate.PARTLY_FILLED, Fate.FILLED, Fate.CANCELED)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    lie: Lie
    restarts: bool
    is_held: bool = False
    in_real_time: bool = False

    def __str__(self) -> str:
        flags = {"held": self.is_held, "in real time": self.in_real_time, "restarted": self.restarts}
        return ", ".join([str(self.lie), *(word for word, is_so in flags.items() if is_so)])


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One request of a round, and how it must end. `when` is its state while it is lied to."""

    id: int
    uuid: str
    when: State
    fate: Fate
    end: End
    is_final: bool = False

    def allows(self, end: End, *, truth: str) -> bool:
        if self.is_final or self.fate in {Fate.NONE, Fate.PARTLY_FILLED}:
            return end[0] is self.end[0] and (self.end[1] is None or end[1] is self.end[1])
        # The market was faster than the lie, or it was not; `truth` tells.
        allowed = {BY_TRUTH.get(truth, self.end[0])}
        if self.when is State.REQUESTED:
            allowed |= {State.REFUSED, State.SUPERSEDED}
        if self.end is LAPSED or (self.end is REJECTED and self.fate in {Fate.FILLED, Fate.CANCELED}):
            allowed.add(self.end[0])
        return end[0] in allowed


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="the exchange lies", database=ground.kind)
    rounds = _rounds(ground)
    waiting: queue.SimpleQueue[Round] = queue.SimpleQueue()
    for each in rounds:
        waiting.put(each)
    with ExitStack() as stack, ThreadPoolExecutor(STANDS) as pool:
        # One after the other: migrations know no threads.
        stands = [stack.enter_context(stand(ground)) for _ in range(min(STANDS, len(rounds)))]
        stages = [Stage(here, random.Random(ground.seed + number)) for number, here in enumerate(stands)]
        list(pool.map(lambda stage: stage.play_all(waiting, most=len(rounds)), stages))
        for stage in stages:
            judge(stage.here, figures)
    for stage in stages:
        figures.faults += stage.faults
        figures.wrong += stage.wrong
        figures.faulty += stage.faulty
    doubted = sum(stage.unresolved for stage in stages)
    back_s = max(stage.slowest_back_s for stage in stages)
    figures.note = (
        f"{sum(stage.cells for stage in stages)} cells; {doubted} requests unresolved, all resolved within "
        f"{back_s:.0f} s after the exchange was back"
        if not figures.lost
        else f"{doubted} requests unresolved, not all resolved"
    )
    return figures


def _rounds(ground: Ground) -> list[Round]:
    """Those that take longest come first; at a small scale a sample of them."""
    rng = random.Random(ground.seed)
    whole = [Round(lie=lie, restarts=restarts) for lie in TABLE for restarts in (False, True)]
    whole += [
        Round(lie=lie, restarts=restarts, is_held=True) for lie in TABLE if lie.held for restarts in (False, True)
    ]
    rng.shuffle(whole)
    lasting = [lie for lie in TABLE if lie.method == "GET" and lie.mood is not Mood.SLOW]
    real = [Round(lie=rng.choice(lasting), restarts=restarts, in_real_time=True) for restarts in (False, True)]
    rounds = [*real[: round(2 * ground.scale)], *whole[: ground.some(len(whole), at_least=4)]]
    return sorted(rounds, key=lambda each: (not each.in_real_time, not _hangs(each.lie)))


def _hangs(lie: Lie) -> bool:
    return lie.mood is Mood.HANG or lie.options.get("seconds", 0.0) > TURN_S


class Stage:
    """One bot and its exchange, on which rounds are played one after the other."""

    def __init__(self, here: Stand, rng: random.Random) -> None:
        self.here = here
        self.faults: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.faulty: list[str] = []
        self.cells = 0
        self.unresolved = 0
        self.slowest_back_s = 0.0
        self._rng = rng
        self._lied_since = 0
        self._cut_short: set[int] = set()  #: killed between a DELETE and its answer: only the book tells the end
        self._audit = AuditLog(here.database)

    def play_all(self, waiting: "queue.SimpleQueue[Round]", *, most: int) -> None:
        for _ in range(most):
            try:
                self.play(waiting.get_nowait())
            except queue.Empty:
                break
        self.faulty += [f"the bot complains: {line}" for line in self.here.complaints()]

    def play(self, each: Round) -> None:
        if each.in_real_time:
            cases = self._doubt_in_real_time(each)
        elif each.lie.method == "GET":
            cases = self._lie_to_looks(each)
        else:
            cases = self._lie_to_cancels(each)
        self.cells += len({case.when for case in cases})
        self._check(each, cases)

    # The rounds

    def _lie_to_looks(self, each: Round) -> list[Case]:
        """Bring requests into each state while the exchange is honest, then let every look be lied to."""
        exchange = self.here.exchange
        lost = self._rng.choice((Mood.DROP_BEFORE, Mood.DROP_AFTER))
        sending = self._ask(State.SENDING, FATES_OF_GET, UNPROVEN if lost is Mood.DROP_AFTER else OURS)
        accepted = self._ask(State.ACCEPTED, FATES_OF_GET, OURS)
        unresolved = self._ask(State.UNRESOLVED, FATES_OF_GET, OURS)
        exchange.cancel_delay_s = NEVER_S
        self._open([*sending, *accepted, *unresolved])
        exchange.set_mood("DELETE", lost)
        self._approve(sending)
        self._await(each, lambda: self._have_reached("DELETE", sending), PREPARED_WITHIN_S)
        exchange.clear_moods()
        self._approve([*accepted, *unresolved])
        self._await(each, lambda: self._are_all(unresolved, State.ACCEPTED), PREPARED_WITHIN_S)
        self._move_back(unresolved, "sent_at", UNRESOLVED_S)
        self._await(each, lambda: self._are_all(unresolved, State.UNRESOLVED), PREPARED_WITHIN_S)

        self._lie(each)
        final = each.lie.end is REFUSED
        requested = self._ask(State.REQUESTED, FATES_OF_GET, each.lie.end, is_final=final)
        cases = [*sending, *accepted, *unresolved, *requested]
        self._let_be_lied_to(each, cases)
        self._let_happen(cases)
        self._settle(cases)
        self._restart(each, cases)
        self._come_back(each, cases, lost=sending)
        return cases

    def _lie_to_cancels(self, each: Round) -> list[Case]:
        """Let every DELETE be lied to: once where the lie is short, else until the bot gives up."""
        here, lie = self.here, each.lie
        fates = [fate for fate in Fate if lie.mood is not Mood.ACCEPT_NEVER_CANCELS or fate is not Fate.CANCELED]
        end = lie.held if each.is_held and lie.held else lie.end
        cases = self._ask(State.SENDING, fates, end, is_final=lie.is_final)
        self._open(cases)
        for case in cases:
            if case.fate is Fate.FILLED_BEFORE:
                here.exchange.fill(case.uuid)
            if case.fate is Fate.CANCELED_BEFORE:
                here.exchange.cancel_elsewhere(case.uuid)
        self._lie(each)
        self._approve(cases)
        self._let_be_lied_to(each, cases)
        self._let_happen(cases)
        if each.is_held:
            self._hold(each, cases)
        self._restart(each, cases)
        self._come_back(each, cases, lost=cases)
        return cases

    def _doubt_in_real_time(self, each: Round) -> list[Case]:
        """Nothing is made due: looks are lied to until all is unresolved, and the bot finds its way back alone."""
        here, exchange = self.here, self.here.exchange
        exchange.cancel_delay_s = NEVER_S
        ways = {mood: self._ask(State.UNRESOLVED, FATES_OF_GET, end) for mood, end in WAYS_INTO_DOUBT.items()}
        cases = [case for some in ways.values() for case in some]
        self._open(cases)
        self._lie(each)
        for mood, some in ways.items():
            exchange.set_mood("DELETE", mood, seconds=0.0)
            self._approve(some)
            self._await(each, partial(self._have_reached, "DELETE", some), PREPARED_WITHIN_S)
        exchange.clear_moods("DELETE")
        self._await(each, lambda: self._are_all(cases, State.UNRESOLVED), UNRESOLVED_S + LIED_TO_WITHIN_S)
        self._let_happen(cases)
        self._settle(cases)
        self._restart(each, cases)
        self._tell_truth(each)
        began_at = time.monotonic()
        self._await(each, here.is_at_rest, FIRST_GAPS_S + BACK_WITHIN_S)
        self.slowest_back_s = max(self.slowest_back_s, time.monotonic() - began_at)
        return cases

    # The acts of a round

    def _ask(self, when: State, fates: Iterable[Fate], end: End, *, is_final: bool = False) -> list[Case]:
        cases = []
        for fate in fates:
            uuid = self.here.exchange.place()
            asked = self.here.ask(uuid)
            if asked is None:
                self.faulty.append(f"the command for {uuid} was not acknowledged")
                continue
            cases.append(Case(id=asked.id, uuid=uuid, when=when, fate=fate, end=end, is_final=is_final))
        return cases

    def _open(self, cases: Sequence[Case]) -> None:
        is_open = self.here.until(lambda: self._are_all(cases, State.PENDING), timeout_s=PREPARED_WITHIN_S)
        self._expect(is_open, f"requests {[case.id for case in cases]} were not opened")

    def _approve(self, cases: Sequence[Case]) -> None:
        for case in cases:
            if self.here.until(partial(self.here.card_of, case.id), timeout_s=PREPARED_WITHIN_S):
                self.here.press(case.id)

    def _lie(self, each: Round) -> None:
        self._lied_since = len(self.here.exchange.requests)
        self.here.exchange.set_mood(each.lie.method, each.lie.mood, **each.lie.options)

    def _let_be_lied_to(self, each: Round, cases: Sequence[Case]) -> None:
        """Until everything has been; where the bot holds back its calls, until something has been."""
        enough = 1 if each.lie.brakes else len(cases)
        told = self._in_a_hurry(lambda: len(self._lied_to(each, cases)) >= enough)
        self._expect(told, f"{each}: only {sorted(self._lied_to(each, cases))} of {cases} were lied to")

    def _in_a_hurry(self, look: Callable[[], bool]) -> bool:
        """Whether it comes to that, with what waits made due."""
        for _ in range(round(LIED_TO_WITHIN_S / TURN_S)):
            hurry(self.here)
            if self.here.until(look, timeout_s=TURN_S):
                return True
        return False

    def _let_happen(self, cases: Sequence[Case]) -> None:
        for case in cases:
            match case.fate:
                case Fate.PARTLY_FILLED:
                    self.here.exchange.fill(case.uuid, "0.004")
                case Fate.FILLED:
                    self.here.exchange.fill(case.uuid)
                case Fate.CANCELED:
                    self.here.exchange.cancel_elsewhere(case.uuid)
                case _:
                    pass

    def _settle(self, cases: Sequence[Case]) -> None:
        for case in cases:
            self.here.exchange.settle(case.uuid)
        self.here.exchange.cancel_delay_s = CANCEL_DELAY_S

    def _hold(self, each: Round, cases: Sequence[Case]) -> None:
        """Until the bot gives up, with the time that this takes made short."""
        if each.lie.held is LAPSED:
            self._move_back(cases, "send_before", UNRESOLVED_S * 60)
        given_up = ENDED_STATES | {State.UNRESOLVED}
        is_over = False
        for _ in range(HELD_TURNS):
            self._move_back(cases, "sent_at", LOST_S)
            is_over = self.here.until(lambda: self._are_all(cases, *given_up), timeout_s=TURN_S)
            if is_over:
                break
        self._expect(is_over, f"{each}: the bot did not give up: {self._states(cases)}")

    def _restart(self, each: Round, cases: Sequence[Case]) -> None:
        """Kill -9, at half of the times once all calls are answered or lost, else in the middle of them."""
        if not each.restarts:
            return
        here = self.here
        if self._rng.random() < 0.5:
            here.until(lambda: not self._interrupted(cases), timeout_s=TURN_S)
        here.kill()
        self.faults["kill -9"] += 1
        self._cut_short |= self._interrupted(cases)
        here.run_out_leases()
        try:
            here.restart()
        except TimeoutError:  # meanwhile its port may have become the near end of somebody's connection
            here.kill()
            here.restart()
        if each.lie.method == "GET":
            seen = len(here.exchange.requests)
            hurry(here)
            here.until(lambda: len(here.exchange.requests) > seen, timeout_s=TURN_S)
            # Whose answer was lost with the process asks again, and must be lied to again.
            final = [case for case in cases if case.when is State.REQUESTED and case.is_final]
            is_refused = not final or self._in_a_hurry(lambda: self._are_all(final, State.REFUSED))
            self._expect(is_refused, f"{each}: {self._states(final)}, though they were refused")

    def _tell_truth(self, each: Round) -> None:
        since = list(self.here.exchange.requests)[self._lied_since :]
        met = [request.method for request in since if request.path != "/v1/orderbook"]
        self.faults[str(each.lie.mood)] += met.count(each.lie.method)
        self.here.exchange.clear_moods()

    def _come_back(self, each: Round, cases: Sequence[Case], *, lost: Sequence[Case]) -> None:
        """The exchange is honest again: all must end, within a bounded time."""
        here = self.here
        began_at = time.monotonic()
        self._tell_truth(each)
        for_ever = [case for case in lost if case.end is FAILED and case.id not in self._cut_short]
        self._move_back([case for case in lost if case not in for_ever], "sent_at", LOST_S)
        self._move_back(for_ever, "sent_at", FAILED_S)
        waiting = {case.id: case for case in cases if case.when is State.REQUESTED}
        is_over = False
        while not is_over and time.monotonic() < began_at + BACK_WITHIN_S:
            hurry(here)
            for request_id in waiting.keys() & set(here.ids_in(State.PENDING)):
                self._approve([waiting.pop(request_id)])
            is_over = here.drain(timeout_s=TURN_S)
        self.slowest_back_s = max(self.slowest_back_s, time.monotonic() - began_at)
        self._expect(is_over, f"{each}: not at rest so long after: {self._states(cases)}\n{here.log_tail()}")

    # What came of it

    def _check(self, each: Round, cases: Sequence[Case]) -> None:
        rows = self._rows(cases)
        for case in cases:
            row, truth = rows[case.id], self.here.exchange.order(case.uuid)["state"]
            end = (State(row.state), None if row.canceled_by is None else CanceledBy(row.canceled_by))
            said = f"{each}: request {case.id} in {case.when}, {case.fate}, {truth} at the exchange"
            is_right = end[0] is BY_TRUTH.get(truth) if case.id in self._cut_short else case.allows(end, truth=truth)
            if not is_right:
                self.wrong.append(f"{said}: ended {end}, expected {case.end}")
            self._check_doubt(each, case, said=said)

    def _check_doubt(self, each: Round, case: Case, *, said: str) -> None:
        """Unresolved is what had to be; or what real time made so, on a machine that is too slow."""
        events = self._events(case)
        at = {event["action"]: datetime.fromisoformat(event["occurred_at"]) for event in events}
        doubted_at = at.get(Action.OUTCOME_UNRESOLVED)
        if doubted_at is not None:
            self.unresolved += 1
        must_be = case.when is State.UNRESOLVED or (each.is_held and case.end is FAILED and case.fate is Fate.NONE)
        may_be = must_be or each.is_held or case.end is FAILED  # which is concluded from unresolved only
        if must_be and doubted_at is None:
            self.faulty.append(f"{said}: never unresolved")
        if doubted_at is not None and not may_be:
            lasted = doubted_at - at[Action.CANCEL_SENT]
            is_slow = lasted >= timedelta(seconds=UNRESOLVED_S - LOST_S)
            self._expect(is_slow, f"{said}: unresolved {lasted} after its DELETE, where the truth was to be had")

    def _expect(self, truth: object, otherwise: str) -> None:
        if not truth:
            self.faulty.append(otherwise)

    # What is written down

    def _await(self, each: Round, look: Callable[[], bool], timeout_s: float) -> None:
        if not self.here.until(look, timeout_s=timeout_s):
            self.faulty.append(f"{each}: did not come so far\n{self.here.log_tail()}")

    def _lied_to(self, each: Round, cases: Sequence[Case]) -> set[str]:
        return self._reached(each.lie.method, since=self._lied_since) & {case.uuid for case in cases}

    def _have_reached(self, method: str, cases: Sequence[Case]) -> bool:
        return self._reached(method) >= {case.uuid for case in cases}

    def _reached(self, method: str, *, since: int = 0) -> set[str]:
        """The orders that were asked about, or asked to be canceled."""
        return {
            request.fields.get("uuid", "")
            for request in list(self.here.exchange.requests)[since:]
            if request.method == method
        }

    def _are_all(self, cases: Sequence[Case], *states: State) -> bool:
        return set(self._states(cases).values()) <= set(states)

    def _states(self, cases: Sequence[Case]) -> dict[int, State]:
        return {request_id: State(row.state) for request_id, row in self._rows(cases).items()}

    def _rows(self, cases: Sequence[Case]) -> dict[int, Any]:
        wanted = cancel_requests.c.id.in_([case.id for case in cases])
        with self.here.database.read() as connection:
            return {row.id: row for row in connection.execute(select(cancel_requests).where(wanted))}

    def _events(self, case: Case) -> list[dict[str, Any]]:
        wanted = Filter(request_id=case.id)
        return [dict(each) for each in self._audit.list(wanted, limit=EVENTS_OF_ONE, newest_first=False)]

    def _interrupted(self, cases: Sequence[Case]) -> set[int]:
        """The requests that were sent, and nothing is written down about the answer."""
        states = self._states(cases)
        return {
            case.id
            for case in cases
            if states[case.id] is State.SENDING and self._events(case)[-1]["action"] == Action.CANCEL_SENT
        }

    def _move_back(self, cases: Sequence[Case], column: str, seconds: float) -> None:
        move_back(self.here, [case.id for case in cases], column, seconds)


def hurry(here: Stand) -> None:
    """Let everything that waits be due now; where the database is too busy, the next time does."""
    with suppress(StoreError):
        here.run_out_waits()


def move_back(here: Stand, request_ids: Sequence[int], column: str, seconds: float) -> None:
    """Make it as if so much time had passed since then, or until then, and let a look be due."""
    is_meant = cancel_requests.c.id.in_(request_ids)
    for tries_left in reversed(range(TRIES)):
        try:
            with here.database.write() as connection:
                now = here.database.now(connection)
                for row in connection.execute(select(cancel_requests).where(is_meant)).mappings().all():
                    if row[column] is not None and State(row["state"]) not in ENDED_STATES:
                        is_it = cancel_requests.c.id == row["id"]
                        changed = {column: row[column] - timedelta(seconds=seconds), "next_attempt_at": now}
                        connection.execute(update(cancel_requests).where(is_it).values(changed))
        except NothingDone:
            if not tries_left:
                raise
        else:
            return
