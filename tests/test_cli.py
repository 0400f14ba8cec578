"""The command line, as a person at a terminal and a script in a pipe meet it."""

import json
import os
import pwd
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from databases import migrated
from sqlalchemy import text

from bot.__main__ import main
from bot.database.chain import Chain
from bot.database.engine import Database, RunLock
from bot.database.migration import newest_revision
from bot.database.store import SqlStore
from bot.domain.audit import Action, Actor, Outcome, Reason
from bot.domain.cancel_request import DecisionKind, State
from bot.domain.errors import NothingDone
from bot.playground.exchange import Exchange, Key
from bot.playground.exchange import Mood as ExchangeMood
from bot.playground.slack import SlackWorkspace
from bot.settings import DatabaseSettings, Settings
from bot.workflow import Command

UUID = "cdd92199-2897-4e14-9448-f923320408ad"
OTHER_UUID = "9ca023a5-851b-4fec-9f0a-48cd83c2eaae"
DANA = Actor(id="U0DANA", name="dana", team_id="T0PLAY")
CARA = Actor(id="U0CARA", name="cara", team_id="T0PLAY")
BEN = Actor(id="U0BEN", name="ben", team_id="T0PLAY")

UNSET: dict[str, str | None] = {
    f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")
}
COLUMNS = [
    "seq",
    "occurred_at",
    "action",
    "outcome",
    "actor",
    "actor_name",
    "actor_team",
    "request_id",
    "order_uuid",
    "market",
    "team_id",
    "channel_id",
    "reason",
    "trigger_id",
    "details",
    "prev_hash",
    "hash",
]
READING = [
    ["audit", "list"],
    ["audit", "show", "1"],
    ["audit", "verify"],
    ["settle", "1", "--verdict", "open", "--reason", "seen at Upbit"],
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the bot is started: nothing there, no `.env`."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return here


def bot(*arguments: str, **environ: str) -> Result:
    return CliRunner().invoke(main, arguments, env={**UNSET, **environ}, prog_name="bot")


def process(*arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    """The same in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if name not in UNSET}
    return subprocess.run(
        [sys.executable, "-m", "bot", *arguments],
        env={**inherited, **environ},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )


def events(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def ask(store: SqlStore, *, requester: Actor = DANA, order_uuid: str = UUID) -> int:
    command = Command(
        trigger_id=f"trigger-{order_uuid}",
        requester=requester,
        team_id="T0PLAY",
        channel_id="C0DESK",
        response_url=None,
        order_uuid=order_uuid,
        reason="wrong price",
    )
    with store.transaction() as tx:
        return tx.create(command).id


def leave_unresolved(store: SqlStore, *, order_uuid: str = UUID) -> int:
    """A request whose cancel was sent and never answered."""
    request_id = ask(store, order_uuid=order_uuid)
    with store.transaction(request_id) as tx:
        tx.move(Action.REQUEST_OPENED, approvers=("U0BEN",), opened_at=tx.now)
        tx.decide(DecisionKind.APPROVE, BEN)
        tx.move(Action.REQUEST_APPROVED, actor=BEN, send_before=tx.now)
        tx.move(Action.CANCEL_SENT, sends=1, unanswered=1, sent_at=tx.now)
        tx.record(Action.CANCEL_UNANSWERED, outcome=Outcome.UNKNOWN, details={"error": "timeout"})
        tx.move(Action.OUTCOME_UNRESOLVED, outcome=Outcome.UNKNOWN, details={"reason": Reason.NOTHING_CERTAIN.value})
    return request_id


def address(database: Database) -> str:
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def store(sqlite: Database) -> SqlStore:
    return SqlStore(sqlite)


@pytest.fixture
def url(sqlite: Database) -> str:
    return address(sqlite)


# How it is used


@pytest.mark.parametrize(
    "arguments",
    [
        ["dance"],
        ["audit"],
        ["audit", "show"],
        ["audit", "show", "0"],
        ["audit", "show", "one"],
        ["audit", "show", str(2**63)],
        ["audit", "list", "--outcome", "maybe"],
        ["audit", "list", "--since", "yesterday"],
        ["audit", "list", "--since", "0001-01-01T00:00:00+14:00"],
        ["audit", "list", "--limit", "0"],
        ["audit", "list", "--format", "xml"],
        ["settle", "1"],
        ["settle", "1", "--verdict", "lost", "--reason", "x"],
        ["settle", "1", "--verdict", "open"],
        ["settle", "1", "--verdict", "open", "--reason", "  "],
        ["manifest", "--http", "http://bot.example.com"],
        ["manifest", "--http", "https://bot.example.com/elsewhere"],
        ["run", "--fast"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    """A script tells a slip in its own line (2) from something that is wrong with the audit (1)."""
    result = bot(*arguments)

    assert result.exit_code == 2, result.output
    assert "Usage: bot" in result.output


def test_the_program_runs_as_a_module_and_says_its_version() -> None:
    """`python -m bot` works from any folder."""
    result = process("--version")

    assert result.returncode == 0
    assert re.fullmatch(r"bot, version \d+\.\d+\.\d+\n", result.stdout)


def test_wrong_usage_exits_2_in_a_process_too() -> None:
    """Click's runner is not the shell."""
    result = process("audit", "list", "--until", "tomorrow")

    assert result.returncode == 2
    assert "2026-11-23" in result.stderr


def test_help_needs_no_settings() -> None:
    """Whoever asks how it is used has not set anything yet."""
    for arguments in (["--help"], ["run", "-h"], ["audit", "list", "--help"]):
        assert bot(*arguments).exit_code == 0


# Where there is no database


@pytest.mark.parametrize("arguments", READING)
def test_only_run_and_migrate_create_a_database(arguments: list[str], folder: Path) -> None:
    """In the wrong folder an empty audit would be "0 events verified": all is well, and nothing is there."""
    result = bot(*arguments)

    assert result.exit_code == 1
    assert str(folder / "cancels.db") in result.output
    assert list(folder.iterdir()) == []


def test_migrate_creates_a_database(folder: Path) -> None:
    """The first command of an installation."""
    result = bot("migrate")

    assert result.exit_code == 0
    assert newest_revision() in result.output
    assert (folder / "cancels.db").is_file()
    assert bot("audit", "verify").output.startswith("0 events verified")


def test_migrate_may_be_repeated(database_url: str) -> None:
    """Every deployment runs it, on both databases."""
    first, second = (bot("migrate", DATABASE_URL=database_url) for _ in range(2))

    assert (first.exit_code, second.exit_code) == (0, 0)
    assert first.output == second.output
    assert newest_revision() in second.output


def test_migrate_does_not_show_the_password(folder: Path) -> None:
    """It is in the log of every deployment."""
    result = bot("migrate", DATABASE_URL="postgresql://bot:canary@127.0.0.1:9/cancels")

    assert result.exit_code == 1
    assert "canary" not in result.output


@pytest.mark.parametrize("arguments", READING)
def test_a_database_without_tables_is_told(arguments: list[str], folder: Path) -> None:
    """The remedy is in the sentence."""
    (folder / "cancels.db").touch()

    result = bot(*arguments)

    assert result.exit_code == 1
    assert "bot migrate" in result.output


@pytest.mark.parametrize("arguments", [*READING, ["migrate"]])
def test_a_database_of_a_newer_bot_is_left_alone(arguments: list[str], sqlite: Database, url: str) -> None:
    """An older bot would write what the newer one does not expect."""
    with sqlite.write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))

    result = bot(*arguments, DATABASE_URL=url)

    assert result.exit_code == 1
    assert "newer than this bot" in result.output
    assert "Traceback" not in result.output


