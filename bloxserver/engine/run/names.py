"""The values of names in expressions, other than the message and the input: facts of the execution, and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

from bloxserver.blocks.names import INPUT, STEPS
from bloxserver.engine.run.messages import Step
from bloxserver.organism.model import Listener
from bloxserver.raw_json import Value, object_of


class KeptAnswers(Protocol):
    """A definition, as far as it decides which answers are kept."""

    @property
    def read_steps(self) -> frozenset[str]:
        """The listeners whose answers expressions refer to as `steps.NAME`."""


def input_for(listener: Listener, execution_input: Value) -> Value:
    """The input of the execution if the texts of a listener can refer to it, else None: it may be large."""
    return execution_input if INPUT in listener.names else None


class ExecutionNames:
    """The values of the names in one execution. `facts` are those that do not change, as `trigger`."""

    def __init__(self, facts: Mapping[str, Callable[[], Value]]) -> None:
        self._facts = facts
        self._known: dict[str, Value] = {}
        self._answers: dict[str, tuple[datetime, Value]] = {}

    def keep(self, step: Step, organism: KeptAnswers) -> None:
        """Keep the answer of a step that has ended, unless a later answer of its listener is kept."""
        name, ended = step.message.listener, step.completed_at
        if name not in organism.read_steps or step.message.call is not None or ended is None:
            return
        if name not in self._answers or self._answers[name][0] <= ended:
            self._answers[name] = ended, step.output

    def of(self, listener: Listener) -> dict[str, Value]:
        """Return the values of the names that the texts of a listener can refer to."""
        return {name: self._value(name, listener) for name in listener.names if name == STEPS or name in self._facts}

    def _value(self, name: str, listener: Listener) -> Value:
        if name == STEPS:
            known = listener.read_steps & self._answers.keys()
            return object_of({step: self._answers[step][1] for step in known})
        if name not in self._known:
            self._known[name] = self._facts[name]()
        return self._known[name]
