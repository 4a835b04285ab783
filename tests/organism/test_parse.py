"""Parsing of definitions, and the problems of invalid ones."""

import random
from typing import Any

import pytest
from pydantic import JsonValue

from bloxserver.blocks import echo, greeting
from bloxserver.blocks.base import Block, BlockConfig, BlockContext
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.organism.model import ExecutionLimits, FailureNotification, Organism, Peer, UnknownListener
from bloxserver.organism.parse import check, parse
from bloxserver.organism.problems import OrganismError
from bloxserver.organism.requirements import SecretRequirement


class Header(BlockConfig):
    name: str
    value: str = ""


class FetchConfig(BlockConfig):
    method: str = "GET"
    headers: list[Header] = []


async def handle_fetch(payload: echo.EchoPayload, config: FetchConfig, context: BlockContext) -> JsonValue:
    return None


fetch = Block(
    name="http.request",
    description="Fetches.",
    payload=echo.EchoPayload,
    config=FetchConfig,
    handler=handle_fetch,
    aliases=("tools.fetch",),
)
REGISTRY = BlockRegistry([echo.block, greeting.block, fetch])

Row = tuple[int, int, str]


def listeners(*lines: str) -> str:
    """A definition whose listeners begin in line 3."""
    return "\n".join(["organism: {name: x}", "listeners:", *lines])


def rows(text: str) -> list[Row]:
    return [(problem.line, problem.column, problem.code) for problem in check(text, REGISTRY)]


def test_default_organism_matches_the_contract() -> None:
    organism = parse(DEFAULT_ORGANISM, REGISTRY)
    [greeter] = organism.listeners
    assert organism.name == "my-flow"
    assert (
        greeter.name,
        greeter.handler,
        greeter.payload_class,
        greeter.description,
        greeter.agent,
        greeter.peers,
    ) == (
        "greeter",
        "handlers.hello.handle_greeting",
        "handlers.hello.Greeting",
        "A friendly greeter agent",
        True,
        (),
    )
    assert greeter.block is greeting.block
    assert organism.execution == ExecutionLimits(timeout_seconds=300, max_iterations=100)
    assert check(DEFAULT_ORGANISM, REGISTRY) == []


def test_all_keys_are_read() -> None:
    organism = parse(
        """
organism: {name: My Flow, description: about}
listeners:
  - {name: b.1, handler: echo, description: d, peers: null, retries: 0, payload_class: EchoPayload}
  - name: a
    handler: tools.fetch
    description: fetches
    tool_config: {method: POST, headers: [{name: n}]}
    peers: [b.1, a]
    timeout_seconds: 0.5
execution: {timeout_seconds: 86400, max_iterations: 10000, max_tokens: 50000, max_cost_usd: 0.25, daily_max_cost_usd: 9}
""",
        REGISTRY,
    )
    fetcher = organism.listener("a")
    assert (organism.name, organism.description) == ("My Flow", "about")
    assert organism.execution == ExecutionLimits(
        timeout_seconds=86_400, max_iterations=10_000, max_tokens=50_000, max_cost_usd=0.25, daily_max_cost_usd=9
    )
    assert (fetcher.block, fetcher.peers, fetcher.timeout_seconds) == (fetch, (Peer("b.1"), Peer("a")), 0.5)
    assert fetcher.config == FetchConfig(method="POST", headers=[Header(name="n")])
    assert (organism.listener("b.1").peers, organism.listener("b.1").timeout_seconds) == ((), None)


def test_all_problems_are_reported_and_the_first_is_the_message() -> None:
    text = """\
organism:
  name: x
listeners:
  - name: fetch
    handler: http.reqest
    description: d
    peers: [sumarise]
  - name: summarise
    handler: echo
"""
    with pytest.raises(OrganismError) as caught:
        parse(text, REGISTRY)
    problems = caught.value.problems
    assert [(problem.line, problem.column, problem.code) for problem in problems] == [
        (5, 14, "unknown_handler"),
        (7, 13, "unknown_peer"),
        (8, 5, "missing_field"),
    ]
    assert problems[1].hint == 'did you mean "summarise"?'
    assert problems[1].path == ("listeners", 0, "peers", 0)
    assert str(caught.value) == (
        'line 5, column 14: unknown handler "http.reqest"; did you mean "http.request"? (and 2 more problems)'
    )


