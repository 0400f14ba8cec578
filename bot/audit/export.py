"""Copies the audit out into a file, with its hash and a checkpoint beside it, and writes down that it was done.

One event is written before the first row is read, and is itself in an export of everything; the other when the file is
whole and its hash known, before it gets its name. So nobody has an export, or a part of one, that is not in the audit.
"""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from bot.audit.archive import checkpoint_path, sha256_path
from bot.audit.draft import Draft, draft
from bot.audit.forms import FORMS, Rows, Writer, require_libraries
from bot.audit.signing import is_signed
from bot.audit.whole_file import refuse_unwritable
from bot.checkpointing import Sign
from bot.database.audit_log import LISTED
from bot.database.checkpoints import Checkpoints
from bot.database.engine import Database
from bot.database.snapshot import snapshot
from bot.database.store import SqlStore
from bot.domain.audit import Action, Actor, Json
from bot.domain.checkpoint import SignedCheckpoint
from bot.domain.errors import AuditBroken, NothingDone
from bot.domain.event_filter import Filter

_SEQ: Final = LISTED.index("seq")


class MayNotRecord(Exception):
    """This account cannot write the event of the export, so there is no export."""


class NoEvent(Exception):
    """A row of the audit holds what no event holds: somebody has changed it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """What was copied out."""

    events: int
    first_seq: int | None
    last_seq: int | None
    sha256: str
    checkpoint: SignedCheckpoint | None  #: what lies beside it
    broken: str | None = None  #: why nothing was signed: what is wrong with the audit


def export(  # noqa: PLR0913 - what, where to, by whom, and how it is signed
    database: Database,
    path: Path,
    wanted: Filter,
    *,
    force: bool,
    actor: Actor,
    sign: Sign | None = None,
    progress: Callable[[int], None] = lambda _events: None,
) -> Export:
    """Write the events that fit to `path`, in the form of its suffix; `force` allows other files to be there.

    Without a filter the checkpoint beside it is of an event that is in the file, so that the file proves itself: of its
    last one where `sign` is there. With a filter it is one that covers the last event, made where there is none.
    Raises Unwritable, MayNotRecord, MissingExtra, NoEvent, OSError, StoreError; then there is no file.
    """
    require_libraries(path.suffix)
    _refuse_unwritable(path, force=force)
    asked: dict[str, Json] = {
        "file": path.name,
        "format": path.suffix.removeprefix("."),
        "filter": wanted.to_json(),
    }
    store = SqlStore(database)
    _begin(store, actor, asked)
    checkpoints = _Checkpoints(database, sign, actor, is_complete=wanted == Filter())
    end_seq = checkpoints.sign_end()
    with ExitStack() as stack:
        made = stack.enter_context(draft(path))
        with snapshot(database) as seen:
            up_to_seq = seen.last_seq if end_seq is None else end_seq
            span = write_events(FORMS[path.suffix](made), seen.events(wanted, up_to_seq=up_to_seq), progress)
        made.finish()
        sha256 = made.sha256
        signed = checkpoints.beside(span)
        drafts = [made, _line(stack, sha256_path(path), f"{sha256}  {path.name}")]
        if signed is not None:
            drafts.append(_line(stack, checkpoint_path(path), str(signed)))
        result: dict[str, Json] = {
            "events": span.events,
            "first_seq": span.first_seq,
            "last_seq": span.last_seq,
            "sha256": sha256,
            "checkpoint_seq": None if signed is None else signed.checkpoint.seq,
        }
        _refuse_unwritable(path, force=force)
        with store.transaction() as tx:
            tx.record(Action.AUDIT_EXPORTED, actor=actor, details=asked | result)
        if signed is None:
            checkpoint_path(path).unlink(missing_ok=True)  # of the file that is replaced
        for each in reversed(drafts):
            each.place()
    return Export(
        events=span.events,
        first_seq=span.first_seq,
        last_seq=span.last_seq,
        sha256=sha256,
        checkpoint=signed,
        broken=checkpoints.broken,
    )


def _refuse_unwritable(path: Path, *, force: bool) -> None:
    for each in (path, sha256_path(path), checkpoint_path(path)):
        refuse_unwritable(each, force=force)


def _begin(store: SqlStore, actor: Actor, asked: dict[str, Json]) -> None:
    try:
        with store.transaction() as tx:
            tx.record(Action.EXPORT_BEGUN, actor=actor, details=asked)
    except NothingDone as error:
        raise MayNotRecord(str(error)) from None


def _line(stack: ExitStack, path: Path, line: str) -> Draft:
    """A finished draft of one line of text."""
    made = stack.enter_context(draft(path))
    made.write(f"{line}\n".encode())
    made.finish()
    return made


class Span(NamedTuple):
    """What was written."""

    events: int
    first_seq: int | None
    last_seq: int | None


def write_events(writer: Writer, parts: Iterable[Rows], progress: Callable[[int], None]) -> Span:
    """Write all of them, and close the writer. `progress` hears how many there are so far. Raises NoEvent."""
    count, first_seq, last_seq = 0, None, None
    try:
        for rows in parts:
            count += len(rows)
            first_seq = rows[0][_SEQ] if first_seq is None else first_seq
            last_seq = rows[-1][_SEQ]
            writer.write(rows)
            progress(count)
        writer.close()
    except (TypeError, ValueError):
        writer.abandon()
        raise NoEvent(f"one up to event {last_seq} was altered beyond reading") from None
    except BaseException:
        writer.abandon()
        raise
    return Span(count, first_seq, last_seq)


class _Checkpoints:
    """Which checkpoint lies beside the file."""

    def __init__(self, database: Database, sign: Sign | None, actor: Actor, *, is_complete: bool) -> None:
        self._kept = Checkpoints(database)
        self._sign = sign
        self._actor = actor
        self._is_complete = is_complete
        self._of_end: SignedCheckpoint | None = None
        self.broken: str | None = None  #: what is wrong with the audit, where that was found out

    def sign_end(self) -> int | None:
        """Sign the last event, so that a complete export can end with it; its number, or None."""
        if self._is_complete:
            self._of_end = self._made()
        return None if self._of_end is None else self._of_end.checkpoint.seq

    def beside(self, span: Span) -> SignedCheckpoint | None:
        if span.first_seq is None or span.last_seq is None:
            return None
        if self._of_end is not None:
            return self._of_end
        if self._is_complete:
            newest = self._kept.newest_up_to(span.last_seq)
            return newest if newest and newest.checkpoint.seq >= span.first_seq and is_signed(newest) else None
        covering = self._kept.covering(span.last_seq)
        return covering if covering and is_signed(covering) else self._made()

    def _made(self) -> SignedCheckpoint | None:
        """A new one. An audit that does not verify is not signed, and is copied out all the same, as evidence."""
        if self._sign is None:
            return None
        try:
            return self._kept.make(self._sign, actor=self._actor)
        except AuditBroken as error:
            self.broken = str(error)
            return None
