"""The steps of a run that wait for calls of their URLs, `resume.NAME.url`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from datetime import datetime

from bloxserver.blocks.base import BlockError
from bloxserver.engine.run.attempt import Attempt, ExecutionContext
from bloxserver.engine.run.messages import Step
from bloxserver.models.enums import StepStatus
from bloxserver.organism.load import RunnableOrganism

TIMED_OUT = "wait_timeout"
REPEATED = "wait_repeated"


class OpenWaits:
    """A listener waits once in an execution: its URL can be called once."""

    def __init__(
        self,
        organism: RunnableOrganism,
        context: ExecutionContext,
        saved: Iterable[Step],
        wake: Callable[[], None],
    ) -> None:
        """`wake` is called when the pump has to look for steps that have ended."""
        self._wake = wake
        self._organism = organism
        self._context = context
        self._steps: dict[str, Step] = {}
        """The waiting steps, by listener."""
        self._unread: set[str] = set()
        """The listeners for which a call may have been received since the last look."""
        self._first: dict[str, str] = {}
        """The key of the message with which a listener waits or has waited."""
        for step in saved:
            has_begun = step.status in (StepStatus.WAITING, StepStatus.SUCCESS) or step.error_code == TIMED_OUT
            if has_begun and self._awaits_call(step):
                self._first[step.message.listener] = step.message.key

    @property
    def listeners(self) -> frozenset[str]:
        """The listeners that wait; none once the run is being suspended."""
        return frozenset(self._steps)

    def admit(self, step: Step) -> Step:
        """Begin to wait, if the step does; returns the step, or its failure if its listener has waited before."""
        if step.status is not StepStatus.WAITING or not self._awaits_call(step):
            return step
        name, key = step.message.listener, step.message.key
        if self._first.setdefault(name, key) != key:
            message = f"{name} has waited in this execution, and its URL can be called once"
            return self._attempt(step).failure(BlockError(REPEATED, message, retryable=False))
        self._steps[name] = step
        self._unread.add(name)
        return step

    def resolve(self, listeners: Collection[str]) -> None:
        """Continue the steps of these listeners, whose URLs were called."""
        if found := self._steps.keys() & listeners:
            self._unread |= found
            self._wake()

    def is_open(self, step: Step) -> bool:
        """Whether a waiting step waits for a call, and not only for a time."""
        waiting = self._steps.get(step.message.listener)
        return waiting is not None and waiting.message.key == step.message.key

    def clear(self) -> None:
        """Forget the waits of a run that is being suspended."""
        self._steps.clear()

    def forget(self, step: Step) -> None:
        """Stop waiting, because the step was cancelled."""
        if self.is_open(step):
            del self._steps[step.message.listener]

    async def take_ended(self, moment: datetime) -> list[Step]:
        """Remove and return the steps whose listeners were called, or whose time is over. Raises `LeaseLost`."""
        wanted = [
            (name, step)
            for name, step in self._steps.items()
            if name in self._unread or (step.completed_at is not None and step.completed_at <= moment)
        ]
        if not wanted:
            return []
        self._unread -= {name for name, _ in wanted}
        received = await self._context.received_calls()
        ended: list[Step] = []
        for name, waiting in wanted:
            step = self._attempt(waiting).resolve_wait(waiting, received, moment)
            if step is not waiting:
                del self._steps[name]
                ended.append(step)
        return ended

    def _awaits_call(self, step: Step) -> bool:
        return step.message.listener in self._organism.waits

    def _attempt(self, step: Step) -> Attempt:
        return Attempt.of(self._organism.listener(step.message.listener), step)
