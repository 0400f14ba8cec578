"""Slack is away: its Web API fails in every way it knows while people's commands and clicks still arrive.

**A long outage.** Requests are asked for, approved, denied and refused while no call to Slack succeeds. Every DELETE
leaves promptly; the bot tries Slack no more often than its back-off says, and costs next to nothing meanwhile. Once
Slack is back everybody is told everything, what was unresolved before what became of it.

**Bad weather.** Slack is slow, limits, answers 500 or an error, or does the work and says that it failed: at the card,
at its redraws, at the verdict, at private lines. Only a call that Slack did and seemed to fail leaves a message twice.

**A closed door.** A channel is not there for a card, and is archived under an approval: who asked is told privately.

**Slack's own pace.** A channel takes one message a second, and an outage leaves dozens owed. They must arrive at nearly
that pace, with few calls refused, and none within the Retry-After of another but those that were under way.
"""

import math
import os
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Final
from uuid import UUID

from bot.app import SLACK_THREADS
from bot.domain.cancel_request import ENDED_STATES, State
from bot.playground.demo import BEN, CARA, DANA, DESK, EMIL
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_moods import EVERY_METHOD
from bot.playground.slack_records import Call, Message, Person
from bot.playground.slack_web_api import RESPONSE_URL
from faults.figures import Figures, Ground
from faults.judge import SAYS, judge
from faults.stand import CANCEL_DELAY_S, REQUESTERS, Asked, Pressed, Stand, stand

PEOPLE_AT_ONCE: Final = 4
PROMPT_S: Final = 4.0
"""A DELETE leaves so soon after the click's ack: less than one call to Slack that times out, on a busy machine."""
WITHIN_S: Final = 90.0
"""For what is to happen and whose time is no promise here."""
NEVER_S: Final = 3600.0
BACK_OFF_S: Final = (0.0, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0)
"""Waits before the tries of one thing."""
MAX_LATE_ACKS: Final = 0.05
"""Part of the commands and clicks."""
TURNED_AWAY: Final = "command not recorded: write_lock_timeout"
"""The bot's line where such a machine kept it; the person is told that nothing was done, and counts as one of these."""
MAX_CPU: Final = 0.1
"""Part of a core that an outage in which nobody does anything may cost."""
PRESSES: Final = 3
CLICKED_COPIES: Final = 2
TOLD_WITHIN_S: Final = 10.0
MANY: Final = 1_000_000
"""More calls than a mood ever meets; what is left of them tells how many it met."""
CHAT: Final = ("chat.postMessage", "chat.update", "chat.postEphemeral")
POST: Final = "chat.postMessage"

OWED: Final = 32
PACE_S: Final = 1.0
"""What Slack's own Retry-After says, and how long it makes each message wait for the one before."""
PATIENCE: Final = 1.5
"""What is owed has arrived within so many times the time that Slack's pace needs."""
MAX_REFUSED_BY_PACE: Final = 0.5
"""429s for each message that was taken."""
LIMITED_S: Final = 3
TIMER_SLACK_S: Final = 0.05


@dataclass(frozen=True, kw_only=True, slots=True)
class Weather:
    """A mood of Slack's, and how long it lasts once a call has met it."""

    mood: str
    lasts_s: float = 1.5
    delay_s: float = 0.0
    retry_after_s: int = 1
    methods: tuple[str, ...] = (EVERY_METHOD,)

    @property
    def does_the_work(self) -> bool:
        return self.mood.endswith("_after_doing")


WEATHERS: Final = (
    Weather(mood="away"),
    Weather(mood="http_500"),
    Weather(mood="ratelimited", retry_after_s=2, lasts_s=4.0),
    Weather(mood="slow", delay_s=12.0, lasts_s=6.0, methods=(*CHAT, RESPONSE_URL)),
    Weather(mood="fatal_error_after_doing"),
    Weather(mood="drop_answer_after_doing"),
    # At a response_url such a word would come with 200, which says that it was taken.
    Weather(mood="error:internal_error", methods=CHAT),
)
SEEMS_TO_FAIL: Final = frozenset({"fatal_error", "drop_answer_after_doing"})


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="Slack is away", database=ground.kind)
    replicas = 1 if ground.kind == "sqlite" else 2
    with (
        stand(ground, replicas=replicas) as free,
        # One replica: another one learns of Slack's limit by a 429 of its own.
        stand(ground, post_burst=1) as limited,
        ThreadPoolExecutor() as parts,
    ):
        playing = (parts.submit(_weathers, free, ground), parts.submit(_own_pace, limited, ground))
        played = [part.result() for part in playing]
    for part in played:
        figures.faults.update(part.faults)
        figures.requests += part.requests
        figures.duplicates += part.duplicates
        for kind in ("wrong", "lost", "double", "faulty"):
            getattr(figures, kind).extend(getattr(part, kind))
    figures.note = "; ".join(part.note for part in played)
    return figures