GOOD = "name: a, handler: echo, description: d"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", [(1, 4, "yaml_syntax")]),
        (
            "a: *b",
            [(1, 1, "missing_field"), (1, 1, "missing_field"), (1, 1, "unknown_key"), (1, 4, "yaml_limit")],
        ),
        (
            f"organism: {{name: x}}\nlisteners: [{{{GOOD}, config: *c, peers: [!p b]}}]",
            [(2, 62, "yaml_limit"), (2, 74, "yaml_limit")],
        ),
        ("organism:\n", [(1, 10, "missing_field"), (1, 1, "missing_field")]),
        ("organism: {}\nlisteners: []", [(1, 11, "missing_field"), (2, 12, "missing_field")]),
        ("organism: [x]\nlisteners: {a: 1}", [(1, 11, "wrong_type"), (2, 12, "wrong_type")]),
        (f"organism: {{name: 7}}\nlisteners: [{{{GOOD}}}]", [(1, 18, "wrong_type")]),
        (f'organism: {{name: "a\\nb"}}\nlisteners: [{{{GOOD}}}]', [(1, 18, "invalid_name")]),
        (f"organism: {{name: {'x' * 65}}}\nlisteners: [{{{GOOD}}}]", [(1, 18, "invalid_name")]),
        (f"organism: {{name: x, name: y}}\nlisteners: [{{{GOOD}}}]", [(1, 21, "duplicate_key")]),
        (listeners("  - text", "  -"), [(3, 5, "wrong_type"), (4, 4, "wrong_type")]),
        (listeners("  - {name: a b, handler: echo, description: d}"), [(3, 12, "invalid_name")]),
        (listeners("  - {name: é, handler: echo, description: d}"), [(3, 12, "invalid_name")]),
        (listeners(f"  - {{name: {'x' * 65}, handler: echo, description: d}}"), [(3, 12, "invalid_name")]),
        (listeners("  - {name: .nan, handler: echo, description: d}"), [(3, 12, "out_of_range")]),
        (listeners(f"  - {{{GOOD}}}", f"  - {{{GOOD}}}"), [(4, 12, "duplicate_listener")]),
        (listeners("  - {name: a, description: d}"), [(3, 5, "missing_field")]),
        (listeners("  - {name: a, description: ' ', handler: echo}"), [(3, 28, "missing_field")]),
        (listeners("  - {name: a, description: d, handler: [x]}"), [(3, 40, "wrong_type")]),
        (listeners("  - {name: a, description: d, handler: os.system}"), [(3, 40, "unknown_handler")]),
        (listeners("  - name: a", "    description: d", "    prompt: p"), []),
        (listeners("  - name: a", "    description: d", "    agent: true"), [(3, 5, "missing_field")]),
        (
            listeners("  - name: a", "    description: d", "    prompt: '{{ secrets.X }}'"),
            [(5, 14, "secret_not_allowed")],
        ),
        (listeners("  - {name: a, description: d, prompt: p, temperature: 3}"), [(3, 55, "invalid_config")]),
        (listeners("  - {name: a, description: d, prompt: p, config: {max_cals: 3}}"), [(3, 51, "invalid_config")]),
        (
            listeners("  - {name: a, description: d, prompt: p, peers: [a, {to: a, when: 'true'}]}"),
            [(3, 61, "unsupported")],
        ),
        (listeners(f"  - {{{GOOD}, prompt: p, model: m}}"), [(3, 46, "unused_key"), (3, 57, "unused_key")]),
        (listeners(f"  - {GOOD.replace(', ', chr(10) + '    ')}", "    retries: 21"), [(6, 14, "out_of_range")]),
        (listeners(f"  - {{{GOOD}, retries: -1}}"), [(3, 55, "out_of_range")]),
        (listeners(f"  - {{{GOOD}, agent: yes}}"), [(3, 53, "wrong_type")]),
        (listeners(f"  - {{{GOOD}, timeout_seconds: 0}}"), [(3, 63, "out_of_range")]),
        (listeners(f"  - {{{GOOD}, timeout_seconds: true}}"), [(3, 63, "wrong_type")]),
        (listeners(f"  - {{{GOOD}, timeout_seconds: -.inf}}"), [(3, 63, "out_of_range")]),
        (listeners(f"  - {{{GOOD}, payload_class: Greeting}}"), [(3, 61, "payload_class_mismatch")]),
        (listeners(f"  - {{{GOOD}, peers: a}}"), [(3, 53, "wrong_type")]),
        (
            listeners(f"  - {{{GOOD}, peers: [b, a, a, 3, {{to: a, when: 'true'}}]}}"),
            [(3, 54, "unknown_peer"), (3, 60, "duplicate_peer"), (3, 63, "wrong_type"), (3, 71, "duplicate_peer")],
        ),
        (listeners(f"  - {{{GOOD}, config: [1]}}"), [(3, 54, "wrong_type")]),
        (listeners(f"  - {{{GOOD}, config: {{}}, tool_config: {{}}}}"), [(3, 58, "duplicate_key")]),
        (listeners(f"  - {{{GOOD}, tool_config: {{x: 1}}}}"), [(3, 60, "invalid_config")]),
        (
            listeners(
                "  - name: a",
                "    description: d",
                "    handler: http.request",
                "    config:",
                "      method: 5",
                "      metod: GET",
                "      headers:",
                "        - value: v",
                "        - name: [n]",
            ),
            [
                (7, 15, "invalid_config"),
                (8, 7, "invalid_config"),
                (10, 11, "invalid_config"),
                (11, 17, "invalid_config"),
            ],
        ),
        (
            listeners(f"  - {{{GOOD}}}", "execution: {timeout_seconds: 86401, max_iterations: 0}"),
            [(4, 30, "out_of_range"), (4, 53, "out_of_range")],
        ),
        (
            listeners(f"  - {{{GOOD}}}", "execution: {timeout_seconds: 5m, max_iterations: 1.5}"),
            [(4, 30, "wrong_type"), (4, 50, "wrong_type")],
        ),
        (
            listeners(f"  - {{{GOOD}}}", "execution: {max_tokens: 0, max_cost_usd: 0}"),
            [(4, 25, "out_of_range"), (4, 42, "out_of_range")],
        ),
        (
            listeners(f"  - {{{GOOD}}}", "execution: {max_tokens: 1.5, max_cost_usd: $5}"),
            [(4, 25, "wrong_type"), (4, 44, "wrong_type")],
        ),
        (listeners(f"  - {{{GOOD}}}", "execution: {max_cost_usd: .inf}"), [(4, 27, "out_of_range")]),
    ],
)
def test_invalid_definitions_are_reported_with_places(text: str, expected: list[Row]) -> None:
    assert sorted(rows(text)) == sorted(expected)
    severities = {problem.severity for problem in check(text, REGISTRY)}
    assert all(problem.hint for problem in check(text, REGISTRY)), "every problem says what to do"
    if severities <= {"warning"}:
        parse(text, REGISTRY)
    else:
        with pytest.raises(OrganismError):
            parse(text, REGISTRY)


