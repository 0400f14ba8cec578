"""A world in which everything goes wrong on purpose: virtual time, two replicas, a seed.

The workflow, the store, the policy and the database are the product's own. The clock, the exchange and Slack are
simulated; crashes strike at every commit and every call, answers are lost, the exchange refuses, stalls, fills and
bans, Slack goes away. The same seed makes the same world.

`INVARIANTS` below is what must hold in every world; `check` raises AssertionError with the seed and the audit.
"""

import json
import random
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any, Final, Literal

from databases import migrated
from sqlalchemy import Connection, select, union_all

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.schema import cancel_requests, notices
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.answer import (
    Accepted,
    Call,
    CancelAnswer,
    Found,
    FoundOrders,
    LookAnswer,
    NotSent,
    OrdersAnswer,
    Refused,
    Unknown,
)
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor
from bot.domain.cancel_request import (
    ENDED_STATES,
    TRANSITIONS,
    VERDICT_STATES,
    CancelRequest,
    DecisionKind,
    State,
    Verdict,
)
from bot.domain.errors import CannotPost, CommitInDoubt, IllegalTransition, NothingDone, StoreError, TryLater
from bot.domain.event_filter import Filter
from bot.domain.order import Order
from bot.domain.quote import BestPrices, NoPrices
from bot.domain.tiers import parse_tiers
from bot.domain.witness import Witness
from bot.workflow import CancelWorkflow, Click, Command, Notice, NoticeKind, Posted, settle

START: Final = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
TEAM: Final = "T0SIM"
PEOPLE: Final = tuple(Actor(id=f"U0P{n}", name=f"person{n}", team_id=TEAM) for n in range(4))
GUEST: Final = Actor(id="U0GUEST", name="guest", team_id="T0OTHER")
APPROVERS: Final = frozenset({"U0P0", "U0P1", "U0P2"})
CHANNELS: Final = ("C0DESK", "C0CLOSED")

MAX_ROUNDS: Final = 4000

TIERS: Final = "KRW-BTC:5000=2"
LARGE: Final = Decimal(5000)

WAITING: Final = union_all(
    *(
        select(due, leased_until).where(due.is_not(None))
        for due, leased_until in (
            (cancel_requests.c.next_attempt_at, cancel_requests.c.leased_until),
            (cancel_requests.c.card_next_attempt_at, cancel_requests.c.card_leased_until),
            (notices.c.next_attempt_at, notices.c.leased_until),
        )
    )
)
"""When each thing that waits is due, and until when somebody may be at it."""

INVARIANTS: Final = (
    "every move of the audit is in the table, and the row is in the state that its moves lead to",
    "a request is approved by as many different approvers as it needs, denied by one, and never both",
    "nobody approves what they asked for, and nobody twice",
    "an order that is worth more than the rules say needs more approvals",
    "only who asked withdraws",
    "each DELETE that the exchange saw was announced by a committed cancel.sent with its nonce",
    "denied, withdrawn, expired and refused requests, and lapsed ones that were never sent, sent nothing",
    "superseded means filled or canceled at the exchange, and nothing was sent",
    "canceled means canceled at the exchange, filled means filled there",
    "by=this_request needs an accepted DELETE",
    "rejected means that no DELETE of ours took effect; and where the refusal proves nothing, that the order was open",
    "once the exchange can be asked, every acknowledged request ends",
    "an acknowledged approval is never forgotten: its request is decided",
    "a denial with a reason keeps it, in the row and in the audit",
    "who may still approve is reminded once at most, of what was audited, and not before half the time is over",
    "the card shows the state of the row; a verdict is in the thread at least once",
    "every card is where it was to go when the command was typed, and who typed it elsewhere is told",
    "verdicts are repeated only after a crash or a lost answer",
    "nobody is owed a private line for ever",
    "no transaction is open during a call",
    "the chain verifies",
)


class Crash(BaseException):
    """The process dies here."""


@dataclass
class Weather:
    """How likely each trouble is; fair weather has none."""

    crash: float = 0.0
    commit: float = 0.0
    exchange: float = 0.0
    slack: float = 0.0
    stall: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> "Weather":
        def some(most: float) -> float:
            return rng.choice((0.0, most / 4, most))

        return cls(crash=some(0.03), commit=some(0.03), exchange=some(0.5), slack=some(0.4), stall=some(0.03))


