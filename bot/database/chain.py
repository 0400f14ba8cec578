"""The audit's chain: append to it.

Each event's hash covers the stored text of the event and the hash before it, so that an event cannot be altered,
removed or put in between without every later hash changing. The head's row lock serialises the writers: the chain
cannot fork. What a chain alone cannot show is a tail that was cut or rewritten with all its hashes.
"""

import json
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection, bindparam, insert, select, update

from bot.database.engine import Database
from bot.database.schema import audit_events, audit_head
from bot.domain.audit import Action, AuditEvent, Reason, canonical, chain_hash, columns, timestamp
from bot.domain.errors import NothingDone

# Built once: building a statement takes longer than running it.
_LOCK_HEAD: Final = select(audit_head).with_for_update()
_APPEND: Final = insert(audit_events)
_WRITE_HEAD: Final = update(audit_head)
REFUSALS: Final = (Action.COMMAND_REFUSED, Action.APPROVAL_REFUSED)
REFUSAL: Final = (
    select(audit_events.c.details)
    .where(
        audit_events.c.trigger_id == bindparam("trigger_id"),
        audit_events.c.action.in_([action.value for action in REFUSALS]),
    )
    .limit(1)
)
"""The details of the event by which a delivery was refused."""


class Chain:
    """The end of the chain, locked for the length of a transaction. Raises NothingDone where somebody took it away."""

    def __init__(self, database: Database, connection: Connection) -> None:
        self._connection = connection
        locked = database.lock(connection, _LOCK_HEAD)
        if locked is None:
            raise NothingDone("the audit has no head")
        head, self.now = locked
        self.seq: int = head["seq"]
        self.hash: str = head["hash"]
        self.occurred_at: datetime = head["occurred_at"]
        self._unwritten: list[dict[str, Any]] = []

    def append(self, event: AuditEvent, *, occurred_at: datetime) -> None:
        """Make the event the next one. `write` must follow in the same transaction: until then nobody reads it.

        Time never runs backwards along the chain: while the clock is behind the last event, that one's time is repeated
        and the clock's own goes into the details.
        """
        if occurred_at < self.occurred_at:
            event = replace(event, details={**event.details, "clock": timestamp(occurred_at)})
            occurred_at = self.occurred_at
        entry_columns = columns(event, seq=self.seq + 1, occurred_at=occurred_at)
        entry = canonical(entry_columns)
        entry_hash = chain_hash(self.hash, entry)
        self._unwritten.append(
            {
                **entry_columns,
                "occurred_at": occurred_at,
                "details": canonical(entry_columns["details"]),
                "entry": entry,
                "prev_hash": self.hash,
                "hash": entry_hash,
            }
        )
        self.seq, self.hash, self.occurred_at = self.seq + 1, entry_hash, occurred_at

    def write(self) -> None:
        """Write the events appended here, all at once, and make the last of them the end of the chain."""
        if self._unwritten:
            self._connection.execute(_APPEND, self._unwritten)
            head = {"seq": self.seq, "hash": self.hash, "occurred_at": self.occurred_at}
            self._connection.execute(_WRITE_HEAD, head)
            self._unwritten = []

    def begin_behind(self, seq: int) -> None:
        """Make this event the base: whoever verifies starts behind it. It and those before it may be removed then.

        Only the owner's account may do this. Raises ValueError where there is no such event.
        """
        of_seq = audit_events.c.seq == seq
        base_hash = self._connection.execute(select(audit_events.c.hash).where(of_seq)).scalar_one_or_none()
        if base_hash is None:
            raise ValueError(f"there is no event {seq}")
        self._connection.execute(update(audit_head).values(base_seq=seq, base_hash=base_hash))

    def refusal_of_trigger(self, trigger_id: str) -> Reason | None:
        """Why the command or the form of this delivery was refused before, if it was."""
        details = self._connection.execute(REFUSAL, {"trigger_id": trigger_id}).scalar_one_or_none()
        return self.refusal_in(details, trigger_id)

    def refusal_in(self, found: str | None, trigger_id: str) -> Reason | None:
        """The reason in what REFUSAL found for this delivery, or in what was appended here."""
        refusals = (each for each in self._unwritten if each["action"] in REFUSALS and each["trigger_id"] == trigger_id)
        details = found or next((each["details"] for each in refusals), None)
        return None if details is None else Reason(json.loads(details)["reason"])
