"""How long `bot run` takes to be ready, and what it holds in memory when it has nothing to do."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from stage import Stage
from table import NotDoneError, Row, at_most

from bot.playground.demo import BotProcess

SETTLE_S = 2.0
MIB = 2**20


def rows(here: Stage) -> Iterator[Row]:
    url = here.new_database("SQLite")
    took_s, held_bytes = list[float](), 0
    for number in range(here.sizes.some(6, quick=1) + 1):
        bot = here.stopped_bot(url)
        began_at = time.perf_counter()
        with bot:
            bot.wait_until_ready()
            if number or here.sizes.is_quick:  # the first one warms the disk
                took_s.append(time.perf_counter() - began_at)
            if number == 1:
                time.sleep(here.sizes.some(1, quick=0) * SETTLE_S)
                held_bytes = _memory_bytes(bot)
            if bot.stop() != 0:
                raise NotDoneError("bot run did not end well")
    yield Row(
        name="start of bot run to ready, warm disk, p50",
        figure=f"{median(took_s):.2f} s",
        must="< 2 s",
        aim="< 1 s",
        met=at_most(median(took_s), must=2, aim=1),
    )
    yield Row(
        name="memory idle, both processes, shared pages once",
        figure=f"{held_bytes / MIB:.0f} MiB",
        must="< 120 MiB",
        met=at_most(held_bytes, must=120 * MIB),
    )


def _memory_bytes(bot: BotProcess) -> int:
    """Of the process that serves and its parent: https://docs.kernel.org/filesystems/proc.html, Pss."""
    serving = bot.serving_pid
    if serving is None:
        raise NotDoneError("nobody serves")
    parent = int(re.findall(r"^PPid:\s+(\d+)", Path(f"/proc/{serving}/status").read_text(), re.MULTILINE)[0])
    told = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in (serving, parent)]
    return sum(int(re.findall(r"^Pss:\s+(\d+) kB", text, re.MULTILINE)[0]) * 1024 for text in told)
