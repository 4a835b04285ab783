"""Steps are consumed before the work, in proportion to it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.calculate import CALCULATION
from bloxserver.blocks.cel.values import CHARACTERS_PER_STEP, MAX_STEPS, Budget, CostLimitExceeded, Invocation
from bloxserver.blocks.expressions import compile_expression, evaluate
from tests.blocks.cel.evaluation import MOMENT

LONG = "a" * 1_000_000
NUMBERS: JsonValue = [*range(200_000)]
OBJECT: JsonValue = {"name" + "k" * 500_000: 1}
TOO_COSTLY: dict[str, tuple[str, JsonValue]] = {
    "lastIndexOf": ("payload.t.lastIndexOf(payload.p)", {"t": LONG, "p": "b" + "a" * 500_000}),
    "indexOf of a long part in a short text": (
        "payload.t.indexOf(payload.p)",
        {"t": "a" * 29_000, "p": "a" * 14_000 + "b"},
    ),
    "contains": ("payload.t.contains(payload.p)", {"t": "a" * 29_000, "p": "b" + "a" * 14_000}),
    "split": ("payload.t.split(payload.p)", {"t": "a" * 29_000, "p": "b" + "a" * 14_000}),
    "replace": ("payload.t.replace(payload.p, '')", {"t": "a" * 29_000, "p": "b" + "a" * 14_000}),
    "lowerAscii": ("payload.lowerAscii() == ''", "é" * 500_000),
    "sort": ("payload.sort()[0]", [*range(2_000)]),
    "sort of texts": ("[payload + 'a', payload + 'b', payload + 'c', payload + 'd'].sort()", "x" * 200_000),
    "distinct": ("payload.distinct()", NUMBERS),
    "in": ("-1 in payload", [*range(4_000)]),
    "equal": ("payload == payload", [*range(4_000)]),
    "long keys": (
        "payload.keys.all(x, x in payload.object)",
        {"object": OBJECT, "keys": ["name" + "k" * 500_000] * 50},
    ),
    "objects with long keys": ("payload.list.all(x, x == payload.list[0])", {"list": [OBJECT] * 50}),
    "errors": ("payload.exists(x, x.missing)", [*range(3_000)]),
    "conversions": ("payload.exists(x, duration('1h30m') == x)", [*range(800)]),
    "upper": ("payload.upper() == ''", "é" * 500_000),
    "split by empty text": ("payload.split('').size()", LONG),
    "url_encode": ("url_encode(payload) == ''", "é" * 500_000),
    "url_decode": ("url_decode(payload) == ''", "%41" * 300_000),
    "base64_encode": ("base64_encode(payload) == ''", "é" * 500_000),
    "base64_decode": ("base64_decode(payload) == ''", LONG),
    "json_parse": ("json_parse(payload).size()", "[" + "[]," * 300_000 + "[]]"),
    "json_format": ("json_format(payload).size()", NUMBERS),
    "json_format of a value that doubles": (
        "payload" + "".join(f".map(x{i}, [x{i}, x{i}])" for i in range(20)) + ".json_format().size()",
        [[0] * 1_000],
    ),
    "sha256": ("sha256(payload)", LONG),
    "hmac": ("hmac_sha256(payload, payload)", LONG),
    "sort_by": ("payload.sort_by(x, -x)[0]", NUMBERS),
    "sort_by of long keys": ("payload.sort_by(x, x).size()", ["x" * 200_000] * 4),
    "group_by": ("payload.group_by(x, x % 7).size()", NUMBERS),
    "nested group_by": ("payload.group_by(x, payload.group_by(y, y).size())", [*range(200)]),
    "group_by of long keys": ("payload.group_by(x, x).size()", ["x" * 200_000] * 8),
    "unique_by": ("payload.unique_by(x, x).size()", NUMBERS),
    "default": ("payload.exists(x, default(x.a, false))", [{}] * 3_000),
    "time zones": ("payload.exists(x, x == in_zone(timestamp(0), 'Nowhere/N' + string(x)))", [*range(10)]),
    "format_time": (f"payload.exists(x, format_time(timestamp(0), '{'%G' * 100}') == '')", [*range(100)]),
    "uuid": ("payload.exists(x, uuid() == '')", [*range(1_000)]),
    "copy": ("payload", NUMBERS),
    "text": ("[" + ", ".join(["payload"] * 2) + "]", "x" * 500_000),
}


@pytest.mark.parametrize(("text", "payload"), TOO_COSTLY.values(), ids=TOO_COSTLY)
def test_work_for_more_than_milliseconds_exceeds_the_budget(text: str, payload: JsonValue) -> None:
    with pytest.raises(CostLimitExceeded):
        compile_expression(text).evaluate({"payload": payload}, Budget(MAX_STEPS, invocation=Invocation(MOMENT, "key")))


AFFORDABLE: dict[str, tuple[str, JsonValue, JsonValue]] = {
    "lastIndexOf": ("payload.lastIndexOf('/')", "a/" * 50_000, 99_999),
    "indexOf": ("payload.indexOf('zz')", "az" * 50_000, -1),
    "contains": ("payload.contains('b')", "a" * 200_000, False),
    "replace": ("size(payload.replace('a', 'bb'))", "a" * 3_000, 6_000),
    "filter": ("size(payload.filter(x, x % 2 == 0))", [*range(1_500)], 750),
    "distinct": ("size(payload.distinct())", [*range(1_000)] * 2, 1_000),
    "sort": ("payload.sort()[0]", [*range(500, 0, -1)], 1),
    "sort_by": ("payload.sort_by(x, -x)[0]", [*range(500)], 499),
    "group_by": ("payload.group_by(x, x % 2)['1'].size()", [*range(500)], 250),
    "json_parse": ("json_parse(payload).size()", "[" + "1.5," * 3_000 + "1]", 3_001),
    "sha256": ("sha256(payload).size()", "a" * 100_000, 64),
    "long text that is no number": ("default(payload.a, 1)", {"b": LONG}, 1),
    "member of a large message": ("payload.a", {"a": 1, "b": NUMBERS}, 1),
}


@pytest.mark.parametrize(("text", "payload", "expected"), AFFORDABLE.values(), ids=AFFORDABLE)
def test_ordinary_work_is_within_the_budget(text: str, payload: JsonValue, expected: JsonValue) -> None:
    assert compile_expression(text).evaluate({"payload": payload}, Budget(MAX_STEPS)) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [("abcabc", "c"), ("abc", ""), ("", ""), ("", "a"), ("aaa", "aa"), ("abc", "abcd"), ("x😀é😀", "😀"), ("ab", "b")],
)
def test_last_index_of_equals_the_search_from_the_end(text: str, part: str) -> None:
    payload: JsonValue = {"text": text, "part": part}
    found = compile_expression("payload.text.lastIndexOf(payload.part)").evaluate({"payload": payload}, Budget(1_000))
    assert found == text.rfind(part)


@pytest.mark.parametrize(("name", "change"), [("lowerAscii", str.lower), ("upperAscii", str.upper)])
def test_only_ascii_letters_change_case(name: str, change: Callable[[str], str]) -> None:
    text = "aZ[`@{é\u212aÉß😀\ud800"  # lower and upper change most of these letters
    expected = "".join(change(letter) if letter.isascii() else letter for letter in text)
    scope: dict[str, JsonValue] = {"payload": text, "input": expected}
    assert compile_expression(f"payload.{name}() == input").evaluate(scope, Budget(1_000)) is True


@pytest.mark.parametrize("name", ["lowerAscii", "upperAscii"])
def test_change_of_case_is_charged_for_each_character(name: str) -> None:
    """It encodes and decodes the text. `trim` only has the charge of every function."""
    text = "é" * CHARACTERS_PER_STEP * 1_000

    def steps(function: str) -> int:
        budget = Budget(MAX_STEPS)
        compile_expression(f"payload.{function}() == ''").evaluate({"payload": text}, budget)
        return MAX_STEPS - budget.left

    assert steps(name) - steps("trim") == 2_000


def test_error_does_not_contain_the_operand() -> None:
    with pytest.raises(BlockError) as caught:
        compile_expression("{'a': 1}[payload]").evaluate({"payload": NUMBERS}, Budget(MAX_STEPS))
    assert "the key of an object must be a text, not a list" in caught.value.message


@pytest.mark.parametrize("text", ["math.sqrt(payload)", "math.floor(payload)", "payload.map(x, x)", "-payload"])
@pytest.mark.parametrize("payload", [10**400, -(10**400), float("inf"), float("nan")], ids=str)
def test_extreme_numbers_are_errors_of_the_expression(text: str, payload: JsonValue) -> None:
    with pytest.raises(BlockError) as caught:
        compile_expression(text).evaluate({"payload": payload}, Budget(MAX_STEPS))
    assert caught.value.code == "expression_failed"
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("text", ["-payload", "abs(payload)", "payload ** 2", "payload * 1.5", "sum([payload])"])
def test_extreme_integer_in_a_calculation_is_an_error(text: str) -> None:
    with pytest.raises(BlockError) as caught:
        evaluate(text, {"payload": 10**400}, Budget(MAX_STEPS), language=CALCULATION)
    assert caught.value.code == "expression_failed"
