"""What a long past costs: a thousand requests against a million, and the audit of a million events.

The past is made up by `fill`; its requests are then copied until there are enough of them.
"""

import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from itertools import combinations
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from fill import REQUESTERS, fill
from sqlalchemy import make_url
from stage import BENCH, Stage, opened
from stage import REQUESTERS as ASKERS
from table import NOT_MEASURED, NotDoneError, Row, at_least, at_most, ms, times

from bot.database.audit_log import AuditLog
from bot.database.store import SqlStore
from bot.domain.cancel_request import OPEN_STATES, State
from bot.domain.event_filter import Filter
from bot.playground.demo import BotProcess

MIB: Final = 2**20
FIRST_PAGE: Final = 50
REQUESTS_TO_REFRESH: Final = 20
FOR_EVER_S: Final = 86_400.0
TOO_LONG_S: Final = 300.0
MAX_HELD_BYTES: Final = 150 * MIB


class _Past(NamedTuple):
    url: str
    events: int
    requests: int


def rows(here: Stage) -> Iterator[Row]:
    few = _past(here, events=8_500, requests=1_000)
    many = _past(
        here,
        events=here.sizes.some(1_000_000, quick=20_000),
        requests=here.sizes.some(1_000_000, quick=10_000),
    )
    yield from _audit(here, many)
    yield from _growth(here, few, many)


def _past(here: Stage, *, events: int, requests: int) -> _Past:
    """A SQLite database with so many chained events and requests that have ended."""
    url = here.new_database("SQLite")
    fill(url, events)
    with sqlite3.connect(make_url(url).database or "") as connection:
        connection.execute("PRAGMA synchronous = OFF")
        names = [name for _, name, *_ in connection.execute("PRAGMA table_info(cancel_requests)") if name != "id"]
        is_open = ", ".join(f"'{state}'" for state in OPEN_STATES)
        connection.execute(f"UPDATE cancel_requests SET state = '{State.EXPIRED}' WHERE state IN ({is_open})")
        while (there := connection.execute("SELECT count(*) FROM cancel_requests").fetchone()[0]) < requests:
            # By those who ask now, too: nobody may have to wait because they have asked often.
            copied = {
                "trigger_id": f"trigger_id || '.{there}'",
                "requester_id": f"printf('U0ASKS%03d', id % {len(ASKERS)})",
            }
            chosen = ", ".join(copied.get(name, f'"{name}"') for name in names)
            quoted = ", ".join(f'"{name}"' for name in names)
            connection.execute(
                f"INSERT INTO cancel_requests ({quoted}) SELECT {chosen} FROM cancel_requests ORDER BY id LIMIT ?",
                (requests - there,),
            )
        connection.execute("ANALYZE")
    connection.close()
    return _Past(url, events, requests)


# The audit ----------------------------------------------------------------------------------------------------------


def _audit(here: Stage, past: _Past) -> Iterator[Row]:
    yield _first_page(past)
    yield _bulk(past, here.folder, ["verify"], f"{past.events} events verified", must=60_000, aim=100_000)
    exported = here.folder / "audit.jsonl"
    # The export itself is an event that comes first.
    yield _bulk(
        past, here.folder, ["export", str(exported)], f"{past.events + 1} events exported", must=50_000, aim=100_000
    )
    exported.unlink(missing_ok=True)


