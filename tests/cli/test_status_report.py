"""The report of `bloxserver status`, as text and as JSON."""

from __future__ import annotations

import json
from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa

from bloxserver import __version__
from bloxserver.cli.status_report import format_lines, read_status, to_json
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionStatus, Tier, TriggerType, WorkerRecord
from bloxserver.settings import Settings
from tests.factories import create_execution, create_flow, create_trigger, create_user

SECOND = timedelta(seconds=1)


@pytest.fixture
async def installation(live_database: Database) -> None:
    """A live and a dead worker, executions of two tiers, and an overdue schedule."""
    moment = now()
    async with live_database.transaction() as session:
        flow = await create_flow(session, await create_user(session))
        pro = await create_flow(session, await create_user(session, tier=Tier.PRO))
        session.add(WorkerRecord(worker_id="w-living", version="1.2.3", last_heartbeat_at=moment, started_at=moment))
        session.add(WorkerRecord(worker_id="w-dead", last_heartbeat_at=moment - 60 * SECOND))
        await create_execution(session, flow, started_at=moment - 600 * SECOND)
        await create_execution(session, flow, resume_at=moment + 600 * SECOND)
        for worker in ("w-living", "w-living", "w-dead"):
            await create_execution(session, pro, lease=uuid4(), worker_id=worker)
        for status in (ExecutionStatus.SUCCESS, ExecutionStatus.SUCCESS, ExecutionStatus.TIMEOUT):
            await create_execution(session, pro, status=status, completed_at=moment)
        await create_trigger(
            session, flow, type=TriggerType.SCHEDULE, config={"cron": "* * * * *"}, next_fire_at=moment - 90 * SECOND
        )


@pytest.mark.usefixtures("installation")
async def test_report_as_text(live_settings: Settings, live_database: Database) -> None:
    lines = list(format_lines(await read_status(live_settings, live_database)))
    backend = "sqlite" if live_settings.uses_sqlite else "postgresql"
    assert lines[:3] == [f"bloxserver {__version__}", f"database   {backend}, schema current", "workers    1 alive"]
    assert lines[3].startswith("  w-living  version 1.2.3  since 20")
    assert lines[3].endswith(" ago  running 2")
    assert [line.split() for line in lines[4:9]] == [
        ["queue", "waiting", "running", "suspended", "oldest"],
        ["free", "1", "0", "1", "10", "min"],
        ["pro", "0", "3", "0", "-"],
        ["enterprise", "0", "0", "0", "-"],
        ["high_frequency", "0", "0", "0", "-"],
    ]
    assert lines[9] == "ended      2 success, 0 error, 1 timeout, 0 cancelled in the last hour"
    assert lines[10].startswith("schedules  1 armed, 1 due, the oldest 9")
    assert lines[11].split() == ["limits", "at", "limit", "near", "it"]
    assert [line.split() for line in lines[12:]] == [
        ["runs", "0", "0"],
        ["flows", "1", "0"],
        [lines[14].split()[0], "(free)", "1", "of", "1"],
        ["triggers_per_flow", "0", "0"],
        ["secrets", "0", "0"],
        ["api_keys", "0", "0"],
        ["stored_bytes", "0", "0"],
    ]


@pytest.mark.usefixtures("installation")
async def test_report_as_json(live_settings: Settings, live_database: Database) -> None:
    found = json.loads(json.dumps(to_json(await read_status(live_settings, live_database))))
    parts = {"workers", "queue", "endedInLastHour", "schedules", "limits"}
    assert found.keys() == {"version", "database", *parts, "problems"}
    (worker,) = found["workers"]
    assert (worker["name"], worker["version"], worker["running"]) == ("w-living", "1.2.3", 2)
    assert worker["startedAt"].endswith("+00:00")
    assert 600 <= found["queue"]["free"].pop("oldestSeconds") < 660
    assert found["queue"]["free"] == {"waiting": 1, "running": 0, "suspended": 1}
    assert found["queue"]["enterprise"] == {"waiting": 0, "running": 0, "suspended": 0, "oldestSeconds": None}
    assert found["endedInLastHour"] == {"success": 2, "error": 0, "timeout": 1, "cancelled": 0}
    limits = {limit.pop("name"): limit for limit in found["limits"]}
    assert list(limits) == ["runs", "flows", "triggers_per_flow", "secrets", "api_keys", "stored_bytes"]
    (user,) = limits["flows"].pop("users")
    assert user.pop("clerkId").startswith("user_")
    assert (user, limits["flows"]) == ({"tier": "free", "used": 1, "limit": 1}, {"atLimit": 1, "nearLimit": 0})
    assert limits["stored_bytes"] == {"atLimit": 0, "nearLimit": 0, "users": []}
    assert found["problems"] == []


@pytest.mark.usefixtures("installation")
async def test_waiting_executions_without_a_live_worker_are_a_problem(
    live_settings: Settings, live_database: Database
) -> None:
    async with live_database.transaction() as session:
        await session.execute(sa.update(WorkerRecord).values(last_heartbeat_at=now() - 60 * SECOND))
    found = await read_status(live_settings, live_database)
    assert found.problems == ["no live workers; 4 executions waiting"]
    assert list(format_lines(found))[-1] == "problem    no live workers; 4 executions waiting"


async def test_empty_queue_without_a_worker_is_no_problem(live_settings: Settings, live_database: Database) -> None:
    found = await read_status(live_settings, live_database)
    assert found.problems == []
    assert "workers    0 alive" in list(format_lines(found))
