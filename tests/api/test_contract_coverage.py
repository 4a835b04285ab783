"""Every statement of the contract has a test: ids in docs/api-contract.md against `@covers(…)` in the tests' source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parents[1]
DOCUMENT = TESTS.parent / "docs" / "api-contract.md"
NAMED_LIKE_A_TEST = re.compile(r"test_|Test")


def ids_of_document() -> list[str]:
    return re.findall(r"<!-- id: ([a-z0-9.-]+) -->", DOCUMENT.read_text(encoding="utf-8"))


@cache
def ids_of_tests() -> list[tuple[str, str]]:
    """Each covered id with its test. The source is parsed, so that the result does not depend on the selected tests."""
    return list(_ids_of_tests())


def _ids_of_tests() -> Iterator[tuple[str, str]]:
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            for decorator in node.decorator_list:
                if isinstance(decorator, ast.Call) and ast.unparse(decorator.func) == "covers":
                    test = f"{path.name}::{node.name}"
                    assert NAMED_LIKE_A_TEST.match(node.name), f"{test} is not collected"
                    for argument in decorator.args:
                        yield ast.literal_eval(argument), test


def test_every_statement_id_is_unique() -> None:
    ids = ids_of_document()
    assert len(ids) > 100
    assert sorted(ids) == sorted(set(ids))


def test_every_comment_in_the_document_is_an_id() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert text.count("<!--") == len(ids_of_document())


def test_every_statement_has_a_test() -> None:
    covered = {covered_id for covered_id, _ in ids_of_tests()}
    assert [wanted for wanted in ids_of_document() if wanted not in covered] == []


def test_no_test_covers_an_unknown_statement() -> None:
    known = set(ids_of_document())
    assert [(covered_id, test) for covered_id, test in ids_of_tests() if covered_id not in known] == []
