"""Versions of a flow's definition."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord, FlowVersionRecord
from bloxserver.services.versions import current_version, is_same_definition
from tests.factories import create_flow, create_user

CANVAS: dict[str, Any] = {"nodes": [], "edges": [], "viewport": {"x": 0, "y": 0, "zoom": 1}}


@pytest.fixture
async def flow(session: AsyncSession) -> FlowRecord:
    return await create_flow(session, await create_user(session), organism_yaml="first")


async def numbers(session: AsyncSession) -> list[int]:
    return list(await session.scalars(sa.select(FlowVersionRecord.number).order_by(FlowVersionRecord.number)))


async def test_flow_without_versions_gets_the_first_version(session: AsyncSession, flow: FlowRecord) -> None:
    flow.canvas_state = CANVAS
    version = await current_version(session, flow)
    assert (version.flow_id, version.number, version.organism_yaml) == (flow.id, 1, "first")
    assert version.canvas_state == CANVAS
    assert flow.latest_version == 1


async def test_unchanged_definition_returns_the_newest_version(session: AsyncSession, flow: FlowRecord) -> None:
    first = await current_version(session, flow)
    again = await current_version(session, flow)
    assert again.id == first.id
    assert await numbers(session) == [1]


async def test_changed_definition_creates_the_next_version(session: AsyncSession, flow: FlowRecord) -> None:
    await current_version(session, flow)
    flow.organism_yaml = "second"
    second = await current_version(session, flow)
    flow.canvas_state = CANVAS
    third = await current_version(session, flow)
    assert (second.number, second.organism_yaml, second.canvas_state) == (2, "second", None)
    assert (third.number, third.organism_yaml, third.canvas_state) == (3, "second", CANVAS)
    assert flow.latest_version == 3


async def test_definition_of_an_older_version_creates_another_version(session: AsyncSession, flow: FlowRecord) -> None:
    first = await current_version(session, flow)
    flow.organism_yaml = "second"
    await current_version(session, flow)
    flow.organism_yaml = "first"
    third = await current_version(session, flow)
    assert (third.number, third.id == first.id) == (3, False)
    assert await numbers(session) == [1, 2, 3]


async def test_versions_are_numbered_within_their_flow(session: AsyncSession, flow: FlowRecord) -> None:
    other = await create_flow(session, await create_user(session))
    assert (await current_version(session, flow)).number == 1
    assert (await current_version(session, other)).number == 1


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (None, None, True),
        (None, CANVAS, False),
        (CANVAS, {**CANVAS}, True),
        (CANVAS, {"viewport": CANVAS["viewport"], "edges": [], "nodes": []}, True),
        (CANVAS, CANVAS | {"viewport": {"x": 0.0, "y": 0, "zoom": 1.0}}, True),
        (CANVAS, CANVAS | {"viewport": {"x": 0, "y": 0, "zoom": 2}}, False),
        ({"no canvas": 1}, {"no canvas": 1.0}, True),
        ({"no canvas": 1}, {"no canvas": True}, False),
        ({"no canvas": [1, 2]}, {"no canvas": [1]}, False),
    ],
)
def test_canvases_are_compared_as_json_values(
    one: dict[str, Any] | None, other: dict[str, Any] | None, same: bool
) -> None:
    flow = FlowRecord(organism_yaml="text", canvas_state=one)
    assert is_same_definition(flow, "text", other) is same
    assert not is_same_definition(flow, "another text", other)
