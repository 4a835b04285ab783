"""A package with a block, for tests of plugins."""

from pydantic import BaseModel, JsonValue

from bloxserver.blocks.base import Block, BlockConfig, BlockContext


class Parcel(BaseModel):
    kilograms: float


class Tariff(BlockConfig):
    per_kilogram: float = 2


async def handle_postage(payload: Parcel, config: Tariff, context: BlockContext) -> JsonValue:
    return {"price": payload.kilograms * config.per_kilogram}


postage = Block(
    name="acme.postage",
    description="Computes the postage of a parcel.",
    payload=Parcel,
    config=Tariff,
    handler=handle_postage,
    aliases=("acme.handle_*",),
    example={"config": {"per_kilogram": 3}, "payload": {"kilograms": 2}},
)
blocks = [postage]
