"""Clocks: steps of ten minutes forward and back, a leap to the next day and back, replicas half a minute apart.

Two plays go on side by side, since both mostly wait.

**The database's clock steps** while requests are being read, wait for approval, are on their way to the exchange or are
looked at. An approval is over when that clock says so, neither before nor long after; a cancel that the exchange takes
its time with has not failed because a clock leapt; and no step keeps anybody waiting for its own length: what was asked
for or approved goes on within seconds, and what is left alone expires in its time.

**The machines' clocks are wrong**, on SQLite the database's with them. With PostgreSQL two replicas are half a minute
apart, and each goes wrong by ten minutes while it works: times, leases and expiries are the database's. Slack's
deliveries are then refused, said so in the log and leave no trace; when the clock is right, all goes on by itself.
"""

import json
import random
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select

from bot.database.audit_log import AuditLog
from bot.database.schema import cancel_requests, decisions
from bot.domain.cancel_request import State
from bot.domain.event_filter import Filter
from bot.playground.demo import DANA, DESK
from bot.playground.exchange import Mood
from faults.faulty_bot import set_clock
from faults.figures import Figures, Ground
from faults.judge import MAX_EVENTS, judge
from faults.stand import APPROVERS, Stand, stand

TEN_MINUTES_S: Final = 600.0
DAY_S: Final = 86_400.0
STEPS_TO_S: Final = (TEN_MINUTES_S, 0.0, -TEN_MINUTES_S, 0.0, DAY_S, 0.0)
"""By how much the database's clock is wrong, one after the other."""
APART_S: Final = 30.0

EACH: Final = 4
"""Requests of each sort at each step, at scale 1."""
EXPIRING: Final = 24
"""Requests that are left alone or decided at the last moment, at scale 1."""
TTL: Final = timedelta(minutes=1)
SETTINGS: Final = {"APPROVAL_TTL_MINUTES": "1"}

SLOW_CANCEL_S: Final = 3.0
"""How long the exchange takes for a cancel that it has accepted."""
SLOW_ANSWER_S: Final = 2.0
GOES_ON_WITHIN_S: Final = 45.0
"""Much less than ten minutes, and enough for a busy machine."""
LATE_EXPIRY: Final = timedelta(seconds=5)
AT_WORK: Final = 8
IN_FLIGHT: Final = frozenset({State.SENDING, State.ACCEPTED})
REFUSED_LINE: Final = "refused a request: 401 the timestamp is too far from now"


