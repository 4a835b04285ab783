"""`echo`: answers with what it was given."""

from pydantic import JsonValue, RootModel

from bloxserver.blocks.base import Block, BlockContext, NoConfig


class EchoPayload(RootModel[JsonValue]):
    """Any JSON value."""


async def handle_echo(payload: EchoPayload, config: NoConfig, context: BlockContext) -> JsonValue:
    return payload.root


block = Block(
    name="echo",
    description="Answers with the message that it was given.",
    payload=EchoPayload,
    config=NoConfig,
    handler=handle_echo,
    example={"config": {}, "payload": {"any": "value"}},
)
