"""What a function of the language accepts, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bloxserver.blocks.cel.values import (
    CHARACTERS_PER_STEP,
    MAX_INT,
    MIN_INT,
    EvaluationError,
    Run,
    kind_of,
)

TEXT = "a text"
LIST = "a list"
NUMBER = "a number"
TIME = "a timestamp"
ANYTHING = "anything"
FAST, MEDIUM, SLOW = 3, 6, 15
"""The steps of a call."""
_NUMBER_ONLY = frozenset({NUMBER})


@dataclass(frozen=True)
class Function:
    """A function of the language. `call` receives the run, and arguments of the kinds in `takes`."""

    call: Callable[..., Any]
    takes: tuple[str, ...]
    """The kind of each argument: kinds separated by |, or ANYTHING."""
    optional: int = 0
    """The number of optional arguments at the end."""
    repeats: bool = False
    """Whether the last argument can be repeated."""
    steps: int = FAST
    """The steps of a call, in addition to those for the sizes of its arguments."""
    constants: Mapping[int, Callable[[str], object]] = field(default_factory=dict, repr=False)
    """Checks of arguments that are constant texts, by index. Each raises `EvaluationError`."""
    is_pure: bool = True
    """Whether the result depends on the arguments alone."""
    accepted: tuple[frozenset[str] | None, ...] = field(init=False, repr=False)
    """The kinds in `takes` as sets; null: anything."""

    def __post_init__(self) -> None:
        accepted = tuple(None if kinds == ANYTHING else frozenset(kinds.split("|")) for kinds in self.takes)
        object.__setattr__(self, "accepted", accepted)

    def accepts(self, count: int) -> bool:
        maximum = math.inf if self.repeats else len(self.takes)
        return len(self.takes) - self.optional <= count <= maximum

    def signature(self, name: str) -> str:
        arguments = [kind.replace("|", " or ") for kind in self.takes]
        required = len(arguments) - self.optional
        arguments[required:] = [f"{argument}, optional" for argument in arguments[required:]]
        return f"{name}({'; '.join(arguments)}{'; …' if self.repeats else ''})"

    def apply(self, name: str, arguments: Sequence[Any], run: Run) -> Any:
        """Check the arguments and call the function. Raises `EvaluationError` and `CostLimitExceeded`."""
        run.budget.consume(self.steps)
        for index, argument in enumerate(arguments):
            accepted = self.accepted[index if index < len(self.accepted) else -1]
            if accepted is not None and kind_of(argument) not in accepted:
                raise EvaluationError(f"{self.signature(name)} does not accept {kind_of(argument)}")
            if isinstance(argument, str):
                run.budget.consume(len(argument) // CHARACTERS_PER_STEP)
            elif isinstance(argument, list):
                run.budget.consume(len(argument))
            elif accepted == _NUMBER_ONLY:
                _require_in_range(argument)
        return self.call(run, *arguments)


def _require_in_range(number: int | float) -> None:
    """A message is not checked when it is evaluated: it can contain numbers that are too large."""
    if isinstance(number, float):
        if not math.isfinite(number):
            raise EvaluationError("a number is too large")
    elif not MIN_INT <= number <= MAX_INT:
        raise EvaluationError("an integer exceeds 64 bits")