def test_the_settings_may_stand_in_a_file_beside(folder: Path) -> None:
    """`.env` is looked for where the bot is started."""
    (folder / ".env").write_text("DATABASE_URL=sqlite:///elsewhere.db\n")
    (folder / ".env").chmod(0o600)

    assert bot("migrate").exit_code == 0
    assert (folder / "elsewhere.db").is_file()


def test_a_warning_does_not_disturb_what_is_read_by_programs(folder: Path) -> None:
    """`bot audit list --format json | …` reads standard output."""
    bot("migrate")
    (folder / ".env").write_text("LOG_LEVEL=INFO\n")
    (folder / ".env").chmod(0o644)

    result = bot("audit", "list", "--format", "json")

    assert result.exit_code == 0
    assert result.stdout == ""
    assert "chmod 600" in result.stderr


# The audit


def test_events_are_listed_newest_first_as_json(store: SqlStore, url: str) -> None:
    """One object a line, with the columns of the table: what other programs rely on."""
    leave_unresolved(store)

    listed = events(bot("audit", "list", "--format", "json", DATABASE_URL=url))

    assert [event["seq"] for event in listed] == list(range(len(listed), 0, -1))
    assert [list(event) for event in listed] == [COLUMNS] * len(listed)
    assert listed[-1]["action"] == "request.created"
    assert (listed[-1]["actor"], listed[-1]["reason"]) == ("U0DANA", "wrong price")
    assert listed[0]["details"] == {"state": "unresolved", "reason": "nothing_certain"}
    assert listed[-1]["prev_hash"] == "0" * 64


NARROWED: list[tuple[list[str], list[int]]] = [
    (["--request", "2"], [7]),
    (["--order", OTHER_UUID], [7]),
    (["--actor", "U0CARA"], [7]),
    (["--actor", "U0BEN"], [3]),
    (["--actor", "system"], [6, 5, 4, 2]),
    (["--action", "cancel.sent"], [4]),
    (["--outcome", "unknown"], [6, 5]),
    (["--outcome", "ok", "--request", "1", "--action", "request.created"], [1]),
    (["--market", "KRW-BTC"], []),
    (["--since", "2000-01-01"], [7, 6, 5, 4, 3, 2, 1]),
    (["--since", "9999-01-01"], []),
    (["--until", "2000-01-01T00:00:00+09:00"], []),
    (["--limit", "2"], [7, 6]),
    (["--actor", "U0CARA", "--outcome", "failed"], []),
]


