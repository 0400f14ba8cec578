"""Turns at a place that Slack has limited."""

from bot.slack.pace import QUIET_S, SPACING_S, Pace

DESK = ("chat_postMessage", "C0DESK")
OTHER = ("chat_postMessage", "C0OTHER")


class Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_a_place_that_slack_has_not_limited_is_free() -> None:
    """Most of the time nobody has to wait for anybody."""
    pace = Pace(Clock())
    assert [pace.wait_s(DESK, who) for who in range(100)] == [0.0] * 100


def test_after_a_429_everybody_gets_a_turn_and_keeps_it() -> None:
    """Dozens are owed after an outage: one call a second, in the order in which they came, and no 429 in between."""
    clock = Clock()
    pace = Pace(clock)
    pace.limit(DESK, retry_after_s=3)
    waits = [pace.wait_s(DESK, who) for who in range(5)]
    assert [round(wait_s, 3) for wait_s in waits] == [round(3 + SPACING_S * turn, 3) for turn in range(5)]
    assert [round(pace.wait_s(DESK, who), 3) for who in range(5)] == [round(wait_s, 3) for wait_s in waits]
    for who, wait_s in enumerate(waits):
        clock.now_s = 1000.0 + wait_s + 0.001
        assert pace.wait_s(DESK, who) == 0.0
        assert pace.wait_s(DESK, f"after {who}") > 0


def test_other_places_do_not_wait() -> None:
    """Slack limits each channel and method by itself."""
    pace = Pace(Clock())
    pace.limit(DESK, retry_after_s=3)
    assert pace.wait_s(OTHER, 1) == 0.0


def test_another_429_moves_all_turns_and_keeps_their_order() -> None:
    """Somebody else may post to the channel, too."""
    clock = Clock()
    pace = Pace(clock)
    pace.limit(DESK, retry_after_s=1)
    first, second = pace.wait_s(DESK, "first"), pace.wait_s(DESK, "second")
    pace.limit(DESK, retry_after_s=30)
    assert pace.wait_s(DESK, "first") == 30
    assert round(pace.wait_s(DESK, "second"), 3) == round(30 + second - first, 3)
    assert pace.wait_s(DESK, "third") > pace.wait_s(DESK, "second")


def test_a_place_where_it_has_been_quiet_is_free_again() -> None:
    """And nothing is remembered of it."""
    clock = Clock()
    pace = Pace(clock)
    pace.limit(DESK, retry_after_s=1)
    pace.wait_s(DESK, "gone for ever")
    clock.now_s += 1 + SPACING_S + QUIET_S
    assert [pace.wait_s(DESK, who) for who in range(3)] == [0.0] * 3
