"""Five-field cron expressions: parsing, the next time, and systemd's calendar. Pure arithmetic.

Semantics are those of crontab(5): where day of month and day of week are both restricted, either
will do. A local time that a clock change skips runs at the first moment after the gap; one that it
repeats runs once, the first time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from tokenmill.schemas.errors import JobError

_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_DAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
_ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_PART = re.compile(r"(\*|[a-z0-9]+)(?:-([a-z0-9]+))?(?:/(\d+))?")
# February 29 comes at the latest after eight years (1896 to 1904)
_HORIZON_DAYS = 8 * 366 + 1
_SYSTEMD_DAYS = ("Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat")


@dataclass(frozen=True, kw_only=True, slots=True)
class Cron:
    """Sorted values of each field; weekdays count from Sunday = 0."""

    text: str
    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    days: tuple[int, ...]
    months: tuple[int, ...]
    weekdays: tuple[int, ...]
    any_day: bool
    any_weekday: bool

    @property
    def times_a_day(self) -> int:
        return len(self.minutes) * len(self.hours)

    def on(self, day: date) -> bool:
        if day.month not in self.months:
            return False
        of_month, of_week = day.day in self.days, (day.isoweekday() % 7) in self.weekdays
        if self.any_day or self.any_weekday:
            return of_month and of_week
        return of_month or of_week

    def after(self, moment: datetime, zone: ZoneInfo) -> datetime:
        """The first time later than `moment` (aware), in `zone`. Raises JobError for never."""
        first = moment.astimezone(zone).date()
        for n in range(-1, _HORIZON_DAYS):  # yesterday's may have been moved past midnight
            day = first + timedelta(days=n)
            if self.on(day):
                for found in self._times(day, zone):
                    if found > moment:
                        return found
        raise JobError(f"{self.text!r} never comes", remedy="such as '0 2 * * *'")

    def _times(self, day: date, zone: ZoneInfo) -> Iterator[datetime]:
        for hour in self.hours:
            for minute in self.minutes:
                local = datetime.combine(day, time(hour, minute), zone)
                yield _existing(local, zone)


def _existing(local: datetime, zone: ZoneInfo) -> datetime:
    """`local`, or the end of the gap that it falls into."""
    back = local.astimezone(UTC).astimezone(zone)
    if back.replace(tzinfo=None) == local.replace(tzinfo=None):
        return local
    low, high = local - timedelta(days=1), local + timedelta(days=1)
    low, high = low.astimezone(UTC), high.astimezone(UTC)
    before = low.astimezone(zone).utcoffset()
    while high - low > timedelta(seconds=1):  # the moment at which the offset changes
        middle = low + (high - low) / 2
        if middle.astimezone(zone).utcoffset() == before:
            low = middle
        else:
            high = middle
    return high.replace(microsecond=0).astimezone(zone)


def parse_cron(text: str) -> Cron:
    """Raises JobError that names the field."""
    fields = _ALIASES.get(text.strip().lower(), text).lower().split()
    if len(fields) != 5:
        raise JobError(
            f"{text!r} is no cron expression",
            why=f"it has {len(fields)} fields, not minute, hour, day, month and weekday",
            remedy="such as '0 2 * * *': every night at two",
        )
    minutes = _field("minute", fields[0], 0, 59)
    hours = _field("hour", fields[1], 0, 23)
    days = _field("day of month", fields[2], 1, 31)
    months = _field("month", fields[3], 1, 12, _MONTHS, 1)
    weekdays = _field("weekday", fields[4], 0, 7, _DAYS, 0)
    return Cron(
        text=" ".join(fields),
        minutes=minutes,
        hours=hours,
        days=days,
        months=months,
        weekdays=tuple(sorted({day % 7 for day in weekdays})),
        any_day=fields[2].startswith("*"),
        any_weekday=fields[4].startswith("*"),
    )


def _field(
    name: str, text: str, low: int, high: int, names: list[str] | None = None, first: int = 0
) -> tuple[int, ...]:
    def number(word: str) -> int:
        if names and word[:3] in names and len(word) >= 3:
            return names.index(word[:3]) + first
        if word.isdigit() and low <= int(word) <= high:
            return int(word)
        raise _wrong(name, text, f"{word!r} is not between {low} and {high}")

    found: set[int] = set()
    for part in text.split(","):
        match = _PART.fullmatch(part)
        if match is None:
            raise _wrong(name, text, f"{part!r} is no number, range or step")
        start, end, step = match.groups()
        if start == "*" and end:
            raise _wrong(name, text, f"{part!r} is no range")
        a = low if start == "*" else number(start)
        b = high if start == "*" or (step and not end) else number(end) if end else a
        if a > b:
            raise _wrong(name, text, f"{part!r} runs backwards")
        if step is not None and int(step) == 0:
            raise _wrong(name, text, "a step of 0")
        found.update(range(a, b + 1, int(step or 1)))
    return tuple(sorted(found))


def _wrong(name: str, text: str, why: str) -> JobError:
    return JobError(f"the {name} {text!r} of the cron expression is wrong", why=why)


def zone_of(name: str) -> ZoneInfo:
    """Raises JobError."""
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        raise JobError(
            f"there is no time zone {name!r}", remedy="an IANA name such as Europe/Zurich or UTC"
        ) from None


def on_calendar(cron: Cron, zone: str) -> list[str]:
    """The same as systemd's OnCalendar= lines: two where either kind of day will do."""
    clock = f"{_all(cron.hours, 24, '*')}:{_all(cron.minutes, 60, '*')}:00 {zone}"
    months = _all(cron.months, 12, "*")
    by_week = ",".join(_SYSTEMD_DAYS[day] for day in cron.weekdays)
    by_month = _all(cron.days, 31, "*")
    week = f"{by_week} " if len(cron.weekdays) < 7 else ""
    if cron.any_day or cron.any_weekday:
        return [f"{week}*-{months}-{by_month} {clock}"]
    return [f"*-{months}-{by_month} {clock}", f"{week}*-{months}-* {clock}"]


def _all(values: tuple[int, ...], count: int, every: str) -> str:
    return every if len(values) == count else ",".join(f"{v:02d}" for v in values)
