"""What a block is: a handler with a name, a payload model, a config model and a description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, JsonValue

from bloxserver.clients.http import GuardedClient


class BlockConfig(BaseModel):
    """Base of every block's `config`: members that the block does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoConfig(BlockConfig):
    """For blocks that have nothing to set."""


class BlockError(Exception):
    """A message that a block could not handle: `code` is stable and snake_case, the flow's owner reads the text."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message


@dataclass(frozen=True)
class Wait:
    """Returned by a handler whose answer is due later: the execution leaves the worker until then.

    The handler is not called again: at `until` (aware UTC) `answer` is handed on.
    """

    until: datetime
    answer: JsonValue


@dataclass(frozen=True)
class BlockContext:
    """The world as a handler may use it."""

    http: GuardedClient
    clock: Callable[[], datetime]
    """The current time, aware UTC."""
    idempotency_key: str
    """The same for every attempt at this message, and for no other message."""


Payload = TypeVar("Payload", bound=BaseModel)
Config = TypeVar("Config", bound=BlockConfig)
Handler = Callable[[Payload, Config, BlockContext], Awaitable[JsonValue | Wait]]


@dataclass(frozen=True)
class Block(Generic[Payload, Config]):
    """A built-in handler. `aliases` are dotted paths under which organisms may also name it."""

    name: str
    description: str
    payload: type[Payload]
    config: type[Config]
    handler: Handler[Payload, Config]
    aliases: tuple[str, ...] = ()
    payload_aliases: tuple[str, ...] = ()
    """Names that an organism may give as `payload_class`."""
    example: dict[str, Any] = field(default_factory=dict)
    """A `config` and a `payload` that show it."""


AnyBlock = Block[Any, Any]