def test_the_list_is_narrowed(database: Database) -> None:
    """A year of events is no answer to "who did that?"."""
    leave_unresolved(SqlStore(database))
    ask(SqlStore(database), requester=CARA, order_uuid=OTHER_UUID)

    for options, seqs in NARROWED:
        listed = events(bot("audit", "list", *options, "--format", "json", DATABASE_URL=address(database)))
        assert [event["seq"] for event in listed] == seqs, options


def test_the_list_is_a_table_for_people(store: SqlStore, url: str) -> None:
    """Who, what, which order: on one line, with the uuid in one piece, so that grep finds it."""
    leave_unresolved(store)

    shown = bot("audit", "list", DATABASE_URL=url).stdout.splitlines()

    assert shown[0].split() == ["seq", "occurred_at", "action", "outcome", "actor", "request", "order", "details"]
    assert re.search(rf"^1 .* request\.created +ok +U0DANA \(dana\) +#1 +{UUID}", shown[-1])
    assert len(shown) == 1 + 6


def test_the_table_shows_what_was_written_and_not_a_picture_of_it(store: SqlStore, url: str) -> None:
    """`:bug:` and `[bold]` are words in a reason, not orders to the terminal."""
    leave_unresolved(store)
    reason = "see :bug: [bold]12"
    bot("settle", "1", "--verdict", "open", "--reason", reason, DATABASE_URL=url)

    assert reason in bot("audit", "show", "1", DATABASE_URL=url).stdout


def test_one_request_is_shown_from_its_beginning(store: SqlStore, url: str) -> None:
    """A story is told in its order."""
    leave_unresolved(store)
    ask(store, requester=CARA, order_uuid=OTHER_UUID)

    shown = events(bot("audit", "show", "1", "--format", "json", DATABASE_URL=url))

    assert [event["action"] for event in shown] == [
        "request.created",
        "request.opened",
        "request.approved",
        "cancel.sent",
        "cancel.unanswered",
        "outcome.unresolved",
    ]


def test_a_request_that_does_not_exist_is_not_an_empty_story(store: SqlStore, url: str) -> None:
    """A typing error must not read as "nothing happened"."""
    result = bot("audit", "show", "7", DATABASE_URL=url)

    assert result.exit_code == 1
    assert result.stderr == "there is no request #7\n"


def test_a_sound_chain_verifies(database: Database) -> None:
    """The last line is what an auditor notes down elsewhere."""
    url = address(database)
    leave_unresolved(SqlStore(database))
    last = events(bot("audit", "list", "--limit", "1", "--format", "json", DATABASE_URL=url))[0]

    result = bot("audit", "verify", DATABASE_URL=url)

    assert result.exit_code == 0
    assert result.output == f"6 events verified; the chain ends at 6 {last['hash']}\n"


def disarm(database: Database) -> None:
    """What the owner of a database can do: take the triggers away."""
    with database.write() as connection:
        if not database.is_sqlite:
            connection.execute(text("ALTER TABLE audit_events DISABLE TRIGGER ALL"))
            return
        triggers = connection.execute(text("SELECT name FROM sqlite_master WHERE type = 'trigger'")).scalars()
        for trigger in list(triggers):
            connection.execute(text(f"DROP TRIGGER {trigger}"))


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        ("UPDATE audit_events SET actor = 'U0CARA' WHERE seq = 3", "event 3 was altered: column actor differs"),
        ("DELETE FROM audit_events WHERE seq = 3", "event 3 is missing"),
        (
            "DELETE FROM audit_events WHERE seq = 6",
            "event 6 is missing: the chain's head says that it ends with event 6",
        ),
        ("UPDATE audit_events SET entry = replace(entry, 'U0BEN', 'U0EVE') WHERE seq = 3", "event 3 was altered"),
    ],
)
def test_a_damaged_chain_exits_1_and_says_where(damage: str, fault: str, database: Database) -> None:
    """A script that runs it every night must notice by the status alone."""
    leave_unresolved(SqlStore(database))
    disarm(database)
    with database.write() as connection:
        connection.execute(text(damage))

    result = bot("audit", "verify", DATABASE_URL=address(database))

    assert result.exit_code == 1
    assert fault in result.stderr
    assert result.stdout == ""


def test_a_witness_is_asked_too(database: Database, tmp_path: Path) -> None:
    """The summaries in Slack end with one, and whoever owns the database does not own those."""
    url = address(database)
    leave_unresolved(SqlStore(database))
    third, last = (events(bot("audit", "list", "--format", "json", DATABASE_URL=url))[place] for place in (3, 0))
    file = tmp_path / "witnesses.txt"
    file.write_text(f"audit #{third['seq']} {third['hash'][:16]}\n{last['seq']} {last['hash']}\n")

    result = bot("audit", "verify", "--witness", str(file), DATABASE_URL=url)
    assert result.exit_code == 0
    assert result.output.endswith("; 2 witnesses agree\n")

    file.write_text(f"#{third['seq']} {'0' * 16}\n")
    result = bot("audit", "verify", "--witness", str(file), DATABASE_URL=url)
    assert result.exit_code == 1
    assert result.stderr == (
        "the audit does not verify: event 3 is not the one that its witness saw: the chain was rewritten\n"
    )