# --- What people do and must hear -----------------------------------------------------------------------------------


@dataclass(kw_only=True, slots=True)
class _People:
    """Several people at a time, and what the bot owes them by now."""

    here: Stand
    figures: Figures
    rng: random.Random
    approved_at: dict[int, float] = field(default_factory=dict)  #: when Slack had the ack
    clicked: list[tuple[int, str]] = field(default_factory=list)  #: request and ts of a copy of its card
    owed_lines: list[tuple[Person, int]] = field(default_factory=list)
    acknowledged: list[bool] = field(default_factory=list)  #: of each command and click
    slow_posts: int = 0
    slowest_delete_s: float = 0.0

    def ask(self, orders: Iterable[str]) -> list[Asked]:
        """Each is asked for by one of those who may; those that Slack saw acknowledged."""
        typed = [(uuid, self.rng.choice(REQUESTERS)) for uuid in orders]
        with ThreadPoolExecutor(PEOPLE_AT_ONCE) as people:
            asked = list(people.map(lambda each: self.here.ask(*each), typed))
        self.acknowledged += [each is not None for each in asked]
        return [each for each in asked if each is not None]

    def ask_for(self, number: int) -> list[Asked]:
        return self.ask([self.here.exchange.place() for _ in range(number)])

    def ask_for_unknown(self, number: int) -> list[Asked]:
        """Ask for orders that are not there: whoever asks is told privately."""
        asked = self.ask([str(UUID(int=self.rng.getrandbits(128), version=4)) for _ in range(number)])
        self.owed_lines += [(each.requester, each.id) for each in asked]
        return asked

    def approve(self, asked: Sequence[Asked]) -> None:
        self._press(asked, BEN, "approve")

    def deny(self, asked: Sequence[Asked]) -> None:
        self._press(asked, EMIL, "deny")

    def press_in_vain(self, asked: Sequence[Asked], who: Person) -> None:
        """Press where it cannot count: they are told privately."""
        self._press(asked, who, "approve")
        self.owed_lines += [(who, each.id) for each in asked]

    def _press(self, asked: Sequence[Asked], who: Person, action_id: str) -> None:
        def press(each: Asked) -> tuple[bool, float]:
            # Whoever sees that it failed presses again.
            return any(self.here.press(each.id, who, action_id) for _ in range(PRESSES)), time.time()

        with ThreadPoolExecutor(PEOPLE_AT_ONCE) as people:
            answers = list(people.map(press, asked))
        for each, (is_acknowledged, at) in zip(asked, answers, strict=True):
            self.acknowledged.append(is_acknowledged)
            if is_acknowledged and who is BEN:
                self.approved_at.setdefault(each.id, at)

    def approve_copies(self, asked: Sequence[Asked]) -> list[Asked]:
        """Approve what Slack shows, of which the bot may not know that it was posted; the requests approved so."""
        slack, approved = self.here.slack, asked[:CLICKED_COPIES]
        self.here.until(lambda: all(_copies(slack, each.id) for each in approved), timeout_s=WITHIN_S)
        shown = [(each, card) for each in approved for card in _copies(slack, each.id)[:1]]
        for each, card in shown:
            answer = slack.click(BEN.id, card, "approve", value=str(each.id))
            self.acknowledged.append(answer.ok)
            if answer.ok:
                self.here.pressed.append(Pressed(request_id=each.id, person=BEN, action_id="approve"))
                self.approved_at[each.id] = time.time()
                self.clicked.append((each.id, card.ts))
        return [each for each, _ in shown]

    def expect_deletes(self) -> None:
        """Each order that was approved so far has had its DELETE, soon after the ack."""
        exchange, asked = self.here.exchange, self.here.asked
        self.here.until(
            lambda: all(exchange.deletes(asked[request_id].uuid) for request_id in self.approved_at), timeout_s=WITHIN_S
        )
        for request_id, acknowledged_at in self.approved_at.items():
            deletes = exchange.deletes(asked[request_id].uuid)
            if not deletes:
                self.figures.lost.append(f"request {request_id} was approved, and no DELETE left in {WITHIN_S:.0f} s")
                continue
            took_s = deletes[0].at - acknowledged_at
            self.slowest_delete_s = max(self.slowest_delete_s, took_s)
            self.figures.expect(
                took_s <= PROMPT_S, f"the DELETE of request {request_id} left {took_s:.1f} s after the ack"
            )
        self.approved_at.clear()

    def expect_acks(self) -> None:
        """Nobody waits for Slack's Web API; a machine that is busy with other things may keep some too long."""
        late = self.acknowledged.count(False)
        self.figures.expect(
            late <= MAX_LATE_ACKS * len(self.acknowledged),
            f"{late} of {len(self.acknowledged)} commands and clicks were not acknowledged in time",
        )

    def expect_states(self, asked: Sequence[Asked], *states: State) -> None:
        """All of these come to one of the states, whatever Slack does."""
        ids = {each.id for each in asked}
        came = self.here.until(lambda: ids <= set(self.here.ids_in(*states)), timeout_s=WITHIN_S)
        self.figures.expect(came, f"not all of {sorted(ids)} became {states}\n{self.here.log_tail()}")

    def expect_cards(self, asked: Sequence[Asked], *, timeout_s: float = WITHIN_S) -> bool:
        came = self.here.until(lambda: all(self.here.card_of(each.id) for each in asked), timeout_s=timeout_s)
        if not came:
            without = [each.id for each in asked if not self.here.card_of(each.id)]
            self.figures.lost.append(
                f"{len(without)} of {len(asked)} have no card {timeout_s:.0f} s after Slack came back: {without}"
            )
        return came

    def expect_rest(self, *, may_wait: frozenset[State] = frozenset()) -> None:
        is_at_rest = self.here.drain(timeout_s=WITHIN_S, may_wait=may_wait)
        self.figures.expect(is_at_rest, f"not all was shown {WITHIN_S:.0f} s after Slack came back")

    def expect_private_lines(self) -> None:
        slack = self.here.slack
        for who in {who for who, _ in self.owed_lines}:
            heard = "\n".join(
                line for each in (*slack.ephemerals(who.id), *slack.dms(who.id)) for line in slack.words(each)
            )
            for person, request_id in self.owed_lines:
                if person is who and not re.search(rf"equest #{request_id}\b(?! is recorded)", heard):
                    self.figures.lost.append(f"{who.name} was not told why request {request_id} got nowhere")

    def set_weather(self, weather: Weather) -> Callable[[], None]:
        """Let it begin; what is returned waits until it has been met and has lasted, and ends it."""
        moods = {
            method: self.here.slack.set_mood(
                weather.mood,
                method=method,
                times=MANY,
                delay_s=weather.delay_s,
                retry_after_s=weather.retry_after_s,
            )
            for method in weather.methods
        }

        def end() -> None:
            self.here.until(lambda: any(mood.met.is_set() for mood in moods.values()), timeout_s=WITHIN_S)
            threading.Event().wait(weather.lasts_s)
            self.end_weather()
            if weather.mood == "slow":
                self.slow_posts += MANY - (moods[POST].calls_left or 0)

        return end

    def end_weather(self) -> None:
        """Slack is back. Half of the time nobody waits for the back-off."""
        self.here.slack.clear_moods()
        if self.rng.random() < 0.5:
            self.here.run_out_waits()


