"""Batches: how much of an execution is saved in one transaction. More would delay the executions of others."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from bloxserver.engine.run.messages import Message, Step
from bloxserver.organism.load import RunnableOrganism
from bloxserver.raw_json import RawJson, Value

Item: TypeAlias = Step | BaseException | None
"""What the inbox of the pump gets: a step that has ended, an error, or nothing to wake the pump."""

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

    def add(self, item: Item) -> None:
        """Add an item. One that is not a step counts as one message."""
        self._messages += 1
        if isinstance(item, Step):
            if item.message.call is None:
                self._messages += len(self._organism.listener(item.message.listener).peers)
            self._characters += characters_of(item.output)


def take_batch(inbox: asyncio.Queue[Item], first: Item, organism: RunnableOrganism) -> list[Item]:
    """Return the first item, and those that wait in the inbox, up to a full batch."""
    batch = Batch(organism)
    batch.add(first)
    items = [first]
    while not inbox.empty() and not batch.is_full:
        items.append(inbox.get_nowait())
        batch.add(items[-1])
    return items


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
