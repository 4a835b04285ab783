"""One attempt at a message: the config is rendered, the block is called, and its answer or error becomes a step."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Protocol, TypeAlias, cast
from uuid import UUID

import structlog
from pydantic import JsonValue

from bloxserver.blocks.agent import agent as agent_block
from bloxserver.blocks.agent_calls import prompt_of
from bloxserver.blocks.base import (
    AgentContext,
    Awaited,
    BlockContext,
    BlockError,
    Called,
    Conversation,
    IsolatedTasks,
    LanguageModels,
    Result,
    Routed,
    StepWarning,
    Stop,
    StopError,
    Wait,
)
from bloxserver.blocks.cel.values import CostLimitExceeded, Invocation
from bloxserver.blocks.names import INDEX
from bloxserver.clients.memory import MemoryBudget, MemoryLimitReached
from bloxserver.clock import now
from bloxserver.engine.backoff import backoff_seconds
from bloxserver.engine.queue.values import CalledResult, LeaseLost
from bloxserver.engine.run.blocks import checked_answer, rendered_config, validated_config, validated_payload
from bloxserver.engine.run.error_reports import CALL_FAILED
from bloxserver.engine.run.large_messages import needs_process, redact_large, run_large
from bloxserver.engine.run.messages import NO_TOKENS, Message, Step, Tokens
from bloxserver.engine.run.names import ExecutionNames, input_for
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.observability import metrics, tracing
from bloxserver.organism.model import Listener
from bloxserver.raw_json import RawJson, Value, object_of, plain, value_of_text
from bloxserver.redaction import redact

log = structlog.stdlib.get_logger("bloxserver.engine")

MAX_BACKOFF_SECONDS = 3600
MAX_POSTPONED_SECONDS = 3600
"""How long a step without a timeout may be postponed."""
MAX_CODE = 64
DEFAULT_WAIT_SECONDS = 7 * 24 * 60 * 60
"""How long a step without a timeout waits for a call."""


class ExecutionContext(Protocol):
    """The services and data that the blocks of one execution may use."""

    def models(self, message: Message, attempt: int) -> LanguageModels:
        """The access to language models for an attempt at the message. Interrupted tries count in `attempt`."""

    @property
    def input(self) -> Value:
        """The input of the execution."""

    @property
    def picked_up_at(self) -> datetime:
        """When a worker first claimed the execution."""

    @property
    def isolated(self) -> IsolatedTasks:
        """Runs what is too large for the event loop."""

    @property
    def memory(self) -> MemoryBudget:
        """The memory of the execution's values."""

    @property
    def names(self) -> ExecutionNames:
        """The values of the names in expressions."""

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        """The context of one attempt. Interrupted tries do not count in `attempt`, so that a repetition is the same."""

    async def turn(self) -> None:
        """Wait until the owner's next step may begin on the event loop."""

    async def require_lease(self) -> None:
        """Check that a step may start; raises `LeaseLost`."""

    async def secrets(self, names: frozenset[str]) -> Mapping[str, str]:
        """The values of the owner's secrets. Raises `BlockError`."""

    async def received_calls(self) -> Mapping[str, Value]:
        """The bodies of the calls that resume the execution, by listener. Raises `LeaseLost`.

        A call that is accepted later is accepted after this has returned.
        """


class RecordedConversation(Conversation, Protocol):
    """A conversation that counts its tokens."""

    tokens: Tokens