def _first_page(past: _Past) -> Row:
    """The slowest of all filters."""
    day = {"since": datetime(2026, 2, 1, tzinfo=UTC), "until": datetime(2026, 2, 2, tzinfo=UTC)}
    common = {"market": "KRW-BTC", "actor": REQUESTERS[0].id, "action": "order.canceled", "outcome": "unknown"}
    rare = {"market": "KRW-RARE", "actor": "U0RARE", "action": "cancel.failed"}
    asked: list[dict[str, Any]] = [
        {},
        *({name: word} for words in (common, rare) for name, word in words.items()),
        *({one: common[one], other: common[other]} for one, other in combinations(common, 2)),
        {"actor": "U0NOBODY", "market": "KRW-BTC"},
        {"details_reason": "too_late_to_send"},
        {"details_reason": "four_eyes"},
        {"request_id": past.events // 20},
        {"order_uuid": "00000000-0000-4000-8000-000000000000"},
        day,
        {"market": "KRW-RARE", **day},
        {"before_seq": past.events // 2, "outcome": "refused"},
    ]
    with opened(past.url) as database:
        log = AuditLog(database)
        if len(log.list(Filter(), limit=FIRST_PAGE)) != FIRST_PAGE:
            raise NotDoneError("the first page is not full")
        took = [min(_seconds(partial(log.list, Filter(**each), limit=FIRST_PAGE)) for _ in range(3)) for each in asked]
    took_s = max(took)
    slowest = ", ".join(f"{name}={word}" for name, word in asked[took.index(took_s)].items()) or "none"
    return Row(
        name=f"audit list first page, {past.events:,} events, the slowest of {len(asked)} filters",
        figure=f"{ms(took_s)} ({slowest})",
        must="< 50 ms",
        aim="< 10 ms",
        met=at_most(took_s, must=0.05, aim=0.01),
    )


def _bulk(past: _Past, folder: Path, arguments: list[str], told: str, *, must: int, aim: int) -> Row:
    """`bot audit …`, a process of its own, measured from its start to its end; its memory is the most that it held."""
    name = f"audit {arguments[0]}, {past.events:,} events"
    goal = {"must": f"≥ {must:,}/s, < 150 MiB", "aim": f"{aim:,}/s"}
    command = [sys.executable, str(BENCH / "measured.py"), *arguments]
    environment = {"DATABASE_URL": past.url, "PYTHONPATH": str(BENCH.parent)}
    began_at = time.perf_counter()
    ran = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=TOO_LONG_S, check=False
    )
    took_s = time.perf_counter() - began_at
    if "No such command" in ran.stderr:
        return Row(name=name, **goal, met=f"{NOT_MEASURED}: there is no such command yet")
    if ran.returncode != 0 or told not in ran.stdout:
        raise NotDoneError(f"{arguments[0]}: {ran.stdout} {ran.stderr}")
    held_bytes = int(ran.stderr.split()[-1])
    rate = past.events / took_s
    met = at_least(rate, must=must, aim=aim) if held_bytes < MAX_HELD_BYTES else "missed"
    return Row(name=name, figure=f"{rate:,.0f}/s, {held_bytes / MIB:.0f} MiB", **goal, met=met)


# Growth -------------------------------------------------------------------------------------------------------------


def _growth(here: Stage, few: _Past, many: _Past) -> Iterator[Row]:
    took: dict[str, tuple[list[float], list[float]]] = {
        "a command": ([], []),
        "a click": ([], []),
        "a refresh and a round of what is due": ([], []),
    }
    with here.bot(few.url) as bot_of_few, here.bot(many.url) as bot_of_many:
        for number in range(here.sizes.some(10, quick=1) + 1):
            for side, (past, bot) in enumerate(((few, bot_of_few), (many, bot_of_many))):
                measured = _seconds_of_each(here, past, bot, count=here.sizes.some(20, quick=5))
                if number or here.sizes.is_quick:  # the first one opens the files
                    for name, seconds in measured.items():
                        took[name][side].append(median(seconds))
    for name, (of_few, of_many) in took.items():
        # Of each turn, since the machine's speed changes from one to the next.
        ratio = median(after_many / after_few for after_few, after_many in zip(of_few, of_many, strict=True))
        yield Row(
            name=f"{name} after {many.requests:,} requests, p50",
            baseline=f"{ms(median(of_few))} after {few.requests:,}",
            figure=ms(median(of_many)),
            ratio=times(ratio),
            must="≤ 1.2 x",
            aim="flat",
            met=at_most(ratio, must=1.2, aim=1.05),
        )


def _seconds_of_each(here: Stage, past: _Past, bot: BotProcess, *, count: int) -> dict[str, list[float]]:
    here.rest(past.url)
    asked = here.commands(count)
    answers = here.send([bot.port], asked.requests)
    here.check_commands(past.url, asked, answers)
    here.rest(past.url)
    clicked = here.denials(here.insert_pending(past.url, count))
    clicks = here.send([bot.port], clicked.requests)
    here.check_denials(past.url, clicked, clicks)
    here.rest(past.url)
    here.insert_pending(past.url, REQUESTS_TO_REFRESH)
    with opened(past.url) as database:
        store = SqlStore(database)
        rounds = [
            _seconds(lambda: (store.due(limit=1000), store.take_refresh(limit=100, again_in_s=FOR_EVER_S)))
            for _ in range(count)
        ]
    return {
        "a command": [answer.took_s for answer in answers],
        "a click": [answer.took_s for answer in clicks],
        "a refresh and a round of what is due": rounds,
    }


def _seconds(work: Callable[[], object]) -> float:
    began_at = time.perf_counter()
    work()
    return time.perf_counter() - began_at
