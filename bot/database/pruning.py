"""Removes the oldest events of the audit, in one transaction that leaves a chain which begins behind them.

Whether they may be removed is for the caller to know: see `bot.audit.prune`.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from sqlalchemy import Connection, delete, func, select, text

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import audit_events, audit_head, cancel_requests, not_over_sql
from bot.domain.audit import Action, Actor, AuditEvent, Json

NAMED_REQUESTS: Final = 10

_SQLITE_GUARD: Final = "audit_events_no_delete"
_POSTGRESQL_GUARD: Final = "audit_events_no_change"


class CannotPrune(Exception):
    """Nothing was removed; the sentence says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """The events behind `base_seq`, up to this one."""

    base_seq: int
    up_to_seq: int
    up_to_hash: str

    @property
    def events(self) -> int:
        return self.up_to_seq - self.base_seq


def require_owner(database: Database) -> None:
    """Raises CannotPrune where this account does not own the audit, and NothingDone if the database cannot be asked."""
    if database.is_sqlite:
        return
    owns = text("SELECT pg_has_role(relowner, 'USAGE') FROM pg_class WHERE oid = 'audit_events'::regclass")
    with database.read() as connection:
        if not connection.execute(owns).scalar_one():
            raise CannotPrune("this account does not own the audit: use the account with which you run `bot migrate`")


def require_requests_over(connection: Connection, up_to_seq: int) -> None:
    """Raises CannotPrune where a request that is not over has an event up to this one."""
    is_told = select(audit_events.c.seq).where(
        audit_events.c.request_id == cancel_requests.c.id, audit_events.c.seq <= up_to_seq
    )
    query = select(cancel_requests.c.id).where(text(not_over_sql()), is_told.exists()).order_by(cancel_requests.c.id)
    ids = connection.execute(query.limit(NAMED_REQUESTS + 1)).scalars().all()
    if ids:
        named = ", ".join(f"#{each}" for each in ids[:NAMED_REQUESTS])
        more = " and others" if len(ids) > NAMED_REQUESTS else ""
        raise CannotPrune(f"these requests are not over, and their events would be cut: {named}{more}")


def prune(database: Database, cut: Cut, *, actor: Actor, details: dict[str, Json]) -> None:
    """Remove the events, make the last of them the base, and write down that it was done: all of it or nothing.

    Raises CannotPrune, StoreError.
    """
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("SET LOCAL statement_timeout = 0"))
            connection.execute(text("SET LOCAL lock_timeout = '30s'"))
        chain = Chain(database, connection)
        removed = audit_events.c.seq <= cut.up_to_seq
        base_seq = connection.execute(select(audit_head.c.base_seq)).scalar_one()
        count = connection.execute(select(func.count()).select_from(audit_events).where(removed)).scalar_one()
        last = select(audit_events.c.hash).where(audit_events.c.seq == cut.up_to_seq)
        last_hash = connection.execute(last).scalar_one_or_none()
        if (base_seq, count, last_hash) != (cut.base_seq, cut.events, cut.up_to_hash):
            raise CannotPrune("the audit was changed while it was compared with the archive")
        require_requests_over(connection, cut.up_to_seq)
        with _unguarded(connection, is_sqlite=database.is_sqlite):
            chain.begin_behind(cut.up_to_seq)
            connection.execute(delete(audit_events).where(removed))
        chain.append(AuditEvent(action=Action.AUDIT_PRUNED, actor=actor, details=details), occurred_at=chain.now)
        chain.write()


@contextmanager
def _unguarded(connection: Connection, *, is_sqlite: bool) -> Iterator[None]:
    """The trigger that refuses to remove events is away, within this transaction only."""
    if is_sqlite:
        query = text("SELECT sql FROM sqlite_master WHERE type = 'trigger' AND name = :name")
        guard = connection.execute(query, {"name": _SQLITE_GUARD}).scalar_one_or_none()
        if guard is None:
            raise CannotPrune(f"the trigger {_SQLITE_GUARD} is missing: somebody has taken it away")
        connection.exec_driver_sql(f"DROP TRIGGER {_SQLITE_GUARD}")
        yield
        connection.exec_driver_sql(guard)
        return
    connection.exec_driver_sql(f"ALTER TABLE audit_events DISABLE TRIGGER {_POSTGRESQL_GUARD}")
    yield
    connection.exec_driver_sql(f"ALTER TABLE audit_events ENABLE TRIGGER {_POSTGRESQL_GUARD}")
