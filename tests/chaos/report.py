"""The report of a scenario: measurements, and violated expectations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

Value = int | float | str


@dataclass
class Report:
    title: str
    measurements: dict[str, Value] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    _expected: dict[str, str] = field(default_factory=dict)

    def record(self, name: str, value: Value) -> None:
        self.measurements[name] = value

    def expect_none(self, name: str, found: Sequence[object]) -> None:
        """Expect an empty list; a violation shows the first three items."""
        self.record(name, len(found))
        examples = "; ".join(map(str, found[:3]))
        self._check(name, "0", not found, examples)

    def expect_equal(self, name: str, value: Value, expected: Value) -> None:
        self.record(name, value)
        self._check(name, str(expected), value == expected)

    def expect_at_most(self, name: str, value: float, limit: float) -> None:
        self.record(name, value)
        self._check(name, f"at most {limit:g}", value <= limit)

    def expect_at_least(self, name: str, value: float, limit: float) -> None:
        self.record(name, value)
        self._check(name, f"at least {limit:g}", value >= limit)

    def _check(self, name: str, expected: str, passed: bool, examples: str = "") -> None:
        self._expected[name] = expected
        if not passed:
            details = f": {examples}" if examples else ""
            self.violations.append(f"{name}: {self._format(name)}, expected {expected}{details}")

    def _format(self, name: str) -> str:
        value = self.measurements[name]
        return f"{value:.2f}" if isinstance(value, float) else str(value)

    def __str__(self) -> str:
        width = max(map(len, self.measurements), default=0)
        lines = [self.title]
        for name in self.measurements:
            expected = f"   expected: {self._expected[name]}" if name in self._expected else ""
            lines.append(f"  {name:<{width}}  {self._format(name):>10}{expected}")
        lines += [f"  VIOLATED {violation}" for violation in self.violations]
        return "\n".join(lines)
