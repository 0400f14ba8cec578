"""Measure every figure and print the table; `make bench` runs this.

python bench/main.py [--quick] [ROOM …]
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import busy
import cancel_clients
import chain_append
import clicks
import commands
import past
import scale_out
import start
from stage import Sizes, Stage, stage
from table import NotDoneError, Row, markdown

Room = Callable[[Stage], Iterator[Row]]

ROOMS: Final[Mapping[str, Room]] = {
    "commands": commands.rows,
    "busy": busy.rows,
    "clicks": clicks.rows,
    "clients": cancel_clients.rows,
    "replicas": scale_out.rows,
    "chain": chain_append.rows,
    "start": start.rows,
    "past": past.rows,
}


def main(arguments: Sequence[str]) -> int:
    """Exit status 1 where a figure is missed."""
    began_at = time.monotonic()
    wanted = [name for name in arguments if name in ROOMS] or list(ROOMS)
    rows = []
    with stage(Sizes(is_quick="--quick" in arguments)) as here:
        for name in wanted:
            for row in _rows_of(name, here):
                print(f"{time.monotonic() - began_at:4.0f} s  {' | '.join(row.cells)}", file=sys.stderr, flush=True)
                rows.append(row)
    print("\n".join(markdown(rows)))
    return 1 if any(row.met.startswith("missed") for row in rows) else 0


def _rows_of(name: str, here: Stage) -> Iterator[Row]:
    """Where work was not done, that is the figure, and the others are measured all the same."""
    try:
        yield from ROOMS[name](here)
    except (NotDoneError, OSError) as error:
        if here.sizes.is_quick:
            raise
        yield Row(name=f"the rest of {name}", met=f"missed: {error}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
