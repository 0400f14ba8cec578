"""Exports of the audit that somebody asks for in Slack: who may, which events, and the file that reaches them.

    ask(…)          recorded, with its event, before it is acknowledged; or why not
    due(…)          the exports whose time has come
    work(number)    write the file, send it; or tell why none comes

Each step is recorded before the next one: `export.begun` with the command, `audit.exported` with the file's hash before
it leaves, `export.delivered` when it has. An export holds the events up to its own first one, so that the file is the
same whenever it is made; a crash, or Slack being away, delays it. Where Slack's answer is lost it may come twice.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal, Protocol

from bot.domain.approval import ApprovalPolicy
from bot.domain.audit import Actor, Json, Reason
from bot.domain.errors import BotError, CannotPost, TryLater
from bot.domain.event_filter import Filter
from bot.domain.membership import Membership

log = logging.getLogger(__name__)

Form = Literal["csv", "jsonl"]

MAX_EVENTS: Final = 100_000
MAX_BYTES: Final = 20_000_000
"""Of one file, which is in memory until Slack has it. More takes `bot audit export`."""

LOOK_EVERY_S: Final = 2.0
"""Between two looks for what is due: who asks in this process is looked for at once."""

GIVE_UP_AFTER: Final = timedelta(hours=1)
RETRY_GAPS_S: Final = (2.0, 10.0, 60.0)
RETRY_GAP_S: Final = 300.0


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedExport:
    """What somebody asks for."""

    form: Form = "csv"
    selection: Filter = field(default_factory=Filter)


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportCommand:
    """A command that asks for an export. `wanted` is None where it was not understood."""

    trigger_id: str
    person: Actor
    team_id: str
    channel_id: str
    text: str  #: as it was typed
    wanted: WantedExport | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Export:
    """One that is being made. `fault` says why there will be no file, which is still to be told."""

    number: int
    person: Actor
    team_id: str
    wanted: WantedExport
    up_to_seq: int
    asked_at: datetime
    leased_at: datetime
    attempts: int  #: before this one
    fence: int
    fault: str | None = None

    @property
    def file_name(self) -> str:
        return f"audit-export-{self.number}.{self.wanted.form}"

    @property
    def is_too_old(self) -> bool:
        return self.leased_at - self.asked_at > GIVE_UP_AFTER


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFile:
    content: bytes
    events: int
    first_seq: int | None
    last_seq: int | None
    sha256: str


class NoFile(BotError):
    """No file can be made, and trying again will not help. `fault` is the machine word."""

    def __init__(self, fault: str) -> None:
        super().__init__(fault)
        self.fault = fault


class ExportStore(Protocol):
    """What exports need of the database. Every verb raises StoreError."""

    def ask(self, command: ExportCommand, refusal: Reason | None, facts: dict[str, Json]) -> Reason | None:
        """Record the export with its first event, or why there is none; what was recorded for this delivery stays.

        `facts` go into the event. Refuses `export_waiting` itself.
        """
        ...

    def due(self, *, limit: int) -> tuple[int, ...]: ...

    def lease(self, number: int) -> Export | None:
        """Take it if it is due; None otherwise."""
        ...

    def exported(self, export: Export, file: ExportFile) -> None:
        """Record what is in the file, once for each hash, before it leaves."""
        ...

    def delivered(self, export: Export) -> None:
        """Record that the file was sent; the export is over."""
        ...

    def failed(self, export: Export, fault: str) -> None:
        """Record why there will be no file. That is still to be told."""
        ...

    def told(self, export: Export) -> None:
        """The person knows, or cannot be reached; the export is over."""
        ...

    def later(self, export: Export, *, due_in_s: float) -> None: ...


class ExportFiles(Protocol):
    def make(self, export: Export, *, rest: Callable[[], None]) -> ExportFile:
        """The file, within the limits. `rest` is called now and then. Raises NoFile, StoreError."""
        ...


class ExportMessenger(Protocol):
    """What exports need of Slack. Every verb raises CannotPost, TryLater."""

    def send_export(self, export: Export, file: ExportFile) -> None: ...

    def tell_no_export(self, export: Export) -> None: ...


class Exporting:
    """Takes exports up, and sees them through."""

    def __init__(  # noqa: PLR0913 - its neighbours, each named
        self,
        *,
        store: ExportStore,
        files: ExportFiles,
        messenger: ExportMessenger,
        policy: ApprovalPolicy,
        membership: Callable[[], Membership],
        rest: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """What `rest` raises ends the making of a file, which is taken up again after its lease."""
        self._store = store
        self._files = files
        self._messenger = messenger
        self._policy = policy
        self._membership = membership
        self._rest = rest
        self._monotonic = monotonic
        self._looks_at = float("-inf")

    def ask(self, command: ExportCommand, *, home_team: str) -> Reason | None:
        """Why there is no export, or None: it is recorded. Committed when this returns. Raises StoreError."""
        membership = self._membership()
        refusal = self._policy.export_refusal(command.person, home_team=home_team, membership=membership)
        if refusal is None and command.wanted is None:
            refusal = Reason.NOT_A_QUESTION
        refusal = self._store.ask(command, refusal, membership.to_json(self._policy.auditors))
        self._looks_at = float("-inf")
        return refusal

    def due(self, *, limit: int) -> tuple[int, ...]:
        """The jobs for `work`. Raises StoreError."""
        now = self._monotonic()
        if now < self._looks_at:
            return ()
        self._looks_at = now + LOOK_EVERY_S
        return self._store.due(limit=limit)

    def work(self, number: int) -> float | None:
        """Do what comes next for one export. Raises StoreError."""
        export = self._store.lease(number)
        if export is None:
            return None
        try:
            if export.fault is None:
                self._deliver(export)
            else:
                self._messenger.tell_no_export(export)
                self._store.told(export)
        except NoFile as error:
            self._fail(export, error.fault)
        except CannotPost as error:
            self._give_up(export, error.error)
        except TryLater as error:
            if export.is_too_old:
                self._give_up(export, error.cause)
            else:
                gap_s = RETRY_GAPS_S[export.attempts] if export.attempts < len(RETRY_GAPS_S) else RETRY_GAP_S
                self._store.later(export, due_in_s=max(gap_s, error.retry_after_s))
        return None

    def _deliver(self, export: Export) -> None:
        """Make and send the file, for who may have it still. Raises NoFile, CannotPost, TryLater, StoreError."""
        refusal = self._policy.export_refusal(export.person, home_team=export.team_id, membership=self._membership())
        if refusal is Reason.MEMBERSHIP_UNKNOWN:
            raise TryLater(refusal.value)
        if refusal is not None:
            raise NoFile(refusal.value)
        file = self._files.make(export, rest=self._rest)
        self._store.exported(export, file)
        self._messenger.send_export(export, file)
        self._store.delivered(export)

    def _give_up(self, export: Export, fault: str) -> None:
        if export.fault is None:
            self._fail(export, fault)
        else:
            log.warning("a person could not be told that there is no export: %s", fault)
            self._store.told(export)

    def _fail(self, export: Export, fault: str) -> None:
        log.warning("an export of the audit failed: %s", fault, extra={"export": export.number})
        self._store.failed(export, fault)
