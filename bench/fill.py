"""Fill a migrated, empty database with made-up stories, quickly: sound, chained events and the requests they tell of.

    python bench/fill.py sqlite:////tmp/big.db 1000000

The same seed makes the same stories. Nothing else may be writing meanwhile.
"""

import random
import sqlite3
import sys
import uuid
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from multiprocessing import get_context
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import make_url

from bot.domain.audit import (
    GENESIS_HASH,
    SYSTEM,
    Action,
    Actor,
    AuditEvent,
    Json,
    Outcome,
    Reason,
    canonical,
    chain_hash,
    columns,
    timestamp,
)
from bot.domain.cancel_request import TRANSITIONS, VERDICT_STATES
from bot.domain.tiers import value_text

HOME: Final = "T0HOME"
REQUESTERS: Final = tuple(Actor(id=f"U0ASKS{n:02}", name=f"asker {n}", team_id=HOME) for n in range(60))
APPROVERS: Final = tuple(Actor(id=f"U0APPROVES{n}", name=f"approver {n}", team_id=HOME) for n in range(8))
RARE_PERSON: Final = Actor(id="U0RARE", name="Rare", team_id=HOME)
"""Clicked three times in a million events."""
GONE_PERSON: Final = Actor(id="U0GONE", name="Gone", team_id=HOME)
EARLY_STORIES: Final = 300
"""In these an approver who has left since clicked, and an order was not to be seen; never again later."""
MARKETS: Final = (*(f"KRW-{coin}" for coin in ("BTC", "ETH", "XRP", "SOL", "DOGE", "ADA")), "USDT-BTC", "BTC-ETH")
RARE_MARKET: Final = "KRW-RARE"
STARTS_AT: Final = datetime(2025, 11, 1, tzinfo=UTC)
LONGEST_GAP_S: Final = 60.0
"""A million events take about a year."""

LIVE_STORIES: Final = 8
BATCH: Final = 10_000
AHEAD: Final = 2
MADE_AHEAD_FROM: Final = 100_000
MAKES_ONE_WITHIN_S: Final = 60.0
ONE_IN: Final = 100_000
"""So rare are the rare market and person."""

ENDS: Final = (
    ("canceled", 55),
    ("filled", 8),
    ("denied", 7),
    ("withdrawn", 5),
    ("expired", 6),
    ("superseded", 4),
    ("refused", 6),
    ("rejected", 4),
    ("command_refused", 3),
    ("unresolved", 1),
    ("lapsed", 1),
)

Row = dict[str, Any]


class Batch(NamedTuple):
    """Rows of each table; a request stands in the batch in which its story ends, or else in the last one."""

    events: list[Row]
    requests: list[Row]
    decisions: list[Row]


