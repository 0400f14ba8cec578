"""Turns: one call at a time to a place that Slack has limited.

Slack takes about one message a second to a channel (https://docs.slack.dev/apis/web-api/rate-limits). After an outage
dozens are owed; if each of them tried for itself, most would be answered 429, and none in its order.
"""

import threading
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Final

SPACING_S: Final = 1.1
QUIET_S: Final = 60.0
"""A place where nobody has had a turn for so long is taken for unlimited again."""

Place = tuple[str, str]
"""The method and the channel."""


@dataclass(slots=True)
class _Line:
    """Who waits at one place, and when their turns are."""

    last_turn: float
    turns: dict[Hashable, float] = field(default_factory=dict)


class Pace:
    """Who may call next, at each place that has answered 429. A turn is kept for who was sent away."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._lines: dict[Place, _Line] = {}

    def wait_s(self, place: Place, who: Hashable) -> float:
        """Seconds until this one's turn; 0 takes it."""
        with self._lock:
            now = self._monotonic()
            line = self._lines.get(place)
            if line is None:
                return 0.0
            if line.last_turn + QUIET_S < now:
                del self._lines[place]
                return 0.0
            turn = line.turns.pop(who, None)
            if turn is None:
                turn = line.last_turn = max(line.last_turn + SPACING_S, now)
            if turn <= now:
                return 0.0
            line.turns[who] = turn
            return turn - now

    def limit(self, place: Place, *, retry_after_s: float) -> None:
        """Slack has said when to come back: everybody's turn is after that, in the order that they had."""
        with self._lock:
            free_at = self._monotonic() + retry_after_s
            line = self._lines.setdefault(place, _Line(free_at - SPACING_S))
            later_s = max(0.0, free_at - min(line.turns.values(), default=free_at))
            line.turns = {who: turn + later_s for who, turn in line.turns.items()}
            line.last_turn = max(line.last_turn + later_s, free_at - SPACING_S)