@pytest.mark.parametrize("content", [b"", b"hash 12\n", b"\xff\xfe"])
def test_a_file_without_witnesses_is_wrong_usage(database: Database, tmp_path: Path, content: bytes) -> None:
    """Exit status 0 would say that something was compared."""
    file = tmp_path / "witnesses.txt"
    file.write_bytes(content)
    assert bot("audit", "verify", "--witness", str(file), DATABASE_URL=address(database)).exit_code == 2


CHECKPOINT_KEY = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
OTHER_KEY = "4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb"


def checkpoint(database: Database, *options: str, key: str = CHECKPOINT_KEY, **environ: str) -> Result:
    return bot("audit", "checkpoint", *options, DATABASE_URL=address(database), CHECKPOINT_KEY=key, **environ)


def test_a_checkpoint_is_signed_kept_and_agrees(database: Database, folder: Path) -> None:
    """The line is for a file or a mail, the public key for whoever will verify it; and both runs are in the audit."""
    url = address(database)
    leave_unresolved(SqlStore(database))
    first = checkpoint(database)
    assert (first.exit_code, first.stderr) == (0, f"signed by the key whose public key is {PUBLIC_KEY}\n")
    second = checkpoint(database, "--out", "kept.txt")
    assert (second.exit_code, second.stdout) == (0, "")
    kept = folder / "kept.txt"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert [path.name for path in folder.iterdir()] == ["kept.txt"]

    whole = folder / "whole.txt"
    whole.write_text(f"{first.stdout}\n```\n{kept.read_text()}```\n", encoding="utf-8")
    result = bot("audit", "verify", "--checkpoint", "whole.txt", "--public-key", PUBLIC_KEY.upper(), DATABASE_URL=url)
    assert result.exit_code == 0, result.output
    at = json.loads(kept.read_text())["checkpoint"]["at"]
    assert result.stdout.startswith("8 events verified; the chain ends at 8 ")
    assert result.stdout.endswith(f"; 2 checkpoints agree; nothing up to event 7 was altered since {at}\n")
    by_key = bot(
        "audit", "verify", "--checkpoint", "whole.txt", "--record", DATABASE_URL=url, CHECKPOINT_KEY=CHECKPOINT_KEY
    )
    assert by_key.exit_code == 0, by_key.output
    verified, made, *_ = events(bot("audit", "list", "--limit", "2", "--format", "json", DATABASE_URL=url))
    assert (verified["action"], verified["details"]["checkpoints"]) == ("audit.verified", 2)
    assert (made["action"], made["details"]) == ("audit.checkpointed", json.loads(kept.read_text()))
    assert made["actor"].startswith("cli:")


def test_a_checkpoint_finds_what_the_chain_cannot(database: Database, folder: Path) -> None:
    """Somebody who owns the database has cut the end off, head included."""
    leave_unresolved(SqlStore(database))
    (folder / "kept.txt").write_text(checkpoint(database).stdout, encoding="utf-8")
    disarm(database)
    with database.write() as connection:
        connection.execute(text("DELETE FROM audit_events WHERE seq > 5"))
        head = "UPDATE audit_head SET seq = 5, hash = (SELECT hash FROM audit_events WHERE seq = 5)"
        connection.execute(text(head))
    url = address(database)
    assert bot("audit", "verify", DATABASE_URL=url).exit_code == 0
    result = bot("audit", "verify", "--checkpoint", "kept.txt", DATABASE_URL=url, CHECKPOINT_KEY=CHECKPOINT_KEY)
    assert (result.exit_code, result.stderr) == (
        1,
        "the audit does not verify: the chain ends at event 5, but event 6 has a checkpoint: the end was cut off\n",
    )
    broken = checkpoint(database)
    assert broken.exit_code == 0  # the chain that is left is sound in itself
    with database.write() as connection:
        connection.execute(text("UPDATE audit_events SET actor = 'U0CARA' WHERE seq = 3"))
    broken = checkpoint(database)
    assert (broken.exit_code, broken.stdout) == (1, "")
    assert broken.stderr.startswith("nothing was signed, as the audit does not verify: event 3 was altered")


def test_a_checkpoint_is_no_better_than_its_signature(database: Database, folder: Path) -> None:
    """Who rewrites the chain can write a checkpoint as well, but not sign it with the key that the auditor noted."""
    leave_unresolved(SqlStore(database))
    ours, theirs = checkpoint(database).stdout, checkpoint(database, key=OTHER_KEY).stdout
    other = json.loads(theirs)["key"]
    url, file = address(database), folder / "kept.txt"

    def verified(content: str, *options: str, **environ: str) -> tuple[int, str]:
        file.write_text(content, encoding="utf-8")
        result = bot("audit", "verify", "--checkpoint", "kept.txt", *options, DATABASE_URL=url, **environ)
        return result.exit_code, result.stderr.splitlines()[-1] if result.stderr else ""

    code, said = verified(ours)
    assert code == 2
    assert f"the file names the key {PUBLIC_KEY}" in said
    assert "say so with --public-key" in said
    assert verified(ours + theirs, "--public-key", PUBLIC_KEY) == (
        1,
        f"checkpoint 2 of the file is signed by another key: {other}",
    )
    assert verified(ours + theirs, "--public-key", PUBLIC_KEY, "--public-key", other) == (0, "")
    assert verified(theirs, CHECKPOINT_KEY=CHECKPOINT_KEY)[0] == 1
    forged = json.loads(ours)
    forged["checkpoint"]["seq"] = 5
    assert verified(json.dumps(forged), "--public-key", PUBLIC_KEY) == (
        1,
        "checkpoint 1 of the file was altered: its signature is not good",
    )
    for content in ("", "and so on", "\0", ours[:-9]):
        assert verified(content, "--public-key", PUBLIC_KEY)[0] == 2
    assert verified(ours, "--public-key", PUBLIC_KEY[1:])[0] == 2
    assert bot("audit", "verify", "--public-key", PUBLIC_KEY, DATABASE_URL=url).exit_code == 2


