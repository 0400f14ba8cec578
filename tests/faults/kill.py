"""Kill -9: the bot dies, again and again, while people ask and decide, and what it left is taken up each time.

In most rounds the process dies at a named point, in some at a random moment: before and after each commit and each call
at least once. People act on several requests at a time, some of them left over from earlier rounds, and try again what
they saw fail; meanwhile orders fill or are canceled by other means, Upbit and Slack have their moods, and at times the
bot lies dead for long. The leases of the dead run out at once in most rounds, and in real time in the last ones.

It must hold that every end is what the exchange's book says, that whatever was acknowledged has its end, and that
Slack is told something twice only where a kill, or an answer that Slack lost, came between Slack's taking it and the
commit that writes so down.

Some orders need two approvals, and requests that wait are looked at again, with what that may find and how it may fail.

No kill at the commits of the command line, whose process is another one. Any other point that was never reached is told
as a broken promise of the experiment itself.
"""

import json
import random
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, Final

from sqlalchemy import RowMapping, Table, or_, select, update

from bot.app import SLACK_THREADS
from bot.database.audit_log import AuditLog
from bot.database.schema import UtcTime, cancel_requests, notices
from bot.domain.audit import Action
from bot.domain.cancel_request import ENDED_STATES, State
from bot.domain.event_filter import Filter
from bot.playground.demo import BEN, CARA, DANA, DESK
from bot.playground.exchange import Mood
from bot.playground.slack_records import Call, Message, Person
from faults.faulty_bot import POINTS
from faults.figures import Figures, Ground
from faults.judge import MAX_EVENTS, SAYS, judge
from faults.stand import APPROVERS, Stand, stand
from faults.stand import Pressed as Acknowledged

NOT_KILLED_AT: Final = (
    *(Action.OUTCOME_SETTLED, Action.AUDIT_VERIFIED, Action.AUDIT_RECONCILED, Action.AUDIT_PRUNED),
    *(Action.EVIDENCE_PACKED, Action.REPORT_MADE, Action.AUDIT_CHECKPOINTED, Action.BOT_STARTED),
    *(Action.EXPORT_BEGUN, Action.AUDIT_EXPORTED, Action.EXPORT_DELIVERED),
)
"""Written by the command line, before the bot serves, or by what has no request and is killed in tests of its own."""
KILLS_AT_POINTS: Final = 110
"""Each point once, the rest of them at points once more."""
RANDOM_KILLS: Final = 10
UNAIDED_KILLS: Final = 16
"""At random moments, in the last rounds: there the leases of the dead run out in real time."""
MAX_PASSES: Final = 4
"""How often a point that was not reached is tried again."""

PATIENCE_S: Final = 3.0
"""How long a round waits for its point; longer in each later pass."""
READY_WITHIN_S: Final = 60.0
MOVED_AT_ONCE: Final = 3
"""Orders that have moved where that is what a round is about."""
CARD_WITHIN_S: Final = 2.0
LIVES_FOR_S: Final = 0.6
"""A random kill comes within so long."""
REST_WITHIN_S: Final = 10.0
MAX_REST_TRIES: Final = 15
MAX_TRIES: Final = 5
"""How often a person presses a button that fails; who wants an order canceled never gives up."""
PEOPLE: Final = 12
WRITTEN_WITHIN_S: Final = 10.0
"""From Slack's taking a message to the commit that says so, on a busy machine. A later kill explains no duplicate."""
TAKEN_WITHIN_S: Final = 2.0
"""What a process has sent, a busy Slack takes so long after that process was killed."""

ROUTINE_VISITS: Final = {"bookkeeping": 30, "exchange.get_order": 4, "slack.redraw_card": 4}
"""On which visit the second kill may come at points that every round visits often."""

