"""Reconciling with the exchange: what is asked of it, what is made of its answers, and what is written down."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from builders import START, HandClock, call, create, create_pending, execute, order, order_uuid, present, walk
from click.testing import CliRunner, Result
from databases import migrated
from hypothesis import given
from hypothesis import strategies as st
from journey import Mode, started
from postgresql import Postgresql
from test_security import AUDITOR_MAY, BOT_MAY, account

from bot.__main__ import main
from bot.audit.reconcile import (
    DEADLINE_S,
    MAX_RECORDED_FINDINGS,
    PACE_S,
    CannotRecord,
    NoSpan,
    Reconciliation,
    Unread,
    _Reading,
    reconcile,
)
from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.recorded_ends import RecordedEnds
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.answer import FoundOrders, NotSent, OrdersAnswer, Refused, Unknown
from bot.domain.audit import Action, Actor, Outcome
from bot.domain.cancel_request import CancelRequest, State
from bot.domain.event_filter import Filter
from bot.domain.order import Order
from bot.domain.reconciliation import Kind
from bot.playground.demo import BEN, DANA
from bot.playground.exchange import Exchange, Key, Mood
from bot.settings import Settings
from bot.upbit.client import UpbitClient

OPS = Actor(id="cli:ops")
DAY = timedelta(days=1)


class Seconds:
    """Seconds that pass only while somebody waits; the exchange's clock, and the client's, go by them."""

    def __init__(self, now: datetime = START) -> None:
        self.passed = 0.0
        self.waits: list[float] = []
        self._began_at = now.timestamp()

    def wait(self, for_s: float) -> None:
        self.waits.append(for_s)
        self.passed += for_s

    def monotonic(self) -> float:
        return self.passed

    def time(self) -> float:
        return self._began_at + self.passed


class World:
    """A database and an exchange whose clocks are set by hand, and the bot's own client between them."""

    def __init__(
        self, database: Database, exchange: Exchange, client: UpbitClient, *, seconds: Seconds, clock: HandClock
    ) -> None:
        self.database = database
        self.clock = clock
        self.store = SqlStore(database)
        self.exchange = exchange
        self.client = client
        self.seconds = seconds

    def reconcile(
        self, *, since: datetime = START - DAY, until: datetime | None = None, **limits: int
    ) -> Reconciliation:
        return reconcile(
            self.database,
            self.client,
            since=since,
            until=until,
            actor=OPS,
            monotonic=self.seconds.monotonic,
            pause=self.seconds.wait,
            **limits,
        )

    def place(self, *, created_at: datetime = START - timedelta(hours=1), **fields: Any) -> str:
        return self.exchange.place(created_at=created_at.isoformat(), **fields)

    def canceled(self, *, created_at: datetime = START - timedelta(hours=1), **fields: Any) -> str:
        """An order that somebody has canceled at the exchange itself."""
        return self.place(created_at=created_at, state="cancel", **fields)

    def asked(self, uuid: str, *actions: Action, **changes: Any) -> CancelRequest:
        """A request that went through these transitions, the last with these changes."""
        request = create_pending(self.store, order_uuid=uuid)
        walk(self.store, request.id, *actions[:-1])
        with self.store.transaction(request.id) as tx:
            sent = {"sends": 1} if Action.CANCEL_SENT in actions else {}
            return tx.move(actions[-1], **{"ended_at": tx.now, **sent, **changes})

    def ended_canceled(self, uuid: str, **changes: Any) -> CancelRequest:
        """A request of which everything is recorded as the exchange shows it."""
        return self.asked(
            uuid,
            *(Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.CANCEL_ACCEPTED, Action.ORDER_CANCELED),
            canceled_by="this_request",
            **({} if "order_now" in changes else {"order_now": self.shown(uuid)}),
            **changes,
        )

    def shown(self, uuid: str) -> Order:
        return Order.from_json({**self.exchange.order(uuid), "state": "cancel"})

    def event(self) -> dict[str, Any]:
        (event,) = AuditLog(self.database).list(Filter(action="audit.reconciled"), limit=2)
        return dict(event)

    @property
    def windows(self) -> list[tuple[datetime, datetime]]:
        """What the exchange was asked for, in whole milliseconds."""
        asked = [each.fields for each in self.exchange.requests if each.path == "/v1/orders/closed"]
        return [(_moment(each["start_time"]), _moment(each["end_time"])) for each in asked]


