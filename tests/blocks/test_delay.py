"""`delay`."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import ValidationError

from bloxserver.blocks.base import BlockContext, Wait
from bloxserver.blocks.delay import block
from tests.blocks.conftest import NOW


@pytest.mark.parametrize("seconds", [0, 0.5, 60, 2_592_000])
async def test_delay_returns_wait_with_due_time_and_payload(context: BlockContext, seconds: float) -> None:
    payload = block.payload.model_validate({"a": [1]})
    answer = await block.handler(payload, block.config.model_validate({"seconds": seconds}), context)
    assert answer == Wait(until=NOW + timedelta(seconds=seconds), answer={"a": [1]})


@pytest.mark.parametrize(
    "config",
    [
        {},
        *({"seconds": value} for value in (-1, 2_592_001, float("nan"), float("inf"), True, "5", None)),
        {"second": 1},
    ],
    ids=str,
)
def test_invalid_delay_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
