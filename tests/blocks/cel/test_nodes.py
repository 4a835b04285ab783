"""`default`, and the macros with a key."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from bloxserver.blocks.cel.values import MAX_STEPS, Budget
from bloxserver.blocks.expressions import evaluate
from tests.blocks.cel.evaluation import failure, value

PAYLOAD: JsonValue = {
    "none": None,
    "text": "Ada",
    "false": False,
    "list": [1],
    "people": [
        {"name": "Ada", "age": 36, "country": "GB"},
        {"name": "Emmy", "age": 53, "country": "DE"},
        {"name": "Alan", "age": 41, "country": "GB"},
    ],
}
DEFAULTS: dict[str, JsonValue] = {
    "default(payload.text, 'y')": "Ada",
    "payload.text.default('y')": "Ada",
    "default(payload.missing, 'y')": "y",
    "payload.missing.default('y')": "y",
    "default(payload.missing.deeper, 'y')": "y",
    "default(payload.none, 'y')": "y",
    "default(payload.none.deeper, 'y')": "y",
    "default(payload['missing'], 'y')": "y",
    "default(payload.none['x'], 'y')": "y",
    "default(payload.list[1], 'y')": "y",
    "default(payload.list[0], 'y')": 1,
    "default(payload.false, true)": False,
    "default(payload.missing, default(payload.none, 3)) + 1": 4,
    "default(payload.text, payload.missing)": "Ada",
    "default(payload.people.map(p, p.missing), [])": [],
}


def test_default_replaces_a_name_that_has_no_value_here() -> None:
    scope: dict[str, JsonValue] = {"payload": 1}
    assert evaluate("default(index, payload)", scope, Budget(MAX_STEPS), frozenset({"payload", "index"})) == 1


@pytest.mark.parametrize(("text", "expected"), DEFAULTS.items(), ids=DEFAULTS)
def test_default_replaces_missing_values_and_null(text: str, expected: JsonValue) -> None:
    assert value(text, PAYLOAD) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("default(payload.text.deeper, 'y')", "the value is a text"),
        ("default(payload.list.deeper, 'y')", "the value is a list"),
        ("default(payload.text[0], 'y')", "needs a list or an object"),
        ("default(payload.list['a'], 'y')", "the index of a list"),
        ("default(payload.list[0] / 0, 'y')", "division by zero"),
        ("default(payload.missing, payload.other)", "no such field: other"),
        ("default(payload.text)", "default requires two values"),
        ("default(payload.text, 1, 2)", "default requires two values"),
        ("defalt(payload.text, 1)", "did you mean default?"),
    ],
)
def test_default_does_not_hide_other_errors(text: str, reason: str) -> None:
    assert reason in failure(text, PAYLOAD)


KEYED: dict[str, JsonValue] = {
    "payload.people.sort_by(p, p.age).map(p, p.name)": ["Ada", "Alan", "Emmy"],
    "payload.people.sort_by(p, p.name).map(p, p.name)": ["Ada", "Alan", "Emmy"],
    "payload.people.sort_by(p, -p.age).map(p, p.name)": ["Emmy", "Alan", "Ada"],
    "payload.people.sort_by(p, 1).map(p, p.name)": ["Ada", "Emmy", "Alan"],
    "payload.people.unique_by(p, p.country).map(p, p.name)": ["Ada", "Emmy"],
    "payload.people.group_by(p, p.country)['GB'].map(p, p.name)": ["Ada", "Alan"],
    "payload.people.group_by(p, p.country).map(key, key)": ["GB", "DE"],
    "[1, 2.0, 2, true, 'true'].group_by(x, x)": {"1": [1], "2": [2.0, 2], "true": [True, "true"]},
    "[1, 1.0, '1', true].unique_by(x, x)": [1, "1", True],
    "[].sort_by(x, x) + [].unique_by(x, x)": [],
    "[].group_by(x, x)": {},
}


@pytest.mark.parametrize(("text", "expected"), KEYED.items(), ids=KEYED)
def test_macros_with_a_key(text: str, expected: JsonValue) -> None:
    assert value(text, PAYLOAD) == expected


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("payload.people.sort_by(p, p)", "sort_by requires a list of numbers or of texts, not of an object"),
        ("[1, 'a'].sort_by(x, x)", "sort_by requires"),
        ("payload.people.group_by(p, null)", "group_by requires a text, a number or a boolean as its key, not null"),
        ("payload.people.unique_by(p, p)", "unique_by requires"),
        ("payload.people.group_by(p)", "must begin with a name and a comma"),
        ("payload.people.sort_by(p, p.age, p.name)", "requires a name and one expression"),
        ("payload.text.sort_by(p, p)", "sort_by needs a list or an object, not a text"),
    ],
)
def test_errors_of_macros_with_a_key(text: str, reason: str) -> None:
    assert reason in failure(text, PAYLOAD)
