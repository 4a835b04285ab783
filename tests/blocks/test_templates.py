"""Templates: what they copy, and what they refuse."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.templates import MAX_OUTPUT_BYTES, MAX_PLACEHOLDERS, check, render

PAYLOAD: JsonValue = {
    "name": "Ada",
    "age": 36,
    "tags": ["a", {"deep": [1, 2.5]}],
    "none": None,
    "yes": True,
    "0": "zero",
    "first name": "é",
    "template": "{{ payload.name }}",
    "items": {"keys": "own"},
}

RENDERED: dict[str, tuple[JsonValue, JsonValue]] = {
    "no placeholder": ("plain } text }}", "plain } text }}"),
    "other types": ([1, 2.5, None, True, {"a": []}], [1, 2.5, None, True, {"a": []}]),
    "keeps a number": ("{{ payload.age }}", 36),
    "keeps a list": ("{{payload.tags}}", ["a", {"deep": [1, 2.5]}]),
    "keeps null": ("{{ payload.none }}", None),
    "keeps a bool": ("{{ payload.yes }}", True),
    "the whole payload": ("{{ payload }}", PAYLOAD),
    "within text": ("Hello, {{ payload.name }}!", "Hello, Ada!"),
    "within spaces": (" {{ payload.age }}", " 36"),
    "several": ("{{ payload.name }}{{ payload.age }}", "Ada36"),
    "compact JSON": ("= {{ payload.tags }} {{ payload.none }}", '= ["a",{"deep":[1,2.5]}] null'),
    "an index": ("{{ payload.tags.1.deep.0 }}", 1),
    "a key of digits": ("{{ payload.0 }}", "zero"),
    "a key with a space": ("{{ payload.first name }}", "é"),
    "a key that is a method": ("{{ payload.items.keys }}", "own"),
    "nested": (
        {"a": [{"b": "{{ payload.name }}"}], "{{ payload.age }}": 1},
        {"a": [{"b": "Ada"}], "{{ payload.age }}": 1},
    ),
    "nothing is rendered twice": (
        "{{ payload.template }} {{ payload.template }}",
        "{{ payload.name }} {{ payload.name }}",
    ),
}
MISSING = [
    "payload.nobody",
    "payload.name.first",
    "payload.name.0",
    "payload.age.real",
    "payload.none.x",
    "payload.tags.2",
    "payload.tags.-1",
    "payload.tags.one",
    "payload.tags.\u0661",
    "payload.tags.²",
    "payload.tags." + "9" * 5000,
    "payload.__class__",
    "payload.tags.__len__",
]
INVALID = [
    "{{ payload.name",
    "{{ payload.name }",
    "{{}}",
    "{{ . }}",
    "{{ payload. }}",
    "{{ payload..name }}",
    "{{ .payload }}",
    "{{{ payload.name }}}",
    "{{ {{ payload.name }} }}",
    "{{ secrets.key }}",
    "{{ __import__('os') }}",
    "{{ 7 * 7 }}",
    {"a": ["{{ nobody }}"]},
]


def refused(template: JsonValue, payload: JsonValue = PAYLOAD) -> BlockError:
    with pytest.raises(BlockError) as caught:
        render(template, {"payload": payload})
    return caught.value


@pytest.mark.parametrize(("template", "expected"), RENDERED.values(), ids=RENDERED)
def test_renders(template: JsonValue, expected: JsonValue) -> None:
    check(template)
    assert render(template, {"payload": PAYLOAD}) == expected


@pytest.mark.parametrize("path", MISSING, ids=lambda path: ascii(path)[:30])
def test_a_missing_value_is_named(path: str) -> None:
    error = refused(f"{{{{ {path} }}}}")
    assert error.code == "template_missing_value"
    assert path[:150] in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("template", INVALID, ids=str)
def test_an_invalid_template_is_refused_before_and_when_it_is_rendered(template: JsonValue) -> None:
    with pytest.raises(ValueError, match=r"path|has no|unknown"):
        check(template)
    assert refused(template).code == "template_invalid"


def test_placeholders_are_counted_over_the_whole_template() -> None:
    check(["{{ payload }}"] * MAX_PLACEHOLDERS)
    with pytest.raises(ValueError, match="more than 100"):
        check(["{{ payload }}"] * MAX_PLACEHOLDERS + [{"a": "{{ payload }}"}])


def test_a_deep_template_is_refused() -> None:
    template: JsonValue = "x"
    for _ in range(63):
        template = [template]
    check(template)
    for _ in range(100_000):
        template = [template]
    with pytest.raises(ValueError, match="deeper"):
        check(template)
    while isinstance(template, list):  # freed a level at a time: all at once is too deep for some Pythons
        template = template.pop()


@pytest.mark.parametrize("template", ["{{ payload }}", "= {{ payload }}"])
def test_the_output_is_bounded(template: str) -> None:
    fitting = "x" * (MAX_OUTPUT_BYTES - 10)
    assert render(template, {"payload": fitting})
    assert refused([template, template], fitting).code == "template_too_large"
    assert refused(template, "é" * (MAX_OUTPUT_BYTES // 2 + 1)).code == "template_too_large"


@pytest.mark.parametrize("payload", [float("nan"), [float("inf")], 10**5000], ids=["nan", "infinity", "long"])
def test_what_is_no_json_is_refused(payload: JsonValue) -> None:
    assert refused("= {{ payload }}", payload).code == "template_invalid_value"


@pytest.mark.parametrize("unit", ["{", "{{", "}}", "{{ ", "{ {", "{{ payload }", "{{ a.", " "])
def test_a_million_characters_of_junk_are_read_or_refused(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    refused_as = None
    try:
        check(text)
    except ValueError as error:
        refused_as = str(error)
    assert refused_as is None or len(refused_as) < 1_000
