"""The state of the joins of one run: which messages are open, and which have arrived at a join.

It is not stored. A run that resumes routes the saved steps again, and finds the same state.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import NamedTuple, Protocol
from uuid import UUID

from bloxserver.clients.memory import MemoryBudget
from bloxserver.clock import now
from bloxserver.engine.run.messages import Message, Step, join_key
from bloxserver.models.enums import NOT_NEEDED, StepStatus
from bloxserver.organism.join_plan import ANY, JoinPlan
from bloxserver.organism.load import RunnableOrganism
from bloxserver.raw_json import RawJson, Value, text_of_value, value_of_text
from bloxserver.storable import json_text


class Arrival(NamedTuple):
    """A message that has arrived at a join. Arrivals are ordered by the times at which their senders' steps ended."""

    ended: datetime
    sender_id: UUID
    sender: str
    text: str


class PassedOn(NamedTuple):
    """What follows from steps that have ended."""

    steps: Sequence[Step]
    """The steps. An error that a join received names the join in `routed_to`: a retry reads that it was handled."""
    messages: list[Message]
    """Those of joins come first, so that they are saved with the steps that led to them."""
    cancelled: list[Step]


def joins_of(
    organism: RunnableOrganism,
    saved: Mapping[str, Step],
    cancel: Callable[[Message], list[Step]],
    context: JoinContext,
) -> Joins | None:
    """Return the joins of a run; None if the organism has none. See `Joins`."""
    plan = organism.joins
    return None if plan is None else Joins(plan, saved, cancel, context.memory.reserve)


class JoinContext(Protocol):
    """Where the memory of the messages of joins counts."""

    @property
    def memory(self) -> MemoryBudget:
        """The memory of the execution's values."""