def test_checkpoints_of_what_was_pruned_are_not_said_to_agree(database: Database, folder: Path) -> None:
    """Only the archive can be compared with them; a script must not take silence for proof."""
    leave_unresolved(SqlStore(database))
    old = checkpoint(database).stdout
    ask(SqlStore(database), requester=CARA, order_uuid=OTHER_UUID)
    new = checkpoint(database).stdout
    disarm(database)
    with database.write() as connection:
        Chain(database, connection).begin_behind(7)
        connection.execute(text("DELETE FROM audit_events WHERE seq <= 7"))
    url, file = address(database), folder / "kept.txt"
    file.write_text(old + new, encoding="utf-8")
    both = bot("audit", "verify", "--checkpoint", "kept.txt", "--public-key", PUBLIC_KEY, DATABASE_URL=url)
    assert both.exit_code == 0, both.output
    assert both.stdout.startswith(
        "2 events verified; the events up to 7 were pruned, and only their archive proves them;"
    )
    assert "; 1 checkpoints agree; nothing up to event 8 was altered since" in both.stdout
    assert both.stdout.endswith("; 1 are older than what is left, and could not be compared\n")
    file.write_text(old, encoding="utf-8")
    alone = bot("audit", "verify", "--checkpoint", "kept.txt", "--public-key", PUBLIC_KEY, DATABASE_URL=url)
    assert alone.exit_code == 1
    assert alone.stderr.startswith("nothing was compared: all that was given is older than event 7")


def test_a_checkpoint_is_refused_before_it_is_made(database: Database, folder: Path) -> None:
    """Without a key, or where its file cannot be written, nothing is signed that nobody gets to see."""
    url = address(database)
    (folder / "there.txt").write_text("an older one", encoding="utf-8")
    no_key = bot("audit", "checkpoint", DATABASE_URL=url)
    assert (no_key.exit_code, "CHECKPOINT_KEY is empty" in no_key.stderr) == (2, True)
    there = checkpoint(database, "--out", "there.txt")
    assert (there.exit_code, "add --force" in there.stderr) == (2, True)
    nowhere = checkpoint(database, "--out", "no/such/folder.txt")
    assert (nowhere.exit_code, "there is no folder" in nowhere.stderr) == (2, True)
    wrong = checkpoint(database, key=CHECKPOINT_KEY + "0")
    assert (wrong.exit_code, wrong.stdout) == (1, "")
    assert CHECKPOINT_KEY not in wrong.stderr
    assert events(bot("audit", "list", "--format", "json", DATABASE_URL=url)) == []
    assert checkpoint(database, "--out", "there.txt", "--force").exit_code == 0
    assert "signature" in (folder / "there.txt").read_text()


def test_who_verified_is_recorded_if_asked_for(database: Database) -> None:
    """An auditor's auditor wants to see that it was done every night, and what was found."""
    url = address(database)
    leave_unresolved(SqlStore(database))
    assert bot("audit", "verify", "--record", DATABASE_URL=url).exit_code == 0
    recorded = events(bot("audit", "list", "--limit", "1", "--format", "json", DATABASE_URL=url))[0]
    assert (recorded["action"], recorded["outcome"]) == ("audit.verified", "ok")
    assert recorded["actor"].startswith("cli:")
    assert recorded["details"]["events"] == 6
    assert recorded["details"]["fault"] is None

    disarm(database)
    with database.write() as connection:
        connection.execute(text("UPDATE audit_events SET actor = 'U0CARA' WHERE seq = 3"))
    assert bot("audit", "verify", "--record", DATABASE_URL=url).exit_code == 1
    recorded = events(bot("audit", "list", "--limit", "1", "--format", "json", DATABASE_URL=url))[0]
    assert (recorded["seq"], recorded["outcome"]) == (8, "failed")
    assert "event 3 was altered" in recorded["details"]["fault"]


def test_reading_the_audit_writes_nothing(store: SqlStore, url: str) -> None:
    """An auditor's account may be one that can only read."""
    leave_unresolved(store)
    before = events(bot("audit", "list", "--format", "json", DATABASE_URL=url))

    for arguments in READING[:3]:
        assert bot(*arguments, DATABASE_URL=url).exit_code == 0

    assert events(bot("audit", "list", "--format", "json", DATABASE_URL=url)) == before


# Settling by hand