def _copies(slack: SlackWorkspace, request_id: int) -> list[Message]:
    """The cards of this request that are there, known to the bot or not."""
    return [
        message
        for message in slack.messages(DESK)
        if message.metadata and message.metadata["event_payload"]["request_id"] == request_id
    ]


# --- The long outage and the weathers -------------------------------------------------------------------------------


def _weathers(here: Stand, ground: Ground) -> Figures:
    figures = Figures(experiment="bad weather", database=ground.kind)
    people = _People(here=here, figures=figures, rng=random.Random(ground.seed))
    cpu = _long_outage(people, ground)
    for weather in people.rng.sample(WEATHERS, len(WEATHERS)):
        _request_in(weather, people, ground.some(8, at_least=4))
    _unseen_cards(people, ground.some(4))
    people.expect_rest()
    people.expect_private_lines()
    people.expect_acks()
    _expect_order(here, figures)
    _expect_copies_drawn(people)
    judge(here, figures)
    strikes = _strikes(people)
    figures.expect(
        figures.duplicates <= strikes,
        f"{figures.duplicates} messages twice, and {strikes} calls that could do that",
    )
    complaints = [line for line in here.complaints() if TURNED_AWAY not in line]
    figures.expect(not complaints, f"the bot complains: {complaints[:3]}")
    _archived(people, ground.some(4))
    figures.faults.update(call.outcome for call in here.slack.calls() if call.outcome != "ok")
    figures.faults["slow"] += people.slow_posts
    figures.note = (
        f"DELETE within {people.slowest_delete_s:.1f} s, {cpu:.1%} of a core away, {strikes} posts seemed to fail"
    )
    return figures


