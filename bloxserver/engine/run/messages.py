"""Messages, the steps that handle them, and how a run of the pump comes out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from pydantic import JsonValue

from bloxserver.ids import new_id
from bloxserver.models.enums import StepStatus


@dataclass(frozen=True)
class Message:
    """What a listener is to handle. `key` names it within its execution, the same on every run."""

    listener: str
    payload: JsonValue
    parent_id: UUID | None = None
    call: str | None = None
    """Names an agent's call within its conversation: the answer goes to the agent, not to the listener's peers."""
    id: UUID = field(default_factory=new_id, compare=False)
    """Of the step that handles it."""

    @property
    def key(self) -> str:
        call = "" if self.call is None else f":{self.call}"
        return f"{self.parent_id or ''}:{self.listener}{call}"


class Tokens(NamedTuple):
    """What language models read and wrote."""

    input: int = 0
    output: int = 0

    def plus(self, more: Tokens) -> Tokens:
        return Tokens(self.input + more.input, self.output + more.output)

    def minus(self, less: Tokens) -> Tokens:
        return Tokens(self.input - less.input, self.output - less.output)


NO_TOKENS = Tokens()


@dataclass(frozen=True)
class Step:
    """How far a message was handled. `completed_at` is, for a step that waits, when it goes on."""

    message: Message
    handler: str
    status: StepStatus
    started_at: datetime
    completed_at: datetime | None = None
    output: JsonValue = None
    error: str | None = None
    error_code: str | None = None
    attempt: int = 1
    routed_to: tuple[str, ...] | None = None
    called_id: UUID | None = None
    state: JsonValue = None
    """What an agent goes on from."""
    tokens: Tokens = NO_TOKENS
    sequence: int = 0

    @property
    def id(self) -> UUID:
        return self.message.id

    @property
    def is_open(self) -> bool:
        return self.status not in (StepStatus.SUCCESS, StepStatus.ERROR)

    @property
    def duration_ms(self) -> int | None:
        if self.is_open or self.completed_at is None:
            return None
        return max(0, int((self.completed_at - self.started_at) / timedelta(milliseconds=1)))


@dataclass(frozen=True)
class Finished:
    """All messages were handled; `output` is what reached no peer."""

    output: JsonValue


@dataclass(frozen=True)
class Failed:
    """A listener could not handle its message, or the organism went on for too long."""

    error: str


@dataclass(frozen=True)
class Suspended:
    """Nothing can be done before `until`, or before one of the executions that were called has ended."""

    until: datetime
    called: tuple[UUID, ...] = ()


Outcome = Finished | Failed | Suspended


@dataclass(frozen=True)
class Change:
    """What is to be kept in one transaction: steps, tokens that were used, and the outcome with the last of them."""

    steps: Sequence[Step]
    used: Tokens = NO_TOKENS
    outcome: Outcome | None = None


Save = Callable[[Change], Awaitable[None]]
