"""Loops: the step of a message calls its own listener for each item of a list, and answers with the list of answers.

Each item is a step of its own, with its own attempts and idempotency key. After an interruption, the list is computed
again from the message; items that have ended are not handled again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import Protocol

from pydantic import JsonValue

from bloxserver.blocks.base import STOPPING, BlockError, ExecutionStopped
from bloxserver.blocks.cel.values import MAX_STEPS, Budget, CostLimitExceeded, Invocation
from bloxserver.blocks.expressions import evaluate_items
from bloxserver.blocks.json_values import MAX_ANSWER_BYTES
from bloxserver.clock import now
from bloxserver.engine.run.attempt import Attempt, AttemptWork, ExecutionContext, RecordedConversation, moment_of
from bloxserver.engine.run.error_reports import report_of
from bloxserver.engine.run.large_messages import list_large
from bloxserver.engine.run.messages import Message, Step, is_loop
from bloxserver.engine.run.names import input_for
from bloxserver.item_keys import call_of_item
from bloxserver.models.enums import StepStatus
from bloxserver.organism.model import Listener
from bloxserver.raw_json import RawJson, Value, plain, value_of_text
from bloxserver.storable import json_text

MAX_ITEMS = 10_000
"""In one execution."""


class LoopRun(Protocol):
    """The run of an execution, as its loops use it."""

    async def call(self, agent: Message, listener: str, payload: Value, call: str) -> Step:
        """Have a listener handle a call; returns the step once it has ended."""

    async def keep_begun(self, step: Step) -> None:
        """Save the step of a loop before its first call, unless it was saved."""

    def expect_calls(self, caller: Message, calls: int) -> None:
        """Set how many open calls a step makes before it waits."""


def listener_of_loop(listener: Listener) -> Listener:
    """The listener for the step of a loop. Attempts, timeouts and secrets are those of the items."""
    return replace(listener, retries=0, timeout_seconds=None, secrets=frozenset())


class Loops:
    """The loops of one run of the pump."""

    def __init__(self, run: LoopRun, saved: Mapping[str, Step]) -> None:
        """`saved` are the steps of an earlier run, by the keys of their messages."""
        self._run = run
        self._saved = saved
        self._items: int | None = None
        """The items of the loops so far; None before the first."""

    def work(self, attempt: Attempt) -> AttemptWork | None:
        """What to do at an attempt instead of calling the block; None if the block handles the message."""
        return self._answer if is_loop(attempt.listener, attempt.message) else None

    async def _answer(
        self,
        attempt: Attempt,
        context: ExecutionContext,
        conversation: RecordedConversation,
        secrets: Mapping[str, str],
    ) -> Step:
        """The step of a loop whose items have ended. Raises `BlockError` and `MemoryLimitReached`."""
        texts = await _list_items(attempt, context)
        self._count(len(texts))
        with closing(context.memory.child()) as memory:
            memory.reserve(sum(map(len, texts)))
            if texts:
                await self._run.keep_begun(attempt.step(StepStatus.RUNNING))
            answers = await self._handle_items(attempt, texts)
        text = f"[{', '.join(answers)}]"
        if len(text) > MAX_ANSWER_BYTES:
            message = f"the list of answers is larger than {MAX_ANSWER_BYTES} characters"
            raise BlockError("invalid_answer", message, retryable=False)
        output = value_of_text(text)
        if isinstance(output, RawJson):
            context.memory.reserve(len(text))
        return attempt.step(StepStatus.SUCCESS, completed_at=now(), output=output)

    def _count(self, items: int) -> None:
        """Raises `BlockError` if the execution has too many items."""
        if self._items is None:
            ended = {step.id for step in self._saved.values() if not step.is_open}
            saved = [step.message for step in self._saved.values() if step.message.index is not None]
            self._items = sum(message.parent_id in ended for message in saved)
        if self._items + items > MAX_ITEMS:
            found = f"{self._items:,} and {items:,}" if self._items else f"{items:,}"
            message = f"the loops of an execution have at most {MAX_ITEMS:,} items together, not {found}"
            raise BlockError("too_many_items", message, retryable=False)
        self._items += items

    async def _handle_items(self, attempt: Attempt, texts: Sequence[str]) -> list[str]:
        """Handle `parallel` items at a time; returns the answers as JSON texts. Raises `BlockError`."""
        answers = [""] * len(texts)
        left = enumerate(texts)
        busy = min(attempt.listener.parallel, len(texts))
        self._run.expect_calls(attempt.message, busy)

        async def take_items() -> None:
            nonlocal busy
            for index, text in left:
                answers[index] = await self._handle_item(attempt, index, value_of_text(text))
            busy -= 1
            self._run.expect_calls(attempt.message, busy)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(busy):
                    group.create_task(take_items())
        except BaseExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return answers

    async def _handle_item(self, attempt: Attempt, index: int, item: Value) -> str:
        """The answer or, if it is collected, the error of an item as JSON text. Raises `BlockError`."""
        listener, message = attempt.listener, attempt.message
        self._require_same(Message(listener.name, item, message.id, call_of_item(index)))
        step = await self._run.call(message, listener.name, item, call_of_item(index))
        if step.status is StepStatus.SUCCESS:
            return step.output.text if isinstance(step.output, RawJson) else json_text(step.output)
        code, reason = step.error_code or "failed", step.error or "failed"
        if code in STOPPING:
            raise ExecutionStopped(code, reason)
        if listener.on_item_error == "fail":
            attempts = f" (attempt {step.attempt})" if step.attempt > 1 else ""
            raise BlockError(code, f"item {index}{attempts}: {reason}", retryable=False)
        report = report_of(step)
        error: dict[str, JsonValue] = {"listener": listener.name, "code": report.code, "message": report.message}
        return json_text({"error": error | {"attempt": step.attempt, "index": index}})

    def _require_same(self, message: Message) -> None:
        """Raises `BlockError` if an earlier run handled another item at this position: its answer would be wrong."""
        saved = self._saved.get(message.key)
        if saved is not None and saved.message.payload != message.payload:
            reason = f"item {message.index} is not the one that was handled before: for_each gives another list now"
            raise BlockError("for_each_changed", reason, retryable=False)


async def _list_items(attempt: Attempt, context: ExecutionContext) -> list[str]:
    """The items of the list as JSON texts. Raises `BlockError`."""
    listener = attempt.listener
    assert listener.for_each is not None  # noqa: S101
    scope: dict[str, Value] = {
        "payload": attempt.message.payload,
        "input": input_for(listener, context.input),
        **context.names.of(listener),
    }
    moment, key = moment_of(attempt, context), str(attempt.message.id)
    if not any(isinstance(value, RawJson) for value in scope.values()):
        try:
            small = {name: plain(value) for name, value in scope.items()}
            budget = Budget(MAX_STEPS, invocation=Invocation(moment, key))
            return [json_text(item) for item in evaluate_items(listener.for_each, small, budget)]
        except CostLimitExceeded:
            pass
    return await list_large(context.isolated, listener.for_each, scope, Invocation(moment, key))
