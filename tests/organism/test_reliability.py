"""All problems of a definition are reported at once, and an accepted definition can run."""

from __future__ import annotations

from typing import Any

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check, read
from bloxserver.organism.requirements import AddressRequirement, MailRequirement, ModelRequirement, SecretRequirement

INVALID_DEFINITION = """\
organism: {name: [x], descripton: d}
listeners:
  - name: fetch
    description: d
    handler: http.request
    config:
      url: "https://x.example/{{ payload.items[0.id }}/{{ payload.name | upper }}"
      headers: {A: "{{ payload.x || 'y' }}", "{{ payload.h }}": b, C: "{{ secret.KEY }} {{ secrets.TOKEN }}", D E: f}
      body: {a: ["{{ step.one }}", "{{ payload.a"], b: "{{ payload.ok }}"}
      metod: GET
      timeout_seconds: 0
    timeout_seconds: never
    retries: 99
    peers: [{to: nowhere, when: payload.size(), on: sucess}, {to: choose, on: error, when: error.kind == 'x'}]
  - name: fetch
    description: "  "
    handler: choose
    peers: [fetch, fetch]
  - name: choose
    handler: branch
    config:
      cases:
        - {when: "payload >", to: fetch}
        - {when: payload.size(), to: nobody}
        - {when: "1 / 0 > 1", to: b c}
      otherwise: nothing
  - name: agent
    description: d
    prompt: "Answer {{ payload.question }} with {{ secrets.PROMPT }}"
    temperature: 9
    config: {temperature: 1, max_cals: 3}
    peers: [{to: fetch, when: 'true'}, tool]
  - name: code
    description: d
    handler: python
    config: {code: "import io\\nnobody(1)", memory_mb: 0}
  - name: form
    description: d
    handler: transform
    config: {output: "{{ secrets.A }} {{ payload.b[1 }}", mapping: {x: "a[0]"}, expression: "1 +", more: 1}
  - name: mail
    description: d
    handler: email.send
    config: {to: "{{ payload.to }}", subject: s, text: t}
execution:
  timeout_seconds: 5m
  max_iterations: 0
  on_failure: {url: "ftp://x", secret: "{{ payload.x }}", email: "{{ secrets.MAIL }} {{ secrets.1 }}"}
"""


def found(text: str) -> list[tuple[int, int, str]]:
    return [(problem.line, problem.column, problem.code) for problem in check(text, get_registry())]


def column(line: int, part: str, number: int = 0) -> tuple[int, int]:
    """Return the place of the occurrence `number`, from 0, of a part of a line of INVALID_DEFINITION."""
    at, text = -1, INVALID_DEFINITION.splitlines()[line - 1]
    for _ in range(number + 1):
        at = text.index(part, at + 1)
    return line, at + 1


PROBLEMS = [
    (*column(1, "[x]"), "wrong_type"),
    (*column(1, "descripton"), "unknown_key"),
    (*column(7, "{{"), "invalid_template"),
    (*column(7, "{{", 1), "invalid_template"),
    (*column(8, "{{"), "invalid_template"),
    (*column(8, '"{{', 1), "placeholder_not_replaced"),
    (*column(8, "{{", 2), "invalid_template"),
    (*column(8, "D E"), "invalid_config"),
    (*column(9, "{{"), "invalid_template"),
    (*column(9, "{{", 1), "invalid_template"),
    (*column(10, "metod"), "invalid_config"),
    (*column(11, "0"), "invalid_config"),
    (*column(12, "never"), "wrong_type"),
    (*column(13, "99"), "out_of_range"),
    (*column(14, "nowhere"), "unknown_peer"),
    (*column(14, "sucess"), "wrong_type"),
    (*column(14, "payload.size"), "invalid_expression"),
    (*column(14, "error.kind"), "invalid_expression"),
    (*column(15, "fetch"), "duplicate_listener"),
    (*column(16, '"'), "missing_field"),
    (*column(17, "choose"), "unknown_handler"),
    (*column(18, "fetch", 1), "duplicate_peer"),
    (*column(19, "name"), "missing_field"),
    (*column(23, '"payload'), "invalid_config"),
    (*column(24, "payload"), "invalid_config"),
    (*column(24, "nobody"), "unknown_peer"),
    (*column(25, '"1'), "invalid_config"),
    (*column(25, "b c"), "invalid_config"),
    (*column(25, "b c"), "unknown_peer"),
    (*column(26, "nothing"), "unknown_peer"),
    (*column(29, "{{"), "placeholder_not_replaced"),
    (*column(29, "{{", 1), "secret_not_allowed"),
    (*column(30, "9"), "invalid_config"),
    (*column(31, "temperature"), "duplicate_key"),
    (*column(31, "max_cals"), "invalid_config"),
    (*column(32, "when"), "unsupported"),
    (*column(32, "tool"), "unknown_peer"),
    (*column(36, '"import'), "invalid_config"),
    (*column(36, "0}"), "invalid_config"),
    (*column(40, "{{"), "secret_not_allowed"),
    (*column(40, "{{", 1), "invalid_template"),
    (*column(40, "{output"), "invalid_config"),
    (*column(40, "{x"), "invalid_config"),
    (*column(40, '"1 +'), "invalid_config"),
    (*column(40, "more"), "invalid_config"),
    (*column(46, "5m"), "wrong_type"),
    (*column(47, "0"), "out_of_range"),
    (*column(48, '"ftp'), "invalid_config"),
    (*column(48, "{{"), "invalid_template"),
    (*column(48, "{{", 2), "invalid_template"),
]


