"""Decisions a second on one PostgreSQL, by one, two and four replicas."""

from collections.abc import Iterator
from contextlib import ExitStack
from statistics import median

import psutil
from stage import Stage
from table import Row, at_least, times

from bot.playground.demo import BotProcess

REPLICAS = (1, 2, 4)
CONNECTIONS = 16


def rows(here: Stage) -> Iterator[Row]:
    replicas = REPLICAS[: here.sizes.some(len(REPLICAS), quick=2)]
    rates: dict[int, list[float]] = {count: [] for count in replicas}
    busy: dict[int, list[float]] = {count: [] for count in replicas}
    with ExitStack() as stack:
        deployed: dict[int, tuple[str, list[BotProcess]]] = {}
        for count in replicas:
            url = here.new_database("PostgreSQL")
            deployed[count] = url, [stack.enter_context(here.bot(url)) for _ in range(count)]
            here.send([bot.port for bot in deployed[count][1]], here.commands(8 * count).requests, connections=count)
        for _ in range(here.sizes.some(3, quick=1)):
            for count, (url, bots) in deployed.items():
                here.rest(url)
                clicked = here.denials(here.insert_pending(url, here.sizes.some(320, quick=32)))
                psutil.cpu_percent()
                answers = here.send([bot.port for bot in bots], clicked.requests, connections=CONNECTIONS)
                busy[count].append(psutil.cpu_percent() / 100 * (psutil.cpu_count() or 1))
                decided = here.check_denials(url, clicked, answers)
                rates[count].append(decided / max(answer.at_s for answer in answers))
                here.rest(url)
        for url, _ in deployed.values():
            here.check_chain(url)
    one = median(rates[1])
    for count in replicas[1:]:
        ratio = median(rates[count]) / one
        must = count == 2
        yield Row(
            name=f"decided requests, {count} replicas on PostgreSQL",
            baseline=f"{one:.0f}/s, {median(busy[1]):.1f} cores busy",
            figure=f"{median(rates[count]):.0f}/s, {median(busy[count]):.1f} cores busy",
            ratio=times(ratio),
            must="≥ 1.5 x" if must else "-",
            aim="near-linear",
            met=at_least(ratio, must=1.5, aim=1.9) if must else "measured",
        )
