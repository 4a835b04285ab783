from __future__ import annotations

from bloxserver.organism.messages import MAX_PROBLEMS, problems_of_json, problems_to_json
from bloxserver.organism.problems import Problem


def test_problems_are_read_as_they_were_written() -> None:
    problems = [
        Problem(1, 2, "a_code", "a message", "a hint", path=("listeners", 0)),
        Problem(3, 4, "other", "m", "h", severity="warning"),
    ]
    assert problems_of_json(problems_to_json(problems)) == problems


def test_one_problem_stands_for_those_beyond_the_limit() -> None:
    warnings = [Problem(line, 1, "w", "m", "h", severity="warning") for line in range(MAX_PROBLEMS + 2)]
    assert problems_of_json(problems_to_json(warnings[:MAX_PROBLEMS])) == warnings[:MAX_PROBLEMS]
    *shown, last = problems_of_json(problems_to_json(warnings))
    assert shown == warnings[:MAX_PROBLEMS]
    assert (last.code, last.severity) == ("more_problems", "warning")
    *_, last = problems_of_json(problems_to_json([*warnings, Problem(500, 1, "e", "m", "h")]))
    assert (last.code, last.severity) == ("more_problems", "error")
