"""Evidence packs: one zip file from which somebody without Slack and our database sees and checks one request.

What is in a pack and what it proves stands in `docs/audit.md` and in the pack's README.txt; `verify_evidence.py`, which
goes along as verify.py, checks it. The pack is written beside its final name, checked with that very verifier, recorded
in the audit, and only then given its name.
"""

import hashlib
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

from bot.audit import verify_evidence
from bot.audit.evidence_page import Facts, render
from bot.audit.signing import Signer, is_signed
from bot.audit.whole_file import beside, refuse_unwritable
from bot.database.checkpoints import Checkpoints
from bot.database.engine import Database
from bot.database.request_span import Link, RequestSpan
from bot.database.schema import audit_events
from bot.database.store import SqlStore
from bot.domain.audit import Action, Actor, Json, chain_hash, timestamp
from bot.domain.checkpoint import SignedCheckpoint
from bot.domain.errors import AuditBroken
from bot.domain.visible import visible

FORMAT: Final = "upbit-cancel-bot evidence 1"
MAX_SHOWN: Final = 200
"""Of each action the page shows so many events; events.jsonl has all."""
READ_BYTES: Final = 1024 * 1024

_COLUMNS: Final = tuple(name for name in audit_events.columns.keys() if name != "entry")  # noqa: SIM118 - no mapping


class CannotPack(Exception):
    """There is no pack; the text says why and what to do."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A pack that was written."""

    events: int  #: of the request
    first_seq: int
    last_seq: int  #: the checkpoint's
    is_new_checkpoint: bool  #: made for this pack
    sha256: str
    public_key: str
    verifier_sha256: str


def pack_evidence(  # noqa: PLR0913 - where, what, for whom, by what
    database: Database, request_id: int, *, out: Path, force: bool, signer: Signer, actor: Actor, version: str
) -> Packed:
    """Write the pack of a request to `out`, and into the audit that it was made.

    Raises Unwritable, CannotPack, StoreError, OSError; then there is no file.
    """
    refuse_unwritable(out, force=force)
    signed, is_new = _covering(database, request_id, signer, actor=actor)
    with beside(out) as path:
        written = _Writer(database, request_id, signed=signed, signer=signer, actor=actor, version=version).write(path)
        _refuse_unsound(path)
        sha256 = _kept(path)
        with SqlStore(database).transaction() as tx:
            tx.record(
                Action.EVIDENCE_PACKED,
                actor=actor,
                # The request stands in the details: as the event's request it would make every pack outdated by itself.
                details={
                    "request": request_id,
                    "file": out.name,
                    "sha256": sha256,
                    "first_seq": written.first_seq,
                    "last_seq": signed.checkpoint.seq,
                    "checkpoint": signed.as_json(),
                },
            )
        refuse_unwritable(out, force=force)
        path.replace(out)
    return Packed(
        events=written.events,
        first_seq=written.first_seq,
        last_seq=signed.checkpoint.seq,
        is_new_checkpoint=is_new,
        sha256=sha256,
        public_key=signer.public_key,
        verifier_sha256=hashlib.sha256(verifier()).hexdigest(),
    )


def verifier() -> bytes:
    """The source of verify.py."""
    return files("bot.audit").joinpath("verify_evidence.py").read_bytes()


# The checkpoint


def _covering(database: Database, request_id: int, signer: Signer, *, actor: Actor) -> tuple[SignedCheckpoint, bool]:
    """The first good one of this key at or after the request's last event, made now if there is none; and if it was."""
    signed = _found(database, request_id, signer)
    if signed is not None:
        return signed, False
    try:
        return Checkpoints(database).make(signer.sign, actor=actor), True
    except AuditBroken as error:
        raise CannotPack(f"the audit does not verify, run `bot audit verify`: {visible(str(error))}") from None


def _found(database: Database, request_id: int, signer: Signer) -> SignedCheckpoint | None:
    with database.read() as connection:
        span = RequestSpan(connection, request_id)
        bounds = span.bounds()
        if bounds is None:
            raise CannotPack(f"there is no request #{request_id}")
        return next(filter(is_signed, span.checkpoints_since(bounds[1], key=signer.public_key)), None)


# The file


@dataclass(frozen=True, kw_only=True, slots=True)
class _Written:
    events: int
    first_seq: int


