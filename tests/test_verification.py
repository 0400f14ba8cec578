"""What `verify` says of a chain that somebody has changed, and where a pruned chain begins."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from builders import APPROVER, REQUESTER, START, execute, rows
from sqlalchemy import text

from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import audit_events
from bot.database.verification import Agreement, Wrong, compare, verify
from bot.domain.audit import Action, AuditEvent, canonical, chain_hash
from bot.domain.checkpoint import Checkpoint
from bot.domain.errors import NothingDone
from bot.domain.witness import Witness

EVENTS = 8
Row = dict[str, Any]


def append(database: Database, count: int) -> None:
    with database.write() as connection:
        chain = Chain(database, connection)
        for _ in range(count):
            event = AuditEvent(action=Action.COMMAND_REFUSED, actor=(REQUESTER, APPROVER)[chain.seq % 2])
            chain.append(event, occurred_at=START + timedelta(minutes=chain.seq))
        chain.write()


@pytest.fixture
def filled(database: Database) -> Database:
    """Eight events in a database whose owner has taken the triggers away, and PostgreSQL's uniqueness of links."""
    append(database, EVENTS)
    if database.is_sqlite:
        execute(database, *(f"DROP TRIGGER audit_events_{each}" for each in ("no_update", "no_delete", "no_replace")))
    else:
        execute(
            database,
            "ALTER TABLE audit_events DISABLE TRIGGER USER",
            "ALTER TABLE audit_events DROP CONSTRAINT uq_audit_events_prev_hash",
        )
    return database


def stored(database: Database) -> list[Row]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(audit_events.select().order_by(audit_events.c.seq)).mappings()]


def put(database: Database, changed: list[Row]) -> None:
    with database.write() as connection:
        connection.execute(text("DELETE FROM audit_events"))
        connection.execute(audit_events.insert(), changed)


def renumbered(changed: list[Row]) -> list[Row]:
    return [{**row, "seq": seq} for seq, row in enumerate(changed, start=1)]


def forged(row: Row, *, prev_hash: str, **changes: Any) -> Row:
    """The row with these changes, sound in itself."""
    entry = canonical({**json.loads(row["entry"]), **changes})
    return {**row, **changes, "entry": entry, "prev_hash": prev_hash, "hash": chain_hash(prev_hash, entry)}


# What is done: each takes the rows and gives other ones


def swap(seen: list[Row]) -> list[Row]:
    seen[2], seen[5] = seen[5], seen[2]
    return renumbered(seen)


def move_to_the_end(seen: list[Row]) -> list[Row]:
    return renumbered([*seen[:2], *seen[3:], seen[2]])


def move_beyond_the_end(seen: list[Row]) -> list[Row]:
    return [*seen[:2], *seen[3:], {**seen[2], "seq": 77}]


def insert_unlinked(seen: list[Row]) -> list[Row]:
    return renumbered([*seen[:2], forged(seen[2], prev_hash="d" * 64, actor="U0FORGED"), *seen[2:]])


def insert_linked(seen: list[Row]) -> list[Row]:
    return renumbered([*seen[:2], forged(seen[2], prev_hash=seen[1]["hash"], actor="U0FORGED"), *seen[2:]])


def insert_before_the_first(seen: list[Row]) -> list[Row]:
    return [{**seen[0], "seq": 0, "prev_hash": "d" * 64, "hash": "e" * 64}, *seen]


def add(seen: list[Row]) -> list[Row]:
    return [*seen, forged(seen[-1], prev_hash=seen[-1]["hash"], seq=EVENTS + 1)]


def remove(seen: list[Row]) -> list[Row]:
    return [*seen[:2], *seen[3:]]


def remove_and_renumber(seen: list[Row]) -> list[Row]:
    return renumbered(remove(seen))


def remove_the_first(seen: list[Row]) -> list[Row]:
    return seen[1:]


def number_anew(seen: list[Row]) -> list[Row]:
    return [*seen[:7], {**seen[7], "seq": 9}]


def number_and_hash_anew(seen: list[Row]) -> list[Row]:
    return [*seen[:7], forged(seen[7], prev_hash=seen[6]["hash"], seq=9)]


def alter_with_its_hash(seen: list[Row]) -> list[Row]:
    return [*seen[:2], forged(seen[2], prev_hash=seen[1]["hash"], actor="U0FORGED"), *seen[3:]]


