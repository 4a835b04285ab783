"""The calls of listeners that steps of a run wait for, as an agent waits for its tools."""

from __future__ import annotations

import asyncio
from collections import Counter
from uuid import UUID

from bloxserver.engine.run.messages import Message, Step


class OpenCalls:
    """The calls of one run of the pump, by the keys of their messages."""

    def __init__(self) -> None:
        self._futures: dict[str, asyncio.Future[Step]] = {}
        self._messages: dict[str, Message] = {}
        self._answered: dict[str, Step] = {}
        """Calls that were answered in this run: another attempt at the caller's message makes the same calls."""
        self._waiting: Counter[UUID] = Counter()
        """How many calls a step waits for."""

    def answered(self, message: Message) -> Step | None:
        """Return the step that has answered this call, if any."""
        return self._answered.get(message.key)

    def is_open(self, message: Message) -> bool:
        return message.key in self._futures

    def open(self, message: Message) -> asyncio.Future[Step]:
        """Return what the caller waits for. A call that is open already has a new one."""
        assert message.parent_id is not None  # noqa: S101
        self._messages.setdefault(message.key, message)
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
        self._answered[message.key] = step
        self._messages.pop(message.key, None)
        future = self._futures.pop(message.key, None)
        if future is not None and message.parent_id is not None and not future.done():
            self._waiting[message.parent_id] -= 1
            future.set_result(step)

    def take(self, caller: UUID) -> list[Message]:
        """Remove the open calls of a step that has ended, and return their messages."""
        keys = [key for key in self._futures if key.startswith(f"{caller}:")]
        for key in keys:
            del self._futures[key]
        return [self._messages.pop(key) for key in keys]

    def restart(self, caller: UUID) -> None:
        """Begin another attempt of a step: calls of earlier attempts no longer count."""
        self._waiting[caller] = 0

    def is_waiting(self, caller: UUID) -> bool:
        """Whether a step waits for a call."""
        return self._waiting[caller] > 0
