"""The function that runs a snippet in a task process. Answers, errors and limits are tested with the block."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bloxserver.blocks.python_snippets import find_problem, run_snippet


def run(code: str, payload: object = None) -> Any:
    request = {"code": code, "values": {"payload": payload}, "timeout_seconds": 5, "memory_mb": 16}
    return json.loads(run_snippet(json.dumps(request).encode()))


def test_response_has_the_answer() -> None:
    assert run("{'a': (payload, 'é')}", [1, None]) == {"answer": {"a": [[1, None], "é"]}}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("1 / 0", ["python_failed", "line 1: ZeroDivisionError: division by zero", False]),
        ("{1}", ["invalid_answer", "the answer contains a value of type set, which is not JSON", False]),
    ],
)
def test_response_has_the_error(code: str, error: list[object]) -> None:
    assert list(run(code)["error"].values()) == error


def test_problems_of_a_snippet_are_found_without_running_it() -> None:
    assert find_problem("while True:\n    pass") is None
    assert find_problem("x = = 1") == "line 1: SyntaxError: Expected an expression"
