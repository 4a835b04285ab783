"""Short runs of the scenarios. `make chaos` runs them at length and prints the results."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bloxserver.models.database import Database
from bloxserver.settings import Settings
from tests.chaos import frozen, hostile, kill, network, postgres, rolling, schedules
from tests.chaos.processes import QUICK, Timing
from tests.chaos.report import Report
from tests.chaos.workspace import Workspace, private_workspace


@pytest.fixture
def workspace(live_settings: Settings, live_database: Database, tmp_path: Path) -> Workspace:
    return Workspace(live_settings.database_url, tmp_path)


@pytest.fixture
def shared_workspace(workspace: Workspace) -> Workspace:
    """The workspace for tests with several workers."""
    if workspace.backend == "sqlite":
        pytest.skip("SQLite has one process")
    return workspace


def assert_no_violations(report: Report) -> None:
    assert report.violations == [], str(report)


async def test_kill(workspace: Workspace) -> None:
    report = await kill.kill(
        workspace, executions=45, every=15, per_second=20, timing=QUICK, seed=1, replicas=1, workers=1
    )
    assert_no_violations(report)


async def test_rolling(workspace: Workspace) -> None:
    assert_no_violations(await rolling.rolling(workspace, rounds=1, per_second=20, timing=QUICK, workers=1))


async def test_schedules(workspace: Workspace) -> None:
    assert_no_violations(await schedules.schedules_made_due(workspace, schedules=20, rounds=1, timing=QUICK, seed=1))


async def test_frozen(shared_workspace: Workspace) -> None:
    report = await frozen.frozen(shared_workspace, executions=10, timing=QUICK)
    assert_no_violations(report)
    assert report.measurements["recoveries"] == report.measurements["interrupted steps repeated"] == 10


async def test_network(shared_workspace: Workspace) -> None:
    report = await network.network(shared_workspace, rounds=1, seconds=1, per_second=20, timing=QUICK, seed=1)
    assert_no_violations(report)


async def test_hostile(shared_workspace: Workspace) -> None:
    timing = Timing(heartbeat=0.5, heartbeat_timeout=3, poll_interval=0.3, shutdown_grace=0.5)
    assert_no_violations(await hostile.hostile(shared_workspace, how="sleeps", executions=1, timing=timing))


def test_postgres() -> None:
    with private_workspace("postgresql") as workspace:
        report = asyncio.run(
            postgres.postgres(
                workspace, stops=1, down=1, between=1, per_second=20, timing=QUICK, seed=1, replicas=1, workers=1
            )
        )
    assert_no_violations(report)
