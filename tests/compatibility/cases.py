"""The corpus: definitions with inputs, and what they did at the commit whose behaviour is promised.

`cases/TOPIC.yaml` has the definitions, `recorded/TOPIC.json` their behaviour at `COMMIT`. `changed.json` has the cases
that behave differently on purpose, with the reason and the behaviour now.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

COMMIT = "f12ef2d"
HERE = Path(__file__).parent
CHANGED = HERE / "changed.json"
TOPICS = tuple(sorted(path.stem for path in (HERE / "cases").glob("*.yaml")))


@dataclass(frozen=True)
class Case:
    """A definition and the inputs with which it runs, one after the other."""

    name: str
    definition: str
    inputs: list[Any] = field(default_factory=list)
    flows: dict[str, str] = field(default_factory=dict)
    """Definitions of other flows by name, which run before."""
    any_order: bool = False
    """Whether the order of an output's lists depends on which step ended first."""


def cases_of(topic: str) -> list[Case]:
    found: list[dict[str, Any]] = yaml.safe_load((HERE / "cases" / f"{topic}.yaml").read_text(encoding="utf-8"))
    return [Case(**{**item, "inputs": _expanded(item.get("inputs", []))}) for item in found]


def recorded_path(topic: str) -> Path:
    return HERE / "recorded" / f"{topic}.json"


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _expanded(value: Any) -> Any:
    """Expand `{$text: x, times: n}` and `{$list: x, times: n}`, so that large inputs have short sources."""
    if isinstance(value, list):
        return [_expanded(item) for item in value]
    if not isinstance(value, dict):
        return value
    if "$text" in value:
        return value["$text"] * value["times"]
    if "$list" in value:
        return [value["$list"]] * value["times"]
    return {key: _expanded(item) for key, item in value.items()}
