"""Saves the steps of one run, in the order of their changes."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from bloxserver.clock import now
from bloxserver.engine.run.messages import NO_TOKENS, Change, Message, Outcome, Save, Step, Tokens


class StepWriter:
    """Numbers the changes of steps and counts the tokens that they used since they were saved last."""

    def __init__(self, save: Save, saved: Iterable[Step], sequence: int, visible_after: timedelta) -> None:
        """`sequence` is the highest of the `saved` steps. A step that runs longer than `visible_after` is saved."""
        self._save = save
        self._sequence = sequence
        self._visible_after = visible_after
        self._tokens = {step.message.key: step.tokens for step in saved}
        self._begun: dict[UUID, Step] = {}
        """Steps that have started and are not saved."""
        self._saving = asyncio.Lock()

    def is_saved(self, message: Message) -> bool:
        """Whether a step of the message was saved, in this run or before."""
        return message.key in self._tokens

    def tokens_of(self, message: Message) -> Tokens:
        """The tokens of the step as it was saved last."""
        return self._tokens.get(message.key, NO_TOKENS)

    def note_begun(self, step: Step) -> None:
        """Note a step that starts, so that it is saved when it becomes visible."""
        if not self.is_saved(step.message):
            self._begun[step.id] = step

    def next_visible_time(self) -> datetime | None:
        """When the next running step is to become visible."""
        return min((step.started_at + self._visible_after for step in self._begun.values()), default=None)

    async def save_visible(self) -> None:
        """Save running steps that are to become visible."""
        latest_start = now() - self._visible_after
        async with self._saving:
            # Selected under the lock: an agent may have saved a later state of its step meanwhile.
            visible = [step for step in self._begun.values() if step.started_at <= latest_start]
            if visible:
                await self._write(visible, None)

    async def store(self, steps: Sequence[Step], outcome: Outcome | None) -> None:
        """One at a time: a reader that follows the sequence must not see a later change before an earlier one."""
        async with self._saving:
            await self._write(steps, outcome)

    async def _write(self, steps: Sequence[Step], outcome: Outcome | None) -> None:
        used = NO_TOKENS
        numbered: list[Step] = []
        for step in steps:
            self._sequence += 1
            if step.tokens != (before := self.tokens_of(step.message)):
                used = used.plus(step.tokens.minus(before))
            self._tokens[step.message.key] = step.tokens
            numbered.append(step._replace(sequence=self._sequence))
            self._begun.pop(step.id, None)
        await self._save(Change(numbered, used, outcome))
