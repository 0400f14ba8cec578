"""The Homes in SQL: who has opened theirs, whose is due, and what concerns one person.

A Home has a row of its own, and no transaction of a request touches it. Who locks several rows locks them in the order
of their ids; who draws holds one.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, bindparam, case, func, literal, or_, select, text, update

from bot.database.engine import Database
from bot.database.schema import UtcTime, audit_events, audit_head, cancel_requests, decisions, homes
from bot.database.store import LEASE, TIMER_SLACK, is_pending, select_requests
from bot.domain.audit import Actor
from bot.home import (
    KEPT_UP_FOR,
    MAX_OUTCOMES,
    REDRAW_GAP_S,
    SETTLE_S,
    SHOWN_ACTIONS,
    Change,
    Concerning,
    DueHomes,
    Home,
)

REDRAW_GAP: Final = timedelta(seconds=REDRAW_GAP_S)
SETTLE: Final = timedelta(seconds=SETTLE_S)

LONGEST_WAIT: Final = timedelta(minutes=2)
"""A Home that waits for longer, by its row, got its time from a clock that was set back since."""

DECISIONS_READ: Final = 5 * MAX_OUTCOMES
"""The latest decisions of a person among which the outcomes are looked for."""

OPEN: Final = text(
    """
    INSERT INTO homes (user_id, team_id, kept_up_until, due_at) VALUES (:user_id, :team_id, :until, :now)
    ON CONFLICT (user_id, team_id) DO UPDATE SET
        kept_up_until = excluded.kept_up_until,
        due_at = CASE WHEN homes.drawn_at > :lately AND homes.drawn_at <= :now THEN :soon ELSE excluded.due_at END,
        attempts = 0
    """
).bindparams(*(bindparam(name, type_=UtcTime) for name in ("now", "until", "lately", "soon")))


class SqlHomes:
    """The HomeStore of `bot.home` on SQLite and PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def open_home(self, *, person_id: str, team_id: str) -> None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            until = now + KEPT_UP_FOR
            times = {"now": now, "until": until, "lately": now - REDRAW_GAP, "soon": now + REDRAW_GAP}
            connection.execute(OPEN, {"user_id": person_id, "team_id": team_id, **times})

    def due_homes(self, *, limit: int) -> DueHomes:
        with self._database.read() as connection:
            now = self._database.now(connection)
            due = select(homes.c.id).where(_is_due(now)).order_by(_waits_until()).limit(limit)
            kept_up = select(homes.c.id).where(_is_kept_up(now)).limit(1)
            return DueHomes(
                ids=tuple(connection.execute(due).scalars()),
                newest_seq=_newest_seq(connection),
                is_any_kept_up=connection.execute(kept_up).first() is not None,
            )

    def changes_after(self, seq: int, *, limit: int) -> tuple[int, tuple[Change, ...]]:
        with self._database.read() as connection:
            events = connection.execute(
                select(audit_events.c.seq, audit_events.c.action, audit_events.c.request_id)
                .where(audit_events.c.seq > seq)
                .order_by(audit_events.c.seq)
                .limit(limit)
            ).all()
            moved = {
                event.request_id: event.seq
                for event in events
                if event.request_id is not None and event.action in SHOWN_ACTIONS
            }
            table = cancel_requests
            requests = select_requests(connection, table.c.id.in_(moved), order_by=(table.c.id,), limit=limit)
        last_seq = events[-1].seq if events else seq
        return last_seq, tuple(Change(seq=moved[request.id], request=request) for request in requests)

    def make_due(self, latest: Mapping[str, int]) -> None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            waiting = _idle(connection, now, homes.c.user_id.in_(latest))
            _make_due(connection, now, [row for row in waiting if row.shown_seq < latest[row.user_id]])

    def make_all_due(self) -> int:
        with self._database.write() as connection:
            now = self._database.now(connection)
            newest_seq = _newest_seq(connection)
            _make_due(connection, now, _idle(connection, now))
        return newest_seq

    def lease_home(self, home_id: int) -> Home | None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            row = connection.execute(
                update(homes)
                .where(homes.c.id == home_id, _is_due(now + TIMER_SLACK))
                .values(due_at=None, leased_until=now + LEASE, fence=homes.c.fence + 1)
                .returning(*homes.c)
            ).one_or_none()
            if row is None:
                return None
            if row.kept_up_until <= now:
                connection.execute(update(homes).where(homes.c.id == home_id).values(leased_until=None))
                return None
        person = Actor(id=row.user_id, team_id=row.team_id)
        return Home(id=row.id, person=person, attempts=row.attempts, fence=row.fence)

    def concerning(self, person_id: str, *, limit: int) -> Concerning:
        table = cancel_requests
        is_asker, has_ended = table.c.requester_id == person_id, table.c.ended_at.is_not(None)
        latest_decided = (
            select(decisions.c.request_id)
            .where(decisions.c.actor_id == person_id)
            .order_by(decisions.c.id.desc())
            .limit(DECISIONS_READ)
        )
        newest_first: dict[str, Any] = {"order_by": (table.c.ended_at.desc(),), "limit": MAX_OUTCOMES}
        with self._database.read() as connection:
            ended = {
                request.id: request
                for request in (
                    *select_requests(connection, is_asker, has_ended, **newest_first),
                    *select_requests(connection, table.c.id.in_(latest_decided), has_ended, **newest_first),
                )
            }
            return Concerning(
                at=self._database.now(connection),
                seq=_newest_seq(connection),
                pending=select_requests(
                    connection,
                    is_pending(),
                    ("," + table.c.approvers + ",").contains(f",{person_id},", autoescape=True),
                    order_by=(table.c.expires_at,),
                    limit=limit,
                ),
                asked=select_requests(connection, is_asker, ~has_ended, order_by=(table.c.id.desc(),), limit=limit),
                ended=tuple(sorted(ended.values(), key=lambda each: each.ended_at or each.created_at, reverse=True)),
            )

    def release_home(self, home: Home, *, shown_seq: int | None, due_in_s: float | None) -> None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            due_at = connection.execute(
                select(homes.c.due_at).where(homes.c.id == home.id, homes.c.fence == home.fence).with_for_update()
            ).scalar_one_or_none()
            drawn: dict[str, Any] = {} if shown_seq is None else {"drawn_at": now, "shown_seq": shown_seq}
            if due_at is not None:
                due_at = max(due_at, now + REDRAW_GAP)  # something has happened meanwhile
            elif due_in_s is not None:
                due_at = now + min(timedelta(seconds=due_in_s), LONGEST_WAIT)
            connection.execute(
                update(homes)
                .where(homes.c.id == home.id, homes.c.fence == home.fence)
                .values(
                    leased_until=None,
                    due_at=due_at,
                    attempts=0 if due_in_s is None else home.attempts + 1,
                    **drawn,
                )
            )

    def forget_home(self, home: Home) -> None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            # Opened again meanwhile: then it is due, and tried once more.
            connection.execute(
                update(homes)
                .where(homes.c.id == home.id, homes.c.fence == home.fence)
                .values(
                    leased_until=None,
                    kept_up_until=case((homes.c.due_at.is_(None), literal(now, UtcTime)), else_=homes.c.kept_up_until),
                )
            )