def _long_outage(people: _People, ground: Ground) -> float:
    """Returns the part of a core that the busiest replica used meanwhile."""
    here, slack = people.here, people.here.slack
    early = people.ask_for(ground.some(36, at_least=7))
    people.expect_cards(early)
    stuck, approved = early[: ground.some(8, at_least=0)], early[ground.some(8, at_least=0) : -5]
    denied, undecided = early[-5:-3], early[-3:]

    slack.set_mood("away")
    here.exchange.cancel_delay_s = NEVER_S
    people.approve(stuck)
    people.expect_deletes()
    here.exchange.cancel_delay_s = CANCEL_DELAY_S
    people.approve(approved)
    people.expect_deletes()
    people.deny(denied)
    people.press_in_vain(undecided, DANA)
    people.press_in_vain(approved[:3], EMIL)
    late = people.ask_for(ground.some(16, at_least=2))
    unknown = people.ask_for_unknown(ground.some(4))
    people.expect_states([*approved, *denied, *unknown], *ENDED_STATES)
    people.expect_states(late, State.PENDING)
    cpu = _idle(people, lasts_s=ground.some(30, at_least=8))

    people.expect_states(stuck, State.UNRESOLVED)
    for each in stuck[::2]:
        here.exchange.settle(each.uuid)
    here.run_out_waits()
    people.expect_states(stuck[::2], State.CANCELED)
    slack.clear_moods()
    here.run_out_waits()
    people.expect_rest(may_wait=frozenset({State.PENDING, State.UNRESOLVED}))

    slack.set_mood("away")
    for each in stuck[1::2]:
        here.exchange.settle(each.uuid)
    here.run_out_waits()
    people.expect_states(stuck[1::2], State.CANCELED)
    people.approve([*undecided, *late])
    people.expect_deletes()
    people.end_weather()
    people.expect_rest()
    for each in stuck[1::2]:
        told = _states_told(here, each.id)
        people.figures.expect(
            told == [State.UNRESOLVED, State.CANCELED], f"the thread of request {each.id}, unresolved at first: {told}"
        )
    return cpu


def _idle(people: _People, *, lasts_s: float) -> float:
    """Nobody does anything: the bot tries each thing that it owes as its back-off says, and no more."""
    here, figures = people.here, people.figures
    owed = len(here.asked) + len(people.owed_lines)
    began_at, cpu_before = time.time(), _cpu_s(here)
    threading.Event().wait(lasts_s)
    ended_at, cpu_after = time.time(), _cpu_s(here)
    calls = [call for call in here.slack.calls() if began_at <= call.at <= ended_at]
    # Twice as often as the back-off says: a request that moves in this time begins anew.
    most = 2 * sum(after_s <= lasts_s for after_s in accumulate(BACK_OFF_S))
    for about, times in Counter(map(_about, calls)).items():
        allowed = most * (owed if about is None else 1)
        figures.expect(times <= allowed, f"{times} calls about {about} in {lasts_s:.0f} s away, not at most {allowed}")
    figures.expect(calls, f"Slack was not asked once in {lasts_s:.0f} s")
    shares = [(after - before) / lasts_s for before, after in zip(cpu_before, cpu_after, strict=True)]
    figures.expect(max(shares) < MAX_CPU, f"with Slack away and nothing to do the bot used {max(shares):.0%} of a core")
    return max(shares)