class _Story:
    """One request from the command to the summary; `events` tells it, and `request` is its row so far."""

    def __init__(self, number: int, dice: random.Random) -> None:
        self._dice = dice
        self._end = dice.choices([end for end, _ in ENDS], [weight for _, weight in ENDS])[0]
        self.is_request = self._end != "command_refused"
        self._asks = dice.choice(REQUESTERS)
        self._approves = dice.choice(APPROVERS)
        self._uuid = str(uuid.UUID(int=dice.getrandbits(128), version=4))
        self._market = RARE_MARKET if dice.randrange(ONE_IN // 8) == 0 else dice.choice(MARKETS)
        price, volume = dice.randrange(1_000, 150_000_000), Decimal(dice.randrange(1, 30_000)) / 10_000
        self._value = value_text(price * volume)
        self._order: dict[str, Json] = {
            "uuid": self._uuid,
            "side": dice.choice(("ask", "bid")),
            "ord_type": "limit",
            "state": "wait",
            "market": self._market,
            "created_at": "2026-11-23T17:30:00+09:00",
            "price": str(price),
            "volume": format(volume, "f"),
            "remaining_volume": format(volume, "f"),
            "executed_volume": "0",
            "trades_count": 0,
        }
        self._channel = f"C0DESK{dice.randrange(5)}"
        self._number = number
        self._knows_market = False
        self._worth: dict[str, Json] = {"value_krw": self._value} if self._market.startswith("KRW-") else {}
        self.request: Row = {
            "id": number,
            "order_uuid": self._uuid,
            "requester_id": self._asks.id,
            "requester_name": self._asks.name,
            "reason": "잘못 냄: wrong price",
            "team_id": HOME,
            "channel_id": self._channel,
            "trigger_id": f"{number}.created",
        }
        self.decisions: list[Row] = []

    def apply(self, event: AuditEvent, at: str, *, seq: int, event_hash: str) -> None:
        """Bring the row to what the event says."""
        row = self.request
        if event.action in TRANSITIONS:
            target = TRANSITIONS[event.action][1]
            row["state"] = target.value
            if target in VERDICT_STATES:
                row |= {"witness_seq": seq, "witness_hash": event_hash}
        row["revision"] = row.get("revision", -1) + 1
        if event.action is Action.REQUEST_CREATED:
            row["created_at"] = at
        if event.action is Action.REQUEST_OPENED:
            written = canonical(self._order)
            row |= {"opened_at": at, "expires_at": at, "order": written, "order_now": written, "market": self._market}
            row |= {"card_channel_id": self._channel, "card_ts": f"{1_790_000_000 + self._number}.000100"}
            row["approvers"] = ",".join(each.id for each in APPROVERS)
        if event.action is Action.REQUEST_APPROVED:
            row |= {"approved_at": at, "order_approved": row["order"]}
            self.decisions.append(
                {
                    "request_id": self._number,
                    "kind": "approve",
                    "actor_id": event.actor.id,
                    "actor_name": event.actor.name,
                    "actor_team": HOME,
                    "decided_at": at,
                }
            )
        if event.action is Action.CANCEL_SENT:
            row |= {"sent_at": at, "sends": 1}
        if event.action is Action.CANCEL_ACCEPTED:
            row["accepted_at"] = at
        if event.action is Action.ORDER_CANCELED:
            row["canceled_by"] = "this_request"
        if event.action is Action.SUMMARY_POSTED:
            row["said_state"] = row["state"]
        else:
            row["ended_at"] = at

    def events(self) -> Iterator[AuditEvent]:
        if not self.is_request:
            yield AuditEvent(
                action=Action.COMMAND_REFUSED,
                outcome=Outcome.REFUSED,
                actor=self._asks,
                order_uuid=self._uuid,
                team_id=HOME,
                channel_id=self._channel,
                trigger_id=f"{self._number}.refused",
                details={"reason": self._dice.choice((Reason.NOT_A_UUID, Reason.NOT_A_REQUESTER, Reason.USAGE)).value},
            )
            return
        yield self._event(Action.REQUEST_CREATED, actor=self._asks, reason=self.request["reason"], by="created")
        if self._end == "refused":
            reason = self._dice.choice((Reason.ORDER_NOT_FOUND, Reason.ALREADY_DONE, Reason.ALREADY_CANCELED))
            yield self._event(
                Action.REQUEST_REFUSED, outcome=Outcome.REFUSED, reason_word=reason, call=self._call("GET", 404)
            )
            return
        self._knows_market = True
        yield self._event(
            Action.REQUEST_OPENED,
            order=self._order,
            approvals_required=1,
            remaining_value=self._value,
            approvers=[each.id for each in APPROVERS],
            quote={"ask": "95000000", "bid": "94000000", "quoted_at": "2026-11-23T09:00:00.000000Z"},
        )
        if self._dice.random() < 0.1:
            yield self._refused_click()
        if self._number <= EARLY_STORIES:
            yield self._event(Action.ORDER_UNSEEN, outcome=Outcome.FAILED, error="order_not_found")
            yield self._event(
                Action.APPROVAL_REFUSED,
                outcome=Outcome.REFUSED,
                actor=GONE_PERSON,
                reason_word=Reason.NOT_YET_PENDING,
                by="early",
                kind="approve",
            )
        yield from self._decided()
        if self._end in {"canceled", "filled", "rejected", "unresolved"}:
            yield from self._sent()
        yield self._event(Action.SUMMARY_POSTED, ts=f"{1_790_000_000 + self._number}.000200")

    def _refused_click(self) -> AuditEvent:
        who, reason = self._dice.choice(
            (
                (self._asks, Reason.OWN_REQUEST),
                (self._dice.choice(REQUESTERS), Reason.NOT_AN_APPROVER),
                (self._approves, Reason.ALREADY_APPROVED),
            )
        )
        who = RARE_PERSON if self._dice.randrange(ONE_IN // 25) == 0 else who
        return self._event(
            Action.APPROVAL_REFUSED, outcome=Outcome.REFUSED, actor=who, reason_word=reason, by="click", kind="approve"
        )

    def _decided(self) -> Iterator[AuditEvent]:
        match self._end:
            case "denied":
                yield self._event(Action.REQUEST_DENIED, actor=self._approves, reason="keep it", by="deny")
            case "withdrawn":
                yield self._event(Action.REQUEST_WITHDRAWN, actor=self._asks, by="withdraw")
            case "expired":
                yield self._event(Action.REQUEST_EXPIRED, reason_word=Reason.EXPIRED)
            case "superseded":
                yield self._event(
                    Action.REQUEST_SUPERSEDED, reason_word=Reason.ALREADY_DONE, order={**self._order, "state": "done"}
                )
            case _:
                who = self._asks if self._dice.random() < 0.01 else self._approves
                yield self._event(
                    Action.REQUEST_APPROVED,
                    actor=who,
                    by="approve",
                    order=self._order,
                    requester=self._asks.id,
                    approvals=[who.id],
                    approvals_required=1,
                )
                if self._end == "lapsed":
                    yield self._event(
                        Action.REQUEST_LAPSED, outcome=Outcome.FAILED, reason_word=Reason.TOO_LATE_TO_SEND
                    )

    def _sent(self) -> Iterator[AuditEvent]:
        nonce = str(uuid.UUID(int=self._dice.getrandbits(128), version=4))
        yield self._event(
            Action.CANCEL_SENT, method="DELETE", path="/v1/order", uuid=self._uuid, nonce=nonce, attempt=1
        )
        if self._end == "rejected":
            yield self._event(
                Action.CANCEL_REJECTED, outcome=Outcome.REFUSED, error="out_of_scope", call=self._call("DELETE", 403)
            )
            return
        if self._end == "unresolved":
            yield self._event(
                Action.CANCEL_UNANSWERED, outcome=Outcome.UNKNOWN, error="timeout", call=self._call("DELETE", None)
            )
            yield self._event(
                Action.OUTCOME_UNRESOLVED,
                outcome=Outcome.UNKNOWN,
                reason_word=Reason.NOTHING_CERTAIN,
                call=self._call("GET", 500),
            )
            return
        yield self._event(Action.CANCEL_ACCEPTED, order=self._order, call=self._call("DELETE", 200))
        ended: dict[str, Json] = {**self._order, "state": "cancel" if self._end == "canceled" else "done"}
        if self._end == "canceled":
            yield self._event(Action.ORDER_CANCELED, order=ended, by_whom="this_request", call=self._call("GET", 200))
        else:
            yield self._event(Action.ORDER_FILLED, order=ended, call=self._call("GET", 200))

    def _call(self, method: str, status: int | None) -> dict[str, Json]:
        call: dict[str, Json] = {
            "method": method,
            "path": "/v1/order",
            "nonce": str(uuid.UUID(int=self._dice.getrandbits(128), version=4)),
            "query_hash": f"{self._dice.getrandbits(512):0128x}",
            "elapsed_ms": self._dice.randrange(20, 400),
        }
        if status is not None:
            call |= {"status": status, "body": canonical(self._order), "remaining_req": "group=order; min=99; sec=7"}
        return call

    def _event(
        self,
        action: Action,
        *,
        actor: Actor = SYSTEM,
        outcome: Outcome = Outcome.OK,
        reason: str | None = None,
        reason_word: Reason | None = None,
        by: str | None = None,
        by_whom: str | None = None,
        **details: Json,
    ) -> AuditEvent:
        if action in TRANSITIONS:
            details["state"] = TRANSITIONS[action][1].value
        if reason_word is not None:
            details["reason"] = reason_word.value
        if by_whom is not None:
            details["by"] = by_whom
        if self._knows_market:
            details |= self._worth
        return AuditEvent(
            action=action,
            outcome=outcome,
            actor=actor,
            request_id=self._number,
            order_uuid=self._uuid,
            market=self._market if self._knows_market else None,
            team_id=HOME,
            channel_id=self._channel,
            reason=reason,
            trigger_id=f"{self._number}.{by}" if by else None,
            details=details,
        )


def batches(events: int, *, seed: int = 0) -> Iterator[Batch]:
    """So many events with their requests and decisions, as rows whose times are text."""
    dice = random.Random(seed)
    numbers = iter(range(1, events + 1))
    live: list[tuple[_Story, Iterator[AuditEvent]]] = []
    batch, now, previous_hash = Batch([], [], []), STARTS_AT, GENESIS_HASH
    for seq in range(1, events + 1):
        story, event = _next(live, numbers, dice, batch)
        now += timedelta(seconds=dice.random() * LONGEST_GAP_S)
        row = columns(event, seq=seq, occurred_at=now)
        entry = canonical(row)
        chained = {"entry": entry, "prev_hash": previous_hash, "hash": chain_hash(previous_hash, entry)}
        previous_hash = chained["hash"]
        batch.events.append({**row, "details": canonical(row["details"]), **chained})
        if story.is_request:
            story.apply(event, timestamp(now), seq=seq, event_hash=previous_hash)
        if len(batch.events) == BATCH:
            yield batch
            batch = Batch([], [], [])
    for story, _ in live:
        _close(story, batch)
    yield batch


def _next(
    live: list[tuple[_Story, Iterator[AuditEvent]]], numbers: Iterator[int], dice: random.Random, batch: Batch
) -> tuple[_Story, AuditEvent]:
    """The next event of one of the stories that go on at the same time."""
    while True:
        if len(live) < LIVE_STORIES:
            story = _Story(next(numbers), dice)
            live.append((story, story.events()))
        place = dice.randrange(len(live))
        story, told = live[place]
        event = next(told, None)
        if event is not None:
            return story, event
        del live[place]
        _close(story, batch)


def _close(story: _Story, batch: Batch) -> None:
    if "state" in story.request:
        batch.requests.append(story.request)
        batch.decisions.extend(story.decisions)


def _made_ahead(events: int, *, seed: int) -> Iterator[Batch]:
    """The same, made by a process of its own while this one writes."""
    processes = get_context("spawn")
    made: Queue[Batch | None] = processes.Queue(AHEAD)
    maker = processes.Process(target=_make, args=(events, seed, made), daemon=True)
    maker.start()
    while (batch := made.get(timeout=MAKES_ONE_WITHIN_S)) is not None:
        yield batch
    maker.join()


def _make(events: int, seed: int, made: "Queue[Batch | None]") -> None:
    for batch in batches(events, seed=seed):
        made.put(batch)
    made.put(None)


REQUEST_COLUMNS: Final = (
    *("id", "order_uuid", "state", "requester_id", "requester_name", "reason", "team_id", "channel_id", "trigger_id"),
    *("created_at", "order", "order_now", "order_approved", "approvers", "opened_at", "expires_at", "approved_at"),
    *("sent_at", "accepted_at", "ended_at", "market", "card_channel_id", "card_ts", "said_state", "canceled_by"),
    *("revision", "sends", "witness_seq", "witness_hash"),
)
_NEVER_NULL: Final = {"approvers": "", "revision": 0, "sends": 0}


def fill(url: str, events: int, *, seed: int = 0) -> None:
    """Fill the database; `url` as DATABASE_URL has it."""
    writer = _Sqlite(url) if make_url(url).get_backend_name() == "sqlite" else _Postgresql(url)
    last: Row = {}
    for batch in _made_ahead(events, seed=seed) if events > MADE_AHEAD_FROM else batches(events, seed=seed):
        if batch.events:
            last = batch.events[-1]
            writer.write("audit_events", list(batch.events[0]), batch.events)
        requests = [{name: row.get(name, _NEVER_NULL.get(name)) for name in REQUEST_COLUMNS} for row in batch.requests]
        writer.write("cancel_requests", REQUEST_COLUMNS, requests)
        if batch.decisions:
            writer.write("decisions", list(batch.decisions[0]), batch.decisions)
    writer.finish(last)


class _Sqlite:
    def __init__(self, url: str) -> None:
        self._connection = sqlite3.connect(make_url(url).database or "")
        self._connection.execute("PRAGMA synchronous = OFF")
        self._connection.execute("PRAGMA cache_size = -500000")  # KiB: the indexes are written all over

    def write(self, table: str, names: Sequence[str], rows: list[Row]) -> None:
        columns_sql = ", ".join(f'"{name}"' for name in names)
        statement = f"INSERT INTO {table} ({columns_sql}) VALUES ({', '.join('?' * len(names))})"
        self._connection.executemany(statement, ([row[name] for name in names] for row in rows))
        self._connection.commit()

    def finish(self, last: Row) -> None:
        self._connection.execute(
            "UPDATE audit_head SET seq = ?, hash = ?, occurred_at = ?",
            (last["seq"], last["hash"], last["occurred_at"]),
        )
        self._connection.commit()
        self._connection.close()


class _Postgresql:
    def __init__(self, url: str) -> None:
        import psycopg  # noqa: PLC0415 - an extra

        plain = make_url(url).set(drivername="postgresql").render_as_string(hide_password=False)
        self._connection = psycopg.connect(plain)

    def write(self, table: str, names: Sequence[str], rows: list[Row]) -> None:
        from psycopg import sql  # noqa: PLC0415 - an extra

        statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
            sql.Identifier(table), sql.SQL(", ").join(map(sql.Identifier, names))
        )
        with self._connection.cursor() as cursor, cursor.copy(statement) as copy:
            for row in rows:
                copy.write_row([row[name] for name in names])
        self._connection.commit()

    def finish(self, last: Row) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute(
                "UPDATE audit_head SET seq = %s, hash = %s, occurred_at = %s",
                (last["seq"], last["hash"], last["occurred_at"]),
            )
            cursor.execute(
                "SELECT setval(pg_get_serial_sequence('cancel_requests', 'id'), (SELECT max(id) FROM cancel_requests))"
            )
        self._connection.commit()
        self._connection.autocommit = True
        self._connection.execute("ANALYZE")
        self._connection.close()


def main() -> None:
    url, events = sys.argv[1], int(sys.argv[2])
    fill(url, events)
    print(f"{events} events in {Path(make_url(url).database or url).name}")


if __name__ == "__main__":
    main()