def run(ground: Ground) -> Figures:
    figures = Figures(experiment="clocks", database=ground.kind)
    is_postgresql = ground.kind == "postgresql"
    apart_s = (-APART_S / 2, APART_S / 2) if is_postgresql else (0.0,)
    common = _Clock(ground.folder / "clock-of-database", right_s=0.0)
    clocks = [_Clock(ground.folder / f"clock-{at}", right_s=right_s) for at, right_s in enumerate(apart_s)]
    with (
        stand(
            ground,
            replicas=len(clocks),
            settings=SETTINGS,
            faults={at: common.faults(of="database") for at, _ in enumerate(clocks)},
        ) as one,
        stand(
            ground,
            replicas=len(clocks),
            settings=SETTINGS,
            faults={at: clock.faults(of="machine") for at, clock in enumerate(clocks)},
        ) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        parts = [Figures(experiment="", database=ground.kind) for _ in range(2)]
        plays = (
            threads.submit(_database_clock_steps, one, ground, parts[0], common),
            threads.submit(_machine_clocks_are_wrong, other, ground, parts[1], clocks),
        )
        figures.note = "; ".join(filter(None, [play.result() for play in plays]))
    for part in parts:
        figures.faults.update(part.faults)
        figures.requests += part.requests
        figures.duplicates += part.duplicates
        for name in ("wrong", "lost", "double", "faulty"):
            getattr(figures, name).extend(getattr(part, name))
    return figures


# --- The database's clock -------------------------------------------------------------------------------------------


def _database_clock_steps(here: Stand, ground: Ground, figures: Figures, clock: "_Clock") -> str:
    here.exchange.cancel_delay_s = SLOW_CANCEL_S
    longest_s = before_s = 0.0
    for wrong_by_s in STEPS_TO_S:
        step = _Step(here, figures, clock, from_s=before_s, to_s=wrong_by_s, each=ground.some(EACH, at_least=2))
        longest_s = max(longest_s, step.play())
        before_s = wrong_by_s
    if ground.scale >= 1:
        _expect_the_rest_expires(here, figures)
    _come_to_rest(here)
    judge(here, figures)
    _judge_times(here, figures)
    return f"after a step of the database's clock all went on within {longest_s:.0f} s"


@dataclass(kw_only=True, slots=True)
class _Batch:
    """Requests as they are when the clock steps."""

    pending: list[int]  #: wait for approval
    sent: list[int]  #: the DELETE is under way or accepted, the order still open
    asked: list[int]  #: acknowledged a moment ago


class _Step:
    """One step of the database's clock while all sorts of requests are under way."""

    def __init__(
        self, here: Stand, figures: Figures, clock: "_Clock", *, from_s: float, to_s: float, each: int
    ) -> None:
        self.here, self.figures, self.clock, self.to_s, self.each = here, figures, clock, to_s, each
        self.is_forward = to_s > from_s
        self.name = f"a step of {to_s - from_s:+.0f} s"

    def play(self) -> float:
        """In how many seconds all that was under way has ended."""
        batch = self._begin()
        stepped_at = time.monotonic()
        self.clock.set(self.to_s)
        self.figures.faults[f"database's clock {'forward' if self.is_forward else 'back'}"] += 1
        asked_since = _ask(self.here, self.each)
        to_decide = [*batch.asked, *asked_since]
        over = self._over(batch.pending)
        self._within(lambda: self._all_in(over, {State.EXPIRED}), "had expired", over)
        to_decide += [request_id for request_id in batch.pending if request_id not in over]
        self._within(lambda: self._none_in(to_decide, {State.REQUESTED}), "could be decided", to_decide)
        _press(self.here, self._in(to_decide, {State.PENDING}))
        everything = [*batch.pending, *batch.sent, *to_decide]
        self._within(self.here.is_at_rest, "had ended and been told", everything)
        took_s = time.monotonic() - stepped_at
        _come_to_rest(self.here, may_wait=frozenset({State.REQUESTED, State.PENDING}))
        return took_s

    def _begin(self) -> _Batch:
        pending, sent = _ask(self.here, self.each), _ask(self.here, self.each)
        self._within(lambda: self._none_in([*pending, *sent], {State.REQUESTED}), "were read", [*pending, *sent])
        self.here.exchange.set_mood("DELETE", Mood.SLOW, times=self.each // 2, seconds=SLOW_ANSWER_S)
        _press(self.here, self._in(sent, {State.PENDING}))
        self._within(lambda: self._none_in(sent, {State.PENDING, State.APPROVED}), "were sent", sent)
        return _Batch(pending=pending, sent=sent, asked=_ask(self.here, self.each))

    def _within(self, look: Callable[[], bool], promise: str, ids: Iterable[int]) -> None:
        if not self.here.until(look, timeout_s=GOES_ON_WITHIN_S):
            states = self.here.states()
            now = {request_id: states[request_id].value for request_id in ids}
            self.figures.faulty.append(f"not within {GOES_ON_WITHIN_S:.0f} s of {self.name} these {promise}: {now}")

    def _over(self, ids: list[int]) -> list[int]:
        """Those whose time is over by the database's clock."""
        now = datetime.now(UTC) + timedelta(seconds=self.to_s)
        with self.here.database.read() as connection:
            is_over = cancel_requests.c.id.in_(ids) & (cancel_requests.c.expires_at <= now)
            return list(connection.execute(select(cancel_requests.c.id).where(is_over)).scalars())

    def _in(self, ids: Iterable[int], wanted: set[State]) -> list[int]:
        states = self.here.states()
        return [request_id for request_id in ids if states[request_id] in wanted]

    def _all_in(self, ids: list[int], wanted: set[State]) -> bool:
        return len(self._in(ids, wanted)) == len(ids)

    def _none_in(self, ids: list[int], unwanted: set[State]) -> bool:
        return not self._in(ids, unwanted)


def _expect_the_rest_expires(here: Stand, figures: Figures) -> None:
    """Real time passes as it does for people: nobody decides, and the approval is over after its minute."""
    began = time.monotonic()
    ids = _ask(here, EACH)
    wait_s = TTL.total_seconds() + LATE_EXPIRY.total_seconds()
    if not here.until(lambda: set(here.ids_in(State.EXPIRED)).issuperset(ids), timeout_s=wait_s):
        states = here.states()
        figures.faulty.append(
            f"after the clock had been a day ahead, requests were left alone and had not expired after {wait_s:.0f} s: "
            f"{ {request_id: states[request_id].value for request_id in ids} }"
        )
    elif time.monotonic() - began < TTL.total_seconds() - 1:
        figures.faulty.append(f"requests {ids} expired before their minute was over")


def _come_to_rest(here: Stand, *, may_wait: frozenset[State] = frozenset()) -> None:
    """Bring everything to its end, whatever it waits for: what was late has been noted by now."""
    if here.drain(timeout_s=0.5, may_wait=may_wait):
        return
    _deny_the_rest(here)

    def look() -> bool:
        here.run_out_waits()
        return here.is_at_rest(may_wait=may_wait)

    here.until(look, timeout_s=GOES_ON_WITHIN_S)


def _deny_the_rest(here: Stand) -> None:
    for request_id in here.ids_in(State.PENDING):
        if here.card_of(request_id) is not None:
            here.press(request_id, APPROVERS[1], "deny")


# --- The machines' clocks -------------------------------------------------------------------------------------------


def _machine_clocks_are_wrong(here: Stand, ground: Ground, figures: Figures, clocks: list["_Clock"]) -> str:
    is_postgresql = ground.kind == "postgresql"
    began_at = datetime.now(UTC)
    expiring = _ask(here, ground.some(EXPIRING, at_least=4)) if is_postgresql and ground.scale >= 1 else []
    for wrong_by_s in (TEN_MINUTES_S, -TEN_MINUTES_S):
        approved = _ask(here, ground.some(EACH, at_least=2))
        _press(here, approved)
        for clock in clocks:
            clock.set(wrong_by_s)
        figures.faults["machine's clock"] += len(clocks)
        _expect_refusals(here, figures, approved[0])
        for clock in clocks:
            clock.set(clock.right_s)
        _expect_recovery(here, figures, f"after the machine's clock had been wrong by {wrong_by_s:+.0f} s")
    if expiring:
        _decide_at_the_last_moment(here, expiring[::2], random.Random(ground.seed))
        here.drain(timeout_s=TTL.total_seconds() + GOES_ON_WITHIN_S)
    _come_to_rest(here)
    judge(here, figures)
    late = _judge_times(here, figures)
    if not is_postgresql:
        return ""
    _expect_true_times(here, figures, began_at)
    figures.expect(late < LATE_EXPIRY, f"a request expired {late} after its time")
    return f"by PostgreSQL's clock the last expiry came {late.total_seconds():.1f} s late"


def _expect_refusals(here: Stand, figures: Figures, request_id: int) -> None:
    """Nothing that Slack brings now is taken, and nothing of it is written down."""
    trigger_id = f"refused-{time.monotonic_ns()}"
    said_before = _said(here)
    commands = [here.slack.command(DANA.id, DESK, here.exchange.place(), trigger_id=trigger_id) for _ in range(3)]
    card = here.card_of(request_id)
    assert card is not None
    clicks = [here.slack.click(APPROVERS[2].id, card, "approve", value=str(request_id)) for _ in range(3)]
    statuses = [each.http_status for each in (*commands, *clicks)]
    figures.faults["delivery with a wrong clock"] += len(statuses)
    figures.expect(set(statuses) == {401}, f"with a clock ten minutes wrong deliveries were answered {statuses}")
    said = _said(here) - said_before
    figures.expect(said >= len(statuses), f"of {len(statuses)} refused deliveries the log tells of {said}")
    events = AuditLog(here.database).list(Filter(), limit=MAX_EVENTS)
    figures.expect(
        not any(event["trigger_id"] == trigger_id or event["actor"] == APPROVERS[2].id for event in events),
        "a delivery that was refused left a trace",
    )


def _said(here: Stand) -> int:
    return sum(bot.log().count(REFUSED_LINE) for bot in here.bots)


def _expect_recovery(here: Stand, figures: Figures, when: str) -> None:
    """What people do is taken at once, and comes to its end."""
    asked = _ask(here, 2)
    figures.expect(len(asked) == 2, f"{when}, commands were not taken")
    opened = here.until(lambda: all(map(here.card_of, asked)), timeout_s=GOES_ON_WITHIN_S)
    figures.expect(opened, f"{when}, requests {asked} had no card within {GOES_ON_WITHIN_S:.0f} s")
    if opened:
        _press(here, asked)
        ended = here.until(
            lambda: not set(asked) & set(here.ids_in(State.PENDING, State.APPROVED, *IN_FLIGHT)),
            timeout_s=GOES_ON_WITHIN_S,
        )
        figures.expect(ended, f"{when}, requests {asked} had not ended within {GOES_ON_WITHIN_S:.0f} s")


def _decide_at_the_last_moment(here: Stand, ids: list[int], rng: random.Random) -> None:
    """Each within a second of the end of its time, before or after it."""
    with here.database.read() as connection:
        chosen = select(cancel_requests.c.id, cancel_requests.c.expires_at).where(cancel_requests.c.id.in_(ids))
        ends = {row.id: row.expires_at for row in connection.execute(chosen) if row.expires_at is not None}

    def press(request_id: int, offset_s: float) -> None:
        left_s = (ends[request_id] - datetime.now(UTC)).total_seconds() + offset_s
        threading.Event().wait(max(0.0, left_s))
        here.press(request_id, APPROVERS[0], "approve")

    with ThreadPoolExecutor(max(1, len(ends))) as people:
        for each in [people.submit(press, request_id, rng.uniform(-1, 1)) for request_id in ends]:
            each.result()


# --- What both need -------------------------------------------------------------------------------------------------


class _Clock:
    """A clock of the bot's that can be set."""

    def __init__(self, path: Path, *, right_s: float) -> None:
        self._path = path
        self.right_s = right_s
        self.set(right_s)

    def set(self, wrong_by_s: float) -> None:
        set_clock(self._path, offset_s=wrong_by_s)

    def faults(self, *, of: str) -> str:
        return json.dumps({"clock_file": str(self._path), "clock_of": of})


def _ask(here: Stand, number: int) -> list[int]:
    with ThreadPoolExecutor(AT_WORK) as people:
        asked = people.map(lambda _: here.ask(here.exchange.place()), range(number))
        return [each.id for each in asked if each is not None]


def _press(here: Stand, ids: list[int]) -> None:
    """Approve those that have a card."""
    here.until(lambda: all(map(here.card_of, ids)), timeout_s=GOES_ON_WITHIN_S)
    with ThreadPoolExecutor(AT_WORK) as people:
        list(people.map(here.press, [request_id for request_id in ids if here.card_of(request_id) is not None]))


def _judge_times(here: Stand, figures: Figures) -> timedelta:
    """By the database's clock; returns how late the last expiry was, as that clock has it."""
    events = AuditLog(here.database).list(Filter(), limit=MAX_EVENTS, newest_first=False)
    times = [_moment(event) for event in events]
    for event, before, at in zip(events[1:], times, times[1:], strict=False):
        figures.expect(before <= at, f"the audit's time runs backwards at event {event['seq']}: {before}, {at}")
    with here.database.read() as connection:
        rows = {row.id: row for row in connection.execute(select(cancel_requests))}
        for decision in connection.execute(select(decisions)):
            expires_at = rows[decision.request_id].expires_at
            figures.expect(
                decision.decided_at < expires_at,
                f"request {decision.request_id} expires at {expires_at} and was decided at {decision.decided_at}",
            )
    late = timedelta(0)
    for event in events:
        by_the_clock = _by_the_clock(event)
        if event["action"] == "request.expired":
            after = by_the_clock - rows[_id(event)].expires_at
            figures.expect(after >= timedelta(0), f"request {event['request_id']} expired {-after} before its time")
            late = max(late, after)
        if event["action"] == "cancel.sent":
            send_before = rows[_id(event)].send_before
            figures.expect(
                by_the_clock < send_before,
                f"request {event['request_id']} was sent at {by_the_clock}, after {send_before}",
            )
    refused = here.exchange.statuses()[401]
    figures.expect(not refused, f"the exchange refused {refused} tokens")
    return late


def _expect_true_times(here: Stand, figures: Figures, began_at: datetime) -> None:
    """Nothing that was written down has its time from a machine whose clock is wrong."""
    ended_at = datetime.now(UTC)
    for event in AuditLog(here.database).list(Filter(), limit=MAX_EVENTS):
        at = _moment(event)
        figures.expect(
            began_at - timedelta(seconds=1) <= at <= ended_at + timedelta(seconds=1),
            f"event {event['seq']} is written down at {at}, and it happened from {began_at} to {ended_at}",
        )


def _moment(event: Any) -> datetime:
    return datetime.fromisoformat(event["occurred_at"])


def _by_the_clock(event: Any) -> datetime:
    """As it was when the event was written, also if it was behind the event before."""
    return datetime.fromisoformat(event["details"].get("clock") or event["occurred_at"])


def _id(event: Any) -> int:
    request_id: int = event["request_id"]
    return request_id