def alter_the_first_with_its_link(seen: list[Row]) -> list[Row]:
    return [forged(seen[0], prev_hash="d" * 64), *seen[1:]]


def alter_a_link(seen: list[Row]) -> list[Row]:
    return [*seen[:2], {**seen[2], "prev_hash": "d" * 64}, *seen[3:]]


def alter_a_text_and_its_link(seen: list[Row]) -> list[Row]:
    return [*seen[:2], {**seen[2], "prev_hash": "d" * 64, "entry": "not JSON"}, *seen[3:]]


DONE: list[tuple[Callable[[list[Row]], list[Row]], Wrong, int, str]] = [
    (swap, Wrong.REORDERED, 3, "event 3 stands at 6, and another one in its place: reordered"),
    (move_to_the_end, Wrong.REORDERED, 3, "event 3 stands at 8, and another one in its place: reordered"),
    (move_beyond_the_end, Wrong.REORDERED, 3, "event 3 stands at 77, and another one in its place: reordered"),
    (insert_unlinked, Wrong.INSERTED, 3, "event 3 was inserted: event 4 follows the one before it"),
    (insert_linked, Wrong.INSERTED, 3, "event 3 was inserted: event 4 follows the one before it"),
    (insert_before_the_first, Wrong.INSERTED, 0, "event 0 was inserted: the chain begins with event 1"),
    (
        add,
        Wrong.INSERTED,
        9,
        "event 9 was inserted: the chain's head says that it ends with event 8",
    ),
    (remove, Wrong.MISSING, 3, "event 3 is missing: the next one is 4"),
    (remove_and_renumber, Wrong.MISSING, 3, "event 3 is missing: in its place stands what was written as event 4"),
    (remove_the_first, Wrong.MISSING, 1, "event 1 is missing: the next one is 2"),
    (number_and_hash_anew, Wrong.MISSING, 8, "event 8 is missing: the next one is 9"),
    (number_anew, Wrong.ALTERED, 8, "event 8 was altered: it is numbered 9"),
    (alter_with_its_hash, Wrong.ALTERED, 3, "event 3 was altered: event 4 was written after another one"),
    (alter_the_first_with_its_link, Wrong.ALTERED, 1, "event 1 was altered: it does not link to what is before it"),
    (alter_a_link, Wrong.ALTERED, 3, "event 3 was altered: column prev_hash is not the hash of the event before"),
    (alter_a_text_and_its_link, Wrong.ALTERED, 3, "event 3 was altered: it does not link to what is before it"),
]


@pytest.mark.parametrize(("do", "wrong", "seq", "sentence"), DONE, ids=[each[0].__name__ for each in DONE])
def test_the_first_bad_event_is_named_and_what_is_wrong_with_it(
    filled: Database, do: Callable[[list[Row]], list[Row]], wrong: Wrong, seq: int, sentence: str
) -> None:
    """Who investigates begins with that row: a lost event must not be called a forged one."""
    changed = do(stored(filled))
    if do is insert_linked and filled.is_sqlite:
        with pytest.raises(NothingDone, match="UNIQUE"):  # SQLite lets go of it only with a new table
            put(filled, changed)
        return
    put(filled, changed)
    found = verify(filled)
    assert (found.wrong, found.fault_seq, found.fault) == (wrong, seq, sentence)


# The base


def prune(database: Database, up_to: int) -> None:
    with database.write() as connection:
        Chain(database, connection).begin_behind(up_to)
        connection.execute(audit_events.delete().where(audit_events.c.seq <= up_to))


def test_a_pruned_chain_verifies_from_its_base_and_goes_on(filled: Database) -> None:
    """What was archived may go; what is left must still be proven, and so must what comes after."""
    seen = stored(filled)
    prune(filled, 5)
    append(filled, 2)
    found = verify(filled)
    assert (found.fault, found.events, found.base_seq, found.head_seq) == (None, 5, 5, 10)
    assert rows(filled, "SELECT base_seq, base_hash FROM audit_head") == [(5, seen[4]["hash"])]
    prune(filled, 10)
    found = verify(filled)
    assert (found.fault, found.events, found.base_seq, found.head_seq) == (None, 0, 10, 10)


