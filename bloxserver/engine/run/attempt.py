"""One attempt at one message: the config is filled in, the block called, its answer or its error made a step."""

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
MAX_PLACE = 200


class ExecutionContext(Protocol):
    """What one execution may reach."""

    models: LanguageModels
    input: JsonValue
    """What it was given."""

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext: ...

    async def secrets(self, names: frozenset[str]) -> Mapping[str, str]:
        """The values of the owner's secrets. Raises `BlockError`."""


class RecordedConversation(Conversation, Protocol):
    """A conversation that knows what it used."""

    tokens: Tokens


@dataclass(frozen=True)
class Attempt:
    """The `number`th try at a message, counted from 1."""

    listener: Listener
    message: Message
    number: int
    started_at: datetime
    """Of the first try."""

    def step(self, status: StepStatus, **values: Any) -> Step:
        """How the try came out."""
        name = self.listener.block.name
        return Step(self.message, name, status, self.started_at, attempt=self.number, **values)

    def failure(self, error: BlockError) -> Step:
        """A step that is tried again, or has failed for good."""
        told = {"error": error.message, "error_code": error.code[:MAX_CODE]}
        if not error.retryable or self.number > self.listener.retries:
            return self.step(StepStatus.ERROR, completed_at=now(), **told)
        pauses = (
            backoff_seconds(self.number, initial=self.listener.backoff_seconds, maximum=MAX_BACKOFF_SECONDS),
            backoff_seconds(1, initial=error.retry_after or 0, maximum=MAX_BACKOFF_SECONDS),
        )
        due = now() + timedelta(seconds=max(pauses))
        return self.step(StepStatus.RETRYING, completed_at=due, **told)

    def resolve_call(self, calling: Step, called: Mapping[UUID, CalledResult]) -> Step:
        """How a step that called another execution stands, by that one's end."""
        result = called.get(calling.called_id) if calling.called_id else None
        if result is None:
            return self.failure(BlockError("call_lost", "the execution that was called is gone"))
        if result.status is ExecutionStatus.RUNNING:
            return calling
        if result.status is ExecutionStatus.SUCCESS:
            output = json.loads(result.output or "null")
            return self.step(StepStatus.SUCCESS, completed_at=now(), output=output, called_id=calling.called_id)
        reason = f"the called execution {calling.called_id} ended as {result.status.value}: {result.error or ''}"
        return self.failure(BlockError("call_failed", reason))


async def handle(attempt: Attempt, world: ExecutionContext, conversation: RecordedConversation) -> Step:
    """Call the block; its failure, whatever it is, becomes the step's. Raises `LeaseLost`."""
    began = time.perf_counter()
    name = attempt.listener.block.name
    about: dict[str, str | int] = {
        "bloxserver.step.listener": attempt.listener.name,
        "bloxserver.step.handler": name,
        "bloxserver.step.attempt": attempt.number,
    }
    with tracing.within(f"step {name}", about) as span:
        step = await _handle(attempt, world, conversation)
        span.note({"bloxserver.step.status": step.status.value})
        if step.error_code is not None:
            span.fail(step.error_code)
    metrics.STEPS.labels(name, step.status.value).inc()
    metrics.STEP_SECONDS.labels(name).observe(time.perf_counter() - began)
    return step


async def _handle(attempt: Attempt, world: ExecutionContext, conversation: RecordedConversation) -> Step:
    listener = attempt.listener
    secrets: Mapping[str, str] = {}
    try:
        async with asyncio.timeout(listener.timeout_seconds) as limit:
            secrets = await world.secrets(listener.secrets) if listener.secrets else {}
            step = await _call(attempt, world, conversation, secrets)
    except BlockError as refusal:
        step = attempt.failure(refusal)
    except LeaseLost:
        raise
    except KeyboardInterrupt:
        raise
    except BaseException as bug:  # panics of extensions in Rust are no Exceptions
        task = asyncio.current_task()
        if isinstance(bug, asyncio.CancelledError) and task is not None and task.cancelling():
            raise  # by the worker; a block that raises it itself has failed
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
    attempt: Attempt, world: ExecutionContext, conversation: Conversation, secrets: Mapping[str, str]
) -> Step:
    listener, message = attempt.listener, attempt.message
    config = _filled(listener, message.payload, world.input, secrets)
    try:
        payload = listener.block.payload.model_validate(message.payload)
    except ValidationError as error:
        raise BlockError("invalid_payload", f"unusable payload: {_first(error)}", retryable=False) from None
    agent = AgentContext(world.models, listener.tools, conversation)
    result = await listener.block.handler(payload, config, world.context(message, attempt.number, agent))
    match result:
        case Wait(until, answer):
            if not isinstance(until, datetime) or until.tzinfo is None:
                raise BlockError("invalid_answer", "a wait needs an aware time", retryable=False)
            return attempt.step(StepStatus.WAITING, completed_at=until, output=_checked(answer))
        case Routed(answer, to):
            return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=_checked(answer), routed_to=to)
        case Called(execution_id):
            return attempt.step(StepStatus.CALLING, called_id=execution_id)
        case answer:
            return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=_checked(answer))


def _checked(answer: JsonValue) -> JsonValue:
    """What a block answered, which may be anybody's. Raises `BlockError`."""
    try:
        size = len(json.dumps(answer, allow_nan=False, ensure_ascii=False))
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise BlockError("invalid_answer", f"the answer is no JSON: {reason}", retryable=False) from None
    if size > MAX_ANSWER_BYTES:
        message = f"the answer is larger than {MAX_ANSWER_BYTES} characters"
        raise BlockError("invalid_answer", message, retryable=False)
    return answer


def _filled(
    listener: Listener, payload: JsonValue, execution_input: JsonValue, secrets: Mapping[str, str]
) -> BlockConfig:
    """The config with its placeholders replaced, all in one pass: what was put in is not looked at again."""
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
        message = f"unusable config, once filled in: {_first(error)}"
        raise BlockError("invalid_config", message, retryable=False) from None
    return config


def _first(error: ValidationError) -> str:
    reason = error.errors(include_input=False, include_url=False, include_context=False)[0]
    place = ".".join(str(part) for part in reason["loc"])[:MAX_PLACE] or "payload"
    return f"{place}: {reason['msg'].removeprefix('Value error, ')}"
