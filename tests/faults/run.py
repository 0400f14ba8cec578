"""All experiments, and a table of what they came to: `make faults SCALE=1 SEED=0`.

Three experiments at a time, each in a process of its own with a PostgreSQL of its own where it needs one. SCALE makes
them larger or smaller, SEED rolls other dice. Exits 1 if a promise was broken, and says which.
"""

import argparse
import importlib
import logging
import multiprocessing
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Final

from postgresql import Postgresql
from rich.console import Console
from rich.table import Table

from faults.figures import HEADINGS, Figures, Ground, Kind, row

AT_A_TIME: Final = 4
"""On two cores: mostly they wait."""
MOST: Final = 12
"""Kinds of faults that are told while the experiments run."""

EXPERIMENTS: Final[tuple[tuple[str, Sequence[Kind]], ...]] = (
    # The longest first, so that none of them is left over at the end.
    ("load", ("sqlite", "postgresql")),
    ("kill", ("sqlite", "postgresql")),
    ("simulate", ("sqlite", "postgresql")),
    ("lies", ("sqlite", "postgresql")),
    ("slack_away", ("sqlite", "postgresql")),
    ("database_away", ("sqlite", "postgresql")),
    ("hostile", ("sqlite", "postgresql")),
    ("network", ("sqlite", "postgresql")),
    ("clocks", ("sqlite", "postgresql")),
    ("replicas", ("postgresql",)),
    ("model", ("sqlite", "postgresql")),
)
"""The module of this folder, and on which databases its `run` is played."""


def play(name: str, kind: Kind, *, scale: float, seed: int) -> Figures:
    """Play one experiment on new ground."""
    # What plays the bot's core in this process would print its warnings here; processes of their own have their logs.
    logging.getLogger("bot").addHandler(logging.NullHandler())
    server = Postgresql() if kind == "postgresql" else None
    try:
        with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
            new_database = server.create if server else SqliteFiles(Path(folder))
            return play_on(
                Ground(folder=Path(folder), kind=kind, new_database=new_database, scale=scale, seed=seed), name
            )
    finally:
        if server is not None:
            server.stop()


def play_on(ground: Ground, name: str) -> Figures:
    """Play one experiment. What it raises is a finding, too."""
    began_at = time.monotonic()
    try:
        figures: Figures = importlib.import_module(f"faults.{name}").run(ground)
    except Exception:  # noqa: BLE001 - an experiment that breaks off must not hide the others
        figures = Figures(experiment=name, database=ground.kind, faulty=[traceback.format_exc()])
    figures.seconds = time.monotonic() - began_at
    return figures


class SqliteFiles:
    """Gives URLs of SQLite files in a folder, a new one each time."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._given = 0

    def __call__(self) -> str:
        self._given += 1
        return f"sqlite:///{self._folder / f'cancels-{self._given}.db'}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="modules of this folder, with commas between them")
    asked = parser.parse_args()
    only = {name for name in asked.only.split(",") if name}
    unknown = only - {name for name, _ in EXPERIMENTS}
    if unknown:
        parser.error(f"there is no experiment {', '.join(sorted(unknown))}")
    began_at = time.monotonic()
    console = Console(width=None if sys.stdout.isatty() else 200)
    chosen = [(name, kind) for name, kinds in EXPERIMENTS for kind in kinds if not only or name in only]
    done: dict[tuple[str, Kind], Figures] = {}
    # A new process for each: what one leaves in memory is not the next one's.
    with ProcessPoolExecutor(
        AT_A_TIME, mp_context=multiprocessing.get_context("spawn"), max_tasks_per_child=1
    ) as processes:
        playing: dict[Future[Figures], tuple[str, Kind]] = {
            processes.submit(play, name, kind, scale=asked.scale, seed=asked.seed): (name, kind)
            for name, kind in chosen
        }
        for future in as_completed(playing):
            figures = done[playing[future]] = future.result()
            console.print(f"{figures.experiment} on {figures.database}: {_in_short(figures)}", highlight=False)
            for violation in figures.violations:
                console.print(f"  {violation}", highlight=False, markup=False)
    console.print(_table([done[each] for each in chosen]))
    console.print(f"scale {asked.scale:g}, seed {asked.seed}, {time.monotonic() - began_at:.0f} s", highlight=False)
    return 1 if any(figures.violations for figures in done.values()) else 0


def _in_short(figures: Figures) -> str:
    found = f"{len(figures.violations)} broken promises" if figures.violations else "fine"
    most = ", ".join(f"{times} {name}" for name, times in figures.faults.most_common(MOST))
    return f"{found} after {figures.seconds:.0f} s; {most}"


def _table(all_figures: Sequence[Figures]) -> Table:
    table = Table(pad_edge=False)
    for number, heading in enumerate(HEADINGS):
        table.add_column(heading, justify="left" if number in {0, 1, len(HEADINGS) - 1} else "right")
    for figures in all_figures:
        table.add_row(*row(figures))
    return table


if __name__ == "__main__":
    sys.exit(main())