def _moment(milliseconds: str) -> datetime:
    return datetime.fromtimestamp(int(milliseconds) / 1000, UTC)


@contextmanager
def world_of(url: str, *, now: datetime = START) -> Iterator[World]:
    seconds, clock = Seconds(now), HandClock(now)
    database = Database(url, clock=clock)
    migrated(database)
    with Exchange(now=seconds.time, requests_per_s=30) as exchange:
        client = UpbitClient(
            server_url=exchange.url,
            access_key=Key().access_key,
            secret_key=Key().secret_key,
            monotonic=seconds.monotonic,
        )
        try:
            yield World(database, exchange, client, seconds=seconds, clock=clock)
        finally:
            client.close()
            database.close()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with world_of(f"sqlite:///{tmp_path / 'cancels.db'}") as opened:
        yield opened


@pytest.fixture
def both_worlds(database_url: str) -> Iterator[World]:
    """Once on each kind of database."""
    with world_of(database_url) as opened:
        yield opened


def kinds(made: Reconciliation) -> dict[str, Kind]:
    return {finding.order_uuid: finding.kind for finding in made.findings}


# --- What is found --------------------------------------------------------------------------------------------------


def test_each_kind_of_finding_is_found_and_nothing_else(both_worlds: World) -> None:
    """The whole of the comparison, on both databases: what is in order is not mentioned."""
    world = both_worlds
    fine = world.canceled()
    world.ended_canceled(fine)
    filled = world.place(state="done", executed_volume="0.01", remaining_volume="0")
    world.asked(
        filled,
        *(Action.REQUEST_APPROVED, Action.CANCEL_SENT, Action.ORDER_FILLED),
        order_now=Order.from_json(world.exchange.order(filled)),
    )
    denied = world.place()
    world.asked(denied, Action.REQUEST_DENIED)

    unasked, past_denial = world.canceled(), world.canceled()
    refused = world.asked(past_denial, Action.REQUEST_DENIED)
    own_rule = world.canceled(ord_type="best", time_in_force="ioc")
    not_canceled = world.place(state="done")
    wrong = world.ended_canceled(not_canceled)
    gone = order_uuid()
    lost = world.ended_canceled(gone, order_now=order(uuid=gone, state="cancel"))
    pending = create_pending(world.store)

    world.clock.advance(5)
    made = world.reconcile()

    assert {(finding.kind, finding.order_uuid, finding.request_id) for finding in made.findings} == {
        (Kind.UNASKED, unasked, None),
        (Kind.UNASKED, past_denial, refused.id),
        (Kind.BY_THE_EXCHANGE, own_rule, None),
        (Kind.DIFFERS, not_canceled, wrong.id),
        (Kind.NOT_FOUND, gone, lost.id),
        (Kind.NOT_OVER, pending.order_uuid, pending.id),
    }
    assert (made.canceled_on_exchange, made.requests, made.outcome) == (4, 6, Outcome.FAILED)
    event = world.event()
    details = event["details"]
    assert (event["actor"], event["outcome"]) == ("cli:ops", "failed")
    counts = {"unasked": 2, "differs": 1, "not_found": 1, "by_the_exchange": 1, "not_over": 1}
    span = {"since": "2026-11-22T09:00:00.000000Z", "until": "2026-11-23T09:00:05.000000Z"}
    assert details == {
        **span,
        **counts,
        "canceled_on_exchange": 4,
        "requests": 6,
        "findings": details["findings"],
    }
    assert {tuple(each) for each in details["findings"]} == {
        ("exchange", "kind", "order_uuid", "recorded", "request_id")
    }
    assert len(details["findings"]) == 6
    assert verify(world.database).fault is None


