"""What is done to the audit by somebody who owns the database, is found by what one person outside of it knows."""

import json
import random
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from builders import APPROVER, REQUESTER, SECOND, START, execute
from sqlalchemy import insert, text

from bot.audit.signing import Signer, is_signed
from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.schema import audit_events, audit_head
from bot.database.verification import verify
from bot.domain.audit import GENESIS_HASH, Action, AuditEvent, canonical, chain_hash
from bot.domain.checkpoint import Checkpoint, parse_checkpoints
from bot.domain.witness import DIGITS, Witness, parse_witnesses

EVENTS = 24
TRIES = 200

Row = dict[str, Any]


@pytest.fixture
def owned(database: Database) -> Database:
    """A day's events in a database whose owner has taken the triggers away."""
    people = (REQUESTER, APPROVER, SECOND)
    actions = (Action.REQUEST_CREATED, Action.APPROVAL_REFUSED, Action.REQUEST_APPROVED, Action.ORDER_CANCELED)
    with database.write() as connection:
        chain = Chain(database, connection)
        for count in range(EVENTS):
            event = AuditEvent(
                action=actions[count % 4],
                actor=people[count % 3],
                request_id=count // 4 + 1,
                reason="잘못 냄" if count % 4 == 0 else None,
                details={"price": "95000000.1", "count": count},
            )
            chain.append(event, occurred_at=START + timedelta(minutes=count))
        chain.write()
    triggers = ("no_update", "no_delete", "no_replace")
    execute(
        database,
        *(
            [f"DROP TRIGGER audit_events_{trigger}" for trigger in triggers]
            if database.is_sqlite
            else ["ALTER TABLE audit_events DISABLE TRIGGER USER"]
        ),
    )
    return database


def read(database: Database) -> list[Row]:
    with database.read() as connection:
        return [dict(row) for row in connection.execute(audit_events.select().order_by(audit_events.c.seq)).mappings()]


def write(database: Database, rows: list[Row], *, with_head: bool) -> None:
    """Put these rows in place of all; with the head as it would be, or as it was."""
    last = rows[-1] if rows else {"seq": 0, "hash": GENESIS_HASH, "occurred_at": START}
    with database.write() as connection:
        connection.execute(text("DELETE FROM audit_events"))
        if rows:
            connection.execute(insert(audit_events), rows)
        if with_head:
            head = {name: last[name] for name in ("seq", "hash", "occurred_at")}
            connection.execute(audit_head.update().values(head))


def chained(rows: list[Row]) -> list[Row]:
    """The rows numbered, written and hashed anew, as somebody does it who has read the source."""
    previous_hash, made = GENESIS_HASH, []
    for seq, row in enumerate(rows, start=1):
        fresh = {**row, "seq": seq, "prev_hash": previous_hash}
        entry = json.loads(row["entry"]) | {"seq": seq}
        for name in entry.keys() - {"details", "occurred_at", "seq"}:
            entry[name] = row[name]
        fresh["entry"] = canonical(entry)
        fresh["hash"] = previous_hash = chain_hash(previous_hash, fresh["entry"])
        made.append(fresh)
    return made


# What is done: each takes the rows and gives other ones, not hashed anew


def alter_a_byte(rows: list[Row], dice: random.Random) -> list[Row]:
    place = dice.randrange(len(rows))
    old = rows[place]["actor"]
    at = dice.randrange(len(old))
    letter = dice.choice([each for each in "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" if each != old[at]])
    return [*rows[:place], {**rows[place], "actor": old[:at] + letter + old[at + 1 :]}, *rows[place + 1 :]]


def remove_one(rows: list[Row], dice: random.Random) -> list[Row]:
    place = dice.randrange(len(rows))
    return rows[:place] + rows[place + 1 :]


def swap_two(rows: list[Row], dice: random.Random) -> list[Row]:
    one, other = dice.sample(range(len(rows)), 2)
    swapped = list(rows)
    swapped[one], swapped[other] = swapped[other], swapped[one]
    return swapped


def cut_the_tail(rows: list[Row], dice: random.Random) -> list[Row]:
    return rows[: dice.randrange(1, len(rows))]


def insert_one(rows: list[Row], dice: random.Random) -> list[Row]:
    place = dice.randrange(len(rows))
    return [*rows[:place], {**dice.choice(rows), "actor": "U0FORGED"}, *rows[place:]]


def empty(_rows: list[Row], _dice: random.Random) -> list[Row]:
    return []


