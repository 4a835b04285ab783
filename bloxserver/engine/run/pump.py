"""The message pump: a message goes to a listener, its answer to the listener's peers, until nothing is left.

It knows no database: what has ended is handed to `save`, and a step that was saved before is not run again.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import structlog
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError, Tool
from bloxserver.clock import now
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.attempt import Attempt, ExecutionContext, handle
from bloxserver.engine.run.messages import (
    NO_TOKENS,
    Change,
    Failed,
    Finished,
    Message,
    Outcome,
    Save,
    Step,
    Suspended,
    Tokens,
)
from bloxserver.engine.run.routing import RoutingError, route
from bloxserver.models.enums import StepStatus
from bloxserver.organism.model import Organism

log = structlog.stdlib.get_logger("bloxserver.engine")

MAX_INLINE_WAIT = timedelta(seconds=2)
"""What is due this soon is waited for on the worker; parking and coming back takes as long."""
VISIBLE_AFTER = timedelta(seconds=0.2)
"""What takes longer is stored as running, so that it can be seen; to store every beginning would cost a transaction."""
CANCEL_GRACE_SECONDS = 2
"""How long a block that was cancelled may take to leave; after that it is left behind."""
CALL_CHECK = timedelta(minutes=5)
"""How often a caller looks after what it called, should nobody wake it."""


class Pump:
    """One run of an execution, from the entry or from where an earlier run came to."""

    def __init__(
        self,
        organism: Organism,
        kept: Iterable[Step],
        world: ExecutionContext,
        save: Save,
        called: Mapping[UUID, CalledResult] | None = None,
        *,
        sequence: int = 0,
        visible_after: timedelta = VISIBLE_AFTER,
        let_go_seconds: float = CANCEL_GRACE_SECONDS,
    ) -> None:
        """`sequence` is that of the newest of all changes before."""
        self._show_after = visible_after
        self._let_go_seconds = let_go_seconds
        self._organism = organism
        self._kept = {step.message.key: step for step in kept}
        self._world = world
        self._save = save
        self._called = called or {}
        self._saving = asyncio.Lock()
        self._sequence = sequence
        self._tokens = {key: step.tokens for key, step in self._kept.items()}
        self._inbox: asyncio.Queue[Step | BaseException | None] = asyncio.Queue()
        self._running: dict[UUID, asyncio.Task[None]] = {}
        """Attempts, by step."""
        self._waiting: dict[str, Step] = {}
        self._asked: dict[str, asyncio.Future[Step]] = {}
        """Calls that agents wait for, by the message's key."""
        self._calls: dict[str, Message] = {}
        """Their messages."""
        self._broken_off: list[asyncio.Task[None]] = []
        self._answered: dict[str, Step] = {}
        """Calls that were answered in this run: another attempt at the agent's message asks for the same."""
        self._blocked: Counter[UUID] = Counter()
        """How many calls an agent's step waits for."""
        self._unseen: dict[UUID, Step] = {}
        """What has begun and is not stored."""
        self._leaves: list[Step] = []
        self._handled = 0
        self._failure: Failed | None = None
        """Why an agent's call cannot be made."""

    async def run(self, entry: Message) -> Outcome:
        """Handle everything that can be handled now; the outcome was saved when this returns."""
        try:
            return await self._run(entry)
        finally:
            tasks = [*self._running.values(), *self._broken_off]
            for task in tasks:
                task.cancel()
            if tasks and (await asyncio.wait(tasks, timeout=self._let_go_seconds))[1]:
                log.error("a block does not let itself be cancelled", listeners=self.unfinished)

    @property
    def unfinished(self) -> list[str]:
        """The listeners that were at work when the run was broken off."""
        return sorted({task.get_name() for task in self._running.values()})

    async def _run(self, entry: Message) -> Outcome:
        self._handled = 1
        self._send([entry])
        while True:
            steps = await self._due_steps()
            if not steps:
                until = self._wake_time()
                if until is not None and self._is_idle() and self._inbox.empty() and until > now() + MAX_INLINE_WAIT:
                    return await self._park(until)
                steps = await self._next_steps(min(filter(None, (until, self._show_time())), default=None))
                if not steps:
                    await self._show()
            if (steps or self._failure) and (outcome := await self._take(steps)) is not None:
                return outcome

    async def _next_steps(self, until: datetime | None) -> list[Step]:
        """Steps that have ended; none where only the time or an agent's call woke the pump."""
        seconds = None if until is None else max(0.0, (until - now()).total_seconds())
        items: list[Step | BaseException | None] = []
        try:
            async with asyncio.timeout(seconds):
                items.append(await self._inbox.get())
        except TimeoutError:
            return []
        while not self._inbox.empty():
            items.append(self._inbox.get_nowait())
        for item in items:
            if isinstance(item, BaseException):
                raise item
        return [item for item in items if isinstance(item, Step)]

    async def _due_steps(self) -> list[Step]:
        """Begin again what is due to be tried again; returns those whose answer is due."""
        moment = now()
        answers: list[Step] = []
        due = [
            (key, step)
            for key, step in self._waiting.items()
            if step.status is not StepStatus.CALLING and step.completed_at is not None and step.completed_at <= moment
        ]
        if any(step.status is not StepStatus.WAITING for _, step in due):
            # Nothing was stored while it waited: another worker may have the execution by now, and have done it.
            await self._store([], None)
        for key, step in due:
            del self._waiting[key]
            if step.status is StepStatus.WAITING:
                answers.append(replace(step, status=StepStatus.SUCCESS))
            else:
                self._attempt(step.message, step.attempt + 1, step.started_at, step)
        return answers

    def _wake_time(self) -> datetime | None:
        """When something that waits goes on."""
        times = [
            now() + CALL_CHECK if step.status is StepStatus.CALLING else step.completed_at or now()
            for step in self._waiting.values()
        ]
        return min(times, default=None)

    def _show_time(self) -> datetime | None:
        """When something has gone on for so long that it should be seen."""
        return min((step.started_at + self._show_after for step in self._unseen.values()), default=None)

    async def _show(self) -> None:
        """Store that what is still at work has begun."""
        long_ago = now() - self._show_after
        async with self._saving:
            # Judged here: an agent may have stored more of itself meanwhile.
            begun = [step for step in self._unseen.values() if step.started_at <= long_ago]
            if begun:
                await self._write(begun, None)

    def _is_idle(self) -> bool:
        """Whether all that runs are agents that wait for calls."""
        return all(self._blocked[step_id] > 0 for step_id in self._running)

    async def _park(self, until: datetime) -> Outcome:
        called = [step.called_id for step in self._waiting.values() if step.called_id is not None]
        outcome = Suspended(until, tuple(called))
        await self._store([], outcome)
        return outcome

    async def _take(self, steps: Sequence[Step]) -> Outcome | None:
        """Keep steps and send their answers on; returns the outcome where that is all."""
        messages: list[Message] = []
        answers: list[Step] = []
        outcome: Outcome | None = self._failure
        given_up: list[Step] = []
        for step in steps:
            self._running.pop(step.id, None)
            if not step.is_open:
                given_up += self._give_up_calls(step.id)
            if step.is_open:
                self._waiting[step.message.key] = step
            elif step.message.call is not None:
                answers.append(step)
            else:
                try:
                    messages += await self._route(step)
                except RoutingError as failure:
                    outcome = outcome or Failed(str(failure))
        outcome = outcome or self._failure or self._count(messages)
        if outcome is None and not (messages or answers or self._running or self._waiting):
            outcome = Finished(output_of(self._leaves))
        # Before the answers go out: what a listener was sent must not be taken back by a crash.
        begun = [self._begun(message) for message in messages if message.key not in self._kept] if not outcome else []
        ended = [step for step in steps if self._kept.get(step.message.key) is not step]
        keys = {step.message.key for step in steps}  # what was done is kept, although nobody waits for it
        given_up = [step for step in given_up if step.message.key not in keys]
        if ended or given_up or begun or outcome:
            await self._store([*ended, *given_up, *begun], outcome)
        if outcome is None:
            self._answer(answers)
            self._send(messages)
        return outcome

    def _give_up_calls(self, agent: UUID) -> list[Step]:
        """What an agent asked for and has not waited for serves nobody any more."""
        given_up: list[Step] = []
        for key in [key for key in self._asked if key.startswith(f"{agent}:")]:
            del self._asked[key]
            message = self._calls.pop(key)
            if task := self._running.pop(message.id, None):
                task.cancel()
                self._broken_off.append(task)
            waiting = self._waiting.pop(key, None)
            step = replace(waiting or self._begun(message), tokens=self._tokens.get(key, NO_TOKENS))
            given_up += [replace(step, status=StepStatus.CANCELLED, completed_at=now(), state=None)]
            given_up += self._give_up_calls(message.id)
        return given_up

    async def _route(self, step: Step) -> list[Message]:
        listener = self._organism.listener(step.message.listener)
        messages = [Message(name, payload, step.id) for name, payload in await route(listener, step, self._world.input)]
        if not messages:
            self._leaves.append(step)
        return messages

    def _count(self, messages: Sequence[Message]) -> Failed | None:
        self._handled += len(messages)
        limit = self._organism.execution.max_iterations
        if self._handled <= limit:
            return None
        return Failed(f"{messages[-1].listener}: more than {limit} messages (execution.max_iterations)")

    def _begun(self, message: Message) -> Step:
        name = self._organism.listener(message.listener).block.name
        return Step(message, name, StepStatus.RUNNING, now())

    def _answer(self, steps: Iterable[Step]) -> None:
        """Hand the answers of called listeners to the agents that called them."""
        for step in steps:
            self._answered[step.message.key] = step
            self._calls.pop(step.message.key, None)
            future = self._asked.pop(step.message.key, None)
            if future is not None and step.message.parent_id is not None and not future.done():
                self._blocked[step.message.parent_id] -= 1
                future.set_result(step)

    def _send(self, messages: Iterable[Message]) -> None:
        """Begin to handle messages; what an earlier run has of them is taken from there."""
        for message in messages:
            kept = self._kept.get(message.key)
            if kept is None:
                begun = self._begun(message)
                if message.key not in self._tokens:
                    self._unseen[message.id] = begun
                self._attempt(message, 1, begun.started_at, None)
            elif kept.status is StepStatus.RUNNING:
                if message.key in self._calls:
                    self._calls[message.key] = kept.message
                self._attempt(kept.message, kept.attempt, kept.started_at, kept)
            elif kept.status is StepStatus.CALLING:
                listener = self._organism.listener(message.listener)
                attempt = Attempt(listener, kept.message, kept.attempt, kept.started_at)
                self._inbox.put_nowait(attempt.resolve_call(kept, self._called))
            else:
                self._inbox.put_nowait(kept)

    def _attempt(self, message: Message, number: int, started_at: datetime, earlier: Step | None) -> None:
        listener = self._organism.listener(message.listener)
        attempt = Attempt(listener, message, number, started_at)
        self._blocked[message.id] = 0  # an attempt that was broken off waits for nothing any more
        conversation = _Conversation(self, attempt, earlier)
        self._running[message.id] = asyncio.create_task(self._work(attempt, conversation), name=message.listener)

    async def _work(self, attempt: Attempt, conversation: _Conversation) -> None:
        try:
            self._inbox.put_nowait(await handle(attempt, self._world, conversation))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._inbox.put_nowait(error)

    async def call(self, agent: Message, listener: str, payload: JsonValue, call: str) -> Step:
        """Have a listener handle what an agent asks of it."""
        message = Message(listener, payload, agent.id, call)
        if (answered := self._answered.get(message.key)) is not None:
            return answered
        is_new = message.key not in self._asked
        if is_new:
            self._failure = self._failure or self._count([message])
            self._calls[message.key] = message
        future: asyncio.Future[Step] = asyncio.get_running_loop().create_future()
        self._asked[message.key] = future
        self._blocked[agent.id] += 1
        if is_new and self._failure is None:
            self._send([message])
        self._inbox.put_nowait(None)  # this agent runs no longer: perhaps there is nothing else
        return await future

    async def keep(self, step: Step) -> None:
        """Store how far an agent has come."""
        await self._store([step], None)

    async def _store(self, steps: Sequence[Step], outcome: Outcome | None) -> None:
        """One at a time: who follows the sequence must not see a later change before an earlier one."""
        async with self._saving:
            await self._write(steps, outcome)

    async def _write(self, steps: Sequence[Step], outcome: Outcome | None) -> None:
        used = NO_TOKENS
        numbered: list[Step] = []
        for step in steps:
            self._sequence += 1
            used = used.plus(step.tokens.minus(self._tokens.get(step.message.key, NO_TOKENS)))
            self._tokens[step.message.key] = step.tokens
            numbered.append(replace(step, sequence=self._sequence))
        for step in steps:
            self._unseen.pop(step.id, None)
        await self._save(Change(numbered, used, outcome))


