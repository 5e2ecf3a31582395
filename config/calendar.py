"""When something is due, and when it may happen: cron expressions and windows in a time zone. Pure; reads no clock.

Cron means what Debian's cron means, also on the days on which clocks are put forward or back: what falls into the hour
that does not exist is due right after it, what falls into the hour that comes twice is due once. Windows go by what a
clock on the wall shows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from config.errors import RequestError

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_MINUTES_A_DAY = 24 * 60
_WINDOW = re.compile(r"(?:(\S+)\s+)?(\d{2}):(\d{2})\s*-\s*(\d{2}):(\d{2})")
_LONGEST = 100

#: How far back the latest match is looked for, the nearest first: a 29th of February is eight years away at the most,
#: and only what asks for a weekday as well lies further back.
_BACK = tuple(timedelta(days=days) for days in (0.01, 1, 40, 400, 3000, 18_000))
#: From where and how far ahead an expression is tried.
_TRIED_FROM = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Window:
    """A time of day on some weekdays (0: Monday). One that crosses midnight belongs to the day on which it begins."""

    days: frozenset[int]
    #: Minutes since midnight; `end` is not in it.
    begin: int
    end: int

    def open(self, weekday: int, minute: int) -> bool:
        """Whether it is open then."""
        if self.begin < self.end:
            return weekday in self.days and self.begin <= minute < self.end
        return (weekday in self.days and minute >= self.begin) or ((weekday - 1) % 7 in self.days and minute < self.end)


@dataclass(frozen=True, slots=True)
class Calendar:
    """What was checked by the functions below, put together. Moments are in seconds since 1970."""

    cron: str
    windows: tuple[Window, ...]
    zone: tzinfo

    def due(self, now: float) -> float:
        """The latest match at or before `now`."""
        for back in _BACK:
            last = None
            for match in self._after(datetime.fromtimestamp(now, UTC) - back):
                if match > now:
                    break
                last = match
            if last is not None:
                return last
        raise AssertionError(f"{self.cron} has no match, which check_cron refuses")

    def next(self, now: float) -> float:
        """The first match after `now`."""
        return next(match for match in self._after(datetime.fromtimestamp(now, UTC)) if match > now)

    def open(self, now: float) -> bool:
        """Whether one of the windows is open; without any it always is."""
        local = datetime.fromtimestamp(now, self.zone)
        minute = local.hour * 60 + local.minute
        return not self.windows or any(window.open(local.weekday(), minute) for window in self.windows)

    def stays_open(self, now: float, most: float) -> float:
        """Seconds for which it stays open from `now` on, at most `most`; windows end with a minute."""
        minute = now - now % 60
        ends = (minute + 60 * number for number in range(int(most / 60) + 1))
        return next((max(0.0, end - now) for end in ends if not self.open(end)), most)

    def _after(self, moment: datetime) -> Iterator[float]:
        """Matches after `moment`, in order; where clocks are put back it may begin with earlier ones."""
        return (match.timestamp() for match in CronSim(self.cron, moment.astimezone(self.zone)))


def check_cron(text: object) -> str:
    """A cron expression of five fields. Raises RequestError, which says which field is wrong."""
    fields = "minute hour day-of-month month day-of-week"
    if not isinstance(text, str) or len(text) > _LONGEST or len(text.split()) != 5:
        raise RequestError(f"{text!r:.80} is no cron expression; it has five fields: {fields}.")
    try:
        first = next(CronSim(text, _TRIED_FROM), None)
    except CronSimError as error:
        field = str(error).removeprefix("Bad ")
        raise RequestError(f"{text!r} is no cron expression: its {field} is wrong (the fields are {fields}).") from None
    if first is None:
        raise RequestError(f"{text!r} never comes: there is no such day.")
    return " ".join(text.split())


def read_window(text: str) -> Window:
    """The window in `Sat,Sun 00:00-06:00` or `22:00-05:00` (every day). Raises RequestError."""
    match = _WINDOW.fullmatch(text.strip()) if len(text) <= _LONGEST else None
    if match is None:
        raise RequestError(
            f"{text!r:.80} is no window; write it like Sat,Sun 00:00-06:00, or 22:00-05:00 for every day."
        )
    begin, end = (_minute(text, int(match[at]), int(match[at + 1])) for at in (2, 4))
    if begin in {end, _MINUTES_A_DAY}:
        raise RequestError(f"{text!r} has no length; a whole day is 00:00-24:00.")
    return Window(_weekdays(text, match[1]) if match[1] else frozenset(range(7)), begin, end)


def read_zone(name: str) -> tzinfo:
    """The time zone of that name. Raises RequestError."""
    if name == "UTC":  # known without any tables
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; outside of the tables; a folder among them
        raise RequestError(
            f"{name!r:.80} is no time zone that this host knows; write it like Europe/Berlin, or UTC."
        ) from None


def _minute(text: str, hour: int, minute: int) -> int:
    if minute > 59 or hour * 60 + minute > _MINUTES_A_DAY:
        raise RequestError(f"{text!r} has no such time of day: {hour:02}:{minute:02}.")
    return hour * 60 + minute


def _weekdays(text: str, words: str) -> frozenset[int]:
    found: set[int] = set()
    for word in words.lower().split(","):
        first, dash, last = word.partition("-")
        if first not in _DAYS or (dash and last not in _DAYS):
            raise RequestError(f"{text!r} has no such days: {word!r}; write {', '.join(_DAYS).title()}, or Mon-Fri.")
        begin = _DAYS.index(first)
        length = (_DAYS.index(last) - begin) % 7 if dash else 0
        found |= {(begin + day) % 7 for day in range(length + 1)}
    return frozenset(found)
