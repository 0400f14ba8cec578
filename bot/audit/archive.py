"""An archive of the audit: a file of JSON lines that proves itself, with what lies beside it.

A line holds every column of an event but `entry`, which is rebuilt from the others as canonical JSON: so each hash can
be computed again, and an archive is verified without the database that it came from.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from bot.database.audit_log import LISTED
from bot.domain.audit import GENESIS_HASH, Json, canonical, chain_hash
from bot.domain.checkpoint import Checkpoint
from bot.domain.layout import Layout

LONGEST_LINE: Final = 4_000_000
"""Bytes. An event holds at most a few answers of Upbit, which are cut at much less."""

TOLD_EVERY: Final = 1000

_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_HASHES: Final = ("prev_hash", "hash")
_DETAILS: Final = LISTED.index("details")
_LINE: Final = Layout(LISTED, given=LISTED, comma=", ", colon=": ")


def sha256_path(path: Path) -> Path:
    """Beside an export: its SHA-256, as `sha256sum -c` reads it."""
    return path.with_name(f"{path.name}.sha256")


def checkpoint_path(path: Path) -> Path:
    """Beside an export: the line of a signed checkpoint."""
    return path.with_name(f"{path.name}.checkpoint")


def line_of_row(row: Sequence[Any]) -> str:
    """The line of an event, out of the columns of LISTED; `details` is canonical text. Raises TypeError."""
    return _LINE.write(row) + "\n"


class BrokenArchive(Exception):
    """The archive does not prove what it says; the sentence tells the first thing that is wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ArchivedEvent:
    """What is to be known of an event whose line was found sound."""

    seq: int
    occurred_at: str
    hash: str


