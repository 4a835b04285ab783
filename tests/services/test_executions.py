"""Runs that are accepted or rejected, and inputs as they are stored."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, Conflict, Forbidden, NotFound
from bloxserver.models.enums import InputEncoding
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    TriggerRecord,
    TriggerType,
    UsageRecord,
)
from bloxserver.plans import FREE
from bloxserver.queries.triggers import read_webhook
from bloxserver.queries.usage import period_at
from bloxserver.services.executions import (
    MAX_TARGET_LENGTH,
    Input,
    accept_for_trigger,
    input_of_body,
    input_of_json,
    require_depth,
    run_flow,
)
from bloxserver.services.webhooks import receive_webhook, webhook_call
from bloxserver.settings import get_settings
from tests.factories import create_flow, create_trigger, create_user

GIVEN = Input("hello")
PERIOD = period_at(now(), None, None)


async def webhook(session: AsyncSession) -> TriggerRecord:
    """Create a webhook of a running flow whose active version, 4, is not its newest."""
    flow = await create_flow(session, await create_user(session), latest_version=5)
    versions = [FlowVersionRecord(flow_id=flow.id, number=number, organism_yaml="x") for number in (4, 5)]
    session.add_all(versions)
    await session.flush()
    flow.active_version_id, flow.active_version = versions[0].id, 4
    return await create_trigger(session, flow)


async def stored(session: AsyncSession, execution_id: UUID) -> ExecutionRecord:
    return await session.get_one(ExecutionRecord, execution_id, populate_existing=True)


async def receive(session: AsyncSession, token: str, depth: int = 0) -> UUID:
    """Receive a webhook, and return the id of its execution."""
    return (await receive_webhook(session, webhook_call(token, b"hello", depth=depth))).execution_id


async def test_manual_run_has_the_active_version_of_its_flow(session: AsyncSession) -> None:
    trigger = await webhook(session)
    flow = await session.get_one(FlowRecord, trigger.flow_id)
    accepted = await run_flow(session, flow.user_id, FREE, PERIOD, flow.id, GIVEN)
    execution = await stored(session, accepted.id)
    assert (execution.flow_version_id, execution.flow_version) == (flow.active_version_id, 4)
    assert (execution.depth, execution.parent_id, execution.input_payload) == (0, None, "hello")


@pytest.mark.parametrize("depth", [0, 1, 8])
async def test_webhook_run_has_the_active_version_and_the_depth(session: AsyncSession, depth: int) -> None:
    trigger = await webhook(session)
    flow = await session.get_one(FlowRecord, trigger.flow_id)
    execution = await stored(session, await receive(session, trigger.webhook_token or "", depth))
    assert (execution.flow_version_id, execution.flow_version) == (flow.active_version_id, 4)
    assert (execution.depth, execution.parent_id, execution.input_payload) == (depth, None, "hello")


async def test_webhook_run_beyond_the_maximum_depth_is_rejected(session: AsyncSession) -> None:
    """The limit ends a flow that sends requests to its own webhook."""
    trigger = await webhook(session)
    with pytest.raises(BadRequest, match=r"^Flows call each other more than 8 deep$") as error:
        await receive(session, trigger.webhook_token or "", get_settings().max_call_depth + 1)
    assert error.value.code == "call_depth_exceeded"
    for table in (ExecutionRecord, UsageRecord):
        assert await session.scalar(sa.select(sa.func.count()).select_from(table)) == 0


async def test_depth_is_checked_after_the_webhook(session: AsyncSession) -> None:
    trigger = await webhook(session)
    with pytest.raises(NotFound):
        await receive(session, "no-such-token", 100)
    trigger.enabled = False
    await session.flush()
    with pytest.raises(Conflict):
        await receive(session, trigger.webhook_token or "", 100)


async def test_manual_run_of_another_users_or_deleted_flow_is_not_found(session: AsyncSession) -> None:
    user, other = await create_user(session), await create_user(session)
    flow, deleted = await create_flow(session, user), await create_flow(session, user, deleted_at=now())
    for user_id, flow_id in ((other.id, flow.id), (user.id, deleted.id)):
        with pytest.raises(NotFound) as error:
            await run_flow(session, user_id, FREE, PERIOD, flow_id, GIVEN)
        assert (error.value.code, error.value.status) == ("flow_not_found", 404)


@pytest.mark.parametrize("status", [status for status in FlowStatus if status is not FlowStatus.RUNNING])
async def test_run_of_a_flow_that_is_not_running_is_rejected_and_not_counted(
    session: AsyncSession, status: FlowStatus
) -> None:
    user = await create_user(session)
    flow = await create_flow(session, user, status=status)
    trigger = await create_trigger(session, flow)
    for call, message in (
        (
            run_flow(session, user.id, FREE, PERIOD, flow.id, GIVEN),
            f"Flow must be running to execute (current: {status.value})",
        ),
        (receive(session, trigger.webhook_token or ""), f"Flow is not running (status: {status.value})"),
    ):
        with pytest.raises(BadRequest) as error:
            await call
        assert (error.value.code, error.value.status) == ("flow_not_running", 400)
        assert error.value.message == message
    assert await session.scalar(sa.select(sa.func.count()).select_from(UsageRecord)) == 0


async def test_run_at_the_limit_of_the_plan_is_rejected(session: AsyncSession) -> None:
    user = await create_user(session)
    flow = await create_flow(session, user)
    trigger = await create_trigger(session, flow)
    session.add(UsageRecord(user_id=user.id, period_start=PERIOD.start, workflow_runs=1_000))
    await session.commit()
    for call in (
        run_flow(session, user.id, FREE, PERIOD, flow.id, GIVEN),
        receive(session, trigger.webhook_token or ""),
    ):
        with pytest.raises(Forbidden) as error:
            await call
        assert (error.value.code, error.value.status) == ("run_limit_reached", 403)
    assert await session.scalar(sa.select(sa.func.count()).select_from(ExecutionRecord)) == 0


async def test_run_of_a_disabled_webhook_is_rejected(session: AsyncSession) -> None:
    trigger = await webhook(session)
    trigger.enabled = False
    await session.flush()
    with pytest.raises(Conflict) as error:
        await receive(session, trigger.webhook_token or "")
    assert (error.value.code, error.value.status) == ("trigger_disabled", 409)


@pytest.mark.parametrize(
    ("config", "target"),
    [({}, None), ({"target": "a"}, "a"), ({"target": 7}, None), ({"target": "t" * 300}, "t" * MAX_TARGET_LENGTH)],
)
async def test_run_of_a_trigger_has_the_target_of_its_config(
    session: AsyncSession, config: dict[str, Any], target: str | None
) -> None:
    trigger = await webhook(session)
    trigger.config = config
    await session.flush()
    row = await read_webhook(session, trigger.webhook_token or "")
    execution = await accept_for_trigger(session, row, TriggerType.WEBHOOK, GIVEN)
    assert (execution.trigger_id, execution.trigger_type) == (trigger.id, TriggerType.WEBHOOK)
    assert (execution.target, execution.input_payload) == (target, "hello")
    assert await session.scalar(sa.select(UsageRecord.workflow_runs)) == 1


def test_depth_up_to_the_maximum_is_accepted() -> None:
    limit = get_settings().max_call_depth
    require_depth(limit)
    with pytest.raises(BadRequest):
        require_depth(limit + 1)


@pytest.mark.parametrize(
    ("body", "content_type", "payload"),
    [
        (b"", "text/plain", None),
        ("grüße\n".encode(), "application/octet-stream", "grüße\n"),
        (b"\xff", "image/png", "data:image/png;base64,/w=="),
        (b"a\0b", None, "data:application/octet-stream;base64,YQBi"),
        (b"\xff", "text/plain ; charset=latin-1", "data:text/plain;charset=latin-1;base64,/w=="),
        (b"\xff", "a,b c", "data:a%2Cb%20c;base64,/w=="),
    ],
)
def test_body_that_is_not_text_is_stored_as_a_data_url(
    body: bytes, content_type: str | None, payload: str | None
) -> None:
    is_data = payload is not None and payload.startswith("data:")
    encoding = InputEncoding.DATA_URL if is_data else InputEncoding.TEXT
    assert input_of_body(body, content_type) == Input(payload, encoding)


@pytest.mark.parametrize(
    ("value", "payload"),
    [(None, None), ("text", "text"), ("", ""), (0, "0"), (False, "false"), ({"a": ["ü"]}, '{"a": ["ü"]}')],
)
def test_json_value_that_is_not_text_is_stored_as_json(value: Any, payload: str | None) -> None:
    assert input_of_json(value) == Input(payload)