KINDS = (alter_a_byte, remove_one, swap_two, cut_the_tail, insert_one, empty)
Kind = Callable[[list[Row], random.Random], list[Row]]


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_one_witness_or_one_checkpoint_finds_what_the_chain_cannot(owned: Database, kind: Kind) -> None:
    """All hashes and the head are computed anew: the chain is sound, and only what is known outside contradicts it."""
    genuine, dice, signer = read(owned), random.Random(kind.__name__), Signer("11" * 32)
    last = Witness(seq=EVENTS, hash=genuine[-1]["hash"][:DIGITS])
    line = str(signer.sign(Checkpoint(seq=EVENTS, hash=genuine[-1]["hash"], at="2026-11-23T10:00:00.000000Z")))
    (kept,) = parse_checkpoints(line)
    assert is_signed(kept)
    found_by_chain = found_by_witness = found_by_checkpoint = 0
    for _ in range(TRIES):
        write(owned, chained(kind(genuine, dice)), with_head=True)
        found_by_chain += verify(owned).fault is not None
        found_by_witness += verify(owned, [last]).fault is not None
        found_by_checkpoint += verify(owned, checkpoints=[kept.checkpoint]).fault is not None
    assert (found_by_chain, found_by_witness, found_by_checkpoint) == (0, TRIES, TRIES)


@pytest.mark.parametrize("kind", [alter_a_byte, remove_one, swap_two, cut_the_tail, insert_one])
def test_the_chain_finds_who_does_not_compute_it_anew(owned: Database, kind: Kind) -> None:
    """The careless are found without anything from outside."""
    genuine, dice = read(owned), random.Random(kind.__name__)
    for _ in range(TRIES // 10):
        changed = kind(genuine, dice)
        numbered = [{**row, "seq": seq} for seq, row in enumerate(changed, start=1)]
        if kind is insert_one:  # the database itself keeps hashes unique
            forged = next(row for row in numbered if row["actor"] == "U0FORGED")
            forged |= {"prev_hash": "d" * 64, "hash": "e" * 64}
        write(owned, numbered, with_head=False)
        assert verify(owned).fault is not None


def test_a_witness_says_which_event_is_not_the_one_it_saw(owned: Database) -> None:
    """Between the last witness that agrees and the first that does not is what was rewritten."""
    genuine = read(owned)
    seen = [Witness(seq=row["seq"], hash=row["hash"]) for row in genuine]
    forged = [*genuine[:9], {**genuine[9], "actor": "U0FORGED"}, *genuine[10:]]
    write(owned, chained(forged), with_head=True)
    agreed = verify(owned, seen[:9])
    assert (agreed.fault, agreed.witnesses) == (None, 9)
    assert verify(owned, seen).fault == "event 10 is not the one that its witness saw: the chain was rewritten"
    write(owned, genuine[:20], with_head=True)
    assert verify(owned, seen).fault == "the chain ends at event 20, but event 21 has a witness: the end was cut off"
    write(owned, genuine, with_head=True)
    assert verify(owned, seen).witnesses == EVENTS


def test_progress_is_told_now_and_then(database: Database) -> None:
    """A million events take ten seconds, and somebody waits."""
    heard: list[int] = []
    with database.write() as connection:
        chain = Chain(database, connection)
        for _ in range(2500):
            chain.append(AuditEvent(action=Action.COMMAND_REFUSED), occurred_at=START)
        chain.write()
    verify(database, progress=heard.append)
    assert heard == [1000, 2000]


# What a witness looks like


def test_witnesses_are_read_as_people_write_them_down() -> None:
    """From a summary in Slack, from a mail, or from what `bot audit verify` printed."""
    digits = "9f2c41d07be3a01b"
    told = f"\naudit #12 {digits}\n 13 {digits * 4} \n#14\t{digits}\n\n> `audit\xa0#15  {digits}`\u200b\n*\n"
    assert parse_witnesses(told) == (
        Witness(seq=12, hash=digits),
        Witness(seq=13, hash=digits * 4),
        Witness(seq=14, hash=digits),
        Witness(seq=15, hash=digits),
    )
    assert str(Witness(seq=13, hash=digits * 4)) == f"audit #13 {digits}"


@pytest.mark.parametrize(
    ("told", "fault"),
    [
        ("", "there is no witness in it"),
        ("12 9f2c41d07be3a01b\n13 9f2c41d07be3a01", "line 2 is no witness"),
        ("0 9f2c41d07be3a01b", "line 1 is no witness"),
        ("-1 9f2c41d07be3a01b", "line 1 is no witness"),
        ("12 9F2C41D07BE3A01B", "line 1 is no witness"),
        ("1२ 9f2c41d07be3a01b", "line 1 is no witness"),
        ("12 9f2c41d07be3a01b and more", "line 1 is no witness"),
        ("12 9f2c41d07be3a01b\n" * 100_001, "more than 100000"),
    ],
)
def test_what_is_no_witness_is_refused(told: str, fault: str) -> None:
    """A list that is half understood would prove half of what its reader believes."""
    with pytest.raises(ValueError, match=fault):
        parse_witnesses(told)


def test_the_times_of_the_rows_are_read_as_times(owned: Database) -> None:
    """These tests write rows back through the schema: they must come out as they went in."""
    genuine = read(owned)
    assert all(isinstance(row["occurred_at"], datetime) for row in genuine)
    write(owned, genuine, with_head=True)
    assert verify(owned).fault is None
