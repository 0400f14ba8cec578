"""Witnesses with the real process: copied out of a summary in Slack, and good for what they are for."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import execute
from click.testing import CliRunner, Result
from journey import Asked, Journey, started
from postgresql import Postgresql
from test_tampering import chained, read, write

from bot.__main__ import main
from bot.database.engine import Database
from bot.playground.demo import BEN
from bot.settings import Settings


@pytest.fixture(params=["sqlite", "postgresql"])
def journey(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Journey]:
    postgresql: Postgresql | None = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    with started(tmp_path, database_url=postgresql.create() if postgresql else None) as journey:
        yield journey


def last_line(journey: Journey, asked: Asked) -> str:
    """What somebody copies from the end of the summary."""
    return journey.verdict(asked).splitlines()[-1]


def verified(journey: Journey, lines: list[str]) -> Result:
    file = journey.bot.log_path.with_name("copied.txt")
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    unset = {f"{name.upper()}{ending}": None for name in Settings.model_fields for ending in ("", "_FILE")}
    arguments = ["audit", "verify", "--witness", str(file)]
    return CliRunner().invoke(main, arguments, env={**unset, "DATABASE_URL": journey.database_url})


def test_the_end_of_a_summary_finds_a_rewritten_audit(journey: Journey) -> None:
    """Everybody in the channel has it, at no cost, and whoever owns the database cannot change it there."""
    denied, canceled = journey.ask(), journey.ask()
    journey.press(BEN, denied, "deny")
    journey.press(BEN, canceled, "approve")
    lines = [last_line(journey, each) for each in (denied, canceled)]
    for asked, action in ((denied, "request.denied"), (canceled, "order.canceled")):
        event = journey.audited(asked.id, action)
        assert f"audit #{event['seq']} {event['hash'][:16]}" in lines
    result = verified(journey, lines)
    assert result.exit_code == 0, result.output
    assert "2 witnesses agree" in result.stdout

    assert journey.bot.stop() == 0
    database = Database(journey.database_url)
    triggers = ("no_update", "no_delete", "no_replace")
    execute(
        database,
        *(
            [f"DROP TRIGGER audit_events_{trigger}" for trigger in triggers]
            if database.is_sqlite
            else ["ALTER TABLE audit_events DISABLE TRIGGER USER"]
        ),
    )
    forged = [{**row, "actor": "U0EMIL" if row["actor"] == BEN.id else row["actor"]} for row in read(database)]
    write(database, chained(forged), with_head=True)
    database.close()
    assert journey.audit_fault() is None
    result = verified(journey, lines)
    assert result.exit_code == 1
    assert "is not the one that its witness saw: the chain was rewritten" in result.stderr