def test_nothing_wrong_is_written_down_as_well(world: World) -> None:
    """That it was compared, and was fine, is what a reviewer wants to see for every night."""
    world.ended_canceled(world.canceled())
    pending = create_pending(world.store)
    world.clock.advance(5)
    made = world.reconcile()
    assert kinds(made) == {pending.order_uuid: Kind.NOT_OVER}
    assert (made.is_wrong, made.outcome, world.event()["outcome"]) == (False, Outcome.OK, "ok")


def test_a_request_of_any_time_accounts_for_its_order(world: World) -> None:
    """An order near the edge of the span is matched by its uuid: the exchange's clock is not ours."""
    uuid = world.canceled(created_at=START - timedelta(minutes=30))
    world.ended_canceled(uuid, ended_at=START + timedelta(hours=9))
    assert not world.reconcile(until=START - timedelta(minutes=1)).findings


def test_orders_from_before_the_span_are_looked_up_by_their_requests(world: World) -> None:
    """The list goes by the time of creation; an old order that was canceled yesterday is not in yesterday's list."""
    old = [world.canceled(created_at=START - 30 * DAY, volume="0.01") for _ in range(105)]
    for uuid in old:
        world.ended_canceled(uuid, ended_at=START - timedelta(hours=2))
    done = world.place(created_at=START - 30 * DAY, state="done")
    wrong = world.ended_canceled(done, ended_at=START - timedelta(hours=2))
    before = world.place(created_at=START - 30 * DAY, state="done")
    world.ended_canceled(before, ended_at=START - 2 * DAY)
    after = world.place(created_at=START - 30 * DAY, state="done")
    world.ended_canceled(after, ended_at=START - timedelta(hours=1))

    made = world.reconcile(until=START - timedelta(hours=1))

    assert [(finding.kind, finding.request_id) for finding in made.findings] == [(Kind.DIFFERS, wrong.id)]
    looks = [len(each.uuids) for each in world.exchange.requests if each.path == "/v1/orders/uuids"]
    assert looks == [100, 6]


def test_a_request_whose_order_nobody_was_shown_is_not_looked_up(world: World) -> None:
    """A slip in a uuid was refused at once; that the exchange does not know it is no news."""
    request = create(world.store)
    with world.store.transaction(request.id) as tx:
        tx.move(Action.REQUEST_REFUSED, outcome=Outcome.REFUSED, ended_at=START - timedelta(hours=1))
    assert not world.reconcile().findings


def test_a_cancel_whose_outcome_is_not_recorded_yet_is_ours(world: World) -> None:
    """The bot may be at work while it is compared."""
    uuid = world.canceled()
    request = world.asked(uuid, Action.REQUEST_APPROVED, Action.CANCEL_SENT, ended_at=None)
    assert present(world.store.read(request.id)).state is State.SENDING
    world.clock.advance(5)
    assert [finding.kind for finding in world.reconcile(until=START + DAY).findings] == [Kind.NOT_OVER]


def test_what_is_wrong_goes_into_the_event_first_and_no_event_grows_without_end(world: World) -> None:
    """All are counted and shown; an event has to be read for years, and hashed at every verification."""
    for _ in range(MAX_RECORDED_FINDINGS):
        world.canceled(ord_type="market")
    unasked = [world.canceled() for _ in range(10)]
    made = world.reconcile()
    details = world.event()["details"]
    assert len(made.findings) == MAX_RECORDED_FINDINGS + 10
    assert len(details["findings"]) == MAX_RECORDED_FINDINGS
    assert {each["order_uuid"] for each in details["findings"][:10]} == set(unasked)
    assert (details["unasked"], details["by_the_exchange"]) == (10, MAX_RECORDED_FINDINGS)