def test_keys_without_effect_are_warnings() -> None:
    text = f"""\
organism: {{name: x, port: 8765, max_concurrent_pipelines: 5, prot: 1}}
llm: {{}}
gateways: []
listener: []
listeners: [{{{GOOD}, broadcast: true, peer: []}}]
execution: {{log_level: debug}}
"""
    assert rows(text) == [
        (1, 21, "unused_key"),
        (1, 33, "unused_key"),
        (1, 62, "unknown_key"),
        (2, 1, "unused_key"),
        (3, 1, "unused_key"),
        (4, 1, "unknown_key"),
        (5, 54, "unused_key"),
        (5, 71, "unknown_key"),
        (6, 13, "unused_key"),
    ]
    assert [problem.hint for problem in check(text, REGISTRY) if problem.code == "unknown_key"] == [
        "the known keys are name, description",
        'did you mean "listeners"?',
        'did you mean "peers"?',
    ]
    assert parse(text, REGISTRY).name == "x"


@pytest.mark.parametrize(
    ("peers", "target", "entry"),
    [
        ({"a": [], "b": []}, None, "a"),
        ({"a": [], "b": ["a"]}, None, "b"),
        ({"a": ["b"], "b": ["a"]}, None, "a"),
        ({"c": [], "a": ["c"], "b": ["c"]}, None, "c"),
        ({"a": ["b"], "b": []}, "b", "b"),
    ],
)
def test_entry_is_target_only_root_or_first_listener(
    peers: dict[str, list[str]], target: str | None, entry: str
) -> None:
    assert organism_of(peers).entry(target).name == entry


def test_unknown_entry_raises() -> None:
    with pytest.raises(UnknownListener, match='there is no listener "z"'):
        organism_of({"a": []}).entry("z")


def organism_of(peers: dict[str, list[str]]) -> Organism:
    return parse(
        listeners(*(f"- {{name: {n}, handler: echo, description: d, peers: {p}}}" for n, p in peers.items())), REGISTRY
    )


def test_thousands_of_problems_are_all_reported() -> None:
    text = listeners(*(f"- {{name: listener_{i}, handler: eco_{i}, peers: [lstner_{i}]}}" for i in range(1800)))
    problems = check(text, REGISTRY)
    assert len(problems) == 3 * 1800
    # Searching for suggestions is slow, so only the first problems get one.
    assert sum("did you mean" in problem.hint for problem in problems) <= 20


