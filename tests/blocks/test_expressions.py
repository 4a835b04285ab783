"""Expressions: values, errors and compilation."""

from __future__ import annotations

from typing import Any

import cel
import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import MAX_ISOLATED_STEPS, Budget
from bloxserver.blocks.expressions import compile_expression

PAYLOAD: JsonValue = {
    "score": 3.5,
    "count": 7,
    "name": "Ada",
    "accents": "héé",
    "empty": "",
    "yes": True,
    "none": None,
    "tags": ["a", "b"],
    "numbers": [3, 1, 2.5],
    "user": {"name": "Ada", "first name": "é", "0": "zero", "in": 1},
    "items": [{"id": 1, "price": 2.5}, {"id": 2, "price": 4, "tags": ["x"]}],
}

# Expressions with the same value in the reference implementation, which is stricter about numbers.
REFERENCE = [
    "payload.score > 3",
    "payload.score > 3.5",
    "payload.count == 7.0",
    "payload.count != 7",
    "payload.count in [1, 7.0]",
    "payload.name == 'Ada' && payload.count > 3",
    "payload.name == 'Bob' || !payload.yes",
    "payload.missing == 1 || true",
    "false && payload.missing",
    "payload.yes ? 'a' : 'b'",
    "payload.yes ? (false ? 1 : 2) : false ? 3 : 4",
    "1 + 2 * 3 - 4 / 2 % 3",
    "(1 + 2) * 3",
    "10 - 3 - 2",
    "-7 / 2",
    "-7 % 3",
    "7 / -2",
    "7 % -3",
    "--1",
    "!!true",
    "-(2)",
    "1 < 2 == true",
    "1 + 1 == 2 && 2 < 3 || false",
    "'a' + \"b\" + 'c'",
    "[1] + [2, 'x'] == [1, 2, 'x']",
    "{'a': 1, 'b': [null]} == {'b': [null], 'a': 1.0}",
    "true == 1",
    "null == payload.none",
    "'1' == 1",
    "'name' in payload.user",
    "'nobody' in payload.user",
    "'a' in payload.tags",
    "payload['name']",
    "payload.user['first name']",
    "payload.user['0']",
    "payload.items[1].tags[0]",
    "has(payload.name)",
    "has(payload.missing)",
    "has(payload.items[0].tags)",
    "size(payload.tags) + payload.name.size() + size(payload.user)",
    "payload.items.map(i, i.id)",
    "payload.items.map(i, i.id > 1, i.price)",
    "payload.items.filter(i, has(i.tags)).map(i, i.id)",
    "payload.items.all(i, i.price > 1)",
    "payload.items.exists(i, i.price > 3)",
    "payload.items.exists_one(i, i.id == 2)",
    "payload.items.exists_one(i, i.id > 0)",
    "payload.user.exists(key, key == 'name')",
    "payload.items.map(i, payload.numbers.filter(n, n > i.price))",
    "[1, 2].map(payload, payload * 2)",
    "[].all(x, false)",
    "[].exists(x, true)",
    "int('12') + int(3.9) + int(-3.9)",
    "double('1.5') + double(2)",
    "string(12) + string(1.5) + string(3.0)",
    "type(1) == int && type('') == string && type(payload) == map && type(null) != bool",
    "payload.name.startsWith('A') && payload.name.endsWith('a') && payload.name.contains('d')",
    "payload.name.matches('^[A-Z][a-z]+$')",
    "payload.name.matches('d')",
    "'é\\n\\t\\x41\\u00e9\\U0001F600\\101\\\\\\''",
    "r'\\d' + R\"\\d\"",
    "'''a\n'b'''",
    '"""a\n"b"""',
    "0x1F + 1",
    "1e3 + .5",
    "-9223372036854775808",
    "payload.count // a comment\n + 1",
    "timestamp('2024-02-29T12:00:00Z').getFullYear() + timestamp('2024-02-29T12:00:00Z').getMonth()",
    "timestamp('2024-02-29T12:00:00Z').getDate() * 100 + timestamp('2024-02-29T12:00:00Z').getDayOfMonth()",
    "timestamp('2024-03-03T12:00:00Z').getDayOfWeek() * 1000 + timestamp('2024-03-03T12:00:00Z').getDayOfYear()",
    "timestamp('2024-02-29T12:34:56.789Z').getMinutes() + timestamp('2024-02-29T12:34:56.789Z').getMilliseconds()",
    "timestamp('2024-02-29T12:00:00Z') + duration('1h30m') > timestamp('2024-02-29T12:00:00Z')",
    "timestamp('2024-02-29T12:00:00Z') - timestamp('2024-02-28T12:00:00Z') == duration('24h')",
    "duration('1h') - duration('15m') == duration('2700s')",
]