def test_a_base_needs_an_event(filled: Database) -> None:
    """A base that was never an event would leave nothing to verify from."""
    with filled.write() as connection, pytest.raises(ValueError, match="there is no event 9"):
        Chain(filled, connection).begin_behind(9)
    assert verify(filled).events == EVENTS


def test_a_base_that_does_not_fit_is_found(filled: Database) -> None:
    """Whoever moves the base by hand needs the hash of an event that the chain goes on from."""
    execute(filled, "DELETE FROM audit_events WHERE seq <= 5")
    assert verify(filled).fault == "event 1 is missing: the next one is 6"
    execute(filled, f"UPDATE audit_head SET base_seq = 5, base_hash = '{'d' * 64}'")
    assert verify(filled).wrong is Wrong.ALTERED
    execute(filled, "UPDATE audit_head SET base_seq = 4")
    assert verify(filled).wrong is Wrong.MISSING


def test_an_event_before_the_base_is_out_of_place(filled: Database) -> None:
    """It would be in every list, and no hash would cover it."""
    seen = stored(filled)
    prune(filled, 5)
    put(filled, [seen[1], *seen[5:]])
    found = verify(filled)
    assert (found.wrong, found.fault) == (Wrong.INSERTED, "event 2 was inserted: the chain begins with event 6")


def checkpoint_of(row: Row) -> Checkpoint:
    return Checkpoint(seq=row["seq"], hash=row["hash"], at="2026-11-23T09:00:00.000000Z")


def test_what_is_older_than_the_base_is_not_counted_as_agreeing(filled: Database) -> None:
    """It can be compared with the archive alone, and whoever reads the result must know."""
    seen = stored(filled)
    prune(filled, 5)
    known = [checkpoint_of(row) for row in seen]
    found = verify(filled, [Witness(seq=1, hash="0" * 16), Witness(seq=6, hash=seen[5]["hash"][:16])], known)
    assert (found.fault, found.witnesses, found.checkpoints, found.too_old) == (None, 1, 4, 5)
    assert [compare(filled, each) for each in known] == [Agreement.PRUNED] * 4 + [Agreement.AGREES] * 4


# Checkpoints, and walking from one


def test_a_checkpoint_that_does_not_agree_says_why(filled: Database) -> None:
    """Rewritten or cut off: which of the two the owner has done."""
    last = checkpoint_of(stored(filled)[-1])
    other = Checkpoint(seq=EVENTS, hash="d" * 64, at=last.at)
    later = Checkpoint(seq=EVENTS + 1, hash="d" * 64, at=last.at)
    first = Checkpoint(seq=0, hash="0" * 64, at=last.at)
    assert [compare(filled, each) for each in (first, last, other, later)] == [
        Agreement.AGREES,
        Agreement.AGREES,
        Agreement.REWRITTEN,
        Agreement.CUT_OFF,
    ]
    assert verify(filled, checkpoints=[first, last]).checkpoints == 2
    assert verify(filled, checkpoints=[last, other]).wrong is Wrong.REWRITTEN
    assert verify(filled, checkpoints=[last, later]).wrong is Wrong.CUT_OFF


def test_from_a_checkpoint_only_what_came_after_it_is_walked(filled: Database) -> None:
    """The daily one must not walk a year; and the event that it starts from must still be there."""
    seen = stored(filled)
    start = checkpoint_of(seen[4])
    found = verify(filled, start=start)
    assert (found.fault, found.events, found.head_seq) == (None, 3, 8)
    execute(filled, "UPDATE audit_events SET actor = 'U0OTHER' WHERE seq = 2")
    assert verify(filled, start=start).fault is None
    execute(filled, "UPDATE audit_events SET actor = 'U0OTHER' WHERE seq = 7")
    assert verify(filled, start=start).fault_seq == 7
    assert verify(filled, start=Checkpoint(seq=5, hash="d" * 64, at="")).wrong is Wrong.REWRITTEN
    put(filled, seen[:3])
    found = verify(filled, start=start)
    assert (found.wrong, found.events) == (Wrong.CUT_OFF, 0)
    execute(filled, "DELETE FROM audit_head")
    assert verify(filled, start=start).wrong is Wrong.CUT_OFF
    assert verify(filled).fault == "the head of the chain is missing"
