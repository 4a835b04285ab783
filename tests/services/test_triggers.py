"""Triggers that are created and changed, tokens of webhooks, and upcoming firings of schedules."""

from __future__ import annotations

import re
from datetime import timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.errors import BadRequest, NotFound, Unprocessable
from bloxserver.models.tables import FlowRecord, TriggerRecord, TriggerType, UserRecord
from bloxserver.services.triggers import create_trigger, regenerate_token, upcoming_firings, update_trigger
from tests import factories

HOURLY = {"cron": "0 * * * *"}
NEVER = {"cron": "0 0 30 2 *"}


async def create_failing_schedule(session: AsyncSession, flow: FlowRecord, **values: Any) -> TriggerRecord:
    """Create an armed schedule whose last attempt failed."""
    failure = {"failed_attempts": 3, "last_error": "TimeoutError", "retry_at": now()}
    kind = {"type": TriggerType.SCHEDULE, "config": HOURLY, "next_fire_at": now()}
    return await factories.create_trigger(session, flow, **kind | failure | values)


async def test_new_webhook_has_a_random_token(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    created = [
        await create_trigger(session, user.id, flow.id, TriggerType.WEBHOOK, "T", {"target": "a"}) for _ in range(2)
    ]
    tokens = [trigger.webhook_token or "" for trigger in created]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{43}", token) for token in tokens)
    assert tokens[0] != tokens[1]
    assert (created[0].flow_id, created[0].name, created[0].config) == (flow.id, "T", {"target": "a"})
    assert created[0].enabled


@pytest.mark.parametrize("kind", [TriggerType.SCHEDULE, TriggerType.MANUAL])
async def test_new_trigger_of_another_kind_has_no_token(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, kind: TriggerType
) -> None:
    trigger = await create_trigger(session, user.id, flow.id, kind, "T", HOURLY)
    assert (trigger.type, trigger.webhook_token, trigger.next_fire_at) == (kind, None, None)


async def test_schedule_that_never_fires_is_rejected(session: AsyncSession, user: UserRecord, flow: FlowRecord) -> None:
    schedule = await create_failing_schedule(session, flow)
    for change in (
        create_trigger(session, user.id, flow.id, TriggerType.SCHEDULE, "T", NEVER),
        update_trigger(session, user.id, flow.id, schedule.id, {"config": NEVER}),
    ):
        with pytest.raises(Unprocessable) as error:
            await change
        assert (error.value.code, error.value.status) == ("validation_error", 422)
        assert list(error.value.details or ()) == ["body.config.cron"]
    assert await session.scalar(sa.select(sa.func.count()).select_from(TriggerRecord)) == 1
    assert schedule.config == HOURLY


async def test_stored_schedule_that_never_fires_cannot_be_enabled(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    schedule = await create_failing_schedule(session, flow, config=NEVER, enabled=False)
    with pytest.raises(Unprocessable):
        await update_trigger(session, user.id, flow.id, schedule.id, {"enabled": True})
    renamed = await update_trigger(session, user.id, flow.id, schedule.id, {"name": "Renamed"})
    assert (renamed.name, renamed.enabled) == ("Renamed", False)


@pytest.mark.parametrize("changes", [{"config": {"cron": "30 * * * *"}}, {"enabled": True}])
async def test_schedule_with_a_new_config_or_enabled_again_is_armed_without_its_failures(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, changes: dict[str, Any]
) -> None:
    schedule = await create_failing_schedule(session, flow, enabled=False, disabled_reason="It failed.")
    updated = await update_trigger(session, user.id, flow.id, schedule.id, changes)
    assert {name: getattr(updated, name) for name in changes} == changes
    assert (updated.next_fire_at, updated.disabled_reason) == (None, None)
    assert (updated.failed_attempts, updated.last_error, updated.retry_at) == (0, None, None)


async def test_disabled_schedule_has_no_next_firing_and_no_failures(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    schedule = await create_failing_schedule(session, flow)
    updated = await update_trigger(session, user.id, flow.id, schedule.id, {"enabled": False})
    assert (updated.enabled, updated.next_fire_at) == (False, None)
    assert (updated.failed_attempts, updated.last_error, updated.retry_at) == (0, None, None)


@pytest.mark.parametrize("changes", [{}, {"name": "Renamed"}])
async def test_renamed_or_unchanged_schedule_keeps_its_next_firing(
    session: AsyncSession, user: UserRecord, flow: FlowRecord, changes: dict[str, Any]
) -> None:
    schedule = await create_failing_schedule(session, flow)
    fires = schedule.next_fire_at
    updated = await update_trigger(session, user.id, flow.id, schedule.id, changes)
    assert (updated.next_fire_at, updated.failed_attempts) == (fires, 3)
    assert updated.name == changes.get("name", "A trigger")


async def test_regenerated_token_replaces_the_previous_token_and_url(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    stored_url = "https://example.com/old-token"
    webhook = await factories.create_trigger(session, flow, webhook_token="old-token", own_webhook_url=stored_url)
    updated = await regenerate_token(session, user.id, flow.id, webhook.id)
    assert updated.id == webhook.id
    assert updated.webhook_token != "old-token"
    assert (updated.webhook_url or "").endswith(f"/{updated.webhook_token}")


async def test_token_and_firings_exist_only_for_their_kind_of_trigger(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    webhook, schedule = await factories.create_trigger(session, flow), await create_failing_schedule(session, flow)
    for call, code in (
        (regenerate_token(session, user.id, flow.id, schedule.id), "trigger_not_a_webhook"),
        (upcoming_firings(session, user.id, flow.id, webhook.id, 1), "trigger_not_a_schedule"),
    ):
        with pytest.raises(BadRequest) as error:
            await call
        assert (error.value.code, error.value.status) == (code, 400)


async def test_upcoming_firings_are_the_next_ones_in_ascending_order(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    schedule = await create_failing_schedule(session, flow, enabled=False)
    before = now()
    fires = await upcoming_firings(session, user.id, flow.id, schedule.id, 3)
    assert before < fires[0] <= now() + timedelta(hours=1)
    assert [(moment.minute, moment.second) for moment in fires] == [(0, 0)] * 3
    assert [later - earlier for earlier, later in pairwise(fires)] == [timedelta(hours=1)] * 2


async def test_triggers_of_another_user_are_neither_created_nor_changed(
    session: AsyncSession, user: UserRecord, flow: FlowRecord
) -> None:
    other = (await factories.create_user(session)).id
    webhook = await factories.create_trigger(session, flow, webhook_token="the-token")

    def calls(user_id: UUID, trigger_id: UUID) -> list[Any]:
        ids = user_id, flow.id, trigger_id
        return [
            update_trigger(session, *ids, {"name": "Renamed"}),
            regenerate_token(session, *ids),
            upcoming_firings(session, *ids, 1),
        ]

    for call in (*calls(other, webhook.id), *calls(user.id, uuid4())):
        with pytest.raises(NotFound) as error:
            await call
        assert (error.value.code, error.value.status) == ("trigger_not_found", 404)
    with pytest.raises(NotFound, match="Flow not found"):
        await create_trigger(session, other, flow.id, TriggerType.WEBHOOK, "T", {})
    assert (webhook.name, webhook.webhook_token) == ("A trigger", "the-token")
