"""Small versions of the experiments that `make faults` plays whole: enough to notice when one of them breaks."""

from pathlib import Path

import pytest
from faults.figures import Ground
from faults.run import EXPERIMENTS, SqliteFiles, play_on
from postgresql import Postgresql

SCALES = {
    "load": 0.02,
    "kill": 0.03,
    "simulate": 0.02,
    "lies": 0.05,
    "slack_away": 0.05,
    "database_away": 0.1,
    "hostile": 0.01,
    "network": 0.05,
    "clocks": 0.05,
    "replicas": 0.03,
}
"""The model has a test of its own."""

SMALL = [(name, kind) for name, kinds in EXPERIMENTS for kind in kinds if name in SCALES]


@pytest.mark.parametrize(("name", "kind"), SMALL, ids=[f"{name}-{kind}" for name, kind in SMALL])
def test_no_promise_is_broken(name: str, kind: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Nothing is lost, nothing is done twice, and nothing is said that is not so, whatever is done to the bot."""
    server: Postgresql | None = request.getfixturevalue("postgresql") if kind == "postgresql" else None
    ground = Ground(
        folder=tmp_path,
        kind="postgresql" if server else "sqlite",
        new_database=server.create if server else SqliteFiles(tmp_path),
        scale=SCALES[name],
        seed=7,
    )
    figures = play_on(ground, name)
    assert not figures.violations, "\n".join(figures.violations)
    assert figures.requests
    assert figures.faults.total()