def test_many_requests_are_read_in_pieces(both_worlds: World) -> None:
    """No statement may take longer than the database allows, however long the bot has been at work."""
    database = both_worlds.database
    made = [create_pending(both_worlds.store) for _ in range(3)]
    execute(database, f"UPDATE cancel_requests SET id = 45000 WHERE id = {made[2].id}")
    execute(database, "UPDATE cancel_requests SET state = 'denied', ended_at = created_at WHERE id <> 2")
    pieces = list(RecordedEnds(database).ended(since=START, until=START + DAY))
    assert [len(each) for each in pieces] == [1, 0, 0, 0, 1]
    assert [each.request_id for each in RecordedEnds(database).not_over(until=START + DAY)] == [2]
    found = RecordedEnds(database).of_orders([made[0].order_uuid, *(order_uuid() for _ in range(1200))])
    assert found.keys() == {made[0].order_uuid}


# --- What is asked --------------------------------------------------------------------------------------------------


def test_the_windows_leave_no_gap_and_no_order_comes_twice(world: World) -> None:
    """Each has 7 days at most, overlaps its neighbours, and never goes beyond now, which Upbit may not take."""
    since = START - 30 * DAY
    borders = [since + n * timedelta(days=7, seconds=-2) for n in range(5)]
    near = [border + timedelta(seconds=n) for border in borders for n in (-1, 0, 1)]
    placed = {world.canceled(created_at=moment): moment for moment in (*near, START - timedelta(seconds=1))}

    made = world.reconcile(since=since)

    inside = {uuid for uuid, moment in placed.items() if moment >= since}
    assert sorted(finding.order_uuid for finding in made.findings) == sorted(inside)
    assert made.canceled_on_exchange == len(inside)
    windows = world.windows
    assert len(windows) == 5
    assert windows[0][0] < since
    assert windows[-1][1] == START
    assert all(timedelta(0) < end - begin <= 7 * DAY for begin, end in windows)
    assert all(later[0] < earlier[1] for earlier, later in pairwise(windows))


def test_a_full_window_is_read_in_parts(world: World) -> None:
    """An answer as long as the limit may have hidden some; the longer window comes back where little is canceled."""
    busy = START - 20 * DAY
    placed = {world.canceled(created_at=busy + n * timedelta(minutes=7)) for n in range(40)}
    made = world.reconcile(since=START - 30 * DAY, page_orders=8)
    assert {finding.order_uuid for finding in made.findings} == placed
    assert len(made.findings) == 40
    assert world.windows[-1][1] - world.windows[-1][0] > DAY
    assert len(world.windows) < 60


def test_more_than_one_answer_holds_within_a_second_is_no_fine(world: World) -> None:
    """There is no way to ask for the others; what cannot be read is said, and nothing called fine."""
    for _ in range(5):
        world.canceled()
    made = world.reconcile(page_orders=5)
    assert present(made.unread).error == "too_many_orders"
    assert (made.outcome, world.event()["outcome"]) == (Outcome.UNKNOWN, "unknown")


class ListedOnly:
    """An exchange that lists the orders of these seconds, by rules about the ends that nobody has documented."""

    def __init__(self, created: Sequence[int], *, takes_start: bool, takes_end: bool) -> None:
        self._orders = [
            order(
                uuid=f"00000000-0000-4000-8000-{number:012x}",
                state="cancel",
                created_at=(START + timedelta(seconds=at)).isoformat(),
            )
            for number, at in enumerate(sorted(created))
        ]
        self._takes_start, self._takes_end = takes_start, takes_end

    def get_canceled_orders(self, *, created_from: datetime, created_to: datetime, limit: int) -> OrdersAnswer:
        assert timedelta(0) <= created_to - created_from <= 7 * DAY
        shown = [each for each in self._orders if self._is_in(each, created_from, created_to)][:limit]
        return FoundOrders(orders=tuple(shown), listed=len(shown), call=call())

    def _is_in(self, each: Order, created_from: datetime, created_to: datetime) -> bool:
        at = datetime.fromisoformat(each.created_at)
        return created_from < at < created_to or (
            (self._takes_start and at == created_from) or (self._takes_end and at == created_to)
        )

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        raise AssertionError("nothing is looked up here")


