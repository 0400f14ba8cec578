"""Made-up people, orders and commands, a clock that is set by hand, and neighbours that only answer."""

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Final, Literal, TypeVar, cast

from sqlalchemy import Connection

from bot.database.engine import Database
from bot.database.store import SqlStore
from bot.domain.answer import Call, CancelAnswer, Found, FoundOrders, LookAnswer, OrdersAnswer, Unknown
from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Action, Actor
from bot.domain.cancel_request import CancelRequest, DecisionKind
from bot.domain.errors import NothingDone
from bot.domain.order import Order
from bot.domain.quote import BestPrices, NoPrices
from bot.workflow import CancelWorkflow, Click, Command, Groups, Lane, Lease, Notice, Posted

T = TypeVar("T")

HOME: Final = "T0HOME"
START: Final = datetime(2026, 11, 23, 9, 0, tzinfo=UTC)
ORDER_UUID: Final = "cdd92199-2897-4e14-9448-f923320408ad"
REQUESTER: Final = Actor(id="U0REQUESTER", name="Requester", team_id=HOME)
APPROVER: Final = Actor(id="U0APPROVER", name="Approver", team_id=HOME)
SECOND: Final = Actor(id="U0SECOND", name="Second", team_id=HOME)
STRANGER: Final = Actor(id="U0STRANGER", name="Stranger", team_id=HOME)
POLICY: Final = ApprovalPolicy(approvers=frozenset({APPROVER.id, SECOND.id}))
RESPONSE_URL: Final = "https://hooks.slack.test/commands/1"

_numbers = itertools.count(1)


def order_uuid() -> str:
    """An order's uuid that no test has used before."""
    return f"00000000-0000-4000-8000-{next(_numbers):012x}"


def order(**changes: Any) -> Order:
    """A sell order that is open."""
    fields: dict[str, Any] = {
        "uuid": ORDER_UUID,
        "side": "ask",
        "ord_type": "limit",
        "state": "wait",
        "market": "KRW-BTC",
        "created_at": "2026-11-23T17:30:00+09:00",
        "price": Decimal("95000000.0"),
        "volume": Decimal("1.00"),
        "remaining_volume": Decimal("1.00"),
        "executed_volume": Decimal("0.0"),
    }
    return Order(**{**fields, **changes})


def command(**changes: Any) -> Command:
    """A command that nobody has given before, for an order that nobody has named before."""
    fields: dict[str, Any] = {
        "trigger_id": f"trigger-{next(_numbers)}",
        "requester": REQUESTER,
        "team_id": HOME,
        "channel_id": "C0DESK",
        "in_private": False,
        "response_url": RESPONSE_URL,
        "order_uuid": order_uuid(),
        "reason": "wrong price",
    }
    return Command(**{**fields, **changes})


def click(request_id: int | None, actor: Actor = APPROVER, **changes: Any) -> Click:
    """A press on Approve."""
    fields: dict[str, Any] = {
        "kind": DecisionKind.APPROVE,
        "team_id": HOME,
        "channel_id": "C0DESK",
        "message_ts": "1790000000.000100",
        "response_url": RESPONSE_URL,
        "trigger_id": f"trigger-{next(_numbers)}",
    }
    return Click(request_id=request_id, actor=actor, **{**fields, **changes})


def call(**changes: Any) -> Call:
    fields: dict[str, Any] = {"method": "GET", "path": "/v1/order", "nonce": "n", "query_hash": "q", "status": 200}
    return Call(**{**fields, **changes})


def create(store: SqlStore, **changes: Any) -> CancelRequest:
    """A request in state `requested`."""
    with store.transaction() as tx:
        return tx.create(command(**changes))


def create_pending(store: SqlStore, **changes: Any) -> CancelRequest:
    """A request that waits for approval for half an hour."""
    made = create(store, **changes)
    shown = order(uuid=made.order_uuid)
    with store.transaction(made.id) as tx:
        return tx.move(
            Action.REQUEST_OPENED,
            order=shown,
            order_now=shown,
            looked_at=tx.now,
            approvers=(APPROVER.id, SECOND.id),
            opened_at=tx.now,
            expires_at=tx.now + timedelta(minutes=30),
            due_in_s=1800.0,
        )


def take(store: SqlStore, request_id: int, lane: Lane) -> Lease | None:
    """Take a lane, and do nothing yet."""
    with store.lease(request_id, lane) as taken:
        return None if taken is None else taken.lease


