"""Starts of the bot in the audit: which rules were in force when, and who changed them between two starts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from builders import execute, rows
from journey import started

from bot.database.engine import Database
from bot.database.starts import record_start
from bot.database.verification import verify
from bot.domain.configuration import MAX_VALUE_CHARS, bounded, changed_settings, key_id
from bot.playground.demo import BEN
from bot.settings import configuration, load_settings, settings_table

SECRETS = {
    "SLACK_BOT_TOKEN": "xoxb-canary-bot-token",
    "SLACK_APP_TOKEN": "xapp-canary-app-token",
    "SLACK_SIGNING_SECRET": "canary-signing-secret",
    "UPBIT_OPEN_API_ACCESS_KEY": "canary-access-key",
    "UPBIT_OPEN_API_SECRET_KEY": "canary-secret-key",
    "CHECKPOINT_KEY": "ca" * 32,
}
GIVEN = {
    **SECRETS,
    "DATABASE_URL": "postgresql://bot:canary-password@canary-host/cancels",
    "UPBIT_OPEN_API_SERVER_URL": "https://sg-api.upbit.com",
    "APPROVERS": "U0CARA,U0BEN,S0TREASURY",
    "NOTIFY": "U0OPS,S0TREASURY",
    "APPROVAL_TIERS": "KRW-*:50000000=2, KRW-*/ask:200000000=3",
    "SELF_APPROVAL": "true",
}


def start(database: Database, replica: str, **settings: str) -> dict[str, Any]:
    """The details of the event."""
    record_start(database, version="1.2.3", replica=replica, settings=settings)
    ((details,),) = rows(database, "SELECT details FROM audit_events ORDER BY seq DESC LIMIT 1")
    told: dict[str, Any] = json.loads(details)
    return told


def test_each_start_is_compared_with_the_one_before(database: Database) -> None:
    """Who could approve last Tuesday must not depend on what somebody remembers of a file that is gone."""
    first = start(database, "one:1", APPROVERS="U0BEN", NOTIFY="")
    assert first == {
        "version": "1.2.3",
        "replica": "one:1",
        "settings": {"APPROVERS": "U0BEN", "NOTIFY": ""},
        "changed": {},
        "last_start": None,
    }
    assert start(database, "two:1", APPROVERS="U0BEN", NOTIFY="")["changed"] == {}
    third = start(database, "one:2", APPROVERS="U0BEN,U0CARA", CHANNELS="C0DESK")
    assert third["last_start"] == 2
    assert third["changed"] == {
        "APPROVERS": {"before": "U0BEN", "after": "U0BEN,U0CARA"},
        "CHANNELS": {"before": None, "after": "C0DESK"},
        "NOTIFY": {"before": "", "after": None},
    }
    told = rows(database, "SELECT DISTINCT action, outcome, actor, request_id FROM audit_events")
    assert told == [("bot.started", "ok", "system", None)]
    assert verify(database).fault is None


@pytest.mark.parametrize("details", ["no json", "[]", "{}", '{"settings": []}', "[" * 20_000])
def test_a_start_that_somebody_tampered_with_does_not_stop_the_next(details: str, sqlite: Database) -> None:
    """A bot that can be kept from starting by a row in a table is not there when it is needed."""
    start(sqlite, "one:1", APPROVERS="U0BEN")
    execute(sqlite, "DROP TRIGGER audit_events_no_update")
    with sqlite.write() as connection:
        connection.exec_driver_sql("UPDATE audit_events SET details = ?", (details,))
    assert start(sqlite, "one:2", APPROVERS="U0CARA") | {"settings": None} == {
        "version": "1.2.3",
        "replica": "one:2",
        "settings": None,
        "changed": {},
        "last_start": 1,
    }


def test_the_last_start_is_found_without_reading_the_audit(sqlite: Database) -> None:
    """The head is locked meanwhile, and a bot with a million events must be ready in a second."""
    last = "SELECT seq, details FROM audit_events WHERE action = 'bot.started' ORDER BY seq DESC LIMIT 1"
    assert "ix_audit_events_started" in str(rows(sqlite, f"EXPLAIN QUERY PLAN {last}"))


def test_every_setting_is_told_and_no_secret() -> None:
    """An auditor sees that a key was changed, and by its id which one it is; a thief of the audit sees no more."""
    told = configuration(load_settings(GIVEN, None))
    assert list(told) == [row.variable for row in settings_table()]
    assert "canary" not in json.dumps(told)
    assert SECRETS["CHECKPOINT_KEY"] not in told.values()
    plain = {name: told[name] for name in ("APPROVERS", "NOTIFY", "APPROVAL_TIERS", "SELF_APPROVAL", "DATABASE_URL")}
    assert plain == {
        "APPROVERS": "S0TREASURY,U0BEN,U0CARA",
        "NOTIFY": "U0OPS,S0TREASURY",
        "APPROVAL_TIERS": "KRW-*:50000000=2,KRW-*/ask:200000000=3",
        "SELF_APPROVAL": "true",
        "DATABASE_URL": "postgresql",
    }
    for name, secret in SECRETS.items():
        digest = hashlib.sha256(f"{name}\n{secret}".encode()).hexdigest()
        assert told[name] == f"key id {digest[:12]}"


def test_what_is_not_set_has_no_key_id() -> None:
    """That a secret is missing is no secret; the id of an empty one would look like a key."""
    assert key_id("CHECKPOINT_KEY", "") == ""
    assert key_id("SLACK_BOT_TOKEN", "same") != key_id("SLACK_APP_TOKEN", "same")


def test_a_setting_of_any_length_is_compared_whole() -> None:
    """A list of a thousand approvers must not hide that the last one was exchanged."""
    many = ",".join(f"U{n:08}" for n in range(1000))
    before, after = bounded(many), bounded(many[:-1] + "X")
    assert before[:MAX_VALUE_CHARS] == after[:MAX_VALUE_CHARS]
    assert len(before) < MAX_VALUE_CHARS + 120
    assert list(changed_settings({"APPROVERS": before}, {"APPROVERS": after})) == ["APPROVERS"]
    assert bounded("U0BEN") == "U0BEN"


def test_a_bot_writes_down_its_start_before_it_serves(tmp_path: Path) -> None:
    """An allowlist that was changed for an hour must be in the audit, with the hour."""
    with started(tmp_path) as journey:
        (first,) = journey.events()
        assert (first["action"], first["actor"], first["details"]["changed"]) == ("bot.started", "system", {})
        shown = first["details"]["settings"]
        assert BEN.id in shown["APPROVERS"]
        assert journey.key.secret_key not in json.dumps(first)
        assert journey.key.access_key not in json.dumps(first)
        assert journey.bot.stop() == 0
        journey.bot._environment["APPROVERS"] = f"{shown['APPROVERS']},U0EVE"
        journey.bot.start()
        journey.bot.wait_until_ready()
        second = journey.events()[-1]["details"]
        after = ",".join(sorted([*shown["APPROVERS"].split(","), "U0EVE"]))
        assert second["changed"]["APPROVERS"] == {"before": shown["APPROVERS"], "after": after}
        assert set(second["changed"]) == {"APPROVERS"}
        assert second["replica"] != first["details"]["replica"]
