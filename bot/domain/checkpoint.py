"""A checkpoint: what the audit's chain was at one moment, signed, and kept where the database's owner cannot change it.

As a file or a message it is one line of JSON:

    {"checkpoint":{"at":"2026-11-23T00:00:00.000000Z","hash":"9f2c…","seq":1234},"key":"<hex>","signature":"<hex>"}

`at` is the database's time. What is signed is the canonical JSON of `checkpoint`; `key` is the public Ed25519 key.
"""

import json
import re
from dataclasses import dataclass
from typing import Final

from bot.domain.audit import Json, canonical

LONGEST_LINE: Final = 1000
MAX_CHECKPOINTS: Final = 10_000

_HASH: Final = re.compile(r"[0-9a-f]{64}", re.ASCII)
_SIGNATURE: Final = re.compile(r"[0-9a-f]{128}", re.ASCII)
_TIME: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{6}Z", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    """The end of the chain: event `seq`, the last one there was, has this `hash`. Sequences have no gaps."""

    seq: int  #: 0 where the audit was empty
    hash: str  #: 64 hex digits
    at: str  #: as `audit.timestamp` writes times

    def as_json(self) -> dict[str, Json]:
        return {"at": self.at, "hash": self.hash, "seq": self.seq}

    def signed_text(self) -> bytes:
        """What the signature covers."""
        return canonical(self.as_json()).encode()


@dataclass(frozen=True, kw_only=True, slots=True)
class SignedCheckpoint:
    checkpoint: Checkpoint
    key: str  #: the public key, 64 hex digits
    signature: str  #: 128 hex digits

    def as_json(self) -> dict[str, Json]:
        return {"checkpoint": self.checkpoint.as_json(), "key": self.key, "signature": self.signature}

    def __str__(self) -> str:
        return canonical(self.as_json())


def parse_checkpoint(line: str) -> SignedCheckpoint:
    """Read the line; whether the signature is good is another question. Raises ValueError with what is wrong."""
    if len(line) > LONGEST_LINE:
        raise ValueError("too long for a checkpoint")
    try:
        read = json.loads(line)
        made, key, signature = read["checkpoint"], read["key"], read["signature"]
        seq, head, at = made["seq"], made["hash"], made["at"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ValueError("not a checkpoint: one line of JSON with checkpoint, key and signature") from None
    if type(seq) is not int or seq < 0:
        raise ValueError("the checkpoint's seq is no whole number")
    for name, value, form in (
        ("hash", head, _HASH),
        ("at", at, _TIME),
        ("key", key, _HASH),
        ("signature", signature, _SIGNATURE),
    ):
        if not isinstance(value, str) or form.fullmatch(value) is None:
            raise ValueError(f"the checkpoint's {name} is not written as one")
    return SignedCheckpoint(checkpoint=Checkpoint(seq=seq, hash=head, at=at), key=key, signature=signature)


def parse_checkpoints(text: str) -> tuple[SignedCheckpoint, ...]:
    """A checkpoint a line, as a file or a message has it; empty lines and the marks of a code block do not count.

    Raises ValueError with what is wrong.
    """
    found: list[SignedCheckpoint] = []
    for number, line in enumerate(text.splitlines(), start=1):
        written = line.strip().strip("`").strip()
        if not written:
            continue
        if len(found) == MAX_CHECKPOINTS:
            raise ValueError(f"more than {MAX_CHECKPOINTS} checkpoints")
        try:
            found.append(parse_checkpoint(written))
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    if not found:
        raise ValueError("there is no checkpoint in it")
    return tuple(found)
