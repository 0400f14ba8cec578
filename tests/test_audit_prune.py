"""Archives prove themselves, and old events are removed only behind one that proves every one of them."""

import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from builders import HandClock, create, create_pending, execute, rows, walk
from click.testing import CliRunner, Result
from databases import migrated
from postgresql import Postgresql
from sqlalchemy.event import listen

from bot.__main__ import main
from bot.audit.prune import prune_behind_archive
from bot.audit.signing import Signer
from bot.database.audit_log import LISTED, AuditLog
from bot.database.engine import Database, RunLock, sqlite_path
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.audit import SYSTEM, Action, canonical, chain_hash
from bot.domain.checkpoint import Checkpoint, parse_checkpoint
from bot.domain.errors import NothingDone
from bot.domain.event_filter import Filter
from bot.settings import Settings

PRIVATE_KEY = "11" * 32
PUBLIC_KEY = Signer(PRIVATE_KEY).public_key
OTHER_KEY = "22" * 32
EVENTS = 10
OLD_YEAR = datetime(2020, 3, 1, tzinfo=UTC)
"""Exports and pruning take the database's own clock, and so are later than all that is told here."""
NEW_YEAR = "2021-01-01"
FIRST_MINUTE = "2020-03-01T00:00:30+00:00"
NAME = "audit.jsonl"

UNSET: dict[str, str | None] = {
    f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")
}
Event = dict[str, Any]


