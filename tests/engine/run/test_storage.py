"""The limit of stored bytes for executions that run."""

from __future__ import annotations

from uuid import UUID

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.engine.engine import Engine
from bloxserver.engine.run.storage import RECHECK_CHARACTERS, StorageCheck
from bloxserver.errors import LimitReached
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, StoredBytesRecord, TriggerType, UserRecord
from tests.engine.queue_claims import take
from tests.engine.run.test_runner import eventually, run, started_flow
from tests.factories import create_execution, create_flow, create_user

ECHO = "organism: {name: echo}\nlisteners:\n  - {name: one, description: d, handler: echo}\n"


async def set_limit(database: Database, limit: int, stored: int) -> None:
    """Set the user's limit and, with a row by hand, the bytes that the user stores."""
    async with database.transaction() as session:
        user_id = await session.scalar(sa.select(UserRecord.id))
        await session.execute(sa.update(UserRecord).values(limits={"stored_bytes": limit}))
        counted = await session.scalar(sa.select(sa.func.sum(StoredBytesRecord.bytes))) or 0
        values = {"user_id": user_id, "source": "executions", "slot": -1, "bytes": stored - int(counted)}
        await session.execute(sa.insert(StoredBytesRecord).values(values))


async def test_accepted_execution_ends_although_it_exceeds_the_limit(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine
) -> None:
    path = await started_flow(live_client, ECHO, "running")
    await set_limit(live_database, 100_000, 99_999)
    assert (await run(live_client, path, "x" * 1_000))["status"] == "success"
    refused = await live_client.post(f"{path}/executions/run")
    assert (refused.status_code, refused.json()["code"]) == (403, "stored_bytes_limit_reached")


@pytest.mark.parametrize(("stored", "status"), [(109_000, "success"), (110_000, "error")])
async def test_row_by_hand_runs_above_the_limit_and_fails_above_the_allowance(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine, stored: int, status: str
) -> None:
    path = await started_flow(live_client, ECHO, "running")
    await set_limit(live_database, 100_000, stored - 500)
    execution = ExecutionRecord(flow_id=UUID(path.rpartition("/")[2]), trigger_type=TriggerType.MANUAL)
    async with live_database.transaction() as session:
        session.add(execution)
    ended = await eventually(live_client, f"{path}/executions/{execution.id}", {"success", "error"})
    assert ended["status"] == status
    if status == "error":
        assert ended["errorMessage"].startswith("The limit of 100000 stored bytes is reached (in use: 11")


async def test_execution_that_stores_much_notices_what_others_store(live_database: Database) -> None:
    """It reads the stored bytes again after each MiB: another execution of the user has stored them meanwhile."""
    async with live_database.sessions() as session:
        flow = await create_flow(session, await create_user(session))
        execution = await create_execution(session, flow)
    await set_limit(live_database, 10_000_000, 0)
    check = StorageCheck(live_database, await take(live_database, execution))
    await check.before_saving(RECHECK_CHARACTERS - 1)
    async with live_database.transaction() as session:
        session.add(ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.MANUAL, output_payload="x" * 11_000_000))
    await check.before_saving(1)
    with pytest.raises(LimitReached, match=r"The limit of 10000000 stored bytes is reached \(in use: 110"):
        await check.before_saving(0)


async def test_execution_that_exceeds_the_limit_alone_fails(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine
) -> None:
    large = "x" * 700_000
    listeners = "".join(
        f"  - {{name: l{number}, description: d, handler: echo, peers: [l{number + 1}]}}\n" for number in range(4)
    )
    organism = f"organism: {{name: chain}}\nlisteners:\n{listeners}  - {{name: l4, description: d, handler: echo}}\n"
    path = await started_flow(live_client, organism, "running")
    await set_limit(live_database, 2_500_000, 0)
    ended = await run(live_client, path, large)
    assert (ended["status"], ended["outputPayload"]) == ("error", None)
    assert ended["errorMessage"].startswith("The limit of 2500000 stored bytes is reached")
