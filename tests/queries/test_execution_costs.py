"""The costs of executions and steps, wherever the API returns them."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord, ExecutionStepRecord, FlowRecord, LlmCallRecord, UserRecord
from tests import factories
from tests.api.contract import API, covers, path_of


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    return await factories.create_flow(session, dev_user)


@pytest.fixture
async def priced(session: AsyncSession, flow: FlowRecord, dev_user: UserRecord) -> ExecutionRecord:
    """An execution with calls of two steps; the price of one call is unknown."""
    values = {"status": ExecutionStatus.SUCCESS, "input_tokens": 50, "output_tokens": 9}
    execution = await factories.create_execution(session, flow, **values)
    steps = [await step_of(session, execution, f"agent-{number}", input_tokens=25) for number in range(2)]
    await step_of(session, execution, "echo")
    await add_calls(session, dev_user, execution.id, (steps[0], 1_500_000), (steps[0], 250), (steps[1], None))
    await add_calls(session, dev_user, uuid4(), (steps[0], 7_000_000_000))
    return execution


async def step_of(session: AsyncSession, execution: ExecutionRecord, listener: str, **values: Any) -> UUID:
    step = ExecutionStepRecord(execution_id=execution.id, key=f":{listener}", listener=listener, **values)
    session.add(step)
    await session.flush()
    return step.id


async def add_calls(
    session: AsyncSession, user: UserRecord, execution_id: UUID, *calls: tuple[UUID, int | None]
) -> None:
    common = {"user_id": user.id, "model": "m", "execution_id": execution_id, "input_tokens": 1}
    rows = [common | {"id": uuid4(), "step_id": step, "cost_nanousd": cost} for step, cost in calls]
    await session.execute(sa.insert(LlmCallRecord), rows)
    await session.commit()


COST = 0.00150025


async def test_execution_has_the_sum_of_its_calls(
    client: httpx.AsyncClient, flow: FlowRecord, priced: ExecutionRecord
) -> None:
    assert (await client.get(f"{path_of(flow)}/executions/{priced.id}")).json()["costUsd"] == COST
    [item] = (await client.get(f"{path_of(flow)}/executions")).json()["items"]
    assert item["costUsd"] == COST
    [item] = (await client.get(f"{API}/executions")).json()["items"]
    assert item["costUsd"] == COST


@covers("executions.cost")
async def test_steps_have_the_sums_of_their_calls(
    client: httpx.AsyncClient, flow: FlowRecord, priced: ExecutionRecord
) -> None:
    steps = (await client.get(f"{path_of(flow)}/executions/{priced.id}/steps")).json()["items"]
    assert {step["listener"]: step["costUsd"] for step in steps} == {"agent-0": COST, "agent-1": None, "echo": 0}


async def test_events_have_the_costs(client: httpx.AsyncClient, flow: FlowRecord, priced: ExecutionRecord) -> None:
    response = await client.get(f"{path_of(flow)}/executions/{priced.id}/events")
    data = [json.loads(line[6:]) for line in response.text.splitlines() if line.startswith("data: ")]
    costs = {each["listener"]: each["costUsd"] for each in data if "listener" in each}
    assert costs == {"agent-0": COST, "agent-1": None, "echo": 0}
    assert data[-1]["costUsd"] == COST


async def test_cost_is_unknown_without_a_known_price_and_zero_without_tokens(
    client: httpx.AsyncClient, session: AsyncSession, flow: FlowRecord, dev_user: UserRecord
) -> None:
    unknown = await factories.create_execution(session, flow, input_tokens=3)
    await add_calls(session, dev_user, unknown.id, (uuid4(), None))
    unused = await factories.create_execution(session, flow)
    items = (await client.get(f"{path_of(flow)}/executions")).json()["items"]
    assert {item["id"]: item["costUsd"] for item in items} == {str(unknown.id): None, str(unused.id): 0}


async def test_cancelled_execution_is_returned_with_its_cost(
    client: httpx.AsyncClient, session: AsyncSession, flow: FlowRecord, dev_user: UserRecord
) -> None:
    execution = await factories.create_execution(session, flow, input_tokens=3)
    await add_calls(session, dev_user, execution.id, (uuid4(), 2_000_000_000))
    cancelled = await client.post(f"{path_of(flow)}/executions/{execution.id}/cancel")
    assert (cancelled.json()["status"], cancelled.json()["costUsd"]) == ("cancelled", 2)
