"""JSON columns with large values, on both databases."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord, TriggerRecord
from bloxserver.raw_json import MAX_CHARACTERS, MAX_STORED_VALUES, RawJson
from tests import factories

LARGE: list[Any] = [[0] * MAX_STORED_VALUES, "é" * MAX_CHARACTERS]


async def stored_text(session: AsyncSession, flow: FlowRecord) -> str | None:
    column = sa.cast(sa.literal_column("canvas_state"), sa.Text)
    text: str | None = await session.scalar(sa.select(column).select_from(FlowRecord).where(FlowRecord.id == flow.id))
    return text


@pytest.fixture
async def flow(session: AsyncSession) -> FlowRecord:
    return await factories.create_flow(session, await factories.create_user(session))


@pytest.mark.parametrize("value", LARGE, ids=["many values", "long text"])
async def test_large_value_is_read_as_its_text(session: AsyncSession, flow: FlowRecord, value: Any) -> None:
    text = json.dumps({"a": value})
    for canvas in ({"a": value}, RawJson(text)):
        flow.canvas_state = canvas
        await session.flush()
        assert await stored_text(session, flow) == text
        await session.refresh(flow)
        assert flow.canvas_state == RawJson(text)


async def test_text_is_stored_and_read_unchanged(session: AsyncSession, flow: FlowRecord) -> None:
    text = '{"b":  1.0, "a": "é", "x": [' + "1," * MAX_STORED_VALUES + "1]}"
    flow.canvas_state = RawJson(text)
    await session.flush()
    assert await session.scalar(sa.select(FlowRecord.canvas_state)) == RawJson(text)
    changed = sa.update(FlowRecord).values(name="new").returning(FlowRecord.canvas_state)
    assert await session.scalar(changed) == RawJson(text)


async def test_small_value_is_read_as_a_value(session: AsyncSession, flow: FlowRecord) -> None:
    for canvas in ({"a": [1, None, "é"]}, {}, None):
        flow.canvas_state = canvas
        await session.flush()
        assert await stored_text(session, flow) == (None if canvas is None else json.dumps(canvas))
        await session.refresh(flow)
        assert flow.canvas_state == canvas


async def test_value_of_another_program_is_read(session: AsyncSession, flow: FlowRecord) -> None:
    values: list[tuple[str, object]] = [("5", 5), ("null", None), ('"text"', "text"), ("[1.5]", [1.5])]
    for text, value in values:
        await session.execute(sa.update(FlowRecord).values(canvas_state=RawJson(text)))
        await session.refresh(flow)
        canvas: object = flow.canvas_state
        assert canvas == value


async def test_config_of_a_trigger_is_never_null(session: AsyncSession, flow: FlowRecord) -> None:
    trigger = TriggerRecord(flow_id=flow.id, type="webhook", name="t")
    session.add(trigger)
    await session.flush()
    await session.refresh(trigger)
    assert trigger.config == {}