@dataclass(frozen=True)
class Attempt:
    """The `number`th try at a message, counted from 1."""

    listener: Listener
    message: Message
    number: int
    started_at: datetime
    """When the first try started."""
    interruptions: int = 0
    """How many of the earlier tries were interrupted."""
    warnings: list[StepWarning] = field(default_factory=list)
    """Those of earlier tries, and of this one so far."""

    @classmethod
    def of(cls, listener: Listener, step: Step) -> Attempt:
        """The latest try of a step."""
        return cls(listener, step.message, step.attempt, step.started_at, step.interruptions, [*step.warnings])

    @property
    def counted_number(self) -> int:
        """The number without interrupted tries. They use up no retries, and a repeated try must have the same key."""
        return self.number - self.interruptions

    def step(self, status: StepStatus, **values: Any) -> Step:
        """The step with the result of this try."""
        return Step(
            self.message,
            self.listener.block.name,
            status,
            self.started_at,
            attempt=self.number,
            interruptions=self.interruptions,
            warnings=(*self.warnings,),
            **values,
        )

    def failure(self, error: BlockError) -> Step:
        """A step that is retried, or has failed."""
        values = {"error": error.message, "error_code": error.code[:MAX_CODE]}
        if error.is_postponed:
            return self._postponed(error, values)
        if not error.retryable or self.counted_number > self.listener.retries:
            return self.step(StepStatus.ERROR, completed_at=now(), **values)
        pauses = (
            backoff_seconds(self.counted_number, initial=self.listener.backoff_seconds, maximum=MAX_BACKOFF_SECONDS),
            backoff_seconds(1, initial=error.retry_after or 0, maximum=MAX_BACKOFF_SECONDS),
        )
        due = now() + timedelta(seconds=max(pauses))
        return self.step(StepStatus.RETRYING, completed_at=due, **values)

    def _postponed(self, error: BlockError, values: Mapping[str, Any]) -> Step:
        """A step that is tried again after a wait, which counts as an interruption. It fails at its timeout."""
        due = now() + timedelta(seconds=backoff_seconds(1, initial=error.retry_after or 0, maximum=MAX_BACKOFF_SECONDS))
        if due > self.started_at + timedelta(seconds=self.listener.timeout_seconds or MAX_POSTPONED_SECONDS):
            return self.step(StepStatus.ERROR, completed_at=now(), **values)
        waiting = self.step(StepStatus.RETRYING, completed_at=due, **values)
        return waiting._replace(interruptions=self.interruptions + 1)

    def resolve_call(self, calling: Step, called: Mapping[UUID, CalledResult]) -> Step:
        """The step that called another execution, with the result of that execution if it has ended."""
        result = called.get(calling.called_id) if calling.called_id else None
        if result is None:
            return self.failure(BlockError("call_lost", "the called execution no longer exists"))
        if result.status is ExecutionStatus.RUNNING:
            return calling
        if result.status is ExecutionStatus.SUCCESS:
            output = value_of_text(result.output or "null")
            return self.step(StepStatus.SUCCESS, completed_at=now(), output=output, called_id=calling.called_id)
        reason = f"the called execution {calling.called_id} ended as {result.status.value}: {result.error or ''}"
        return self.failure(BlockError(CALL_FAILED, reason))

    def resolve_wait(self, waiting: Step, received: Mapping[str, Value], moment: datetime) -> Step:
        """The step that waited for a call, with the body of the call, or with an error if its time is over."""
        if self.listener.name in received:
            return self.step(StepStatus.SUCCESS, completed_at=moment, output=received[self.listener.name])
        if waiting.completed_at is None or waiting.completed_at > moment:
            return waiting
        seconds = (waiting.completed_at - waiting.started_at).total_seconds()
        return self.failure(BlockError("wait_timeout", f"no call within {seconds:g} seconds", retryable=False))


AttemptWork: TypeAlias = Callable[
    [Attempt, ExecutionContext, RecordedConversation, Mapping[str, str]], Coroutine[Any, Any, Step]
]
"""What an attempt does, with the values of the listener's secrets. Raises like a block."""


async def handle(
    attempt: Attempt, context: ExecutionContext, conversation: RecordedConversation, work: AttemptWork | None = None
) -> Step:
    """Call the block, or do other work instead. Every failure becomes an error of the step. Raises `LeaseLost`."""
    started = time.perf_counter()
    name = attempt.listener.block.name
    attributes: dict[str, str | int] = {
        "bloxserver.step.listener": attempt.listener.name,
        "bloxserver.step.handler": name,
        "bloxserver.step.attempt": attempt.number,
    }
    with tracing.child_span(f"step {name}", attributes) as span:
        step = await _handle(attempt, context, conversation, work or _call)
        span.set_attributes({"bloxserver.step.status": step.status.value})
        if step.error_code is not None:
            span.fail(step.error_code)
    _number_of_steps(name, step.status.value).inc()
    _seconds_of_steps(name).observe(time.perf_counter() - started)
    return step


_number_of_steps = cache(metrics.STEPS.labels)
_seconds_of_steps = cache(metrics.STEP_SECONDS.labels)
"""Finding the metric of labels takes as long as changing it."""


