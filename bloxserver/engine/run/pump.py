"""The message pump: it sends a message to a listener and the answer to the listener's peers, until none are left.

It does not use the database: steps that have ended are passed to `save`, and a saved step is not run again.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import partial
from uuid import UUID

import structlog

from bloxserver.clock import now
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.attempt import Attempt, ExecutionContext, handle
from bloxserver.engine.run.batches import Item, divide, take_batch
from bloxserver.engine.run.conversation import StoredConversation
from bloxserver.engine.run.joins import joins_of
from bloxserver.engine.run.loops import Loops, listener_of_loop
from bloxserver.engine.run.messages import (
    Failed,
    Message,
    Outcome,
    Save,
    Step,
    Suspended,
    called_by,
    interrupted_steps,
    is_loop,
    wake_time,
)
from bloxserver.engine.run.open_calls import OpenCalls
from bloxserver.engine.run.open_waits import OpenWaits
from bloxserver.engine.run.routing import RoutingError, route
from bloxserver.engine.run.run_outcomes import closed, finished_with, stopped_by, with_unmet_conditions
from bloxserver.engine.run.step_writer import StepWriter
from bloxserver.engine.run.wake_timer import WakeTimer
from bloxserver.models.enums import StepStatus
from bloxserver.organism.load import RunnableOrganism
from bloxserver.raw_json import Value

log = structlog.stdlib.get_logger("bloxserver.engine")

MAX_INLINE_WAIT = timedelta(seconds=2)
"""A shorter wait keeps the worker slot, because suspending and resuming the execution takes about as long."""
VISIBLE_AFTER = timedelta(seconds=0.2)
"""A step that takes longer is saved as running, so that it is visible. Saving each start would cost a transaction."""
CANCEL_GRACE_SECONDS = 2
"""How long the pump waits for a cancelled block to end."""
MAX_STARTED = 1_000
"""Steps that are handled at the same time. More would be tasks that wait: the garbage collector would read them all."""


class Pump:
    """One run of an execution, from the entry or from the saved steps of an earlier run."""

    def __init__(
        self,
        organism: RunnableOrganism,
        saved: Iterable[Step],
        context: ExecutionContext,
        save: Save,
        called: Mapping[UUID, CalledResult] | None = None,
        *,
        sequence: int = 0,
        visible_after: timedelta = VISIBLE_AFTER,
        cancel_grace_seconds: float = CANCEL_GRACE_SECONDS,
        on_call: Callable[[], None] = lambda: None,
    ) -> None:
        """`called` are results of the executions that saved steps called; `sequence` is the highest of saved steps.

        `on_call` is called when a step begins to wait for an execution that it called, or for a call of its URL.
        """
        self._cancel_grace_seconds = cancel_grace_seconds
        self._organism = organism
        self._saved = {step.message.key: step for step in saved}
        self._context = context
        self._called = called or {}
        self._on_call = on_call
        self._writer = StepWriter(save, self._saved.values(), sequence, visible_after)
        self._inbox: asyncio.Queue[Item] = asyncio.Queue()
        self._timer = WakeTimer(partial(self._inbox.put_nowait, None))
        self._queued = 0
        """Steps in the inbox that did not come from an attempt of this run."""
        self._running: dict[UUID, asyncio.Task[None]] = {}  # by step
        self._ready: OrderedDict[UUID, Step] = OrderedDict()
        self._attempts: dict[UUID, Attempt] = {}
        """The newest attempt of each step."""
        self._waiting: dict[str, Step] = {}
        self._calls = OpenCalls()
        self._loops = Loops(self, self._saved)
        self.waits = OpenWaits(organism, context, self._saved.values(), wake=partial(self._inbox.put_nowait, None))
        self._cancelled: list[asyncio.Task[None]] = []
        self._joins = joins_of(organism, self._saved, self._cancel_open, context)
        self._leaves: list[Step] = []
        self._handled = 0
        self._failure: Failed | None = None
        """Why an agent's tool call cannot be made."""

    async def run(self, entry: Message) -> Outcome:
        """Handle all messages that can be handled now. The outcome is saved when this returns."""
        try:
            return await self._run(entry)
        finally:
            self._timer.cancel()
            for task in (tasks := [*self._running.values(), *self._cancelled]):
                task.cancel()
            if tasks and (await asyncio.wait(tasks, timeout=self._cancel_grace_seconds))[1]:
                log.error("cancelled block still running", listeners=self.unfinished)

    @property
    def unfinished(self) -> list[str]:
        """The listeners that were running when the run ended."""
        return sorted({task.get_name() for task in self._running.values()})

    @property
    def pending_calls(self) -> frozenset[UUID]:
        """The called executions that steps of this run wait for; empty once the run has ended or is being suspended."""
        return frozenset(called_by(self._waiting.values()))

    def resolve_calls(self, results: Mapping[UUID, CalledResult | None]) -> None:
        """Continue the steps whose called executions have ended; None means that the called execution was deleted."""
        found = {called_id: result for called_id, result in results.items() if result is not None}
        calling = [(key, step) for key, step in self._waiting.items() if step.status is StepStatus.CALLING]
        for key, step in calling:
            if step.called_id in results and (resolved := self._resolve(step, found)) is not step:
                del self._waiting[key]
                self._enqueue(resolved)

    async def _run(self, entry: Message) -> Outcome:
        await self._count_interruptions()
        self._handled = 1
        self._send([entry])
        while True:
            steps = await self._due_steps()
            if not steps:
                until = wake_time(self._waiting.values())
                if until is not None and self._is_idle() and self._inbox.empty() and until > now() + MAX_INLINE_WAIT:
                    return await self._suspend(until)
                steps = await self._next_steps(
                    min(filter(None, (until, self._writer.next_visible_time())), default=None)
                )
                if not steps:
                    await self._writer.save_visible()
            if (outcome := await self._take(steps)) is not None:
                return outcome

    async def _count_interruptions(self) -> None:
        """Count the tries that an earlier run did not end; saved before the next one starts, which may fail as well."""
        interrupted = interrupted_steps(self._saved.values())
        self._saved |= {step.message.key: step for step in interrupted}
        if interrupted:
            await self._writer.store(interrupted, None)

    async def _next_steps(self, until: datetime | None) -> list[Step]:
        """Wait for the next steps that have ended; none if a timer or an agent's call woke the pump."""
        if until is not None:
            self._timer.wake_by(until)
        items = take_batch(self._inbox, await self._inbox.get(), self._organism)
        self._queued = self._inbox.qsize()
        if (error := next((item for item in items if isinstance(item, BaseException)), None)) is not None:
            raise error
        return [item for item in items if isinstance(item, Step)]

    async def _due_steps(self) -> list[Step]:
        """Start retries that are due; returns waiting steps whose answer is due."""
        moment = now()
        answers = await self.waits.take_ended(moment) if self._organism.waits else []
        for step in answers:
            del self._waiting[step.message.key]
        due = [
            (key, step)
            for key, step in self._waiting.items()
            if step.status is not StepStatus.CALLING
            and step.completed_at is not None
            and step.completed_at <= moment
            and not self.waits.is_open(step)
        ]
        if any(step.status is not StepStatus.WAITING for _, step in due):
            # Nothing was saved during the wait: another worker may have the execution by now, and have retried it.
            await self._writer.store([], None)
        for key, step in due:
            del self._waiting[key]
            if step.status is StepStatus.WAITING:
                answers.append(step._replace(status=StepStatus.SUCCESS))
            else:
                self._start(step._replace(attempt=step.attempt + 1))
        return answers

    def _is_idle(self) -> bool:
        """Whether all running steps are agents that wait for calls."""
        return not self._ready and all(map(self._calls.is_waiting, self._running))

    async def _suspend(self, until: datetime) -> Outcome:
        outcome = Suspended(until, tuple(called_by(self._waiting.values())), tuple(self.waits.listeners))
        # From here on, the end of a called execution, or a call, resumes this one in the database.
        self._waiting.clear()
        self.waits.clear()
        await self._writer.store([], outcome)
        return outcome

    async def _take(self, steps: Sequence[Step]) -> Outcome | None:
        """Save steps and send their answers to the next listeners; returns the outcome if the run ends with them."""
        messages: list[Message] = []
        answers: list[Step] = []
        outcome: Outcome | None = self._failure
        abandoned: list[Step] = []
        steps = [self.waits.admit(step) for step in steps] if self._organism.waits else [*steps]
        for index, step in enumerate(steps):
            self._running.pop(step.id, None)
            if not step.is_open:
                self._attempts.pop(step.id, None)
                abandoned += self._abandon_calls(step.id)
            if step.is_stop:
                outcome = outcome or stopped_by(step)
            elif step.is_open:
                self._waiting[step.message.key] = step
            elif step.message.call is not None:
                answers.append(step)
            else:
                try:
                    steps[index], sent = await self._route(step)
                    messages += sent
                except RoutingError as failure:
                    outcome = outcome or Failed(str(failure))
        if self._joins is not None:
            steps, messages, stopped = self._joins.pass_on(steps, messages)
            abandoned += stopped
        outcome = outcome or self._failure or self._count(messages)
        if outcome is None and not (
            messages or answers or self._running or self._ready or self._waiting or self._queued
        ):
            outcome = finished_with(self._leaves)
        # Saved before the answers are sent: a crash must not undo what a listener has received.
        first, *later = divide(messages)
        begun = self._new(first) if outcome is None else []
        # A call that has ended is saved, although its agent ended too.
        keys = {step.message.key for step in steps if not step.is_open}
        abandoned = [step for step in abandoned if step.message.key not in keys]
        keys = {step.message.key for step in abandoned}
        ended = [step for step in steps if self._saved.get(key := step.message.key) is not step and key not in keys]
        ended = ended if outcome is None else closed(ended)
        if ended or abandoned or begun or outcome:
            await self._writer.store([*ended, *abandoned, *begun], outcome)
        if outcome is None:
            for step in answers:
                self._calls.answer(step)
            self._send(first)
            for batch in later:
                if begun := self._new(batch):
                    await self._writer.store(begun, None)
                self._send(batch)
            while self._ready and len(self._running) < MAX_STARTED:
                self._start(self._ready.popitem(last=False)[1])
            if any(step.status is StepStatus.CALLING or self.waits.is_open(step) for step in steps):
                self._on_call()
        return outcome

    def _abandon_calls(self, agent: UUID) -> list[Step]:
        """Cancel the open calls of an agent's step that has ended."""
        return [step for message in self._calls.take(agent) for step in self._cancel(message)]

    def _cancel(self, message: Message) -> list[Step]:
        """Cancel the step of a message, and its open calls."""
        if task := self._running.pop(message.id, None):
            task.cancel()
            self._cancelled.append(task)
        step = self._waiting.pop(message.key, None) or self._ready.pop(message.id, None)
        if step is not None:
            self.waits.forget(step)
        attempt = self._attempts.pop(message.id, None)
        if step is None:
            step = self._begun(message) if attempt is None else attempt.step(StepStatus.RUNNING)
        tokens = self._writer.tokens_of(message)
        cancelled = step._replace(status=StepStatus.CANCELLED, completed_at=now(), state=None, tokens=tokens)
        return [cancelled, *self._abandon_calls(message.id)]

    def _cancel_open(self, message: Message) -> list[Step]:
        """As `_cancel`. A step in the inbox is left until it is taken: it may have ended."""
        task = self._running.get(message.id)
        is_open = message.key in self._waiting or message.id in self._ready or (task is not None and not task.done())
        return self._cancel(message) if is_open else []

    async def _route(self, step: Step) -> tuple[Step, list[Message]]:
        if step.status is StepStatus.CANCELLED:  # in an earlier run, because a join had another answer
            return step, []
        listener = self._organism.listener(step.message.listener)
        if self._organism.read_steps and step.status is StepStatus.SUCCESS:
            self._context.names.keep(step, self._organism)
        messages = [Message(name, payload, step.id) for name, payload in await route(listener, step, self._context)]
        if not messages:
            step = with_unmet_conditions(step, listener)
            self._leaves.append(step)
        return step, messages

    def _count(self, messages: Sequence[Message]) -> Failed | None:
        self._handled += len(messages)
        limit = self._organism.execution.max_iterations
        if self._handled <= limit:
            return None
        return Failed(f"{messages[-1].listener}: more than {limit} messages (execution.max_iterations)")

    def _new(self, messages: Sequence[Message]) -> list[Step]:
        """The steps of messages that were not saved before."""
        return [self._begun(message) for message in messages if message.key not in self._saved]

    def _begun(self, message: Message) -> Step:
        """The step of a message before its first try."""
        return Step(message, self._organism.listener(message.listener).block.name, StepStatus.RUNNING, message.begin())

    def _send(self, messages: Iterable[Message]) -> None:
        """Start to handle messages, each from its saved step if it has one."""
        for message in messages:
            saved = self._saved.get(message.key)
            if saved is None:
                begun = self._begun(message)
                self._writer.note_begun(begun)
                self._start(begun)
            elif saved.status is StepStatus.RUNNING:
                self._calls.continue_with(saved.message)
                self._start(saved)
            else:
                self._enqueue(self._resolve(saved, self._called) if saved.status is StepStatus.CALLING else saved)

    def _enqueue(self, step: Step) -> None:
        self._queued += 1
        self._inbox.put_nowait(step)

    def _resolve(self, calling: Step, called: Mapping[UUID, CalledResult]) -> Step:
        """Apply the result of the called execution, if it has ended."""
        return self._attempt(calling).resolve_call(calling, called)

    def _attempt(self, step: Step) -> Attempt:
        listener = self._organism.listener(step.message.listener)
        return Attempt.of(listener_of_loop(listener) if is_loop(listener, step.message) else listener, step)

    def _start(self, step: Step) -> None:
        """Start the attempt that the step's number names; a conversation continues from the step's state."""
        message = step.message
        if len(self._running) >= MAX_STARTED and message.call is None:  # a call ends a step that runs
            self._ready[step.id] = step
            return
        attempt = self._attempts[message.id] = self._attempt(step)
        self._calls.restart(message.id)
        conversation = StoredConversation(self, attempt, step)
        self._running[message.id] = asyncio.create_task(self._work(attempt, conversation), name=message.listener)

    async def _work(self, attempt: Attempt, conversation: StoredConversation) -> None:
        try:
            self._inbox.put_nowait(await handle(attempt, self._context, conversation, self._loops.work(attempt)))
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._inbox.put_nowait(error)

    async def call(self, agent: Message, listener: str, payload: Value, call: str) -> Step:
        """Have a listener handle an agent's call; returns the step once it has ended."""
        message = Message(listener, payload, agent.id, call)
        if (answered := self._calls.answered(message)) is not None:
            return answered
        is_new = not self._calls.is_open(message)
        if is_new:
            self._failure = self._failure or (self._count([message]) if message.index is None else None)
        future = self._calls.open(message)
        if is_new and self._failure is None:
            self._send([message])
        self._inbox.put_nowait(None)  # wakes the pump: the agent waits now, and perhaps nothing else runs
        return await future

    async def keep(self, step: Step) -> None:
        """Save the progress of an agent."""
        await self._writer.store([step], None)

    async def keep_begun(self, step: Step) -> None:
        """Save a step that makes calls, unless it was saved: calls are found by the id of their step."""
        if not self._writer.is_saved(step.message):
            await self._writer.store([step], None)

    def expect_calls(self, caller: Message, calls: int) -> None:
        """Set how many open calls a step makes before it waits."""
        self._calls.expect(caller.id, calls)
        self._inbox.put_nowait(None)
