"""The path of one execution in DEVELOPMENT.md names functions that exist, and counts its returns correctly."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import NamedTuple

import bloxserver

PACKAGE = Path(bloxserver.__file__).parent
DOCUMENT = (PACKAGE.parent / "DEVELOPMENT.md").read_text(encoding="utf-8")
SECTION = DOCUMENT.partition("\n## The path of one execution\n")[2].partition("\n## ")[0]
ROW = re.compile(r"^\| (\d+) \| ([\w, ]+) \| `([\w/]+\.py)` \| `([\w.]+)` \| .+ \|$", re.MULTILINE)
MAX_RETURNS = 5


class PathStep(NamedTuple):
    number: int
    from_steps: list[int]
    file: str
    function: str

    @property
    def package(self) -> str:
        """The folder below the package; each package of the engine counts by itself."""
        folders = self.file.split("/")[:-1]
        return "/".join(folders[: 2 if folders[0] == "engine" else 1])


def path_steps() -> list[PathStep]:
    return [
        PathStep(int(number), [int(step) for step in re.findall(r"\d+", origin)], file, function)
        for number, origin, file, function in ROW.findall(SECTION)
    ]


def defined_names(source: str) -> set[str]:
    """Names of the functions and classes of a module, and of the methods as `Class.method`."""
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, kinds):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {f"{node.name}.{method.name}" for method in node.body if isinstance(method, kinds)}
    return names


def test_every_row_of_the_table_is_a_numbered_step() -> None:
    rows = [line for line in SECTION.splitlines() if line.startswith("| ")]
    steps = path_steps()
    assert len(steps) == len(rows) - 1 >= 20
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert all(origin < step.number for step in steps for origin in step.from_steps)
    assert [step.number for step in steps if not step.from_steps] == [1]


def test_every_file_and_function_of_the_path_exists() -> None:
    missing = [
        f"{step.file}: {step.function}"
        for step in path_steps()
        if not (PACKAGE / step.file).is_file()
        or step.function not in defined_names((PACKAGE / step.file).read_text(encoding="utf-8"))
    ]
    assert missing == []


def test_stated_number_of_returns_is_correct_and_within_the_limit() -> None:
    steps = path_steps()
    packages = {step.number: step.package for step in steps}
    returns = [
        step.number
        for step in steps
        if step.from_steps
        and all(packages[origin] != step.package for origin in step.from_steps)
        and any(earlier.package == step.package for earlier in steps[: step.number - 1])
    ]
    stated = re.search(r"returns to a package (\d+) times\.", SECTION)
    assert stated is not None
    assert int(stated[1]) == len(returns) <= MAX_RETURNS
    named = re.search(r"Calls ([\d, and]+) are returns\.", SECTION.replace("\n", " "))
    assert named is not None
    assert [int(number) for number in re.findall(r"\d+", named[1])] == returns
