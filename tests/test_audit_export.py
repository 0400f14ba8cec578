"""Exports of the audit: what is in them, what lies beside them, and that none leaves without being written down."""

import csv
import hashlib
import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from audit_bulk import NotDone, Ran, bulk, run
from builders import APPROVER, START, create, execute, present
from click.testing import CliRunner, Result
from fill import fill
from hypothesis import given
from hypothesis import strategies as st
from postgresql import Postgresql
from pyarrow import parquet

from bot.__main__ import main
from bot.audit.export import export
from bot.audit.signing import Signer
from bot.audit.whole_file import Unwritable
from bot.database.audit_log import LISTED, AuditLog
from bot.database.checkpoints import Checkpoints
from bot.database.engine import Database
from bot.database.migration import migrate
from bot.database.store import SqlStore
from bot.database.verification import verify
from bot.domain.audit import SYSTEM, Action, Actor, canonical
from bot.domain.checkpoint import parse_checkpoint
from bot.domain.errors import NothingDone
from bot.domain.event_filter import Filter
from bot.domain.layout import Layout
from bot.settings import Settings

PRIVATE_KEY = "11" * 32
PUBLIC_KEY = Signer(PRIVATE_KEY).public_key
FORMULA = "=HYPERLINK(0)"

UNSET: dict[str, str | None] = {
    f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")
}


def address(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


def bot(database: Database, *arguments: str, **environ: str) -> Result:
    known = {**UNSET, "DATABASE_URL": address(database), **environ}
    return CliRunner().invoke(main, ["audit", *arguments], env=known)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the exports go: nothing is there, no `.env` either."""
    here = tmp_path / "exports"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


@pytest.fixture
def told(database: Database) -> Database:
    """Five events, with Korean, a formula, and what would break a line."""
    store = SqlStore(database)
    create(store, reason="잘못 냄\n\u2028 \"wrong\" 'price'")
    create(store, reason=FORMULA)
    for actor in (APPROVER, SYSTEM, Actor(id="U0ODD", name="\t+1")):
        with store.transaction() as tx:
            tx.record(Action.COMMAND_REFUSED, actor=actor, details={"reason": "usage", "typed": "-1\r\n", "n": 1})
    return database


def listed(database: Database, wanted: Filter = Filter()) -> list[dict[str, Any]]:  # noqa: B008 - it never changes
    return AuditLog(database).list(wanted, limit=1000, newest_first=False)


# What is in them


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_an_export_holds_what_the_list_shows_oldest_first(told: Database, folder: Path, form: str) -> None:
    """One audit, whatever it is read with; and its hash lies beside it as `sha256sum -c` reads it."""
    path = folder / f"audit.{form}"
    result = bot(told, "export", path.name)
    assert result.exit_code == 0, result.output
    *expected, end = listed(told)
    assert read(path) == expected
    assert (expected[-1]["action"], end["action"]) == ("export.begun", "audit.exported")
    assert subprocess.run(["sha256sum", "-c", f"{path.name}.sha256"], check=False, capture_output=True).returncode == 0
    assert {each.name for each in folder.iterdir()} == {path.name, f"{path.name}.sha256"}
    assert {stat.S_IMODE(each.stat().st_mode) for each in folder.iterdir()} == {0o600}


def read(path: Path) -> list[dict[str, Any]]:
    """The events of an export, in JSON's types."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]
    if path.suffix == ".parquet":
        table = parquet.read_table(path).to_pylist()
        for row in table:
            row["occurred_at"] = row["occurred_at"].strftime("%Y-%m-%dT%H:%M:%S.%fZ")
            row["details"] = json.loads(row["details"])
        return list(table)
    with path.open(encoding="utf-8-sig", newline="") as file:
        return [
            {
                **{name: cell.removeprefix("'") for name, cell in row.items()},
                "seq": int(row["seq"]),
                "request_id": int(row["request_id"]) if row["request_id"] else None,
                "details": json.loads(row["details"]),
            }
            | {name: row[name] or None for name in ("order_uuid", "market", "team_id", "channel_id", "trigger_id")}
            | {"reason": row["reason"].removeprefix("'") or None}
            for row in csv.DictReader(file)
        ]


def test_a_spreadsheet_runs_nothing_of_an_export_and_reads_korean(told: Database, folder: Path) -> None:
    """Whoever types a reason must not run a formula at the auditor's; and Excel takes UTF-8 by its mark only."""
    assert bot(told, "export", "a.csv").exit_code == 0
    content = (folder / "a.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbfseq,occurred_at,")
    with (folder / "a.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for row in csv.reader(file) for cell in row]
    assert f"'{FORMULA}" in cells
    assert "'\t+1" in cells
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)
    assert any("잘못 냄" in cell for cell in cells)


def test_the_hashes_of_json_lines_are_computed_with_what_every_python_has(told: Database, folder: Path) -> None:
    """In ten years there is the file, and a standard library: each line holds all that its hash covers."""
    assert bot(told, "export", "a.jsonl").exit_code == 0
    previous = "0" * 64
    for line in (folder / "a.jsonl").read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        event = json.loads(line)
        claimed = event.pop("hash")
        assert event.pop("prev_hash") == previous
        entry = json.dumps(event, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        previous = hashlib.sha256(f"{previous}\n{entry}".encode()).hexdigest()
        assert previous == claimed


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--actor", "U0APPROVER"], Filter(actor="U0APPROVER")),
        (["--reason", "usage", "--action", "command.refused"], Filter(details_reason="usage")),
        (["--request", "2"], Filter(request_id=2)),
        (["--since", "9999-01-01"], Filter(since=START.replace(year=9999))),
        (["--outcome", "failed"], Filter(outcome="failed")),
    ],
)
def test_an_export_is_narrowed_as_the_list_is(told: Database, folder: Path, options: list[str], wanted: Filter) -> None:
    """What was found is what is handed over, and the audit says that it was a part."""
    expected = listed(told, wanted)
    assert bot(told, "export", "a.parquet", *options).exit_code == 0
    assert read(folder / "a.parquet") == expected
    (event,) = listed(told, Filter(action="audit.exported"))
    assert event["details"]["events"] == len(expected)
    assert event["details"]["filter"] != {}


