"""The signed checkpoints that were made of the chain, so that exports and packs find the one that covers them.

They prove something only to who has them, or the key, from outside of this database.
"""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import ColumnElement, Connection, Row, insert, or_, select, update

from bot.checkpointing import DueCheckpoints, Posting, Sign
from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import checkpoints
from bot.database.store import LEASE, TIMER_SLACK
from bot.database.verification import Progress, verify, verify_in
from bot.domain.audit import SYSTEM, Action, Actor, AuditEvent, Outcome, timestamp
from bot.domain.checkpoint import Checkpoint, SignedCheckpoint
from bot.domain.errors import AuditBroken

DAY: Final = timedelta(hours=24)
CLOCK_SLACK: Final = timedelta(minutes=5)
"""What was made so much later than now was made before the database's clock was set back."""
LONGEST_WAIT: Final = timedelta(hours=2)


class Checkpoints:
    """What was signed, and signing more."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def make(
        self,
        sign: Sign,
        *,
        actor: Actor,
        is_to_post: bool = False,
        start: Checkpoint | None = None,
        progress: Progress = lambda _events: None,
    ) -> SignedCheckpoint:
        """Verify the chain, sign its end, keep the checkpoint, and write into the audit that it was made.

        From `start`, a checkpoint whose signature is good, only what came after it is verified. Raises AuditBroken
        where the chain does not verify: nobody signs a broken one.
        """
        verified = self._verified(start, progress)
        with self._database.write() as connection:
            chain = Chain(self._database, connection)
            return self._keep(connection, chain, sign, verified, actor=actor, is_to_post=is_to_post)

    def make_if_day_is_over(
        self,
        sign: Sign,
        *,
        is_to_post: bool,
        start: Checkpoint | None = None,
        progress: Progress = lambda _events: None,
    ) -> SignedCheckpoint | None:
        """The same by the bot itself, once in 24 hours whoever tries: None where it was done already."""
        verified = self._verified(start, progress)
        with self._database.write() as connection:
            chain = Chain(self._database, connection)  # whoever else makes one waits here
            if not _is_day_over(connection, chain.now, is_to_post=is_to_post):
                return None
            return self._keep(connection, chain, sign, verified, actor=SYSTEM, is_to_post=is_to_post)

    def covering(self, seq: int) -> SignedCheckpoint | None:
        """The first one that was made when this event was there already."""
        query = select(checkpoints).where(checkpoints.c.seq >= seq).order_by(checkpoints.c.seq, checkpoints.c.id)
        return self._first(query)

    def newest_up_to(self, seq: int) -> SignedCheckpoint | None:
        """The newest one of this event or of one before it."""
        query = select(checkpoints).where(checkpoints.c.seq <= seq)
        return self._first(query.order_by(checkpoints.c.seq.desc(), checkpoints.c.id.desc()))

    def newest(self, *, key: str) -> SignedCheckpoint | None:
        """The newest one that names this public key; whether its signature is good is for the caller to know."""
        return self._first(select(checkpoints).where(checkpoints.c.key == key).order_by(checkpoints.c.id.desc()))

    def _first(self, query: Any) -> SignedCheckpoint | None:
        with self._database.read() as connection:
            row = connection.execute(query.limit(1)).one_or_none()
        return None if row is None else signed_checkpoint(row)

    def _verified(self, start: Checkpoint | None, progress: Progress) -> Checkpoint:
        """The end of the chain that was found good, before any lock is held."""
        found = verify(self._database, start=start, progress=progress)
        if found.fault is not None:
            raise AuditBroken(found.fault)
        return Checkpoint(seq=found.head_seq, hash=found.head_hash, at="")

    def _keep(  # noqa: PLR0913 - what is signed, by whom, and where it goes
        self,
        connection: Connection,
        chain: Chain,
        sign: Sign,
        verified: Checkpoint,
        *,
        actor: Actor,
        is_to_post: bool,
    ) -> SignedCheckpoint:
        """Under the head's lock: verify what has come meanwhile, and sign."""
        found = verify_in(connection, start=verified)
        if found.fault is not None:
            raise AuditBroken(found.fault)
        now = self._database.now(connection)
        occurred_at = max(now, chain.occurred_at)
        signed = sign(Checkpoint(seq=chain.seq, hash=chain.hash, at=timestamp(occurred_at)))
        made = signed.checkpoint
        row = {"seq": made.seq, "hash": made.hash, "at": made.at, "key": signed.key, "signature": signed.signature}
        due = {"next_attempt_at": now} if is_to_post else {}
        connection.execute(insert(checkpoints).values(row | {"made_at": now} | due))
        chain.append(
            AuditEvent(action=Action.AUDIT_CHECKPOINTED, outcome=Outcome.OK, actor=actor, details=signed.as_json()),
            occurred_at=occurred_at,
        )
        chain.write()
        return signed


