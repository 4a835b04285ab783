"""The functions of timestamps: their parts, their texts and calendar arithmetic."""

from __future__ import annotations

import re
from calendar import monthrange
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from math import trunc

from bloxserver.blocks.cel.number_functions import whole
from bloxserver.blocks.cel.values import EvaluationError, Run, in_range
from bloxserver.blocks.cel.zones import from_local, local_time, zone_of

MAX_FORMAT = 200
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STEPS_OF_DIRECTIVE = 6
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    *("January", "February", "March", "April", "May", "June"),
    *("July", "August", "September", "October", "November", "December"),
)
DIRECTIVES: dict[str, Callable[[datetime], str]] = {
    "Y": lambda t: f"{t.year:04}",
    "y": lambda t: f"{t.year % 100:02}",
    "m": lambda t: f"{t.month:02}",
    "B": lambda t: MONTHS[t.month - 1],
    "b": lambda t: MONTHS[t.month - 1][:3],
    "d": lambda t: f"{t.day:02}",
    "e": lambda t: str(t.day),
    "j": lambda t: f"{t.timetuple().tm_yday:03}",
    "A": lambda t: DAYS[t.weekday()],
    "a": lambda t: DAYS[t.weekday()][:3],
    "u": lambda t: str(t.isoweekday()),
    "V": lambda t: f"{t.isocalendar().week:02}",
    "G": lambda t: f"{t.isocalendar().year:04}",
    "H": lambda t: f"{t.hour:02}",
    "I": lambda t: f"{(t.hour - 1) % 12 + 1:02}",
    "p": lambda t: "AM" if t.hour < 12 else "PM",
    "M": lambda t: f"{t.minute:02}",
    "S": lambda t: f"{t.second:02}",
    "f": lambda t: f"{t.microsecond:06}",
    "z": lambda t: _offset(t),
    "Z": lambda t: t.tzname() or "",
    "s": lambda t: str((t - EPOCH) // timedelta(seconds=1)),
    "%": lambda t: "%",
}
"""Those of strftime whose text is the same on every platform, in English."""
DIRECTIVE = re.compile("%(.?)", re.DOTALL)
SPANS = {"second": 1, "minute": 60, "hour": 3600}
"""The units of a fixed length, in seconds."""
DAYS_OF = {"day": 1, "week": 7}
MONTHS_OF = {"month": 1, "year": 12}
UNITS = (*SPANS, *DAYS_OF, *MONTHS_OF)


def timestamp_part(of: Callable[[datetime], int]) -> Callable[..., int]:
    """Return a function for a part of a timestamp, in a time zone."""
    return lambda run, moment, zone="UTC": of(local_time(run, moment, zone))


def time_part(of: Callable[[datetime], int], unit: float) -> Callable[..., int]:
    """Return a function for a part of a timestamp in a time zone, or for a whole duration in `unit` seconds."""

    def part(run: Run, value: datetime | timedelta, zone: str = "UTC") -> int:
        if isinstance(value, timedelta):
            return trunc(value.total_seconds() / unit)
        return of(local_time(run, value, zone))

    return part


def format_time(run: Run, moment: datetime, form: str, zone: str = "UTC") -> str:
    """Write a time as `form` says, in English."""
    check_format(form)
    run.budget.consume(STEPS_OF_DIRECTIVE * form.count("%"))
    local = local_time(run, moment, zone)
    return DIRECTIVE.sub(lambda found: DIRECTIVES[found[1]](local), form)


def check_format(form: str) -> None:
    """Raises `EvaluationError`."""
    if len(form) > MAX_FORMAT:
        raise EvaluationError(f"format_time requires a format of at most {MAX_FORMAT} characters")
    for directive in DIRECTIVE.findall(form):
        if directive not in DIRECTIVES:
            known = " ".join(f"%{letter}" for letter in DIRECTIVES)
            raise EvaluationError(f"format_time does not know {'%' + directive!r}; it knows {known}")


def in_zone(run: Run, moment: datetime, zone: str) -> str:
    """Write a time in RFC 3339 with the zone's offset."""
    local = local_time(run, moment, zone)
    return local.replace(tzinfo=None).isoformat() + _offset(local, ":")


def add_time(run: Run, moment: datetime, amount: int | float, unit: str, zone: str = "UTC") -> datetime:
    """Add an integral number of units. Days and longer units are those of the zone's calendar: the local time stays,
    and a day that the month does not have becomes its last day.
    """
    count, name = whole("add_time", amount), check_unit(unit)
    if name in SPANS:
        moved: datetime = in_range(lambda: moment + timedelta(seconds=count * SPANS[name]))
        return moved
    known = zone_of(run, zone)
    if count == 0:
        return moment
    local = local_time(run, moment, zone).replace(tzinfo=None, fold=0)
    return from_local(in_range(lambda: _later(local, count, name)), known)


def check_unit(unit: str) -> str:
    """Return the name of a unit in the singular. Raises `EvaluationError`."""
    name = unit.removesuffix("s")
    if name not in UNITS:
        raise EvaluationError(
            f"add_time does not know {unit[:20]!r}; the units are {', '.join(f'{n}s' for n in UNITS)}"
        )
    return name


def _later(local: datetime, count: int, unit: str) -> datetime:
    if unit in DAYS_OF:
        return local + timedelta(days=count * DAYS_OF[unit])
    year, month = divmod(local.year * 12 + local.month - 1 + count * MONTHS_OF[unit], 12)
    # `replace` checks the year, and monthrange does not.
    first = local.replace(year=year, month=month + 1, day=1)
    return first.replace(day=min(local.day, monthrange(year, month + 1)[1]))


def _offset(local: datetime, separator: str = "") -> str:
    minutes = (local.utcoffset() or timedelta()) // timedelta(minutes=1)
    return f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02}{separator}{abs(minutes) % 60:02}"
