"""`flow.call`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any
from uuid import UUID

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError, Called
from bloxserver.blocks.flow_call import block
from bloxserver.ids import new_id


@dataclass
class Flows:
    """Accepts or rejects every call."""

    refusal: BlockError | None = None
    answer: UUID = field(default_factory=new_id)
    calls: list[tuple[str, JsonValue, str | None]] = field(default_factory=list)

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        self.calls.append((flow, payload, target))
        if self.refusal is not None:
            raise self.refusal
        return self.answer


@pytest.mark.parametrize("payload", [None, "text", 5, [1], {"a": {"b": None}}], ids=str)
@pytest.mark.parametrize("target", [None, "second"])
async def test_flow_call_returns_the_called_execution(
    context: BlockContext, payload: JsonValue, target: str | None
) -> None:
    flows = Flows()
    config = block.config.model_validate({"flow": "Other", "target": target})
    answer = await block.handler(block.payload.model_validate(payload), config, replace(context, flows=flows))
    assert answer == Called(flows.answer)
    assert flows.calls == [("Other", payload, target)]


async def test_rejected_flow_call_is_the_block_error(context: BlockContext) -> None:
    refusal = BlockError("flow_not_found", "You have no flow with this id or name", retryable=False)
    with pytest.raises(BlockError) as caught:
        await block.handler(
            block.payload.model_validate({}),
            block.config.model_validate({"flow": "Other"}),
            replace(context, flows=Flows(refusal)),
        )
    assert caught.value is refusal


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"flow": ""},
        {"flow": None},
        {"flow": 5},
        *({"flow": "Other", "target": target} for target in ("", "a b", "a\n", "x" * 65, 5)),
        {"flow": "Other", "wait": True},
    ],
    ids=str,
)
def test_invalid_flow_call_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
