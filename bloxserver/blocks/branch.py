"""`branch`: sends the message to the first listener whose condition is true."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, JsonValue, RootModel, StringConstraints

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, Routed, message_as_answer
from bloxserver.blocks.expressions import ConditionText, holds

MAX_CASES = 100

ListenerName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class BranchPayload(RootModel[JsonValue]):
    """Any JSON value."""


class BranchCase(BlockConfig):
    when: ConditionText = Field(description="The condition, a CEL expression like `payload.total > 100`.")
    to: ListenerName = Field(description="The listener that receives the message if the condition is true.")


class BranchConfig(BlockConfig):
    cases: tuple[BranchCase, ...] = Field(
        min_length=1, max_length=MAX_CASES, description="The cases in order; the first true condition decides."
    )
    otherwise: ListenerName | None = Field(
        None,
        description="The listener that receives the message if no condition is true. Null: the message becomes output.",
    )


async def handle_branch(payload: BranchPayload, config: BranchConfig, context: BlockContext) -> Routed:
    scope = context.scope(payload.root)
    for case in config.cases:
        if holds(case.when, scope, context.budget):
            return Routed(payload.root, (case.to,))
    return Routed(payload.root, () if config.otherwise is None else (config.otherwise,))


def _targets(config: BranchConfig) -> list[str]:
    names = [case.to for case in config.cases]
    return list(dict.fromkeys(names if config.otherwise is None else [*names, config.otherwise]))


block = Block(
    name="branch",
    description="Sends the message to the first listener whose condition is true.",
    payload=BranchPayload,
    config=BranchConfig,
    handler=handle_branch,
    targets=_targets,
    answer_shape=message_as_answer,
    expressions=("cases.*.when",),
    example={
        "config": {
            "cases": [
                {"when": "payload.total >= 1000", "to": "approve"},
                {"when": "payload.items.exists(item, item.fragile)", "to": "pack_by_hand"},
            ],
            "otherwise": "ship",
        },
        "payload": {"total": 120, "items": [{"name": "vase", "fragile": True}]},
    },
)
