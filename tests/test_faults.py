"""Small versions of the experiments that `make faults` plays whole: enough to notice when one of them breaks."""

from pathlib import Path

import pytest
from faults.faulty_bot import CALLS, POINTS, REFRESHING
from faults.figures import Ground
from faults.mutants import MUTANTS, ROOT, Mutant, planted
from faults.run import EXPERIMENTS, SqliteFiles, play_on
from postgresql import Postgresql

from bot.database.store import SqlStore
from bot.slack.notifier import Notifier
from bot.upbit.client import UpbitClient
from bot.upbit.quotation import QuotationClient

SMALL = {
    ("kill", "sqlite"): 0.03,
    ("kill", "postgresql"): 0.03,
    ("lies", "sqlite"): 0.03,
    ("lies", "postgresql"): 0.03,
    ("database_away", "sqlite"): 0.1,
    ("database_away", "postgresql"): 0.1,
    ("slack_away", "postgresql"): 0.05,
    ("replicas", "postgresql"): 0.03,
    ("clocks", "sqlite"): 0.05,
    ("network", "sqlite"): 0.05,
    ("load", "sqlite"): 0.02,
    ("hostile", "sqlite"): 0.01,
}
"""Each promise at least once; the simulation and the model have tests of their own."""


def test_every_experiment_is_played_small() -> None:
    """One that nothing plays rots until somebody has the time for the whole."""
    assert {name for name, _ in SMALL} | {"simulate", "model"} == {name for name, _ in EXPERIMENTS}


@pytest.mark.timeout(300)
@pytest.mark.real_time
@pytest.mark.parametrize(("name", "kind"), SMALL, ids=[f"{name}-{kind}" for name, kind in SMALL])
def test_no_promise_is_broken(name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Nothing is lost, nothing is done twice, and nothing is said that is not so, whatever is done to the bot."""
    server: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    ground = Ground(
        folder=tmp_path,
        kind="postgresql" if server else "sqlite",
        new_database=server.create if server else SqliteFiles(tmp_path),
        scale=SMALL[name, kind],
        seed=7,
    )
    figures = play_on(ground, name)
    assert not figures.violations, "\n".join(figures.violations)
    assert figures.requests
    assert figures.faults.total()


def test_every_point_at_which_the_bot_can_be_killed_is_somewhere() -> None:
    """A verb that was renamed would be a point that is never reached, and only the whole experiment would say so."""
    rooms = {"exchange": (UpbitClient, QuotationClient), "slack": (Notifier,)}
    for room, verb in (call.split(".") for call in CALLS):
        assert any(hasattr(neighbour, verb) for neighbour in rooms[room]), verb
    assert all(hasattr(SqlStore, verb) for verb in REFRESHING)
    assert len(set(POINTS)) == len(POINTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=[mutant.name for mutant in MUTANTS])
def test_every_planted_bug_still_finds_its_place(mutant: Mutant) -> None:
    """`make mutants` takes long and is played seldom: a bug whose place has moved would not be missed until then."""
    source = (ROOT / mutant.file).read_text(encoding="utf-8")
    compile(planted(mutant, source), mutant.file, "exec")
    assert mutant.right != mutant.wrong
    named = [word for word in mutant.tests.split() if word.startswith("tests/")]
    assert named, "nothing is asked to notice it"
    assert all((ROOT / each).is_file() for each in named)


def test_planted_bugs_are_told_apart_by_their_names() -> None:
    """A survivor is reported by its name alone."""
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