@given(
    created=st.lists(st.integers(0, 40 * 86_400 - 1) | st.integers(604_700, 604_900), max_size=60, unique=True),
    page_orders=st.integers(4, 30),
    takes_start=st.booleans(),
    takes_end=st.booleans(),
)
def test_every_order_of_the_span_comes_once_whatever_the_ends_mean(
    created: list[int], page_orders: int, *, takes_start: bool, takes_end: bool
) -> None:
    """Inclusive or exclusive is not documented; a gap would hide a cancel, and a double would invent one."""
    exchange = ListedOnly(created, takes_start=takes_start, takes_end=takes_end)
    seconds = Seconds()
    until = START + 40 * DAY
    reading = _Reading(exchange, now=until, monotonic=seconds.monotonic, pause=seconds.wait, page_orders=page_orders)
    came = [each.created_at for orders in reading.canceled(since=START, until=until) for each in orders]
    assert sorted(came) == sorted((START + timedelta(seconds=at)).isoformat() for at in created)


def test_an_order_whose_time_cannot_be_read_is_compared_all_the_same(world: World) -> None:
    """Passing it over would hide a cancel."""

    class Odd(ListedOnly):
        def get_canceled_orders(self, *, created_from: datetime, created_to: datetime, limit: int) -> OrdersAnswer:
            odd = order(uuid=order_uuid(), state="cancel", created_at="some day")
            return FoundOrders(orders=(odd,), listed=1, call=call())

    exchange = Odd([], takes_start=True, takes_end=True)
    reading = _Reading(exchange, now=START, monotonic=world.seconds.monotonic, pause=world.seconds.wait, page_orders=10)
    (orders,) = reading.canceled(since=START - DAY, until=START)
    assert [each.created_at for each in orders] == ["some day"]


# --- When the exchange does not answer ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mood", "options", "error", "told"),
    [
        (Mood.HTTP_500, {}, "http_500", "no answer to rely on: http_500"),
        (Mood.DROP_BEFORE, {}, "connection_lost", "no answer to rely on"),
        (Mood.TRUNCATED, {}, "connection_lost", "no answer to rely on"),
        (Mood.HTML_200, {}, "not_json", "no answer to rely on: not_json"),
        (Mood.RATELIMITED_429, {}, "too_many_requests", "too many requests reach it"),
        (Mood.BANNED_418, {"seconds": 90.0}, "banned", "banned this address or account for 90 s"),
        (Mood.REFUSE, {"status": 401, "name": "expired_access_key"}, "expired_access_key", "refused: expired_access"),
        (Mood.REFUSE, {"status": 401, "name": "out_of_scope"}, "out_of_scope", "give it 주문조회"),
    ],
)
@pytest.mark.parametrize("path", ["closed", "uuids"])
def test_what_could_not_be_read_whole_is_never_fine(
    world: World, *, path: str, mood: Mood, options: dict[str, Any], error: str, told: str
) -> None:
    """Half a list without a finding looks like a list without a finding."""
    old = world.canceled(created_at=START - 30 * DAY)
    world.ended_canceled(old, ended_at=START - timedelta(hours=2))
    world.exchange.set_mood(f"GET /v1/orders/{path}", mood, **options)

    made = world.reconcile()

    assert present(made.unread).error == error
    assert told in str(made.unread)
    assert made.outcome is Outcome.UNKNOWN
    event = world.event()
    assert (event["outcome"], event["details"]["error"]) == ("unknown", error)


