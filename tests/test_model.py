"""A few of the histories that `make faults` compares with a model, on both databases."""

from pathlib import Path

from faults.figures import Ground, Kind
from faults.model import run

SCALE = 0.06


def test_store_and_workflow_do_what_the_model_says(database_url: str, tmp_path: Path) -> None:
    """A request may only be where an independent, much smaller account of it says that it can be."""
    kind: Kind = "sqlite" if database_url.startswith("sqlite") else "postgresql"
    figures = run(Ground(folder=tmp_path, kind=kind, new_database=lambda: database_url, scale=SCALE, seed=2))
    assert not figures.violations, "\n".join(figures.violations)
    assert figures.faults["write under a stale lease"], "no lease was ever taken over"
    assert figures.faults["approver taken off the list"], "everybody could always approve"
    assert "0 approved by two" not in figures.note.split(", "), "no order needed two approvals and got them"
    assert figures.requests >= 20
