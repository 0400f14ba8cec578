"""Random histories of commands, clicks, moods, crashes and clock jumps: what must hold, holds in every one."""

from pathlib import Path

import pytest
from postgresql import Postgresql
from simulation import World, simulate

from bot.domain.cancel_request import State

WORLDS_ON_SQLITE = 44
WORLDS_ON_POSTGRESQL = 6


@pytest.mark.parametrize("seed", range(WORLDS_ON_SQLITE))
def test_no_history_breaks_a_promise(seed: int, tmp_path: Path) -> None:
    """Money moves by these rules: the audit announces each DELETE, and the verdict is what the exchange shows."""
    simulate(seed, f"sqlite:///{tmp_path / 'world.db'}")


@pytest.mark.parametrize("seed", range(1000, 1000 + WORLDS_ON_POSTGRESQL))
def test_no_history_breaks_a_promise_on_postgresql(seed: int, postgresql: Postgresql) -> None:
    """Row locks, time-outs and types differ there; the promises do not."""
    simulate(seed, postgresql.create())


def test_the_histories_reach_every_state(tmp_path: Path) -> None:
    """A history that never goes somewhere proves nothing about it."""
    unvisited = set(State)
    for seed in range(WORLDS_ON_SQLITE):
        world = World(seed, f"sqlite:///{tmp_path / f'{seed}.db'}")
        try:
            world.run()
            unvisited -= world.visited()
        finally:
            world.close()
        if not unvisited:
            return
    pytest.fail(f"nothing leads to {unvisited}")


def test_a_seed_makes_the_same_world_again(tmp_path: Path) -> None:
    """A failing seed must replay, or nobody can mend what it found."""
    stories = []
    for attempt in range(2):
        world = simulate(7, f"sqlite:///{tmp_path / f'{attempt}.db'}")
        stories.append((world.faults, world.now))
    assert stories[0] == stories[1]
