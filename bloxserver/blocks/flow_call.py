"""`flow.call`: runs another flow of the same user and answers with its output."""

from pydantic import Field, JsonValue, RootModel

from bloxserver.blocks.base import Block, BlockConfig, BlockContext, Called


class FlowCallPayload(RootModel[JsonValue]):
    """Any JSON value: the other flow's input."""


class FlowCallConfig(BlockConfig):
    flow: str = Field(
        min_length=1, description="The id of the other flow, or its name if you have only one flow with this name."
    )
    target: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="The listener of the other flow that receives the message. Default: that of a manual run.",
    )


async def handle_flow_call(payload: FlowCallPayload, config: FlowCallConfig, context: BlockContext) -> Called:
    return Called(await context.flows.call(config.flow, payload.root, config.target))


block = Block(
    name="flow.call",
    description="Runs another flow of the same user with its message, and answers with the output of that flow.",
    payload=FlowCallPayload,
    config=FlowCallConfig,
    handler=handle_flow_call,
    templates=frozenset({"flow"}),
    example={"config": {"flow": "Invoice a customer"}, "payload": {"customer": 42}},
)
