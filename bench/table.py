"""The table that `make bench` prints: a row for each figure, and whether it is what it must be."""

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import quantiles
from typing import Final

MEASURED: Final = "measured"
NOT_MEASURED: Final = "not measured"
HEAD: Final = ("figure", "baseline", "here", "ratio", "must", "aim", "")


class NotDoneError(Exception):
    """The work that was measured was not really done, so its figure means nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure as it is read; `met` is met, met + aim, missed, measured or not measured."""

    name: str
    baseline: str = "-"
    figure: str = "-"
    ratio: str = "-"
    must: str = "-"
    aim: str = "-"
    met: str = MEASURED

    @property
    def cells(self) -> tuple[str, ...]:
        return self.name, self.baseline, self.figure, self.ratio, self.must, self.aim, self.met


def at_most(value: float, *, must: float, aim: float | None = None) -> str:
    if value > must:
        return "missed"
    return "met + aim" if aim is not None and value <= aim else "met"


def at_least(value: float, *, must: float, aim: float | None = None) -> str:
    if value < must:
        return "missed"
    return "met + aim" if aim is not None and value >= aim else "met"


def percentile(values: Iterable[float], percent: int) -> float:
    """Of at least two values, or the only one."""
    known = list(values)
    return known[0] if len(known) == 1 else quantiles(known, n=100, method="inclusive")[percent - 1]


def ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 0.01 else f"{seconds * 1000:.1f} ms"


def times(ratio: float) -> str:
    return f"{ratio:.2f} x"


def markdown(rows: Iterable[Row]) -> list[str]:
    """The table's lines, each cell as wide as its column."""
    table = [HEAD, *(row.cells for row in rows)]
    widths = [max(len(line[column]) for line in table) for column in range(len(HEAD))]
    lines = ["| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in table]
    return [lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]]
