"""The audit can only grow, and shows what was done to it by somebody who could do more."""

import hashlib
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from builders import APPROVER, REQUESTER, SECOND, START, create, create_pending, execute, rows, walk
from postgresql import Postgresql
from sqlalchemy import text

from bot.database.audit_log import AuditLog
from bot.database.chain import Chain
from bot.database.engine import Database
from bot.database.migration import migrate
from bot.database.store import SqlStore
from bot.database.stored_events import READ_ROWS
from bot.database.verification import verify
from bot.domain.audit import GENESIS_HASH, Action, Actor, AuditEvent, Json, Outcome, canonical, chain_hash
from bot.domain.errors import NothingDone
from bot.domain.event_filter import Filter

EVENTS = 5


def append(database: Database, *events: AuditEvent) -> None:
    """Write the events a second apart."""
    with database.write() as connection:
        chain = Chain(database, connection)
        for count, event in enumerate(events):
            chain.append(event, occurred_at=START + timedelta(seconds=count))
        chain.write()


@pytest.fixture
def filled(database: Database) -> Database:
    """Five events, with Korean, quotes, money and control characters in them."""
    odd: dict[str, Json] = {"message": '존재하지 않는 "주문"\n', "price": "95000000.12345678", "count": 7, "none": None}
    people = (REQUESTER, APPROVER, REQUESTER, SECOND, APPROVER)
    append(
        database,
        *(
            AuditEvent(action=Action.COMMAND_REFUSED, actor=actor, reason="why: 100 %", details={**odd, "n": count})
            for count, actor in enumerate(people)
        ),
    )
    return database


def stored(database: Database) -> list[dict[str, Any]]:
    """The rows as the database keeps them."""
    with database.read() as connection:
        return [dict(row) for row in connection.execute(text("SELECT * FROM audit_events ORDER BY seq")).mappings()]


def tamper(database: Database, *statements: str, **values: object) -> None:
    """What somebody with an administrator's rights does."""
    triggers = ("no_update", "no_delete", "no_replace")
    unguard = (
        [f"DROP TRIGGER audit_events_{trigger}" for trigger in triggers]
        if database.is_sqlite
        else ["ALTER TABLE audit_events DISABLE TRIGGER USER"]
    )
    execute(database, *unguard)
    with database.write() as connection:
        for statement in statements:
            connection.execute(text(statement), values)


def fault_of(database: Database) -> str:
    fault = verify(database).fault
    assert fault is not None
    return fault


# It only grows


def test_an_event_is_neither_changed_nor_removed(filled: Database) -> None:
    """Append-only by trigger: a mistake in the bot, or at a prompt, cannot lose evidence."""
    before = stored(filled)
    for statement in (
        "UPDATE audit_events SET reason = 'another'",
        "UPDATE audit_events SET seq = seq + 100 WHERE seq = 5",
        "DELETE FROM audit_events",
        "DELETE FROM audit_events WHERE seq = 5",
    ):
        with pytest.raises(NothingDone, match="audit_events only grows"):
            execute(filled, statement)
    assert stored(filled) == before


def test_postgresql_does_not_truncate_the_audit(postgresql: Postgresql) -> None:
    """TRUNCATE fires no row trigger."""
    database = Database(postgresql.create())
    migrate(database)
    create(SqlStore(database))
    with pytest.raises(NothingDone, match="audit_events only grows"):
        execute(database, "TRUNCATE audit_events")
    with pytest.raises(NothingDone, match="audit_events only grows"):
        execute(database, "TRUNCATE cancel_requests, audit_events CASCADE")
    assert verify(database).events == 1
    database.close()


@pytest.mark.parametrize("taken", ["seq", "prev_hash", "hash"])
def test_an_event_is_not_replaced(filled: Database, taken: str) -> None:
    """`INSERT OR REPLACE` removes a row without firing the DELETE trigger; on PostgreSQL its like is an UPDATE."""
    before = stored(filled)
    new = {"seq": 77, "prev_hash": "a" * 64, "hash": "b" * 64, taken: before[1][taken]}
    copied = "occurred_at, action, outcome, actor, actor_name, actor_team, details, entry"
    names = f"seq, prev_hash, hash, {copied}"
    values = f"SELECT {new['seq']}, '{new['prev_hash']}', '{new['hash']}', {copied} FROM audit_events WHERE seq = 1"
    if filled.is_sqlite:
        statement = f"INSERT OR REPLACE INTO audit_events ({names}) {values}"
    else:
        statement = (
            f"INSERT INTO audit_events ({names}) {values} ON CONFLICT ({taken}) DO UPDATE SET reason = 'another'"
        )
    with pytest.raises(NothingDone, match="audit_events only grows"):
        execute(filled, statement)
    assert stored(filled) == before


