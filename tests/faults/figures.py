"""What an experiment is given and what it comes to: one line of the table that `make faults` prints.

Each experiment is a module of this folder with a function

    def run(ground: Ground) -> Figures

that plays once on the database of its ground. Whatever it finds wrong it writes into `Figures.faulty`, in sentences.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

Kind = Literal["sqlite", "postgresql"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ground:
    """Where an experiment takes place, how large it is and which dice it rolls."""

    folder: Path  #: empty, its own, on a disk
    kind: Kind
    new_database: Callable[[], str]  #: the URL of an empty database of that kind, not migrated
    scale: float  #: 1 is the whole experiment
    seed: int

    def some(self, whole: int, *, at_least: int = 1) -> int:
        """So many of `whole` at this scale."""
        return max(at_least, round(whole * self.scale))


@dataclass(kw_only=True, slots=True)
class Figures:
    """What came of it. `wrong`, `lost`, `double` and `faulty` must stay empty; each entry is a sentence."""

    experiment: str
    database: str
    faults: Counter[str] = field(default_factory=Counter)  #: what was done to the bot, by kind
    requests: int = 0
    wrong: list[str] = field(default_factory=list)  #: an end that is not what happened at the exchange
    lost: list[str] = field(default_factory=list)  #: acknowledged, and never ended or never decided
    double: list[str] = field(default_factory=list)  #: two decisions, or a DELETE that no cancel.sent announced
    faulty: list[str] = field(default_factory=list)  #: any other promise that was broken
    duplicates: int = 0  #: messages that say a second time what the channel had been told
    note: str = ""  #: the figures that only this experiment has
    seconds: float = 0.0  #: measured by who plays it

    @property
    def violations(self) -> list[str]:
        return [*self.wrong, *self.lost, *self.double, *self.faulty]

    def expect(self, truth: object, otherwise: str) -> None:
        """Note a broken promise."""
        if not truth:
            self.faulty.append(otherwise)


HEADINGS: Final = (
    "experiment",
    "database",
    "faults",
    "requests",
    "wrong ends",
    "lost",
    "double",
    "other",
    "duplicates",
    "time",
    "beside that",
)


def row(figures: Figures) -> tuple[str, ...]:
    """One line of the table, in the order of HEADINGS."""
    return (
        figures.experiment,
        figures.database,
        f"{figures.faults.total():,}",
        f"{figures.requests:,}",
        str(len(figures.wrong)),
        str(len(figures.lost)),
        str(len(figures.double)),
        str(len(figures.faulty)),
        str(figures.duplicates),
        f"{figures.seconds:.0f} s",
        figures.note,
    )