def test_all_problems_of_one_definition_are_reported() -> None:
    assert sorted(found(INVALID_DEFINITION)) == sorted(PROBLEMS)


def test_all_unknown_names_of_a_snippet_are_in_one_problem() -> None:
    [code] = [problem for problem in check(INVALID_DEFINITION, get_registry()) if problem.path[-1:] == ("code",)]
    assert "No module named 'io'" in code.message
    assert "'nobody' is not defined" in code.message


def test_requirements_of_an_invalid_definition_are_known() -> None:
    requirements = read(INVALID_DEFINITION, get_registry()).requirements
    assert [
        (requirement.name, requirement.place)
        for requirement in requirements
        if isinstance(requirement, SecretRequirement)
    ] == [
        ("TOKEN", column(8, "{{", 3)),
        ("MAIL", column(48, "{{", 1)),
    ]
    assert [requirement.listener for requirement in requirements if isinstance(requirement, ModelRequirement)] == [
        "agent"
    ]
    assert [requirement.place.line for requirement in requirements if isinstance(requirement, MailRequirement)] == [43]
    assert [requirement.place.line for requirement in requirements if isinstance(requirement, AddressRequirement)] == [
        7
    ]


def listener(handler: str, config: str, more: str = "") -> str:
    return f"""\
organism: {{name: x}}
listeners:
  - name: a
    description: d
    handler: {handler}
    config: {config}
    {more}
  - {{name: b, description: d, handler: echo}}
"""


@pytest.mark.parametrize(
    ("handler", "config"),
    [
        ("http.request", "{url: '{{ payload.urls[0 }}'}"),
        ("http.request", "{url: 'https://x.example', headers: {X: '{{ Payload.x }}'}}"),
        ("webhook.send", "{url: 'https://x.example/{{ payload.a or payload.b }}'}"),
        ("webhook.send", "{url: 'https://x.example', secret: '{{ secrets }}'}"),
        ("email.send", "{to: a@b.example, subject: '{{ payload.a | trim }}', text: t}"),
        ("email.send", "{to: ['{{ payload.to[0 }}'], subject: s, text: t}"),
        ("email.send", "{to: a@b.example, subject: s, text: t, server: {host: '{{ secret.HOST }}'}}"),
        ("flow.call", "{flow: '{{ payload.flows[0 }}'}"),
        ("text.template", "{template: 'Hello {{ payload.name | upper }}'}"),
        ("transform", "{output: {a: [{b: '{{ payload.a[0 }}'}]}}"),
        ("key_value", "{operation: get, key: 'k {{ payload.ids[0 }}'}"),
        ("key_value", "{operation: set, key: k, value: {a: '{{ payload.a + }}'}}"),
        ("key_value", "{operation: increment, key: k, by: '{{ payload.counts[0 }}'}"),
    ],
)
def test_invalid_placeholders_are_reported_in_all_templated_members(handler: str, config: str) -> None:
    [problem] = [one for one in check(listener(handler, config), get_registry()) if one.path[-1:] != ("config",)]
    assert problem.code == "invalid_template"
    assert (problem.line, problem.column) == (6, 13 + config.index("{{"))


