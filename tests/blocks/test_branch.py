"""`branch`."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bloxserver.blocks.base import BlockContext, BlockError, Routed
from bloxserver.blocks.branch import block

CASES = [
    {"when": "payload.total >= 100", "to": "approve"},
    {"when": "payload.total >= 10", "to": "check.twice"},
    {"when": "payload.vip", "to": "approve"},
]


async def routed(context: BlockContext, config: dict[str, Any], payload: JsonValue) -> Routed:
    answer = await block.handler(block.payload.model_validate(payload), block.config.model_validate(config), context)
    assert isinstance(answer, Routed)
    return answer


@pytest.mark.parametrize(
    ("payload", "otherwise", "to"),
    [
        ({"total": 100.0}, "ship", ("approve",)),
        ({"total": 99.5, "vip": True}, "ship", ("check.twice",)),
        ({"total": 1, "vip": True}, "ship", ("approve",)),
        ({"total": 1, "vip": False}, "ship", ("ship",)),
        ({"total": 1, "vip": False}, None, ()),
    ],
)
async def test_message_goes_to_first_case_with_true_condition(
    context: BlockContext, payload: JsonValue, otherwise: str | None, to: tuple[str, ...]
) -> None:
    answer = await routed(context, {"cases": CASES, "otherwise": otherwise}, payload)
    assert answer == Routed(payload, to)


async def test_cases_after_the_first_true_condition_are_not_evaluated(context: BlockContext) -> None:
    cases = [{"when": "true", "to": "a"}, {"when": "payload.missing", "to": "b"}]
    assert (await routed(context, {"cases": cases}, {})).to == ("a",)


@pytest.mark.parametrize("when", ["payload.missing > 3", "payload.total", "payload.total && true"])
async def test_condition_without_boolean_value_is_an_error(context: BlockContext, when: str) -> None:
    with pytest.raises(BlockError) as caught:
        await routed(context, {"cases": [{"when": when, "to": "a"}], "otherwise": "b"}, {"total": 1})
    assert (caught.value.code, caught.value.retryable) == ("expression_failed", False)
    assert caught.value.message.startswith(when)


def test_each_target_becomes_a_peer_once() -> None:
    config = block.config.model_validate({"cases": CASES, "otherwise": "ship"})
    assert list(block.targets(config)) == ["approve", "check.twice", "ship"]
    config = block.config.model_validate({"cases": CASES[:1]})
    assert list(block.targets(config)) == ["approve"]


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"cases": []},
        {"cases": [{"when": "true"}]},
        {"cases": [{"to": "a"}]},
        {"cases": [{"when": "total > 1", "to": "a"}]},
        {"cases": [{"when": "payload.total >", "to": "a"}]},
        {"cases": [{"when": "true", "to": "a b"}]},
        {"cases": [{"when": "true", "to": "a", "else": "b"}]},
        {"cases": [{"when": "true", "to": "a"}], "otherwise": ""},
        {"cases": [{"when": "true", "to": "a"}] * 101},
    ],
    ids=lambda config: str(config)[:60],
)
def test_invalid_branch_configs_are_rejected(config: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        block.config.model_validate(config)
