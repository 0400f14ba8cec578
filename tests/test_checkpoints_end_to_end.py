"""Checkpoints with the real process: made by itself, posted, copied into a file, and good for what they are for."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import execute
from click.testing import CliRunner, Result
from journey import WITHIN_S, Journey, Mode, started
from postgresql import Postgresql
from test_tampering import chained, read, write

from bot.__main__ import main
from bot.database.engine import Database
from bot.playground.demo import BEN
from bot.playground.slack import SlackWorkspace
from bot.playground.slack_records import Channel, Message
from bot.settings import Settings

AUDIT = Channel("C0AUDIT", "audit")
KEY = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60"
PUBLIC_KEY = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
SETTINGS = {"CHECKPOINT_KEY": KEY, "CHECKPOINT_CHANNEL": AUDIT.id}

KINDS: dict[str, tuple[Mode, str]] = {
    "http-sqlite": ("http", "sqlite"),
    "socket-postgresql": ("socket", "postgresql"),
    "http-postgresql": ("http", "postgresql"),
    "socket-sqlite": ("socket", "sqlite"),
}


@pytest.fixture(params=[*KINDS.values()], ids=[*KINDS])
def journey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journey]:
    mode, kind = request.param
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    url = postgresql.create() if postgresql else None
    with started(tmp_path, mode=mode, database_url=url, settings=SETTINGS, channels=(AUDIT,)) as journey:
        yield journey


def verified(journey: Journey, file: Path) -> Result:
    arguments = ["audit", "verify", "--checkpoint", str(file), "--public-key", PUBLIC_KEY]
    unset = {f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")}
    return CliRunner().invoke(main, arguments, env={**unset, "DATABASE_URL": journey.database_url})


def posted(journey: Journey, count: int = 1) -> Message:
    """The newest checkpoint, once there are so many."""
    journey.slack.wait_for(lambda slack: len(slack.messages(AUDIT.id)) == count, timeout_s=WITHIN_S)
    return journey.slack.messages(AUDIT.id)[-1]


def line_of(message: Message) -> str:
    """What somebody copies out of the code block."""
    text: str = message.blocks[1]["text"]["text"]
    return text.removeprefix("```").removesuffix("```")


def test_the_bot_posts_a_checkpoint_that_finds_a_rewritten_tail(journey: Journey, tmp_path: Path) -> None:
    """By itself, soon after its start; and what it is for works with nothing but the channel and the public key."""
    first = posted(journey)
    assert json.loads(line_of(first))["checkpoint"]["seq"] == 1
    asked = journey.ask()
    journey.press(BEN, asked, "approve")
    journey.audited(asked.id, "summary.posted")

    database = Database(journey.database_url)
    execute(database, "UPDATE checkpoints SET made_at = '2026-11-01T00:00:00.000000Z'")
    second = posted(journey, 2)
    file = tmp_path / "copied.txt"
    file.write_text(f"{line_of(first)}\n{line_of(second)}\n", encoding="utf-8")
    result = verified(journey, file)
    assert result.exit_code == 0, result.output
    assert "2 checkpoints agree" in result.stdout
    answered = journey.bot.get("/readyz")
    assert answered is not None
    assert json.loads(answered[1])["checkpoints"] is True

    assert journey.bot.stop() == 0
    triggers = ("no_update", "no_delete", "no_replace")
    execute(
        database,
        *(
            [f"DROP TRIGGER audit_events_{trigger}" for trigger in triggers]
            if database.is_sqlite
            else ["ALTER TABLE audit_events DISABLE TRIGGER USER"]
        ),
    )
    genuine = read(database)
    forged = [{**row, "actor": "U0EMIL" if row["action"] == "request.approved" else row["actor"]} for row in genuine]
    write(database, chained(forged), with_head=True)
    database.close()
    assert journey.audit_fault() is None
    result = verified(journey, file)
    assert result.exit_code == 1
    assert "is not the one that its checkpoint saw: the chain was rewritten" in result.stderr


def test_a_slack_that_does_not_take_a_checkpoint_delays_nothing_else(tmp_path: Path) -> None:
    """Cancels, cards and readiness go on; the message comes once the channel is mended, as it was signed."""
    with started(tmp_path, settings=SETTINGS) as journey:  # there is no such channel yet
        journey.until(lambda: "checkpoint of the audit is not posted yet: channel_not_found" in journey.bot.log())
        asked = journey.ask()
        journey.press(BEN, asked, "approve")
        assert journey.verdict(asked).startswith("Canceled:")
        answered = journey.bot.get("/readyz")
        assert answered is not None
        assert (answered[0], json.loads(answered[1])["checkpoints"]) == (200, "not_posted: channel_not_found")
        journey.bot.kill()
        database = Database(journey.database_url)
        execute(database, "UPDATE checkpoints SET next_attempt_at = '1970-01-01T00:00:00.000000Z'")
        database.close()
        journey.bot._environment["CHECKPOINT_CHANNEL"] = "C0DESK"
        journey.bot.start()
        journey.bot.wait_until_ready()

        def found(slack: SlackWorkspace) -> list[Message]:
            return [each for each in slack.messages("C0DESK") if "Checkpoint of the audit" in each.text]

        (message,) = journey.slack.wait_for(found, timeout_s=WITHIN_S)
        (made,) = [each for each in journey.events() if each["action"] == "audit.checkpointed"]
        assert made["details"] == json.loads(line_of(message))
