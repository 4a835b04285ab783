"""What the contract says of executions once an engine runs them."""

from __future__ import annotations

import json
from datetime import datetime

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.api.models.database import Database
from bloxserver.api.models.tables import ExecutionRecord, FlowRecord, FlowStatus, TriggerType, UserRecord
from bloxserver.engine.engine import Engine
from tests import factories
from tests.api.contract import API, UTC_TIME, covers, eventually, running_flow


@covers("organism.greets", "organism.greets-without-name", "executions.duration", "executions.picked-up-at")
async def test_the_default_organism_greets_whoever_comes(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await running_flow(live_client)
    greeted = [
        ({"name": "Ada"}, "Ada"),
        ('{"name": "Ada"}', "Ada"),
        (None, "World"),
        ("Grace", "Grace"),
        ({"other": 1}, "World"),
        ([1, 2], "World"),
    ]
    for payload, name in greeted:
        accepted = (await live_client.post(f"{path}/executions/run", json={"inputPayload": payload})).json()
        assert (accepted["status"], accepted["pickedUpAt"], accepted["durationMs"]) == ("running", None, None)
        ended = await eventually(live_client, f"{path}/executions/{accepted['id']}", {"success", "error", "timeout"})
        assert ended["status"] == "success"
        assert json.loads(ended["outputPayload"]) == {"message": f"Hello, {name}!"}
        times = [ended[member] for member in ("startedAt", "pickedUpAt", "completedAt")]
        assert times == sorted(times)
        assert all(UTC_TIME.fullmatch(time) for time in times)
        assert ended["startedAt"] == accepted["startedAt"]
        lasted = datetime.fromisoformat(ended["completedAt"]) - datetime.fromisoformat(ended["startedAt"])
        assert isinstance(ended["durationMs"], int)
        assert abs(lasted.total_seconds() * 1000 - ended["durationMs"]) < 1
    statistics = (await live_client.get(f"{path}/executions/stats")).json()
    assert (statistics["executionsTotal"], statistics["executionsSuccess"]) == (len(greeted), len(greeted))
    assert statistics["lastExecutedAt"] == accepted["startedAt"]


@covers("testers.rows-are-dispatched")
@pytest.mark.parametrize("definition", [None, "organism: ["])
async def test_rows_written_by_hand_are_run(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine, definition: str | None
) -> None:
    await live_client.get(f"{API}/me")
    async with live_database.transaction() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        yaml = {} if definition is None else {"organism_yaml": definition}
        flow = FlowRecord(user_id=user.id, name="By hand", status=FlowStatus.RUNNING, **yaml)
        session.add(flow)
        await session.flush()
        trigger = await factories.create_trigger(session, flow)
        execution = ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.WEBHOOK, trigger_id=trigger.id)
        session.add(execution)
    path = f"{API}/flows/{flow.id}"
    ended = await eventually(live_client, f"{path}/executions/{execution.id}", {"success", "error", "timeout"})
    assert ended["status"] == ("success" if definition is None else "error")
    assert bool(ended["errorMessage"]) is (definition is not None)
    received = await live_client.post(f"/webhooks/{trigger.webhook_token}", json={"name": "Ada"})
    other = await eventually(live_client, f"{path}/executions/{received.json()['executionId']}", {"success", "error"})
    assert other["status"] == ended["status"]
    listed = (await live_client.get(f"{path}/executions")).json()
    assert [item["id"] for item in listed["items"]] == [other["id"], ended["id"]]
    statistics = (await live_client.get(f"{path}/executions/stats")).json()
    assert statistics["executionsTotal"] == 2


@covers("testers.rows-are-dispatched", "flows.start.outcome", "flows.stop.outcome")
@pytest.mark.parametrize(("status", "after"), [(FlowStatus.STARTING, "running"), (FlowStatus.STOPPING, "stopped")])
async def test_statuses_written_by_hand_are_settled(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine, status: FlowStatus, after: str
) -> None:
    await live_client.get(f"{API}/me")
    async with live_database.transaction() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        flow = FlowRecord(user_id=user.id, name="By hand", status=status)
        session.add(flow)
    assert (await eventually(live_client, f"{API}/flows/{flow.id}", {after, "error"}))["status"] == after