def test_what_was_found_before_it_broke_off_is_kept(world: World) -> None:
    """A cancel that nobody asked for is one, whatever could not be read after it."""
    unasked = world.canceled(created_at=START - 20 * DAY)
    world.exchange.on_request = lambda request: (
        world.exchange.set_mood("GET", Mood.HTTP_500) if len(world.exchange.requests) == 3 else None
    )
    made = world.reconcile(since=START - 30 * DAY)
    assert made.unread is not None
    assert kinds(made) == {unasked: Kind.UNASKED}
    assert world.event()["details"]["unasked"] == 1


@pytest.mark.parametrize("mood", [Mood.HTTP_500, Mood.DROP_AFTER, Mood.RATELIMITED_429])
def test_what_passes_is_waited_for(world: World, mood: Mood) -> None:
    """A look may be repeated; a nightly run should not fail for one lost answer."""
    unasked = world.canceled()
    world.exchange.set_mood("GET", mood, times=2)
    made = world.reconcile()
    assert made.unread is None
    assert kinds(made) == {unasked: Kind.UNASKED}


def test_it_asks_no_faster_than_leaves_the_exchange_to_the_bot(world: World) -> None:
    """The limit is the account's; a cancel must not wait for a comparison."""
    world.reconcile(since=START - 365 * DAY)
    asked = [each.at for each in world.exchange.requests]
    assert len(asked) == 53
    assert min(later - earlier for earlier, later in pairwise(asked)) >= PACE_S - 1e-6
    assert set(world.exchange.statuses()) == {200}


def test_it_gives_up_in_time() -> None:
    """A job that never ends is one that nobody looks at."""

    class AlwaysHeld(ListedOnly):
        def get_canceled_orders(self, *, created_from: datetime, created_to: datetime, limit: int) -> OrdersAnswer:
            return NotSent(cause="reserved", retry_after_s=DEADLINE_S / 3, call=call())

    seconds = Seconds()
    exchange = AlwaysHeld([], takes_start=True, takes_end=True)
    reading = _Reading(exchange, now=START, monotonic=seconds.monotonic, pause=seconds.wait, page_orders=10)
    with pytest.raises(Unread, match="30 minutes") as caught:
        list(reading.canceled(since=START - DAY, until=START))
    assert caught.value.error == "deadline"
    assert seconds.passed <= DEADLINE_S


@pytest.mark.parametrize(
    "answer",
    [Unknown(cause="too_large", call=call()), Refused(name="x", proves_nothing_happened=True, call=call())],
)
def test_an_answer_that_is_too_large_is_asked_for_in_parts_and_one_of_orders_by_uuid_is_not(
    answer: Unknown | Refused,
) -> None:
    """A window can be halved; a hundred named orders cannot be that large."""

    class TooLarge(ListedOnly):
        def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
            return answer

        def get_canceled_orders(self, *, created_from: datetime, created_to: datetime, limit: int) -> OrdersAnswer:
            if created_to - created_from > DAY:
                return Unknown(cause="too_large", call=call())
            return super().get_canceled_orders(created_from=created_from, created_to=created_to, limit=limit)

    seconds = Seconds()
    exchange = TooLarge([5, 86_400, 3 * 86_400], takes_start=True, takes_end=True)
    until = START + 7 * DAY
    reading = _Reading(exchange, now=until, monotonic=seconds.monotonic, pause=seconds.wait, page_orders=10)
    assert sum(map(len, reading.canceled(since=START, until=until))) == 3
    with pytest.raises(Unread):
        reading.looked_up([order_uuid()])


# --- Who may --------------------------------------------------------------------------------------------------------