def test_what_is_written_meanwhile_is_not_in_an_export(database: Database, folder: Path) -> None:
    """It is the audit of one moment: else a file that took a minute would be of no moment at all."""
    fill(address(database), 2500)
    store, heard = SqlStore(database), []

    def write_more(events: int) -> None:
        heard.append(events)
        with store.transaction() as tx:
            tx.record(Action.COMMAND_REFUSED)

    made = export(database, folder / "a.jsonl", Filter(), force=False, actor=SYSTEM, progress=write_more)
    assert (made.events, made.first_seq, made.last_seq) == (2501, 1, 2501)
    assert heard == [1000, 2000, 2501]
    (event,) = listed(database, Filter(action="audit.exported"))
    assert event["seq"] == 2505
    assert verify(database).fault is None


@pytest.mark.parametrize("form", ["csv", "jsonl", "parquet"])
def test_an_audit_without_events_that_fit_is_an_export_without_rows(
    database: Database, folder: Path, form: str
) -> None:
    """Nothing found is an answer, and is written down like any other."""
    assert bot(database, "export", f"a.{form}", "--until", "2000-01-01", CHECKPOINT_KEY=PRIVATE_KEY).exit_code == 0
    assert read(folder / f"a.{form}") == []
    assert not (folder / f"a.{form}.checkpoint").exists()
    assert listed(database)[-1]["details"]["last_seq"] is None


TEXTS = st.none() | st.text(st.characters(exclude_categories=["Cs"]))


@given(texts=st.lists(TEXTS, min_size=12, max_size=12), number=st.none() | st.integers(), details=st.text())
def test_the_fast_way_to_write_json_is_the_slow_one(texts: list[str | None], number: int | None, details: str) -> None:
    """A single character that is written differently would be an audit that does not verify."""
    written = canonical({"said": details})
    columns = dict(zip([name for name in LISTED if name not in {"seq", "request_id", "details"}], texts, strict=False))
    columns = {name: columns.get(name, "x") for name in LISTED} | {"occurred_at": "t"}
    row = [*({**columns, "seq": 7, "request_id": number, "details": written}).values()]
    whole = {**columns, "seq": 7, "request_id": number, "details": json.loads(written)}
    assert Layout(sorted(LISTED), given=LISTED, comma=",", colon=":").write(row) == canonical(whole)
    with pytest.raises(TypeError):
        Layout(LISTED, given=LISTED, comma=",", colon=":").write([str(row[0]), *row[1:]])
    with pytest.raises(TypeError):
        Layout(LISTED, given=LISTED, comma=",", colon=":").write([*row[:-1], 1])


