"""What a schedule's `config` means: when it fires."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from cronsim import CronSim, CronSimError

from bloxserver.errors import Unprocessable

MAX_CRON_LENGTH = 255
CATCH_UP = ("none", "last")


class Cron:
    """The firing times of a schedule's `config`; raises `Unprocessable` for one that cannot fire.

    Five fields, in the wall-clock time of the zone: at the end of summer time an hour that comes twice fires once,
    and what falls into the hour that is left out in spring fires right after it.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        check_schedule(config)
        self._expression: str = config["cron"]
        self._zone = ZoneInfo(config.get("timezone", "UTC"))

    def after(self, moment: datetime) -> Iterator[datetime]:
        """The firings after `moment`, in UTC."""
        return (fires.astimezone(UTC) for fires in CronSim(self._expression, moment.astimezone(self._zone)))

    def next_after(self, moment: datetime) -> datetime | None:
        """None for one that never fires again."""
        return next(self.after(moment), None)

    def last_before(self, moment: datetime) -> datetime | None:
        """The newest firing at or before `moment`."""
        just_after = (moment + timedelta(seconds=1)).astimezone(self._zone)
        fired = next(CronSim(self._expression, just_after, reverse=True), None)
        return None if fired is None else fired.astimezone(UTC)


def check_schedule(config: dict[str, Any]) -> None:
    """Raise `Unprocessable` unless `cron` has five fields that come to pass, and zone and catch-up are known."""
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


@lru_cache
def _zones() -> set[str]:
    """Read once: the names come from the file system."""
    return available_timezones()


def _fires(cron: str) -> bool:
    try:
        next(CronSim(cron, datetime.now(UTC)))
    except (CronSimError, StopIteration):
        return False
    return True


def upcoming(config: dict[str, Any], moment: datetime, count: int) -> list[datetime]:
    """The next firings, as if the flow ran."""
    return list(islice(Cron(config).after(moment), count))