class Joins:
    """Decides which messages are sent, and which open messages are not needed any more."""

    def __init__(
        self,
        plan: JoinPlan,
        saved: Mapping[str, Step],
        cancel: Callable[[Message], list[Step]],
        reserve: Callable[[int], None],
    ) -> None:
        """`saved` are the steps of earlier runs, by the keys of their messages.

        `cancel` ends the step of a message and its calls early, and returns them. It returns none for a step that has
        ended, and for one that has not started: these pass by later. `reserve` charges memory in bytes.
        """
        self._plan = plan
        self._saved = saved
        self._cancel = cancel
        self._reserve = reserve
        self._open: dict[str, dict[str, Message]] = defaultdict(dict)
        """The messages without an answer, by listener and key."""
        self._open_bits = 0
        """The listeners with open messages."""
        self._arrived: dict[str, list[Arrival]] = {}
        """What has arrived at joins that have not sent their message."""
        self._sent: set[str] = set()
        """The joins that have sent their message in this run."""
        self._closed = 0
        """The listeners whose answers are not needed, because a join has another one."""
        for name, join in plan.joins.items():
            if join_key(name) in saved:
                self._closed |= join.replaceable

    def pass_on(self, steps: Sequence[Step], messages: Sequence[Message]) -> PassedOn:
        """Take the results of steps, and the messages to which those that have ended lead.

        The message of the entry is not noted: no other message is open until its step has ended.

        Raises `MemoryLimitReached` if a message of a join is too large.
        """
        ended = {step.id: step for step in steps if not step.is_open and step.message.call is None}
        for step in ended.values():
            self._remove(step.message)
        ordinary = [message for message in messages if message.listener not in self._plan.joins]
        for message in messages:
            if message.listener in self._plan.joins and message.parent_id is not None:
                self._arrive(message, ended[message.parent_id])
        for message in ordinary:
            self._add(message)
        first = self._decide()
        cancelled: list[Step] = []
        needed = [message for message in (*first, *ordinary) if self._is_needed(message, cancelled)]
        for message in self._unneeded():
            if stopped := self._cancel(message):
                self._remove(message)
                cancelled += map(_not_needed, stopped)
        # After the cancellations: a join may have waited for nothing else.
        complete = [message for message in self._complete() if self._is_needed(message, cancelled)]
        return PassedOn(self._with_receivers(steps, messages), [*complete, *needed], cancelled)

    def _add(self, message: Message) -> None:
        saved = self._saved.get(message.key)
        self._open[message.listener][message.key] = message if saved is None else saved.message
        self._open_bits |= self._plan.bits[message.listener]

    def _remove(self, message: Message) -> None:
        messages = self._open[message.listener]
        messages.pop(message.key, None)
        if not messages:
            self._open_bits &= ~self._plan.bits[message.listener]

    def _is_closed(self, listener: str) -> bool:
        return bool(self._closed & self._plan.bits[listener])

    def _arrive(self, message: Message, sender: Step) -> None:
        name = message.listener
        if name in self._sent or (self._is_closed(name) and join_key(name) not in self._saved):
            return
        payload = message.payload
        text = payload.text if isinstance(payload, RawJson) else json_text(payload)
        arrival = Arrival(sender.completed_at or now(), sender.id, sender.message.listener, text)
        self._arrived.setdefault(name, []).append(arrival)

    def _decide(self) -> list[Message]:
        """The messages of the joins that take the first one."""
        messages: list[Message] = []
        for name in [name for name in self._arrived if self._plan.joins[name].mode == ANY]:
            if name in self._arrived:  # not closed by the join before it
                messages.append(self._send(name))
        return messages

    def _complete(self) -> list[Message]:
        """The messages of the joins that wait for nothing more: no message can lead to them."""
        waiting = 0
        for name in self._arrived:
            waiting |= self._plan.joins[name].bit
        blocked = self._open_bits | waiting
        return [self._send(name) for name in [*self._arrived] if not self._plan.joins[name].upstream & blocked]

    def _send(self, name: str) -> Message:
        join, arrivals = self._plan.joins[name], sorted(self._arrived.pop(name))
        self._sent.add(name)
        if join.mode == ANY:
            chosen, payload = arrivals[0], value_of_text(arrivals[0].text)
            self._close(join.replaceable)
        else:
            chosen, payload = arrivals[-1], self._joined(arrivals)
        message = Message(name, payload, chosen.sender_id, joined=True)
        self._add(message)
        return message

    def _close(self, listeners: int) -> None:
        self._closed |= listeners
        for name in [*self._arrived]:
            if self._is_closed(name) and join_key(name) not in self._saved:
                del self._arrived[name]

    def _joined(self, arrivals: Sequence[Arrival]) -> Value:
        """Return an object by sender, with a list where one answered repeatedly.

        It is made of texts, because there may be thousands of answers.
        """
        by_sender: dict[str, list[str]] = defaultdict(list)
        for arrival in sorted(arrivals, key=lambda arrival: self._plan.bits[arrival.sender]):
            by_sender[arrival.sender].append(arrival.text)
        answers = {name: texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]" for name, texts in by_sender.items()}
        members = ", ".join(f"{text_of_value(name)}: {text}" for name, text in answers.items())
        value = value_of_text("{" + members + "}")
        if isinstance(value, RawJson):
            self._reserve(len(value.text))
        return value

    def _is_needed(self, message: Message, cancelled: list[Step]) -> bool:
        """Whether a message is sent. The saved steps of one that is not are added to `cancelled` if they are open."""
        saved = self._saved.get(message.key)
        if not self._is_closed(message.listener) or (saved is not None and not saved.is_open):
            return True
        self._remove(message)
        if saved is not None:
            cancelled += map(_not_needed, self._open_tree(saved))
        return False

    def _open_tree(self, step: Step) -> Iterator[Step]:
        """Yield a saved step that is open, and its open calls."""
        yield step
        for other in self._saved.values():
            if other.is_open and other.message.call is not None and other.message.parent_id == step.id:
                yield from self._open_tree(other)

    def _unneeded(self) -> list[Message]:
        """Return the open messages whose answers are not needed."""
        if not self._open_bits & self._closed:
            return []
        return [message for name in self._open if self._is_closed(name) for message in self._open[name].values()]

    def _with_receivers(self, steps: Sequence[Step], messages: Sequence[Message]) -> Sequence[Step]:
        failed = {step.id for step in steps if step.status is StepStatus.ERROR and step.routed_to is None}
        joins_of_errors: dict[UUID | None, tuple[str, ...]] = {}
        for message in messages:
            if message.parent_id in failed and message.listener in self._plan.joins:
                joins_of_errors[message.parent_id] = (*joins_of_errors.get(message.parent_id, ()), message.listener)
        if not joins_of_errors:
            return steps
        return [
            step._replace(routed_to=joins_of_errors[step.id]) if step.id in joins_of_errors else step for step in steps
        ]


def _not_needed(step: Step) -> Step:
    """The step, cancelled because a join has another answer."""
    reason = "its answer is not needed: a join with `any` has another one"
    return step._replace(
        status=StepStatus.CANCELLED, completed_at=now(), state=None, error=reason, error_code=NOT_NEEDED
    )
