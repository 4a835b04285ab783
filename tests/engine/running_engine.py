"""A running engine in a test, and requests that start flows, send executions and wait for their end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database, WakeReason, wake_engine_after_commit
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord
from bloxserver.settings import Settings

ENDED = {"success", "error", "timeout", "cancelled"}


@asynccontextmanager
async def running_engine(settings: Settings, database: Database, **changes: Any) -> AsyncIterator[Engine]:
    """An engine that may reach loopback; `changes` are settings that differ."""
    allowed = {"ssrf_allow_cidrs": (ip_network("127.0.0.0/8"),)}
    engine = Engine(settings.model_copy(update=allowed | changes), database, run_worker=True)
    await engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def eventually(client: httpx.AsyncClient, path: str, wanted: set[str]) -> dict[str, Any]:
    """The object at `path`, when its status is one of `wanted`."""
    async with asyncio.timeout(40):  # processes start slowly on a busy machine
        while True:
            body: dict[str, Any] = (await client.get(path)).json()
            if body["status"] in wanted:
                return body
            await asyncio.sleep(0.02)


async def started_flow(
    client: httpx.AsyncClient, organism: str | None, settled: str = "running", *, name: str = "A flow"
) -> str:
    """The path of a new flow that was started and now has the status `settled`."""
    created = await client.post("/api/v1/flows", json={"name": name, "organismYaml": organism})
    path = f"/api/v1/flows/{created.json()['id']}"
    assert (await client.post(f"{path}/start")).json()["status"] == "starting"
    await eventually(client, path, {settled})
    return path


async def accept(client: httpx.AsyncClient, path: str, payload: Any = None) -> str:
    """The path of an execution that was accepted."""
    accepted = await client.post(f"{path}/executions/run", json={"inputPayload": payload})
    assert accepted.status_code == 201, accepted.text
    return f"{path}/executions/{accepted.json()['id']}"


async def run(client: httpx.AsyncClient, path: str, payload: Any = None) -> dict[str, Any]:
    """An execution that has ended."""
    return await eventually(client, await accept(client, path, payload), ENDED)


async def end_delay(database: Database, execution: str) -> None:
    """Wait until the execution with this path is suspended, and then end its delays."""
    execution_id = UUID(execution.rpartition("/")[2])
    row, step = ExecutionRecord, ExecutionStepRecord
    is_suspended = row.id == execution_id, row.resume_at.is_not(None), row.lease.is_(None)
    resume = sa.update(row).where(*is_suspended).values(resume_at=now()).returning(row.id)
    waiting = step.execution_id == execution_id, step.status == StepStatus.WAITING
    async with asyncio.timeout(40):
        while True:
            async with database.transaction() as session:
                if (await session.execute(resume)).all():
                    await session.execute(sa.update(step).where(*waiting).values(completed_at=now()))
                    wake_engine_after_commit(session, WakeReason.EXECUTION)
                    return
            await asyncio.sleep(0.02)


async def steps_of(client: httpx.AsyncClient, execution: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await client.get(f"{execution}/steps")).json()["items"]
    return items
