"""Retries of executions. tests/services/test_retries.py tests which steps are copied."""

from __future__ import annotations

from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    InputEncoding,
    Tier,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from tests import factories
from tests.api.contract import assert_invalid, assert_problem, covers, path_of
from tests.steps import create_step

ENDED = [status for status in ExecutionStatus if status is not ExecutionStatus.RUNNING]


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    """A flow that runs its first version and has a second one."""
    flow = await factories.create_flow(session, dev_user, organism_yaml="two")
    versions = [FlowVersionRecord(flow_id=flow.id, number=1, organism_yaml="one")]
    versions += [FlowVersionRecord(flow_id=flow.id, number=2, organism_yaml="two")]
    session.add_all(versions)
    await session.flush()
    flow.active_version_id, flow.active_version, flow.latest_version = versions[0].id, 1, 2
    await session.commit()
    return flow


def retry_path(flow: FlowRecord, execution: ExecutionRecord) -> str:
    return f"{path_of(flow)}/executions/{execution.id}/retry"


@covers("executions.retry")
@pytest.mark.parametrize("status", ENDED)
async def test_retry_creates_an_execution_with_the_same_input(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, status: ExecutionStatus
) -> None:
    trigger = await factories.create_trigger(session, flow)
    original = await factories.create_execution(
        session,
        flow,
        status=status,
        trigger_id=trigger.id,
        trigger_type=TriggerType.WEBHOOK,
        target="entry",
        input_payload="data:;base64,AAAA",
        input_encoding=InputEncoding.DATA_URL,
        output_payload="1",
        depth=3,
        parent_id=uuid4(),
        parent_key="a:1",
    )
    await create_step(session, original)
    response = await client.post(retry_path(flow, original))
    assert response.status_code == 201
    body = response.json()
    assert (body["retryOf"], body["status"], body["flowVersion"]) == (str(original.id), "running", 1)
    assert (body["triggerType"], body["triggerId"], body["parentId"]) == ("manual", None, None)
    assert (body["inputPayload"], body["inputEncoding"]) == ("data:;base64,AAAA", "data-url")
    assert (body["outputPayload"], body["pickedUpAt"], body["completedAt"]) == (None, None, None)
    stored = await session.get_one(ExecutionRecord, UUID(body["id"]))
    assert (stored.target, stored.depth, stored.flow_version_id) == ("entry", 0, flow.active_version_id)
    assert (await client.get(f"{path_of(flow)}/executions/{body['id']}/steps")).json()["total"] == 0
    assert await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) == 1
    await session.refresh(original)
    assert (original.status, original.output_payload) == (status, "1")


@covers("executions.retry.from-failed")
async def test_retry_from_failed_copies_finished_steps(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    for status in ENDED:
        original = await factories.create_execution(session, flow, status=status)
        entry = await create_step(session, original, "entry", sequence=1, output_payload="1", input_tokens=5)
        await create_step(session, original, "last", parent=entry, sequence=2, status=StepStatus.ERROR)
        response = await client.post(retry_path(flow, original), params={"from": "failed"})
        if status is ExecutionStatus.SUCCESS:
            assert_problem(response, 400, "nothing_failed", "Nothing failed: the execution is in success state")
            continue
        assert response.status_code == 201
        path = f"{path_of(flow)}/executions/{response.json()['id']}"
        (step,) = (await client.get(f"{path}/steps")).json()["items"]
        assert (step["listener"], step["status"], step["outputPayload"]) == ("entry", "success", "1")
        assert (step["copied"], step["inputTokens"]) == (True, 0)


@covers("executions.retry.version")
async def test_retry_runs_the_requested_version(
    client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
) -> None:
    second = await session.scalar(sa.select(FlowVersionRecord.id).where(FlowVersionRecord.number == 2))
    versions = {"flow_version_id": second, "flow_version": 2}
    other = await factories.create_execution(session, flow, status=ExecutionStatus.ERROR, **versions)
    by_hand = await factories.create_execution(session, flow, status=ExecutionStatus.ERROR)
    wanted = {
        (other, "same"): 2,
        (other, "latest"): 2,
        (by_hand, "same"): 1,
        (by_hand, "latest"): 2,
    }
    for (original, version), number in wanted.items():
        body = (await client.post(retry_path(flow, original), params={"version": version})).json()
        assert body["flowVersion"] == number, (original.flow_version, version)
    await client.patch(path_of(flow), json={"organismYaml": "three"})
    body = (await client.post(retry_path(flow, other), params={"version": "latest"})).json()
    assert body["flowVersion"] == 3
    stored = await session.get_one(ExecutionRecord, UUID(body["id"]))
    third = await session.get_one(FlowVersionRecord, stored.flow_version_id)
    assert third.organism_yaml == "three"


async def test_retry_with_latest_creates_a_missing_version(
    client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
) -> None:
    flow = await factories.create_flow(session, dev_user, organism_yaml="by hand")
    original = await factories.create_execution(session, flow, status=ExecutionStatus.ERROR)
    assert (await client.post(retry_path(flow, original))).json()["flowVersion"] is None
    body = (await client.post(retry_path(flow, original), params={"version": "latest"})).json()
    assert body["flowVersion"] == 1
    assert (await client.get(path_of(flow))).json()["latestVersion"] == 1


@covers("executions.retry.refused")
async def test_rejected_retry_starts_nothing(
    client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
) -> None:
    running = await factories.create_execution(session, flow)
    stopped = await factories.create_flow(session, dev_user, status=FlowStatus.STOPPED)
    of_stopped = await factories.create_execution(session, stopped, status=ExecutionStatus.ERROR)
    ended = await factories.create_execution(session, flow, status=ExecutionStatus.ERROR)
    for params in ({}, {"from": "failed"}):
        refused = await client.post(retry_path(flow, running), params=params)
        assert_problem(refused, 400, "execution_running", "Cannot retry execution in running state")
        refused = await client.post(retry_path(stopped, of_stopped), params=params)
        message = "Flow must be running to execute (current: stopped)"
        assert_problem(refused, 400, "flow_not_running", message)
    for flow_id, execution_id in ((flow.id, uuid4()), (flow.id, of_stopped.id), (uuid4(), ended.id)):
        refused = await client.post(f"/api/v1/flows/{flow_id}/executions/{execution_id}/retry")
        assert_problem(refused, 404, "execution_not_found", "Execution not found")
    assert_invalid(await client.post(retry_path(flow, ended), params={"from": "x"}), "query.from")
    assert_invalid(await client.post(retry_path(flow, ended), params={"version": "1"}), "query.version")
    dev_user.tier = Tier.FREE
    dev_user.current_period_start, dev_user.current_period_end = now(), now().replace(year=2100)
    session.add(UsageRecord(user_id=dev_user.id, period_start=dev_user.current_period_start, workflow_runs=1000))
    await session.commit()
    refused = await client.post(retry_path(flow, ended), params={"from": "failed", "version": "latest"})
    assert (refused.status_code, refused.json()["code"]) == (403, "run_limit_reached")
    assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 3
    assert await session.scalar(sa.select(sa.func.sum(UsageRecord.workflow_runs))) == 1000