@pytest.mark.parametrize(
    ("handler", "config"),
    [
        ("http.request", "{url: 'https://x.example', body: {'{{ payload.k }}': 1}}"),
        ("transform", "{output: {a: {'{{ input.k }}': '{{ payload.k }}'}}}"),
        ("key_value", "{operation: set, key: k, value: {'{{ payload.k }}': 1}}"),
    ],
)
def test_placeholder_in_a_key_is_a_warning(handler: str, config: str) -> None:
    [problem] = check(listener(handler, config), get_registry())
    assert (problem.severity, problem.code) == ("warning", "placeholder_not_replaced")
    # A key is reported where its entry begins.
    assert (problem.line, problem.column) == (6, 12 + config.index("{{"))


@pytest.mark.parametrize(
    ("handler", "config"),
    [
        ("python", "{code: '{{ payload.x }}'}"),
        ("delay", "{seconds: '{{ payload.x }}'}"),
        ("json.parse", "{path: '{{ payload.x }}'}"),
        ("calculate", "{expression: '{{ payload.x }} + 1'}"),
    ],
)
def test_placeholders_in_other_members_are_warnings(handler: str, config: str) -> None:
    codes = [code for *_, code in found(listener(handler, config))]
    assert "placeholder_not_replaced" in codes


FAILING: list[tuple[str, str, str, str]] = [
    ("branch", "{cases: [{when: payload.total, to: b}, {when: payload.total * 2, to: b}]}", "", "invalid_config"),
    ("branch", "{cases: [{when: \"payload.name.matches('[')\", to: b}]}", "", "invalid_config"),
    ("branch", "{cases: [{when: 'true', to: c}]}", "", "unknown_peer"),
    ("transform", "{expression: \"timestamp('tomorrow')\"}", "", "invalid_config"),
    ("transform", "{expression: \"size(payload) + 'x'\"}", "", "invalid_config"),
    ("transform", "{mapping: {a: 'items[0].name'}}", "", "invalid_config"),
    ("calculate", "{expression: 1 / 0}", "", "invalid_config"),
    ("calculate", "{expression: average(payload)}", "", "invalid_config"),
    ("calculate", "{expression: price * 2}", "", "invalid_config"),
    ("json.parse", "{path: 'body[0]'}", "", "invalid_config"),
    ("delay", "{seconds: '5'}", "", "invalid_config"),
    ("key_value", "{operation: get, key: ''}", "", "invalid_config"),
    ("python", "{code: 'import requests'}", "", "invalid_config"),
    ("python", "{code: 'open(1)'}", "", "invalid_config"),
    ("flow.call", "{flow: ''}", "", "invalid_config"),
    ("http.request", "{url: 'example.com/{{ payload.id }}'}", "", "invalid_config"),
    ("http.request", "{url: 'ftp://{{ payload.host }}/'}", "", "invalid_config"),
    ("http.request", "{url: 'https://a b/{{ payload.id }}'}", "", "invalid_config"),
    ("http.request", "{url: 'https://u:p@x.example/{{ payload.id }}'}", "", "invalid_config"),
    ("webhook.send", "{url: '/{{ payload.id }}'}", "", "invalid_config"),
    ("http.request", "{headers: {X Y: z}}", "", "invalid_config"),
    ("http.request", "{headers: {X: é}}", "", "invalid_config"),
    ("webhook.send", "{url: 'https://x.example', headers: {X: \"{{ payload.a }}\\n\"}}", "", "invalid_config"),
    ("echo", "{}", "peers: [{to: b, when: payload.size()}]", "invalid_expression"),
    ("echo", "{}", "peers: [{to: b, when: \"'yes'\"}]", "invalid_expression"),
    ("echo", "{}", "peers: [{to: b, on: error, when: error.status == 404}]", "invalid_expression"),
    ("echo", "{}", "peers: [{to: b, when: \"payload.a > '1' + 1\"}]", "invalid_expression"),
]


@pytest.mark.parametrize(("handler", "config", "more", "code"), FAILING)
def test_configs_that_always_fail_are_errors(handler: str, config: str, more: str, code: str) -> None:
    assert [found_code for *_, found_code in found(listener(handler, config, more))] == [code]


