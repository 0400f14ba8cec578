"""Verifies the audit's chain: walks it event by event, and names the first one that is wrong.

The walk starts where the chain begins: at the first event, or behind the base, the last event that was pruned after it
had been archived. It holds a few events in memory, however long the chain is.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Row, select

from bot.database.engine import Database
from bot.database.schema import audit_events, audit_head
from bot.database.stored_events import READ_ROWS, as_stored, streamed
from bot.domain.audit import GENESIS_HASH, Json, chain_hash, timestamp
from bot.domain.checkpoint import Checkpoint
from bot.domain.layout import Layout
from bot.domain.witness import Witness

_REPEATED: Final = tuple(
    column.name for column in audit_events.columns if column.name not in {"entry", "prev_hash", "hash"}
)
"""The columns that the hashed text repeats."""

_AS_STORED: Final = as_stored((*_REPEATED, "entry", "prev_hash", "hash"))

_ENTRY: Final = Layout(sorted(_REPEATED), given=[column.name for column in _AS_STORED], comma=",", colon=":")
"""The canonical text, out of a row."""

Progress = Callable[[int], None]
"""Is told now and then how many events have been read."""


def _ignore(_events: int) -> None:
    """Nobody watches."""


class Wrong(StrEnum):
    """What can be wrong with the chain, as far as it can be told apart."""

    ALTERED = "altered"  # something of an event, or of the head, is not what its hash covers
    MISSING = "missing"  # nothing follows the event before
    INSERTED = "inserted"  # another event follows the event before, or the chain ends before it
    REORDERED = "reordered"  # the event that belongs here stands at another place
    REWRITTEN = "rewritten"  # sound in itself, and not what a witness or a checkpoint has seen
    CUT_OFF = "cut_off"  # sound in itself, and ends before what a witness or a checkpoint has seen


class Fault(NamedTuple):
    """The first bad event, what is wrong with it, and that in a sentence."""

    seq: int
    wrong: Wrong
    sentence: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Verification:
    """What a walk along the chain found. `fault` is None where all is well."""

    events: int  #: that were walked
    head_seq: int  #: of the last event that was found good, or of where the walk started
    head_hash: str
    base_seq: int = 0  #: up to here events were pruned, and are proven by their archive alone
    witnesses: int = 0  #: that agree with the chain
    checkpoints: int = 0  #: that agree with the chain
    too_old: int = 0  #: witnesses and checkpoints from before the base or the start of the walk: not compared
    fault: str | None = None  #: in a sentence
    wrong: Wrong | None = None
    fault_seq: int | None = None  #: the first bad event


def verify(
    database: Database,
    witnesses: Sequence[Witness] = (),
    checkpoints: Sequence[Checkpoint] = (),
    *,
    start: Checkpoint | None = None,
    progress: Progress = _ignore,
) -> Verification:
    """Walk the chain: hashes, sequence, and that each column says what the hashed text says.

    Beside it, that each event which a witness or a checkpoint has seen is still the one that it saw; whether a
    checkpoint's signature is good is for the caller to know. From `start`, a checkpoint that the caller trusts, only
    what came after it is walked.
    """
    with database.read() as connection:
        return verify_in(connection, witnesses, checkpoints, start=start, progress=progress)


def verify_in(
    connection: Connection,
    witnesses: Sequence[Witness] = (),
    checkpoints: Sequence[Checkpoint] = (),
    *,
    start: Checkpoint | None = None,
    progress: Progress = _ignore,
) -> Verification:
    """The same in a transaction that is open, as it sees the chain."""
    return _Walk(connection, _by_seq(witnesses, checkpoints), start=start).result(progress)


class Agreement(StrEnum):
    """How one checkpoint stands to the chain."""

    AGREES = "agrees"
    REWRITTEN = "rewritten"  # the event is another one
    CUT_OFF = "cut_off"  # the chain ends before the event
    PRUNED = "pruned"  # the event was pruned: cannot be compared any more


def compare(database: Database, checkpoint: Checkpoint) -> Agreement:
    """Compare the checkpoint with the hash that its event has now; that the hashes are sound, `verify` shows."""
    with database.read() as connection:
        return _agreement(connection, checkpoint)


def _agreement(connection: Connection, checkpoint: Checkpoint) -> Agreement:
    head = connection.execute(select(audit_head)).one_or_none()
    base_seq, base_hash = (head.base_seq, head.base_hash) if head else (0, GENESIS_HASH)
    if checkpoint.seq < base_seq:
        return Agreement.PRUNED
    if checkpoint.seq == base_seq:
        found = base_hash
    else:
        of_seq = audit_events.c.seq == checkpoint.seq
        found = connection.execute(select(audit_events.c.hash).where(of_seq)).scalar_one_or_none()
    if found is None:
        return Agreement.CUT_OFF
    return Agreement.AGREES if found == checkpoint.hash else Agreement.REWRITTEN


@dataclass(frozen=True, slots=True)
class _Seen:
    """What somebody outside of the database has seen of one event."""

    hash: str  #: how the event's hash begins, or all of it
    by: str  #: "witness" or "checkpoint"


def _by_seq(witnesses: Sequence[Witness], checkpoints: Sequence[Checkpoint]) -> dict[int, set[_Seen]]:
    seen: dict[int, set[_Seen]] = {}
    for witness in witnesses:
        seen.setdefault(witness.seq, set()).add(_Seen(witness.hash, "witness"))
    for checkpoint in checkpoints:
        seen.setdefault(checkpoint.seq, set()).add(_Seen(checkpoint.hash, "checkpoint"))
    return seen


class _Walk:
    """One walk along the chain, all of it in one transaction."""

    def __init__(self, connection: Connection, seen: dict[int, set[_Seen]], *, start: Checkpoint | None) -> None:
        self._connection = connection
        self._head = connection.execute(select(audit_head)).one_or_none()
        self._base_seq: int = self._head.base_seq if self._head else 0
        self._seq, self._hash = self._base_seq, self._head.base_hash if self._head else GENESIS_HASH
        self._start: Checkpoint | None = None
        if start is not None and start.seq > self._base_seq:
            self._start, self._seq, self._hash = start, start.seq, start.hash
        self._began_seq = self._seq
        self._hash_before: str | None = None  # of the event before the last good one
        self._agreed = {"witness": 0, "checkpoint": 0}
        self._too_old = sum(len(seen.pop(seq)) for seq in tuple(seen) if seq < self._seq)
        self._seen = seen

    def result(self, progress: Progress) -> Verification:
        fault = self._first_fault(progress)
        return Verification(
            events=self._seq - self._began_seq,
            head_seq=self._seq,
            head_hash=self._hash,
            base_seq=self._base_seq,
            witnesses=self._agreed["witness"],
            checkpoints=self._agreed["checkpoint"],
            too_old=self._too_old,
            fault=fault.sentence if fault else None,
            wrong=fault.wrong if fault else None,
            fault_seq=fault.seq if fault else None,
        )

    def _first_fault(self, progress: Progress) -> Fault | None:
        query = select(*_AS_STORED).order_by(audit_events.c.seq)
        fault = self._contradiction()
        if self._start is not None:
            query = query.where(audit_events.c.seq > self._start.seq)
            fault = fault or self._fault_of_start(self._start)
        if fault is not None:
            return fault
        with streamed(self._connection, query) as events:
            for row in events:
                fault = self._fault_of(row)
                if fault is not None:
                    return fault
                self._hash_before, self._seq, self._hash = self._hash, row.seq, row.hash
                if self._seq in self._seen and (fault := self._contradiction()) is not None:
                    return fault
                if (self._seq - self._began_seq) % READ_ROWS == 0:
                    progress(self._seq - self._began_seq)
        return self._fault_of_end()

    def _fault_of_start(self, start: Checkpoint) -> Fault | None:
        match _agreement(self._connection, start):
            case Agreement.CUT_OFF:
                return self._cut_off(start.seq, "checkpoint")
            case Agreement.REWRITTEN:
                return self._rewritten("checkpoint")
            case _:
                return None

    def _contradiction(self) -> Fault | None:
        """Whether somebody has seen another event where the walk stands."""
        for seen in self._seen.pop(self._seq, ()):
            if not self._hash.startswith(seen.hash):
                return self._rewritten(seen.by)
            self._agreed[seen.by] += 1
        return None

    def _fault_of(self, row: Row[Any]) -> Fault | None:
        if row.seq != self._seq + 1 or row.prev_hash != self._hash:
            return self._misplaced(row)
        if row.hash != chain_hash(row.prev_hash, row.entry):
            return self._altered(row.seq, "its hash does not fit its text")
        if _is_as_written(row):
            return None
        entry = _object(row.entry)
        if entry is None:
            return self._altered(row.seq, "its text cannot be read")
        for name, value in columns_of(row._asdict()).items():
            if entry.get(name) != value:
                return self._altered(row.seq, f"column {name} differs from the hashed text")
        return self._altered(row.seq, "its text is not written as the bot writes it")

    def _misplaced(self, row: Row[Any]) -> Fault:
        """What is wrong where the next row has another number, or does not link to the event before it."""
        seq, expected = row.seq, self._seq + 1
        if seq < expected:
            return self._inserted(seq, f"the chain begins with event {expected}")
        if row.prev_hash == self._hash:
            if _written_as(row) == expected:
                return self._altered(expected, f"it is numbered {seq}")
            return self._missing(f"the next one is {seq}")
        if row.prev_hash == self._hash_before and self._seq > self._began_seq:
            return self._inserted(self._seq, f"event {seq} follows the one before it")
        follower = self._follower()
        if follower is None:
            return self._unlinked(row)
        if seq != expected or _written_as(row) not in {None, expected}:
            sentence = f"event {expected} stands at {follower}, and another one in its place: reordered"
            return Fault(expected, Wrong.REORDERED, sentence)
        return self._inserted(seq, f"event {follower} follows the one before it")

    def _unlinked(self, row: Row[Any]) -> Fault:
        """What is wrong where no row links to the last good event."""
        seq, expected, written_as = row.seq, self._seq + 1, _written_as(row)
        if seq != expected:
            return self._missing(f"the next one is {seq}")
        if row.hash == chain_hash(self._hash, row.entry):
            return self._altered(seq, "column prev_hash is not the hash of the event before")
        if written_as not in {None, expected}:
            return self._missing(f"in its place stands what was written as event {written_as}")
        if written_as == expected and self._seq > self._began_seq:
            return self._altered(self._seq, f"event {seq} was written after another one")
        return self._altered(seq, "it does not link to what is before it")

    def _follower(self) -> int | None:
        """Where the row stands that links to the last good event."""
        links = audit_events.c.prev_hash == self._hash
        return self._connection.execute(select(audit_events.c.seq).where(links).limit(1)).scalar_one_or_none()

    def _fault_of_end(self) -> Fault | None:
        head, end = self._head, self._seq
        if head is None:
            return Fault(end, Wrong.ALTERED, "the head of the chain is missing")
        if head.seq > end:
            return self._missing(f"the chain's head says that it ends with event {head.seq}")
        if head.seq < end:
            return self._inserted(head.seq + 1, f"the chain's head says that it ends with event {head.seq}")
        if head.hash != self._hash:
            return Fault(end, Wrong.ALTERED, f"the chain's head was altered: it has not the hash of event {end}")
        if self._seen:
            seq = min(self._seen)
            by = min(seen.by for seen in self._seen[seq])
            return self._cut_off(seq, by)
        return None

    def _rewritten(self, by: str) -> Fault:
        sentence = f"event {self._seq} is not the one that its {by} saw: the chain was rewritten"
        return Fault(self._seq, Wrong.REWRITTEN, sentence)

    def _cut_off(self, seq: int, by: str) -> Fault:
        end = self._head.seq if self._head else 0
        sentence = f"the chain ends at event {end}, but event {seq} has a {by}: the end was cut off"
        return Fault(end + 1, Wrong.CUT_OFF, sentence)

    def _missing(self, how: str) -> Fault:
        seq = self._seq + 1
        return Fault(seq, Wrong.MISSING, f"event {seq} is missing: {how}")

    @staticmethod
    def _altered(seq: int, how: str) -> Fault:
        return Fault(seq, Wrong.ALTERED, f"event {seq} was altered: {how}")

    @staticmethod
    def _inserted(seq: int, how: str) -> Fault:
        return Fault(seq, Wrong.INSERTED, f"event {seq} was inserted: {how}")


def _written_as(row: Row[Any]) -> int | None:
    """The number in the row's text; None where its hash does not fit the text, so that it need not be believed."""
    if row.hash != chain_hash(row.prev_hash, row.entry):
        return None
    seq = (_object(row.entry) or {}).get("seq")
    return seq if type(seq) is int else None


def _is_as_written(row: Row[Any]) -> bool:
    """Whether the columns make the text that was hashed, where `details` is as the bot wrote it."""
    try:
        return bool(row.entry == _ENTRY.write(row))
    except TypeError:  # SQLite keeps anything in any column
        return False


def columns_of(row: Any) -> dict[str, Json]:
    """The columns that the hashed text repeats, in its own types."""
    repeated = {name: row[name] for name in _REPEATED}
    try:
        details = json.loads(row["details"])
    except ValueError:
        details = row["details"]
    occurred_at = row["occurred_at"]
    written_at = timestamp(occurred_at) if isinstance(occurred_at, datetime) else occurred_at
    return {**repeated, "occurred_at": written_at, "details": details}


def _object(text: str) -> dict[str, Json] | None:
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