def _waits_until() -> ColumnElement[datetime]:
    """When a Home is due; while it is drawn, when its lease runs out."""
    return func.coalesce(homes.c.leased_until, homes.c.due_at, type_=UtcTime)


def _is_due(now: datetime) -> ColumnElement[bool]:
    return or_(_waits_until() <= now, _waits_until() > now + LONGEST_WAIT)


def _is_kept_up(now: datetime) -> ColumnElement[bool]:
    return homes.c.kept_up_until > now


def _idle(connection: Connection, now: datetime, *conditions: ColumnElement[bool]) -> list[Any]:
    """Homes that are kept up and not due yet, locked."""
    query = select(homes).where(_is_kept_up(now), homes.c.due_at.is_(None), *conditions)
    return list(connection.execute(query.order_by(homes.c.id).with_for_update()).all())


def _make_due(connection: Connection, now: datetime, rows: list[Any]) -> None:
    for row in rows:
        soon = now + SETTLE
        due_at = soon if row.drawn_at is None else max(soon, row.drawn_at + REDRAW_GAP)
        connection.execute(update(homes).where(homes.c.id == row.id).values(due_at=due_at))


def _newest_seq(connection: Connection) -> int:
    seq: int = connection.execute(select(audit_head.c.seq)).scalar_one()
    return seq