class _Conversation:
    """An agent's, kept in its step."""

    def __init__(self, pump: Pump, attempt: Attempt, earlier: Step | None) -> None:
        self._pump = pump
        self._attempt = attempt
        self.state: JsonValue = earlier.state if earlier else None
        self.tokens = earlier.tokens if earlier else NO_TOKENS

    async def keep(self, state: JsonValue, *, input_tokens: int, output_tokens: int) -> None:
        self.state = state
        self.tokens = self.tokens.plus(Tokens(input_tokens, output_tokens))
        await self._pump.keep(self._attempt.step(StepStatus.RUNNING, state=state, tokens=self.tokens))

    async def call(self, tool: Tool, payload: JsonValue, call: str) -> JsonValue:
        step = await self._pump.call(self._attempt.message, tool.listener, payload, call)
        if step.status is StepStatus.ERROR:
            raise BlockError(step.error_code or "failed", step.error or "failed", retryable=False)
        return step.output


def output_of(leaves: Sequence[Step]) -> JsonValue:
    """One leaf gives its answer; several give an object by listener, with a list where one answered repeatedly."""
    answers: dict[str, list[JsonValue]] = defaultdict(list)
    for step in sorted(leaves, key=lambda leaf: (leaf.started_at, leaf.id)):
        answers[step.message.listener].append(step.output)
    if len(leaves) == 1:
        return leaves[0].output
    return {name: given[0] if len(given) == 1 else given for name, given in answers.items()}