def test_an_account_that_may_only_read_is_refused_before_the_exchange_is_asked(postgresql: Postgresql) -> None:
    """A comparison of which nothing is written down did not happen, to whoever asks a year later."""
    with world_of(postgresql.create()) as world:
        url = account(world.database, "auditor", {**AUDITOR_MAY, "cancel_requests": "SELECT"})
        result = bot("audit", "reconcile", "--since", "2026-11-01", **environ(world.exchange, url))
        assert result.exit_code == 1
        assert "use the bot's account" in result.output
        assert not world.exchange.requests
        world.database = Database(url)
        with pytest.raises(CannotRecord, match="InsufficientPrivilege"):
            world.reconcile()
        world.database.close()


def test_the_bots_account_may(postgresql: Postgresql) -> None:
    """With the rights that docs/audit.md grants it, and no other."""
    with world_of(postgresql.create()) as world:
        unasked = world.canceled()
        world.database = Database(account(world.database, "bot", BOT_MAY), clock=HandClock())
        assert kinds(world.reconcile()) == {unasked: Kind.UNASKED}
        world.database.close()


@pytest.mark.parametrize(
    ("since", "until"), [(START, START), (START + DAY, None), (START - DAY, START - 2 * DAY), (START, START + DAY)]
)
def test_an_empty_span_is_wrong_usage(world: World, since: datetime, until: datetime | None) -> None:
    """Nothing was compared, which must not read as that nothing was found."""
    with pytest.raises(NoSpan):
        world.reconcile(since=since, until=until)
    assert not world.exchange.requests


# --- The command ----------------------------------------------------------------------------------------------------


def environ(exchange: Exchange, database_url: str) -> dict[str, str]:
    return {
        "SLACK_BOT_TOKEN": "xoxb-playground",
        "SLACK_APP_TOKEN": "xapp-playground",
        "UPBIT_OPEN_API_ACCESS_KEY": Key().access_key,
        "UPBIT_OPEN_API_SECRET_KEY": Key().secret_key,
        "UPBIT_OPEN_API_SERVER_URL": exchange.url,
        "DATABASE_URL": database_url,
        "APPROVERS": "U0BEN,U0CARA",
    }


def bot(*arguments: str, **settings: str) -> Result:
    unset = {f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")}
    return CliRunner().invoke(main, arguments, env={**unset, **settings}, prog_name="bot")


@pytest.fixture
def market() -> Iterator[Exchange]:
    with Exchange() as opened:
        yield opened


@pytest.fixture
def settings(market: Exchange, sqlite: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, str]:
    monkeypatch.chdir(tmp_path)
    return environ(market, sqlite.url.render_as_string(hide_password=False))


YESTERDAY = (datetime.now(UTC) - DAY).isoformat()


def test_nothing_wrong_exits_0_and_says_what_was_compared(settings: dict[str, str]) -> None:
    """A script goes by the status, a person by the line."""
    result = bot("audit", "reconcile", "--since", YESTERDAY, **settings)
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "0 canceled orders and 0 requests compared: 0 unasked, 0 differs, 0 not_found" in result.stderr


def test_findings_are_a_table_for_people_and_one_object_a_line_for_programs(
    settings: dict[str, str], market: Exchange
) -> None:
    """Exit status 1, and nothing in it that a terminal obeys."""
    uuid = market.place(state="cancel", market="KRW-\u202eBTC")
    table = bot("audit", "reconcile", "--since", YESTERDAY, **settings)
    assert table.exit_code == 1
    assert uuid in table.stdout
    assert "\u202e" not in table.output
    assert "1 unasked" in table.stderr
    lines = bot("audit", "reconcile", "--since", YESTERDAY, "--format", "json", **settings)
    assert lines.exit_code == 1
    assert json.loads(lines.stdout).items() >= {"kind": "unasked", "order_uuid": uuid, "request_id": None}.items()


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ([], "--since"),
        (["--since", "yesterday"], "is no time"),
        (["--since", "2026-01-02", "--until", "2026-01-01"], "--since must be before --until"),
        (["--since", "9000-01-01"], "--since must be before --until, and before now"),
    ],
)
def test_a_span_that_is_none_exits_2(
    settings: dict[str, str], market: Exchange, options: list[str], fault: str
) -> None:
    """And asks nobody."""
    result = bot("audit", "reconcile", *options, **settings)
    assert result.exit_code == 2
    assert fault in result.output
    assert not market.requests