def bot(database: Database | str, *arguments: str, **environ: str) -> Result:
    url = database if isinstance(database, str) else database.url.render_as_string(hide_password=False)
    return CliRunner().invoke(main, ["audit", *arguments], env={**UNSET, "DATABASE_URL": url, **environ})


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the archive is kept: nothing is there, no `.env` either."""
    here = tmp_path / "kept"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def years(database_url: str) -> Iterator[Database]:
    """Ten events of 2020 and five of 2021; each request is over."""
    clock = HandClock(OLD_YEAR)
    database = Database(database_url, clock=clock)
    migrated(database)
    store = SqlStore(database)
    for _ in range(EVENTS // 5):
        tell(store)
        clock.advance(60)
    clock.now = OLD_YEAR.replace(year=2021)
    tell(store)
    yield database
    database.close()


def tell(store: SqlStore) -> None:
    """One request that was denied, and a refused command: five events."""
    with store.transaction() as tx:
        tx.record(Action.COMMAND_REFUSED, details={"reason": "usage"})
    made = create_pending(store, reason="잘못 냄")
    walk(store, made.id, Action.REQUEST_DENIED)
    with store.transaction(made.id) as tx:
        tx.record(Action.SUMMARY_POSTED, details={"ts": "1790000000.000200"})


def export(database: Database, name: str = NAME, *options: str) -> Path:
    result = bot(database, "export", name, *options, CHECKPOINT_KEY=PRIVATE_KEY)
    assert result.exit_code == 0, result.output
    return Path(name).absolute()


def prune(database: Database | str, name: str = NAME, *, before: str = NEW_YEAR, key: str = PUBLIC_KEY) -> Result:
    return bot(database, "prune", "--before", before, "--archive", name, "--public-key", key)


def check(name: str = NAME, *, key: str = PUBLIC_KEY) -> Result:
    """Without a database."""
    return bot("sqlite:///nowhere.db", "verify", "--archive", name, "--public-key", key)


def kept(database: Database) -> list[int]:
    return [event["seq"] for event in AuditLog(database).list(Filter(), limit=1000, newest_first=False)]  # type: ignore[misc]


def assert_nothing_removed(database: Database, result: Result, why: str) -> None:
    assert (result.exit_code, why in result.stderr) == (1, True), result.output
    assert kept(database)[:15] == list(range(1, 16))
    assert verify(database).fault is None
    with pytest.raises(NothingDone, match="audit_events only grows"):
        execute(database, "DELETE FROM audit_events WHERE seq = 1")


# An archive by itself


def test_an_archive_is_verified_without_a_database(years: Database, folder: Path) -> None:
    """Its keeper has the file, what lies beside it, and the public key."""
    export(years)
    result = check()
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("16 events verified, 1 to 16 ")
    assert "its SHA-256 agrees; 1 checkpoints agree" in result.stdout
    assert not (folder / "nowhere.db").exists()
    (folder / "elsewhere.json").write_text((folder / f"{NAME}.checkpoint").read_text())
    (folder / f"{NAME}.checkpoint").unlink()
    given = bot(
        "sqlite:///nowhere.db",
        "verify",
        "--archive",
        NAME,
        "--checkpoint",
        "elsewhere.json",
        CHECKPOINT_KEY=PRIVATE_KEY,
    )
    assert (given.exit_code, given.stdout) == (0, result.stdout)
    alone = bot("sqlite:///nowhere.db", "verify", "--archive", NAME)
    assert (alone.exit_code, "may have been rewritten" in alone.stdout) == (0, True)


Change = Callable[[list[str]], list[str]]


def altered(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[3].replace('"ok"', '"failed"', 1), *lines[4:]]


def said_twice(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[3].replace('{"seq"', '{"actor": "U0FORGED", "seq"'), *lines[4:]]


def spaced(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[3].replace(", ", ",  ", 1), *lines[4:]]


def removed(lines: list[str]) -> list[str]:
    return [*lines[:3], *lines[4:]]


def swapped(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[4], lines[3], *lines[5:]]


def broken_off(lines: list[str]) -> list[str]:
    return [*lines[:-1], lines[-1][:40]]


def with_another_number(lines: list[str]) -> list[str]:
    return [*lines[:3], lines[3].replace('"seq": 4', '"seq": 4.0'), *lines[4:]]


def deep(lines: list[str]) -> list[str]:
    return [*lines[:3], "[" * 100_000 + "\n", *lines[3:]]


def empty(_lines: list[str]) -> list[str]:
    return []


def chained(events: list[Event]) -> list[str]:
    """The events with all hashes computed anew, as somebody does it who has read the source."""
    previous, lines = "0" * 64, []
    for seq, event in enumerate(events, start=1):
        columns = {name: value for name, value in event.items() if name not in {"prev_hash", "hash"}} | {"seq": seq}
        fresh = chain_hash(previous, canonical(columns))
        columns |= {"prev_hash": previous, "hash": fresh, "details": 0}
        line = json.dumps({name: columns[name] for name in LISTED}, ensure_ascii=False)
        lines.append(line.replace('"details": 0', f'"details": {canonical(event["details"])}') + "\n")
        previous = fresh
    return lines


def rewritten(lines: list[str]) -> list[str]:
    events = [json.loads(line) for line in lines]
    events[3]["actor"] = "U0FORGED"
    return chained(events)


def cut_off(lines: list[str]) -> list[str]:
    return lines[:-4]


CARELESS = (altered, said_twice, spaced, removed, swapped, broken_off, with_another_number, deep, empty)


def change(path: Path, how: Change, *, with_hash: bool) -> None:
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    changed = how(lines)
    assert changed != lines
    path.write_text("".join(changed), encoding="utf-8")
    if with_hash:
        path.with_name(f"{path.name}.sha256").write_text(f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {NAME}\n")


@pytest.fixture
def archived(tmp_path: Path) -> Path:
    database = Database(f"sqlite:///{tmp_path / 'old.db'}", clock=HandClock(OLD_YEAR))
    migrated(database)
    for _ in range(3):
        tell(SqlStore(database))
    path = export(database)
    database.close()
    return path


@pytest.mark.parametrize("how", CARELESS)
def test_an_archive_that_was_changed_by_hand_does_not_verify(archived: Path, how: Change) -> None:
    """Also where the hash beside it was made anew, and where a reader of JSON would not see a difference."""
    change(archived, how, with_hash=True)
    result = check()
    assert (result.exit_code, "the archive does not verify" in result.stderr) == (1, True), result.output


@pytest.mark.parametrize(("how", "why"), [(rewritten, "it was rewritten"), (cut_off, "nothing was compared")])
def test_an_archive_that_is_sound_and_another_one_is_found_by_its_checkpoint(
    archived: Path, how: Change, why: str
) -> None:
    """Whoever computes all hashes anew cannot sign."""
    change(archived, how, with_hash=True)
    found = check()
    assert (found.exit_code, why in found.stderr) == (1, True), found.output
    (archived.parent / f"{NAME}.checkpoint").unlink()
    assert bot("sqlite:///nowhere.db", "verify", "--archive", NAME).exit_code == 0


def test_what_lies_beside_an_archive_must_be_its_own(archived: Path, folder: Path) -> None:
    """Each can be swapped for that of another file."""
    other_key = check(key=Signer(OTHER_KEY).public_key)
    assert (other_key.exit_code, "signed by another key" in other_key.stderr) == (1, True)
    signed = parse_checkpoint((folder / f"{NAME}.checkpoint").read_text())
    forged = json.dumps(signed.as_json() | {"checkpoint": {**signed.checkpoint.as_json(), "seq": 3}})
    (folder / f"{NAME}.checkpoint").write_text(forged)
    assert "its signature is not good" in check().stderr
    (folder / f"{NAME}.checkpoint").unlink()
    assert check().exit_code == 2
    beside = folder / f"{NAME}.sha256"
    for wrong in (f"{'0' * 64}  {NAME}\n", f"{'0' * 64}  other.jsonl\n", "\n", "\u00ff" * 9):
        beside.write_text(wrong)
        assert bot("sqlite:///nowhere.db", "verify", "--archive", NAME).exit_code == 1


@pytest.mark.parametrize("more", [["--record"], ["--witness", NAME]])
def test_an_archive_is_not_verified_with_what_needs_a_database(archived: Path, more: list[str]) -> None:
    """It would be done by halves."""
    assert bot("sqlite:///nowhere.db", "verify", "--archive", NAME, *more).exit_code == 2


# Pruning


def test_what_an_archive_holds_is_removed_and_the_rest_verifies(years: Database, folder: Path) -> None:
    """The audit of the old year is in the archive, that of the new one in the database, and the chain links both."""
    path = export(years)
    last_of_old_year = json.loads(path.read_text(encoding="utf-8").splitlines()[EVENTS - 1])
    result = prune(years)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("10 events removed, up to 10; ")
    event, *_ = AuditLog(years).list(Filter(), limit=1)
    assert event["action"] == "audit.pruned"
    assert str(event["actor"]).startswith("cli:")
    assert event["details"] == {
        "up_to_seq": 10,
        "events": 10,
        "before": "2021-01-01T00:00:00.000000Z",
        "archive": NAME,
        "archive_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "checkpoint": json.loads((folder / f"{NAME}.checkpoint").read_text()),
    }
    assert kept(years) == list(range(11, 20))
    assert rows(years, "SELECT base_seq, base_hash FROM audit_head") == [(10, last_of_old_year["hash"])]
    found = verify(years, checkpoints=[Checkpoint(seq=10, hash=last_of_old_year["hash"], at="")])
    assert (found.fault, found.base_seq, found.checkpoints) == (None, 10, 1)
    assert check().exit_code == 0
    for statement in ("DELETE FROM audit_events WHERE seq = 11", "UPDATE audit_events SET reason = 'another'"):
        with pytest.raises(NothingDone, match="audit_events only grows"):
            execute(years, statement)
    told = bot(years, "show", "1")
    assert (told.exit_code, "those up to 10 were pruned" in told.stderr) == (1, True)


def test_a_pruned_audit_is_pruned_again_behind_its_next_archive(years: Database, folder: Path) -> None:
    """Year after year; the archives follow each other, and a longer one of before does as well."""
    export(years)
    assert prune(years, before=FIRST_MINUTE).exit_code == 0
    assert kept(years)[0] == 6
    assert prune(years).exit_code == 0  # behind the same archive, which begins before the base
    assert kept(years)[0] == 11
    export(years, "second.jsonl")
    assert check("second.jsonl").stdout.startswith("11 events verified, 11 to 21 ")
    assert prune(years, "second.jsonl", before="2022-01-01").exit_code == 0
    assert kept(years)[0] == 16
    assert verify(years).fault is None
    again = prune(years, "second.jsonl", before=NEW_YEAR)
    assert (again.exit_code, "no event is from before" in again.stderr) == (1, True)


@pytest.mark.parametrize("how", [*CARELESS, rewritten, cut_off])
def test_nothing_is_removed_behind_an_archive_that_was_tampered_with(years: Database, how: Change) -> None:
    """What is removed is only there any more."""
    change(export(years), how, with_hash=True)
    assert_nothing_removed(years, prune(years, before="2022-01-01"), "nothing was removed")


def test_nothing_is_removed_that_the_archive_does_not_hold(years: Database, folder: Path) -> None:
    """An archive of a part, or one that is too short, is none."""
    export(years, "part.jsonl", "--action", "request.created")
    export(years, "late.jsonl", "--since", NEW_YEAR)
    export(years, "early.jsonl", "--until", NEW_YEAR)
    for name, before, why in (
        ("part.jsonl", NEW_YEAR, "event 1 would be lost"),
        ("late.jsonl", NEW_YEAR, "event 1 would be lost"),
        ("early.jsonl", "2022-01-01", "events up to 15 would be lost"),
        ("early.jsonl", NEW_YEAR, "export everything again"),
    ):
        assert_nothing_removed(years, prune(years, name, before=before), why)


def test_nothing_is_removed_without_what_lies_beside_the_archive(years: Database, folder: Path) -> None:
    """Hash and checkpoint, by the key that is expected."""
    export(years)
    assert_nothing_removed(years, prune(years, key=Signer(OTHER_KEY).public_key), "signed by another key")
    assert bot(years, "prune", "--before", NEW_YEAR, "--archive", NAME).exit_code == 2  # whose key it is, nobody says
    for ending in ("sha256", "checkpoint"):
        beside = folder / f"{NAME}.{ending}"
        kept_text = beside.read_text()
        beside.unlink()
        assert_nothing_removed(years, prune(years), f"{NAME}.{ending} is missing")
        beside.write_text(kept_text)
    (folder / f"{NAME}.checkpoint").write_text(
        str(Signer(PRIVATE_KEY).sign(Checkpoint(seq=9, hash="0" * 64, at="2026-11-23T00:00:00.000000Z")))
    )
    assert_nothing_removed(years, prune(years), "it was rewritten")
    (folder / f"{NAME}.checkpoint").write_text(kept_text + kept_text)
    assert_nothing_removed(years, prune(years), "more than the archive's own checkpoint")


def test_nothing_is_removed_behind_the_archive_of_another_audit(years: Database, archived: Path) -> None:
    """It is sound, signed by the same key, and of another bot."""
    assert_nothing_removed(years, prune(years, before=FIRST_MINUTE), "is not in the database as it is")


def test_what_was_tampered_with_is_not_removed(years: Database) -> None:
    """It would be the evidence."""
    export(years)
    triggers = [f"DROP TRIGGER audit_events_{each}" for each in ("no_update", "no_replace")]
    execute(years, *(triggers if years.is_sqlite else ["ALTER TABLE audit_events DISABLE TRIGGER USER"]))
    execute(years, "UPDATE audit_events SET reason = 'another' WHERE seq = 2")
    result = prune(years)
    assert (result.exit_code, "the audit does not verify" in result.stderr) == (1, True), result.output
    assert kept(years)[:15] == list(range(1, 16))


def test_events_of_a_request_that_is_not_over_are_never_cut(years: Database) -> None:
    """Somebody is going to decide it, or to settle it, by what is told of it."""
    store = SqlStore(years)
    open_ones = [create(store).id, create_pending(store).id]
    execute(
        years,
        # An old request that has never ended
        "UPDATE cancel_requests SET state = 'unresolved' WHERE id = 1",
    )
    export(years)
    assert_nothing_removed(years, prune(years), "these requests are not over, and their events would be cut: #1")
    execute(years, "UPDATE cancel_requests SET state = 'denied' WHERE id = 1")
    result = prune(years, before="2022-01-01")
    assert f"would be cut: {', '.join(f'#{number}' for number in open_ones)}" in result.stderr
    assert prune(years).exit_code == 0


def test_the_last_day_is_never_removed(years: Database) -> None:
    """By these events the bot knows which commands it has refused, where Slack delivers them again."""
    export(years)
    assert_nothing_removed(years, prune(years, before="9999-01-01"), "stays, as the bot may need it")


def test_a_story_that_is_cut_in_two_says_so(database_url: str, folder: Path) -> None:
    """Its end alone would read as if nobody had asked."""
    clock = HandClock(OLD_YEAR)
    database = Database(database_url, clock=clock)
    migrated(database)
    store = SqlStore(database)
    made = create_pending(store)
    clock.now = OLD_YEAR.replace(year=2021)
    walk(store, made.id, Action.REQUEST_DENIED)
    assert bot(database, "show", "1").stderr == ""
    export(database)
    assert prune(database).exit_code == 0
    told = bot(database, "show", "1", "--format", "json")
    assert [json.loads(line)["action"] for line in told.stdout.splitlines()] == ["request.denied"]
    assert told.stderr == "how it began is in an archive: the events up to 2 were pruned\n"
    database.close()


def test_nothing_is_removed_where_it_cannot_be_written_down(years: Database) -> None:
    """Removed, based and recorded in one transaction: what fails at its end has not begun."""
    export(years)
    when = "WHEN (NEW.action = 'audit.pruned')"
    refuse = (
        [f"CREATE TRIGGER full BEFORE INSERT ON audit_events {when} BEGIN SELECT RAISE(ABORT, 'disk full'); END"]
        if years.is_sqlite
        else [
            "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$",
            f"CREATE TRIGGER disk_full BEFORE INSERT ON audit_events FOR EACH ROW {when} EXECUTE FUNCTION disk_full()",
        ]
    )
    execute(years, *refuse)
    assert_nothing_removed(years, prune(years), "disk full")
    assert rows(years, "SELECT base_seq FROM audit_head") == [(0,)]


def test_a_kill_at_any_statement_of_pruning_removes_all_or_nothing(years: Database, folder: Path) -> None:
    """Where the process is gone, the events are all there and guarded, or all removed and accounted for."""
    path = export(years)
    url, deaths = years.url.render_as_string(hide_password=False), 0
    while (ended := prune_until(url, path, statement=deaths + 1)) == -signal.SIGKILL:
        deaths += 1
        assert rows(years, "SELECT base_seq FROM audit_head") == [(0,)], deaths
        with pytest.raises(NothingDone, match="audit_events only grows"):
            execute(years, "DELETE FROM audit_events WHERE seq = 1")
    assert ended == 0
    assert deaths > 15
    assert kept(years)[0] == 11
    assert len(AuditLog(years).list(Filter(action="audit.pruned"), limit=9)) == 1
    assert verify(years).fault is None
    with pytest.raises(NothingDone, match="audit_events only grows"):
        execute(years, "DELETE FROM audit_events WHERE seq = 11")


def prune_until(url: str, path: Path, *, statement: int) -> int:
    """Prune in a process that is killed before it sends this statement, or the COMMIT after the last one."""
    process = os.fork()
    if process:
        _, status = os.waitpid(process, 0)
        return os.waitstatus_to_exitcode(status)
    try:
        count = 0

        def die(*_: Any) -> None:
            nonlocal count
            count += 1
            if count == statement:
                os.kill(os.getpid(), signal.SIGKILL)

        database = Database(url)
        listen(database.engine, "before_cursor_execute", die)
        listen(database.engine, "commit", die)
        before = datetime.fromisoformat(f"{NEW_YEAR}T00:00:00+00:00")
        signed = parse_checkpoint(path.with_name(f"{NAME}.checkpoint").read_text())
        prune_behind_archive(database, path, before=before, signed=signed, actor=SYSTEM)
        os._exit(0)
    finally:
        os._exit(1)


def test_only_the_owner_prunes(postgresql: Postgresql, folder: Path) -> None:
    """The bot's account cannot remove what it wrote, whatever archive there is."""
    database = Database(postgresql.create(), clock=HandClock(OLD_YEAR))
    migrated(database)
    tell(SqlStore(database))
    export(database)
    schema = str(database.url.username)
    execute(
        database,
        f"CREATE ROLE {schema}_bot LOGIN",
        f"ALTER ROLE {schema}_bot SET search_path = {schema}",
        f"GRANT USAGE ON SCHEMA {schema} TO {schema}_bot",
        f"GRANT SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA {schema} TO {schema}_bot",
    )
    url = database.url.set(username=f"{schema}_bot").render_as_string(hide_password=False)
    result = prune(url)
    assert (result.exit_code, "this account does not own the audit" in result.stderr) == (1, True), result.output
    assert len(kept(database)) == 8
    database.close()


def test_a_sqlite_audit_is_not_pruned_while_the_bot_runs(sqlite: Database) -> None:
    """It would take the file away from under it for longer than anybody waits."""
    tell(SqlStore(sqlite))
    export(sqlite)
    path = sqlite_path(str(sqlite.url))
    assert path is not None
    lock = RunLock(path)
    lock.acquire()
    result = prune(sqlite, before="9999-01-01")
    assert (result.exit_code, "another `bot run`" in result.stderr) == (1, True), result.output
    lock.release()
    result = prune(sqlite, before="2000-01-01")
    assert (result.exit_code, "no event is from before" in result.stderr) == (1, True)
    assert len(kept(sqlite)) == 8
