"""Reads the audit: the events that somebody asks for."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Select, select

from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.database.verification import columns_of
from bot.domain.audit import Json


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which events to list; None stands for all."""

    order_uuid: str | None = None
    request_id: int | None = None
    actor: str | None = None
    market: str | None = None
    action: str | None = None
    outcome: str | None = None
    since: datetime | None = None
    until: datetime | None = None

    def narrow(self, query: Select[Any]) -> Select[Any]:
        for name in ("order_uuid", "request_id", "actor", "market", "action", "outcome"):
            wanted = getattr(self, name)
            if wanted is not None:
                query = query.where(audit_events.c[name] == wanted)
        if self.since is not None:
            query = query.where(audit_events.c.occurred_at >= self.since)
        if self.until is not None:
            query = query.where(audit_events.c.occurred_at < self.until)
        return query


class AuditLog:
    """Reads the audit; writes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def list(self, wanted: Filter, *, limit: int, newest_first: bool = True) -> list[dict[str, Json]]:
        """The events that fit, as their columns in JSON's types, without the canonical text."""
        order = audit_events.c.seq.desc() if newest_first else audit_events.c.seq
        query = wanted.narrow(select(audit_events)).order_by(order).limit(limit)
        with self._database.read() as connection:
            return [_to_json(row) for row in connection.execute(query).mappings()]


def _to_json(row: Any) -> dict[str, Json]:
    return {**columns_of(row), "prev_hash": row["prev_hash"], "hash": row["hash"]}