class Archive:
    """Reads an archive once, from its first line to its last, and holds one line in memory.

    What is known about it as a whole is right once `events` has come to its end.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self.events_count = 0
        self.base_seq = 0  #: the event before the first one
        self.base_hash = GENESIS_HASH
        self.last_seq = 0
        self.last_hash = GENESIS_HASH

    @property
    def sha256(self) -> str:
        return self._digest.hexdigest()

    def events(self, *, progress: Callable[[int], None] = lambda _events: None) -> Iterator[ArchivedEvent]:
        """Each event, once its hash was computed anew and found to follow the one before.

        Raises BrokenArchive at the first line that is not as the bot wrote it.
        """
        while line := self._file.readline(LONGEST_LINE):
            self._digest.update(line)
            columns = _columns(line, number=self.events_count + 1)
            seq = columns["seq"]
            if self.events_count == 0:
                self.base_seq, self.base_hash = seq - 1, columns["prev_hash"]
                self.last_seq, self.last_hash = self.base_seq, self.base_hash
                if seq == 1 and self.base_hash != GENESIS_HASH:
                    raise BrokenArchive("event 1 was altered: before the first event there is none")
            if seq != self.last_seq + 1:
                raise BrokenArchive(
                    f"event {self.last_seq + 1} is missing: the next one is {seq}; an export with a filter, or of"
                    " which something was removed, proves nothing"
                )
            if columns["prev_hash"] != self.last_hash:
                raise BrokenArchive(f"event {seq} does not follow the event before it")
            if columns["hash"] != _hash_of(columns):
                raise BrokenArchive(f"event {seq} was altered: its hash does not fit its text")
            self.last_seq, self.last_hash = seq, columns["hash"]
            self.events_count += 1
            yield ArchivedEvent(seq=seq, occurred_at=columns["occurred_at"], hash=columns["hash"])
            if self.events_count % TOLD_EVERY == 0:
                progress(self.events_count)
        if self.events_count == 0:
            raise BrokenArchive("there is no event in it")


def _columns(line: bytes, *, number: int) -> dict[str, Any]:
    """The columns of a line that is written as the bot writes it, so that nothing in it reads in two ways."""
    try:
        text = line.decode()
        columns = json.loads(text)
        is_ours = isinstance(columns, dict) and tuple(columns) == LISTED and _is_line(columns, text)
    except (ValueError, TypeError, RecursionError):
        is_ours = False
    if not is_ours:
        raise BrokenArchive(f"line {number} is not written as the bot writes it")
    return columns  # type: ignore[no-any-return]


def _is_line(columns: dict[str, Json], text: str) -> bool:
    # Of what json.loads makes equal, such as 1 and true, the types are compared as well.
    if type(columns["seq"]) is not int or columns["seq"] < 1 or not isinstance(columns["details"], dict):
        return False
    if not all(isinstance(columns[name], str) and _HASH.fullmatch(str(columns[name])) for name in _HASHES):
        return False
    row = [columns[name] for name in LISTED]
    row[_DETAILS] = canonical(columns["details"])
    return line_of_row(row) == text


def _hash_of(columns: dict[str, Any]) -> str:
    return chain_hash(columns["prev_hash"], canonical({name: columns[name] for name in LISTED if name not in _HASHES}))


@dataclass(frozen=True, kw_only=True, slots=True)
class SoundArchive:
    """What a walk through an archive has shown. Events are those behind `base_seq`, up to `last_seq`."""

    events: int
    base_seq: int
    base_hash: str
    last_seq: int
    last_hash: str
    sha256: str
    checkpoints: int  #: that agree with it
    not_in_it: int  #: checkpoints of events that it does not hold


def verify_archive(
    path: Path,
    checkpoints: Sequence[Checkpoint] = (),
    *,
    on_event: Callable[[ArchivedEvent], None] = lambda _event: None,
    progress: Callable[[int], None] = lambda _events: None,
) -> SoundArchive:
    """Walk through the archive, and compare it with its hash where that lies beside it, and with the checkpoints.

    `on_event` is called for each event that was found sound, and may raise. Raises BrokenArchive, OSError.
    """
    seen: dict[int, set[str]] = {}
    for checkpoint in checkpoints:
        seen.setdefault(checkpoint.seq, set()).add(checkpoint.hash)
    agreed = 0
    with path.open("rb") as file:
        archive = Archive(file)
        for event in archive.events(progress=progress):
            on_event(event)
            if event.seq in seen:
                hashes = seen.pop(event.seq)
                if hashes != {event.hash}:
                    raise BrokenArchive(f"event {event.seq} is not the one of its checkpoint: it was rewritten")
                agreed += 1
    if sha256_path(path).exists() and read_sha256(path) != archive.sha256:
        raise BrokenArchive(f"{path.name} is not the file of {sha256_path(path).name}: its SHA-256 is {archive.sha256}")
    return SoundArchive(
        events=archive.events_count,
        base_seq=archive.base_seq,
        base_hash=archive.base_hash,
        last_seq=archive.last_seq,
        last_hash=archive.last_hash,
        sha256=archive.sha256,
        checkpoints=agreed,
        not_in_it=len(seen),
    )


def read_checkpoint(path: Path) -> str:
    """The line of the checkpoint that lies beside the archive. Raises BrokenArchive."""
    return _read_line(checkpoint_path(path))


def read_sha256(path: Path) -> str:
    """The hash that lies beside the archive. Raises BrokenArchive where there is none for this file."""
    beside = sha256_path(path)
    line = _read_line(beside)
    found, _, name = line.partition("  ")
    if _HASH.fullmatch(found) is None or name != path.name:
        raise BrokenArchive(f"{beside.name} is not one line of a hash and {path.name}")
    return found


def _read_line(path: Path) -> str:
    """The only line of a small file. Raises BrokenArchive."""
    try:
        with path.open("rb") as file:
            text = file.read(LONGEST_LINE).decode()
    except FileNotFoundError:
        raise BrokenArchive(f"{path.name} is missing beside it") from None
    except (OSError, ValueError) as error:
        cause = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise BrokenArchive(f"{path.name} cannot be read ({cause})") from None
    return text.removesuffix("\n")
