"""The audit's chain: append to it, read it, verify it.

Each event's hash covers the stored text of the event and the hash before it, so that an event cannot be altered,
removed or put in between without every later hash changing. The head's row lock serialises the writers: the chain
cannot fork. What a chain alone cannot show is a tail that was cut or rewritten with all its hashes.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, Result, Select, Text, insert, select, type_coerce, update

from bot.database.engine import Database
from bot.database.schema import UtcTime, audit_events, audit_head
from bot.domain.audit import (
    GENESIS_HASH,
    Action,
    AuditEvent,
    Json,
    Reason,
    canonical,
    chain_hash,
    columns,
    timestamp,
)
from bot.domain.witness import Witness

_REPEATED: Final = tuple(
    column.name for column in audit_events.columns if column.name not in {"entry", "prev_hash", "hash"}
)
"""The columns that the hashed text repeats."""

_AS_STORED: Final = tuple(
    type_coerce(column, Text).label(column.name) if isinstance(column.type, UtcTime) else column
    for column in (audit_events.c[name] for name in (*_REPEATED, "entry", "prev_hash", "hash"))
)
"""The columns for who verifies: on SQLite a time that was tampered with may be no time at all."""

LISTED: Final = (*_REPEATED, "prev_hash", "hash")
"""What `list` tells of each event, in this order."""

READ_ROWS: Final = 1000
"""Rows held in memory at a time."""

Progress = Callable[[int], None]
"""Is told now and then how many events have been read."""


def _ignore(_events: int) -> None:
    """Nobody watches."""


class Chain:
    """The end of the chain, locked for the length of a transaction."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        head = connection.execute(select(audit_head).with_for_update()).one()
        self.seq: int = head.seq
        self.hash: str = head.hash
        self.occurred_at: datetime = head.occurred_at
        self._appended = False

    def append(self, event: AuditEvent, *, occurred_at: datetime) -> None:
        """Write the event as the next one. `write_head` must follow in the same transaction.

        Time never runs backwards along the chain: while the clock is behind the last event, that one's time is repeated
        and the clock's own goes into the details.
        """
        if occurred_at < self.occurred_at:
            event = replace(event, details={**event.details, "clock": timestamp(occurred_at)})
            occurred_at = self.occurred_at
        entry_columns = columns(event, seq=self.seq + 1, occurred_at=occurred_at)
        entry = canonical(entry_columns)
        entry_hash = chain_hash(self.hash, entry)
        self._connection.execute(
            insert(audit_events).values(
                {
                    **entry_columns,
                    "occurred_at": occurred_at,
                    "details": canonical(entry_columns["details"]),
                    "entry": entry,
                    "prev_hash": self.hash,
                    "hash": entry_hash,
                }
            )
        )
        self.seq, self.hash, self.occurred_at, self._appended = self.seq + 1, entry_hash, occurred_at, True

    def write_head(self) -> None:
        """Make the last event appended here the end of the chain."""
        if self._appended:
            self._connection.execute(
                update(audit_head).values(seq=self.seq, hash=self.hash, occurred_at=self.occurred_at)
            )

    def refusal_of_trigger(self, trigger_id: str) -> Reason | None:
        """Why the command or the form of this delivery was refused before, if it was."""
        refused = [Action.COMMAND_REFUSED.value, Action.APPROVAL_REFUSED.value]
        details = self._connection.execute(
            select(audit_events.c.details)
            .where(audit_events.c.trigger_id == trigger_id, audit_events.c.action.in_(refused))
            .limit(1)
        ).scalar_one_or_none()
        return None if details is None else Reason(json.loads(details)["reason"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Filter:
    """Which events to list; None stands for all."""

    order_uuid: str | None = None
    request_id: int | None = None
    actor: str | None = None
    market: str | None = None
    action: str | None = None
    outcome: str | None = None
    details_reason: str | None = None  #: a word of Reason, as `details.reason` holds it
    since: datetime | None = None
    until: datetime | None = None
    before_seq: int | None = None  #: only events that come before this one

    def narrow(self, query: Select[Any]) -> Select[Any]:
        for name in ("order_uuid", "request_id", "actor", "market", "action", "outcome"):
            wanted = getattr(self, name)
            if wanted is not None:
                query = query.where(audit_events.c[name] == wanted)
        if self.details_reason is not None:
            # Canonical JSON writes it in one way, and inside of texts quotes are escaped.
            written = f'"reason":"{self.details_reason}"'
            query = query.where(audit_events.c.details.contains(written, autoescape=True))
        if self.before_seq is not None:
            query = query.where(audit_events.c.seq < self.before_seq)
        if self.since is not None:
            query = query.where(audit_events.c.occurred_at >= self.since)
        if self.until is not None:
            query = query.where(audit_events.c.occurred_at < self.until)
        return query


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a walk along the chain found. `fault` is None where all is well."""

    events: int
    head_seq: int
    head_hash: str
    witnesses: int = 0  #: that agree with the chain
    fault: str | None = None


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

    def verify(self, witnesses: Sequence[Witness] = (), *, progress: Progress = _ignore) -> Verification:
        """Walk the whole chain: hashes, sequence, and that each column says what the hashed text says.

        Beside it, that each event which a witness has seen is still the one that it saw.
        """
        seen = _by_seq(witnesses)
        seq, previous_hash, agreed = 0, GENESIS_HASH, 0

        def found(fault: str | None) -> Verification:
            return Verification(events=seq, head_seq=seq, head_hash=previous_hash, witnesses=agreed, fault=fault)

        with self._database.read() as connection:
            head = connection.execute(select(audit_head)).one_or_none()
            with _streamed(connection, select(*_AS_STORED).order_by(audit_events.c.seq)) as events:
                for row in events:
                    fault = _fault(row, expected_seq=seq + 1, previous_hash=previous_hash)
                    if fault is not None:
                        return found(fault)
                    seq, previous_hash = row.seq, row.hash
                    for begins in seen.pop(seq, ()):
                        if not previous_hash.startswith(begins):
                            return found(f"event {seq} is not the one that its witness saw: the chain was rewritten")
                        agreed += 1
                    if seq % READ_ROWS == 0:
                        progress(seq)
        if head is None:
            return found("the head of the chain is missing")
        if (head.seq, head.hash) != (seq, previous_hash):
            return found(f"the chain ends at event {seq}, but its head says {head.seq}: events were removed or added")
        if seen:
            return found(f"the chain ends at event {seq}, but event {min(seen)} has a witness: the end was cut off")
        return found(None)


def _by_seq(witnesses: Sequence[Witness]) -> dict[int, set[str]]:
    seen: dict[int, set[str]] = {}
    for witness in witnesses:
        seen.setdefault(witness.seq, set()).add(witness.hash)
    return seen


@contextmanager
def _streamed(connection: Connection, query: Select[Any]) -> Iterator[Result[Any]]:
    with connection.execution_options(yield_per=READ_ROWS).execute(query) as result:
        yield result


def _fault(row: Any, *, expected_seq: int, previous_hash: str) -> str | None:
    """What is wrong with this event, or None."""
    seq = row.seq
    if seq != expected_seq:
        return f"event {expected_seq} is missing: the next one is {seq}"
    if row.prev_hash != previous_hash:
        return f"event {seq} does not follow the event before it: inserted, removed or reordered"
    if row.hash != chain_hash(previous_hash, row.entry):
        return f"event {seq} was altered: its hash does not fit its text"
    if row.entry == _entry_of(row):
        return None
    entry = _object(row.entry)
    if entry is None:
        return f"event {seq} was altered: its text cannot be read"
    for name, value in _columns_of(row._asdict()).items():
        if entry.get(name) != value:
            return f"event {seq} was altered: column {name} differs from the hashed text"
    return f"event {seq} was altered: its text is not written as the bot writes it"


def _entry_of(row: Any) -> str:
    """The text that these columns make, where `details` is as the bot wrote it."""
    repeated = dict(zip(_REPEATED, row, strict=False))
    details = repeated["details"]
    occurred_at = repeated["occurred_at"]
    if not isinstance(occurred_at, str):
        repeated["occurred_at"] = timestamp(occurred_at)
    repeated["details"] = ""
    # Within a text every quote is escaped, so that this stands nowhere else.
    return canonical(repeated).replace('"details":""', f'"details":{details}', 1)


def _columns_of(row: Any) -> dict[str, Json]:
    """The columns that the hashed text repeats, in its own types."""
    repeated = {name: row[name] for name in _REPEATED}
    try:
        details = json.loads(row["details"])
    except ValueError:
        details = row["details"]
    occurred_at = row["occurred_at"]
    written_at = occurred_at if isinstance(occurred_at, str) else timestamp(occurred_at)
    return {**repeated, "occurred_at": written_at, "details": details}


def _object(text: str) -> dict[str, Json] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _to_json(row: Any) -> dict[str, Json]:
    return {**_columns_of(row), "prev_hash": row["prev_hash"], "hash": row["hash"]}