def test_the_chain_cannot_fork(filled: Database) -> None:
    """Two events after the same one: the schema refuses the second, whoever writes it."""
    first = stored(filled)[0]
    copied = "occurred_at, action, outcome, actor, actor_name, actor_team, details, entry"
    with pytest.raises(NothingDone):
        execute(
            filled,
            f"INSERT INTO audit_events (seq, prev_hash, hash, {copied}) "
            f"SELECT 6, '{first['prev_hash']}', '{'c' * 64}', {copied} FROM audit_events WHERE seq = 1",
        )


def test_the_chain_has_one_head(filled: Database) -> None:
    """Two heads would be two chains."""
    with pytest.raises(NothingDone, match="ck_audit_head_one_row"):
        execute(
            filled,
            "INSERT INTO audit_head (id, seq, hash, occurred_at) SELECT 2, seq, hash, occurred_at FROM audit_head",
        )


# What is kept


def test_the_hash_can_be_recomputed_by_hand(filled: Database) -> None:
    """An auditor needs nothing of ours: SHA-256 over the hash before, a newline, and the stored text."""
    previous = "0" * 64
    for row in stored(filled):
        assert row["prev_hash"] == previous
        previous = hashlib.sha256((previous + "\n" + row["entry"]).encode("utf-8")).hexdigest()
        assert row["hash"] == previous
    assert rows(filled, "SELECT id, seq, hash FROM audit_head") == [(1, EVENTS, previous)]


def test_the_hashed_text_says_what_the_columns_say(filled: Database) -> None:
    """The columns are there for queries; the text is the evidence. They were written from the same values."""
    for row, listed in zip(stored(filled), AuditLog(filled).list(Filter(), limit=9, newest_first=False), strict=True):
        entry = json.loads(row["entry"])
        assert json.dumps(entry, sort_keys=True, separators=(",", ":"), ensure_ascii=False) == row["entry"]
        assert listed == {**entry, "prev_hash": row["prev_hash"], "hash": row["hash"]}
        assert entry["details"] == json.loads(row["details"])
        plain = {name: value for name, value in entry.items() if name not in {"details", "occurred_at"}}
        assert plain == {name: row[name] for name in plain}


def test_a_chain_that_was_left_alone_is_fine(filled: Database) -> None:
    """The result names the end of the chain, which a witness can be compared with."""
    verification = verify(filled)
    last = stored(filled)[-1]
    assert (verification.events, verification.head_seq, verification.head_hash) == (EVENTS, EVENTS, last["hash"])
    assert verification.fault is None


def test_an_empty_chain_is_fine(database: Database) -> None:
    """On the first day there is nothing to find."""
    verification = verify(database)
    assert (verification.events, verification.head_seq, verification.head_hash) == (0, 0, GENESIS_HASH)
    assert verification.fault is None


def test_a_transaction_without_an_event_leaves_the_head_alone(filled: Database) -> None:
    """A change that only the lanes need writes no audit."""
    before = rows(filled, "SELECT * FROM audit_head")
    append(filled)
    assert rows(filled, "SELECT * FROM audit_head") == before


def test_a_long_chain_is_walked_in_pieces(database: Database) -> None:
    """A million rows must not be in memory at once; nor may the seams between pieces be passed over."""
    append(database, *[AuditEvent(action=Action.COMMAND_REFUSED)] * (READ_ROWS + 2))
    assert verify(database).events == READ_ROWS + 2
    tamper(database, f"UPDATE audit_events SET actor = 'U' WHERE seq = {READ_ROWS + 1}")
    assert f"event {READ_ROWS + 1} was altered" in fault_of(database)


# What verify finds


def test_a_byte_of_an_entry_is_not_altered_unseen(filled: Database) -> None:
    """Whose click it was is what people would like to change."""
    tamper(filled, "UPDATE audit_events SET entry = replace(entry, 'U0APPROVER', 'U0APPROVES') WHERE seq = 5")
    assert fault_of(filled) == "event 5 was altered: its hash does not fit its text"
    execute(filled, "UPDATE audit_events SET entry = entry || ' ' WHERE seq = 2")
    assert fault_of(filled) == "event 2 was altered: its hash does not fit its text"


ALTERED = {
    "action": "'order.filled'",
    "outcome": "'failed'",
    "actor": "'U0STRANGER'",
    "actor_name": "'Somebody'",
    "actor_team": "'T0OTHER'",
    "request_id": "42",
    "order_uuid": "'u'",
    "market": "'KRW-BTC'",
    "team_id": "'T'",
    "channel_id": "'C'",
    "reason": "NULL",
    "trigger_id": "'t'",
    "details": "'{}'",
    "occurred_at": "'2026-11-23T09:00:01.000001Z'",
}


