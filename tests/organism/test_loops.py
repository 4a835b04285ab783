"""The keys of loops in definitions, and their problems."""

from __future__ import annotations

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.canvas import yaml_to_canvas
from bloxserver.organism.canvas_to_yaml import canvas_to_yaml
from bloxserver.organism.parse import check, parse

Row = tuple[str, str, str]


def definition(*listeners: str, execution: str = "{}") -> str:
    lines = "\n".join(f"  - {{description: d, {listener}}}" for listener in listeners)
    return f"organism: {{name: test}}\nlisteners:\n{lines}\nexecution: {execution}\n"


def problems(*listeners: str, execution: str = "{}") -> list[Row]:
    found = check(definition(*listeners, execution=execution), get_registry())
    return [(problem.severity, problem.code, problem.message) for problem in found]


LOOP = "name: a, handler: echo, for_each: payload.rows"
UNDEFINED = "index is not defined; only the config of a listener with for_each has an index (at character 1)"


def test_keys_of_a_loop_are_read() -> None:
    text = definition(
        LOOP, LOOP.replace("a,", "b,") + ", parallel: 100, on_item_error: collect", "name: c, handler: echo"
    )
    read = [(each.for_each, each.parallel, each.on_item_error) for each in parse(text, get_registry()).listeners]
    assert read == [("payload.rows", 10, "fail"), ("payload.rows", 100, "collect"), (None, 10, "fail")]


@pytest.mark.parametrize(
    ("listener", "row"),
    [
        ("name: a, handler: echo, for_each: 7", ("error", "wrong_type", '"for_each" must be text')),
        ("name: a, handler: echo, for_each: payload..rows", ("error", "invalid_expression", "")),
        ("name: a, handler: echo, for_each: unknown.rows", ("error", "invalid_expression", "unknown is not defined")),
        (
            "name: a, handler: echo, for_each: payload.size()",
            ("error", "invalid_expression", "the value is never a list"),
        ),
        (
            "name: a, handler: echo, for_each: payload.n > 3",
            ("error", "invalid_expression", "the value is never a list"),
        ),
        ("name: a, handler: echo, for_each: '[1 / 0]'", ("error", "invalid_expression", "the expression fails")),
        (f"{LOOP}, parallel: 0", ("error", "out_of_range", '"parallel" must be from 1 to 100')),
        (f"{LOOP}, parallel: 101", ("error", "out_of_range", '"parallel" must be from 1 to 100')),
        (f"{LOOP}, on_item_error: skip", ("error", "wrong_type", '"on_item_error" cannot be "skip"')),
        (
            "name: a, handler: echo, parallel: 3",
            ("warning", "unused_key", '"parallel" has no effect without'),
        ),
        ("name: a, handler: echo, on_item_error: fail", ("warning", "unused_key", '"on_item_error" has no effect')),
        (
            "name: a, handler: branch, config: {cases: [{when: payload.x, to: a}]}, for_each: payload.rows",
            ("error", "unsupported", '"branch" cannot have for_each'),
        ),
    ],
)
def test_problem_of_a_loop_is_reported(listener: str, row: Row) -> None:
    (found,) = problems(listener)
    assert (found[:2], found[2][: len(row[2])]) == (row[:2], row[2])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("handler: transform, config: {expression: index}", f"config.expression: {UNDEFINED}"),
        ("handler: transform, config: {output: ['{{ index }}']}", "output.0: index is unknown in {{ index }}"),
        (
            "handler: text.template, config: {template: '{{ index + 1 }}'}",
            f"template: {{{{ index + 1 }}}} is neither a path nor a valid expression: {UNDEFINED}",
        ),
    ],
)
def test_index_is_known_only_in_the_config_of_a_loop(config: str, message: str) -> None:
    assert problems(f"name: a, {config}") == [("error", problems(f"name: a, {config}")[0][1], message)]
    assert problems(f"name: a, {config}, for_each: payload.rows") == []


@pytest.mark.parametrize("peer", ["{to: b, when: index > 1}", "{to: b, on: error, when: index > 1}"])
def test_index_is_unknown_in_conditions(peer: str) -> None:
    expected = ("error", "invalid_expression", UNDEFINED)
    assert problems(f"{LOOP}, peers: [{peer}]", "name: b, handler: echo") == [expected]


def test_index_is_unknown_in_the_expression_of_the_list() -> None:
    assert problems("name: a, handler: echo, for_each: '[index]'")[0][1] == "invalid_expression"


def test_items_do_not_count_as_messages() -> None:
    listeners = (f"{LOOP}, peers: [b]", "name: b, handler: echo")
    assert problems(*listeners, execution="{max_iterations: 2}") == []
    assert problems(*listeners, execution="{max_iterations: 1}")[0][1] == "too_many_messages"


@pytest.mark.parametrize(
    ("for_each", "properties"),
    [
        ("payload.rows", {"rows"}),
        ("payload.rows.filter(r, r.n > payload.least)", {"rows", "least"}),
        ("payload", {"input"}),
        ("vars.rows", set()),
    ],
)
def test_tool_that_is_a_loop_takes_what_its_expression_refers_to(for_each: str, properties: set[str]) -> None:
    text = definition(
        "name: agent, prompt: Help., peers: [tool]",
        f"name: tool, handler: transform, config: {{mapping: {{x: n}}}}, for_each: '{for_each}'",
    )
    (tool,) = parse(text, get_registry()).listener("agent").tools
    assert set(tool.schema["properties"]) == properties


def test_new_loop_on_a_canvas_is_written_after_its_handler() -> None:
    text = definition(f"{LOOP}, parallel: 5, on_item_error: collect")
    canvas, _ = yaml_to_canvas(text, get_registry())
    assert {key: canvas["nodes"][0]["data"][key] for key in ("for_each", "parallel", "on_item_error")} == {
        "for_each": "payload.rows",
        "parallel": 5,
        "on_item_error": "collect",
    }
    written, found = canvas_to_yaml(canvas, "organism: {name: test}\nlisteners: []\n", get_registry())
    assert "    handler: echo\n    for_each: payload.rows\n    parallel: 5\n    on_item_error: collect\n" in written
    assert found == []
