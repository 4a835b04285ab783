"""One attempt at a message: the config is rendered, the block is called, and its answer or error becomes a step."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import structlog
from pydantic import JsonValue, ValidationError

from bloxserver.blocks import templates
from bloxserver.blocks.base import (
    AgentContext,
    BlockConfig,
    BlockContext,
    BlockError,
    Called,
    Conversation,
    Routed,
    Wait,
)
from bloxserver.blocks.json_values import MAX_ANSWER_BYTES
from bloxserver.clients.llm import LanguageModels
from bloxserver.clock import now
from bloxserver.encryption import redact
from bloxserver.engine.backoff import backoff_seconds
from bloxserver.engine.queue.values import CalledResult, LeaseLost
from bloxserver.engine.run.messages import Message, Step, Tokens
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.observability import metrics, tracing
from bloxserver.organism.model import Listener

log = structlog.stdlib.get_logger("bloxserver.engine")

MAX_BACKOFF_SECONDS = 3600
MAX_CODE = 64
MAX_LOCATION = 200


class ExecutionContext(Protocol):
    """The services and data that the blocks of one execution may use."""

    models: LanguageModels
    input: JsonValue
    """The input of the execution."""

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        """The context of one attempt. Interrupted tries do not count in `attempt`, so that a repetition is the same."""

    async def secrets(self, names: frozenset[str]) -> Mapping[str, str]:
        """The values of the owner's secrets. Raises `BlockError`."""


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
            **values,
        )

    def failure(self, error: BlockError) -> Step:
        """A step that is retried, or has failed."""
        values = {"error": error.message, "error_code": error.code[:MAX_CODE]}
        if not error.retryable or self.counted_number > self.listener.retries:
            return self.step(StepStatus.ERROR, completed_at=now(), **values)
        pauses = (
            backoff_seconds(self.counted_number, initial=self.listener.backoff_seconds, maximum=MAX_BACKOFF_SECONDS),
            backoff_seconds(1, initial=error.retry_after or 0, maximum=MAX_BACKOFF_SECONDS),
        )
        due = now() + timedelta(seconds=max(pauses))
        return self.step(StepStatus.RETRYING, completed_at=due, **values)

    def resolve_call(self, calling: Step, called: Mapping[UUID, CalledResult]) -> Step:
        """The step that called another execution, with the result of that execution if it has ended."""
        result = called.get(calling.called_id) if calling.called_id else None
        if result is None:
            return self.failure(BlockError("call_lost", "the called execution no longer exists"))
        if result.status is ExecutionStatus.RUNNING:
            return calling
        if result.status is ExecutionStatus.SUCCESS:
            output = json.loads(result.output or "null")
            return self.step(StepStatus.SUCCESS, completed_at=now(), output=output, called_id=calling.called_id)
        reason = f"the called execution {calling.called_id} ended as {result.status.value}: {result.error or ''}"
        return self.failure(BlockError("call_failed", reason))


async def handle(attempt: Attempt, context: ExecutionContext, conversation: RecordedConversation) -> Step:
    """Call the block. Every failure of the block becomes an error of the step. Raises `LeaseLost`."""
    started = time.perf_counter()
    name = attempt.listener.block.name
    attributes: dict[str, str | int] = {
        "bloxserver.step.listener": attempt.listener.name,
        "bloxserver.step.handler": name,
        "bloxserver.step.attempt": attempt.number,
    }
    with tracing.child_span(f"step {name}", attributes) as span:
        step = await _handle(attempt, context, conversation)
        span.set_attributes({"bloxserver.step.status": step.status.value})
        if step.error_code is not None:
            span.fail(step.error_code)
    metrics.STEPS.labels(name, step.status.value).inc()
    metrics.STEP_SECONDS.labels(name).observe(time.perf_counter() - started)
    return step


async def _handle(attempt: Attempt, context: ExecutionContext, conversation: RecordedConversation) -> Step:
    listener = attempt.listener
    secrets: Mapping[str, str] = {}
    try:
        async with asyncio.timeout(listener.timeout_seconds) as limit:
            secrets = await context.secrets(listener.secrets) if listener.secrets else {}
            step = await _call(attempt, context, conversation, secrets)
    except BlockError as refusal:
        step = attempt.failure(refusal)
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
    step = replace(step, tokens=conversation.tokens)
    if step.is_open:
        step = replace(step, state=conversation.state)
    if secrets:
        error = redact(step.error, secrets)
        step = replace(step, output=redact(step.output, secrets), error=None if error is None else str(error))
    return step


async def _call(
    attempt: Attempt, context: ExecutionContext, conversation: Conversation, secrets: Mapping[str, str]
) -> Step:
    listener, message = attempt.listener, attempt.message
    config = _rendered(listener, message.payload, context.input, secrets)
    try:
        payload = listener.block.payload.model_validate(message.payload)
    except ValidationError as error:
        raise BlockError("invalid_payload", f"invalid payload: {_first(error)}", retryable=False) from None
    agent = AgentContext(context.models, listener.tools, conversation)
    block_context = context.context(message, attempt.counted_number, agent)
    result = await listener.block.handler(payload, config, block_context)
    match result:
        case Wait(until, answer):
            if not isinstance(until, datetime) or until.tzinfo is None:
                raise BlockError("invalid_answer", "a wait needs a time with a time zone", retryable=False)
            return attempt.step(StepStatus.WAITING, completed_at=until, output=_checked(answer))
        case Routed(answer, to):
            return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=_checked(answer), routed_to=to)
        case Called(execution_id):
            return attempt.step(StepStatus.CALLING, called_id=execution_id)
        case answer:
            return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=_checked(answer))


def _checked(answer: JsonValue) -> JsonValue:
    """The answer of a block, if it can be stored. Raises `BlockError`."""
    try:
        size = len(json.dumps(answer, allow_nan=False, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise BlockError("invalid_answer", f"the answer is not JSON: {reason}", retryable=False) from None
    if size > MAX_ANSWER_BYTES:
        message = f"the answer is larger than {MAX_ANSWER_BYTES} characters"
        raise BlockError("invalid_answer", message, retryable=False)
    return answer


def _rendered(
    listener: Listener, payload: JsonValue, execution_input: JsonValue, secrets: Mapping[str, str]
) -> BlockConfig:
    """The config with its placeholders replaced in one pass: inserted text is not rendered again."""
    if not listener.templates:
        return listener.config
    scope: dict[str, JsonValue] = {"payload": payload, "input": execution_input, "secrets": dict(secrets)}
    given = {
        name: templates.render(value, scope) if name in listener.templates else value
        for name, value in listener.given_config.items()
    }
    try:
        config: BlockConfig = listener.block.config.model_validate(given)
    except ValidationError as error:
        message = f"invalid config after its placeholders were replaced: {_first(error)}"
        raise BlockError("invalid_config", message, retryable=False) from None
    return config


def _first(error: ValidationError) -> str:
    reason = error.errors(include_input=False, include_url=False, include_context=False)[0]
    location = ".".join(str(part) for part in reason["loc"])[:MAX_LOCATION] or "payload"
    return f"{location}: {reason['msg'].removeprefix('Value error, ')}"
