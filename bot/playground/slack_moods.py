"""The moods of the playground's Slack: how it can fail, for one method or all, for a while or for good."""

import threading
from dataclasses import dataclass, field

EVERY_METHOD = "*"

#: what each mood does to a call
MOODS = {
    "away": "closes the connection without doing anything",
    "slow": "waits first, then does the work and answers",
    "http_500": "does nothing and answers 500 without JSON",
    "ratelimited": "does nothing and answers 429 with Retry-After",
    "fatal_error_after_doing": "does the work and answers that it failed",
    "drop_answer_after_doing": "does the work and closes the connection without an answer",
}
AN_ERROR = "error:"  #: followed by any of Slack's error names: does nothing and answers it


@dataclass(slots=True)
class Mood:
    name: str
    delay_s: float
    retry_after_s: int
    calls_left: int | None
    met: threading.Event = field(default_factory=threading.Event)  #: set when the first call meets it
    over: threading.Event = field(default_factory=threading.Event)  #: set when it is cleared


class Moods:
    """Which mood meets the next call of a method."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._moods: dict[str, Mood] = {}

    def set(self, name: str, *, method: str, times: int | None, delay_s: float, retry_after_s: int) -> Mood:
        if name not in MOODS and not name.startswith(AN_ERROR):
            raise ValueError(f"no such mood: {name}; there are {', '.join(MOODS)} and {AN_ERROR}<a name of Slack's>")
        with self._lock:
            self._end(method)
            mood = self._moods[method] = Mood(name, delay_s, retry_after_s, times)
            return mood

    def clear(self, method: str | None = None) -> None:
        """Back to normal; whoever waits because of a slow mood goes on at once."""
        with self._lock:
            for each in [method] if method else list(self._moods):
                self._end(each)

    def meet(self, method: str) -> Mood | None:
        """The mood for this call, counted; the method's own goes before the one for all."""
        with self._lock:
            for key in (method, EVERY_METHOD):
                mood = self._moods.get(key)
                if mood is not None and mood.calls_left != 0:
                    if mood.calls_left is not None:
                        mood.calls_left -= 1
                    mood.met.set()
                    return mood
            return None

    def _end(self, method: str) -> None:
        mood = self._moods.pop(method, None)
        if mood is not None:
            mood.over.set()
