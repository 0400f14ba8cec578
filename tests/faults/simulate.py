"""Random histories of the real core: commands, clicks, crashes at every commit and call, lost answers, clock jumps.

In each of them every promise of `simulation.INVARIANTS` must hold. By hand, on all processors:

    make sim WORLDS=1000 SEED=0 DATABASE=sqlite

prints what struck and how the requests ended, and exits 1 if a history broke a promise. A seed that did plays again by
`make sim WORLDS=1 SEED=<seed>`.
"""

import argparse
import logging
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, get_args

from memory import fast_folder
from postgresql import Postgresql
from simulation import INVARIANTS, World

from bot.domain.cancel_request import State
from faults.figures import Figures, Ground, Kind

WORLDS: Final[dict[Kind, int]] = {"sqlite": 200, "postgresql": 30}
SHOWN_VIOLATIONS: Final = 5

WORDS_OF_WRONG: Final = (
    "the exchange says",
    "DELETE took effect",
    "DELETE of its own took effect",
    "no DELETE of it was accepted",
    "nobody had seen the order open",
    "it sent a DELETE",
)
WORDS_OF_LOST: Final = ("it never ended", "an approval was forgotten", "an approval was lost", "is gone")
WORDS_OF_DOUBLE: Final = (
    "two decisions",
    "somebody approved twice",
    "number of approvals",
    "a DELETE without its cancel.sent",
    "a DELETE was sent twice",
)


@dataclass(kw_only=True)
class Told:
    """What one world came to."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    visited: set[State] = field(default_factory=set)
    deletes: int = 0
    events: int = 0
    duplicates: int = 0
    violation: str | None = None


def play(seed: int, database_url: str | None = None) -> Told:
    """Play and judge one world, in a SQLite file of its own unless an empty database is given."""
    warnings.simplefilter("error")
    logging.getLogger("bot").addHandler(logging.NullHandler())
    with tempfile.TemporaryDirectory(dir=fast_folder()) as folder:
        world = World(seed, database_url or f"sqlite:///{Path(folder) / 'world.db'}")
        try:
            return _play(world)
        finally:
            world.close()


def _play(world: World) -> Told:
    told = Told(seed=world.seed, faults=world.faults)
    try:
        world.run()
        told.ends = Counter(request.state.value for request in world.requests())
        told.visited = world.visited()
        told.deletes = sum(len(book.nonces) for book in world.exchange.books.values())
        told.events = world.count_events()
        told.duplicates = sum(posted - 1 for posted in world.slack.verdicts.values())
        world.check()
    except Exception as error:  # noqa: BLE001 - whatever goes wrong in a world is a finding, and needs its seed
        told.violation = f"seed {world.seed}: {type(error).__name__}: {error}"
    return told


def run(ground: Ground) -> Figures:
    """Play many worlds, one after the other."""
    figures = Figures(experiment="random histories", database=ground.kind)
    worlds = ground.some(WORLDS[ground.kind])
    deletes = events = 0
    for seed in range(ground.seed, ground.seed + worlds):
        told = play(seed, None if ground.kind == "sqlite" else ground.new_database())
        figures.faults += told.faults
        figures.requests += told.ends.total()
        figures.duplicates += told.duplicates
        deletes += told.deletes
        events += told.events
        if told.violation is not None:
            sentence = told.violation.partition("\n")[0]
            _kind_of(sentence, figures).append(sentence)
    figures.note = f"{worlds:,} worlds, {deletes:,} DELETEs, {events:,} events"
    return figures


def _kind_of(violation: str, figures: Figures) -> list[str]:
    """Where in the figures it belongs."""
    for words, found in (
        (WORDS_OF_DOUBLE, figures.double),
        (WORDS_OF_LOST, figures.lost),
        (WORDS_OF_WRONG, figures.wrong),
    ):
        if any(word in violation for word in words):
            return found
    return figures.faulty


# --- By hand --------------------------------------------------------------------------------------------------------


def play_on(place: tuple[int, str | None]) -> Told:
    """`play` for a pool, which gives one argument."""
    return play(*place)


@contextmanager
def databases(kind: Kind) -> Iterator[Callable[[], str | None]]:
    """What gives each world its database; None stands for a file that the world makes."""
    if kind == "sqlite":
        yield lambda: None
        return
    server = Postgresql()
    try:
        yield server.create
    finally:
        server.stop()


def play_all(seeds: Iterable[int], kind: Kind) -> list[Told]:
    # The pool comes first, so that its processes inherit no connection to the server.
    with multiprocessing.Pool() as pool, databases(kind) as new_database:
        return list(pool.imap_unordered(play_on, ((seed, new_database()) for seed in seeds), chunksize=4))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--database", choices=get_args(Kind), default="sqlite")
    asked = parser.parse_args()
    began_at = time.monotonic()
    stories = play_all(range(asked.seed, asked.seed + asked.worlds), asked.database)
    took_s = time.monotonic() - began_at

    faults = sum((told.faults for told in stories), Counter[str]())
    ends = sum((told.ends for told in stories), Counter[str]())
    unseen = set(State).difference(*(told.visited for told in stories))
    violations = [told.violation for told in stories if told.violation is not None]
    rows = {
        "worlds": f"{len(stories)} on {asked.database}",
        "requests": sum(ends.values()),
        "DELETEs at the exchange": sum(told.deletes for told in stories),
        "audit events": sum(told.events for told in stories),
        "faults": sum(faults.values()),
        "states never reached": ", ".join(sorted(unseen)) or "none",
        "promises judged": len(INVARIANTS),
        "violations": len(violations),
        "seconds": round(took_s),
    }
    for name, value in rows.items():
        print(f"{name:26} {value}")  # noqa: T201 - this is what it is for
    for title, counted in (("faults", faults), ("ends", ends)):
        print(f"{title}: " + ", ".join(f"{name} {count}" for name, count in counted.most_common()))  # noqa: T201
    for violation in violations[:SHOWN_VIOLATIONS]:
        print(f"\n{violation}")  # noqa: T201
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
