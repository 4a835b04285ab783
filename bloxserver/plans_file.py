"""Reads `PLANS_FILE`: limits of plans that replace those of `plans.PLANS`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bloxserver.errors import SettingsError
from bloxserver.plans import MAX_LIMIT, PLANS, Plan, usable_overrides
from bloxserver.yaml_files import read_yaml_file


def use_plans_file(path: str | None) -> None:
    """Replace the limits of this process by those in the file, if one is set. Raises `SettingsError`."""
    if path is not None:
        PLANS.update(read_plans(Path(path)))


def read_plans(path: Path) -> dict[str, Plan]:
    """Return the plans of the tiers in the file. Limits that it does not have are the defaults.

    Raises `SettingsError` with a line for each problem.
    """
    document: Any = read_yaml_file("PLANS_FILE", path)
    document = {} if document is None else document
    problems = _problems(document)
    if problems:
        raise SettingsError(problems)
    return {tier: replace(PLANS[tier], **usable_overrides(limits)) for tier, limits in document.items()}


def _problems(document: object) -> list[str]:
    if not isinstance(document, Mapping):
        return ["PLANS_FILE must map tiers to limits, for example `free: {flows: 5}`"]
    problems: list[str] = []
    for tier, limits in document.items():
        if tier not in PLANS:
            problems.append(f"PLANS_FILE: {tier!r} is not a tier; the tiers are {', '.join(PLANS)}")
        elif not isinstance(limits, Mapping):
            problems.append(f"PLANS_FILE: {tier} must map names of limits to numbers")
        else:
            problems += [f"PLANS_FILE: {tier}.{problem}" for problem in _problems_of_limits(limits)]
    return problems


def _problems_of_limits(limits: Mapping[Any, Any]) -> list[str]:
    kinds = {field.name: str(field.type) for field in fields(Plan)}
    usable = usable_overrides(limits)
    problems: list[str] = []
    for name, value in limits.items():
        if name not in kinds:
            problems.append(f"{name} is not a limit")
        elif kinds[name] == "bool":
            if name not in usable:
                problems.append(f"{name} must be true or false")
        elif name not in usable or (isinstance(value, float) and "float" not in kinds[name]):
            kind = "a number" if "float" in kinds[name] else "a whole number"
            unlimited = ", or null" if "None" in kinds[name] else ""
            problems.append(f"{name} must be {kind} from 0 to {MAX_LIMIT}{unlimited}")
    return problems
