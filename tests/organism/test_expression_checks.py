"""Checks of expressions against the answers of other listeners."""

from __future__ import annotations

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check


def problems(*listeners: str) -> list[tuple[str, str, str]]:
    """The severity, the code, and the text of the definition at the place of each problem."""
    lines = "".join(f"  - {{description: d, {listener}}}\n" for listener in listeners)
    text = f"organism: {{name: x}}\nlisteners:\n{lines}"
    found: list[tuple[str, str, str]] = []
    for problem in check(text, get_registry()):
        line = text.splitlines()[problem.line - 1]
        found.append((problem.severity, problem.code, line[problem.column - 1 :][:12]))
    return found


FETCH = "name: fetch, handler: http.request, config: {url: 'https://x.example'}, peers: [use]"


def use(expression: str, *peers: str) -> str:
    return f"name: use, handler: transform, config: {{expression: '{expression}'}}, peers: [{', '.join(peers)}]"


def template(text: str) -> str:
    return f"name: use, handler: text.template, config: {{template: '{text}'}}"


@pytest.mark.parametrize(
    ("listener", "at"),
    [
        (use("payload.bodyy"), "payload.body"),
        (use("1 + payload.bodyy.x"), "payload.body"),
        (use('payload["bodyy"]'), "'payload[\"bo"),
        (use("steps.fetch.statuss"), "steps.fetch."),
        (template("{{ payload.status }} {{ payload.bodyy.0 }}"), "payload.body"),
        (template("{{ payload.status + payload.bodyy }}"), "payload.body"),
        (use("trigger.nam"), "trigger.nam'"),
        ("name: use, handler: echo, for_each: payload.bodyy", "payload.body"),
        (use("execution.ID"), "execution.ID"),
        ("name: use, handler: branch, config: {cases: [{when: 'payload.stat > 3', to: fetch}]}", "payload.stat"),
        ("name: use, handler: echo, peers: [{to: fetch, when: 'payload.stat > 3'}]", "payload.stat"),
        (use("payload.headers.map(h, payload.hedders)"), "payload.hedd"),
    ],
)
def test_unknown_member_of_a_known_answer_is_a_warning(listener: str, at: str) -> None:
    assert problems(FETCH, listener) == [("warning", "unknown_member", at[:12])]


@pytest.mark.parametrize(
    "listener",
    [
        use("payload.body.anything.at.all"),
        use("has(payload.bodyy) ? payload.bodyy : 1"),
        use('default(payload.bodyy, "x")'),
        use("payload.headers.map(payload, payload.x)"),
        use("input.bodyy"),
        use("vars.bodyy"),
        use('trigger.headers["x-y"]'),
        template("{{ payload.headers.content-type }} {{ steps.fetch.body.0 }}"),
    ],
)
def test_use_that_can_be_right_is_not_reported(listener: str) -> None:
    assert problems(FETCH, listener) == []


def test_member_of_the_input_is_not_reported() -> None:
    assert problems(use("payload.anything")) == []


def test_answer_of_any_sender_is_enough() -> None:
    other = "name: other, handler: transform, config: {output: {bodyy: 1}}, peers: [use]"
    start = "name: start, handler: echo, peers: [fetch, other]"
    assert problems(start, FETCH, other, use("payload.bodyy")) == []


def test_message_passes_through_blocks_that_answer_with_it() -> None:
    wait = "name: wait, handler: delay, config: {seconds: 1}, peers: [use]"
    assert problems(FETCH.replace("[use]", "[wait]"), wait, use("payload.bodyy")) == [
        ("warning", "unknown_member", "payload.body")
    ]


def test_error_route_has_the_members_of_an_error() -> None:
    fetch = FETCH.replace("[use]", "[{to: use, on: error, when: 'payload.x == 1'}]")
    found = problems(fetch, use("payload.error.code + payload.error.text + payload.input.x"))
    assert found == [("warning", "unknown_member", "payload.erro")]