def walk(store: SqlStore, request_id: int, *actions: Action) -> CancelRequest:
    """Take the request along these transitions."""
    for action in actions:
        with store.transaction(request_id) as tx:
            tx.move(action)
    return present(store.read(request_id))


def present(value: T | None) -> T:
    assert value is not None
    return value


class HandClock:
    """A clock for `Database(clock=…)` that moves only when it is told to, backwards too."""

    def __init__(self, now: datetime = START) -> None:
        self.now = now

    def __call__(self, connection: Connection) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class OpenExchange:
    """An exchange where every order is open and no cancel is ever answered."""

    def get_order(self, uuid: str) -> LookAnswer:
        return Found(order=order(uuid=uuid), call=call())

    def get_orders(self, uuids: Sequence[str]) -> OrdersAnswer:
        looks = [self.get_order(uuid) for uuid in uuids]
        return FoundOrders(orders=tuple(look.order for look in looks if isinstance(look, Found)), call=call())

    def get_open_orders(self, *, page: int) -> OrdersAnswer:
        return FoundOrders(orders=(), call=call())

    def hold_s(self, _method: Literal["GET", "DELETE"]) -> float:
        return 0.0

    def cancel_call(self, uuid: str, *, nonce: str) -> Call:
        return Call(method="DELETE", path="/v1/order", nonce=nonce, query_hash=f"hash of {uuid}")

    def cancel_order(self, uuid: str, *, nonce: str) -> CancelAnswer:
        return Unknown(cause="timeout", call=call(method="DELETE", status=None))


class FixedPrices:
    """A quotation that never changes."""

    def __init__(self, prices: BestPrices | NoPrices | None = None) -> None:
        self.prices = prices or BestPrices(bid=Decimal(94_000_000), ask=Decimal(94_500_000))
        self.asked: list[str] = []

    def best_prices(self, market: str) -> BestPrices | NoPrices:
        self.asked.append(market)
        return self.prices


class SilentMessenger:
    """A Slack that takes everything."""

    def post_card(self, request: CancelRequest) -> Posted:
        return Posted(request.card_goes_to, "1790000000.000100", permalink=None)

    def redraw_card(self, request: CancelRequest, *, channel_id: str, ts: str) -> None:
        pass

    def post_verdict(self, request: CancelRequest) -> Posted:
        return Posted(request.card_goes_to, "1790000000.000200", permalink=None)

    def post_reminder(self, request: CancelRequest, *, may_still_approve: Sequence[str]) -> None:
        pass

    def tell(self, notice: Notice) -> None:
        pass


def workflow(store: SqlStore, policy: ApprovalPolicy = POLICY, *, groups: Groups | None = None) -> CancelWorkflow:
    return CancelWorkflow(
        store=store,
        exchange=OpenExchange(),
        quotations=FixedPrices(),
        messenger=SilentMessenger(),
        policy=policy,
        groups=groups,
        approval_ttl=timedelta(minutes=30),
        send_within=timedelta(minutes=5),
        new_nonce=lambda: "nonce",
    )


def at_once(*tasks: Callable[[], T]) -> list[T | Exception]:
    """Run the tasks in threads that start together; what each returned or raised, in their order."""
    barrier = threading.Barrier(len(tasks))

    def run(task: Callable[[], T]) -> T | Exception:
        barrier.wait(timeout=30)
        try:
            return task()
        except Exception as error:  # noqa: BLE001 - the test says which errors it expects
            return error

    with ThreadPoolExecutor(len(tasks)) as threads:
        return list(threads.map(run, tasks))


def insist(act: Callable[[], T]) -> T:
    """What it returns, tried again while the database is too busy to take it, as people and the worker do."""
    for _ in range(20):
        with suppress(NothingDone):
            return act()
    return act()


def execute(database: Database, *statements: str) -> None:
    """Run statements as an administrator, in one transaction, for as long as they take: nothing is bound in them."""
    with database.write() as connection:
        if not database.is_sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        for statement in statements:
            connection.exec_driver_sql(statement)


def rows(database: Database, query: str) -> Sequence[tuple[Any, ...]]:
    with database.read() as connection:
        return cast("Sequence[tuple[Any, ...]]", connection.exec_driver_sql(query).all())
