"""The interface of blocks: a handler with a name, a payload model, a config model and a description."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from bloxserver.blocks.cel.values import MAX_STEPS, Budget
from bloxserver.blocks.shapes import ANYTHING, Shape
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.memory import MemoryBudget
from bloxserver.isolation.limits import TaskLimits
from bloxserver.raw_json import RawJson, Value

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.tools import ToolDefinition

    from bloxserver.clients.mail import Mailer


class BlockConfig(BaseModel):
    """Base class of every block's `config`. Unknown members are rejected."""

    model_config = ConfigDict(extra="forbid", frozen=True)


CHECKED = "checked"
"""The validation context of a config that was valid before. Its expressions and templates are not checked again,
because that takes long.
"""


class NoConfig(BlockConfig):
    """The config of blocks without settings."""


def with_problem(error: ValidationError, problem: str) -> ValidationError:
    """Return the errors of a config's members together with a problem of the whole config."""
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
    """The block failed to handle a message.

    `code` is stable and in snake_case. The message is shown to the flow's owner. If `retryable`, another attempt at the
    same message may succeed. `retry_after` is the minimum delay before that attempt, in seconds. If `is_postponed`, the
    attempt is repeated without using a retry, until the timeout of the listener.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool = True,
        retry_after: float | None = None,
        is_postponed: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.is_postponed = is_postponed


class ExecutionStopped(BlockError):
    """The execution must end. The models of agents that called this one do not get the error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message, retryable=False)


STOPPING = ("execution_budget_exceeded", "daily_budget_exceeded")
"""The codes of `ExecutionStopped`."""
EXECUTION_BUDGET_WARNING = "execution_budget_warning"
DAILY_BUDGET_WARNING, DAILY_BUDGET_USED = "daily_budget_warning", "daily_budget_used"
BUDGET_WARNINGS = (EXECUTION_BUDGET_WARNING, DAILY_BUDGET_WARNING, DAILY_BUDGET_USED)
"""The codes of warnings about budgets, of which the recipients of `on_failure` are notified."""


@dataclass(frozen=True)
class Wait:
    """Returned by a handler to send `answer` at the time `until` (aware, in UTC).

    The execution is suspended until then, and the handler is not called again.
    """

    until: datetime
    answer: Value


@dataclass(frozen=True)
class Routed:
    """Returned by a handler to send its answer only to the peers that `to` names."""

    answer: Value
    to: tuple[str, ...]


@dataclass(frozen=True)
class Called:
    """Returned by a handler to answer with the output of another execution."""

    execution_id: UUID


@dataclass(frozen=True)
class StopError:
    """The error with which a handler ends the execution. `code` is stable and in snake_case."""

    code: str
    message: str


@dataclass(frozen=True)
class Stop:
    """Returned by a handler to end the execution at once: with `answer` as its output, or with `error`."""

    answer: Value
    error: StopError | None = None


@dataclass(frozen=True)
class Awaited:
    """Returned by a handler to answer with the body of a call of `resume.NAME.url`, NAME being its listener.

    The execution is suspended until then, or until the timeout of the listener.
    """

    question: str
    """What a person sees who opens the URL."""


JsonSchema = dict[str, Any]
Result = Value | Wait | Routed | Called | Stop | Awaited


class KeyValueStore(Protocol):
    """The flow's key-value storage, shared by its executions. Methods raise `BlockError` if a limit is exceeded."""

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        """Return whether the key has a value, and the value."""

    async def set(self, key: str, value: JsonValue) -> None: ...

    async def delete(self, key: str) -> bool:
        """Delete the key. Returns whether it had a value."""

    async def add(self, key: str, value: JsonValue) -> tuple[bool, JsonValue]:
        """Set the key unless it has a value. Returns whether this message set it, and the current value."""

    async def increment(self, key: str, by: float) -> float:
        """Add to a number, once per message, and return the sum. A key without a value counts as 0."""


class FlowCaller(Protocol):
    """Starts executions of other flows of the same user."""

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        """Start an execution and return its id. Repeated calls for one message return the same id.

        `flow` is an id or a unique name. Raises `BlockError`.
        """


class IsolatedTasks(Protocol):
    """Runs work that is too large for the event loop in another process."""

    async def run(self, function: str, request: bytes | Callable[[], bytes], limits: TaskLimits | None = None) -> bytes:
        """Run a function of `isolation.functions`. A large request is a function. Raises `BlockError`."""


@dataclass(frozen=True)
class Tool:
    """A listener that an agent can call."""

    name: str
    """The tool's name for the model: at most 64 letters, digits, _ and -."""
    listener: str
    description: str
    schema: JsonSchema
    """JSON Schema of the arguments, an object. A payload that is not an object is the member `input`."""
    wrapped: bool
    """Whether the payload is the argument `input` and not the arguments themselves."""


@dataclass(frozen=True, slots=True)
class StepWarning:
    """A problem that did not end a step. `code` is stable and in snake_case."""

    code: str
    message: str