DELETE_MOODS: Final = {
    Action.ORDER_FILLED: Mood.FILL_DURING_CANCEL,
    Action.CANCEL_UNSENT: Mood.RATELIMITED_429,
    Action.CANCEL_REJECTED: Mood.REFUSE,
    Action.CANCEL_UNANSWERED: Mood.DROP_AFTER,
    Action.CANCEL_DOUBTED: Mood.ORDER_NOT_FOUND_LIE,
    Action.CANCEL_ANSWERED_LATE: Mood.SLOW,
}
"""What the DELETEs must meet for an event to come about."""
SLOW_S: Final = 2.5
"""Slower than the bot's loop, and quicker than its patience with Upbit."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Past:
    """What has to have happened for an event to come about when the bot starts again."""

    dead_for_s: float  #: how long the bot then lies dead
    mood: Mood | None = None  #: what DELETEs met in the round before
    state: State | None = None  #: where a request had come to
    fate: str | None = None  #: what became meanwhile of orders that wait for approval
    looks: tuple[tuple[str, Mood], ...] = ()  #: what looks meet once it lives again


LIST, LOOK = "GET /v1/orders/uuids", "GET /v1/order"
REFRESH_IS_DUE_AFTER_S: Final = 31.0
FILLED, CANCELED, PARTLY = "filled meanwhile", "canceled elsewhere", "partly filled"


def _waited(*, fate: str | None = None, **looks: Mood) -> Past:
    """A request waits for approval, and its order is due to be looked at again."""
    met = tuple((LIST if name == "listed" else LOOK, mood) for name, mood in looks.items())
    return Past(dead_for_s=REFRESH_IS_DUE_AFTER_S, state=State.PENDING, fate=fate, looks=met)


PASTS: Final[dict[str, Past]] = {
    Action.REQUEST_SUPERSEDED: _waited(fate=FILLED),
    Action.ORDER_CHANGED: _waited(fate=PARTLY),
    Action.ORDER_UNSEEN: _waited(listed=Mood.WRONG_UUID, looked_at=Mood.ORDER_NOT_FOUND_LIE),
    Action.REFRESH_FAILED: _waited(listed=Mood.HTTP_500),
    Action.REMINDER_SENT: Past(dead_for_s=15 * 60 + 1, state=State.PENDING),
    "exchange.get_orders": _waited(),
    "take_refresh": _waited(),
    "saw_unchanged": _waited(),
    "refresh_again": _waited(listed=Mood.RATELIMITED_429),
    "wake": _waited(fate=PARTLY),
    Action.REQUEST_EXPIRED: Past(dead_for_s=31 * 60),
    Action.REQUEST_LAPSED: Past(dead_for_s=5 * 60 + 1, mood=Mood.RATELIMITED_429, state=State.APPROVED),
    Action.ORDER_OPEN: Past(dead_for_s=7, mood=Mood.DROP_BEFORE, state=State.SENDING),
    Action.OUTCOME_UNRESOLVED: Past(dead_for_s=31, mood=Mood.ACCEPT_NEVER_CANCELS, state=State.ACCEPTED),
    Action.CANCEL_FAILED: Past(dead_for_s=10 * 60 + 1, mood=Mood.ACCEPT_NEVER_CANCELS, state=State.ACCEPTED),
}

TWO_MARKET: Final = "KRW-ETH"
SETTINGS: Final = {"APPROVAL_TIERS": f"{TWO_MARKET}=2"}
TWO_SHARE: Final = 0.25
"""Of the orders: those that two have to approve."""

CHANCE_MOODS: Final = (
    Mood.DROP_BEFORE,
    Mood.DROP_AFTER,
    Mood.HTTP_500,
    Mood.HTTP_500_AFTER,
    Mood.TRUNCATED,
    Mood.PARTIAL_FILL_DURING_CANCEL,
    Mood.ACCEPT_NEVER_CANCELS,
)
PUT_OFF: Final = '"message": "put off: '
HONEST: Final = " not recorded: "
"""A database that is too busy: the person is told, and nothing was done."""
LOST_ANSWERS: Final = ("drop_answer_after_doing", "fatal_error_after_doing")
"""Moods in which Slack posts, and the bot is told nothing or that it failed."""
LOST_OUTCOMES: Final = ("drop_answer_after_doing", "fatal_error")
"""What is noted of the calls that met them."""
SLACK_MOODS: Final = tuple(
    (method, mood)
    for method in ("chat.postMessage", "chat.update", "response_url")
    for mood in (*LOST_ANSWERS, "http_500", "slow")
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Round:
    """From one start of the process to its death."""

    seed: str
    point: str | None = None  #: None: it dies at a random moment
    visit: int = 1
    mood: Mood | None = None  #: what every DELETE meets
    until: State | None = None  #: the random moment comes once a request is in this state
    dead_for_s: float = 0.0  #: how long it had been dead before
    fate: str | None = None  #: what became meanwhile of the orders that wait for approval
    looks: tuple[tuple[str, Mood], ...] = ()  #: what looks meet
    is_aided: bool = True  #: the leases of the dead run out at once
    patience_s: float = PATIENCE_S

    def is_about(self, *words: str) -> bool:
        return self.point is not None and self.point.endswith(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """The process was seen alive at `alive_at` and dead at `dead_at`, in seconds since 1970."""

    alive_at: float
    dead_at: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Wish:
    """What a person wants: an order canceled, or a button pressed."""

    who: Person
    order: str = ""
    request_id: int = 0
    action_id: str = "approve"
    copies: int = 1
    tries: int = 0


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="kill -9", database=ground.kind)
    wanted = [point for point in POINTS if not point.endswith(NOT_KILLED_AT)]
    dice = random.Random(ground.seed)
    at_points = _at_points(wanted, dice, ground)
    planned = {each.point for each in at_points if each.point is not None}
    with stand(ground, settings=SETTINGS) as here:
        drama = _Drama(here, figures)
        drama.kill_first()
        for each in _mixed(at_points, ground, dice):
            drama.play(each)
        for number in range(MAX_PASSES):
            missed = sorted(planned - drama.struck)
            for point in missed:
                patience_s = PATIENCE_S * (number + 1)
                for each in _towards(point, visit=1, seed=f"{ground.seed}/{number}", patience_s=patience_s):
                    drama.play(each)
        unaided = int(UNAIDED_KILLS * ground.scale)
        for number in range(unaided):
            drama.play(Round(seed=f"{ground.seed}/unaided/{number}", is_aided=False))
        drama.end(is_aided=not unaided)
        judge(here, figures)
        drama.judge()
        explained = drama.explain()
    figures.expect(
        planned <= drama.struck,
        f"the bot never came to {', '.join(sorted(planned - drama.struck))} (seed {ground.seed})",
    )
    figures.note = f"{len(planned & drama.struck)} points struck of {len(planned)}, {explained} duplicates explained"
    return figures


# The plan -----------------------------------------------------------------------------------------------------------


def _at_points(wanted: Sequence[str], dice: random.Random, ground: Ground) -> list[Round]:
    """Rounds that end at the points, each with the round that has to go before it."""
    rounds: list[Round] = []
    left = ground.some(KILLS_AT_POINTS)
    turn = 0
    while left > 0:
        for point in dice.sample(wanted, min(left, len(wanted))):
            most = next((visits for word, visits in ROUTINE_VISITS.items() if point.endswith(word)), 1)
            visit = dice.randint(1, most) if turn else 1
            rounds += _towards(point, visit=visit, seed=f"{ground.seed}/{turn}")
        left -= len(wanted)
        turn += 1
    return rounds


def _towards(point: str, *, visit: int, seed: str, patience_s: float = PATIENCE_S) -> Iterator[Round]:
    past = next((past for what, past in PASTS.items() if point.endswith(what)), None)
    seed = f"{seed}/{point}"
    if past is not None and past.state is not None:
        yield Round(seed=f"{seed}/before", mood=past.mood, until=past.state, patience_s=patience_s)
    mood = next((mood for action, mood in DELETE_MOODS.items() if point.endswith(action)), None)
    scene = Round(seed=seed, point=point, visit=visit, mood=mood, patience_s=patience_s)
    yield scene if past is None else replace(scene, dead_for_s=past.dead_for_s, fate=past.fate, looks=past.looks)


def _mixed(rounds: Sequence[Round], ground: Ground, dice: random.Random) -> Iterator[Round]:
    """The rounds, with others that end at random moments before some of them."""
    # Never between a round and the one that it prepares.
    places = [number for number, each in enumerate(rounds) if not each.dead_for_s]
    chosen = set(dice.sample(places, min(len(places), ground.some(RANDOM_KILLS))))
    for number, each in enumerate(rounds):
        if number in chosen:
            yield Round(seed=f"{ground.seed}/random/{number}")
        yield each


# The rounds ---------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Drama:
    here: Stand
    figures: Figures
    struck: set[str] = field(default_factory=set)
    _kills: list[Kill] = field(default_factory=list)
    _again: list[Wish] = field(default_factory=list)
    _orders: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def kill_first(self) -> None:
        """End the process that the stand has started: the rounds have their own."""
        self._kill()

    def play(self, scene: Round) -> None:
        """The process is dead before and after."""
        dice = random.Random(scene.seed)
        if scene.dead_for_s:
            self._let_go_by(scene.dead_for_s)
        if scene.is_aided:
            self.here.run_out_leases()
        self._move_market(scene, dice)
        began_at = time.time()
        with self._moods(scene, dice):
            if self._start(scene):
                with ThreadPoolExecutor(PEOPLE, thread_name_prefix="person") as people:
                    acting = [people.submit(act) for act in self._acts(scene, dice)]
                    self._live(scene, dice)
                for each in acting:
                    each.result()
            else:
                self._note_death(scene, alive_at=began_at)

    def end(self, *, is_aided: bool) -> None:
        """Start for the last time, and let everything come to its end."""
        here = self.here
        if is_aided:
            here.run_out_leases()
        self._fill_open(State.ACCEPTED, State.UNRESOLVED)
        if not self._start(Round(seed="")):
            self.figures.faulty.append(f"the bot does not start\n{here.log_tail()}")
            return
        for _ in range(MAX_REST_TRIES):
            self._decide_all()
            self._fill_open(State.UNRESOLVED)
            here.run_out_waits()
            if here.drain(timeout_s=REST_WITHIN_S) and not self._again:
                return
        self.figures.expect(not self._again, f"people still see these fail: {self._again}")

    # The process

    def _start(self, scene: Round) -> bool:
        """Whether it lived until it was ready."""
        (bot,) = self.here.bots
        faults = {"crash_at": scene.point, "on_visit": scene.visit} if scene.point else {}
        bot._environment["FAULTS"] = json.dumps(faults)
        bot.start()
        try:
            bot.wait_until_ready(timeout_s=READY_WITHIN_S)
        except TimeoutError:
            self.figures.expect(not bot.is_running(), f"the bot did not become ready\n{self.here.log_tail()}")
            return False
        return True

    def _live(self, scene: Round, dice: random.Random) -> None:
        """Until the process has died at its point, or the time has come to kill it."""
        alive_at = time.time()

        def is_dead() -> bool:
            nonlocal alive_at
            looked_at = time.time()
            if self.here.bots[0].is_running():
                alive_at = looked_at
                return False
            return True

        if scene.is_about(Action.CANCEL_ANSWERED_LATE):
            self._await_another(State.SENDING, timeout_s=scene.patience_s)
            self._lose_leases()
        if scene.point is not None:
            self.here.until(is_dead, timeout_s=scene.patience_s)
        elif scene.until is not None:
            self._await_another(scene.until, timeout_s=scene.patience_s)
        else:
            threading.Event().wait(dice.uniform(0, LIVES_FOR_S))
        if is_dead():
            self._note_death(scene, alive_at=alive_at)
        else:
            self._kill()

    def _await_another(self, state: State, *, timeout_s: float) -> None:
        """Wait until a request comes to this state; those that are in it now have been left over."""
        before = set(self.here.ids_in(state))
        self.here.until(lambda: set(self.here.ids_in(state)) - before, timeout_s=timeout_s)

    def _kill(self) -> None:
        alive_at = time.time()
        self.here.kill()
        self._kills.append(Kill(alive_at=alive_at, dead_at=time.time()))
        self.figures.faults["kill at random"] += 1

    def _note_death(self, scene: Round, *, alive_at: float) -> None:
        (bot,) = self.here.bots
        process = bot._process
        assert process is not None
        bot.kill()
        self._kills.append(Kill(alive_at=alive_at, dead_at=time.time()))
        if scene.point is None or process.returncode != -signal.SIGKILL:
            self.figures.faulty.append(
                f"the bot ended by itself in {scene}: {process.returncode}\n{self.here.log_tail()}"
            )
            return
        self.struck.add(scene.point)
        self.figures.faults["kill at a point"] += 1

    # What people do

    def _acts(self, scene: Round, dice: random.Random) -> list[Callable[[], object]]:
        """Several requests at a time, some of them new; what failed before comes first."""
        # Whose order has moved is left alone until the bot has seen so.
        is_left_alone = bool(scene.fate or scene.looks)
        with self._lock:
            again, self._again = ([], self._again) if is_left_alone else (self._again, [])
        acts: list[Callable[[], object]] = [partial(self._try, wish) for wish in again]
        for is_decided in (True, True, dice.random() < 0.3):
            who = dice.choice((DANA, CARA, BEN))
            by_two = scene.is_about(Action.APPROVAL_RECORDED) or dice.random() < TWO_SHARE
            order = self.here.exchange.place(market=TWO_MARKET if by_two else "KRW-BTC")
            deciding = self._clicks(scene, dice, requester=who, by_two=by_two) if is_decided else []
            acts.append(partial(self._ask_and_decide, Wish(who=who, order=order), deciding))
        if scene.is_about(Action.REQUEST_REFUSED, "slack.tell") or dice.random() < 0.15:
            acts.append(partial(self._try, Wish(who=CARA, order=self.here.exchange.place(state="cancel"))))
        if scene.is_about(Action.COMMAND_REFUSED) or dice.random() < 0.15:
            acts.append(partial(self.here.ask, "my btc order"))
        pending = self.here.ids_in(State.PENDING)[MOVED_AT_ONCE if is_left_alone else 0 :]
        for request_id in pending[:3]:
            clicks = self._clicks(scene, dice, requester=None, by_two=dice.random() < 0.5)
            acts += [partial(self._try, replace(click, request_id=request_id)) for click in clicks]
        return acts

    @staticmethod
    def _clicks(scene: Round, dice: random.Random, *, requester: Person | None, by_two: bool) -> list[Wish]:
        """One who may not, one who decides, and one who is as quick as they are, or has to approve, too."""
        deciders = dice.sample([person for person in APPROVERS if person is not requester], 2)
        refused = scene.is_about(Action.APPROVAL_REFUSED) or dice.random() < 0.2
        denies = scene.is_about(Action.REQUEST_DENIED) or dice.random() < 0.15
        withdraws = scene.is_about(Action.REQUEST_WITHDRAWN) or dice.random() < 0.05
        first = Wish(who=deciders[0], action_id="deny" if denies else "approve", copies=dice.choice((1, 1, 2)))
        own = [Wish(who=requester or DANA)] if refused else []
        back = [Wish(who=requester, action_id="withdraw")] if withdraws and requester is not None else []
        return [*own, *back, first, *([Wish(who=deciders[1])] if by_two or dice.random() < 0.2 else [])]

    def _ask_and_decide(self, wish: Wish, clicks: Sequence[Wish]) -> None:
        self._try(wish)
        asked = next((each for each in list(self.here.asked.values()) if each.uuid == wish.order), None)
        if asked is None or not self.here.until(
            lambda: self._cards_of(asked.id) or not self.here.bots[0].is_running(), timeout_s=CARD_WITHIN_S
        ):
            return
        for click in clicks:
            self._try(replace(click, request_id=asked.id))

    def _try(self, wish: Wish) -> None:
        """Do it; what failed is kept for the next round, as long as a person would try again."""
        done = self._ask(wish) if wish.order else self._press(wish)
        if not done and (wish.order or wish.tries < MAX_TRIES):
            with self._lock:
                self._again.append(replace(wish, tries=wish.tries + 1))

    def _ask(self, wish: Wish) -> bool:
        with self._lock:
            self._orders.add(wish.order)
        asked = self.here.ask(wish.order, wish.who)
        # Who tries again can find that the first try was recorded, and only its answer lost.
        return asked is not None or (wish.tries > 0 and wish.order in self._recorded())

    def _press(self, wish: Wish) -> bool:
        """On any card of the request: one that a kill kept the bot from knowing has buttons, too."""
        cards = self._cards_of(wish.request_id)
        if not cards:
            return False
        answer = self.here.slack.click(
            wish.who.id, cards[0], wish.action_id, value=str(wish.request_id), copies=wish.copies
        )
        done = any(each.ok for each in (answer, *answer.copies))
        if done:
            self.here.pressed.append(
                Acknowledged(request_id=wish.request_id, person=wish.who, action_id=wish.action_id)
            )
        return done

    def _decide_all(self) -> None:
        """Whatever nobody has decided is approved, and what failed is tried once more."""
        with self._lock:
            again, self._again = self._again, []
        decided = {wish.request_id for wish in again}
        left = [request_id for request_id in self.here.ids_in(State.PENDING) if request_id not in decided]
        # Two of them, as some need two; where one is enough, the other is told so.
        wishes = [*again, *(Wish(who=who, request_id=request_id) for request_id in left for who in APPROVERS[-2:])]
        with ThreadPoolExecutor(PEOPLE, thread_name_prefix="person") as people:
            list(people.map(self._try, wishes))

    def _cards_of(self, request_id: int) -> list[Message]:
        return [card for card in self.here.slack.messages(DESK) if _request_of(card) == request_id]

    # What happens meanwhile

    def _let_go_by(self, seconds: float) -> None:
        """Let the database be so much older: the bot was dead for as long."""
        self.figures.faults["dead for long"] += 1
        with self.here.database.write() as connection:
            ended = cancel_requests.c.state.in_([state.value for state in ENDED_STATES])
            is_shown = cancel_requests.c.card_next_attempt_at.is_(None)
            for table, left in ((cancel_requests, or_(~ended, ~is_shown)), (notices, notices.c.sent_at.is_(None))):
                for row in connection.execute(select(table).where(left)).mappings().all():
                    older = _older(table, row, timedelta(seconds=seconds))
                    connection.execute(update(table).where(table.c.id == row["id"]).values(older))

    def _lose_leases(self) -> None:
        """Let the leases run out under DELETEs on their way, as if the process had stood still for so long."""
        with self.here.database.write() as connection:
            connection.execute(
                update(cancel_requests)
                .where(cancel_requests.c.state == State.SENDING.value, cancel_requests.c.leased_until.is_not(None))
                .values(leased_until=cancel_requests.c.created_at)
            )

    def _move_market(self, scene: Round, dice: random.Random) -> None:
        """Sometimes an order that waits for its approval fills, in part or whole, or is canceled by other means."""
        exchange = self.here.exchange
        fates: dict[str, Callable[[str], None]] = {
            FILLED: exchange.fill,
            CANCELED: exchange.cancel_elsewhere,
            PARTLY: partial(exchange.fill, volume="0.004"),
        }
        fate = scene.fate or (dice.choice([*fates]) if not scene.looks and dice.random() < 0.3 else None)
        if fate is None:
            return
        for order in self._orders_in(State.PENDING)[: MOVED_AT_ONCE if scene.fate else 1]:
            fates[fate](order)
            self.figures.faults[fate] += 1

    def _fill_open(self, *states: State) -> None:
        """What the exchange will never cancel, though it accepted it, fills in the end."""
        for order in self._orders_in(*states):
            self.here.exchange.fill(order)

    def _recorded(self) -> set[str]:
        """The orders that there is a request for."""
        with self.here.database.read() as connection:
            return set(connection.execute(select(cancel_requests.c.order_uuid)).scalars())

    def _orders_in(self, *states: State) -> list[str]:
        with self.here.database.read() as connection:
            return list(
                connection.execute(
                    select(cancel_requests.c.order_uuid)
                    .where(cancel_requests.c.state.in_([state.value for state in states]))
                    .order_by(cancel_requests.c.id)
                ).scalars()
            )

    def _moods(self, scene: Round, dice: random.Random) -> "_Moods":
        moods = _Moods(self.here, self.figures)
        chance = 0.15 if scene.point else 0.4
        if scene.mood is not None:
            moods.delete = (scene.mood, None)
        elif dice.random() < chance:
            moods.delete = (dice.choice(CHANCE_MOODS), dice.randint(1, 2))
        if dice.random() < chance:
            moods.slack = dice.choice(SLACK_MOODS)
        moods.looks = scene.looks
        return moods

    # What must hold beside what the judge compares

    def judge(self) -> None:
        self.figures.lost += [
            f"order {order} was asked for again and again and has no request"
            for order in self._orders - self._recorded()
        ]
        self.figures.faulty += [f"the bot complained: {line}" for line in self.here.complaints() if HONEST not in line]

    def explain(self) -> int:
        """How many duplicates there are for which a kill or a lost answer of Slack is to blame; notes the others."""
        lost = [call for call in self.here.slack.calls("chat.postMessage") if call.outcome in LOST_OUTCOMES]
        explained = 0
        for what, copies in self._repeated():
            for older, newer in pairwise(copies):
                if self._is_explained(older, newer, lost):
                    explained += 1
                else:
                    self.figures.faulty.append(f"{what} was posted twice, at {older.ts} and {newer.ts}, without a kill")
        for event, times in self._told_twice():
            self.figures.faulty.append(f"{event} was written down {times} times")
        limit = len(self._kills) * SLACK_THREADS + len(lost)
        self.figures.expect(
            self.figures.duplicates <= limit,
            f"{self.figures.duplicates} duplicates, and {len(self._kills)} kills and {len(lost)} lost answers explain "
            f"no more than {limit}",
        )
        return explained

    def _is_explained(self, older: Message, newer: Message, lost: Sequence[Call]) -> bool:
        posted_at, again_at = float(older.ts), float(newer.ts)
        killed = any(
            posted_at <= kill.dead_at + TAKEN_WITHIN_S and kill.alive_at <= min(again_at, posted_at + WRITTEN_WITHIN_S)
            for kill in self._kills
        )
        unwritten = any(posted_at <= at <= again_at + WRITTEN_WITHIN_S for at in self._put_off())
        return (
            killed
            or unwritten
            or any(
                posted_at <= call.at <= again_at and call.arguments.get("thread_ts") == older.thread_ts for call in lost
            )
        )

    def _put_off(self) -> list[float]:
        """When the bot said that something could not be written down, since the database was too busy."""
        lines = [line for bot in self.here.bots for line in bot.log().splitlines() if PUT_OFF in line]
        whole = [json.loads(line) for line in lines if line.endswith("}")]  # the last one may be cut by a kill
        return [datetime.fromisoformat(line["timestamp"]).timestamp() for line in whole]

    def _repeated(self) -> list[tuple[str, list[Message]]]:
        """The cards of each request, and what each thread says of each state, where there are several."""
        said: dict[str, list[Message]] = defaultdict(list)
        for message in self.here.slack.messages(DESK):
            request_id = _request_of(message)
            if request_id is not None:
                said[f"the card of request {request_id}"].append(message)
            elif message.thread_ts is not None:
                line = self.here.slack.words(message)[0]
                state = next((state for state, begins in SAYS.items() if line.startswith(begins)), line)
                said[f"“{state}” in thread {message.thread_ts}"].append(message)
        return [(what, copies) for what, copies in said.items() if len(copies) > 1]

    def _told_twice(self) -> list[tuple[str, int]]:
        """Verdicts that were written down as told more than once."""
        told: dict[str, int] = defaultdict(int)
        summaries = Filter(action=Action.SUMMARY_POSTED.value)
        for event in AuditLog(self.here.database).list(summaries, limit=MAX_EVENTS, newest_first=False):
            details = event["details"]
            assert isinstance(details, dict)
            told[f"“{details['state']}” of request {event['request_id']}"] += 1
        return [(what, times) for what, times in told.items() if times > 1]


@dataclass(slots=True)
class _Moods:
    """The moods of one round: set on entering, cleared and counted on leaving."""

    here: Stand
    figures: Figures
    delete: tuple[Mood, int | None] | None = None
    slack: tuple[str, str] | None = None
    looks: tuple[tuple[str, Mood], ...] = ()
    _deletes_before: int = 0
    _is_met: Callable[[], bool] = field(default=lambda: False)

    def __enter__(self) -> None:
        self._deletes_before = len(self.here.exchange.deletes())
        if self.delete is not None:
            mood, times = self.delete
            self.here.exchange.set_mood("DELETE", mood, times=times, seconds=SLOW_S)
        for route, mood in self.looks:
            self.here.exchange.set_mood(route, mood)
        if self.slack is not None:
            method, name = self.slack
            self._is_met = self.here.slack.set_mood(name, method=method, times=1, delay_s=0.5).met.is_set

    def __exit__(self, *_: object) -> None:
        self.here.exchange.clear_moods()
        self.here.slack.clear_moods()
        deletes = len(self.here.exchange.deletes()) - self._deletes_before
        for _route, mood in self.looks:
            self.figures.faults[f"looks {mood}"] += 1
        if self.delete is not None:
            mood, times = self.delete
            self.figures.faults[f"DELETE {mood}"] += deletes if times is None else min(times, deletes)
        if self.slack is not None:
            self.figures.faults[f"Slack {self.slack[1]}"] += self._is_met()


def _request_of(message: Message) -> int | None:
    """The request whose card this is."""
    if message.metadata is None or message.thread_ts is not None:
        return None
    request_id: int = message.metadata["event_payload"]["request_id"]
    return request_id


def _older(table: Table, row: RowMapping, by: timedelta) -> dict[str, Any]:
    times = [column.name for column in table.columns if isinstance(column.type, UtcTime)]
    return {name: row[name] - by for name in times if row[name] is not None}