class _Writer:
    """Writes one pack."""

    def __init__(  # noqa: PLR0913 - see pack_evidence
        self,
        database: Database,
        request_id: int,
        *,
        signed: SignedCheckpoint,
        signer: Signer,
        actor: Actor,
        version: str,
    ) -> None:
        self._database = database
        self._request_id = request_id
        self._signed = signed
        self._signer = signer
        self._actor = actor
        self._version = version
        self._hashes: dict[str, Json] = {}
        self._shown: list[dict[str, Any]] = []
        self._counts: Counter[str] = Counter()

    def write(self, path: Path) -> _Written:
        """Raises CannotPack."""
        with self._database.read() as connection, zipfile.ZipFile(path, "w") as pack:
            now = self._database.now(connection)
            span = RequestSpan(connection, self._request_id)
            first_seq, last_seq = span.bounds() or (0, 0)
            end = self._signed.checkpoint.seq
            # The chain comes first: what is read after it is what the bot wrote.
            self._add(pack, now, "chain.jsonl", self._chain_lines(span.of_all(first_seq, end)))
            own = (link for link in span.of_request() if link.seq <= end)
            self._add(pack, now, "events.jsonl", self._event_lines(own))
            self._add(pack, now, "checkpoint.json", [f"{self._signed}\n".encode()])
            facts = Facts(
                request_id=self._request_id,
                made_at=timestamp(now),
                made_by=self._actor.id,
                version=self._version,
                signed=self._signed,
                first_seq=first_seq,
                later_events=last_seq > end,
                counts=dict(self._counts),
            )
            self._add(pack, now, "index.html", [render(self._shown, facts).encode()])
            self._add(pack, now, "verify.py", [verifier()])
            self._add(pack, now, "README.txt", [self._readme(first_seq).encode()])
            manifest = self._manifest(now)
            self._add(pack, now, "manifest.json", [manifest])
            self._add(pack, now, "manifest.sig", [f"{self._signer.signature(manifest)}\n".encode()])
        return _Written(events=self._counts.total(), first_seq=first_seq)

    def _add(self, pack: zipfile.ZipFile, now: datetime, name: str, parts: Iterable[bytes]) -> None:
        entry = zipfile.ZipInfo(name, now.astimezone(UTC).timetuple()[:6])
        entry.compress_type = zipfile.ZIP_DEFLATED
        entry.create_system = 3  # Unix, to which the next line means something
        entry.external_attr = 0o100644 << 16
        digest = hashlib.sha256()
        with pack.open(entry, "w", force_zip64=name.endswith(".jsonl")) as file:
            for part in parts:
                file.write(part)
                digest.update(part)
        self._hashes[name] = digest.hexdigest()

    def _chain_lines(self, links: Iterator[Link]) -> Iterator[bytes]:
        last: Link | None = None
        for link in links:
            is_next = last is None or (link.seq, link.prev_hash) == (last.seq + 1, last.hash)
            if not is_next or link.hash != chain_hash(link.prev_hash, link.entry):
                raise CannotPack(f"the chain is broken at event {link.seq}: run `bot audit verify`")
            last = link
            yield f"{json.dumps(link._asdict())}\n".encode()
        made = self._signed.checkpoint
        if last is None or (last.seq, last.hash) != (made.seq, made.hash):
            raise CannotPack(f"event {made.seq} is not the one that its checkpoint saw: the chain was rewritten")

    def _event_lines(self, links: Iterator[Link]) -> Iterator[bytes]:
        for link in links:
            event = _event(link)
            action = str(event["action"])
            self._counts[action] += 1
            if self._counts[action] <= MAX_SHOWN:
                self._shown.append(event)
            yield f"{visible(json.dumps(event, ensure_ascii=False))}\n".encode()

    def _manifest(self, now: datetime) -> bytes:
        facts: dict[str, Json] = {
            "format": FORMAT,
            "request": self._request_id,
            "made_at": timestamp(now),
            "made_by": self._actor.id,
            "bot_version": self._version,
            "public_key": self._signer.public_key,
            "files": {name: self._hashes[name] for name in sorted(self._hashes)},
        }
        return f"{json.dumps(facts, indent=1)}\n".encode()

    def _readme(self, first_seq: int) -> str:
        text = files("bot.audit").joinpath("templates/evidence_readme.txt").read_text(encoding="utf-8")
        made = self._signed.checkpoint
        return text.format(
            request=self._request_id, key=self._signer.public_key, first=first_seq, last=made.seq, at=made.at
        )


def _event(link: Link) -> dict[str, Any]:
    """The event's columns, read from the text that was hashed."""
    try:
        entry = json.loads(link.entry)
        return {name: entry[name] for name in _COLUMNS[:-2]} | {"prev_hash": link.prev_hash, "hash": link.hash}
    except (ValueError, KeyError, TypeError):
        raise CannotPack(f"event {link.seq} cannot be read: run `bot audit verify`") from None


def _refuse_unsound(path: Path) -> None:
    """Nobody gets a pack that its own verifier does not take: then it is the audit that is broken."""
    faults = [text for good, text in verify_evidence.verify(path) if not good]
    if faults:
        raise CannotPack(f"the audit does not verify there, run `bot audit verify`: {visible('; '.join(faults))}")


def _kept(path: Path) -> str:
    """The file's SHA-256, once it is on the disk."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        os.fsync(file.fileno())
        for part in iter(lambda: file.read(READ_BYTES), b""):
            digest.update(part)
    return digest.hexdigest()
