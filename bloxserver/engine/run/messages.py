"""Messages, the steps that handle them, and the outcomes of a run of the pump."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import NamedTuple
from uuid import UUID

from bloxserver.blocks.base import StepWarning
from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.item_keys import index_of_call
from bloxserver.models.enums import StepStatus
from bloxserver.organism.model import Listener
from bloxserver.raw_json import Value, list_of, object_of

CALL_CHECK = timedelta(minutes=5)
"""How often a suspended execution checks the executions that it called, in case a wake-up was lost."""


@dataclass(slots=True)
class Message:
    """A message to a listener. Not changed after it is made, but not frozen, which takes longer to make."""

    listener: str
    payload: Value
    parent_id: UUID | None = None
    call: str | None = None
    """The id of a call within the step that makes it, as an agent calls a tool and a loop handles an item: the answer
    goes to that step, not to the listener's peers.
    """
    joined: bool = False
    """Whether this is the message of a join. Its key is independent of the senders; `parent_id` is one of them."""
    id: UUID = field(default_factory=new_id, compare=False)
    """The id of the step that handles the message."""
    begun_at: datetime | None = field(default=None, compare=False)
    """When the step that handles the message began, if it first began in this run."""
    key: str = field(init=False)
    """Identifies the message within its execution, and is the same in every run."""

    @property
    def index(self) -> int | None:
        """The position of the item that this message is, in the list of a loop; None for every other message."""
        return index_of_call(self.call)

    def __post_init__(self) -> None:
        if self.joined:
            self.key = join_key(self.listener)
            return
        call = "" if self.call is None else f":{self.call}"
        self.key = f"{self.parent_id or ''}:{self.listener}{call}"

    @property
    def is_entry(self) -> bool:
        """Whether it is the message that the execution begins with."""
        return self.key == f":{self.listener}"

    def begin(self) -> datetime:
        """Return when the step began: the same time when the step is saved and when it runs."""
        self.begun_at = self.begun_at or now()
        return self.begun_at


def is_loop(listener: Listener, message: Message) -> bool:
    """Whether a listener handles the items of a list that it computes from the message, and not the message."""
    return listener.for_each is not None and message.index is None


def join_key(listener: str) -> str:
    """The key of the message of a join. An execution has one."""
    return f":{listener}:join"


class Tokens(NamedTuple):
    """Input and output tokens of language models."""

    input: int = 0
    output: int = 0

    def plus(self, more: Tokens) -> Tokens:
        return Tokens(self.input + more.input, self.output + more.output)

    def minus(self, less: Tokens) -> Tokens:
        return Tokens(self.input - less.input, self.output - less.output)


NO_TOKENS = Tokens()
_ENDED = (StepStatus.SUCCESS, StepStatus.ERROR, StepStatus.CANCELLED)
_MILLISECOND = timedelta(milliseconds=1)


class Step(NamedTuple):
    """The progress of handling a message. For a step that waits, `completed_at` is the time at which it continues.

    A named tuple, because each step of a flow makes several of these, and a frozen dataclass takes four times as long.
    """

    message: Message
    handler: str
    status: StepStatus
    started_at: datetime
    completed_at: datetime | None = None
    output: Value = None
    error: str | None = None
    error_code: str | None = None
    attempt: int = 1
    """Tries so far, including those that were interrupted."""
    interruptions: int = 0
    """Tries that were interrupted, as by a crash of the worker. They do not count against the listener's `retries`."""
    routed_to: tuple[str, ...] | None = None
    called_id: UUID | None = None
    state: Value = None
    """The conversation of an agent, from which it continues."""
    tokens: Tokens = NO_TOKENS
    sequence: int = 0
    warnings: tuple[StepWarning, ...] = ()
    is_stop: bool = False
    """Whether the execution ends with this step. Not stored, because the end is stored with the step."""

    @property
    def id(self) -> UUID:
        return self.message.id

    @property
    def is_open(self) -> bool:
        """Whether the step has not ended."""
        return self.status not in _ENDED

    @property
    def duration_ms(self) -> int | None:
        """Milliseconds from the first try to the end; None for an open step."""
        if self.is_open or self.completed_at is None:
            return None
        return max(0, (self.completed_at - self.started_at) // _MILLISECOND)


def interrupted_steps(steps: Collection[Step]) -> list[Step]:
    """The stored steps whose last try was interrupted, with the interruption counted and the number of the next try.

    Every running step was interrupted, except an agent's step that waits for a call in a suspended execution, and the
    step of a loop, whose items are what runs.
    """
    calls = [step for step in steps if step.message.call is not None]
    callers = {step.message.parent_id for step in calls if step.is_open or step.message.index is not None}
    return [
        step._replace(attempt=step.attempt + 1, interruptions=step.interruptions + 1)
        for step in steps
        if step.status is StepStatus.RUNNING and step.id not in callers
    ]


@dataclass(frozen=True)
class Finished:
    """All messages were handled: `output` holds the answers that no listener received. Or a step gave the output."""

    output: Value
    is_filtered: bool = False
    """Whether each output is an answer for which no condition chose a listener."""
    is_stopped: bool = False
    """Whether a step ended the execution, perhaps before others have ended."""


@dataclass(frozen=True)
class Failed:
    """A listener could not handle its message, or a limit was exceeded."""

    error: str


@dataclass(frozen=True)
class Suspended:
    """Nothing can be done before `until`, before one of the called executions has ended, or before one of the awaited
    listeners is called.
    """

    until: datetime
    called: tuple[UUID, ...] = ()
    awaited: tuple[str, ...] = ()


Outcome = Finished | Failed | Suspended


@dataclass(frozen=True)
class Change:
    """What is saved in one transaction: steps, used tokens, and with the last steps the outcome."""

    steps: Sequence[Step]
    used: Tokens = NO_TOKENS
    outcome: Outcome | None = None


Save = Callable[[Change], Awaitable[None]]


def output_of(leaves: Sequence[Step]) -> Value:
    """The answer of a single leaf; of several, an object by listener, with a list where one answered repeatedly."""
    answers: dict[str, list[Value]] = defaultdict(list)
    for step in sorted(leaves, key=lambda leaf: (leaf.started_at, leaf.id)):
        answers[step.message.listener].append(step.output)
    if len(leaves) == 1:
        return leaves[0].output
    return object_of({name: given[0] if len(given) == 1 else list_of(given) for name, given in answers.items()})


def called_by(steps: Iterable[Step]) -> list[UUID]:
    return [step.called_id for step in steps if step.status is StepStatus.CALLING and step.called_id is not None]


def wake_time(waiting: Iterable[Step]) -> datetime | None:
    """When the next of these waiting steps continues."""
    times = [
        now() + CALL_CHECK if step.status is StepStatus.CALLING else step.completed_at or now() for step in waiting
    ]
    return min(times, default=None)