@pytest.mark.parametrize("verdict", ["canceled", "filled", "open"])
def test_an_unresolved_request_is_settled_by_a_named_person(verdict: str, store: SqlStore, url: str) -> None:
    """The one way in which a person's word becomes the outcome: with who said it, and how they know."""
    request_id = leave_unresolved(store)

    result = bot("settle", "1", "--verdict", verdict, "--reason", " seen at Upbit ", DATABASE_URL=url)

    assert result.exit_code == 0, result.output
    settled = store.read(request_id)
    assert settled is not None
    assert settled.state is State.SETTLED
    assert (settled.settled_verdict, settled.settled_reason) == (verdict, "seen at Upbit")
    last = events(bot("audit", "list", "--limit", "1", "--format", "json", DATABASE_URL=url))[0]
    assert last["action"] == "outcome.settled"
    assert last["actor"] == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"
    assert last["details"] == {"state": "settled", "verdict": verdict, "reason": "seen at Upbit"}


def test_nobody_settles_in_somebody_elses_name(store: SqlStore, url: str) -> None:
    """LOGNAME and USER are what the caller says; the account is what the system knows."""
    leave_unresolved(store)

    bot(
        *("settle", "1", "--verdict", "open", "--reason", "x"),
        DATABASE_URL=url,
        LOGNAME="somebody-else",
        USER="somebody-else",
    )

    last = events(bot("audit", "list", "--limit", "1", "--format", "json", DATABASE_URL=url))[0]
    assert last["actor"] == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"


def test_only_what_is_unresolved_is_settled(store: SqlStore, url: str) -> None:
    """A word at the command line must not overrule what the exchange has shown, nor be said twice."""
    ask(store)
    too_early = bot("settle", "1", "--verdict", "open", "--reason", "x", DATABASE_URL=url)
    leave_unresolved(store, order_uuid=OTHER_UUID)
    bot("settle", "2", "--verdict", "open", "--reason", "x", DATABASE_URL=url)
    twice = bot("settle", "2", "--verdict", "filled", "--reason", "y", DATABASE_URL=url)

    assert (too_early.exit_code, twice.exit_code) == (1, 1)
    assert "request #1 is not unresolved: see `bot audit show 1`" in too_early.output
    settled = store.read(2)
    assert settled is not None
    assert settled.settled_reason == "x"


def test_a_request_that_does_not_exist_is_not_settled(store: SqlStore, url: str) -> None:
    """A typing error in the number must not read as done."""
    result = bot("settle", "7", "--verdict", "open", "--reason", "x", DATABASE_URL=url)

    assert result.exit_code == 1
    assert "there is no request #7" in result.output


# The manifest


def test_the_manifest_is_for_socket_mode_unless_told_otherwise() -> None:
    """What is printed is pasted as it is."""
    built = json.loads(bot("manifest").stdout)

    assert built["settings"]["socket_mode_enabled"] is True
    assert json.loads(Path(__file__).parent.with_name("manifest.json").read_text()) == built


def test_the_manifest_for_http_holds_the_address() -> None:
    """Both for the command and for the buttons."""
    built = json.loads(bot("manifest", "--http", "https://bot.example.com").stdout)

    assert built["settings"]["socket_mode_enabled"] is False
    assert built["settings"]["interactivity"]["request_url"] == "https://bot.example.com/slack/events"
    assert built["features"]["slash_commands"][0]["url"] == "https://bot.example.com/slack/events"


# Trying it all without changing anything


@pytest.fixture
def workspace() -> Iterator[SlackWorkspace]:
    with SlackWorkspace() as opened:
        yield opened


@pytest.fixture
def exchange() -> Iterator[Exchange]:
    with Exchange() as opened:
        yield opened


@pytest.fixture
def environ(workspace: SlackWorkspace, exchange: Exchange, folder: Path) -> dict[str, str]:
    """Settings with which everything is fine, and the database that they name."""
    url = f"sqlite:///{folder / 'cancels.db'}"
    opened = Database(url)
    migrated(opened)
    opened.close()
    return {
        "SLACK_BOT_TOKEN": "xoxb-playground",
        "SLACK_APP_TOKEN": "xapp-playground",
        "SLACK_API_URL": workspace.api_url,
        "UPBIT_OPEN_API_ACCESS_KEY": Key().access_key,
        "UPBIT_OPEN_API_SECRET_KEY": Key().secret_key,
        "UPBIT_OPEN_API_SERVER_URL": exchange.url,
        "DATABASE_URL": url,
        "APPROVERS": "U0BEN,U0CARA",
    }


def faults(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("✗")]


def test_check_tells_that_everything_is_fine(
    environ: dict[str, str], exchange: Exchange, workspace: SlackWorkspace
) -> None:
    """One look, and nobody is told and nothing is sent."""
    result = bot("check", **environ)

    assert result.exit_code == 0, result.output
    assert [line[0] for line in result.output.splitlines()] == ["✓"] * 5
    assert "✓ approvers: 2 can approve today: U0BEN, U0CARA" in result.output
    assert "T0PLAY" in result.output
    assert "주문조회" in result.output
    assert [request.method for request in exchange.requests] == ["GET"]
    assert [call.method for call in workspace.calls()] == ["auth.test"]