KINDER: dict[str, Any] = {
    "payload.score * 2": 7.0,
    "payload.count * 2.0 + 1": 15.0,
    "payload.count / 2.0": 3.5,
    "7.5 % 2": 1.5,
    "size(payload.accents)": 3,
    "string(payload.yes)": "true",
    "payload.items[1.0].id": 2,
    "payload.items.exists(i, i.tags[0] == 'x')": True,
    "payload.items.all(i, i.tags[0] == 'y')": False,
    "timestamp('2024-02-29T12:00:00+02:00').getHours()": 10,
    "min(3, 1, 2) + max([4, 5.5])": 6.5,
    "sum(payload.items.map(i, i.price))": 6.5,
    "sum([])": 0,
    "payload.numbers.sort()": [1, 2.5, 3],
    "[3, 1, 3.0, 'a', [1], [1]].distinct()": [3, 1, "a", [1]],
    "[[1], [2, [3]], 4].flatten()": [1, 2, [3], 4],
    "[1, 2, 3].slice(1, 3) + [1, 2].reverse()": [2, 3, 2, 1],
    "[1, 2].contains(2.0)": True,
    "'a,b,,c'.split(',')": ["a", "b", "", "c"],
    "'abc'.split('')": ["a", "b", "c"],
    "['a', 'b'].join('-') + ['c'].join()": "a-bc",
    "'Straße É'.lowerAscii() + 'aé'.upperAscii()": "straße ÉAé",
    "' x '.trim() + 'abc'.substring(1) + 'abc'.substring(0, 2) + 'abc'.reverse() + 'abc'.charAt(1)": "xbcabcbab",
    "'a-b-c'.replace('-', '+')": "a+b+c",
    "['abcabc'.indexOf('c'), 'abcabc'.lastIndexOf('c'), 'abc'.indexOf('x')]": [2, 5, -1],
    "[math.abs(-3), math.sign(-2.5), math.ceil(1.2), math.floor(-1.2), math.trunc(-1.7), math.sqrt(9)]": [
        *(3, -1.0, 2.0, -2.0, -1.0, 3.0)
    ],
    "[math.round(2.5), math.round(-2.5), math.round(2.675, 2), math.round(7)]": [3.0, -3.0, 2.68, 7],
    "math.greatest(1, 2) + math.least([1, 2])": 3,
    "[bool('true'), bool('0'), bool(false)]": [True, False, False],
    "timestamp('2024-02-29T12:00:00+02:00')": "2024-02-29T10:00:00Z",
    "string(timestamp(0))": "1970-01-01T00:00:00Z",
    "int(timestamp('1970-01-01T00:01:00Z'))": 60,
    "duration('1h30m')": 5400.0,
    "duration('-1.5s')": -1.5,
    "-duration(duration('90s'))": -90.0,
    "timestamp(timestamp(0)) < timestamp(1)": True,
    "[1, 2] == [1] || {'a': 1} == {'b': 1}": False,
    "1 in {'a': 1}": False,
    "string(duration(90))": "90s",
    "duration('1h30m').getMinutes()": 90,
    "[type(1), type(1.5), type([])]": ["int", "double", "list"],
    "payload.user.in": 1,
    "dyn(payload.count)": 7,
    "payload.items": [{"id": 1, "price": 2.5}, {"id": 2, "price": 4, "tags": ["x"]}],
}

