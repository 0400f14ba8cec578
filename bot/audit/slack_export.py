"""Makes the file of an export that was asked for in Slack, in memory, as large as Slack is given it at most."""

import hashlib
from collections.abc import Callable
from typing import Any

from bot.audit.export import NoEvent, write_events
from bot.audit.forms import FORMS
from bot.database.engine import Database
from bot.database.snapshot import snapshot
from bot.exporting import MAX_BYTES, MAX_EVENTS, Export, ExportFile, NoFile

TOO_LARGE = "too_large"
AUDIT_ALTERED = "audit_altered"
NO_EVENT = "no_event"


class SqlExportFiles:
    """The ExportFiles of `bot.exporting`."""

    def __init__(self, database: Database, *, max_events: int = MAX_EVENTS, max_bytes: int = MAX_BYTES) -> None:
        self._database = database
        self._max_events = max_events
        self._max_bytes = max_bytes

    def make(self, export: Export, *, rest: Callable[[], None]) -> ExportFile:
        sink = _BoundedSink(self._max_bytes)

        def go_on(events: int) -> None:
            if events > self._max_events:
                raise NoFile(TOO_LARGE)
            rest()

        writer = FORMS[f".{export.wanted.form}"](sink)
        try:
            with snapshot(self._database) as seen:
                span = write_events(writer, seen.events(export.wanted.selection, up_to_seq=export.up_to_seq), go_on)
        except NoEvent:
            raise NoFile(AUDIT_ALTERED) from None
        if not span.events:
            raise NoFile(NO_EVENT)  # Slack takes no empty file, and a table without rows says less than a sentence
        content = bytes(sink.content)
        return ExportFile(
            content=content,
            events=span.events,
            first_seq=span.first_seq,
            last_seq=span.last_seq,
            sha256=hashlib.sha256(content).hexdigest(),
        )


class _BoundedSink:
    def __init__(self, max_bytes: int) -> None:
        self.content = bytearray()
        self._max_bytes = max_bytes

    def write(self, content: Any) -> int:
        """Raises NoFile where it becomes too large."""
        if len(self.content) + len(content) > self._max_bytes:
            raise NoFile(TOO_LARGE)
        self.content += content
        return len(content)
