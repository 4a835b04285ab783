"""What a block is: a handler with a name, a payload model, a config model and a description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from bloxserver.clients.http import GuardedClient

if TYPE_CHECKING:
    from bloxserver.clients.llm import LanguageModels
    from bloxserver.clients.mail import Mailer


class BlockConfig(BaseModel):
    """Base of every block's `config`: members that the block does not know are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoConfig(BlockConfig):
    """For blocks that have nothing to set."""


def with_problem(error: ValidationError, problem: str) -> ValidationError:
    """The errors of a config's members, and one of the whole config beside them."""
    found: list[InitErrorDetails] = [
        {"type": each["type"], "loc": each["loc"], "input": each["input"], "ctx": each.get("ctx", {})}
        for each in error.errors(include_url=False)
    ]
    whole: InitErrorDetails = {
        "type": PydanticCustomError("value_error", "{problem}", {"problem": problem}),
        "input": None,
    }
    return ValidationError.from_exception_data(error.title, [*found, whole])


class BlockError(Exception):
    """A message that a block could not handle: `code` is stable and snake_case, the flow's owner reads the text.

    `retryable` says whether another attempt at the same message may end otherwise, `retry_after` how many seconds
    it should wait at the least.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = True, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after


@dataclass(frozen=True)
class Wait:
    """Returned by a handler whose answer is due later: the execution leaves the worker until then.

    The handler is not called again: at `until` (aware UTC) `answer` is handed on.
    """

    until: datetime
    answer: JsonValue


@dataclass(frozen=True)
class Routed:
    """Returned by a handler that chooses who gets its answer: those of the listener's peers that `to` names."""

    answer: JsonValue
    to: tuple[str, ...]


@dataclass(frozen=True)
class Called:
    """Returned by a handler that leaves the answer to another execution: its output becomes the answer."""

    execution_id: UUID


JsonSchema = dict[str, Any]
Result = JsonValue | Wait | Routed | Called


class KeyValueStore(Protocol):
    """What the flow remembers from one execution to the next. Limits are told by `BlockError`."""

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        """Whether there is a value, and the value."""

    async def set(self, key: str, value: JsonValue) -> None: ...

    async def delete(self, key: str) -> bool:
        """Whether there was a value."""

    async def add(self, key: str, value: JsonValue) -> tuple[bool, JsonValue]:
        """Set the key unless it has a value: whether it was set by this message, and the value that is there now."""

    async def increment(self, key: str, by: float) -> float:
        """Add to a number, which is 0 where there is none, once for each message; returns the sum."""


class FlowCaller(Protocol):
    """Starts executions of other flows of the same user."""

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        """The id of the execution that was accepted; the same for every call from one attempt at a message.

        `flow` is an id, or a name that one flow alone has. Raises `BlockError`.
        """


@dataclass(frozen=True)
class Tool:
    """A listener that an agent may call."""

    name: str
    """As a model may spell it: letters, digits, _ and -, at most 64."""
    listener: str
    description: str
    schema: JsonSchema
    """JSON Schema of an object. Where the listener takes anything else, an object whose `input` is the payload."""
    wrapped: bool
    """Whether the payload is the `input` of what the model gives."""


class Conversation(Protocol):
    """An agent's memory and its hands, kept by the engine through interruptions."""

    @property
    def state(self) -> JsonValue:
        """What was kept last for this message; None at the beginning."""

    async def keep(self, state: JsonValue, *, input_tokens: int, output_tokens: int) -> None:
        """Store the state, and count tokens that were used since it was last called."""

    async def call(self, tool: Tool, payload: JsonValue, call: str) -> JsonValue:
        """What the listener answers. `call` names the call within the conversation: one that was answered before
        an interruption is not made again. Raises `BlockError` where the listener failed.
        """


@dataclass(frozen=True)
class AgentContext:
    """What an agent gets on top of what every block gets."""

    models: LanguageModels
    tools: Sequence[Tool]
    conversation: Conversation


@dataclass(frozen=True)
class BlockContext:
    """The world as a handler may use it."""

    http: GuardedClient
    clock: Callable[[], datetime]
    """The current time, aware UTC."""
    idempotency_key: str
    """The same for every attempt at this message, and for no other message."""
    store: KeyValueStore
    flows: FlowCaller
    mail: Mailer
    input: JsonValue = None
    """What the execution was given: the message of its first listener."""
    depth: int = 0
    """How many executions stand above this one; told to servers that may be our own, so that a circle ends."""
    agent: AgentContext | None = None
    """For agents alone."""

    def scope(self, payload: JsonValue) -> dict[str, JsonValue]:
        """What templates and expressions may name: the message, and what the execution was given."""
        return {"payload": payload, "input": self.input}


Payload = TypeVar("Payload", bound=BaseModel)
Config = TypeVar("Config", bound=BlockConfig)
Handler = Callable[[Payload, Config, BlockContext], Awaitable[Result]]


def no_targets(config: Any) -> Iterable[str]:
    return ()


def everything(config: Any) -> JsonSchema | None:
    return None


@dataclass(frozen=True)
class Block(Generic[Payload, Config]):
    """A built-in handler. `aliases` are dotted paths under which organisms may also name it; one that ends in `*`
    stands for all that begin alike.
    """

    name: str
    description: str
    payload: type[Payload]
    config: type[Config]
    handler: Handler[Payload, Config]
    aliases: tuple[str, ...] = ()
    payload_aliases: tuple[str, ...] = ()
    """Names that an organism may give as `payload_class`."""
    templates: frozenset[str] = frozenset()
    """Members of `config` in whose texts `{{ payload.… }}`, `{{ input.… }}` and `{{ secrets.NAME }}` are replaced
    before the handler is called. A secret may stand nowhere else: what a handler answers is stored.
    """
    rendered: frozenset[str] = frozenset()
    """Members of `config` in whose texts the handler itself replaces `{{ payload.… }}` and `{{ input.… }}`."""
    targets: Callable[[Config], Iterable[str]] = no_targets
    """The listeners that a config names: they become peers."""
    left: Callable[[Config], JsonSchema | None] = everything
    """The JSON Schema of what a config leaves a message to say, which agents read; null: that of `payload`. What its
    placeholders name is added to it.
    """
    example: dict[str, Any] = field(default_factory=dict)
    """A `config` and a `payload` that show it."""


AnyBlock = Block[Any, Any]