FAILURES = {
    "payload.missing": "no such field: missing",
    "payload.user.missing.deeper": "no such field: missing",
    "payload.score.deeper": "no such field: deeper, because the value is a number",
    "payload['missing']": "no such field: missing",
    "has(payload.missing.deeper)": "no such field: missing",
    "payload.tags[2]": "no such index: a list has 2 items",
    "payload.tags[-1]": "no such index",
    "payload.tags['a']": "index of a list must be an integer, not a text",
    "payload.name[0]": "needs a list or an object, not a text",
    "payload.name + 1": "join a text and a number",
    "payload.name - 1": "- cannot be used with a text and a number",
    "payload.name < 1": "< cannot be used with a text and a number",
    "null < null": "< cannot be used with null and null",
    "'a' in payload.name": "write text.contains",
    "payload.count && true": "&& needs true or false, not a number",
    "payload.name ? 1 : 2": "? needs true or false, not a text",
    "!payload.name": "! needs true or false",
    "-payload.name": "- needs a number",
    "payload.items.all(i, i.id)": "all needs true or false",
    "payload.name.map(x, x)": "map needs a list or an object, not a text",
    "true + 1": "+ cannot be used with a boolean and a number",
    "-true": "- needs a number, not a boolean",
    "true - false": "- cannot be used with a boolean and a boolean",
    "[1] * 2": "* cannot be used with a list and a number",
    "{} / 2": "/ cannot be used with an object and a number",
    "'a' % 2": "% cannot be used with a text and a number",
    "int < 1": "< cannot be used with a type and a number",
    "1 in 2": "not a number",
    "timestamp(0) + timestamp(0)": "+ cannot be used with a timestamp and a timestamp",
    "duration('1h') - timestamp(0)": "- cannot be used with a duration and a timestamp",
    "has(payload.name.first)": "has(….first) needs an object, not a text",
    "1 / 0": "division by zero",
    "1.5 / 0.0": "division by zero",
    "1 % 0": "division by zero",
    "9223372036854775807 + 1": "64 bits",
    "9223372036854775808 - 1": "64 bits",
    "1e308 * 10": "too large",
    "int('x')": "int cannot convert 'x'",
    "int('1.5')": "not an integer",
    "int(1e30)": "64 bits",
    "double('nan')": "cannot convert",
    "double('1_0')": "cannot convert",
    "double('1e999')": "too large",
    "size(1)": "size(a text or a list or an object) does not accept a number",
    "payload.count.startsWith('a')": "does not accept a number",
    "[1, 'a'].sort()": "sort requires a list",
    "min([])": "min requires at least one value",
    "sum(['a'])": "sum requires",
    "'abc'.contains(1)": "contains requires a text as its argument, not a number",
    "'abc'.charAt(4)": "outside of 0 to 3",
    "bool('maybe')": "bool cannot convert 'maybe'",
    "duration('90000000000h')": "out of range",
    "[1].join()": "join requires a list of texts",
    "'abc'.substring(2, 9)": "outside of 0 to 3",
    "'abc'.charAt(0.5)": "requires an integer",
    "timestamp('2024-02-30T00:00:00Z')": "time does not exist",
    "timestamp('yesterday')": "write 2026",
    "timestamp(1e18)": "out of range",
    "timestamp('9999-12-31T23:59:59Z') + duration('1h')": "out of range",
    "duration('1 hour')": "write 1h30m",
    "{1: 2}": "key of an object must be a text",
    "{'a': 1, 'a': 2}": "the key a twice",
    "'a\\u0000b'": "contains a NUL",
    "payload.name.matches(payload.user.name + '(')": "missing )",
    "payload.name.matches('\\\\w{10}' + '{100}{100}')": "matches cannot use",
}

