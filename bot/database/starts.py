"""The starts of the bot in the audit: with what it was set to, and what had changed."""

import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, select, text

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.domain.audit import Action, AuditEvent, Json
from bot.domain.configuration import changed_settings


def record_start(database: Database, *, version: str, replica: str, settings: Mapping[str, str]) -> None:
    """Write down that a process of the bot starts, with its settings by their variables: no secret among them.

    What changed is what differs from the last start of any replica. Raises StoreError.
    """
    with database.write() as connection:
        chain = Chain(database, connection)
        seq, before = _last_start(connection)
        details: dict[str, Json] = {
            "version": version,
            "replica": replica,
            "settings": dict(settings),
            "changed": changed_settings(before, settings),
            "last_start": seq,
        }
        chain.append(AuditEvent(action=Action.BOT_STARTED, details=details), occurred_at=chain.now)
        chain.write()


def _last_start(connection: Connection) -> tuple[int | None, Mapping[str, Any] | None]:
    """The number and the settings of the last start; the settings are None where they cannot be read."""
    # A literal, not a parameter: only then does SQLite see that the partial index fits.
    is_start = text(f"action = '{Action.BOT_STARTED}'")
    starts = select(audit_events.c.seq, audit_events.c.details).where(is_start)
    row = connection.execute(starts.order_by(audit_events.c.seq.desc()).limit(1)).one_or_none()
    if row is None:
        return None, None
    try:
        settings = json.loads(row.details)["settings"]
    except (ValueError, TypeError, KeyError, RecursionError):  # somebody's work, which `bot audit verify` finds
        settings = None
    return row.seq, settings if isinstance(settings, dict) else None