def test_check_shows_whose_key_signs_checkpoints_and_where_they_go(
    environ: dict[str, str], workspace: SlackWorkspace
) -> None:
    """The public key is what an auditor notes; a channel that the bot does not see is found before the first day."""
    ours = {"CHECKPOINT_KEY": CHECKPOINT_KEY, "CHECKPOINT_CHANNEL": "C0DESK"}
    fine = bot("check", **environ, **ours)
    assert fine.exit_code == 0, fine.output
    assert f"✓ checkpoints: signed by the key whose public key is {PUBLIC_KEY}" in fine.output
    assert "✓ checkpoint channel: the bot sees C0DESK" in fine.output
    assert CHECKPOINT_KEY not in fine.output
    slip = bot("check", **environ, **(ours | {"CHECKPOINT_CHANNEL": "C0DESKK"}))
    assert faults(slip) == [
        "✗ checkpoint channel: C0DESKK is not in this workspace, or is private without the bot: type /invite there"
    ]
    assert {call.method for call in workspace.calls()} == {"auth.test", "chat.getPermalink"}


def test_check_tries_the_approvals_channel_without_posting(environ: dict[str, str], workspace: SlackWorkspace) -> None:
    """A slip in its id would refuse every request; and what cannot be known before a card is posted, is said."""
    fine = bot("check", **environ, APPROVALS_CHANNEL="C0DESK")
    assert fine.exit_code == 0, fine.output
    assert "the bot sees C0DESK; whether it is archived" in fine.output

    slip = bot("check", **environ, APPROVALS_CHANNEL="C0DESKK")
    assert slip.exit_code == 1
    assert faults(slip) == [
        "✗ approvals channel: C0DESKK is not in this workspace, or is private without the bot: type /invite there"
    ]

    workspace.set_mood("error:internal_error", method="chat.getPermalink")
    assert faults(bot("check", **environ, APPROVALS_CHANNEL="C0DESK")) == [
        "✗ approvals channel: chat.getPermalink failed: internal_error"
    ]
    assert {call.method for call in workspace.calls()} == {"auth.test", "chat.getPermalink"}


@pytest.mark.parametrize(
    ("members", "settings", "told"),
    [
        (None, {}, ["✗ user group S0DESK: plan_upgrade_required", "✗ approvers: nobody can approve"]),
        ({}, {}, ["✗ user group S0DESK: no_such_subteam", "✗ approvers: nobody can approve"]),
        ({"S0DESK": []}, {}, ["✗ user group S0DESK: it has no members", "✗ approvers: nobody can approve"]),
        (
            {"S0DESK": ["U0BEN", "U0CARA"]},
            {"APPROVALS_REQUIRED": "3"},
            [
                "✗ approvers: APPROVALS_REQUIRED needs 3 approvals, and only 2 may approve: add approvers, or lower it",
            ],
        ),
        ({"S0DESK": ["U0BEN", "U0CARA"]}, {"APPROVALS_REQUIRED": "2"}, []),
    ],
)
def test_check_finds_that_nobody_of_a_group_can_approve(
    environ: dict[str, str],
    workspace: SlackWorkspace,
    members: dict[str, list[str]] | None,
    settings: dict[str, str],
    told: list[str],
) -> None:
    """A group stands for as many approvers as it has members, and only Slack can tell how many."""
    if members is not None:
        workspace.set_user_group("S0OTHER", [])
        for group, people in members.items():
            workspace.set_user_group(group, people)

    result = bot("check", **environ | {"APPROVERS": "S0DESK"} | settings)

    assert faults(result) == told
    assert result.exit_code == (1 if told else 0)


def test_check_shows_no_secret(environ: dict[str, str], workspace: SlackWorkspace) -> None:
    """People paste its output into tickets."""
    workspace.set_mood("error:invalid_auth")

    result = bot("check", **environ)

    assert not any(environ[name] in result.output for name in environ if "TOKEN" in name or "KEY" in name)


def test_check_finds_a_key_that_may_not_view_orders(environ: dict[str, str], exchange: Exchange) -> None:
    """It could cancel, and could never say whether it did."""
    exchange.set_key(Key(permissions=frozenset({"make_orders"})))

    result = bot("check", **environ)

    assert result.exit_code == 1
    assert faults(result) == ["✗ Upbit: the key may not view orders: give it 주문조회 beside 주문하기"]


@pytest.mark.parametrize(
    ("key", "name"),
    [
        (Key(access_key="another-key"), "invalid_access_key"),
        (Key(secret_key="another-secret-key-with-forty-characters"), "jwt_verification"),
        (Key(ips=frozenset({"192.0.2.1"})), "no_authorization_ip"),
        (Key(expires_at=1.0), "expired_access_key"),
    ],
)
def test_check_names_what_is_wrong_with_the_key(
    environ: dict[str, str], workspace: SlackWorkspace, key: Key, name: str
) -> None:
    """By Upbit's own word, which the installation guide explains."""
    with Exchange(keys=[key]) as strict:
        result = bot("check", **environ | {"UPBIT_OPEN_API_SERVER_URL": strict.url})

    assert result.exit_code == 1
    assert faults(result) == [f"✗ Upbit: refused: {name}"]