def test_shape_of_nested_outputs_is_known() -> None:
    make = "name: make, handler: transform, config: {output: {a: {b: '{{ payload }}'}}}, peers: [use]"
    assert problems(make, use("payload.a.b.c")) == []
    assert problems(make, use("payload.a.c")) == [("warning", "unknown_member", "payload.a.c'")]
    mapping = "name: make, handler: transform, config: {mapping: {a.b: x}}, peers: [use]"
    assert problems(mapping, use("payload.a.b.c + payload.b")) == [("warning", "unknown_member", "payload.b'},")]


@pytest.mark.parametrize("expression", ["steps.fetsh.body", "has(steps.fetsh) ? 1 : steps.fetsh"])
def test_unknown_listener_is_an_error(expression: str) -> None:
    assert {problem[:2] for problem in problems(FETCH, use(expression))} == {("error", "unknown_step")}


def test_listener_that_does_not_come_before_is_an_error() -> None:
    last = "name: last, handler: echo"
    assert problems(FETCH, use("steps.last", "last"), last) == [("error", "unknown_step", "steps.last'}")]
    assert problems(FETCH, use("steps.use")) == [("error", "unknown_step", "steps.use'},")]


def test_listener_that_may_not_have_answered_is_a_warning_unless_it_is_tested() -> None:
    start = "name: start, handler: echo, peers: [{to: fetch, when: 'payload.x == 1'}, use]"
    assert problems(start, FETCH, use("steps.fetch.body")) == [("warning", "step_may_be_missing", "steps.fetch.")]
    assert problems(start, FETCH, use("has(steps.fetch) ? steps.fetch.body : payload")) == []
    assert problems(start, FETCH, use("steps.start.x")) == []


def test_listener_whose_error_leads_here_has_not_answered() -> None:
    fetch = FETCH.replace("[use]", "[use, {to: use, on: error}]")
    assert problems(fetch, use("steps.fetch.body")) == [("warning", "step_may_be_missing", "steps.fetch.")]


def test_condition_can_refer_to_its_own_listener() -> None:
    fetch = FETCH.replace("[use]", "[{to: use, when: 'steps.fetch.status == 200'}]")
    assert problems(fetch, use("1")) == []


def test_long_chains_and_cycles_end() -> None:
    chain = [f"name: n{number}, handler: echo, peers: [n{number + 1}]" for number in range(90)]
    assert problems(*chain, "name: n90, handler: transform, config: {expression: 'steps.n5.x + payload.y'}") == []
    cycle = ["name: a, handler: echo, peers: [{to: b, when: payload.x}]", "name: b, handler: echo, peers: [a]"]
    assert problems(*cycle) == []


def test_members_of_items_and_of_lists_are_not_reported() -> None:
    loop = (
        "name: use, for_each: payload.body, handler: http.request, config: {url: 'https://x.example/{{ payload.id }}'}"
    )
    after = "name: after, handler: transform, config: {expression: 'payload[0].body'}"
    assert problems(FETCH, f"{loop}, peers: [after]", after) == []


WAIT = "name: ask, handler: wait.webhook"


def test_urls_of_waits_are_known() -> None:
    assert problems(template("{{ resume.ask.url }}"), WAIT) == []
    assert problems(use('resume["ask"].url'), WAIT) == []


@pytest.mark.parametrize("name", ["asks", "use"])
def test_url_of_a_listener_that_does_not_wait_is_reported(name: str) -> None:
    found = problems(use(f"[resume.{name}.url]"), WAIT)
    assert found == [("error", "unknown_wait", f"resume.{name}.url"[:12])]


def test_other_member_of_a_wait_is_reported() -> None:
    assert problems(use("[resume.ask.link]"), WAIT) == [("warning", "unknown_member", "resume.ask.l")]


@pytest.mark.parametrize(
    ("config", "unknown"),
    [
        ("{fields: [{name: a}], buttons: [{value: x}]}", ["payload.b"]),
        ("{fields: [{name: a}]}", ["payload.b", "payload.butt"]),
        ("{}", []),
    ],
)
def test_answer_of_a_form_has_its_fields(config: str, unknown: list[str]) -> None:
    found = problems(f"{WAIT}, config: {config}, peers: [use]", use("[payload.a, payload.b, payload.button]"))
    assert [place.split(",")[0] for _, _, place in found] == unknown
