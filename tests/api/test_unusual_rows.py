"""Rows written directly to the database, with values that the API itself does not store."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import UserRecord
from bloxserver.organism.messages import MAX_PROBLEMS
from bloxserver.plans import PLANS
from tests import factories
from tests.api.contract import API, path_of


@pytest.mark.parametrize("canvas", [[], "x", {"nodes": None}, {"nodes": [{}]}, {"viewport": {"x": None}}])
async def test_canvas_of_another_shape_is_returned_unchanged(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, canvas: Any
) -> None:
    flow = await factories.create_flow(session, dev_user, canvas_state=canvas)
    shown = await client.get(path_of(flow))
    assert (shown.status_code, shown.json()["canvasState"]) == (200, canvas)
    assert (await client.get(f"{path_of(flow)}/canvas")).status_code == 200
    assert (await client.post(f"{path_of(flow)}/stop")).status_code == 200


async def test_unchanged_canvas_creates_no_version(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    canvas = {"nodes": [{"id": "greeter"}]}
    flow = await factories.create_flow(session, dev_user, canvas_state=canvas)
    shown = (await client.get(path_of(flow))).json()
    assert (await client.patch(path_of(flow), json=shown)).json()["latestVersion"] is None


async def test_trigger_without_config_has_an_empty_config(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flow = await factories.create_flow(session, dev_user)
    trigger = await factories.create_trigger(session, flow, config=None)
    assert (await client.get(f"{path_of(flow)}/triggers")).json()[0]["config"] == {}
    assert (await client.post(f"/webhooks/{trigger.webhook_token}")).status_code == 200


async def test_long_key_is_shortened_in_the_paths_of_problems(client: httpx.AsyncClient) -> None:
    text = f"organism: {{name: x}}\n? {'k' * 50_000}\n:\n" + "  a: 1\n" * 2_000
    answered = await client.post(f"{API}/organisms/validate", content=text)
    assert answered.status_code == 200
    assert len(answered.json()["problems"]) == MAX_PROBLEMS + 1
    assert len(answered.content) < 200_000


async def test_an_unknown_tier_is_served_as_free(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flow = await factories.create_flow(session, dev_user)
    trigger = await factories.create_trigger(session, flow)
    await session.execute(sa.text("UPDATE users SET tier = 'platinum'"))
    await session.commit()
    assert (await client.get(f"{API}/me")).json()["tier"] == "free"
    assert (await client.get(f"{API}/usage")).json()["runsLimit"] == PLANS["free"].runs
    assert (await client.post(f"/webhooks/{trigger.webhook_token}")).status_code == 200
    assert (await client.post(f"{path_of(flow)}/executions/run")).status_code == 201
    refused = await client.post(f"{API}/flows", json={"name": "Another"})
    assert (refused.status_code, refused.json()["code"]) == (403, "flow_limit_reached")