# That it is written down


def test_an_export_is_in_the_audit_with_who_what_and_its_hash(told: Database, folder: Path) -> None:
    """A file that turns up somewhere can be traced to who made it."""
    assert bot(told, "export", "handed over.jsonl", "--until", "9999-01-01").exit_code == 0
    begin, end = listed(told)[5:]
    assert (begin["action"], end["action"]) == ("export.begun", "audit.exported")
    assert begin["actor"].startswith("cli:")
    assert end["actor"] == begin["actor"]
    asked = {
        "file": "handed over.jsonl",
        "format": "jsonl",
        "filter": {"until": "9999-01-01T00:00:00.000000Z"},
    }
    assert begin["details"] == asked
    assert end["details"] == asked | {
        "events": 6,
        "first_seq": 1,
        "last_seq": 6,
        "sha256": hashlib.sha256((folder / "handed over.jsonl").read_bytes()).hexdigest(),
        "checkpoint_seq": None,
    }
    assert verify(told).fault is None


@pytest.mark.parametrize("action", ["export.begun", "audit.exported"])
def test_an_export_that_cannot_be_written_down_does_not_appear(told: Database, folder: Path, action: str) -> None:
    """Else whoever can keep the audit from growing could take a copy that nobody knows of."""
    when = f"WHEN (NEW.action = '{action}')"
    refuse = (
        [f"CREATE TRIGGER full BEFORE INSERT ON audit_events {when} BEGIN SELECT RAISE(ABORT, 'disk full'); END"]
        if told.is_sqlite
        else [
            "CREATE FUNCTION disk_full() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'disk full'; END $$",
            f"CREATE TRIGGER disk_full BEFORE INSERT ON audit_events FOR EACH ROW {when} EXECUTE FUNCTION disk_full()",
        ]
    )
    execute(told, *refuse)
    result = bot(told, "export", "a.jsonl")
    assert (result.exit_code, "disk full" in result.output) == (1, True)
    assert list(folder.iterdir()) == []