def _about(call: Call) -> str | None:
    """The message that a call is about; None for a private line."""
    told = call.arguments.get("client_msg_id") or call.arguments.get("thread_ts") or call.arguments.get("ts")
    return None if told is None else f"{call.method} {told}"


def _cpu_s(here: Stand) -> list[float]:
    """Seconds of a core that each replica's serving process has used."""
    ticks = os.sysconf("SC_CLK_TCK")
    stats = [Path(f"/proc/{bot.serving_pid}/stat").read_text(encoding="ascii") for bot in here.bots]
    # The name in the second field may have blanks; user and system time are the 14th and the 15th.
    return [sum(map(int, stat.rpartition(")")[2].split()[11:13])) / ticks for stat in stats]


def _request_in(weather: Weather, people: _People, number: int) -> None:
    """Requests asked for and shown in this weather, and then, in the same weather again, decided."""
    end = people.set_weather(weather)
    asked = people.ask_for(number)
    people.ask_for_unknown(1)
    people.expect_states(asked, State.PENDING)
    decided = people.approve_copies(asked) if weather.does_the_work else []
    people.expect_deletes()
    end()
    people.expect_cards(asked)

    end = people.set_weather(weather)
    denied, *approved = [each for each in asked if each not in decided]
    people.deny([denied])
    people.press_in_vain(approved[:1], CARA)
    people.approve(approved)
    people.press_in_vain(asked[-1:], EMIL)
    people.expect_deletes()
    people.expect_states(asked, *ENDED_STATES)
    end()
    people.expect_rest()


def _expect_order(here: Stand, figures: Figures) -> None:
    """Each verdict is in the thread of its own request's card, and what was unresolved was told so first."""
    of_card = {card.ts: each for each in here.asked.values() if (card := here.card_of(each.id)) is not None}
    for message in here.slack.messages(DESK):
        if message.thread_ts is None:
            continue
        request = of_card.get(message.thread_ts)
        words = "\n".join(here.slack.words(message))
        figures.expect(
            request is not None and request.uuid in words, f"in the thread of {request or 'no known card'}: {words}"
        )
    for each in of_card.values():
        told = _states_told(here, each.id)
        figures.expect(
            State.UNRESOLVED not in told[1:], f"the thread of request {each.id} says first what came of it: {told}"
        )


def _states_told(here: Stand, request_id: int) -> list[State]:
    """What the thread of the request's card says, in its order."""
    card = here.card_of(request_id)
    thread = here.slack.thread(DESK, card.ts) if card is not None else []
    lines = [here.slack.words(message)[0] for message in thread]
    return [next(state for state, begins in SAYS.items() if line.startswith(begins)) for line in lines]


def _expect_copies_drawn(people: _People) -> None:
    """Whichever copy of a card somebody pressed shows what came of it."""
    for request_id, ts in people.clicked:
        copy = people.here.slack.message(DESK, ts)
        people.figures.expect(
            copy is not None and not copy.buttons,
            f"the copy {ts} of the card of request {request_id} has buttons still",
        )


def _strikes(people: _People) -> int:
    """Posts that Slack did and the bot took for failed: each excuses one message that comes twice."""
    outcomes = Counter(call.outcome for call in people.here.slack.calls(POST))
    return sum(outcomes[each] for each in SEEMS_TO_FAIL) + people.slow_posts


# --- A closed door --------------------------------------------------------------------------------------------------


def _unseen_cards(people: _People, number: int) -> None:
    """Slack says for good that a card cannot be posted, and of others that they cannot be drawn again yet."""
    slack = people.here.slack
    slack.set_mood(people.rng.choice(("error:channel_not_found", "error:is_archived")), method=POST)
    refused = people.ask_for(number)
    people.owed_lines += [(each.requester, each.id) for each in refused]
    people.expect_states(refused, State.REFUSED)
    slack.clear_moods()

    slack.set_mood("error:channel_not_found", method="chat.update")
    posted = people.ask_for(number)
    people.expect_cards(posted)
    people.expect_rest(may_wait=frozenset({State.PENDING}))
    slack.clear_moods()
    people.approve(posted)
    people.expect_deletes()


