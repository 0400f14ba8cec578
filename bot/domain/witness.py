"""What somebody outside of the database knows about the audit's chain: a number, and how that event's hash begins.

A summary in Slack ends with one, `audit #1234 9f2c41d07be3a01b`. Whoever rewrites the chain cannot rewrite those.
"""

import re
from dataclasses import dataclass
from typing import Final

DIGITS: Final = 16
"""Of a hash, enough that nobody finds another text with the same ones."""

MAX_WITNESSES: Final = 100_000

_LINE: Final = re.compile(r"(?:audit +)?#?([1-9][0-9]{0,17}) +([0-9a-f]{16,64})", re.ASCII)

_AROUND: Final = "`*_~>\u200b\ufeff "
"""What copying out of a chat leaves around a line: its marks, and characters that nobody sees."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Witness:
    seq: int
    hash: str  #: 16 to 64 hex digits: how the event's hash begins

    def __str__(self) -> str:
        return f"audit #{self.seq} {self.hash[:DIGITS]}"


def parse_witnesses(text: str) -> tuple[Witness, ...]:
    """A witness a line, as `1234 9f2c41d07be3a01b` or as copied from a summary; empty lines do not count.

    Raises ValueError with what is wrong.
    """
    witnesses: list[Witness] = []
    for number, line in enumerate(text.splitlines(), start=1):
        plain = " ".join(line.split()).strip(_AROUND)
        if not plain:
            continue
        found = _LINE.fullmatch(plain)
        if found is None:
            raise ValueError(f"line {number} is no witness: write the event's number and 16 hex digits of its hash")
        if len(witnesses) == MAX_WITNESSES:
            raise ValueError(f"more than {MAX_WITNESSES} witnesses")
        witnesses.append(Witness(seq=int(found[1]), hash=found[2]))
    if not witnesses:
        raise ValueError("there is no witness in it")
    return tuple(witnesses)
