"""The list of blocks."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from pydantic import ValidationError
from sqlalchemy.ext.asyncio import AsyncEngine

from bloxserver.api.schemas import BlockDescription
from bloxserver.blocks.registry import get_registry
from bloxserver.models.tables import UserRecord
from tests.api.contract import API, covers
from tests.statements import count_statements


@pytest.fixture
async def palette(client: httpx.AsyncClient) -> list[dict[str, Any]]:
    response = await client.get(f"{API}/blocks")
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    blocks: list[dict[str, Any]] = response.json()
    return blocks


@covers("blocks.list")
async def test_list_has_all_blocks_and_the_agent_sorted_by_name(palette: list[dict[str, Any]]) -> None:
    names = [block["name"] for block in palette]
    assert names == sorted([*get_registry().names, "agent"])
    assert [block["name"] for block in palette if block["kind"] == "agent"] == ["agent"]
    for block in palette:
        BlockDescription.model_validate(block)
        assert set(block) == {
            "kind",
            "name",
            "aliases",
            "description",
            "configSchema",
            "payloadSchema",
            "example",
            "templates",
        }


async def test_schemas_declare_their_dialect_and_properties(palette: list[dict[str, Any]]) -> None:
    blocks = {block["name"]: block for block in palette}
    for block in palette:
        for schema in (block["configSchema"], block["payloadSchema"]):
            assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert block["configSchema"]["additionalProperties"] is False
        assert set(block["templates"]) <= set(block["configSchema"]["properties"])
    assert blocks["delay"]["configSchema"]["required"] == ["seconds"]
    assert blocks["delay"]["configSchema"]["properties"]["seconds"]["description"]
    assert "prompt" in blocks["agent"]["configSchema"]["required"]
    assert "xml_pipeline.tools.fetch.handle_fetch" in blocks["http.request"]["aliases"]
    assert "url" in blocks["http.request"]["templates"]


async def test_every_config_property_has_a_description(palette: list[dict[str, Any]]) -> None:
    for block in palette:
        for name, setting in block["configSchema"]["properties"].items():
            assert setting.get("description"), (block["name"], name)


async def test_every_example_is_valid(palette: list[dict[str, Any]]) -> None:
    for shown in palette:
        block = get_registry().find(shown["name"])
        if block is not None:
            try:
                block.config.model_validate(shown["example"]["config"])
                block.payload.model_validate(shown["example"]["payload"])
            except ValidationError as error:
                pytest.fail(f"{shown['name']}: {error}")


async def test_list_needs_only_the_statement_for_the_user(
    client: httpx.AsyncClient, dev_user: UserRecord, database_engine: AsyncEngine
) -> None:
    with count_statements(database_engine) as statements:
        first = await client.get(f"{API}/blocks")
    assert len(statements) == 1, statements
    assert (await client.get(f"{API}/blocks")).content == first.content
