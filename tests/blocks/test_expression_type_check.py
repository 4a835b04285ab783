"""The type check rejects expressions that fail for every message, and no others."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bloxserver.blocks.branch import BranchConfig
from bloxserver.blocks.calculate import CalculateConfig
from bloxserver.blocks.cel.type_check import check
from bloxserver.blocks.expressions import compile_expression
from bloxserver.blocks.transform import TransformConfig

FAILING = [
    ("1 / 0", "division by zero"),
    ("payload.a > 1 / 0", "division by zero"),
    ("payload.a || 1 / 0 > 1", "division by zero"),
    ("1 + 'a'", r"convert other values with string\(…\)"),
    ("'a' > 3", "> cannot be used"),
    ("string(payload.a) > 3", "> cannot be used with a text and a number"),
    ("payload.a.size() + 'x'", r"\+ cannot be used with a number and a text"),
    ("size(3)", "size"),
    ("size(size(payload))", "size"),
    ("!5", "! needs true or false"),
    ("!payload.size()", "! needs true or false, not a number"),
    ("-'a'", "- needs a number"),
    ("-string(payload)", "- needs a number"),
    ("5 ? 1 : 2", "true or false"),
    ("payload.size() ? 1 : 2", "true or false"),
    ("payload.a && 'yes'", "&& needs true or false"),
    ("payload in 'abc'", "in needs a list"),
    ("'abc'.name", "name"),
    ("string(payload).name", ".name needs an object"),
    ("payload[[1]]", "an index"),
    ("size(payload)[0]", "needs a list or an object"),
    ("{1: payload}", "the key of an object"),
    ("string(payload).map(x, x)", "map needs a list or an object"),
    ("payload.filter(x, x.size())", "filter needs true or false"),
    ("payload.all(x, 'a')", "all needs true or false"),
    ("payload.map(x, x.a, 1 / 0)", "division by zero"),
    ("payload.map(x, size(x), x)", "map needs true or false"),
    ("timestamp('tomorrow')", "timestamp cannot convert"),
    ("timestamp(payload.a) < duration('1h')", "< cannot be used"),
    ("timestamp(payload.a) + 1", r"\+ cannot be used"),
    ("duration('soon')", "duration cannot convert"),
    ("'x'.matches('a' + '[')", "regular expression"),
    ("int('x')", "int cannot convert"),
    ("'abc'.substring(5)", "substring"),
    ("[1, 'a'].sort()", "sort requires"),
    ("{'a': 1, 'a': 2}", "twice"),
    ("9223372036854775807 + 1", "64 bits"),
    ("getHours(payload.size())", "getHours"),
    ("split(payload.a, 3)", "split"),
    ("default(1 / 0, payload.a)", "division by zero"),
    ("default(payload.a, 1 / 0)", "division by zero"),
    ("default(size(payload), 3) + 'x'", r"\+ cannot be used with a number and a text"),
    ("size(payload).group_by(x, x)", "group_by needs a list or an object"),
    ("payload.sort_by(x, x.a).name", ".name needs an object"),
    ("payload.group_by(x, x.a) + [1]", r"\+ cannot be used"),
    ("upper(payload) + 1", r"\+ cannot be used with a text and a number"),
    ("parse_time(payload.a, 'Europe/Berln')", "is not a time zone"),
    ("format_time(payload.a, '%Q')", "does not know '%Q'"),
    ("format_time(now(), '%Y', 'Nowhere')", "is not a time zone"),
    ("now().getHours('Nowhere')", "is not a time zone"),
    ("add_time(payload.a, 1, 'eon')", "does not know 'eon'"),
    ("hmac('md5', payload.key, payload.text)", "is not an algorithm"),
    ("now() > 3", "> cannot be used"),
    ("json_parse('{')", "json_parse cannot read the text"),
]
VALID = [
    "payload",
    "payload.a + payload.b",
    "payload.a.b[0].c > 3 && input.x == 'y'",
    "1 + 2 * 3",
    "true || 1 / 0 > 1",
    "true ? 1 : 1 / 0",
    "payload == null || payload.a > 3",
    "has(payload.a) ? payload.a : 'none'",
    "(has(payload.a) ? payload.a : 'none') + 'x'",
    "(payload.a ? 1 : 'b') + 1",
    "payload.items.filter(item, item.price > 3).map(item, item.name).join(', ')",
    "payload.map(x, x + 1).sum() / 2",
    "payload.exists_one(x, x == 1)",
    "timestamp(payload.due) < timestamp('2026-12-24T00:00:00Z') - duration('1h30m')",
    "timestamp(payload.a) - timestamp(payload.b) > duration('1h')",
    "payload.a - duration('1h')",
    "duration('1h') + timestamp(payload.a)",
    "payload.text.matches('^a+$')",
    "payload['first name'] in ['Ada', 'Grace']",
    "'a' in payload",
    "type(payload) == string",
    "math.round(payload.a, 2) > 3.5",
    "[1, 2] + [payload.a]",
    "reverse(payload.a) + 'x'",
    "max(payload.a, 3)",
    "size('abc') == '3'",
    "payload.all(payload, payload.x)",
    "{'a': payload}.a",
    "-payload.a",
    "dyn(1) > 0",
    "default([1][5], payload.a)",
    "default({'a': 1}.b, 2) + 1",
    "default(payload.a, '') + 'x'",
    "default(null, 'a') + 'x'",
    "payload.group_by(x, x.a).b",
    "payload.sort_by(x, x.a)[0].b",
    "hmac(payload.algorithm, payload.key, payload.text)",
    "now() - duration('1h') > parse_time(payload.a, payload.zone)",
    "uuid() + payload.a",
]


@pytest.mark.parametrize(("text", "reason"), FAILING, ids=[text for text, _ in FAILING])
def test_expressions_that_always_fail_are_rejected(text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TransformConfig.model_validate({"expression": text})


@pytest.mark.parametrize("text", VALID)
def test_expressions_that_can_succeed_are_accepted(text: str) -> None:
    assert check(compile_expression(text).program)
    TransformConfig.model_validate({"expression": text})


@pytest.mark.parametrize("when", ["payload.size()", "'yes'", "1", "payload.a + 1", "[payload]", "payload.map(x, x)"])
def test_condition_that_is_never_boolean_is_rejected(when: str) -> None:
    with pytest.raises(ValidationError, match="a condition must be true or false"):
        BranchConfig.model_validate({"cases": [{"when": when, "to": "a"}]})


@pytest.mark.parametrize(
    ("text", "reason"),
    [("1 / 0", "division by zero"), ("sqrt(-1)", "sqrt"), ("round('a')", "round"), ("2 ** 'a'", "cannot be used")],
)
def test_calculations_that_always_fail_are_rejected(text: str, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        CalculateConfig.model_validate({"expression": text})


@pytest.mark.parametrize(
    "text", ["7 / 2", "9223372036854775807 * 2", "2 ** 0.5 + pi", "max(payload.a) // 3", "2 ^ payload"]
)
def test_calculations_that_can_succeed_are_accepted(text: str) -> None:
    CalculateConfig.model_validate({"expression": text})


def test_expensive_constant_is_not_evaluated_by_the_check() -> None:
    text = "[1,2,3].map(x, " * 9 + "1" + ")" * 9
    assert check(compile_expression(f"size({text})").program)
