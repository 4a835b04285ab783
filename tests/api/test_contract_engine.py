"""Statements of the contract about executions that an engine runs."""

from __future__ import annotations

import json
from datetime import datetime

import httpx
import sqlalchemy as sa

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowRecord, FlowStatus, TriggerRecord, TriggerType, UserRecord
from tests.api.contract import API, UTC_TIME, covers, eventually, path_of, running_flow


@covers("organism.greets", "organism.greets-without-name", "executions.duration", "executions.picked-up-at")
async def test_default_organism_greets_the_name_in_the_payload(live_client: httpx.AsyncClient, engine: Engine) -> None:
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


@covers("testers.rows-are-dispatched", "flows.start.outcome", "flows.stop.outcome")
async def test_rows_written_to_the_database_are_run_and_reconciled(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine
) -> None:
    await live_client.get(f"{API}/me")
    async with live_database.transaction() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        flow = FlowRecord(user_id=user.id, name="By hand", status=FlowStatus.RUNNING)
        broken = FlowRecord(user_id=user.id, name="By hand", status=FlowStatus.RUNNING, organism_yaml="organism: [")
        starting = FlowRecord(user_id=user.id, name="By hand", status=FlowStatus.STARTING)
        stopping = FlowRecord(user_id=user.id, name="By hand", status=FlowStatus.STOPPING)
        session.add_all([flow, broken, starting, stopping])
        await session.flush()
        trigger = TriggerRecord(flow_id=flow.id, type=TriggerType.WEBHOOK, name="By hand", webhook_token="by-hand")
        session.add(trigger)
        await session.flush()
        execution = ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.WEBHOOK, trigger_id=trigger.id)
        failing = ExecutionRecord(flow_id=broken.id, trigger_type=TriggerType.MANUAL)
        session.add_all([execution, failing])
    assert (await eventually(live_client, path_of(starting), {"running", "error"}))["status"] == "running"
    assert (await eventually(live_client, path_of(stopping), {"stopped", "error"}))["status"] == "stopped"
    ended = await eventually(live_client, f"{path_of(flow)}/executions/{execution.id}", {"success", "error"})
    assert (ended["status"], ended["errorMessage"]) == ("success", None)
    failed = await eventually(live_client, f"{path_of(broken)}/executions/{failing.id}", {"success", "error"})
    assert (failed["status"], bool(failed["errorMessage"])) == ("error", True)
    received = (await live_client.post("/webhooks/by-hand", json={"name": "Ada"})).json()
    other = await eventually(live_client, f"{path_of(flow)}/executions/{received['executionId']}", {"success", "error"})
    assert json.loads(other["outputPayload"]) == {"message": "Hello, Ada!"}
    listed = (await live_client.get(f"{path_of(flow)}/executions")).json()
    assert [item["id"] for item in listed["items"]] == [other["id"], ended["id"]]
    statistics = (await live_client.get(f"{path_of(flow)}/executions/stats")).json()
    assert (statistics["executionsTotal"], statistics["executionsSuccess"]) == (2, 2)
