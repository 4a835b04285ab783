"""What a scenario found, as a small table; figures that must not be are marked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Value = int | float | str


@dataclass
class Report:
    title: str
    figures: dict[str, Value] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    _wanted: dict[str, str] = field(default_factory=dict)

    def figure(self, name: str, value: Value) -> None:
        self.figures[name] = value

    def none(self, name: str, found: Sequence[object]) -> None:
        """There must be nothing of this kind; says what there is of it."""
        self.figure(name, len(found))
        examples = "; ".join(map(str, found[:3]))
        self._judge(name, "0", not found, examples)

    def equal(self, name: str, value: Value, wanted: Value) -> None:
        self.figure(name, value)
        self._judge(name, str(wanted), value == wanted)

    def at_most(self, name: str, value: float, limit: float) -> None:
        self.figure(name, value)
        self._judge(name, f"at most {limit:g}", value <= limit)

    def at_least(self, name: str, value: float, limit: float) -> None:
        self.figure(name, value)
        self._judge(name, f"at least {limit:g}", value >= limit)

    def _judge(self, name: str, wanted: str, holds: bool, examples: str = "") -> None:
        self._wanted[name] = wanted
        if not holds:
            told = f": {examples}" if examples else ""
            self.violations.append(f"{name}: {self._shown(name)}, wanted {wanted}{told}")

    def _shown(self, name: str) -> str:
        value = self.figures[name]
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    def __str__(self) -> str:
        width = max(map(len, self.figures), default=0)
        lines = [self.title]
        for name in self.figures:
            wanted = f"   wanted: {self._wanted[name]}" if name in self._wanted else ""
            lines.append(f"  {name:<{width}}  {self._shown(name):>10}{wanted}")
        lines += [f"  VIOLATED {violation}" for violation in self.violations]
        return "\n".join(lines)