def _archived(people: _People, number: int) -> None:
    """The channel is archived while an approval is on its way: it counts, and who asked is told in a direct message."""
    here, figures = people.here, people.figures
    asked = people.ask_for(number)
    people.expect_cards(asked)
    people.expect_rest(may_wait=frozenset({State.PENDING}))
    here.slack.change_channel(DESK, is_archived=True)
    people.approve(asked)
    people.expect_deletes()
    people.expect_states(asked, State.CANCELED)

    def untold() -> list[Asked]:
        return [each for each in asked if not _is_told_directly(here, each)]

    here.until(lambda: not untold(), timeout_s=TOLD_WITHIN_S)
    for each in untold():
        figures.lost.append(
            f"the channel is archived, and for {TOLD_WITHIN_S:.0f} s nobody was told that request {each.id} is canceled"
        )
    figures.requests += len(asked)
    figures.faults["is_archived"] += 1
    here.slack.change_channel(DESK, is_archived=False)


def _is_told_directly(here: Stand, asked: Asked) -> bool:
    return any(
        SAYS[State.CANCELED] in words and asked.uuid in words
        for message in here.slack.dms(asked.requester.id)
        for words in ["\n".join(here.slack.words(message))]
    )


# --- Slack's own pace -----------------------------------------------------------------------------------------------


def _own_pace(here: Stand, ground: Ground) -> Figures:
    figures = Figures(experiment="Slack's own pace", database=ground.kind)
    people = _People(here=here, figures=figures, rng=random.Random(ground.seed))
    mood = here.slack.set_mood("away")
    asked = people.ask_for(ground.some(OWED, at_least=8))
    people.expect_states(asked, State.PENDING)
    here.until(mood.met.is_set, timeout_s=WITHIN_S)
    here.slack.clear_moods()
    began_at = time.monotonic()
    has_come = people.expect_cards(asked, timeout_s=len(asked) * PACE_S * PATIENCE + BACK_OFF_S[4])
    took_s = time.monotonic() - began_at
    posts = Counter(call.outcome for call in here.slack.calls(POST))
    # Each thread may call once before one of them has heard of the limit, and once as Slack's second begins.
    allowed = max(posts["ok"] * MAX_REFUSED_BY_PACE, 2 * SLACK_THREADS)
    figures.expect(
        posts["ratelimited"] <= allowed,
        f"Slack took {posts['ok']} posts in {took_s:.0f} s and answered 429 to {posts['ratelimited']} more",
    )
    _expect_patience(here, figures, POST, retry_after_s=PACE_S)
    if has_come:
        _limited(people, asked[: ground.some(8, at_least=2)])
    judge(here, figures, may_wait=frozenset({State.PENDING}))
    figures.faults.update(call.outcome for call in here.slack.calls() if call.outcome != "ok")
    figures.note = f"{posts['ok']} of {len(asked)} owed cards in {took_s:.0f} s beside {posts['ratelimited']} 429s"
    return figures


def _limited(people: _People, asked: Sequence[Asked]) -> None:
    """Slack limits redraws and messages alike, and says for how long."""
    here = people.here
    began_at = time.time()
    limited = Weather(mood="ratelimited", retry_after_s=LIMITED_S, lasts_s=2.5 * LIMITED_S, methods=CHAT)
    end = people.set_weather(limited)
    people.approve(asked)
    people.expect_deletes()
    people.expect_states(asked, *ENDED_STATES)
    end()
    ended_at = time.time()
    for method in CHAT:
        _expect_patience(here, people.figures, method, retry_after_s=LIMITED_S, began_at=began_at, ended_at=ended_at)
    people.expect_rest(may_wait=frozenset({State.PENDING}))


def _expect_patience(
    here: Stand,
    figures: Figures,
    method: str,
    *,
    retry_after_s: float,
    began_at: float = 0.0,
    ended_at: float = math.inf,
) -> None:
    """After a 429 the channel is left alone until its Retry-After has passed, but for what was under way."""
    calls = [call for call in here.slack.calls(method) if began_at <= call.at <= ended_at]
    early: Counter[float] = Counter()
    limited_at = -math.inf
    for call in calls:
        if call.at < limited_at + retry_after_s - TIMER_SLACK_S:
            early[limited_at] += 1
        elif call.outcome == "ratelimited":
            limited_at = call.at
    figures.expect(
        max(early.values(), default=0) < SLACK_THREADS,
        f"after a 429 to {method} with a Retry-After of {retry_after_s} s up to {max(early.values(), default=0)} more "
        f"calls came before it had passed, after {len(early)} different 429s",
    )
