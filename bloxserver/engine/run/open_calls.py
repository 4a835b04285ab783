"""The calls of listeners that steps of a run wait for, as an agent waits for its tools."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from uuid import UUID

from bloxserver.engine.run.messages import Message, Step


class OpenCalls:
    """The calls of one run of the pump, by the keys of their messages."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[Step]] = {}
        self._messages: dict[str, Message] = {}
        self._answered: dict[str, Step] = {}
        """Calls that were answered in this run: another attempt at the caller's message makes the same calls."""
        self._of_caller: defaultdict[UUID, set[str]] = defaultdict(set)
        self._waiting: Counter[UUID] = Counter()
        """How many calls a step waits for."""
        self._expected: dict[UUID, int] = {}

    def answered(self, message: Message) -> Step | None:
        """Return the step that has answered this call, if any."""
        return self._answered.get(message.key)

    def is_open(self, message: Message) -> bool:
        return message.key in self._futures

    def open(self, message: Message) -> asyncio.Future[Step]:
        """Return what the caller waits for. A call that is open already has a new one."""
        assert message.parent_id is not None  # noqa: S101
        self._messages.setdefault(message.key, message)
        self._of_caller[message.parent_id].add(message.key)
        future = self._futures[message.key] = asyncio.get_running_loop().create_future()
        self._waiting[message.parent_id] += 1
        return future

    def continue_with(self, saved: Message) -> None:
        """Use the message of a saved step, whose id is that of the step, if the call is open."""
        if saved.key in self._messages:
            self._messages[saved.key] = saved

    def answer(self, step: Step) -> None:
        """Give the answer of a call that has ended to its caller."""
        message = step.message
        if message.index is None:  # a loop makes each call once
            self._answered[message.key] = step
        self._messages.pop(message.key, None)
        future = self._futures.pop(message.key, None)
        if future is not None and message.parent_id is not None and not future.done():
            self._waiting[message.parent_id] -= 1
            future.set_result(step)

    def take(self, caller: UUID) -> list[Message]:
        """Remove the calls of a step that has ended, and return the messages of those that are open."""
        self._expected.pop(caller, None)
        self._waiting.pop(caller, None)
        keys = self._of_caller.pop(caller, ())
        for key in keys:
            self._answered.pop(key, None)
        return [self._messages.pop(key) for key in keys if self._futures.pop(key, None) is not None]

    def restart(self, caller: UUID) -> None:
        """Begin another attempt of a step: calls of earlier attempts no longer count."""
        self._waiting[caller] = 0

    def expect(self, caller: UUID, calls: int) -> None:
        """Set how many open calls a step makes before it waits. Without this, it waits if it has an open call."""
        self._expected[caller] = calls

    def is_waiting(self, caller: UUID) -> bool:
        """Whether a step can do nothing until one of its calls is answered."""
        return self._waiting[caller] >= max(1, self._expected.get(caller, 1))
