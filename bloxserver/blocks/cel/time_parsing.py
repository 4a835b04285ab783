"""Times in the forms that mails, feeds, tables and programs use."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone, tzinfo

from bloxserver.blocks.cel.conversions import MAX_CHARACTERS
from bloxserver.blocks.cel.values import EvaluationError, Run, in_range
from bloxserver.blocks.cel.zones import from_local, zone_of

MILLISECONDS_FROM = 10**11
"""Larger numbers are milliseconds since 1970, not seconds: as seconds, they are after the year 5138."""
_CLOCK = r"(?P<hour>\d\d):(?P<minute>\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d{1,9}))?)?"
ISO = re.compile(
    rf"(?P<year>\d{{4}})-(?P<month>\d\d)-(?P<day>\d\d)"
    rf"(?:[Tt ]{_CLOCK} ?(?P<offset>[Zz]|[+-]\d\d(?::?\d\d)?)?)?",
    re.ASCII,
)
MAIL = re.compile(
    rf"(?:[A-Za-z]{{3}}, ?)?(?P<day>\d\d?) (?P<month>[A-Za-z]{{3}}) (?P<year>\d{{4}}|\d\d)"
    rf" {_CLOCK}(?: (?P<offset>[+-]\d{{4}}|[A-Za-z]{{1,3}}))?(?: \([A-Za-z]{{1,5}}\))?",
    re.ASCII,
)
UNIX = re.compile(r"-?\d{1,15}(\.\d{1,9})?", re.ASCII)
MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
OFFSETS = dict.fromkeys(("Z", "GMT", "UT", "UTC"), 0) | {
    "EDT": -4,
    "EST": -5,
    "CDT": -5,
    "CST": -6,
    "MDT": -6,
    "MST": -7,
    "PDT": -7,
    "PST": -8,
}
"""The zones of RFC 2822, in hours from UTC."""
CENTURY_FROM = 50
"""Two digits of a year from 50 on are of the 20th century, as in RFC 2822."""
FORMS = "2026-01-31, 2026-01-31T12:00:00Z, Sat, 31 Jan 2026 12:00:00 +0100 and seconds or milliseconds since 1970"


def parse_time(run: Run, given: str | int | float, zone: str | None = None) -> datetime:
    """Return the time that a text or number names. `zone` is for texts without a zone."""
    if isinstance(given, int | float):
        return _of_unix(given)
    text = given.strip() if len(given) <= MAX_CHARACTERS else ""
    if UNIX.fullmatch(text):
        return _of_unix(float(text))
    found = ISO.fullmatch(text) or MAIL.fullmatch(text)
    if found is None:
        raise EvaluationError(f"parse_time cannot read {given[:MAX_CHARACTERS]!r}; it reads {FORMS}")
    parts = found.groupdict()
    return from_local(_local(parts, text), _zone(run, parts, text, zone))


def _of_unix(number: int | float) -> datetime:
    divisor = 1000 if abs(number) >= MILLISECONDS_FROM else 1
    moment: datetime = in_range(lambda: datetime.fromtimestamp(0, UTC) + timedelta(seconds=number / divisor))
    return moment


def _local(parts: dict[str, str | None], text: str) -> datetime:
    year, month = int(parts["year"] or 0), (parts["month"] or "").lower()
    if len(parts["year"] or "") == 2:
        year += 1900 if year >= CENTURY_FROM else 2000
    number = MONTHS.index(month) + 1 if month in MONTHS else int(month) if month.isdigit() else 0
    hour, minute, second = (int(parts[name] or 0) for name in ("hour", "minute", "second"))
    microsecond = int((parts["fraction"] or "").ljust(6, "0")[:6])
    try:
        day = datetime(year, number, int(parts["day"] or 0))  # noqa: DTZ001
        return day.replace(hour=hour, minute=minute, second=second, microsecond=microsecond)
    except ValueError:
        raise EvaluationError(f"parse_time cannot read {text!r}; this time does not exist") from None


def _zone(run: Run, parts: dict[str, str | None], text: str, zone: str | None) -> tzinfo:
    offset = parts["offset"]
    if offset is None:
        if zone is None and parts["hour"] is not None:
            raise EvaluationError(f'{text!r} has no time zone; write parse_time(…, "Europe/Berlin")')
        return UTC if zone is None else zone_of(run, zone)
    if offset[0] in "+-":
        digits = offset[1:].replace(":", "").ljust(4, "0")
        hours, minutes = int(digits[:2]), int(digits[2:])
        if hours < 24 and minutes < 60:
            return timezone(timedelta(hours=hours, minutes=minutes) * (-1 if offset[0] == "-" else 1))
    elif offset.upper() in OFFSETS:
        return timezone(timedelta(hours=OFFSETS[offset.upper()]))
    raise EvaluationError(f"parse_time does not know the time zone of {text!r}")