def test_a_column_is_not_altered_unseen(filled: Database) -> None:
    """Reports and filters read the columns: they must not lie while the hashed text is left as it was."""
    genuine = stored(filled)[1]
    tamper(filled)
    assert set(ALTERED) == set(genuine) - {"seq", "entry", "prev_hash", "hash"}
    for column, value in ALTERED.items():
        execute(filled, f"UPDATE audit_events SET {column} = {value} WHERE seq = 2")
        assert fault_of(filled) == f"event 2 was altered: column {column} differs from the hashed text"
        change_back(filled, column, genuine[column])
    assert verify(filled).fault is None


def change_back(database: Database, column: str, value: object) -> None:
    with database.write() as connection:
        connection.execute(text(f"UPDATE audit_events SET {column} = :genuine WHERE seq = 2"), {"genuine": value})


def test_what_cannot_be_read_is_a_finding_and_no_crash(filled: Database) -> None:
    """Who tampers need not keep to the format."""
    tamper(filled, "UPDATE audit_events SET details = 'not JSON' WHERE seq = 5")
    assert fault_of(filled) == "event 5 was altered: column details differs from the hashed text"
    if filled.is_sqlite:  # PostgreSQL's own type keeps out what is no time
        execute(filled, "UPDATE audit_events SET occurred_at = 'yesterday' WHERE seq = 2")
        assert fault_of(filled) == "event 2 was altered: column occurred_at differs from the hashed text"


@pytest.mark.parametrize("entry", ["not JSON", "[]"])
def test_an_entry_that_is_no_event_is_found_though_its_hash_fits(filled: Database, entry: str) -> None:
    """Somebody replaced the last event and computed its hash, with no idea of what belongs there."""
    last = stored(filled)[-1]
    tamper(
        filled,
        "UPDATE audit_events SET entry = :entry, hash = :hash WHERE seq = 5",
        "UPDATE audit_head SET hash = :hash",
        entry=entry,
        hash=chain_hash(last["prev_hash"], entry),
    )
    assert fault_of(filled) == "event 5 was altered: its text cannot be read"


def test_a_removed_event_is_missed(filled: Database) -> None:
    """The careless way to make something undone."""
    tamper(filled, "DELETE FROM audit_events WHERE seq = 3")
    assert fault_of(filled) == "event 3 is missing: the next one is 4"


def test_a_removed_event_is_missed_though_the_others_moved_up(filled: Database) -> None:
    """Renumbering hides the gap, not the hash."""
    tamper(
        filled,
        "DELETE FROM audit_events WHERE seq = 3",
        "UPDATE audit_events SET seq = 3 WHERE seq = 4",
        "UPDATE audit_events SET seq = 4 WHERE seq = 5",
    )
    assert fault_of(filled) == "event 3 is missing: in its place stands what was written as event 4"


def test_two_events_are_not_swapped_unseen(filled: Database) -> None:
    """Approved before denied, or denied before approved: the order is the story."""
    tamper(
        filled,
        "UPDATE audit_events SET seq = -1 WHERE seq = 2",
        "UPDATE audit_events SET seq = 2 WHERE seq = 3",
        "UPDATE audit_events SET seq = 3 WHERE seq = -1",
    )
    assert fault_of(filled) == "event 2 stands at 3, and another one in its place: reordered"


def test_an_event_is_not_put_in_between_unseen(filled: Database) -> None:
    """An approval that never was."""
    copied = "occurred_at, action, outcome, actor, actor_name, actor_team, reason, details, entry"
    tamper(
        filled,
        "UPDATE audit_events SET seq = 6 WHERE seq = 5",
        "UPDATE audit_events SET seq = 5 WHERE seq = 4",
        f"INSERT INTO audit_events (seq, prev_hash, hash, {copied}) "
        f"SELECT 4, '{'d' * 64}', '{'e' * 64}', {copied} FROM audit_events WHERE seq = 5",
    )
    assert fault_of(filled) == "event 4 was inserted: event 5 follows the one before it"


def test_an_event_is_not_put_at_the_end_unseen(filled: Database) -> None:
    """With a fitting hash, but without the head."""
    last = stored(filled)[-1]
    entry = canonical({**json.loads(last["entry"]), "seq": 6})
    copied = "occurred_at, action, outcome, actor, actor_name, actor_team, reason, details"
    tamper(
        filled,
        f"INSERT INTO audit_events (seq, prev_hash, hash, entry, {copied}) "
        f"SELECT 6, hash, :hash, :entry, {copied} FROM audit_events WHERE seq = 5",
        entry=entry,
        hash=chain_hash(last["hash"], entry),
    )
    assert fault_of(filled) == "event 6 was inserted: the chain's head says that it ends with event 5"


