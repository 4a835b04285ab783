"""Templates: rendering and validation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pydantic import JsonValue

from bloxserver.blocks import templates
from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import MAX_ISOLATED_STEPS, Budget
from bloxserver.blocks.names import ROOTS
from bloxserver.blocks.templates import (
    MAX_OUTPUT_BYTES,
    MAX_PLACEHOLDERS,
    check,
    has_placeholders,
    problems,
    secret_names,
)

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
    "default": "d",
    "is-new": {"in": 1},
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
    "keys that are words of operators": ("{{ payload.default }} {{ payload.is-new.in }}", "d 1"),
    "keys are not replaced": (
        {"{{ payload.age }}": "{{ payload.age }}", "a": {"{{ secrets.KEY }}": 1}},
        {"{{ payload.age }}": 36, "a": {"{{ secrets.KEY }}": 1}},
    ),
    "nested": ({"a": [{"b": "{{ payload.name }}"}], "{{": 1}, {"a": [{"b": "Ada"}], "{{": 1}),
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
    {"a": ["{{ nobody }}"]},
    "{{ payload.name | upper }}",
    "{{payload.name|upper}}",
    "{{ payload.x or 'y' }}",
    "{{ payload.x or y }}",
    "{{ payload.x ?? 1 }}",
    "{{ payload.f() }}",
    "{{ upper(secrets.KEY) }}",
    "{{ payload.items[ }}",
    '{{ "text }}',
    '{{ {"a": 1 }}',
    "{{ payload?.name }}",
    "{{ $json.name }}",
]


def render(template: JsonValue, scope: dict[str, JsonValue]) -> JsonValue:
    return templates.render(template, scope, Budget(MAX_ISOLATED_STEPS))


def render_text(template: str, scope: dict[str, JsonValue]) -> str:
    return templates.render_text(template, scope, Budget(MAX_ISOLATED_STEPS))


def refused(template: JsonValue, payload: JsonValue = PAYLOAD) -> BlockError:
    with pytest.raises(BlockError) as caught:
        render(template, {"payload": payload})
    assert not caught.value.retryable
    return caught.value


@pytest.mark.parametrize(("template", "expected"), RENDERED.values(), ids=RENDERED)
def test_placeholders_are_replaced_by_values(template: JsonValue, expected: JsonValue) -> None:
    check(template)
    assert render(template, {"payload": PAYLOAD}) == expected


@pytest.mark.parametrize("path", MISSING, ids=lambda path: ascii(path)[:30])
def test_missing_value_is_reported_with_its_path(path: str) -> None:
    error = refused(f"{{{{ {path} }}}}")
    assert error.code == "template_missing_value"
    assert path[:150] in error.message
    assert len(error.message) < 300


@pytest.mark.parametrize("template", INVALID, ids=str)
def test_invalid_template_fails_check_and_render(template: JsonValue) -> None:
    with pytest.raises(ValueError, match=r"path|has no|unknown|key"):
        check(template)
    assert refused(template).code == "template_invalid"


def test_placeholder_limit_applies_to_the_whole_template() -> None:
    check(["{{ payload }}"] * MAX_PLACEHOLDERS)
    with pytest.raises(ValueError, match="more than 100"):
        check(["{{ payload }}"] * MAX_PLACEHOLDERS + [{"a": "{{ payload }}"}])


def test_too_deeply_nested_template_is_rejected() -> None:
    template: JsonValue = "x"
    for _ in range(63):
        template = [template]
    check(template)
    for _ in range(100_000):
        template = [template]
    with pytest.raises(ValueError, match="levels deep"):
        check(template)
    while isinstance(template, list):  # freeing all levels at once overflows the stack of some Python versions
        template = template.pop()


@pytest.mark.parametrize("template", ["{{ payload }}", "= {{ payload }}"])
def test_output_over_the_limit_is_an_error(template: str) -> None:
    fitting = "x" * (MAX_OUTPUT_BYTES - 10)
    assert render(template, {"payload": fitting})
    assert refused([template, template], fitting).code == "template_too_large"
    assert refused(template, "é" * (MAX_OUTPUT_BYTES // 2 + 1)).code == "template_too_large"


@pytest.mark.parametrize("payload", [float("nan"), [float("inf")], 10**5000], ids=["nan", "infinity", "long"])
def test_value_that_is_no_json_is_rejected(payload: JsonValue) -> None:
    assert refused("= {{ payload }}", payload).code == "template_invalid_value"


@pytest.mark.parametrize("unit", ["{", "{{", "}}", "{{ ", "{ {", "{{ payload }", "{{ a.", " "])
def test_long_random_text_is_parsed_or_rejected(unit: str) -> None:
    text = unit * (1_000_000 // len(unit))
    refused_as = None
    try:
        check(text)
    except ValueError as error:
        refused_as = str(error)
    assert refused_as is None or len(refused_as) < 1_000


WITH_SECRETS = frozenset({"payload", "secrets"})
LONG_NAME = "secrets." + "A" * 65
SECRET = "s3cr3t-{{ payload.name }}-{{ secrets.OTHER }}"
SCOPE: dict[str, JsonValue] = {"payload": {"name": "{{ secrets.KEY }}"}, "secrets": {"KEY": SECRET, "OTHER": "o"}}


@pytest.mark.parametrize("name", ["KEY", "key_2", "_", "A" * 64])
def test_secret_names_are_found(name: str) -> None:
    template: JsonValue = ["x", {"a": f"Bearer {{{{ secrets.{name} }}}}"}, "{{ payload.secrets.inner }}"]
    check(template, WITH_SECRETS)
    assert secret_names(template) == {name}
    assert {path[0] for path in templates.paths(template)} == {"payload", "secrets"}


@pytest.mark.parametrize(
    "path",
    ["secrets", "secrets.KEY.x", "secrets.0", "secrets.1KEY", "secrets.a-b", "secrets.a b", "secrets.é", LONG_NAME],
)
def test_invalid_secret_paths_are_rejected(path: str) -> None:
    template = f"{{{{ {path} }}}}"
    with pytest.raises(ValueError, match=r"not a path to a secret"):
        check(template, WITH_SECRETS)
    assert secret_names(template) == frozenset()
    with pytest.raises(BlockError) as caught:
        render(template, SCOPE)
    assert (caught.value.code, caught.value.retryable) == ("template_invalid", False)
    assert "s3cr3t" not in caught.value.message


def test_template_without_placeholders_has_no_names() -> None:
    template: JsonValue = ["text", 1, None, {"{{ secrets.KEY }}": True}]
    assert secret_names(template) == frozenset()
    assert not has_placeholders(template)


@pytest.mark.parametrize("question", [templates.paths, secret_names])
def test_names_of_an_invalid_template_raise(question: Callable[[JsonValue], object]) -> None:
    with pytest.raises(ValueError, match="has no }}"):
        question({"a": ["{{ secrets.KEY"]})


def test_placeholders_in_copied_values_are_not_replaced() -> None:
    template: JsonValue = ["{{ secrets.KEY }}", "{{ payload.name }}", "{{ secrets.KEY }}{{ payload.name }}"]
    assert render(template, SCOPE) == [SECRET, "{{ secrets.KEY }}", SECRET + "{{ secrets.KEY }}"]


def test_adjacent_values_that_form_a_placeholder_stay_text() -> None:
    scope: dict[str, JsonValue] = {"payload": {"a": "{{ secrets.", "b": "KEY }}"}, "secrets": {"KEY": "s"}}
    assert render("{{ payload.a }}{{ payload.b }}", scope) == "{{ secrets.KEY }}"


def test_errors_never_contain_secret_values() -> None:
    for template in ["{{ secrets.MISSING }}", "{{ payload.missing }}{{ secrets.KEY }}", "{{ secrets.KEY }}{{ payload"]:
        with pytest.raises(BlockError) as caught:
            render(template, SCOPE)
        assert "s3cr3t" not in caught.value.message
        assert not caught.value.retryable
    with pytest.raises(BlockError, match=r"there is no secrets\.MISSING"):
        render("{{ secrets.MISSING }}", SCOPE)


@pytest.mark.parametrize(
    ("template", "expected"),
    [("{{ payload.age }}", "36"), ("{{ payload.none }}", "null"), ("{{ payload.name }}", "Ada"), ("", "")],
)
def test_render_text_always_returns_text(template: str, expected: str) -> None:
    assert render_text(template, {"payload": PAYLOAD}) == expected


@pytest.mark.parametrize(
    ("written", "hint"),
    [
        ("payload?.user?.name", "write {{ payload.user.name }}"),
        ("payload.name | upper", "a filter is a function"),
        ('payload.user.name ?? "y"', 'default(payload.name, "…")'),
        ("payload.x | default('y')", 'default(payload.name, "…")'),
        ("upper(secrets.KEY)", "a placeholder of its own"),
        ("payload.name +", "a CEL expression"),
        ("", "write the path"),
        ("paylod.name", "did you mean payload?"),
        ("env.KEY", "a path must start with"),
        ("secrets.KEY", "a path must start with"),
    ],
)
def test_template_problem_has_a_hint(written: str, hint: str) -> None:
    [problem] = problems({"a": ["x", f"before {{{{ {written} }}}} after"]})
    assert hint in problem.hint
    assert (problem.path, problem.text) == (("a", 1), f"{{{{ {written} }}}}")


def test_all_template_problems_are_found() -> None:
    template: JsonValue = {
        "one": "{{ a }} {{ payload.b }} {{ payload.b[0 }}",
        "two": [{"{{ payload.c }}": "{{ d"}],
        "three": "{{ secrets.1 }}",
    }
    found = [(problem.path, problem.text) for problem in problems(template, ROOTS | {"secrets"})]
    assert found == [
        (("one",), "{{ a }}"),
        (("one",), "{{ payload.b[0 }}"),
        (("three",), "{{ secrets.1 }}"),
        (("two", 0, "{{ payload.c }}"), "{{ payload.c }}"),
        (("two", 0, "{{ payload.c }}"), "{{"),
    ]
