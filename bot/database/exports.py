"""The exports that were asked for in Slack: what is still to be done, and what the audit says of them."""

import json
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection, func, insert, select, update

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import exports
from bot.domain.audit import Action, Actor, AuditEvent, Json, Outcome, Reason, canonical
from bot.domain.errors import NothingDone
from bot.domain.event_filter import Filter
from bot.exporting import Export, ExportCommand, ExportFile, WantedExport

LEASE: Final = timedelta(minutes=5)
"""Longer than a file takes; what is cut off by a crash is taken up again after it."""

TIMER_SLACK: Final = timedelta(milliseconds=50)


class SqlExports:
    """The ExportStore of `bot.exporting` on SQLite and PostgreSQL."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def ask(self, command: ExportCommand, refusal: Reason | None, facts: dict[str, Json]) -> Reason | None:
        with self._database.write() as connection:
            chain = Chain(self._database, connection)
            of_trigger = select(exports.c.id).where(exports.c.trigger_id == command.trigger_id)
            if connection.execute(of_trigger).first() is not None:
                return None
            refused_before = chain.refusal_of_trigger(command.trigger_id)
            if refused_before is not None:
                return refused_before
            if refusal is None and self._has_waiting(connection, command.person):
                refusal = Reason.EXPORT_WAITING
            chain.append(_asked(command, refusal, facts), occurred_at=chain.now)
            chain.write()
            if refusal is None and command.wanted is not None:
                connection.execute(
                    insert(exports).values(
                        actor_id=command.person.id,
                        actor_name=command.person.name,
                        actor_team=command.person.team_id,
                        team_id=command.team_id,
                        trigger_id=command.trigger_id,
                        form=command.wanted.form,
                        selection=canonical(command.wanted.selection.to_json()),
                        up_to_seq=chain.seq,
                        asked_at=chain.now,
                        next_attempt_at=chain.now,
                    )
                )
        return refusal

    def due(self, *, limit: int) -> tuple[int, ...]:
        with self._database.read() as connection:
            due = select(exports.c.id).where(exports.c.next_attempt_at <= self._database.now(connection))
            return tuple(connection.execute(due.order_by(exports.c.id).limit(limit)).scalars())

    def lease(self, number: int) -> Export | None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            row = connection.execute(
                update(exports)
                .where(exports.c.id == number, exports.c.next_attempt_at <= now + TIMER_SLACK)
                .values(next_attempt_at=now + LEASE, attempts=exports.c.attempts + 1, fence=exports.c.fence + 1)
                .returning(*exports.c)
            ).one_or_none()
        if row is None:
            return None
        return Export(
            number=row.id,
            person=Actor(id=row.actor_id, name=row.actor_name, team_id=row.actor_team),
            team_id=row.team_id,
            wanted=WantedExport(form=row.form, selection=Filter.from_json(json.loads(row.selection))),
            up_to_seq=row.up_to_seq,
            asked_at=row.asked_at,
            leased_at=now,
            attempts=row.attempts - 1,
            fence=row.fence,
            fault=row.fault,
        )

    def exported(self, export: Export, file: ExportFile) -> None:
        with self._database.write() as connection:
            of_number = exports.c.id == export.number
            recorded = connection.execute(select(exports.c.sha256).where(of_number)).scalar_one()
            self._change(connection, export, sha256=file.sha256)
            if recorded != file.sha256:
                details: dict[str, Json] = {
                    "events": file.events,
                    "first_seq": file.first_seq,
                    "last_seq": file.last_seq,
                    "sha256": file.sha256,
                }
                self._record(connection, Action.AUDIT_EXPORTED, export, details=_file_facts(export) | details)

    def delivered(self, export: Export) -> None:
        with self._database.write() as connection:
            self._change(connection, export, next_attempt_at=None)
            self._record(connection, Action.EXPORT_DELIVERED, export, details=_file_facts(export))

    def failed(self, export: Export, fault: str) -> None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            # What went wrong before says nothing of how the person is told.
            self._change(connection, export, fault=fault, next_attempt_at=now, attempts=0, asked_at=now)
            details = _file_facts(export) | {"reason": fault}
            self._record(connection, Action.EXPORT_DELIVERED, export, outcome=Outcome.FAILED, details=details)

    def told(self, export: Export) -> None:
        with self._database.write() as connection:
            self._change(connection, export, next_attempt_at=None)

    def later(self, export: Export, *, due_in_s: float) -> None:
        with self._database.write() as connection:
            due_at = self._database.now(connection) + timedelta(seconds=due_in_s)
            self._change(connection, export, next_attempt_at=due_at)

    def _record(
        self,
        connection: Connection,
        action: Action,
        export: Export,
        *,
        outcome: Outcome = Outcome.OK,
        details: dict[str, Json],
    ) -> None:
        chain = Chain(self._database, connection)
        event = AuditEvent(action=action, outcome=outcome, actor=export.person, team_id=export.team_id, details=details)
        chain.append(event, occurred_at=chain.now)
        chain.write()

    @staticmethod
    def _change(connection: Connection, export: Export, **columns: Any) -> None:
        """Raises NothingDone where somebody else has taken it up meanwhile."""
        mine = (exports.c.id == export.number, exports.c.fence == export.fence)
        if connection.execute(update(exports).where(*mine).values(columns)).rowcount != 1:
            raise NothingDone("lease_lost")

    @staticmethod
    def _has_waiting(connection: Connection, person: Actor) -> bool:
        waiting = select(func.count()).where(exports.c.actor_id == person.id, exports.c.next_attempt_at.is_not(None))
        return bool(connection.execute(waiting).scalar_one())


def _asked(command: ExportCommand, refusal: Reason | None, facts: dict[str, Json]) -> AuditEvent:
    if refusal is None and command.wanted is not None:
        details = {"to": "slack", "format": command.wanted.form, "filter": command.wanted.selection.to_json(), **facts}
        action, outcome = Action.EXPORT_BEGUN, Outcome.OK
    else:
        details = {"reason": (refusal or Reason.NOT_A_QUESTION).value, **facts}
        action, outcome = Action.COMMAND_REFUSED, Outcome.REFUSED
    return AuditEvent(
        action=action,
        outcome=outcome,
        actor=command.person,
        team_id=command.team_id,
        channel_id=command.channel_id,
        trigger_id=command.trigger_id,
        reason=command.text if refusal is not None else None,
        details=details,
    )


def _file_facts(export: Export) -> dict[str, Json]:
    selection = export.wanted.selection.to_json()
    return {"to": "slack", "file": export.file_name, "format": export.wanted.form, "filter": selection}
