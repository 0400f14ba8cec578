"""The signed checkpoints that were made of the chain, so that exports and packs find the one that covers them.

They prove something only to who has them, or the key, from outside of this database.
"""

from collections.abc import Callable

from sqlalchemy import Row, insert, select

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import checkpoints
from bot.domain.audit import Action, Actor, AuditEvent, Outcome, timestamp
from bot.domain.checkpoint import Checkpoint, SignedCheckpoint

Sign = Callable[[Checkpoint], SignedCheckpoint]


class Checkpoints:
    def __init__(self, database: Database) -> None:
        self._database = database

    def make(self, sign: Sign, *, actor: Actor) -> SignedCheckpoint:
        """Sign the end of the chain, keep the checkpoint, and write into the audit that it was made, all or nothing."""
        with self._database.write() as connection:
            chain = Chain(connection)
            now = max(self._database.now(connection), chain.occurred_at)
            signed = sign(Checkpoint(seq=chain.seq, hash=chain.hash, at=timestamp(now)))
            made = signed.checkpoint
            row = {"seq": made.seq, "hash": made.hash, "at": made.at, "key": signed.key, "signature": signed.signature}
            connection.execute(insert(checkpoints).values(row))
            chain.append(
                AuditEvent(action=Action.AUDIT_CHECKPOINTED, outcome=Outcome.OK, actor=actor, details=signed.as_json()),
                occurred_at=now,
            )
            chain.write_head()
        return signed

    def covering(self, seq: int) -> SignedCheckpoint | None:
        """The first one that was made when this event was there already."""
        query = select(checkpoints).where(checkpoints.c.seq >= seq).order_by(checkpoints.c.seq, checkpoints.c.id)
        with self._database.read() as connection:
            row = connection.execute(query.limit(1)).one_or_none()
        return None if row is None else _signed(row)


def _signed(row: Row[tuple[object, ...]]) -> SignedCheckpoint:
    made = Checkpoint(seq=row.seq, hash=row.hash, at=row.at)
    return SignedCheckpoint(checkpoint=made, key=row.key, signature=row.signature)