@pytest.mark.parametrize(
    "config",
    [
        "{url: '{{ payload.url }}'}",
        "{url: 'http{{ payload.rest }}'}",
        "{url: 'HTTPS://{{ payload.host }}/x'}",
        "{url: 'https://api-{{ payload.zone }}.example/'}",
        "{url: 'https://x.example:{{ payload.port }}/'}",
        "{url: 'https://x.example/{{ payload.id }} x?q={{ payload.q }}'}",
        "{url: 'https://x.example', headers: {X: '{{ payload.été }}', Y-1: 'a {{ payload.b }}'}}",
    ],
)
def test_valid_requests_are_accepted(config: str) -> None:
    assert found(listener("http.request", config)) == []


ON_FAILURE: list[tuple[str, list[tuple[str, str]]]] = [
    ("{url: 'https://x.example', secret: 'whsec_short'}", [("error", "invalid_config")]),
    ("{email: 'a@'}", [("error", "invalid_config")]),
    ("{email: 'a@b.example', secret: '{{ secrets.A }}'}", [("warning", "unused_key")]),
    ("{email: '{{ secrets.a[0 }}'}", [("error", "invalid_template")]),
    ("{url: 5}", [("error", "wrong_type")]),
    ("{url: 'x.example/{{ secrets.A }}'}", [("error", "invalid_config")]),
    ("{url: 'https://x.example', email: 'Ada <a@b.example>'}", []),
]


@pytest.mark.parametrize(("given", "expected"), ON_FAILURE)
def test_undeliverable_failure_notifications_are_reported(given: str, expected: list[tuple[str, str]]) -> None:
    text = listener("echo", "{}") + f"execution: {{on_failure: {given}}}\n"
    assert [(problem.severity, problem.code) for problem in check(text, get_registry())] == expected


def chain(*peers: str, execution: str = "{}") -> str:
    lines = [
        f"  - {{name: l{number}, description: d, handler: echo, peers: [{given}]}}"
        for number, given in enumerate(peers)
    ]
    return "\n".join(["organism: {name: x}", "listeners:", *lines, f"execution: {execution}", ""])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (chain("l0"), [(3, "endless_circle")]),
        (chain("l1", "l2", "l1"), [(4, "endless_circle")]),
        (chain("l1, l2", "l0", "l0"), [(3, "endless_circle")]),
        (chain("l1", "{to: l0, when: payload.more}"), []),
        (chain("l1", "{to: l0, on: error}"), []),
        (chain("l1", "l2", "", execution="{max_iterations: 2}"), [(6, "too_many_messages")]),
        (chain("l1", "l2", "", execution="{max_iterations: 3}"), []),
        (chain("l1, l2", "l3", "l3", "", execution="{max_iterations: 4}"), [(7, "too_many_messages")]),
        (chain("l1, l2", "l3", "l3", "", execution="{max_iterations: 5}"), []),
        (chain(*(f"l{n + 1}" for n in range(120)), ""), [(124, "too_many_messages")]),
        (chain(*(f"l{n + 1}" for n in range(1000)), "l0"), [(3, "endless_circle")]),
    ],
    ids=range(11),
)
def test_limits_that_are_always_reached_are_warnings(text: str, expected: list[tuple[int, str]]) -> None:
    problems = check(text, get_registry())
    assert [(problem.line, problem.code) for problem in problems] == expected
    assert {problem.severity for problem in problems} <= {"warning"}


def test_peers_of_a_stop_are_a_warning_and_no_cycle() -> None:
    text = (
        "organism: {name: o}\nlisteners:\n"
        "- {name: a, description: d, handler: echo, peers: [b]}\n"
        "- {name: b, description: d, handler: stop, peers: [a]}\n"
    )
    assert [(problem.line, problem.code) for problem in check(text, get_registry())] == [(4, "unused_key")]
    assert check(text.replace("[a]", "[{to: a, on: error}]"), get_registry()) == []


def test_timeout_over_the_execution_timeout_is_a_warning() -> None:
    text = listener("echo", "{}", "timeout_seconds: 301")
    assert found(text) == [(7, 5, "unused_key")]
    assert found(text + "execution: {timeout_seconds: 301}\n") == []
    agent: dict[str, Any] = {"handler": "null", "prompt: p, timeout_seconds": 900}
    shown = ", ".join(f"{key}: {value}" for key, value in agent.items())
    assert found(f"organism: {{name: x}}\nlisteners: [{{name: a, description: d, {shown}}}]") == []