class StormyDatabase(Database):
    """The product's database, with a clock of the world's and commits that fail or are the last thing done."""

    def __init__(self, url: str, world: "World") -> None:
        super().__init__(url, clock=lambda _connection: world.now)
        self._world = world

    @contextmanager
    def write(self) -> Iterator[Connection]:
        world = self._world
        world.transactions += 1
        try:
            with super().write() as connection:
                yield connection
                world.may_crash("before commit")
                world.may_fail_to_commit()
        except BaseException:
            world.slack.forgotten()
            raise
        finally:
            world.transactions -= 1
        world.slack.unwritten = None
        if world.strikes(world.weather.commit / 2):
            world.count("answer to commit lost")
            raise CommitInDoubt("simulated, committed")
        world.may_crash("after commit")


@dataclass
class Book:
    """The truth about one order, and the DELETEs that came for it."""

    order: Order
    cancels_at: datetime | None = None
    nonces: list[str] = field(default_factory=list)
    effective: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)

    def is_resting(self) -> bool:
        """Open, and no cancel of it under way."""
        return self.order.is_open and self.cancels_at is None

    def settle(self, now: datetime) -> None:
        if self.cancels_at is not None and now >= self.cancels_at and self.order.is_open:
            self.order = replace(self.order, state="cancel", locked=Decimal(0))


