"""The daily checkpoint: the bot signs the end of the audit's chain, and posts it where nobody can change it.

    due(…)          a day has passed since the newest one, or one is not posted yet
    make()          verify the chain, sign its end, keep the checkpoint
    post(number)    put one into the channel

What is kept in the database is also what is still to be posted: a crash in between, or Slack being away, delays the
message and loses none.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from bot.domain.checkpoint import Checkpoint, SignedCheckpoint
from bot.domain.errors import AuditBroken, CannotPost, MessengerError, TryLater

log = logging.getLogger(__name__)

Sign = Callable[[Checkpoint], SignedCheckpoint]

MAKE: Final = 0
"""The job that makes a checkpoint; any other is the number of one to post."""

LOOK_EVERY_S: Final = 2.0
"""Between two looks for what is due: a day need not end on the second."""
BROKEN_REST_S: Final = 3600.0
"""A chain that does not verify is verified again after so long; the first time it may be walked from its beginning."""

RETRY_GAPS_S: Final = (2.0, 10.0, 60.0, 300.0)
RETRY_GAP_S: Final = 3600.0


@dataclass(frozen=True, kw_only=True, slots=True)
class DueCheckpoints:
    is_day_over: bool  #: since the newest one was made, or there is none
    unposted: tuple[int, ...]  #: whose time to be posted has come
    is_any_unposted: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Posting:
    """A checkpoint that is being posted."""

    number: int
    signed: SignedCheckpoint
    attempts: int  #: before this one
    fence: int


class CheckpointStore(Protocol):
    """What the daily checkpoint needs of the database. Every verb raises StoreError."""

    def due(self, *, limit: int) -> DueCheckpoints: ...

    def make_daily(self, *, rest: Callable[[], None]) -> SignedCheckpoint | None:
        """Make one if a day has passed; None if somebody else just has. It waits to be posted where there is a channel.

        Raises AuditBroken where the chain does not verify.
        """
        ...

    def note_broken(self, fault: str) -> None:
        """Write into the audit that no checkpoint could be made, and why."""
        ...

    def lease(self, number: int) -> Posting | None:
        """Take it if it is due; None otherwise."""
        ...

    def posted(self, posting: Posting, *, channel_id: str, ts: str) -> None: ...

    def post_later(self, posting: Posting, *, due_in_s: float) -> None: ...


class CheckpointPoster(Protocol):
    """What the daily checkpoint needs of Slack."""

    def post_checkpoint(self, signed: SignedCheckpoint, *, channel_id: str) -> tuple[str, str]:
        """Returns the message's channel and ts. Raises CannotPost, TryLater."""
        ...

    def post_broken_audit(self, fault: str, *, channel_id: str) -> None:
        """Raises CannotPost, TryLater."""
        ...


class Checkpointing:
    """Makes a checkpoint a day, and posts it if there is a `channel_id`."""

    def __init__(
        self,
        *,
        store: CheckpointStore,
        poster: CheckpointPoster,
        channel_id: str | None,
        rest: Callable[[], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`rest` is called now and then while the chain is walked; what it raises ends the walk."""
        self._store = store
        self._poster = poster
        self._channel_id = channel_id
        self._monotonic = monotonic
        self._rest = rest
        self._looks_at = self._makes_at = float("-inf")
        self._broken: str | None = None
        self._told_broken: str | None = None
        self._trouble: str | None = None  # Slack's word for why the latest was not posted

    def due(self, *, limit: int) -> tuple[int, ...]:
        """The jobs for `work`. Raises StoreError."""
        now = self._monotonic()
        if now < self._looks_at:
            return ()
        self._looks_at = now + LOOK_EVERY_S
        found = self._store.due(limit=limit)
        if not found.is_any_unposted:
            self._trouble = None
        making = (MAKE,) if found.is_day_over and now >= self._makes_at else ()
        return (*making, *(found.unposted if self._channel_id is not None else ()))

    def work(self, job_id: int) -> float | None:
        """Do one job; returns when to call again, if soon. Raises StoreError."""
        return self.make() if job_id == MAKE else self.post(job_id)

    def state(self) -> bool | str:
        """True where all is well, else a short word for what is not."""
        if self._broken is not None:
            return "audit_does_not_verify"
        return True if self._trouble is None else f"not_posted: {self._trouble}"

    def make(self) -> float | None:
        """Make the day's checkpoint. Raises StoreError."""
        if self._monotonic() < self._makes_at:
            return None
        try:
            made = self._store.make_daily(rest=self._rest)
        except AuditBroken as error:
            self._makes_at = self._monotonic() + BROKEN_REST_S
            self._tell_broken(str(error))
            return None
        self._broken = self._told_broken = None
        self._looks_at = float("-inf")
        if made is not None:
            log.info("made a checkpoint of the audit", extra={"seq": made.checkpoint.seq, "hash": made.checkpoint.hash})
        return None

    def post(self, number: int) -> float | None:
        """Post one. Raises StoreError."""
        if self._channel_id is None:
            return None
        posting = self._store.lease(number)
        if posting is None:
            return None
        try:
            channel_id, ts = self._poster.post_checkpoint(posting.signed, channel_id=self._channel_id)
        except (CannotPost, TryLater) as error:
            is_first = self._trouble is None
            self._trouble = error.error if isinstance(error, CannotPost) else error.cause
            if is_first:
                log.warning("a checkpoint of the audit is not posted yet: %s", self._trouble)
            due_in_s = RETRY_GAPS_S[posting.attempts] if posting.attempts < len(RETRY_GAPS_S) else RETRY_GAP_S
            if isinstance(error, TryLater):
                due_in_s = max(due_in_s, error.retry_after_s)
            self._store.post_later(posting, due_in_s=due_in_s)
        else:
            self._trouble = None
            self._store.posted(posting, channel_id=channel_id, ts=ts)
        return None

    def _tell_broken(self, fault: str) -> None:
        log.error("no checkpoint was made, as the audit does not verify: %s", fault)
        if fault != self._broken:
            self._broken = fault
            self._store.note_broken(fault)
        if self._channel_id is None or fault == self._told_broken:
            return
        try:
            self._poster.post_broken_audit(fault, channel_id=self._channel_id)
        except MessengerError as error:
            log.warning("the channel was not told that the audit does not verify: %s", error)
        else:
            self._told_broken = fault
