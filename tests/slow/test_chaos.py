"""Short runs of the scenarios. `make chaos` runs them at length and prints the results."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.chaos import frozen, hostile, kill, network, postgres, rolling, schedules
from tests.chaos.place import Place, private_place
from tests.chaos.processes import QUICK, Timing
from tests.chaos.report import Report


@pytest.fixture
def place(live_settings: Settings, live_database: Database, tmp_path: Path) -> Place:
    return Place(live_settings.database_url, tmp_path)


@pytest.fixture
def shared_place(place: Place) -> Place:
    """For what takes several processes that work."""
    if place.backend == "sqlite":
        pytest.skip("SQLite has one process")
    return place


def assert_unbroken(report: Report) -> None:
    assert report.violations == [], str(report)


async def test_kill(place: Place) -> None:
    report = await kill.kill(place, executions=45, every=15, per_second=20, timing=QUICK, seed=1, replicas=1, workers=1)
    assert_unbroken(report)


async def test_rolling(place: Place) -> None:
    assert_unbroken(await rolling.rolling(place, rounds=1, per_second=20, timing=QUICK, workers=1))


async def test_schedules(place: Place) -> None:
    assert_unbroken(await schedules.schedules_made_due(place, schedules=20, rounds=1, timing=QUICK, seed=1))


async def test_frozen(shared_place: Place) -> None:
    report = await frozen.frozen(shared_place, executions=10, timing=QUICK)
    assert_unbroken(report)
    assert report.figures["take-overs"] == report.figures["interrupted steps repeated"] == 10


async def test_network(shared_place: Place) -> None:
    report = await network.network(shared_place, rounds=1, seconds=1, per_second=20, timing=QUICK, seed=1)
    assert_unbroken(report)


async def test_hostile(shared_place: Place) -> None:
    timing = Timing(heartbeat=0.5, dead_after=3, sweep=0.3, drain=0.5)
    assert_unbroken(await hostile.hostile(shared_place, how="sleeps", executions=1, timing=timing))


def test_postgres() -> None:
    with private_place("postgresql") as place:
        report = asyncio.run(
            postgres.postgres(
                place, stops=1, down=1, between=1, per_second=20, timing=QUICK, seed=1, replicas=1, workers=1
            )
        )
    assert_unbroken(report)