class Conversation(Protocol):
    """An agent's stored state and its access to tools. The engine keeps the state across interruptions."""

    @property
    def state(self) -> Value:
        """The state that was last stored for this message; None at first."""

    async def keep(self, state: Value, *, input_tokens: int, output_tokens: int) -> None:
        """Store the state, and record the tokens used since the last call."""

    def warn(self, warning: StepWarning) -> None:
        """Add a warning to the step, once. It is stored with the next state, or with the result."""

    async def call(self, tool: Tool, payload: Value, call: str) -> Value:
        """Call a listener and return its answer. Raises `BlockError` if the listener fails.

        `call` identifies the call within the conversation. A call that was answered before an interruption is not
        repeated.
        """


class LanguageModels(Protocol):
    """The access to language models."""

    async def load(self, model: str | None) -> None:
        """Prepare requests to the model; to be called before pydantic_ai's messages are imported.

        Raises `ModelError`.
        """

    async def request(
        self,
        messages: Sequence[ModelMessage],
        *,
        model: str | None = None,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = True,
    ) -> ModelResponse:
        """Return the complete response of the model. Raises `ModelError`.

        With `cache`, it may be the response to an equal request. Its usage is zero then.
        """

    def take_warnings(self) -> Sequence[StepWarning]:
        """Return warnings about budgets, each of them once."""


@dataclass(frozen=True)
class AgentContext:
    """The part of a block's context that only agents have."""

    models: LanguageModels
    tools: Sequence[Tool]
    conversation: Conversation


async def no_turn() -> None:
    """Do not wait."""


@dataclass(slots=True)
class BlockContext:
    """The services and data that a handler can use. Not frozen, because one that is takes longer to make."""

    http: GuardedClient
    clock: Callable[[], datetime]
    """The current time, aware UTC."""
    idempotency_key: str
    """Unique for each message, and the same for all attempts at it."""
    store: KeyValueStore
    flows: FlowCaller
    mail: Mailer
    isolated: IsolatedTasks
    input: Value = None
    """The input of the execution: the message of its first listener."""
    names: Mapping[str, JsonValue] = field(default_factory=dict)
    """The values of the other names in the listener's texts, as `trigger` and `steps`."""
    depth: int = 0
    """The number of ancestors of this execution. Requests contain it, so that a cycle through this server ends."""
    budget: Budget = field(default_factory=lambda: Budget(MAX_STEPS))
    """The steps that all expressions and templates of this attempt can take. Beyond it, `CostLimitExceeded` ends the
    attempt on the event loop, and the block is called again in another process: use it before the first effect.
    """
    agent: AgentContext | None = None
    """Null for all blocks but the agent."""
    memory: MemoryBudget = field(default_factory=MemoryBudget)
    """The memory that the handler's values may take. Responses of `http` are charged to it. What is charged is released
    when the handler returns.
    """
    turn: Callable[[], Awaitable[None]] = no_turn
    """Waits for the user's next turn on the event loop. Await it after each wait, before work of more than 1 ms."""

    def scope(self, payload: JsonValue) -> dict[str, JsonValue]:
        """Return the values that templates and expressions can refer to.

        A large input is null here: blocks that can use it run in another process, which has read it.
        """
        return {"payload": payload, "input": None if isinstance(self.input, RawJson) else self.input, **self.names}


Payload = TypeVar("Payload", bound=BaseModel)
Config = TypeVar("Config", bound=BlockConfig)
Handler = Callable[[Payload, Config, BlockContext], Awaitable[Result]]


def no_targets(config: Any) -> Iterable[str]:
    return ()


def default_input_schema(config: Any) -> JsonSchema | None:
    return None


def unknown_answer(config: Any, message: Shape) -> Shape:
    return ANYTHING


def message_as_answer(config: Any, message: Shape) -> Shape:
    return message


@dataclass(frozen=True)
class Block(Generic[Payload, Config]):
    """A handler with its schemas. `aliases` are other names that organisms can use as `handler`; an alias that ends in
    `*` matches all names with this prefix.
    """

    name: str
    description: str
    payload: type[Payload]
    config: type[Config]
    handler: Handler[Payload, Config]
    aliases: tuple[str, ...] = ()
    payload_aliases: tuple[str, ...] = ()
    """Names that an organism can use as `payload_class`."""
    templates: frozenset[str] = frozenset()
    """Members of `config` in which `{{ payload.… }}`, `{{ input.… }}` and `{{ secrets.NAME }}` are replaced before the
    handler is called. Secrets are allowed in no other member, because the answer of a handler is stored.
    """
    rendered: frozenset[str] = frozenset()
    """Members of `config` in which the handler itself replaces `{{ payload.… }}` and `{{ input.… }}`."""
    targets: Callable[[Config], Iterable[str]] = no_targets
    """Returns the listeners that a config names. They become peers."""
    input_schema: Callable[[Config], JsonSchema | None] = default_input_schema
    """Returns the JSON Schema of the message for a config, which agents read; null: the schema of `payload`. The values
    that placeholders refer to are added to it.
    """
    answer_shape: Callable[[Config, Shape], Shape] = unknown_answer
    """Returns what is known of the answer, for a config and what is known of the message."""
    expressions: tuple[str, ...] = ()
    """Members of `config` that are expressions over all names, as paths like `cases.*.when`."""
    awaits_call: bool = False
    """Whether its handler returns `Awaited`: its listeners have a URL, `resume.NAME.url`."""
    example: dict[str, Any] = field(default_factory=dict)
    """An example `config` and `payload`."""


AnyBlock = Block[Any, Any]
