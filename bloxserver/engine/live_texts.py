"""The texts of agents while language models write them, for those who watch the executions.

A worker holds the text in memory until the answer is complete, which is then stored with the step. It sends nothing
while the execution is not watched. A watcher that misses a part asks for the text from its beginning.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from bloxserver.models.execution_changes import change_key

INTERVAL_SECONDS = 0.1
"""Minimum time between two messages of a text."""
REPEAT_SECONDS = 1.0
"""Minimum time between two repetitions of a text from its beginning."""
WATCHED_SECONDS = 20.0
"""How long an execution is regarded as watched after the last message about it."""
MAX_CHARACTERS = 64 * 1024
"""Of an answer. The rest is not sent before the step ends."""
PART_CHARACTERS = 1_000
"""As JSON, a character takes up to six bytes. PostgreSQL limits a message to 8,000 bytes."""

Send = Callable[["AgentText"], None]


@dataclass(frozen=True, slots=True)
class AgentText:
    """A part of the text of an answer of a language model."""

    execution_id: UUID
    step_id: UUID
    """The agent's step."""
    listener: str
    attempt: int
    answer: int
    """The number of the answer in the conversation, from 1."""
    offset: int
    """The number of characters of the answer before this part."""
    text: str

    def dump(self) -> str:
        """Return the part as JSON."""
        place = (self.execution_id.hex, self.step_id.hex, self.listener, self.attempt, self.answer, self.offset)
        return json.dumps([*place, self.text], ensure_ascii=False)

    @classmethod
    def load(cls, dumped: str) -> AgentText:
        execution_id, step_id, *others = json.loads(dumped)
        return cls(UUID(execution_id), UUID(step_id), *others)


class Announce(Protocol):
    """Receives the keys of watched executions; see `models.execution_changes`. Called on the event loop."""

    def __call__(self, keys: frozenset[str], *, is_new: bool) -> None:
        """With `is_new`, the texts of these executions are needed from the beginning."""


class Audience:
    """Those who may watch executions, in this process or in others."""

    def __init__(self, texts: LiveTexts, send: Send) -> None:
        self.send = send
        self._texts = texts
        self._until: dict[str, float] = {}

    def watch(self, keys: frozenset[str], *, is_new: bool) -> None:
        """As `Announce`."""
        moment = time.monotonic()
        unknown = keys if is_new else {key for key in keys if not self.watches(key)}
        self._until = {key: until for key, until in self._until.items() if until > moment}
        self._until |= dict.fromkeys(keys, moment + WATCHED_SECONDS)
        self._texts.repeat(unknown)

    def watches(self, key: str) -> bool:
        return self._until.get(key, 0.0) > time.monotonic()


class LiveTexts:
    """The texts that the worker of this process receives. An instance belongs to one event loop."""

    def __init__(self) -> None:
        self._audiences: list[Audience] = []
        self._texts: dict[str, list[LiveText]] = {}
        """The texts that are being written, by the key of their execution."""

    def audience(self, send: Send) -> Audience:
        """Return a new audience, to which parts of texts are sent by this function."""
        audience = Audience(self, send)
        self._audiences.append(audience)
        return audience

    @contextmanager
    def written(self, beginning: AgentText) -> Iterator[LiveText]:
        """Yield the receiver of a text, which is written in the block. `beginning` is its empty first part."""
        key = change_key(beginning.execution_id)
        text = LiveText(self, key, beginning)
        self._texts.setdefault(key, []).append(text)
        try:
            yield text
        finally:
            text.end()
            self._texts[key].remove(text)
            if not self._texts[key]:
                del self._texts[key]

    def is_watched(self, key: str) -> bool:
        return any(audience.watches(key) for audience in self._audiences)

    def repeat(self, keys: set[str] | frozenset[str]) -> None:
        for key in keys:
            for text in self._texts.get(key, ()):
                text.repeat()

    def send(self, key: str, part: AgentText) -> None:
        for audience in self._audiences:
            if audience.watches(key):
                audience.send(part)


class LiveText:
    """The text of one answer so far."""

    def __init__(self, texts: LiveTexts, key: str, beginning: AgentText) -> None:
        self._texts = texts
        self._key = key
        self._beginning = beginning
        self._pieces: list[str] = []
        self._characters = 0
        self._sent = 0
        self._sent_at = 0.0
        self._must_repeat = False
        self._repeated_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0

    def add(self, piece: str) -> None:
        """Add the next part, and send it soon if the execution is watched."""
        # As in the step's output. Half of a surrogate pair cannot be sent.
        piece = piece[: MAX_CHARACTERS - self._characters].replace("\0", "\ufffd").encode(errors="replace").decode()
        if piece:
            self._pieces.append(piece)
            self._characters += len(piece)
            if self._texts.is_watched(self._key):
                self._send_at(self._sent_at + INTERVAL_SECONDS)

    def repeat(self) -> None:
        """Send the text from its beginning soon."""
        self._must_repeat = True
        self._send_at(self._repeated_at + REPEAT_SECONDS)

    def end(self) -> None:
        """Send the rest."""
        if self._timer is not None:
            self._timer.cancel()
            self._repeated_at = 0.0
            self._send()

    def _send_at(self, moment: float) -> None:
        """Send at this time, or at an earlier one that was set before."""
        if self._timer is not None:
            if self._due <= moment:
                return
            self._timer.cancel()
        self._due = moment
        self._timer = asyncio.get_running_loop().call_later(max(0.0, moment - time.monotonic()), self._send)

    def _send(self) -> None:
        self._timer, self._sent_at = None, time.monotonic()
        if self._must_repeat and self._sent_at >= self._repeated_at + REPEAT_SECONDS:
            self._must_repeat, self._sent, self._repeated_at = False, 0, self._sent_at
        text = "".join(self._pieces)
        self._pieces = [text]
        start = self._beginning
        for offset in range(self._sent, len(text), PART_CHARACTERS):
            part = text[offset : offset + PART_CHARACTERS]
            place = (start.execution_id, start.step_id, start.listener, start.attempt, start.answer)
            self._texts.send(self._key, AgentText(*place, offset, part))
        self._sent = len(text)
        if self._must_repeat:
            self._send_at(self._repeated_at + REPEAT_SECONDS)