INVALID = {
    "": "empty",
    "  // nothing": "empty",
    "1 +": "unexpected end of the expression (at character 4)",
    "payload.score >": "unexpected end",
    "payload.score > 3)": "unexpected )",
    "(payload.score > 3": ") is missing",
    "payload.tags[0": "] is missing",
    "[1, 2": "] is missing",
    "{'a' 1}": ": is missing",
    "payload.yes ? 1": ": is missing",
    "payload.yes ? true ? 1 : 2 : 3": ": is missing",
    "a b": "a is not defined; defined are execution, index, input, payload, resume, steps, trigger, vars",
    "score > 3": "score is not defined; defined are execution, index, input, payload, resume, steps, trigger, vars",
    "paylod.score > 3": "paylod is not defined; did you mean payload?",
    "payload.items.all(item, itm.id > 1)": "did you mean item?",
    "payload.items.map(i, i.id) + i": "i is not defined",
    "payload.items.map(x, __result__)": "__result__ is not defined",
    "payload.name.startWith('a')": "no function startWith; did you mean startsWith?",
    "lenght(payload)": "no function lenght",
    "math.abc(1)": "no function math.abc",
    "__import__('os')": "no function __import__",
    "payload.__class__()": "no function __class__",
    "size()": "wrong number of arguments; use size(a text or",
    "size(1, 2)": "wrong number of arguments; use size",
    "payload.items.map(i)": "map must begin with a name and a comma",
    "payload.items.map(i.id, 1)": "map must begin with a name",
    "payload.items.filter(i, true, 1)": "filter requires a name and one expression",
    "has(payload)": "the argument of has must be a field",
    "has(payload['a'])": "the argument of has must be a field",
    "payload.score = 3": "= is not supported, write ==",
    "payload.yes and true": "and is not supported, write &&",
    "payload.yes & true": "& is not supported, write &&",
    "not payload.yes": "not is not supported, write !",
    "payload.'a'": 'for other keys write ["key"]',
    "'abc": "not closed",
    "'a\nb'": "not closed",
    "'\\q'": "write \\\\ for a backslash",
    "'\\ud800'": "not a character",
    "'\\xzz'": "not a valid escape",
    "3u": "3u is not a number",
    "2abc": "2abc is not a number",
    "1e999": "too large",
    "9223372036854775809": "too large",
    "2 ** 3": "unexpected *",
    "payload #": "# is not supported",
    "payload.name.matches('(')": "missing )",
    "payload.name.matches(r'\\w{100}{100}')": "matches cannot use",
    "1" * 2001: "at most 2000 characters",
}


def budget() -> Budget:
    """Return the budget of an isolated process."""
    return Budget(MAX_ISOLATED_STEPS, isolated=True)


def value(text: str, payload: JsonValue = PAYLOAD) -> JsonValue:
    return compile_expression(text).evaluate({"payload": payload}, budget())


def refused(text: str, payload: JsonValue = PAYLOAD) -> BlockError:
    with pytest.raises(BlockError) as caught:
        value(text, payload)
    assert not caught.value.retryable
    return caught.value


@pytest.mark.parametrize("text", REFERENCE)
def test_values_equal_those_of_the_reference_implementation(text: str) -> None:
    theirs = cel.compile(text).execute({"payload": PAYLOAD})
    ours = value(text)
    assert ours == theirs
    assert type(ours) is type(theirs)


@pytest.mark.parametrize(("text", "expected"), KINDER.items())
def test_values_that_differ_from_the_reference_implementation(text: str, expected: JsonValue) -> None:
    ours = value(text)
    assert ours == expected
    assert type(ours) is type(expected)


@pytest.mark.parametrize(("text", "reason"), FAILURES.items())
def test_failed_evaluation_has_a_reason(text: str, reason: str) -> None:
    error = refused(text)
    assert error.code == "expression_failed"
    assert reason in error.message
    assert error.message.startswith(text)


@pytest.mark.parametrize(("text", "reason"), INVALID.items(), ids=lambda text: ascii(text)[:40])
def test_invalid_expressions_fail_to_compile(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        compile_expression(text)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 300


def test_expression_sees_only_the_given_names() -> None:
    names = frozenset({"payload", "error"})
    assert compile_expression("error.code == payload", names).holds({"error": {"code": "x"}, "payload": "x"}, budget())
    with pytest.raises(ValueError, match="secrets is not defined; defined are error, payload"):
        compile_expression("secrets.key", names)
    with pytest.raises(BlockError, match="error is not defined"):
        compile_expression("error.code == 1", names).evaluate({"payload": 1}, budget())


def test_holds_accepts_booleans_only() -> None:
    scope: dict[str, JsonValue] = {"payload": PAYLOAD}
    assert compile_expression("payload.count == 7").holds(scope, budget()) is True
    assert compile_expression("payload.count == 8").holds(scope, budget()) is False
    with pytest.raises(BlockError, match="neither true nor false") as caught:
        compile_expression("payload.count").holds(scope, budget())
    assert (caught.value.code, caught.value.retryable) == ("expression_failed", False)


def test_long_expression_is_shortened_in_errors() -> None:
    error = refused("payload.missing + '" + "x" * 1900 + "'")
    assert len(error.message) < 300
    assert "no such field: missing" in error.message


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**400], ids=["64 bits", "negative", "long"])
def test_arithmetic_rejects_numbers_over_64_bits(number: int) -> None:
    assert "64 bits" in refused("payload", number).message
    assert "64 bits" in refused("payload * payload", number).message
    assert "64 bits" in refused("string(payload)", number).message
    assert value("payload > 0", number) is (number > 0)
