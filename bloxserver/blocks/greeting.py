"""`handlers.hello.handle_greeting`: the greeter of the default organism."""

from typing import Any

from pydantic import BaseModel, JsonValue, model_validator

from bloxserver.blocks.base import Block, BlockContext, NoConfig
from bloxserver.blocks.shapes import object_shape


class Greeting(BaseModel):
    """The name to greet. A message without a `name` greets its text, or the world."""

    name: str = "World"

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> dict[str, str]:
        candidates = [value.get("name"), value.get("text")] if isinstance(value, dict) else [value]
        for candidate in candidates:
            if isinstance(candidate, str) and candidate.strip():
                return {"name": candidate.strip()}
        return {}


async def handle_greeting(payload: Greeting, config: NoConfig, context: BlockContext) -> JsonValue:
    return {"message": f"Hello, {payload.name}!"}


block = Block(
    name="handlers.hello.handle_greeting",
    description="Greets the name, or the text, of its message.",
    payload=Greeting,
    config=NoConfig,
    answer_shape=lambda config, message: object_shape("message"),
    handler=handle_greeting,
    payload_aliases=("handlers.hello.Greeting",),
    example={"config": {}, "payload": {"name": "Ada"}},
)