def test_an_export_that_breaks_off_leaves_nothing(told: Database, folder: Path) -> None:
    """Half a file looks like a whole one. That somebody has begun to copy stays written down."""

    def break_off(_events: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(told, folder / "a.jsonl", Filter(), force=False, actor=SYSTEM, progress=break_off)
    assert list(folder.iterdir()) == []
    assert [event["action"] for event in listed(told)[5:]] == ["export.begun"]


def test_a_file_that_appears_while_an_export_is_made_is_not_replaced(told: Database, folder: Path) -> None:
    """Two people may choose the same name; and what is not to be kept is not said to be exported."""

    def made_by_another(_events: int) -> None:
        (folder / "a.jsonl").write_text("theirs")

    with pytest.raises(Unwritable):
        export(told, folder / "a.jsonl", Filter(), force=False, actor=SYSTEM, progress=made_by_another)
    assert {each.name: each.read_text() for each in folder.iterdir()} == {"a.jsonl": "theirs"}
    assert listed(told, Filter(action="audit.exported")) == []


@pytest.fixture
def accounts(postgresql: Postgresql) -> Iterator[tuple[Database, Database, Database]]:
    """The owner's, one that only reads, and one that may also write down what it did."""
    owner = Database(postgresql.create())
    migrate(owner)
    schema = present(owner.url.username)
    for role in ("reads", "exports"):
        execute(
            owner,
            f"CREATE ROLE {schema}_{role} LOGIN",
            f"ALTER ROLE {schema}_{role} SET search_path = {schema}",
            f"GRANT USAGE ON SCHEMA {schema} TO {schema}_{role}",
            f"GRANT SELECT ON audit_events, audit_head, checkpoints, alembic_version TO {schema}_{role}",
        )
    execute(
        owner,
        f"GRANT INSERT ON audit_events TO {schema}_exports",
        f"GRANT UPDATE (seq, hash, occurred_at) ON audit_head TO {schema}_exports",
    )
    reads, exports = (Database(address(owner).replace(schema, f"{schema}_{role}")) for role in ("reads", "exports"))
    yield owner, reads, exports
    for database in (owner, reads, exports):
        database.close()


def test_an_account_that_cannot_write_it_down_cannot_export(
    accounts: tuple[Database, Database, Database], folder: Path
) -> None:
    """It reads all the same; but what it exports would be known to nobody. docs/audit.md says which rights it takes."""
    owner, reads, exports = accounts
    create(SqlStore(owner))
    refused = bot(reads, "export", "a.jsonl")
    assert refused.exit_code == 1
    assert "this account may not do that" in refused.output
    assert list(folder.iterdir()) == []
    assert bot(exports, "export", "a.jsonl").exit_code == 0
    assert [event["action"] for event in listed(owner)] == ["request.created", "export.begun", "audit.exported"]
    with pytest.raises(NothingDone, match="InsufficientPrivilege"):
        execute(exports, "UPDATE audit_head SET base_seq = 1")


# What lies beside it


def test_an_export_of_everything_ends_with_the_event_that_is_signed(told: Database, folder: Path) -> None:
    """So it proves itself to the last line, to who has the public key and nothing else."""
    result = bot(told, "export", "a.jsonl", CHECKPOINT_KEY=PRIVATE_KEY)
    assert result.exit_code == 0, result.output
    signed = parse_checkpoint((folder / "a.jsonl.checkpoint").read_text())
    last = read(folder / "a.jsonl")[-1]
    assert (signed.checkpoint.seq, signed.checkpoint.hash) == (last["seq"], last["hash"]) == (6, last["hash"])
    later = [event["action"] for event in listed(told)[5:]]
    assert later == ["export.begun", "audit.checkpointed", "audit.exported"]
    assert listed(told)[-1]["details"]["checkpoint_seq"] == 6
    assert verify(told).fault is None


def test_without_the_key_the_newest_checkpoint_within_lies_beside(told: Database, folder: Path) -> None:
    """What it does not cover, it does not pretend to."""
    made = Checkpoints(told).make(Signer(PRIVATE_KEY).sign, actor=SYSTEM)
    result = bot(told, "export", "a.jsonl")
    assert result.exit_code == 0
    assert "the checkpoint beside it is of event 5" in result.stdout
    assert (folder / "a.jsonl.checkpoint").read_text() == f"{made}\n"


def test_an_export_with_a_filter_has_a_checkpoint_that_covers_it(told: Database, folder: Path) -> None:
    """One that is there is taken, and only where there is none one is made."""
    made = Checkpoints(told).make(Signer(PRIVATE_KEY).sign, actor=SYSTEM)
    assert bot(told, "export", "a.csv", "--request", "1", CHECKPOINT_KEY=PRIVATE_KEY).exit_code == 0
    assert (folder / "a.csv.checkpoint").read_text() == f"{made}\n"
    assert bot(told, "export", "b.csv", "--action", "audit.exported", CHECKPOINT_KEY=PRIVATE_KEY).exit_code == 0
    assert parse_checkpoint((folder / "b.csv.checkpoint").read_text()).checkpoint.seq == 9


def test_an_audit_that_does_not_verify_is_exported_and_not_signed(told: Database, folder: Path) -> None:
    """It is evidence; but nobody signs it, and who exports it hears why."""
    triggers = ("no_update", "no_delete", "no_replace")
    unguard = [f"DROP TRIGGER audit_events_{each}" for each in triggers]
    execute(told, *(unguard if told.is_sqlite else ["ALTER TABLE audit_events DISABLE TRIGGER USER"]))
    execute(told, "UPDATE audit_events SET reason = 'another' WHERE seq = 2")
    result = bot(told, "export", "a.jsonl", CHECKPOINT_KEY=PRIVATE_KEY)
    assert result.exit_code == 1
    assert "event 2 was altered" in result.stderr
    assert {each.name for each in folder.iterdir()} == {"a.jsonl", "a.jsonl.sha256"}
    assert "event 2 was altered" in bot(told, "verify", "--archive", "a.jsonl").stderr


def test_what_no_event_can_hold_is_told(sqlite: Database, folder: Path) -> None:
    """SQLite keeps bytes where a text belongs: the file would not be what it says."""
    create(SqlStore(sqlite))
    execute(sqlite, "DROP TRIGGER audit_events_no_update", "UPDATE audit_events SET actor = x'00ff'")
    for form in ("jsonl", "parquet"):
        result = bot(sqlite, "export", f"a.{form}")
        assert (result.exit_code, "altered beyond reading" in result.stderr) == (1, True), result.output
    assert list(folder.iterdir()) == []
    assert "event 1 was altered" in bot(sqlite, "verify").stderr


# How it is used


@pytest.mark.parametrize("name", ["audit", "audit.xlsx", "audit.json", "audit.CSV.gz", "a\\b.csv"])
def test_another_form_is_wrong_usage(sqlite: Database, folder: Path, name: str) -> None:
    """The three that there are stand in the answer."""
    result = bot(sqlite, "export", name)
    assert result.exit_code == 2
    assert ".csv, .jsonl or .parquet" in result.output or "backslashes" in result.output
    assert list(folder.iterdir()) == []


def test_a_file_that_is_there_is_replaced_only_by_force(told: Database, folder: Path) -> None:
    """An archive of last year is not overwritten by a slip; and no checkpoint of the old one stays beside the new."""
    assert bot(told, "export", "a.csv", CHECKPOINT_KEY=PRIVATE_KEY).exit_code == 0
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    result = bot(told, "export", "a.csv")
    assert (result.exit_code, "add --force" in result.output) == (2, True)
    (folder / "b.csv.sha256").touch()
    assert bot(told, "export", "b.csv").exit_code == 2
    assert bot(told, "export", "nowhere/b.csv").exit_code == 2
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert bot(told, "export", "a.csv", "--action", "audit.exported", "--force").exit_code == 0
    assert len(read(folder / "a.csv")) == 1
    assert not (folder / "a.csv.checkpoint").exists()


def test_parquet_without_its_library_says_how_to_install_it(sqlite: Database, folder: Path) -> None:
    """It is an extra: most who run the bot do not need it."""
    hidden = (
        "import sys, importlib.util as u; found = u.find_spec;"
        "u.find_spec = lambda name, *more: None if name == 'pyarrow' else found(name, *more);"
        "from bot.__main__ import main; main(['audit', 'export', 'a.parquet'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", hidden],
        env={"DATABASE_URL": address(sqlite), "PYTHONPATH": str(Path(__file__).parent.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (
        1,
        "Parquet needs pyarrow: `uv sync --extra parquet`, or `pip install 'upbit-cancel-bot[parquet]'`\n",
    )
    assert list(folder.iterdir()) == []
    assert listed(sqlite) == []


# How fast it is


def in_this_process(arguments: list[str], database_url: str, folder: Path) -> Ran:
    """What the benchmark starts a process for, without waiting for one."""
    if arguments[0].endswith("fill.py"):
        fill(database_url, int(arguments[2]))
        return Ran(f"{arguments[2]} events in it", 1, 1, 1)
    result = CliRunner().invoke(main, arguments[2:], env={**UNSET, "DATABASE_URL": database_url})
    assert result.exit_code == 0, result.output
    return Ran(result.stdout, 1, 1, 1)


def test_the_benchmark_checks_what_it_measures(database_url: str, folder: Path) -> None:
    """A figure of work that was not done is worse than none; each step looks at what came of it."""
    steps = list(bulk(database_url, 1200, folder, run=in_this_process))
    assert [step.name for step in steps] == [
        "fill",
        "verify",
        "export jsonl",
        "export csv",
        "export parquet",
        "verify --archive",
    ]
    assert [step.rows for step in steps] == [1200, 1200, 1201, 1203, 1205, 1201]
    assert ["MISSED" in step.judged() for step in steps] == [False, True, True, False, False, False]
    assert list(folder.glob("audit.*")) == list(folder.glob("audit.db*"))


def test_the_benchmark_finds_a_step_that_did_something_else(folder: Path) -> None:
    """Here one more line than there are events."""

    def lie(arguments: list[str], url: str, folder: Path) -> Ran:
        ran = in_this_process(arguments, url, folder)
        if "export" in arguments:
            with Path(arguments[-1]).open("ab") as file:
                file.write(b"{}\n")
        return ran

    with pytest.raises(NotDone):
        list(bulk(f"sqlite:///{folder / 'audit.db'}", 10, folder, run=lie))


def test_the_benchmark_measures_each_command_as_a_process(folder: Path) -> None:
    """Its memory is its own, and one that fails is no figure."""
    ran = run(["-c", "print('x' * 3)"], "", folder)
    assert ran.told == "xxx\n"
    assert 0 < ran.seconds < 60
    assert ran.peak_mib > 1
    with pytest.raises(NotDone, match="no such"):
        run(["-c", "import sys; sys.exit('no such thing')"], "", folder)
