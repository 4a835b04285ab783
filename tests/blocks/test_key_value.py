"""`key_value`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError
from bloxserver.blocks.key_value import block
from bloxserver.blocks.registry import get_registry
from bloxserver.engine.run.context import FlowStore
from bloxserver.models.database import Database
from tests import factories


@pytest.fixture
async def flow(live_database: Database) -> UUID:
    async with live_database.sessions() as session:
        return (await factories.create_flow(session, await factories.create_user(session))).id


class KeyValueRunner:
    """Runs the block on a real database. Each message has a unique idempotency key."""

    def __init__(self, context: BlockContext, database: Database, flow: UUID) -> None:
        self._context, self._database, self._flow = context, database, flow

    async def handle(self, config: dict[str, Any], payload: Any, step: str | None = None) -> Any:
        store = FlowStore(self._database, self._flow, step or str(uuid4()))
        context = replace(self._context, store=store)
        return await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)

    async def refused(self, config: dict[str, Any], payload: JsonValue) -> tuple[str, str, bool]:
        with pytest.raises(BlockError) as caught:
            await self.handle(config, payload)
        return caught.value.code, caught.value.message, caught.value.retryable


@pytest.fixture
def runner(context: BlockContext, live_database: Database, flow: UUID) -> KeyValueRunner:
    return KeyValueRunner(context, live_database, flow)


async def test_message_defines_the_whole_operation(runner: KeyValueRunner) -> None:
    asked: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({"operation": "get", "key": "a"}, {"found": False, "value": None}),
        ({"operation": "set", "key": "a", "value": {"b": [1]}}, {"value": {"b": [1]}}),
        ({"operation": "get", "key": "a"}, {"found": True, "value": {"b": [1]}}),
        ({"operation": "add", "key": "a", "value": 2}, {"added": False, "value": {"b": [1]}}),
        ({"operation": "delete", "key": "a"}, {"deleted": True}),
        ({"operation": "delete", "key": "a"}, {"deleted": False}),
        ({"operation": "add", "key": "a", "value": None}, {"added": True, "value": None}),
        ({"operation": "increment", "key": "n"}, {"value": 1}),
        ({"operation": "increment", "key": "n", "by": 1.5}, {"value": 2.5}),
        ({"operation": "increment", "key": "n", "by": None}, {"value": 3.5}),
        ({"operation": "set", "key": 7, "value": "seven"}, {"value": "seven"}),
        ({"operation": "get", "key": "7"}, {"found": True, "value": "seven"}),
    ]
    for payload, answer in asked:
        assert await runner.handle({}, payload) == answer


async def test_config_takes_precedence_over_the_message(runner: KeyValueRunner) -> None:
    payload = {"operation": "delete", "key": "theirs", "value": "theirs", "by": 10}
    config = {"operation": "set", "key": "ours", "value": "ours"}
    assert await runner.handle(config, payload) == {"value": "ours"}
    assert await runner.handle({"operation": "get", "key": "ours"}, payload) == {"found": True, "value": "ours"}
    assert await runner.handle({"operation": "increment", "key": "n", "by": 2}, payload) == {"value": 2}
    assert await runner.handle({"operation": "get", "key": None}, payload) == {"found": False, "value": None}


async def test_placeholders_of_the_config_are_replaced(runner: KeyValueRunner) -> None:
    order: JsonValue = {"order": 42, "amount": 9.5, "lines": [{"sku": "x"}], "by": "{{ payload.order }}"}
    config: dict[str, Any] = {"operation": "set", "key": "order {{ payload.order }}"}
    config["value"] = {"sku": "{{ payload.lines.0.sku }}", "all": "{{ payload.lines }}", "n": 1}
    expected = {"sku": "x", "all": [{"sku": "x"}], "n": 1}
    assert await runner.handle(config, order) == {"value": expected}
    assert await runner.handle({"operation": "get"}, {"key": "order 42"}) == {"found": True, "value": expected}
    total = {"operation": "increment", "key": "total", "by": "{{ payload.amount }}"}
    assert [await runner.handle(total, order) for _ in range(2)] == [{"value": 9.5}, {"value": 19}]
    by_number = {"operation": "set", "key": "{{ payload.order }}", "value": "{{ payload.by }}"}
    assert await runner.handle(by_number, order) == {"value": "{{ payload.order }}"}, "not looked at again"
    assert await runner.handle({"operation": "get", "key": "42"}, {}) == {
        "found": True,
        "value": "{{ payload.order }}",
    }


@pytest.mark.parametrize(
    ("config", "payload", "kept"),
    [
        ({}, {"key": "a", "value": 1, "more": 2}, 1),
        ({}, {"key": "a", "value": None}, None),
        ({"key": "a"}, {"value": 1, "more": 2}, 1),
        ({"key": "a"}, {"order": 2}, {"order": 2}),
        ({"key": "a"}, [1, 2], [1, 2]),
        ({"key": "a"}, None, None),
        ({"key": "a"}, "text", "text"),
        ({"key": "a", "value": None}, {"value": 1}, None),
        ({"value": "{{ payload }}"}, {"key": "a", "value": 1}, {"key": "a", "value": 1}),
    ],
)
async def test_value_comes_from_config_message_member_or_message(
    runner: KeyValueRunner, config: dict[str, Any], payload: JsonValue, kept: JsonValue
) -> None:
    assert await runner.handle({"operation": "set"} | config, payload) == {"value": kept}
    assert await runner.handle({"operation": "get", "key": "a"}, None) == {"found": True, "value": kept}


async def test_add_detects_repeated_orders(runner: KeyValueRunner) -> None:
    """`add` is idempotent per message: a repeated attempt at a message has the same answer."""
    config = {"operation": "add", "key": "order {{ payload.order }}"}
    first = await runner.handle(config, {"order": 1}, step="a")
    again = await runner.handle(config, {"order": 1}, step="a")
    second = await runner.handle(config, {"order": 1}, step="b")
    other = await runner.handle(config, {"order": 2}, step="c")
    assert [answer["added"] for answer in (first, again, second, other)] == [True, True, False, True]


OPERATION = "the operation must be one of get, set, delete, add, increment"
KEY = "the key must be a text or an integer"


@pytest.mark.parametrize(
    ("config", "payload", "message"),
    [
        ({}, {}, OPERATION),
        ({}, None, OPERATION),
        ({}, "get", OPERATION),
        ({}, {"operation": ["get"], "key": "a"}, OPERATION),
        ({"key": "a"}, {"operation": "GET"}, OPERATION),
        ({"operation": "get"}, {}, KEY),
        ({"operation": "get"}, {"key": None}, KEY),
        ({"operation": "get"}, {"key": True}, KEY),
        ({"operation": "get"}, {"key": 1.5}, KEY),
        ({"operation": "get"}, {"key": 10**5000}, KEY),
        ({"operation": "get", "key": "{{ payload.a }}"}, {"a": {}}, KEY),
        ({"operation": "set"}, {"key": "a"}, "the message has no value"),
        ({"operation": "increment", "key": "a"}, {"by": "1"}, "by must be a number"),
        ({"operation": "increment", "key": "a"}, {"by": True}, "by must be a number"),
        ({"operation": "increment", "key": "a", "by": "{{ payload.x }}"}, {"x": []}, "by must be a number"),
    ],
)
async def test_incomplete_messages_are_rejected(
    runner: KeyValueRunner, config: dict[str, Any], payload: JsonValue, message: str
) -> None:
    assert await runner.refused(config, payload) == ("invalid_payload", message, False)


async def test_storage_limits_are_reported(runner: KeyValueRunner) -> None:
    code, _, retryable = await runner.refused({"operation": "set", "key": "a"}, "x" * 65536)
    assert (code, retryable) == ("key_value_limit", False)
    assert (await runner.refused({"operation": "get"}, {"key": ""}))[0] == "key_value_invalid"
    config = {"operation": "get", "key": "{{ payload.missing }}"}
    assert (await runner.refused(config, {}))[0] == "template_missing_value"


@pytest.mark.parametrize(
    "config",
    [
        {"operation": "GET"},
        {"operation": "list"},
        {"key": 1},
        {"key": ""},
        {"key": "k" * 256},
        {"key": "two\nlines"},
        {"value": "x" * (64 * 1024)},
        {"key": "{{ payload.items[0 }}"},
        {"key": "{{ payload.a"},
        {"key": "{{ secrets.TOKEN }}"},
        {"value": {"a": ["{{ secrets.TOKEN }}"]}},
        {"by": "{{ secrets.TOKEN }}"},
        {"by": True},
        {"by": "5"},
        {"by": "{{ payload.a }} "},
        {"by": "{{ payload.a }}{{ payload.b }}"},
        {"by": float("inf")},
        {"by": [1]},
        {"by": float("nan")},
        {"ttl": 1},
    ],
    ids=str,
)
def test_invalid_key_value_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)


def test_key_value_payload_schema_describes_an_operation() -> None:
    schema = block.payload.model_json_schema()
    assert schema["type"] == "object"
    assert schema["required"] == ["operation", "key"]
    assert schema["properties"].keys() == {"operation", "key", "value", "by"}
    assert schema["properties"]["operation"]["enum"] == ["get", "set", "delete", "add", "increment"]


@pytest.mark.parametrize("name", ["key_value", "xml_pipeline.tools.keyvalue.handle_keyvalue"])
def test_key_value_is_found_by_name_and_aliases(name: str) -> None:
    assert get_registry().find(name) is block


async def test_key_value_example_works(runner: KeyValueRunner) -> None:
    answer = await runner.handle(block.example["config"], block.example["payload"])
    assert answer == {"added": True, "value": {"order": 42}}
