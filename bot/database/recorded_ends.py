"""What the requests say of their orders' ends.

All in short reads: no transaction stays open while the exchange is asked.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import ColumnElement, Select, func, select, text

from bot.database.engine import Database
from bot.database.schema import cancel_requests, not_over_sql
from bot.domain.cancel_request import State, Verdict
from bot.domain.order import load_order
from bot.domain.reconciliation import Recorded

ORDERS_AT_ONCE: Final = 500
IDS_AT_ONCE: Final = 10_000
"""How many requests one statement passes through: it must end within the database's statement time-out."""

_TABLE: Final = cancel_requests.c
_COLUMNS: Final = (
    _TABLE.id,
    _TABLE.order_uuid,
    _TABLE.state,
    _TABLE.sends,
    _TABLE.canceled_by,
    _TABLE.settled_verdict,
    _TABLE.order_now,
    _TABLE.opened_at,
)


class RecordedEnds:
    """Every method raises NothingDone where the database cannot be asked."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def now(self) -> datetime:
        with self._database.read() as connection:
            return self._database.now(connection)

    def of_orders(self, uuids: Sequence[str]) -> dict[str, list[Recorded]]:
        """Every request for these orders, whenever it was made, the oldest first; an order without one is left out."""
        found: dict[str, list[Recorded]] = {}
        for first in range(0, len(uuids), ORDERS_AT_ONCE):
            some = uuids[first : first + ORDERS_AT_ONCE]
            for recorded in self._read(select(*_COLUMNS).where(_TABLE.order_uuid.in_(some)).order_by(_TABLE.id)):
                found.setdefault(recorded.order_uuid, []).append(recorded)
        return found

    def ended(self, *, since: datetime, until: datetime) -> Iterator[list[str]]:
        """The orders of the requests that ended in the span and whose order had been shown to approvers, in lists."""
        in_span = (_TABLE.ended_at >= since, _TABLE.ended_at < until, _TABLE.opened_at.is_not(None))
        for ids in self._id_ranges():
            with self._database.read() as connection:
                uuids = list(connection.execute(select(_TABLE.order_uuid).where(ids, *in_span).distinct()).scalars())
            yield uuids

    def not_over(self, *, until: datetime) -> Iterator[Recorded]:
        """The requests made before then that have not ended, the oldest first."""
        last = 0
        while True:
            # A literal, not a parameter: only then does SQLite see that the partial index fits.
            is_not_over: ColumnElement[bool] = text(not_over_sql())  # type: ignore[assignment]
            some = self._read(
                select(*_COLUMNS)
                .where(is_not_over, _TABLE.created_at < until, _TABLE.id > last)
                .order_by(_TABLE.id)
                .limit(ORDERS_AT_ONCE)
            )
            yield from some
            if len(some) < ORDERS_AT_ONCE:
                return
            last = some[-1].request_id

    def _id_ranges(self) -> Iterator[ColumnElement[bool]]:
        with self._database.read() as connection:
            newest = connection.execute(select(func.max(_TABLE.id))).scalar_one() or 0
        for first in range(1, newest + 1, IDS_AT_ONCE):
            yield _TABLE.id.between(first, first + IDS_AT_ONCE - 1)

    def _read(self, query: Select[Any]) -> list[Recorded]:
        with self._database.read() as connection:
            return [_recorded(row) for row in connection.execute(query)]


def _recorded(row: Any) -> Recorded:
    return Recorded(
        request_id=row.id,
        order_uuid=row.order_uuid,
        state=State(row.state),
        sends=row.sends,
        canceled_by=row.canceled_by,
        verdict=Verdict(row.settled_verdict) if row.settled_verdict else None,
        order=load_order(row.order_now) if row.order_now and row.opened_at is not None else None,
    )
