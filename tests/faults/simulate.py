"""Many random histories of the real core, on all processors: `make sim WORLDS=1000 SEED=0`.

Prints what struck and how the requests ended, and exits 1 if a history broke a promise. A seed that did plays again
with `make sim WORLDS=1 SEED=<seed>`.
"""

import argparse
import multiprocessing
import sys
import tempfile
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from simulation import INVARIANTS, World

from bot.domain.cancel_request import State


@dataclass(kw_only=True)
class Told:
    """What one world came to."""

    seed: int
    faults: Counter[str] = field(default_factory=Counter)
    ends: Counter[str] = field(default_factory=Counter)
    visited: set[State] = field(default_factory=set)
    deletes: int = 0
    events: int = 0
    violation: str | None = None


def play(seed: int) -> Told:
    """Play and judge one world, in a database of its own."""
    warnings.simplefilter("error")
    told = Told(seed=seed)
    with tempfile.TemporaryDirectory() as folder:
        world = World(seed, f"sqlite:///{Path(folder) / 'world.db'}")
        try:
            world.run()
            told.faults = world.faults
            told.ends = Counter(request.state.value for request in world.requests())
            told.visited = world.visited()
            told.deletes = sum(len(book.nonces) for book in world.exchange.books.values())
            told.events = world.count_events()
            world.check()
        except AssertionError as error:
            told.violation = f"seed {seed}: {error}"
        finally:
            world.close()
    return told


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worlds", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    began_at = time.monotonic()
    with multiprocessing.Pool() as pool:
        stories = list(pool.imap_unordered(play, range(asked.seed, asked.seed + asked.worlds), chunksize=4))
    took_s = time.monotonic() - began_at

    faults = sum((told.faults for told in stories), Counter[str]())
    ends = sum((told.ends for told in stories), Counter[str]())
    unseen = set(State).difference(*(told.visited for told in stories))
    violations = [told.violation for told in stories if told.violation is not None]
    rows = {
        "worlds": len(stories),
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
    for violation in violations[:5]:
        print(f"\n{violation}")  # noqa: T201
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
