"""Batches: how much of an execution is saved in one transaction. More would delay the executions of others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from bloxserver.engine.run.messages import Message, Step
from bloxserver.organism.load import RunnableOrganism
from bloxserver.raw_json import RawJson, Value

MAX_MESSAGES = 100
MAX_CHARACTERS = 1024 * 1024


class Batch:
    """Counts what is saved with steps that have ended: their outputs, and the first rows of the next steps."""

    def __init__(self, organism: RunnableOrganism) -> None:
        self._organism = organism
        self._messages = 0
        self._characters = 0

    @property
    def is_full(self) -> bool:
        return self._messages >= MAX_MESSAGES or self._characters >= MAX_CHARACTERS

    def add(self, item: object) -> None:
        """Add an item of the pump's inbox. An item that is not a step counts as one message."""
        self._messages += 1
        if isinstance(item, Step):
            self._messages += len(self._organism.listener(item.message.listener).peers)
            self._characters += characters_of(item.output)


def divide(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Divide messages into batches of at most `MAX_CHARACTERS`, or of one message."""
    batch: list[Message] = []
    characters = 0
    for message in messages:
        size = characters_of(message.payload)
        if batch and characters + size > MAX_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(message)
        characters += size
    yield batch


def characters_of(value: Value) -> int:
    """The size of a large value. A value that is not large counts 0."""
    if isinstance(value, RawJson):
        return len(value.text)
    return len(value) if isinstance(value, str) else 0
