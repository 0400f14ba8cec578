"""Sixteen writers that append to the chain, against sixteen that insert the same rows without one."""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from sqlalchemy import Column, Integer, MetaData, Table, Text, func, insert, select
from stage import Stage, opened
from table import NotDoneError, Row, times

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.domain.audit import SYSTEM, Action, AuditEvent, Outcome, canonical, columns

WRITERS = 16
UNCHAINED = Table("unchained", MetaData(), Column("id", Integer, primary_key=True), Column("entry", Text))
EVENT = AuditEvent(action=Action.AUDIT_VERIFIED, outcome=Outcome.OK, actor=SYSTEM, details={"why": "to be counted"})


def rows(here: Stage) -> Iterator[Row]:
    for kind in here.sizes.kinds:
        chained, unchained = list[float](), list[float]()
        each = here.sizes.some(40, quick=3)
        url = here.new_database(kind)
        with opened(url) as database:
            UNCHAINED.create(database.engine)
            before = _count(database)
            rounds = here.sizes.some(4, quick=1)
            for _ in range(rounds):
                chained.append(_rate(database, _append, each))
                unchained.append(_rate(database, _insert, each))
            if _count(database) - before != rounds * each * WRITERS * 2:
                raise NotDoneError("not every event was written")
        here.check_chain(url)
        ratio = median(chained) / median(unchained)
        yield Row(
            name=f"chain append, {WRITERS} writers, {kind}",
            baseline=f"{median(unchained):.0f}/s",
            figure=f"{median(chained):.0f}/s",
            ratio=times(ratio),
        )


def _rate(database: Database, write: Callable[[Database], None], each: int) -> float:
    """Transactions a second."""

    def work() -> None:
        for _ in range(each):
            write(database)

    began_at = time.perf_counter()
    with ThreadPoolExecutor(WRITERS) as threads:
        for done in [threads.submit(work) for _ in range(WRITERS)]:
            done.result()
    return each * WRITERS / (time.perf_counter() - began_at)


def _append(database: Database) -> None:
    with database.write() as connection:
        chain = Chain(database, connection)
        chain.append(EVENT, occurred_at=chain.now)
        chain.write()


def _insert(database: Database) -> None:
    with database.write() as connection:
        entry = canonical(columns(EVENT, seq=1, occurred_at=database.now(connection)))
        connection.execute(insert(UNCHAINED).values(entry=entry))


def _count(database: Database) -> int:
    with database.read() as connection:
        return sum(
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (audit_events, UNCHAINED)
        )