class SimulatedExchange:
    """Upbit with moods, on virtual time. The Exchange of `bot.workflow`."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.books: dict[str, Book] = {}
        self.is_away = False

    def place(self, state: str = "wait") -> str:
        rng = self._world.rng
        order_uuid = str(uuid.UUID(int=rng.getrandbits(128), version=4))
        order = Order(
            uuid=order_uuid,
            side=rng.choice(("bid", "ask")),
            ord_type="limit",
            state=state,
            market=rng.choice(("KRW-BTC", "KRW-ETH")),
            created_at="2026-11-23T18:00:00+09:00",
            price=Decimal(1000),
            volume=Decimal(10),
            remaining_volume=Decimal(10),
            executed_volume=Decimal(0),
        )
        self.books[order_uuid] = Book(order=order)
        return order_uuid

    def get_order(self, uuid: str) -> LookAnswer:
        world = self._world
        world.call("exchange.get")
        call = Call(method="GET", path="/v1/order", nonce="look", query_hash="")
        trouble = self._trouble(call)
        if trouble is not None:
            return trouble
        book = self.books.get(uuid)
        if book is None or world.strikes(world.weather.exchange / 10):
            return Refused(name="order_not_found", proves_nothing_happened=False, call=call)
        book.settle(world.now)
        seen = Found(order=book.order, call=call)
        world.may_stall()
        return seen

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        """A list that may leave out an order, or be of a moment ago."""
        world = self._world
        world.call("exchange.get_many")
        call = Call(method="GET", path="/v1/orders/uuids", nonce="look", query_hash="")
        trouble = self._trouble(call)
        if trouble is not None:
            return trouble
        seen = []
        for order_uuid in uuids:
            book = self.books.get(order_uuid)
            if book is None or world.strikes(world.weather.exchange / 5):
                continue
            book.settle(world.now)
            is_lie = world.strikes(world.weather.exchange / 5)
            seen.append(replace(book.order, state="done") if is_lie else book.order)
        world.may_stall()
        return FoundOrders(orders=tuple(seen), call=call)

    def hold_s(self, method: Literal["GET", "DELETE"]) -> float:
        world = self._world
        if world.strikes(world.weather.exchange / 10):
            world.count(f"exchange holds {method}s back")
            return world.rng.choice((0.5, 20.0))
        return 0.0

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        return Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash=f"hash of {uuid}")

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        world = self._world
        world.call("exchange.cancel")
        call = Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash="")
        trouble = self._trouble(call)
        if isinstance(trouble, NotSent | Refused):
            return trouble
        book = self.books[uuid]
        if trouble is not None and world.rng.random() < 0.5:
            return trouble  # lost on the way there
        book.nonces.append(nonce)
        book.settle(world.now)
        answer = self._cancel(book, nonce, call)
        world.may_crash("after the DELETE")
        return answer if trouble is None else trouble  # or lost on the way back

    def _cancel(self, book: Book, nonce: str, call: Call) -> CancelAnswer:
        world, rng = self._world, self._world.rng
        if not book.is_resting():
            return Refused(name="order_not_found", proves_nothing_happened=False, call=call)
        answer = Accepted(order=book.order, call=call)
        if world.strikes(world.weather.exchange):
            fate = rng.choice(("fill", "part", "never", "late", "key", "nonce"))
            world.count(f"exchange {fate}")
            if fate == "key":
                return Refused(name="out_of_scope", proves_nothing_happened=True, call=call)
            if fate == "nonce":
                return Refused(name="nonce_used", proves_nothing_happened=False, call=call)
            if fate == "fill":
                self.fill(book, Decimal(10))
            if fate == "part":
                self.fill(book, Decimal(3))
            if fate == "late":
                book.cancels_at = world.now + timedelta(seconds=rng.uniform(5, 120))
        if book.is_resting() and not (world.storm and rng.random() < 0.03):
            book.cancels_at = world.now + timedelta(seconds=rng.choice((0.0, 0.2, 2.0)))
        book.accepted.append(nonce)
        if book.cancels_at is not None:
            book.effective.append(nonce)
        return answer

    @staticmethod
    def fill(book: Book, volume: Decimal) -> None:
        if not book.order.is_open:
            return
        executed = min(Decimal(10), (book.order.executed_volume or Decimal(0)) + volume)
        state = "done" if executed == Decimal(10) else "wait"
        book.order = replace(book.order, executed_volume=executed, remaining_volume=Decimal(10) - executed, state=state)

    def _trouble(self, call: Call) -> Refused | Unknown | NotSent | None:
        world, rng = self._world, self._world.rng
        if self.is_away:
            world.pass_time(rng.choice((0.0, 5.0)))
            return rng.choice((NotSent(cause="connect_failed", call=call), Unknown(cause="timeout", call=call)))
        if not world.strikes(world.weather.exchange):
            return None
        kind = rng.choice(("timeout", "http_500", "connect_failed", "429", "418"))
        world.count(f"exchange {kind}")
        if kind == "timeout":
            world.pass_time(5.0)
        if kind == "connect_failed":
            return NotSent(cause=kind, call=call)
        if kind == "429":
            return Refused(name="too_many_requests", proves_nothing_happened=True, call=call, retry_after_s=1.0)
        if kind == "418":
            return Refused(name="banned", proves_nothing_happened=True, call=call, retry_after_s=rng.uniform(5, 60))
        return Unknown(cause=kind, call=call)


class SimulatedQuotations:
    """The market's prices, where there are any. The Quotations of `bot.workflow`."""

    def __init__(self, world: "World") -> None:
        self._world = world

    def best_prices(self, market: str) -> BestPrices | NoPrices:
        world = self._world
        assert market in {"KRW-BTC", "KRW-ETH"}
        assert world.transactions == 0, "a transaction is open during exchange.quote"
        prices = BestPrices(bid=Decimal(990), ask=Decimal(1010))
        if world.seed % 6 != 1:  # by the seed and not by the dice, so that a world stays what it was
            return prices
        world.call("exchange.quote")
        if world.strikes(world.weather.exchange):
            world.pass_time(1.0)
            return NoPrices(cause="timeout")
        world.may_crash("after exchange.quote")
        return prices


