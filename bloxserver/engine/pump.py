"""The message pump: a message goes to a listener, its answer to the listener's peers, until nothing is left.

It knows no database: what has ended is handed to `save`, and a step that was saved before is not run again.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from pydantic import JsonValue, ValidationError

from bloxserver.api.models.enums import StepStatus
from bloxserver.api.models.types import new_id, now
from bloxserver.blocks.base import BlockContext, BlockError, Wait
from bloxserver.organism.model import Listener, Organism

log = structlog.stdlib.get_logger("bloxserver.engine")


@dataclass(frozen=True)
class Message:
    """What a listener is to handle. `key` names it within its execution, the same on every run."""

    listener: str
    payload: JsonValue
    parent_id: UUID | None = None

    @property
    def key(self) -> str:
        return f"{self.parent_id or ''}:{self.listener}"


@dataclass(frozen=True)
class Step:
    """A handled message. `waiting` means that the answer is known and due at `completed_at`."""

    message: Message
    handler: str
    status: StepStatus
    started_at: datetime
    completed_at: datetime
    output: JsonValue = None
    error: str | None = None
    id: UUID = field(default_factory=new_id)


@dataclass(frozen=True)
class Finished:
    """All messages were handled; `output` is what reached no peer."""

    output: JsonValue


@dataclass(frozen=True)
class Failed:
    """A listener could not handle its message, or the organism went on for too long."""

    error: str


@dataclass(frozen=True)
class Parked:
    """Nothing can be done before `until`."""

    until: datetime


Outcome = Finished | Failed | Parked
Save = Callable[[Sequence[Step], Outcome | None], Awaitable[None]]
"""Keeps steps that ended together and, with the last of them, the outcome."""
ContextOf = Callable[[Message], BlockContext]


class Pump:
    """One run of an execution, from the entry or from where an earlier run came to."""

    def __init__(self, organism: Organism, kept: Iterable[Step], context_of: ContextOf, save: Save) -> None:
        self._organism = organism
        self._kept = {step.message.key: step for step in kept}
        self._context_of = context_of
        self._save = save
        self._running: set[asyncio.Task[Step]] = set()
        self._waiting: list[Step] = []
        self._leaves: list[Step] = []
        self._handled = 0

    async def run(self, entry: Message) -> Outcome:
        """Handle everything that can be handled now; the outcome was saved when this returns."""
        try:
            return await self._run(entry)
        finally:
            for task in self._running:
                task.cancel()
            await asyncio.gather(*self._running, return_exceptions=True)

    async def _run(self, entry: Message) -> Outcome:
        self._handled = 1
        self._send([entry])
        while True:
            ended, self._running = await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
            steps = [task.result() for task in ended]
            answers = self._take(steps)
            outcome: Outcome | None = answers if isinstance(answers, Failed) else None
            if not answers and not self._running:
                outcome = self._outcome()
            # Before the answers go out: what a listener was sent must not be taken back by a crash.
            await self._save([step for step in steps if self._kept.get(step.message.key) is not step], outcome)
            if outcome is not None:
                return outcome
            if not isinstance(answers, Failed):
                self._send(answers)

    def _take(self, steps: Sequence[Step]) -> list[Message] | Failed:
        """The messages that the steps' answers make."""
        messages: list[Message] = []
        for step in steps:
            if step.status is StepStatus.WAITING:
                self._waiting.append(step)
            elif step.status is StepStatus.ERROR:
                return Failed(f"{step.message.listener}: {step.error}")
            else:
                peers = self._organism.listener(step.message.listener).peers
                if not peers:
                    self._leaves.append(step)
                messages += [Message(peer, step.output, step.id) for peer in peers]
        self._handled += len(messages)
        limit = self._organism.execution.max_iterations
        if self._handled > limit:
            return Failed(f"{messages[-1].listener}: more than {limit} messages (execution.max_iterations)")
        return messages

    def _send(self, messages: Sequence[Message]) -> None:
        """Begin to handle messages; those of an earlier run are taken from there."""
        for message in messages:
            kept = self._kept.get(message.key)
            listener = self._organism.listener(message.listener)
            self._running.add(asyncio.create_task(self._resume(kept) if kept else self._handle(listener, message)))

    async def _resume(self, kept: Step) -> Step:
        """A step of an earlier run; one that waited ends when its time has come."""
        if kept.status is StepStatus.WAITING and kept.completed_at <= now():
            return Step(
                kept.message,
                kept.handler,
                StepStatus.SUCCESS,
                kept.started_at,
                kept.completed_at,
                kept.output,
                id=kept.id,
            )
        return kept

    async def _handle(self, listener: Listener, message: Message) -> Step:
        started = now()
        status, output, error, completed = StepStatus.SUCCESS, None, None, None
        try:
            async with asyncio.timeout(listener.timeout_seconds) as limit:
                answer = await self._call(listener, message)
            if isinstance(answer, Wait):
                status, output, completed = StepStatus.WAITING, answer.answer, answer.until
            else:
                output = answer
        except BlockError as refusal:
            status, error = StepStatus.ERROR, refusal.message
        except Exception as bug:
            if isinstance(bug, TimeoutError) and limit.expired():
                reason = f"no answer within {listener.timeout_seconds:g} seconds"
                return Step(message, listener.block.name, StepStatus.ERROR, started, now(), error=reason)
            log.error("block failed unexpectedly", block=listener.block.name, exc_info=bug)
            status, error = StepStatus.ERROR, "internal error"
        return Step(message, listener.block.name, status, started, completed or now(), output, error)

    async def _call(self, listener: Listener, message: Message) -> JsonValue | Wait:
        try:
            payload = listener.block.payload.model_validate(message.payload)
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(part) for part in first["loc"]) or "payload"
            raise BlockError("invalid_payload", f"unusable payload: {place}: {first['msg']}") from None
        answer: JsonValue | Wait = await listener.block.handler(payload, listener.config, self._context_of(message))
        return answer

    def _outcome(self) -> Outcome:
        if self._waiting:
            return Parked(min(step.completed_at for step in self._waiting))
        return Finished(output_of(self._leaves))


def output_of(leaves: Sequence[Step]) -> JsonValue:
    """One leaf gives its answer; several give an object by listener, with a list where one answered repeatedly."""
    answers: dict[str, list[JsonValue]] = defaultdict(list)
    for step in sorted(leaves, key=lambda leaf: (leaf.started_at, leaf.id)):
        answers[step.message.listener].append(step.output)
    if len(leaves) == 1:
        return leaves[0].output
    return {name: given[0] if len(given) == 1 else given for name, given in answers.items()}


def elapsed_ms(step: Step) -> int:
    return max(0, int((step.completed_at - step.started_at) / timedelta(milliseconds=1)))
