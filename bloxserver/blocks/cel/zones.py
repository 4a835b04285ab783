"""Time zones by name, of the IANA database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from bloxserver.blocks.cel.values import EvaluationError, Run, in_range

STEPS_OF_LOADING = 5_000
"""A zone is read from a file."""
MAX_LOADED = 64
MAX_SHOWN = 64
NAME = re.compile(r"(?!localtime$|posix)[A-Za-z][\w+-]{0,31}(/[A-Za-z][\w+-]{0,31}){0,2}", re.ASCII)
"""Without the files that differ between servers."""

_loaded: dict[str, tzinfo] = {"UTC": UTC}


def zone_of(run: Run, name: str) -> tzinfo:
    """Return the time zone. Raises `EvaluationError` for an unknown name."""
    if known := _loaded.get(name):
        return known
    run.budget.consume(STEPS_OF_LOADING)
    return check_zone(name)


def check_zone(name: str) -> tzinfo:
    """Return the time zone. Raises `EvaluationError` for an unknown name."""
    if known := _loaded.get(name):
        return known
    try:
        zone = ZoneInfo(name) if NAME.fullmatch(name) else None
    except (ZoneInfoNotFoundError, ValueError, OSError):
        zone = None
    if zone is None:
        raise EvaluationError(f"{name[:MAX_SHOWN]!r} is not a time zone like Europe/Berlin")
    if len(_loaded) > MAX_LOADED:
        # The first one is UTC.
        _loaded.pop(next(name for name in _loaded if name != "UTC"), None)
    _loaded[name] = zone
    return zone


def local_time(run: Run, moment: datetime, zone: str) -> datetime:
    """Return the time in the zone."""
    known = zone_of(run, zone)
    local: datetime = in_range(lambda: moment.astimezone(known))
    return local


def from_local(local: datetime, zone: tzinfo) -> datetime:
    """Return the UTC time of a local time without a zone.

    If the clock omits the local time, it is moved forward by what the clock omits. If the clock repeats it, it is the
    first of both times.
    """
    moment: datetime = in_range(lambda: local.replace(tzinfo=zone).astimezone(UTC))
    return moment