def test_a_tail_that_was_cut_does_not_fit_the_head(filled: Database) -> None:
    """The chain alone would not show it."""
    tamper(filled, "DELETE FROM audit_events WHERE seq > 3")
    verification = verify(filled)
    assert verification.fault == "event 4 is missing: the chain's head says that it ends with event 5"
    assert (verification.events, verification.head_seq) == (3, 3)


def test_a_head_that_was_altered_is_found(filled: Database) -> None:
    """The head is an ordinary row, without a trigger: the walk compares it."""
    execute(filled, "UPDATE audit_head SET seq = 7")
    assert fault_of(filled) == "event 6 is missing: the chain's head says that it ends with event 7"
    execute(filled, f"UPDATE audit_head SET seq = {EVENTS}, hash = '{'f' * 64}'")
    assert fault_of(filled) == "the chain's head was altered: it has not the hash of event 5"


def test_a_head_that_is_missing_is_found(filled: Database) -> None:
    """Without it a cut tail could not be told."""
    tamper(filled, "DELETE FROM audit_head")
    assert fault_of(filled) == "the head of the chain is missing"


def test_events_and_head_that_were_wiped_together_look_like_the_first_day(filled: Database) -> None:
    """What a chain without a witness cannot show; written down, so that nobody promises more."""
    tamper(filled, "DELETE FROM audit_events", f"UPDATE audit_head SET seq = 0, hash = '{GENESIS_HASH}'")
    assert verify(filled).fault is None


# Listing


FACTS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "order_uuid": lambda fits: {"order_uuid": "wanted" if fits else "other"},
    "request_id": lambda fits: {"request_id": 42 if fits else 43},
    "actor": lambda fits: {"actor": Actor(id="U1" if fits else "U2")},
    "market": lambda fits: {"market": "KRW-BTC" if fits else None},
    "action": lambda fits: {"action": Action.CANCEL_SENT if fits else Action.ORDER_FILLED},
    "outcome": lambda fits: {"outcome": Outcome.FAILED if fits else Outcome.OK},
}
WANTED: dict[str, Any] = {
    "order_uuid": "wanted",
    "request_id": 42,
    "actor": "U1",
    "market": "KRW-BTC",
    "action": "cancel.sent",
    "outcome": "failed",
}


def event_that_fits(*but_for: str) -> AuditEvent:
    facts: dict[str, Any] = {}
    for name, fact in FACTS.items():
        facts |= fact(name not in but_for)
    return AuditEvent(**facts)


@pytest.fixture
def varied(database: Database) -> Database:
    """For each filter an event that only it keeps out, then two that all let through."""
    append(database, *(event_that_fits(name) for name in FACTS), event_that_fits(), event_that_fits())
    return database


def listed(database: Database, limit: int = 100, **wanted: Any) -> list[Json]:
    return [event["seq"] for event in AuditLog(database).list(Filter(**wanted), limit=limit)]


def test_each_filter_keeps_out_what_does_not_fit(varied: Database) -> None:
    """A filter that is passed over shows an auditor too much, or hides that there is nothing."""
    for kept_out, name in enumerate(FACTS, start=1):
        assert listed(varied, **{name: WANTED[name]}) == [seq for seq in range(8, 0, -1) if seq != kept_out]


def test_filters_hold_together_and_the_newest_comes_first(varied: Database) -> None:
    """All of them, not any of them."""
    assert listed(varied, **WANTED) == [8, 7]
    assert listed(varied, **WANTED, limit=1) == [8]
    assert listed(varied, order_uuid="never") == []
    assert listed(varied) == [8, 7, 6, 5, 4, 3, 2, 1]
    oldest_first = AuditLog(varied).list(Filter(), limit=2, newest_first=False)
    assert [event["seq"] for event in oldest_first] == [1, 2]


def test_a_span_of_time_holds_its_start_and_not_its_end(varied: Database) -> None:
    """So that months that follow each other neither miss nor repeat an event."""
    since, until = START + timedelta(seconds=2), START + timedelta(seconds=4)
    assert listed(varied, since=since) == [8, 7, 6, 5, 4, 3]
    assert listed(varied, until=until) == [4, 3, 2, 1]
    assert listed(varied, since=since, until=until) == [4, 3]
    assert listed(varied, since=since, until=until, actor="U1") == [4]


def test_what_a_request_went_through_can_be_listed(database: Database) -> None:
    """The events of one request, also where others happened in between."""
    store = SqlStore(database)
    made = create_pending(store)
    create(store)
    walk(store, made.id, Action.REQUEST_DENIED)
    events = AuditLog(database).list(Filter(request_id=made.id), limit=9, newest_first=False)
    assert [event["action"] for event in events] == ["request.created", "request.opened", "request.denied"]
    assert [event["market"] for event in events] == [None, "KRW-BTC", "KRW-BTC"]