@pytest.mark.parametrize("mood", [ExchangeMood.HTTP_500, ExchangeMood.DROP_BEFORE, ExchangeMood.HTML_502])
def test_check_finds_that_upbit_is_away(environ: dict[str, str], exchange: Exchange, mood: ExchangeMood) -> None:
    """No verdict on the key: nothing was learned about it."""
    exchange.set_mood("GET", mood)

    result = bot("check", **environ)

    assert result.exit_code == 1
    assert faults(result)[0].startswith("✗ Upbit: no answer to rely on: ")


def test_check_finds_that_slack_does_not_take_the_token(environ: dict[str, str]) -> None:
    """And goes on, so that one run finds all."""
    result = bot("check", **environ | {"SLACK_BOT_TOKEN": "xoxb-somebody-else"})

    assert result.exit_code == 1
    assert faults(result) == ["✗ Slack: auth.test failed: invalid_auth"]
    assert "✓ Upbit" in result.output


def test_check_finds_that_slack_is_away(environ: dict[str, str], workspace: SlackWorkspace) -> None:
    """An outage is no fault of the settings, but nothing that looks fine either."""
    workspace.set_mood("away")

    result = bot("check", **environ)

    assert result.exit_code == 1
    assert faults(result)[0].startswith("✗ Slack: auth.test failed: ")


def test_check_finds_that_there_is_no_database_and_creates_none(environ: dict[str, str], folder: Path) -> None:
    """It changes nothing, and says what does."""
    missing = folder / "missing.db"

    result = bot("check", **environ | {"DATABASE_URL": f"sqlite:///{missing}"})

    assert result.exit_code == 1
    assert faults(result) == [f"✗ database: there is no database at {missing}: `bot migrate` creates it"]
    assert not missing.exists()


def test_check_finds_a_database_without_tables(environ: dict[str, str], folder: Path) -> None:
    """A file is not a database, and an empty one not yet."""
    (folder / "empty.db").touch()

    result = bot("check", **environ | {"DATABASE_URL": f"sqlite:///{folder / 'empty.db'}"})

    assert result.exit_code == 1
    assert faults(result)[0].endswith("run `bot migrate`")


def test_check_looks_at_postgresql_as_well(environ: dict[str, str], database_url: str) -> None:
    """Before the first `bot migrate` and after it."""
    before = bot("check", **environ | {"DATABASE_URL": database_url})
    assert before.exit_code == 1

    bot("migrate", DATABASE_URL=database_url)
    after = bot("check", **environ | {"DATABASE_URL": database_url})

    assert after.exit_code == 0, after.output


def test_check_with_wrong_settings_names_them_all() -> None:
    """Before it tries anything."""
    result = bot("check", PORT="http")

    assert result.exit_code == 1
    assert "PORT must be" in result.stderr
    assert "APPROVERS is empty" in result.stderr
    assert result.stdout == ""


# Before it serves


def test_run_with_wrong_settings_prints_every_fault() -> None:
    """One restart a fault is how people give up; and an empty allowlist is a fault, never "everyone"."""
    result = process("run", APPROVERS="@ben", PORT="0", APPROVALS_REQUIRED="two")

    assert result.returncode == 1
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    for variable in ("APPROVERS", "PORT", "APPROVALS_REQUIRED", "SLACK_BOT_TOKEN", "UPBIT_OPEN_API_SERVER_URL"):
        assert sum(line.startswith(f"{variable} ") for line in lines) == 1, variable
    assert "Traceback" not in result.stderr


def test_a_second_run_on_the_same_file_is_refused(environ: dict[str, str], folder: Path) -> None:
    """Two processes with one SQLite file would wait for each other, and one of them is a mistake."""
    lock = RunLock(folder / "cancels.db")
    lock.acquire()
    try:
        result = process("run", **environ)
    finally:
        lock.release()

    assert result.returncode == 1
    assert "another `bot run`" in result.stderr
    assert "Traceback" not in result.stderr


def test_run_does_not_migrate_postgresql_by_itself(environ: dict[str, str], request: pytest.FixtureRequest) -> None:
    """The account that it runs with need not be allowed to change tables."""
    url = request.getfixturevalue("postgresql").create()

    result = process("run", **environ | {"DATABASE_URL": url})

    assert result.returncode == 1
    assert "run `bot migrate`" in result.stderr
    unchanged = Database(url)
    with pytest.raises(NothingDone), unchanged.read() as connection:
        connection.execute(text("SELECT 1 FROM audit_events"))
    unchanged.close()


def test_run_names_a_folder_that_is_not_there(environ: dict[str, str], folder: Path) -> None:
    """A volume that was not mounted."""
    missing = folder / "not-mounted" / "cancels.db"

    result = process("run", **environ | {"DATABASE_URL": f"sqlite:///{missing}"})

    assert result.returncode == 1
    assert str(missing.parent) in result.stderr
    assert "Traceback" not in result.stderr


def test_every_command_that_only_opens_the_database_needs_no_other_setting() -> None:
    """An auditor has the database's address and no token."""
    assert set(DatabaseSettings.model_fields) == {"database_url", "log_level", "warnings"}
    assert bot("migrate").exit_code == 0
    for arguments in (["audit", "list"], ["audit", "verify"]):
        assert bot(*arguments).exit_code == 0
