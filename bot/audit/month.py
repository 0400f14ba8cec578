"""A month: its days, and its first and last moment, in somebody's time zone."""

import re
from bisect import bisect_right
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Final
from zoneinfo import ZoneInfo

_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])", re.ASCII)


@dataclass(frozen=True, kw_only=True, slots=True)
class Month:
    """From its first moment to that of the next month, in the days of a time zone."""

    name: str  #: 2026-10
    zone: ZoneInfo
    days: tuple[date, ...]
    begins: tuple[datetime, ...]  #: of each day, and of the one after the last; in UTC

    @property
    def begins_at(self) -> datetime:
        return self.begins[0]

    @property
    def ends_at(self) -> datetime:
        return self.begins[-1]

    def day_of(self, moment: datetime) -> int:
        """Which of the `days` it is."""
        return min(max(bisect_right(self.begins, moment) - 1, 0), len(self.days) - 1)

    def local(self, moment: datetime) -> datetime:
        return moment.astimezone(self.zone)


def parse_month(name: str, zone: ZoneInfo) -> Month:
    """Raises ValueError, which says how a month is written."""
    found = _MONTH.fullmatch(name)
    year, month = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 2000 <= year < 9999:  # noqa: PLR2004 - there was no audit before, and time zones fail at the end of time
        raise ValueError("write a month such as 2026-10")
    first = date(year, month, 1)
    next_month = date(year + month // 12, month % 12 + 1, 1)
    days = tuple(first + timedelta(days=count) for count in range((next_month - first).days))
    midnights = (datetime(day.year, day.month, day.day, tzinfo=zone) for day in (*days, next_month))
    return Month(name=name, zone=zone, days=days, begins=tuple(each.astimezone(UTC) for each in midnights))
