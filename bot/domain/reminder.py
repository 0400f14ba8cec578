"""When a request that waits for approval is brought to mind again: once, half-way to its expiry."""

from datetime import datetime, timedelta
from typing import Final, NamedTuple

from bot.domain.cancel_request import CancelRequest, State

LEAST_TIME_TO_LIVE: Final = timedelta(minutes=4)
"""With less, half of it is no time in which anybody could have forgotten."""


class Window(NamedTuple):
    """From when on the reminder is due, and from when on it would come too late."""

    begins_at: datetime
    ends_at: datetime


def reminder_window(request: CancelRequest) -> Window | None:
    """The third quarter of the time that people were given; None where there is nothing to be reminded of, or was."""
    opened_at, expires_at = request.opened_at, request.expires_at
    if request.state is not State.PENDING or request.reminded_at is not None or not opened_at or not expires_at:
        return None
    time_to_live = expires_at - opened_at
    if time_to_live < LEAST_TIME_TO_LIVE:
        return None
    return Window(begins_at=opened_at + time_to_live / 2, ends_at=opened_at + time_to_live * 3 / 4)
