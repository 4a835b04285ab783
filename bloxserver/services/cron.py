"""The firing times of a schedule's `config`."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice, takewhile
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from bloxserver.errors import Unprocessable

MAX_CRON_LENGTH = 255
MAX_CLOCK_CHANGE = timedelta(hours=3)
"""An upper bound on how far any zone sets its clocks back."""
CATCH_UP = ("none", "last")


class Cron:
    """The firing times of a schedule's `config`. Raises `Unprocessable` for a config that never fires.

    The five fields are local time in the config's zone. docs/schedules.md describes the nights in which clocks change.

    CronSim iterates over local times, and this class maps them to UTC. Given a zone, CronSim returns times in the past
    while an hour is repeated, and in Pacific/Chatham it may return the same times again and again.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        check_schedule(config)
        self._expression: str = config["cron"]
        self._zone = ZoneInfo(config.get("timezone", "UTC"))
        minute, hour, *_ = self._expression.split()
        self._is_interval = minute.startswith("*") or hour.startswith("*")

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The firings after `moment`, in UTC and in ascending order.

        Schedules are armed only with times from this method, so a firing time is never in the past.
        """
        latest = moment
        for fires in self._from(self._local(moment) - MAX_CLOCK_CHANGE):
            if fires > latest:
                latest = fires
                yield fires

    def next_after(self, moment: datetime) -> datetime | None:
        """The first firing after `moment`, or None if there is none within 50 years."""
        return next(self.after(moment), None)

    def last_before(self, moment: datetime) -> datetime | None:
        """The newest firing at or before `moment`."""
        backwards = CronSim(self._expression, self._local(moment) + timedelta(seconds=1), reverse=True)
        times = (fires for local in backwards for fires in reversed(self._times_of(local)))
        newest = next((fired for fired in times if fired <= moment), None)
        if newest is None:
            return None
        # While an hour is repeated, the order of local times differs from the order of UTC times.
        return max(takewhile(lambda fires: fires <= moment, self.after(newest)), default=newest)

    def _local(self, moment: datetime) -> datetime:
        return moment.astimezone(self._zone).replace(tzinfo=None)

    def _from(self, local_start: datetime) -> Iterator[datetime]:
        """The firings after a local time, in ascending order. Two local times may map to the same firing."""
        second_pass: deque[datetime] = deque()
        for local in CronSim(self._expression, local_start):
            times = self._times_of(local)
            while second_pass and times and second_pass[0] <= times[0]:
                yield second_pass.popleft()
            yield from times[:1]
            second_pass.extend(times[1:])
        yield from second_pass

    def _times_of(self, local: datetime) -> list[datetime]:
        """The UTC times of `local`: two in a repeated hour, none in an omitted one.

        An expression that is not an interval fires once: in the first pass of a repeated hour, or right after an
        omitted one.
        """
        times: list[datetime] = []
        while not times:
            both = {local.replace(tzinfo=self._zone, fold=fold).astimezone(UTC) for fold in (0, 1)}
            times = sorted(time for time in both if self._local(time) == local)
            if self._is_interval:
                return times
            local += timedelta(minutes=1)
        return times[:1]


def check_schedule(config: dict[str, Any]) -> None:
    """Raise `Unprocessable` unless `cron` has five fields and fires, and `timezone` and `catch_up` are known."""
    reasons = {}
    cron = config.get("cron")
    if not isinstance(cron, str):
        reasons["body.config.cron"] = "A schedule needs a cron expression of five fields"
    elif len(cron) > MAX_CRON_LENGTH or len(cron.split()) != 5 or not _fires(cron):
        reasons["body.config.cron"] = "Not a valid cron expression of five fields"
    zone = config.get("timezone", "UTC")
    if not isinstance(zone, str) or zone not in _zones():
        reasons["body.config.timezone"] = "Not the name of a time zone"
    if "catch_up" in config and config["catch_up"] not in CATCH_UP:
        reasons["body.config.catch_up"] = f"Must be one of: {', '.join(CATCH_UP)}"
    if reasons:
        raise Unprocessable(reasons)


def schedule_problem(config: object) -> str | None:
    """Why a stored config cannot fire until its owner changes it; None if it can."""
    if not isinstance(config, dict):
        return "config: Must be an object"
    try:
        check_schedule(config)
    except Unprocessable as error:
        return "; ".join(f"{place.removeprefix('body.')}: {reason}" for place, reason in (error.details or {}).items())
    for name in ("payload", "target"):
        if not _is_storable(config.get(name)):
            return f"config.{name}: Must not contain NUL or half a surrogate pair"
    return None


def _is_storable(value: object) -> bool:
    """Whether text columns can store the value. JSON escapes NUL, text columns reject it."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in text


@lru_cache
def _zones() -> set[str]:
    """The known time zones. Cached, since the names are read from the file system."""
    return available_timezones()


def _fires(cron: str) -> bool:
    try:
        next(CronSim(cron, datetime.now(UTC)))
    except (CronSimError, StopIteration):
        return False
    return True


def upcoming(config: dict[str, Any], moment: datetime, count: int) -> list[datetime]:
    """The next `count` firings after `moment`, whether or not the flow runs."""
    return list(islice(Cron(config).after(moment), count))
