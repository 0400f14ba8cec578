"""Removes old events from the audit, once an archive is proven to hold every one of them."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from bot.audit.archive import ArchivedEvent, SoundArchive, read_sha256, verify_archive
from bot.audit.signing import is_signed
from bot.database.engine import Database
from bot.database.pruning import CannotPrune, Cut, prune, require_owner
from bot.database.snapshot import Snapshot, snapshot
from bot.database.verification import verify
from bot.domain.audit import Actor, Json, timestamp
from bot.domain.checkpoint import SignedCheckpoint

KEPT: Final = timedelta(days=1)
"""Longer than Slack repeats a delivery: by its event the bot knows that it has refused a command before."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Pruned:
    events: int
    up_to_seq: int


def prune_behind_archive(  # noqa: PLR0913 - what, how it is proven, by whom
    database: Database,
    path: Path,
    *,
    before: datetime,
    signed: SignedCheckpoint,
    actor: Actor,
    progress: Callable[[int], None] = lambda _events: None,
) -> Pruned:
    """Remove the events from before this time, and keep a base that the chain begins behind.

    The archive holds each of them with its hash, and the hash that lies beside it is its own; `signed`, by a key that
    the caller trusts, is a checkpoint of an event in the archive; none of the removed ones comes after it, and the
    whole audit verifies with it. Raises CannotPrune, BrokenArchive, OSError, StoreError.
    """
    require_owner(database)
    _require_past(database, before)
    if not is_signed(signed):
        raise CannotPrune("the checkpoint was altered: its signature is not good")
    read_sha256(path)
    with snapshot(database) as seen:
        comparison = _Comparison(seen, before)
        archive = verify_archive(path, [signed.checkpoint], on_event=comparison.compare, progress=progress)
        cut = comparison.proven(archive, signed)
    verified = verify(database, checkpoints=[signed.checkpoint], progress=progress)
    if verified.fault is not None:
        raise CannotPrune(f"the audit does not verify, and what is removed would be evidence: {verified.fault}")
    details: dict[str, Json] = {
        "up_to_seq": cut.up_to_seq,
        "events": cut.events,
        "before": timestamp(before),
        "archive": path.name,
        "archive_sha256": archive.sha256,
        "checkpoint": signed.as_json(),
    }
    prune(database, cut, actor=actor, details=details)
    return Pruned(events=cut.events, up_to_seq=cut.up_to_seq)


def _require_past(database: Database, before: datetime) -> None:
    with database.read() as connection:
        newest = database.now(connection) - KEPT
    if before > newest:
        raise CannotPrune(f"what happened after {timestamp(newest)} stays, as the bot may need it")


class _Comparison:
    """Of the events that are to be removed with those of the archive, as both are read once, side by side."""

    def __init__(self, seen: Snapshot, before: datetime) -> None:
        """Raises CannotPrune where there is nothing to remove."""
        self._base_seq, self._base_hash = seen.base_seq, seen.base_hash
        self._up_to_seq = seen.last_before(before) or 0
        if self._up_to_seq <= self._base_seq:
            raise CannotPrune(f"no event is from before {timestamp(before)}")
        self._hashes: Iterator[tuple[int, str]] = seen.hashes(up_to_seq=self._up_to_seq)
        self._compared_hash = ""

    def compare(self, event: ArchivedEvent) -> None:
        """Raises CannotPrune where the database has another event."""
        if not self._compared_hash and event.seq > self._base_seq + 1:
            raise CannotPrune(
                f"the archive begins with event {event.seq}, and event {self._base_seq + 1} would be lost"
            )
        if event.seq == self._base_seq and event.hash != self._base_hash:
            raise CannotPrune(f"the archive is of another audit: event {event.seq} is not the one that was pruned here")
        if self._base_seq < event.seq <= self._up_to_seq:
            if next(self._hashes, None) != (event.seq, event.hash):
                raise CannotPrune(f"event {event.seq} is not in the database as it is in the archive")
            self._compared_hash = event.hash

    def proven(self, archive: SoundArchive, signed: SignedCheckpoint) -> Cut:
        """What may be removed. Raises CannotPrune where the archive does not hold, or prove, all of it."""
        if archive.base_seq == self._base_seq and archive.base_hash != self._base_hash:
            raise CannotPrune("the archive is of another audit: it does not follow what was pruned here")
        if archive.last_seq < self._up_to_seq:
            raise CannotPrune(
                f"the archive ends with event {archive.last_seq}, and events up to {self._up_to_seq} would be lost"
            )
        if not archive.checkpoints or signed.checkpoint.seq < self._up_to_seq:
            raise CannotPrune(
                f"the checkpoint is of event {signed.checkpoint.seq}: it must be of one in the archive, and of none"
                f" before {self._up_to_seq}; export everything again with CHECKPOINT_KEY"
            )
        return Cut(base_seq=self._base_seq, up_to_seq=self._up_to_seq, up_to_hash=self._compared_hash)
