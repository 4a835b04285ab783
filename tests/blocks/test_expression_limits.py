"""The limits of expressions: hostile texts, nested loops, growing values."""

from __future__ import annotations

import time

import pytest
from pydantic import JsonValue

from bloxserver.blocks.cel.values import CostLimitExceeded
from bloxserver.blocks.expressions import _compiled, compile_expression
from tests.blocks.test_expressions import PAYLOAD, budget, refused, value

HOSTILE = {
    "parentheses": "(" * 900 + "1" + ")" * 900,
    "lists": "[" * 900 + "]" * 900,
    "maps": "{'a':" * 250 + "1" + "}" * 250,
    "open": "(" * 2000,
    "not": "!" * 1996 + "true",
    "minus": "-" * 1999 + "1",
    "sum": "+".join("1" * 1000),
    "comparisons": "==".join("1" * 600),
    "conditions": "true?1:" * 280 + "1",
    "conditions within": "true?" * 300 + "1" + ":1" * 200,
    "path": "payload" + ".a" * 900,
    "indexes": "payload" + "[0]" * 600,
    "methods": "'a'" + ".trim()" * 280,
    "macros": "[1]" + ".map(x,x)" * 200,
    "macros within": "[1].map(x," * 150 + "1" + ")" * 150,
    "calls": "size([" * 250 + "])" * 250,
    "all of it": "!([{'a':-(" * 90 + "1" + ")}]==[])" * 90,
    "questions": "?" * 2000,
    "quotes": "'" * 1999,
    "backslashes": "'" + "\\" * 1999,
    "escapes": "'" + "\\x" * 999,
    "junk": "#" * 2000,
    "dots": "." * 2000,
    "digits": "9" * 2000,
    "name": "x" * 2000,
    "commas": "size(" + "1," * 990 + "1)",
}


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_expressions_are_rejected_quickly(text: str) -> None:
    started = time.thread_time()
    with pytest.raises(ValueError, match=r".") as caught:
        compile_expression(text)
    assert len(str(caught.value)) < 300
    assert time.thread_time() - started < 5


DEEPEST = {
    "parentheses": "(" * 31 + "payload" + ")" * 31,
    "logic": "(true && (true || (" * 10 + "true" + ")))" * 10,
    "macros": "[1].all(x, " * 31 + "true" + ")" * 31,
    "operators": "(1 + 2 * (true == (1 < 2) ? 1 : " * 10 + "1" + "))" * 10,
    "calls": "dyn(" * 31 + "1" + ")" * 31,
    "sum": " + ".join(["1"] * 99),
    "alternatives": " || ".join(["payload == 0"] * 120),
    "comparisons": "payload" + " == 1" * 95,
}


def below(frames: int, text: str) -> JsonValue:
    return below(frames - 1, text) if frames else value(text, [1])


@pytest.mark.parametrize("text", DEEPEST.values(), ids=DEEPEST)
def test_deepest_expressions_evaluate_on_a_half_used_stack(text: str) -> None:
    _compiled.clear()
    below(400, text)


NUMBERS: JsonValue = list(range(20_000))
COSTLY: dict[str, tuple[str, JsonValue]] = {
    "loops within loops": ("payload.all(x, payload.all(y, x + y >= 0))", NUMBERS),
    "searches within a loop": ("payload.exists(x, -1 in payload)", NUMBERS),
    "comparisons within a loop": ("payload.exists(x, payload == payload && false)", NUMBERS),
    "concatenations within a loop": ("payload.map(x, payload + payload)", NUMBERS),
    "distinct": ("payload.map(x, [x]).distinct()", NUMBERS),
    "texts that double": ("['aaaa']" + ".map(x, x + x)" * 90, None),
    "lists that double": ("[[1]]" + ".map(x, x + x)" * 90, None),
    "one replacement": ("size(payload.replace('', payload))", "a" * 100_000),
    "one joining": ("size(payload.join(payload[0]))", ["a" * 10_000] * 5_000),
    "replacements": ("payload.map(x, x.replace('', x)).map(x, x.replace('', x))", ["a" * 10_000]),
    "joined copies": ("payload.map(x, payload).map(x, x.join(payload[0]))", ["a" * 1000] * 1000),
    "reversed copies": ("payload.map(x, payload[0].reverse())", ["a" * 100_000] * 1000),
    "regular expressions": ("payload.exists(x, x.matches('(?:a|aa|aaa){1000}c'))", ["a" * 20_000] * 10),
}
# A value that repeats another value many times takes no memory until it is copied.
TOO_LARGE: dict[str, tuple[str, JsonValue]] = {
    "lists of lists that double": ("['aaaa']" + ".map(x, [x, x])" * 60, None),
    "copies": ("[" + ",".join(["payload"] * 200) + "]", "a" * 100_000),
    "copies within a loop": ("payload.map(x, payload)", ["a" * 1000] * 2000),
}


@pytest.mark.parametrize(("text", "payload"), COSTLY.values(), ids=COSTLY)
def test_slow_expressions_exceed_the_cost_limit(text: str, payload: JsonValue) -> None:
    expression = compile_expression(text)
    started = time.thread_time()
    with pytest.raises(CostLimitExceeded):
        expression.evaluate({"payload": payload}, budget())
    assert time.thread_time() - started < 20  # much less without coverage measurement


@pytest.mark.parametrize(("text", "payload"), TOO_LARGE.values(), ids=TOO_LARGE)
def test_expressions_with_too_large_values_are_stopped(text: str, payload: JsonValue) -> None:
    error = refused(text, payload)
    assert error.code == "expression_failed"
    assert "larger than 1048576 bytes" in error.message or "more than 64" in error.message


def test_matches_rejects_long_texts() -> None:
    assert value("payload.matches('b')", "a" * 65_536) is False
    assert "at most 65536 characters" in refused("payload.matches('b')", "a" * 65_537).message


def test_expression_over_part_of_a_large_message_succeeds() -> None:
    items: JsonValue = [{"id": number, "name": "x" * 100, "price": 2.5} for number in range(20_000)]
    payload: JsonValue = {"items": items, "total": 3}
    assert value("payload.total > 2", payload) is True
    assert value("payload.items.exists(item, item.id == 19999)", payload) is True
    assert value("size(payload.items.filter(item, item.price > 2 && item.id % 2 == 0))", payload) == 10_000


def test_deeply_nested_messages_can_be_compared() -> None:
    deep: JsonValue = 1
    for _ in range(50_000):
        deep = {"a": deep}
    assert value("has(payload.a.a.a) && payload == payload", deep) is True
    assert "more than 64" in refused("payload", deep).message
    while isinstance(deep, dict):  # freeing all levels at once overflows the stack of some Python versions
        deep = deep.pop("a")


def test_evaluation_takes_microseconds() -> None:
    expression = compile_expression("payload.score > 3 && payload.name == 'Ada'")
    scope: dict[str, JsonValue] = {"payload": PAYLOAD}
    started = time.thread_time()
    for _ in range(1000):
        expression.holds(scope, budget())
    assert (time.thread_time() - started) / 1000 < 1e-3


def test_compiled_expressions_are_cached() -> None:
    assert compile_expression("payload.kept") is compile_expression("payload.kept")