@pytest.mark.parametrize(
    ("key", "told"),
    [
        (Key(permissions=frozenset({"make_orders"})), "the key may not view orders: give it 주문조회"),
        (Key(secret_key="another-secret-key-with-forty-characters"), "refused: jwt_verification"),
        (Key(ips=frozenset({"192.0.2.1"})), "refused: no_authorization_ip"),
    ],
)
def test_a_key_that_is_not_taken_is_told_in_one_line(
    settings: dict[str, str], market: Exchange, key: Key, told: str
) -> None:
    """Not as an empty list of findings, and without the key in it."""
    market.set_key(key)
    result = bot("audit", "reconcile", "--since", YESTERDAY, **settings)
    assert result.exit_code == 1
    (line,) = result.output.splitlines()
    assert line.startswith(f"the exchange could not be read whole, so that nothing is proven: {told}")
    assert Key().secret_key not in result.output


def test_an_exchange_that_is_down_is_told_and_recorded(settings: dict[str, str], sqlite: Database) -> None:
    """Nobody listens there: that nothing was found says nothing."""
    with Exchange() as gone:
        url = gone.url
    result = bot("audit", "reconcile", "--since", YESTERDAY, **settings | {"UPBIT_OPEN_API_SERVER_URL": url})
    assert result.exit_code == 1
    assert "could not be read whole" in result.output
    assert "compared" not in result.output
    (listed,) = AuditLog(sqlite).list(Filter(action="audit.reconciled"), limit=2)
    event: dict[str, Any] = dict(listed)
    assert (event["outcome"], event["details"]["error"]) == ("unknown", "connect_failed")
    assert str(event["actor"]).startswith("cli:")


# --- The whole way --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "kind"), [("http", "sqlite"), ("socket", "postgresql")])
def test_the_running_bots_cancels_are_told_from_others(
    mode: Mode, kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Two through the bot, one past it, and one that the exchange later shows as filled: exactly the last two."""
    server: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    with started(tmp_path, mode=mode, database_url=server.create() if server else None) as journey:
        asked = [journey.ask(who=DANA) for _ in range(3)]
        for each in asked:
            journey.press(BEN, each, "approve")
        for each in asked:
            journey.audited(each.id, "summary.posted")
        since = (datetime.now(UTC) - DAY).isoformat()
        fine = journey.bot.command("audit", "reconcile", "--since", since, "--format", "json")
        assert (fine.returncode, fine.stdout) == (0, ""), fine.stderr
        assert "3 canceled orders and 3 requests compared" in fine.stderr

        past_us = journey.exchange.place()
        journey.exchange.cancel_elsewhere(past_us)
        journey.exchange.place(uuid=asked[2].uuid, state="done", executed_volume="0.01", remaining_volume="0")
        found = journey.bot.command("audit", "reconcile", "--since", since, "--format", "json")

        assert found.returncode == 1, found.stderr
        findings = [json.loads(line) for line in found.stdout.splitlines()]
        assert [(each["kind"], each["order_uuid"], each["request_id"]) for each in findings] == [
            ("unasked", past_us, None),
            ("differs", asked[2].uuid, asked[2].id),
        ]
        assert findings[1]["recorded"] == "canceled by this_request; executed 0, remaining 0.01"
        assert findings[1]["exchange"].startswith("done; executed 0.01, remaining 0; KRW-BTC ask limit")
        events = [event for event in journey.events() if event["action"] == "audit.reconciled"]
        assert [event["outcome"] for event in events] == ["ok", "failed"]
        assert events[1]["details"]["findings"] == findings
        assert journey.audit_fault() is None