async def _handle(
    attempt: Attempt, context: ExecutionContext, conversation: RecordedConversation, work: AttemptWork
) -> Step:
    listener = attempt.listener
    secrets: Mapping[str, str] = {}
    try:
        async with asyncio.timeout(listener.timeout_seconds) as limit:
            secrets = await context.secrets(listener.secrets) if listener.secrets else {}
            await context.turn()
            await context.require_lease()
            step = await work(attempt, context, conversation, secrets)
    except BlockError as refusal:
        step = attempt.failure(refusal)
    except MemoryLimitReached as reached:
        step = attempt.failure(BlockError("memory_limit_reached", str(reached), retryable=False))
    except LeaseLost:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as bug:  # a panic of a Rust extension is not an Exception
        task = asyncio.current_task()
        if isinstance(bug, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # the worker cancelled the task; a block that raises it by itself has failed
        if isinstance(bug, TimeoutError) and limit.expired():
            step = attempt.failure(
                BlockError("listener_timeout", f"no answer within {listener.timeout_seconds:g} seconds")
            )
        else:
            log.error("block failed unexpectedly", block=listener.block.name, exc_info=None if secrets else bug)
            step = attempt.failure(BlockError("internal_error", "internal error"))
    if conversation.tokens != NO_TOKENS:
        step = step._replace(tokens=conversation.tokens)
    if step.is_open:
        step = step._replace(state=conversation.state)
    if secrets:
        error = redact(step.error, secrets)
        step = step._replace(error=None if error is None else str(error))
    return step


async def _call(
    attempt: Attempt, context: ExecutionContext, conversation: RecordedConversation, secrets: Mapping[str, str]
) -> Step:
    listener, message = attempt.listener, attempt.message
    names = _names_of(attempt, context)
    if needs_process(listener, message.payload, input_for(listener, context.input), *names.values()):
        return await _call_in_process(attempt, context, secrets)
    # Only agents get large values here. They do not use the input of the execution.
    payload = message.payload
    if isinstance(payload, RawJson):
        payload = await prompt_of(payload, context.isolated)
    agent = None
    if listener.block is agent_block:
        agent = AgentContext(context.models(message, attempt.number), listener.tools, conversation)
    block_context = _block_context(attempt, context, agent)
    block_context.names = cast(Mapping[str, JsonValue], names)
    try:
        with closing(block_context.memory):
            config = rendered_config(listener, payload, block_context, secrets)
            validated = validated_payload(listener, payload)
            result = await listener.block.handler(validated, config, block_context)
    except CostLimitExceeded:
        return await _call_in_process(attempt, context, secrets)
    step = _step_of(attempt, result)
    if isinstance(step.output, RawJson):
        context.memory.reserve(len(step.output.text))
    if not secrets:
        return step
    if isinstance(step.output, RawJson):
        return step._replace(output=await redact_large(context.isolated, step.output, secrets))
    return step._replace(output=redact(step.output, secrets))


def _block_context(attempt: Attempt, context: ExecutionContext, agent: AgentContext | None) -> BlockContext:
    """The context of the block."""
    message = attempt.message
    block_context = context.context(message, attempt.counted_number, agent)
    block_context.budget.invocation = Invocation(moment_of(attempt, context), block_context.idempotency_key)
    return block_context


def moment_of(attempt: Attempt, context: ExecutionContext) -> datetime:
    """The value of `now()` in each try: the start of the entry is not saved before its first try; the claim is."""
    return context.picked_up_at if attempt.message.is_entry else attempt.started_at


async def _call_in_process(attempt: Attempt, context: ExecutionContext, secrets: Mapping[str, str]) -> Step:
    """Call the block in another process, because the message, the config or the cost of an expression is large."""
    block_context = _block_context(attempt, context, None)
    with closing(block_context.memory):
        step = await _step_in_process(attempt, context, block_context, secrets)
    if isinstance(step.output, RawJson):
        context.memory.reserve(len(step.output.text))
    return step


async def _step_in_process(
    attempt: Attempt, context: ExecutionContext, block_context: BlockContext, secrets: Mapping[str, str]
) -> Step:
    listener, message = attempt.listener, attempt.message
    values = message.payload, input_for(listener, context.input), object_of(_names_of(attempt, context))
    answer, described = await run_large(context.isolated, listener, values, block_context, secrets)
    if "only_config" in described:
        config = validated_config(listener, cast(dict[str, JsonValue], plain(answer)))
        result = await listener.block.handler(validated_payload(listener, None), config, block_context)
        step = _step_of(attempt, result)
        return step._replace(output=redact(plain(step.output), secrets))
    if "until" in described:
        return _step_of(attempt, Wait(datetime.fromisoformat(described["until"]), answer))
    if "to" in described:
        return _step_of(attempt, Routed(answer, tuple(described["to"])))
    if "called" in described:
        return _step_of(attempt, Called(UUID(described["called"])))
    if "stop" in described:
        error = described["stop"]
        return _step_of(attempt, Stop(answer, None if error is None else StopError(**error)))
    if "question" in described:
        return _step_of(attempt, Awaited(described["question"]))
    return _step_of(attempt, answer)


def _names_of(attempt: Attempt, context: ExecutionContext) -> dict[str, Value]:
    """The values of the names that the config can refer to, besides the message and the input."""
    if not attempt.listener.names:
        return {}
    names, index = context.names.of(attempt.listener), attempt.message.index
    return names if index is None else {**names, INDEX: index}


def _step_of(attempt: Attempt, result: Result) -> Step:
    """The step with the result of a handler. Raises `BlockError`."""
    match result:
        case Wait(until, answer):
            if not isinstance(until, datetime) or until.tzinfo is None:
                raise BlockError("invalid_answer", "a wait needs a time with a time zone", retryable=False)
            return attempt.step(StepStatus.WAITING, completed_at=until, output=checked_answer(answer))
        case Routed(answer, to):
            return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=checked_answer(answer), routed_to=to)
        case Called(execution_id):
            return attempt.step(StepStatus.CALLING, called_id=execution_id)
        case Stop(answer, error):
            if error is None:
                return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=checked_answer(answer), is_stop=True)
            values = {"error": error.message, "error_code": error.code[:MAX_CODE]}
            return attempt.step(StepStatus.ERROR, completed_at=now(), is_stop=True, **values)
        case Awaited(question):
            # From the start of the step: an interruption before it is saved must not extend the wait.
            until = attempt.started_at + timedelta(seconds=attempt.listener.timeout_seconds or DEFAULT_WAIT_SECONDS)
            return attempt.step(StepStatus.WAITING, completed_at=until, output={"question": question})
        case answer:
            return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=checked_answer(answer))
