"""The steps of an execution, and its origin and token counts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.ids import new_id
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import FlowRecord
from tests import factories
from tests.api.contract import assert_invalid, assert_problem, covers, path_of
from tests.steps import create_step

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


@covers("steps.shape")
async def test_response_has_every_member(client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession) -> None:
    execution = await factories.create_execution(session, flow)
    entry = await create_step(session, execution, "entry", started_at=NOON)
    called = new_id()
    step = await create_step(
        session,
        execution,
        "next",
        parent=entry,
        handler="flow.call",
        status=StepStatus.ERROR,
        attempt=3,
        copied=True,
        input_payload='{"a": 1}',
        output_payload='"é"',
        error_code="odd",
        error_message="why",
        routed_to=["b", "c"],
        called_id=called,
        warnings=[{"code": "odd", "message": "so"}],
        started_at=NOON + timedelta(seconds=1),
        completed_at=NOON + timedelta(seconds=2),
        duration_ms=1000,
        input_tokens=5,
        output_tokens=7,
        state='{"secret": true}',
    )
    first, second = (await client.get(f"{path_of(flow)}/executions/{execution.id}/steps")).json()["items"]
    assert second == {
        "id": str(step.id),
        "parentId": str(entry.id),
        "itemIndex": None,
        "listener": "next",
        "handler": "flow.call",
        "status": "error",
        "attempt": 3,
        "copied": True,
        "inputPayload": '{"a": 1}',
        "outputPayload": '"é"',
        "errorCode": "odd",
        "errorMessage": "why",
        "routedTo": ["b", "c"],
        "calledExecutionId": str(called),
        "startedAt": "2024-05-01T12:00:01.000000Z",
        "completedAt": "2024-05-01T12:00:02.000000Z",
        "resumesAt": None,
        "durationMs": 1000,
        "inputTokens": 5,
        "outputTokens": 7,
        "costUsd": None,
        "warnings": [{"code": "odd", "message": "so"}],
        "answeredBy": None,
        "payloadsOmitted": False,
    }
    assert first.keys() == second.keys()
    assert first["warnings"] == []
    assert (first["status"], first["attempt"], first["copied"], first["parentId"]) == ("success", 1, False, None)


@covers("steps.resumes-at")
@pytest.mark.parametrize("status", StepStatus)
async def test_unfinished_step_has_resumes_at(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, status: StepStatus
) -> None:
    execution = await factories.create_execution(session, flow)
    await create_step(session, execution, status=status, completed_at=NOON)
    (step,) = (await client.get(f"{path_of(flow)}/executions/{execution.id}/steps")).json()["items"]
    times = {"completedAt": step["completedAt"] is not None, "resumesAt": step["resumesAt"] is not None}
    assert times == {
        "completedAt": status in (StepStatus.SUCCESS, StepStatus.ERROR, StepStatus.CANCELLED),
        "resumesAt": status in (StepStatus.WAITING, StepStatus.RETRYING, StepStatus.CALLING),
    }


@covers("steps.list")
async def test_list_is_sorted_oldest_first(client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession) -> None:
    execution, other = [await factories.create_execution(session, flow) for _ in range(2)]
    path = f"{path_of(flow)}/executions/{execution.id}/steps"
    empty = (await client.get(path)).json()
    assert (empty["items"], empty["total"], empty["pageSize"]) == ([], 0, 100)
    for hour in (3, 1, 2):
        await create_step(session, execution, f"at-{hour}", started_at=NOON + timedelta(hours=hour), sequence=9 - hour)
    tied = sorted([uuid4() for _ in range(2)])
    for step_id in reversed(tied):
        await create_step(session, execution, f"z-{step_id}", id=step_id, started_at=NOON)
    await create_step(session, other)
    page = (await client.get(path)).json()
    assert [item["listener"] for item in page["items"]] == [*(f"z-{one}" for one in tied), "at-1", "at-2", "at-3"]
    second = (await client.get(path, params={"page": 2, "page_size": 3})).json()
    assert [item["listener"] for item in second["items"]] == ["at-2", "at-3"]
    assert (second["total"], second["hasMore"]) == (5, False)
    assert_invalid(await client.get(path, params={"page_size": 1001}), "query.page_size")


async def test_unknown_execution_is_not_found(client: httpx.AsyncClient, flow: FlowRecord) -> None:
    refused = await client.get(f"{path_of(flow)}/executions/{uuid4()}/steps")
    assert_problem(refused, 404, "execution_not_found", "Execution not found")


@covers("executions.added-members")
async def test_execution_has_its_origin_and_token_counts(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    retried, parent = uuid4(), uuid4()
    execution = await factories.create_execution(
        session,
        flow,
        flow_version=4,
        retry_of=retried,
        parent_id=parent,
        parent_key="a:1",
        input_tokens=3,
        output_tokens=2,
    )
    by_hand = await factories.create_execution(session, flow)
    path = f"{path_of(flow)}/executions"
    names = ("flowVersion", "retryOf", "parentId", "inputTokens", "outputTokens")
    body = (await client.get(f"{path}/{execution.id}")).json()
    assert [body[name] for name in names] == [4, str(retried), str(parent), 3, 2]
    body = (await client.get(f"{path}/{by_hand.id}")).json()
    assert [body[name] for name in names] == [None, None, None, 0, 0]
    (item, _) = (await client.get(path)).json()["items"]
    assert item.keys() == {"id", "status", "triggerType", "startedAt", "durationMs", "filtered", "costUsd"}