class SimulatedSlack:
    """Cards and threads as people see them. The Messenger of `bot.workflow`."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self.cards: dict[tuple[str, str], tuple[int, State]] = {}
        self.verdicts: Counter[tuple[int, State]] = Counter()
        self.excused: Counter[int] = Counter()  # by request: what may have made somebody tell once more
        self.unwritten: tuple[int, State] | None = None  # told, and not yet written down
        self.reminders: Counter[int] = Counter()
        self.lines: list[Notice] = []
        self.is_away = False
        self._ts = 0

    def post_card(self, request: CancelRequest) -> Posted:
        lost = self._call("slack.post_card", request)
        if request.card_goes_to == "C0CLOSED":
            raise CannotPost("not_in_channel")
        self._ts += 1
        place = (request.card_goes_to, f"{self._ts}.000")
        self.cards[place] = (request.id, request.state)
        self._after(lost)
        return Posted(*place, permalink=None)

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        lost = self._call("slack.redraw_card", request)
        self.cards[channel_id, ts] = (request.id, request.state)
        self._after(lost)

    def post_verdict(self, request: CancelRequest) -> Posted:
        told = (request.id, request.state)
        lost = self._call("slack.post_verdict", request)
        self._ts += 1
        self.verdicts[told] += 1
        self.unwritten = told
        self._after(lost)
        return Posted(request.card_goes_to, f"{self._ts}.000", permalink=None)

    def forgotten(self) -> None:
        """What went wrong between Slack's answer and our commit excuses one repetition."""
        if self.unwritten is not None:
            self.excused[self.unwritten[0]] += 1
            self.unwritten = None

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        lost = self._call("slack.post_reminder", request)
        assert may_still_approve
        assert set(may_still_approve) <= APPROVERS - {request.requester.id}, "somebody is called who may not approve"
        self.reminders[request.id] += 1
        self._after(lost)

    def tell(self, notice: Notice) -> None:
        lost = self._call("slack.tell", notice.request)
        self.lines.append(notice)
        self._after(lost)

    def _call(self, name: str, request: CancelRequest | None) -> bool:
        """Whether the answer is going to be lost."""
        world = self._world
        stalls = world.faults["stall"]
        world.call(name)
        if request is not None:
            self.excused[request.id] += world.faults["stall"] - stalls  # somebody else may have told meanwhile
        if self.is_away:
            raise TryLater("away")
        if world.strikes(world.weather.slack):
            world.count("slack")
            if world.rng.random() < 0.5:
                retry_after_s = world.rng.choice((0.0, 1.0, 30.0))
                raise TryLater("ratelimited", retry_after_s=retry_after_s, nothing_done=True)
            return True
        return False

    def _after(self, lost: bool) -> None:  # noqa: FBT001 - whether the answer is lost
        if lost:
            self.forgotten()
            raise TryLater("answer lost")
        try:
            self._world.may_crash("after Slack")
        except Crash:
            self.forgotten()
            raise