def test_mutated_definitions_raise_organism_errors_only() -> None:
    chance = random.Random(7)  # noqa: S311
    values: list[Any] = [
        "null",
        "1",
        "-1.5",
        "true",
        "[]",
        "{}",
        "[x]",
        "{a: {b: 1}}",
        "'x'",
        ".inf",
        "é",
        "9" * 30,
        '"\\0"',
    ]
    text = listeners(
        f"  - {{{GOOD}, config: {{}}, peers: [a], retries: 0, agent: true}}", "execution: {max_iterations: 3}"
    )
    words = text.replace("{", "{ ").replace(",", " ,").split(" ")
    for _ in range(500):
        mutated = list(words)
        for _ in range(chance.randrange(1, 4)):
            mutated[chance.randrange(len(mutated))] = chance.choice(values)
        for problem in check(" ".join(mutated), REGISTRY):
            assert problem.line >= 1
            assert problem.column >= 1
            assert "\n" not in str(problem)


class TestPeers:
    @pytest.mark.parametrize(
        ("peer", "expected"),
        [
            ("{to: a, wen: x}", [(3, 62, "unknown_key")]),
            ("{when: 'true'}", [(3, 54, "missing_field")]),
            ("{to: a, on: failure}", [(3, 66, "wrong_type")]),
            ("{to: a, when: 'payload >'}", [(3, 68, "invalid_expression")]),
            ("{to: a, when: 'paylod > 1'}", [(3, 68, "invalid_expression")]),
            ("{to: a, when: 'error.code == 1'}", [(3, 68, "invalid_expression")]),
            ("{to: a, on: error, when: \"error.code == 'x'\"}", []),
            ("{to: b, on: error}", [(3, 59, "unknown_peer")]),
        ],
    )
    def test_peer_has_condition_and_error_route(self, peer: str, expected: list[Row]) -> None:
        assert rows(listeners(f"  - {{{GOOD}, peers: [{peer}]}}")) == expected

    def test_answer_and_error_can_have_the_same_peer(self) -> None:
        organism = parse(listeners(f"  - {{{GOOD}, peers: [a, {{to: a, on: error}}]}}"), REGISTRY)
        assert organism.listener("a").peers == (Peer("a"), Peer("a", "error"))

    def test_peers_of_an_agent_are_tools_unless_on_is_given(self) -> None:
        agent = "{name: a, description: d, prompt: p, peers: [b, {to: c, on: answer}, {to: b, on: error}]}"
        others = "{name: b, description: the b, handler: echo}", "{name: c, description: d, handler: echo}"
        organism = parse(listeners(*(f"  - {one}" for one in (agent, *others))), REGISTRY)
        agent_listener = organism.listener("a")
        assert [(tool.listener, tool.description) for tool in agent_listener.tools] == [("b", "the b")]
        assert agent_listener.peers == (Peer("c"), Peer("b", "error"))
        assert organism.entry().name == "a"


class TestFailureNotifications:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("{}", [(4, 25, "missing_field")]),
            ("{url: nope}", [(4, 31, "invalid_config")]),
            ("{email: nope}", [(4, 33, "invalid_config")]),
            ("{email: a@b..c}", [(4, 33, "invalid_config")]),
            ("{email: 'a@b.example, c@d.example'}", [(4, 33, "invalid_config")]),
            ("{url: 'https://x.example/{{ payload.x }}'}", [(4, 50, "invalid_template")]),
            ("{mail: a@b.example, url: 'https://x.example/'}", [(4, 26, "unknown_key")]),
        ],
    )
    def test_invalid_failure_notifications_are_reported(self, given: str, expected: list[Row]) -> None:
        assert rows(listeners(f"  - {{{GOOD}}}", f"execution: {{on_failure: {given}}}")) == expected

    def test_secrets_of_failure_notifications_are_requirements(self) -> None:
        given = "{url: 'https://x.example/{{ secrets.PATH }}', secret: '{{ secrets.KEY }}', email: a@b.example}"
        organism = parse(listeners(f"  - {{{GOOD}}}", f"execution: {{on_failure: {given}}}"), REGISTRY)
        assert organism.on_failure == FailureNotification(
            "https://x.example/{{ secrets.PATH }}", "{{ secrets.KEY }}", "a@b.example"
        )
        assert [need.name for need in organism.requirements if isinstance(need, SecretRequirement)] == ["PATH", "KEY"]
