"""`now` and `uuid` follow from the message, not from the time of the evaluation."""

from __future__ import annotations

from uuid import UUID

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.type_check import check
from bloxserver.blocks.cel.values import MAX_STEPS, Budget, Invocation
from bloxserver.blocks.expressions import compile_expression, evaluate
from tests.blocks.cel.evaluation import MOMENT, failure, value

SCOPE: dict[str, JsonValue] = {"payload": None, "input": None}


def uuids(key: str) -> list[str]:
    """The values of four calls, two of them in a macro."""
    budget = Budget(MAX_STEPS, invocation=Invocation(MOMENT, key))
    found = evaluate("([uuid(), uuid()] + [1, 2].map(x, uuid())).join()", SCOPE, budget)
    assert isinstance(found, str)
    return [found[start : start + 36] for start in range(0, len(found), 36)]


def test_now_is_the_moment_of_the_message() -> None:
    assert value("now()") == "2026-01-02T03:04:05.000600Z"
    assert value("now() - timestamp('2026-01-02T03:04:05Z')") == 0.0006


def test_each_call_has_another_uuid_and_each_attempt_the_same_ones() -> None:
    assert uuids("key") == uuids("key")
    assert len({*uuids("key")}) == 4
    assert {*uuids("key")}.isdisjoint(uuids("another key"))
    assert {UUID(text).version for text in uuids("key")} == {5}


def test_expressions_of_an_attempt_have_different_uuids() -> None:
    budget = Budget(MAX_STEPS, invocation=Invocation(MOMENT, "key"))
    assert evaluate("uuid()", SCOPE, budget) != evaluate("uuid()", SCOPE, budget)


@pytest.mark.parametrize("name", ["now", "uuid"])
def test_there_is_no_value_without_a_message(name: str) -> None:
    with pytest.raises(BlockError, match=f"{name} needs a message"):
        evaluate(f"{name}()", SCOPE, Budget(MAX_STEPS))


@pytest.mark.parametrize("text", ["now() > timestamp(0)", "uuid() + 'x'", "[now()]", "size(uuid()) == 36"])
def test_the_type_check_does_not_evaluate_them(text: str) -> None:
    check(compile_expression(text).program)


@pytest.mark.parametrize("text", ["now(1)", "payload.uuid()"])
def test_they_have_no_arguments(text: str) -> None:
    assert "wrong number of arguments" in failure(text)