class World:
    """One seeded history. `run` plays it, `check` judges it."""

    def __init__(self, seed: int, database_url: str, *, commands: int = 20) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.now = START
        self.transactions = 0
        self.faults: Counter[str] = Counter()
        self.weather = Weather()
        self.storm = False
        self.depth = 0
        self._commands_left = commands
        # By the seed and not by the dice, so that a world stays what it was.
        self.approvals_required = 2 if seed % 6 == 2 else 1
        self.tiers = parse_tiers(TIERS) if seed % 6 == 5 else ()
        self._triggers = 0
        self.acked: set[int] = set()
        self.approved_by_ack: set[tuple[int, str]] = set()
        self.exchange = SimulatedExchange(self)
        self.slack = SimulatedSlack(self)
        self.database = StormyDatabase(database_url, self)
        migrated(self.database)
        self.store = SqlStore(self.database)
        # In some worlds the replicas disagree on where cards go, as they do while new settings are rolled out.
        channels = ("C0CARDS", None) if seed % 6 == 3 else (None, None)
        self.replicas = [self._replica(approvals_channel_id) for approvals_channel_id in channels]

    def _replica(self, approvals_channel_id: str | None) -> CancelWorkflow:
        return CancelWorkflow(
            store=self.store,
            exchange=self.exchange,
            quotations=SimulatedQuotations(self),
            messenger=self.slack,
            policy=ApprovalPolicy(
                approvers=APPROVERS,
                approvals_required=self.approvals_required,
                tiers=self.tiers,
                max_open_requests_per_person=8,
            ),
            approval_ttl=timedelta(minutes=30),
            send_within=timedelta(minutes=5),
            approvals_channel_id=approvals_channel_id,
            new_nonce=lambda: f"nonce-{self.rng.getrandbits(64):016x}",
            monotonic=self._monotonic,
        )

    # Trouble

    def strikes(self, chance: float) -> bool:
        return chance > 0 and self.rng.random() < chance

    def count(self, fault: str) -> None:
        self.faults[fault] += 1

    def may_crash(self, where: str) -> None:
        if self.strikes(self.weather.crash):
            self.count(f"crash {where}")
            raise Crash(where)

    def may_fail_to_commit(self) -> None:
        if self.strikes(self.weather.commit):
            self.count("commit failed")
            raise self.rng.choice((NothingDone("simulated"), CommitInDoubt("simulated, not committed")))

    def call(self, name: str) -> None:
        assert self.transactions == 0, f"a transaction is open during {name}"
        self.may_crash(f"before {name}")
        self.may_stall()

    def may_stall(self) -> None:
        if self.strikes(self.weather.stall):
            self.count("stall")
            self._stand_still()

    def _stand_still(self) -> None:
        """This replica hangs past its lease, and the other one goes on meanwhile."""
        self.pass_time(self.rng.uniform(31, 60))
        if self.depth <= 1:
            self._work(rounds=3)

    def _monotonic(self) -> float:
        if self.strikes(self.weather.stall):
            self.count("stall before sending")
            if self.transactions == 0:
                self._stand_still()
        return (self.now - START).total_seconds()

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    # What happens

    def run(self) -> None:
        self.storm = True
        for _ in range(80):
            self.weather = Weather.drawn(self.rng)
            self._something_happens()
            self._work(rounds=self.rng.randint(0, 6))
        self.exchange.is_away = self.slack.is_away = self.storm = False
        self.weather = Weather()
        self._work(rounds=MAX_ROUNDS, until=self.now + timedelta(hours=3))

    def _something_happens(self) -> None:
        happenings: list[tuple[int, Callable[[], None]]] = [
            (6, self._command),
            (12, self._click),
            (1, self._fill),
            (1, self._cancel_elsewhere),
            (2, self._toggle_exchange),
            (2, self._toggle_slack),
            (1, self._jump),
            (1, self._click_and_stop),
            (2, self._settle),
        ]
        weights = [weight for weight, _ in happenings]
        self.rng.choices([act for _, act in happenings], weights)[0]()

    def _guarded(self, act: Callable[[], object]) -> bool:
        """Whether it came to its end: neither a crash nor an error of the database."""
        try:
            act()
        except (Crash, StoreError):
            return False
        return True

    def _command(self) -> None:
        if self._commands_left == 0:
            return
        self._commands_left -= 1
        rng = self.rng
        kind = rng.choices(("new", "known", "done", "cancel", "unknown"), (20, 3, 1, 1, 1))[0]
        known = [name for name, book in self.exchange.books.items() if book.is_resting()]
        if kind == "known" and known:
            order_uuid = rng.choice(known)
        elif kind == "unknown":
            order_uuid = str(uuid.UUID(int=rng.getrandbits(128)))
        else:
            order_uuid = self.exchange.place(kind if kind in {"done", "cancel"} else "wait")
        self._triggers += 1
        command = Command(
            trigger_id=f"trigger-{self._triggers}",
            requester=rng.choice(PEOPLE),
            team_id=TEAM,
            channel_id=rng.choices(CHANNELS, (29, 1))[0],
            response_url="http://127.0.0.1/response",
            order_uuid=order_uuid,
            reason="because",
        )
        for _ in range(rng.choice((1, 1, 2))):
            workflow = rng.choice(self.replicas)

            def ask(workflow: CancelWorkflow = workflow) -> None:
                answer = workflow.command(command, home_team=TEAM)
                if answer.request_id is not None:
                    self.acked.add(answer.request_id)

            self._guarded(ask)

    def _click(self) -> None:
        shown = list(self.slack.cards.items())
        if not shown:
            return
        for _ in range(self.rng.choice((1, 1, 2, 3))):
            (channel_id, ts), (request_id, _) = self.rng.choice(shown[-6:])
            kind = self.rng.choice((DecisionKind.APPROVE,) * 8 + (DecisionKind.DENY, DecisionKind.WITHDRAW))
            is_form = kind is DecisionKind.DENY and request_id % 2 == 1
            click = Click(
                kind=kind,
                is_form=is_form,
                reason="it is right" if is_form else "",
                request_id=self.rng.choice((request_id,) * 9 + (999,)),
                actor=self.rng.choice((*PEOPLE, *PEOPLE, GUEST)),
                team_id=TEAM,
                channel_id=channel_id,
                message_ts=ts,
                response_url="http://127.0.0.1/response",
                trigger_id=None,
            )
            workflow = self.rng.choice(self.replicas)

            def press(workflow: CancelWorkflow = workflow, click: Click = click) -> None:
                if workflow.click(click) is None and click.kind is DecisionKind.APPROVE:
                    assert click.request_id is not None
                    self.approved_by_ack.add((click.request_id, click.actor.id))

            self._guarded(press)

    def _click_and_stop(self) -> None:
        """A click is acknowledged, then every replica is down for a while."""
        self._click()
        self.count("downtime")
        self.pass_time(self.rng.choice((40, 400, 700)))

    def _fill(self) -> None:
        if self.exchange.books:
            book = self.rng.choice(list(self.exchange.books.values()))
            book.settle(self.now)
            self.exchange.fill(book, Decimal(self.rng.choice((1, 4, 10))))

    def _cancel_elsewhere(self) -> None:
        if self.exchange.books:
            book = self.rng.choice(list(self.exchange.books.values()))
            if book.is_resting():
                book.cancels_at = self.now

    def _toggle_exchange(self) -> None:
        self.exchange.is_away = self.rng.random() < 0.2
        self.count("exchange away")

    def _toggle_slack(self) -> None:
        self.slack.is_away = self.rng.random() < 0.25
        self.count("slack away")

    def _jump(self) -> None:
        self.count("clock jump")
        self.pass_time(self.rng.choices((1, 8, 25, 40, -5, -600, 400, 700, 2000), (4, 4, 4, 4, 2, 1, 1, 1, 1))[0])

    def _settle(self) -> None:
        unresolved = self._ids_in(State.UNRESOLVED)
        if unresolved:
            request_id = self.rng.choice(unresolved)

            def look() -> None:
                try:
                    settle(
                        self.store,
                        request_id,
                        verdict=Verdict.OPEN,
                        reason="looked",
                        actor=Actor(id="cli:operator"),
                    )
                except IllegalTransition:
                    return

            self._guarded(look)

    def _work(self, *, rounds: int, until: datetime | None = None) -> None:
        """Let the replicas do what is due; where nothing is, let time pass to when something is."""
        self.depth += 1
        for _ in range(rounds):
            try:
                due = self.store.due(limit=50)
            except (Crash, StoreError):
                continue
            jobs: list[tuple[Any, ...]] = [
                *(("advance", request_id) for request_id in due.exchange),
                *(("show", request_id) for request_id in due.slack),
                *(("deliver", notice_id) for notice_id in due.notices),
                *(("refresh",) for _ in range(due.refresh)),
            ]
            self.rng.shuffle(jobs)
            for verb, *job_ids in jobs[: 50 if until else 4]:
                run = getattr(self.rng.choice(self.replicas), verb)
                self._guarded(partial(run, *job_ids))
            if jobs:
                continue
            next_due = self._next_due()
            if until is not None and (next_due is None or next_due > until):
                break
            self.now = max(self.now, min(next_due or self.now, self.now + timedelta(seconds=60)))
            self.pass_time(0.01)
        self.depth -= 1

    def _next_due(self) -> datetime | None:
        with self.database.read() as connection:
            times = [max(filter(None, row)) for row in connection.execute(WAITING)]
        return min(times, default=None)

    def _ids_in(self, *states: State) -> list[int]:
        with self.database.read() as connection:
            return list(
                connection.execute(
                    select(cancel_requests.c.id).where(cancel_requests.c.state.in_([state.value for state in states]))
                ).scalars()
            )

    # What must hold

    def visited(self) -> set[State]:
        """Every state that some request has been in."""
        return {State(event["details"]["state"]) for event in self._moves()} | (
            {State.REQUESTED} if self.acked else set()
        )

    def requests(self) -> list[CancelRequest]:
        with self.database.read() as connection:
            ids = list(connection.execute(select(cancel_requests.c.id).order_by(cancel_requests.c.id)).scalars())
        return [request for request_id in ids if (request := self.store.read(request_id)) is not None]

    def count_events(self) -> int:
        """How many events the audit holds."""
        return len(self._events())

    def _events(self) -> list[dict[str, Any]]:
        return AuditLog(self.database).list(Filter(), limit=1_000_000, newest_first=False)

    def _moves(self) -> list[dict[str, Any]]:
        created = Action.REQUEST_CREATED.value
        return [event for event in self._events() if event["action"] in set(TRANSITIONS) and event["action"] != created]

    def check(self) -> None:
        """Raises AssertionError that names the seed."""
        story = defaultdict(list)
        for event in self._events():
            if event["request_id"] is not None:
                story[event["request_id"]].append(event)
        for request in self.requests():
            try:
                self._check_moves(request, story[request.id])
                self._check_approvals(request, story[request.id])
                self._check_truth(request, story[request.id])
                self._check_shown(request)
                self._check_reminder(request, story[request.id])
                self._check_reasons(request, story[request.id])
            except AssertionError as error:
                told = "\n".join(
                    f"{event['occurred_at']} {event['action']} {event['details']}" for event in story[request.id]
                )
                raise AssertionError(
                    f"seed {self.seed}, request {request.id} ({request.state}): {error}\n{told}"
                ) from None
        self._check_whole(story)

    @staticmethod
    def _check_moves(request: CancelRequest, events: list[dict[str, Any]]) -> None:
        state: State | None = None
        witness: Witness | None = None
        for event in events:
            action = Action(event["action"])
            if action not in TRANSITIONS:
                continue
            sources, target = TRANSITIONS[action]
            assert state in sources or (state is None and not sources), f"{action} from {state}"
            state = target
            witness = Witness(seq=event["seq"], hash=event["hash"]) if state in VERDICT_STATES else None
        assert request.witness == witness, "its summary is witness of another event"
        assert state is request.state, f"moves lead to {state}"
        withdrawn = [event for event in events if event["action"] == "request.withdrawn"]
        decided = [event for event in events if event["action"] in {"request.approved", "request.denied"}]
        assert len(decided) + len(withdrawn) <= 1, "two decisions"
        assert all(event["actor"] == request.requester.id for event in withdrawn), "withdrawn by somebody else"
        assert all(event["actor"] in APPROVERS for event in decided), "decided by somebody who may not"
        times = [event["occurred_at"] for event in events]
        assert times == sorted(times), "time runs backwards"

    def _check_approvals(self, request: CancelRequest, events: list[dict[str, Any]]) -> None:
        voters = [event["actor"] for event in events if event["action"] in {"approval.recorded", "request.approved"}]
        assert len(voters) == len(set(voters)), "somebody approved twice"
        assert set(voters) <= APPROVERS - {request.requester.id}, "approved by somebody who may not"
        assert voters == [each.actor.id for each in request.decided(DecisionKind.APPROVE)], "an approval was lost"
        approved = any(event["action"] == "request.approved" for event in events)
        assert len(voters) >= request.approvals_required if approved else len(voters) < request.approvals_required, (
            f"{len(voters)} approvals of {request.approvals_required}"
        )
        acknowledged = {person for request_id, person in self.approved_by_ack if request_id == request.id}
        assert acknowledged <= set(voters), "an approval was forgotten"
        if request.order is not None:
            assert request.approvals_required == self._needed(request.order), "it needed another number of approvals"

    def _needed(self, order: Order) -> int:
        assert order.price is not None
        assert order.remaining_volume is not None
        is_large = order.market == "KRW-BTC" and order.price * order.remaining_volume > LARGE
        return 2 if self.tiers and is_large else self.approvals_required

    def _check_truth(self, request: CancelRequest, events: list[dict[str, Any]]) -> None:
        state = request.state
        assert state in ENDED_STATES, "it never ended"
        sent = {event["details"]["nonce"] for event in events if event["action"] == "cancel.sent"}
        book = self.exchange.books.get(request.order_uuid)
        effective = sent & set(book.effective) if book else set()
        arrived = sent & set(book.nonces) if book else set()
        if state in {State.DENIED, State.WITHDRAWN, State.SUPERSEDED, State.EXPIRED, State.REFUSED} or (
            state is State.LAPSED and request.sends == 0
        ):
            assert not arrived, "it sent a DELETE"
        if state is State.SUPERSEDED:
            assert book is not None
            assert book.order.state in {"cancel", "done"}, f"the exchange says {book.order.state}"
        if state in {State.CANCELED, State.FILLED}:
            assert book is not None
            wanted = "cancel" if state is State.CANCELED else "done"
            assert book.order.state == wanted, f"the exchange says {book.order.state}"
        if state is State.REJECTED:
            assert not effective, "a DELETE took effect"
            rejected = next(event["details"] for event in events if event["action"] == "cancel.rejected")
            if rejected["error"] in {"order_not_found", "nonce_used"}:
                assert rejected["order"]["state"] == "wait", "nobody had seen the order open"
        if state is State.CANCELED and request.canceled_by == "this_request":
            assert book is not None
            assert sent & set(book.accepted), "no DELETE of it was accepted"

    def _check_reminder(self, request: CancelRequest, events: list[dict[str, Any]]) -> None:
        announced = [event for event in events if event["action"] == "reminder.sent"]
        assert self.slack.reminders[request.id] <= len(announced) <= 1, (
            f"reminded {self.slack.reminders[request.id]} times"
        )
        if announced:
            assert request.opened_at is not None
            assert request.reminded_at is not None
            assert request.reminded_at - request.opened_at >= timedelta(minutes=15), "reminded too early"

    @staticmethod
    def _check_reasons(request: CancelRequest, events: list[dict[str, Any]]) -> None:
        kept = [each.reason or None for each in request.decided(DecisionKind.DENY)]
        assert kept == [event["reason"] for event in events if event["action"] == "request.denied"], "a reason was lost"

    def _check_shown(self, request: CancelRequest) -> None:
        if request.card_ts is not None:
            assert request.card_channel_id is not None
            shown = self.slack.cards[request.card_channel_id, request.card_ts]
            assert shown == (request.id, request.state), f"the card shows {shown}"
            places = {channel_id for (channel_id, _), (of, _) in self.slack.cards.items() if of == request.id}
            assert places == {request.card_goes_to}, f"its cards are in {places}"
            assert self._told(request, NoticeKind.CARD_ELSEWHERE) == request.is_card_elsewhere, "who told where it is?"
        if request.state in VERDICT_STATES:
            told = (request.id, request.state)
            posted = self.slack.verdicts[told]
            assert posted <= 1 + self.slack.excused[request.id], f"told {posted} times for no reason"
            assert posted >= 1 or self._told(request, NoticeKind.VERDICT), "nobody was told how it ended"

    def _told(self, request: CancelRequest, kind: NoticeKind) -> bool:
        return any(
            line.kind is kind and line.request is not None and line.request.id == request.id
            for line in self.slack.lines
        )

    def _check_whole(self, story: dict[int, list[dict[str, Any]]]) -> None:
        seed = f"seed {self.seed}"
        for request_id in self.acked:
            assert request_id in story, f"{seed}: acknowledged request {request_id} is gone"
        announced = {
            (event["order_uuid"], event["details"]["nonce"])
            for events in story.values()
            for event in events
            if event["action"] == "cancel.sent"
        }
        for order_uuid, book in self.exchange.books.items():
            for nonce in book.nonces:
                assert (order_uuid, nonce) in announced, f"{seed}: a DELETE without its cancel.sent"
            assert len(book.nonces) == len(set(book.nonces)), f"{seed}: a DELETE was sent twice with one nonce"
        with self.database.read() as connection:
            owed = connection.execute(select(notices.c.id).where(notices.c.next_attempt_at.is_not(None))).all()
        assert not owed, f"{seed}: somebody is still owed a line"
        verification = verify(self.database)
        assert verification.fault is None, f"{seed}: {verification.fault}"
        assert json.dumps(dict(self.faults))

    def close(self) -> None:
        self.database.close()


def simulate(seed: int, database_url: str) -> World:
    """Play and judge one world."""
    world = World(seed, database_url)
    try:
        world.run()
        world.check()
    finally:
        world.close()
    return world
