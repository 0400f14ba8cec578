"""Time the first page of `bot audit list` for every filter, and for every two of them together, on both databases.

    python bench/audit_list.py 1000000

What is found is compared with what a plain scan of the same events finds. PostgreSQL is the tests' own server.
"""

import sqlite3
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from datetime import timedelta
from decimal import Decimal
from itertools import combinations
from pathlib import Path
from typing import Any, Final, NamedTuple

from fill import APPROVERS, GONE_PERSON, LONGEST_GAP_S, RARE_MARKET, RARE_PERSON, REQUESTERS, STARTS_AT, fill

from bot.database.audit_log import AuditLog
from bot.database.engine import Database
from bot.database.migration import migrate
from bot.domain.audit import timestamp
from bot.domain.event_filter import Filter

GOAL_MS: Final = 50.0
PAGE: Final = 100
REPEATS: Final = 5
"""The best of so many counts: what else the machine does meanwhile is not what is measured."""


class Timed(NamedTuple):
    """A filter, or two, with each of their values: how long the first page took."""

    database: str
    filters: str
    cases: int
    p50_ms: float
    max_ms: float
    slowest: str  #: the values for which it took longest

    @property
    def is_met(self) -> bool:
        return self.max_ms < GOAL_MS


class WrongPage(Exception):
    """A search found something else than a scan."""


class Scan:
    """The same events without any index, to be read from end to end."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(":memory:")
        self._connection.execute("ATTACH ? AS filled", (str(path),))
        self._connection.execute(
            """
            CREATE TABLE facts AS SELECT seq, occurred_at, action, outcome, actor, market, order_uuid, request_id,
                json_extract(details, '$.reason') AS reason,
                CAST(json_extract(details, '$.value_krw') AS REAL) AS value_krw,
                action IN ('approval.recorded', 'request.approved') AND actor =
                    (SELECT made.actor FROM filled.audit_events made
                     WHERE made.request_id = each.request_id AND made.action = 'request.created') AS own
            FROM filled.audit_events each
            """
        )
        self._connection.execute("DETACH filled")

    def numbers(self, wanted: Mapping[str, Any]) -> list[int]:
        conditions, values = ["1"], []
        for name, value in wanted.items():
            conditions.append(_SCANNED[name])
            values.append(timestamp(value) if name in {"since", "until"} else _plain(value))
        sql = f"SELECT seq FROM facts WHERE {' AND '.join(conditions)} ORDER BY seq DESC LIMIT {PAGE}"
        return [seq for (seq,) in self._connection.execute(sql, values)]


_SCANNED: Final = {
    "order_uuid": "order_uuid = ?",
    "request_id": "request_id = ?",
    "actor": "actor = ?",
    "market": "market = ?",
    "action": "action = ?",
    "outcome": "outcome = ?",
    "details_reason": "reason = ?",
    "over_krw": "value_krw > ?",
    "own": "own = ?",
    "since": "occurred_at >= ?",
    "until": "occurred_at < ?",
    "before_seq": "seq < ?",
}


def _plain(value: object) -> object:
    return float(value) if isinstance(value, Decimal) else value


def cases(database: Database, events: int) -> dict[str, list[dict[str, Any]]]:
    """For each filter: much, little, nothing, and only what is old."""
    first = AuditLog(database).list(Filter(action="request.created"), limit=1, newest_first=False)[0]
    last = AuditLog(database).list(Filter(action="order.canceled"), limit=1)[0]
    length = timedelta(seconds=events * LONGEST_GAP_S / 2)
    middle = STARTS_AT + length / 2
    values: dict[str, list[Any]] = {
        "actor": ["system", REQUESTERS[3].id, APPROVERS[1].id, RARE_PERSON.id, GONE_PERSON.id, "U0NOBODY"],
        "market": ["KRW-BTC", "USDT-BTC", RARE_MARKET, "KRW-NONE"],
        "action": ["order.canceled", "request.created", "request.approved", "order.unseen", "outcome.settled"],
        "outcome": ["ok", "refused", "failed", "unknown"],
        "details_reason": ["own_request", "expired", "not_yet_pending", "too_few_approvers"],
        "over_krw": [Decimal(1000), Decimal(50_000_000), Decimal(449_000_000), Decimal(10) ** 13],
        "order_uuid": [first["order_uuid"], last["order_uuid"], "00000000-0000-4000-8000-000000000000"],
        "request_id": [first["request_id"], last["request_id"], 2**40],
        "own": [True],
        "before_seq": [events // 2],
    }
    found = {name: [{name: value} for value in some] for name, some in values.items()}
    found["time"] = [
        {"since": STARTS_AT + length - timedelta(hours=2)},
        {"until": STARTS_AT + timedelta(hours=12)},
        {"since": middle, "until": middle + timedelta(days=30)},
        {"since": STARTS_AT + length * 2},
    ]
    return found


def timed(name: str, database: Database, events: int, scan: Scan) -> Iterator[Timed]:
    """Every filter, then every two. Raises WrongPage."""
    of_each: dict[str, list[dict[str, Any]]] = {"no filter": [{}], **cases(database, events)}
    for filter_name, some in of_each.items():
        yield _timed(name, database, filter_name, some, scan)
    for one, other in combinations(list(of_each)[1:], 2):
        both = [{**left, **right} for left in of_each[one] for right in of_each[other]]
        yield _timed(name, database, f"{one} + {other}", both, scan)


def _timed(name: str, database: Database, filters: str, some: list[dict[str, Any]], scan: Scan) -> Timed:
    log = AuditLog(database)
    took: dict[str, list[float]] = defaultdict(list)
    for wanted in some:
        for _ in range(REPEATS):
            began = time.perf_counter()
            page = log.list(Filter(**wanted), limit=PAGE)
            took[_told(wanted)].append((time.perf_counter() - began) * 1000)
        found, right = [event["seq"] for event in page], scan.numbers(wanted)
        if found != right:
            raise WrongPage(f"{name}: {_told(wanted)}: {found[:5]}… instead of {right[:5]}…")
    best = {told: min(each) for told, each in took.items()}
    slowest = max(best, key=best.__getitem__)
    return Timed(name, filters, len(some), statistics.median(best.values()), best[slowest], slowest)


def _told(wanted: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in wanted.items()) or "everything"


def rows(events: int) -> Iterator[Timed]:
    """Fill both databases with so many events, and time every search on them. Raises WrongPage."""
    sys.path.append(str(Path(__file__).parent.parent / "tests"))
    from postgresql import Postgresql  # noqa: PLC0415 - the tests' own server

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "audit.db"
        server = Postgresql()
        try:
            scan: Scan | None = None
            for name, url in (("sqlite", f"sqlite:///{path}"), ("postgresql", server.create())):
                database = Database(url)
                try:
                    migrate(database)
                    fill(url, events)
                    scan = scan or Scan(path)
                    yield from timed(name, database, events, scan)
                finally:
                    database.close()
        finally:
            server.stop()


def main() -> None:
    events = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(f"the first {PAGE} of {events:,} events; goal: under {GOAL_MS:.0f} ms")
    missed = 0
    for row in rows(events):
        missed += not row.is_met
        print(
            f"{row.database:10} {row.filters:28} {row.cases:3} cases  "
            f"p50 {row.p50_ms:6.1f} ms  max {row.max_ms:6.1f} ms  {'met' if row.is_met else 'MISSED'}  {row.slowest}",
            flush=True,
        )
    print("every goal is met" if not missed else f"{missed} goals are missed")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
