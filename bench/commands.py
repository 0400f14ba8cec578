"""`/cancel`, acknowledged once the request and its event are committed, against a bare Bolt app that only acks."""

from collections.abc import Iterator
from statistics import median

from stage import Kind, Stage
from table import Row, at_least, at_most, ms, times

WARM_UP = 30
ANSWERS_OF_ONE = 60
ANSWERS_OF_MANY = 320
LASTING = 1_000
MANY_CONNECTIONS = 16
BARE_TURNS = 3
"""The baseline's two processes share sixteen connections as it happens, and do 700 to 1,400 a second by that alone."""
LEAST_RATE = {"SQLite": 0.8, "PostgreSQL": 0.5}


def rows(here: Stage) -> Iterator[Row]:
    for kind in here.sizes.kinds:
        yield from _of(kind, here)


def _of(kind: Kind, here: Stage) -> Iterator[Row]:
    url = here.new_database(kind)
    alone, alone_bare = list[float](), list[float]()
    many, many_bare = list[float](), list[float]()
    turned_away = 0
    with here.bare_bolt() as bare_port, here.bot(url) as bot:
        here.send([bot.port], here.commands(WARM_UP).requests)
        for _ in range(here.sizes.some(4, quick=1)):
            count = here.sizes.some(ANSWERS_OF_ONE, quick=20)
            here.rest(url)
            asked = here.commands(count)
            answers = here.send([bot.port], asked.requests)
            here.check_commands(url, asked, answers)
            alone += [answer.took_s for answer in answers]
            here.rest(url)
            alone_bare += [answer.took_s for answer in here.send([bare_port], asked.requests)]

            asked = here.commands(here.sizes.some(ANSWERS_OF_MANY, quick=64))
            answers = here.send([bot.port], asked.requests, connections=MANY_CONNECTIONS)
            recorded = here.check_commands(url, asked, answers)
            turned_away += len(answers) - recorded
            many.append(recorded / max(answer.at_s for answer in answers))
            here.rest(url)
            for _ in range(BARE_TURNS):
                answers = here.send([bare_port], asked.requests, connections=MANY_CONNECTIONS)
                many_bare.append(len(answers) / max(answer.at_s for answer in answers))
        lasting = here.sizes.some(LASTING, quick=32)
        here.rest(url)
        asked = here.commands(lasting)
        answers = here.send([bare_port], asked.requests, connections=MANY_CONNECTIONS)
        lasting_bare = lasting / max(answer.at_s for answer in answers)
        answers = here.send([bot.port], asked.requests, connections=MANY_CONNECTIONS)
        lasting_ours = here.check_commands(url, asked, answers) / max(answer.at_s for answer in answers)
    here.check_chain(url)
    ratio = median(alone) / median(alone_bare)
    yield Row(
        name=f"/cancel acknowledged and committed, {kind}, 1 connection, p50",
        baseline=ms(median(alone_bare)),
        figure=ms(median(alone)),
        ratio=times(ratio),
        must="≤ 0.4 x",
        aim="≤ 0.2 x",
        met=at_most(ratio, must=0.4, aim=0.2),
    )
    ratio = median(many) / median(many_bare)
    yield Row(
        name=f"/cancel acknowledged and committed, {kind}, 16 connections, {ANSWERS_OF_MANY} of them",
        baseline=f"{median(many_bare):.0f}/s",
        figure=f"{median(many):.0f}/s" + (f", {turned_away} turned away" if turned_away else ""),
        ratio=times(ratio),
        must=f"≥ {LEAST_RATE[kind]} x",
        aim="≥ 1.5 x",
        met=at_least(ratio, must=LEAST_RATE[kind], aim=1.5),
    )
    yield Row(
        name=f"the same for so long that orders are read and cards are posted meanwhile, {LASTING:,} of them",
        baseline=f"{lasting_bare:.0f}/s",
        figure=f"{lasting_ours:.0f}/s",
        ratio=times(lasting_ours / lasting_bare),
    )
