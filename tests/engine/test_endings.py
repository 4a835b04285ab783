"""Ends of executions that an engine runs: `stop`, and outputs that no condition chose."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.engine.engine import Engine
from bloxserver.models.database import Database
from bloxserver.models.tables import FailureNotificationRecord
from tests.engine.running_engine import ENDED, accept, eventually, run, started_flow, steps_of

SLOW = """
organism: {name: slow}
listeners:
  - {name: wait, description: Waits, handler: delay, config: {seconds: 3600}}
"""
STOPPING = """
organism: {name: stopping}
listeners:
  - {name: begin, description: Begins, handler: echo, peers: [call, wait, pause]}
  - {name: call, description: Calls, handler: flow.call, config: {flow: %s}}
  - {name: wait, description: Waits, handler: delay, config: {seconds: 3600}}
  - {name: pause, description: Waits, handler: delay, config: {seconds: 1}, peers: [end]}
  - {name: end, description: Ends, handler: stop, config: %s}
execution: {on_failure: {email: ops@example.com}}
"""
STOP = """
organism: {name: stop}
listeners:
  - {name: end, description: Ends, handler: stop, config: %s}
"""
CALLING = """
organism: {name: calling}
listeners:
  - {name: call, description: Calls, handler: flow.call, config: {flow: %s}}
"""


async def called_execution(client: httpx.AsyncClient, execution: str) -> str:
    """The id of the execution that the step `call` called."""
    async with asyncio.timeout(40):
        while True:
            for step in await steps_of(client, execution):
                if step["calledExecutionId"] is not None:
                    return str(step["calledExecutionId"])
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("error", [False, True])
async def test_stop_cancels_waiting_steps_and_called_executions(
    live_client: httpx.AsyncClient, live_database: Database, engine: Engine, error: bool
) -> None:
    slow = await started_flow(live_client, SLOW, name="Slow")
    config = "{error: 'Order {{ payload }} is unpaid', code: unpaid}" if error else "{output: {order: '{{ payload }}'}}"
    path = await started_flow(live_client, STOPPING % (slow.rpartition("/")[2], config))
    execution = await accept(live_client, path, 17)
    callee = f"{slow}/executions/{await called_execution(live_client, execution)}"
    ended = await eventually(live_client, execution, ENDED)
    if error:
        assert (ended["status"], ended["errorMessage"]) == ("error", "end: Order 17 is unpaid")
    else:
        assert (ended["status"], json.loads(ended["outputPayload"])) == ("success", {"order": 17})
    steps = {step["listener"]: (step["status"], step["errorCode"]) for step in await steps_of(live_client, execution)}
    assert steps == {
        "begin": ("success", None),
        "call": ("cancelled", None),
        "wait": ("cancelled", None),
        "pause": ("success", None),
        "end": ("error", "unpaid") if error else ("success", None),
    }
    assert (await live_client.get(callee)).json()["status"] == "cancelled"
    async with live_database.sessions() as session:
        notices = await session.scalar(sa.select(sa.func.count()).select_from(FailureNotificationRecord))
    assert notices == (1 if error else 0)


@pytest.mark.parametrize(
    ("config", "status", "shown"),
    [("{output: done}", "success", '"done"'), ("{error: not today}", "error", "ended as error: end: not today")],
)
async def test_stop_in_a_called_flow_ends_that_execution_and_answers_its_caller(
    live_client: httpx.AsyncClient, engine: Engine, config: str, status: str, shown: str
) -> None:
    stop = await started_flow(live_client, STOP % config, name="Stop")
    path = await started_flow(live_client, CALLING % stop.rpartition("/")[2], name="Calling")
    ended = await run(live_client, path)
    assert ended["status"] == status
    assert shown in (ended["outputPayload"] or ended["errorMessage"])
    (step,) = await steps_of(live_client, f"{path}/executions/{ended['id']}")
    assert step["errorCode"] == (None if status == "success" else "call_failed")
    assert json.loads(step["outputPayload"] or "null") == ("done" if status == "success" else None)


FILTER = """
organism: {name: filter}
listeners:
  - {name: read, description: Reads, handler: echo, peers: [{to: alert, when: payload.total > 100}]}
  - {name: alert, description: Alerts, handler: echo}
"""


async def test_filtered_executions_are_marked_and_listed(live_client: httpx.AsyncClient, engine: Engine) -> None:
    path = await started_flow(live_client, FILTER)
    low, high = await run(live_client, path, {"total": 7}), await run(live_client, path, {"total": 700})
    assert [(each["filtered"], json.loads(each["outputPayload"])) for each in (low, high)] == [
        (True, {"total": 7}),
        (False, {"total": 700}),
    ]
    (step,) = await steps_of(live_client, f"{path}/executions/{low['id']}")
    message = "no condition holds, so that no listener receives the answer: alert: payload.total > 100"
    assert step["warnings"] == [{"code": "no_condition_held", "message": message}]
    for wanted, expected in ((None, [high, low]), ("true", [low]), ("false", [high])):
        for executions in (f"{path}/executions", "/api/v1/executions"):
            page = (await live_client.get(executions, params={"filtered": wanted} if wanted else {})).json()
            shown = [(item["id"], item["filtered"]) for item in page["items"]]
            assert shown == [(each["id"], each["filtered"]) for each in expected]


async def test_called_execution_can_be_filtered(live_client: httpx.AsyncClient, engine: Engine) -> None:
    called = await started_flow(live_client, FILTER, name="Filter")
    path = await started_flow(live_client, CALLING % called.rpartition("/")[2], name="Calling")
    ended = await run(live_client, path, {"total": 7})
    assert (ended["filtered"], json.loads(ended["outputPayload"])) == (False, {"total": 7})
    (item,) = (await live_client.get(f"{called}/executions")).json()["items"]
    assert item["filtered"] is True
