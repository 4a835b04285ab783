"""`flow.call`: runs another flow of the same user and answers with its output."""

from pydantic import Field, JsonValue, RootModel

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, Called


class FlowCallPayload(RootModel[JsonValue]):
    """Any JSON value: the other flow's input."""


class FlowCallConfig(BlockConfig):
    flow: str = Field(
        min_length=1, description="The other flow's id, or its name where no other flow of yours has the same."
    )
    target: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="The listener of the other flow that gets the message; null is the one that gets a run by hand.",
    )


async def handle_flow_call(payload: FlowCallPayload, config: FlowCallConfig, context: BlockContext) -> Called:
    return Called(await context.flows.call(config.flow, payload.root, config.target))


block = Block(
    name="flow.call",
    description="Runs another flow of yours with its message and answers with that flow's output.",
    payload=FlowCallPayload,
    config=FlowCallConfig,
    handler=handle_flow_call,
    templates=frozenset({"flow"}),
    example={"config": {"flow": "Invoice a customer"}, "payload": {"customer": 42}},
)
