"""Expressions in placeholders."""

from __future__ import annotations

import pytest
from pydantic import JsonValue

from bloxserver.blocks import templates
from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import MAX_ISOLATED_STEPS, Budget
from bloxserver.blocks.names import ROOTS, read_steps
from bloxserver.blocks.placeholder_syntax import pieces

SCOPE: dict[str, JsonValue] = {
    "payload": {
        "name": "Ada",
        "items": [{"name": "vase", "price": 3}, {"name": "cup", "price": 4.5}],
        "first-name": "Grace",
        "first": 7,
        "name-1": 2,
        "a b": "spaced",
        "braces": "}} {{",
    },
    "input": {"id": 5},
    "steps": {"fetch": {"body": [1, 2]}, "a-b": 3},
    "trigger": {"headers": {"x-github-event": "push"}},
    "execution": {"id": "e1"},
    "vars": {"channel": "#ops"},
    "secrets": {"KEY": "s3cr3t"},
}


def render(template: JsonValue) -> JsonValue:
    templates.check(template, ROOTS | {"secrets"})
    return templates.render(template, SCOPE, Budget(MAX_ISOLATED_STEPS))


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ payload.items[0].name }}", "vase"),
        ('{{ payload["a b"] }}', "spaced"),
        ("{{ payload.items.map(i, i.price * 2) }}", [6, 9]),
        ("{{ payload.items[1].price + 0.5 }}", 5),
        ("total: {{ payload.items.map(i, i.price).sum() }}!", "total: 7.5!"),
        ('{{ has(payload.coupon) ? payload.coupon : "none" }}', "none"),
        ('{{ {"a": {"b": payload.first}} }}', {"a": {"b": 7}}),
        ('{{ {"a": {"b": 1}}}}', {"a": {"b": 1}}),
        ('a {{ "{{" }} b {{ payload.name }}', "a {{ b Ada"),
        ("{{ '}}' + payload.name }}", "}}Ada"),
        ("{{ r'\\}}' }}", "\\}}"),
        ("{{ true }} {{ 1 }} {{ null }} {{ -2 }}", "true 1 null -2"),
        ("{{ steps.fetch.body[1] }}", 2),
        ('{{ steps["a-b"] + 1 }}', 4),
        ("{{ trigger.headers.x-github-event }} {{ execution.id }} {{ vars.channel }}", "push e1 #ops"),
        ("{{\n  payload.name == 'Ada'\n    ? 1\n    : 2\n}}", 1),
        ("{{ payload.braces + '' }}", "}} {{"),
        ("{{ secrets.KEY }}: {{ payload.first * 2 }}", "s3cr3t: 14"),
    ],
)
def test_expression_is_evaluated(template: JsonValue, expected: JsonValue) -> None:
    assert render(template) == expected


@pytest.mark.parametrize(
    ("template", "expected"),
    [("{{ payload.first-name }}", "Grace"), ("{{ payload.name-1 }}", 2), ("{{ steps.a-b }}", 3), ("{{ input.id }}", 5)],
)
def test_text_in_the_form_of_a_path_is_a_path(template: JsonValue, expected: JsonValue) -> None:
    assert render(template) == expected


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ payload.missing + 1 }}", "no such field: missing"),
        ("{{ payload.name + 1 }}", r"\+"),
        ("{{ payload.items[9] }}", "no such index"),
    ],
)
def test_failing_expression_is_an_error_without_values(template: JsonValue, reason: str) -> None:
    with pytest.raises(BlockError, match=reason) as caught:
        render(template)
    assert (caught.value.code, caught.value.retryable) == ("expression_failed", False)
    assert "Ada" not in caught.value.message


def test_index_outside_of_a_loop_has_no_value() -> None:
    with pytest.raises(BlockError, match="index"):
        render("{{ index }}")


@pytest.mark.parametrize("text", ["{{ upper(secrets.KEY) }}", '{{ secrets["KEY"] }}', "{{ [secrets.KEY] }}"])
def test_secret_in_an_expression_is_rejected(text: str) -> None:
    [problem] = templates.problems(text, ROOTS | {"secrets"})
    assert "placeholder of its own" in problem.hint
    with pytest.raises(BlockError, match="secrets") as caught:
        templates.render(text, SCOPE, Budget(MAX_ISOLATED_STEPS))
    assert caught.value.code == "template_invalid"


def test_expression_that_always_fails_is_a_problem() -> None:
    [problem] = templates.problems("{{ 1 / 0 }}")
    assert "zero" in problem.message


def test_placeholders_without_names_have_no_expressions() -> None:
    assert templates.problems("{{ 1 + 1 }}", frozenset({"secrets"}))


def test_paths_of_expressions_are_found() -> None:
    template = (
        "{{ payload.items.map(i, i.price) }} {{ payload.user.name }} {{ input['a'].b[0] }} {{ has(payload.c.d) }}"
    )
    assert [path for path in templates.paths(template) if path[0] in ROOTS] == [
        ("payload", "items"),
        ("payload", "user", "name"),
        ("input", "a", "b", "0"),
        ("payload", "c"),
    ]


def test_literal_parts_surround_placeholders() -> None:
    assert templates.literal_parts('a{{ {"x": "}}"} }}b{{ payload.c }}') == ["a", "b", ""]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{{ payload.a }}", True),
        ("{{ {'a': 1} }}", True),
        ("{{ a }}{{ b }}", False),
        (" {{ a }}", False),
        ("{{ a", False),
    ],
)
def test_single_placeholder_is_recognised(text: str, expected: bool) -> None:
    assert templates.is_placeholder(text) is expected


@pytest.mark.parametrize("unit", ["{{", "}}", "{", '"', "'''", "{{ {", "{{ '", "\\", "{{ r'"])
def test_pieces_of_hostile_text_are_found_in_linear_time(unit: str) -> None:
    text = "{{ " + unit * 20_000
    found = list(pieces(text))
    assert len(found) <= 1 + text.count("{{")


def test_referenced_steps_are_found() -> None:
    values: list[JsonValue] = [
        "{{ steps.fetch.body }} {{ steps.a-b }}",
        {"when": 'steps["x.y"].ok && has(steps.other)'},
        ["steps.get('got')", "steps [ 'spaced' ]"],
        "nosteps",
    ]
    assert read_steps(values) >= {"fetch", "a-b", "x.y", "other", "got", "spaced"}
    assert read_steps(["plain", 3, None]) == frozenset()