class SqlDailyCheckpoints:
    """The CheckpointStore of `bot.checkpointing` on SQLite and PostgreSQL."""

    def __init__(
        self,
        database: Database,
        *,
        sign: Sign,
        key: str,
        is_good: Callable[[SignedCheckpoint], bool],
        is_to_post: bool,
    ) -> None:
        """`key` is the public key; `is_good` tells whether a signature is."""
        self._database = database
        self._checkpoints = Checkpoints(database)
        self._sign = sign
        self._key = key
        self._is_good = is_good
        self._is_to_post = is_to_post

    def due(self, *, limit: int) -> DueCheckpoints:
        with self._database.read() as connection:
            now = self._database.now(connection)
            waiting = select(checkpoints.c.id).where(checkpoints.c.next_attempt_at.is_not(None))
            due = waiting.where(_is_due(now)).order_by(checkpoints.c.id).limit(limit)
            return DueCheckpoints(
                is_day_over=_is_day_over(connection, now, is_to_post=self._is_to_post),
                unposted=tuple(connection.execute(due).scalars()),
                is_any_unposted=connection.execute(waiting.limit(1)).first() is not None,
            )

    def make_daily(self, *, rest: Callable[[], None]) -> SignedCheckpoint | None:
        newest = self._checkpoints.newest(key=self._key)
        start = newest.checkpoint if newest is not None and self._is_good(newest) else None
        return self._checkpoints.make_if_day_is_over(
            self._sign, is_to_post=self._is_to_post, start=start, progress=lambda _events: rest()
        )

    def note_broken(self, fault: str) -> None:
        with self._database.write() as connection:
            chain = Chain(self._database, connection)
            event = AuditEvent(action=Action.AUDIT_CHECKPOINTED, outcome=Outcome.FAILED, details={"fault": fault})
            chain.append(event, occurred_at=chain.now)
            chain.write()

    def lease(self, number: int) -> Posting | None:
        with self._database.write() as connection:
            now = self._database.now(connection)
            row = connection.execute(
                update(checkpoints)
                .where(checkpoints.c.id == number, _is_due(now + TIMER_SLACK))
                .values(next_attempt_at=now + LEASE, attempts=checkpoints.c.attempts + 1, fence=checkpoints.c.fence + 1)
                .returning(*checkpoints.c)
            ).one_or_none()
        if row is None:
            return None
        return Posting(number=row.id, signed=signed_checkpoint(row), attempts=row.attempts - 1, fence=row.fence)

    def posted(self, posting: Posting, *, channel_id: str, ts: str) -> None:
        self._release(posting, channel_id=channel_id, message_ts=ts, next_attempt_at=None)

    def post_later(self, posting: Posting, *, due_in_s: float) -> None:
        self._release(posting, due_in=min(timedelta(seconds=due_in_s), LONGEST_WAIT))

    def _release(self, posting: Posting, *, due_in: timedelta | None = None, **columns: Any) -> None:
        with self._database.write() as connection:
            if due_in is not None:
                columns["next_attempt_at"] = self._database.now(connection) + due_in
            connection.execute(
                update(checkpoints)
                .where(checkpoints.c.id == posting.number, checkpoints.c.fence == posting.fence)
                .values(columns)
            )


def _is_due(now: datetime) -> ColumnElement[bool]:
    waits_until = checkpoints.c.next_attempt_at
    return or_(waits_until <= now, waits_until > now + LONGEST_WAIT + CLOCK_SLACK)


def _is_day_over(connection: Connection, now: datetime, *, is_to_post: bool) -> bool:
    """Where checkpoints are posted, one that nobody meant to post does not stand for the day's."""
    newest = select(checkpoints.c.made_at).order_by(checkpoints.c.id.desc()).limit(1)
    if is_to_post:
        newest = newest.where(or_(checkpoints.c.next_attempt_at.is_not(None), checkpoints.c.message_ts.is_not(None)))
    made_at: datetime | None = connection.execute(newest).scalar_one_or_none()
    return made_at is None or made_at <= now - DAY or made_at > now + CLOCK_SLACK


def signed_checkpoint(row: Row[Any]) -> SignedCheckpoint:
    """Out of a row of the table; whether its signature is good is for the caller to know."""
    made = Checkpoint(seq=row.seq, hash=row.hash, at=row.at)
    return SignedCheckpoint(checkpoint=made, key=row.key, signature=row.signature)
