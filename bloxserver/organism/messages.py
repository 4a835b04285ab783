"""Problems and requirements as JSON, for processes that check definitions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal

from bloxserver.organism.problems import Problem, errors_of, shortened_path
from bloxserver.organism.requirements import (
    AddressRequirement,
    FlowRequirement,
    MailRequirement,
    ModelRequirement,
    PriceRequirement,
    Requirement,
    SecretRequirement,
    SigningKeyRequirement,
    ValidityRequirement,
)
from bloxserver.organism.yaml_source import Place

KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        SecretRequirement,
        SigningKeyRequirement,
        ModelRequirement,
        PriceRequirement,
        MailRequirement,
        AddressRequirement,
        FlowRequirement,
    )
}


MAX_PROBLEMS = 200
"""The number of problems that a process reports. The event loop handles each of them several times."""


def problems_to_json(problems: Sequence[Problem]) -> list[dict[str, Any]]:
    return [
        {name: getattr(problem, name) for name in Problem.__slots__} | {"path": shortened_path(problem.path)}
        for problem in limit_problems(problems)
    ]


def limit_problems(problems: Sequence[Problem]) -> list[Problem]:
    """Return the first problems, and one that stands for the others if there are more."""
    if len(problems) <= MAX_PROBLEMS:
        return [*problems]
    shown, others = problems[:MAX_PROBLEMS], problems[MAX_PROBLEMS:]
    severity: Literal["error", "warning"] = "error" if errors_of(others) else "warning"
    last = shown[-1]
    return [
        *shown,
        Problem(last.line, last.column, "more_problems", "there are more problems", "fix these first", severity),
    ]


def problems_of_json(values: Iterable[dict[str, Any]]) -> list[Problem]:
    return [Problem(**(value | {"path": tuple(value["path"])})) for value in values]


def requirements_to_json(requirements: Iterable[Requirement]) -> list[dict[str, Any]]:
    """Leave out the requirements that only the process can check that has read the definition."""
    return [
        {"kind": type(requirement).__name__}
        | {name: getattr(requirement, name) for name in _names(type(requirement))}
        | {"path": shortened_path(requirement.path)}
        for requirement in requirements
        if not isinstance(requirement, ValidityRequirement)
    ]


def requirements_of_json(values: Sequence[dict[str, Any]]) -> list[Requirement]:
    return [
        KINDS[value["kind"]](
            **{name: value[name] for name in _names(KINDS[value["kind"]])}
            | {"place": Place(*value["place"]), "path": tuple(value["path"])}
        )
        for value in values
    ]


def _names(kind: type[Any]) -> list[str]:
    return [*kind.__dataclass_fields__]
