"""Conversion of canvases to definitions."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from pydantic import JsonValue

from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.organism.canvas import Canvas
from bloxserver.organism.canvas_to_yaml import canvas_to_yaml, changed_listeners
from bloxserver.organism.parse import parse
from bloxserver.organism.problems import OrganismError
from bloxserver.organism.yaml_loader import load
from tests.api.hostile import objects
from tests.organism.canvases import (
    DEFINITIONS,
    REGISTRY,
    as_sent,
    block,
    canvas,
    canvas_of_yaml,
    definition,
    edge,
    line,
    node,
    problem_rows,
)

# fmt: off
RANDOM_TEXTS = [
    "a", "b", "echo", "ecko", "", "answer", "error", "case:0", "case:x",
    "otherwise", "tool", "config", "x y", "\n",
]
RANDOM_KEYS = [
    "name", "handler", "prompt", "description", "config", "peers", "when", "on", "label", "retries", "agent", "zz",
]
# fmt: on


class TestCanvasToYaml:
    def test_canvas_becomes_a_definition(self) -> None:
        shown = canvas(
            block("a", label="A", config={}, timeout_seconds=5),
            node("b", kind="agent", description="d", prompt="Be kind.\nAlways.\n"),
            block("n-3", name="c"),
            edge("a", "b"),
            edge("a", "n-3", "error"),
            edge("b", "n-3", "tool"),
            edge("b", "a", "answer", when="payload.text"),
        )
        text, problems = canvas_to_yaml(shown, "organism:\n  name: mine\nexecution:\n  timeout_seconds: 7\n", REGISTRY)
        assert problems == []
        assert (
            text
            == """\
organism:
  name: mine
listeners:
  - name: a
    description: d
    handler: echo
    config: {}
    peers:
      - b
      - to: c
        on: error
    timeout_seconds: 5
  - name: b
    description: d
    prompt: |
      Be kind.
      Always.
    peers:
      - c
      - to: a
        on: answer
        when: payload.text
  - name: c
    description: d
    handler: echo
execution:
  timeout_seconds: 7
"""
        )

    def test_unchanged_listeners_keep_their_lines(self) -> None:
        text = DEFINITIONS["comments"]
        shown = canvas_of_yaml(text)
        shown["nodes"][1]["data"]["retries"] = 2
        shown["nodes"].append(block("c"))
        shown["edges"].append(edge("a", "c"))
        shown["edges"].append(edge("c", "b"))
        derived, problems = canvas_to_yaml(shown, text, REGISTRY)
        assert derived == (
            "# 1\norganism: {name: x} # 2\nlisteners: # 3\n  # 4\n"
            "  - name: a\n    description: d\n    handler: echo\n    peers:\n      - c\n"
            "  # 7\n# 8\n"
            "  - name: b\n    description: d\n    handler: echo\n    retries: 2\n"
            "  - name: c\n    description: d\n    handler: echo\n    peers:\n      - b\n"
            "# 10\nexecution: {} # 11\n"
        )
        assert problem_rows((derived, problems)) == [
            ("warning", "comments_lost", ("nodes", "a")),
            ("warning", "comments_lost", ("nodes", "b")),
        ]
        assert [(problem.line, problem.column) for problem in problems] == [(5, 5), (12, 5)]

    def test_listeners_are_added_removed_and_reordered(self) -> None:
        text = definition(
            "  # first", line("a", "[b]"), "  # second", line("b", "[c]"), "  # third", line("c"), "mine: 1"
        )
        shown = canvas_of_yaml(text)
        shown["nodes"] = [shown["nodes"][2], shown["nodes"][0]]
        shown["edges"] = []
        derived, _ = canvas_to_yaml(shown, text, REGISTRY)
        assert derived == definition(
            "  # third", line("c"), "  # first", "  - name: a", "    description: d", "    handler: echo", "mine: 1"
        )
        assert sorted(changed_listeners(shown, text, REGISTRY)) == ["a", "b"]
        shown = canvas_of_yaml(text)
        shown["nodes"].reverse()
        assert canvas_to_yaml(shown, text, REGISTRY)[0] == definition(
            "  # third", line("c"), "  # second", line("b", "[c]"), "  # first", line("a", "[b]"), "mine: 1"
        )
        assert changed_listeners(shown, text, REGISTRY) == ["a", "b", "c"]

    def test_renamed_listener_keeps_its_lead_comment(self) -> None:
        text = definition("  # lead", line("a", "[b]"), line("b", "[{to: a, on: error}]"))
        shown = canvas_of_yaml(text)
        shown["nodes"][0]["data"]["name"] = "first"
        derived, problems = canvas_to_yaml(shown, text, REGISTRY)
        assert problems == []
        assert derived.startswith("organism: {name: x}\nlisteners:\n  # lead\n  - name: first\n")
        assert [(one["source"], one["target"]) for one in canvas_of_yaml(derived)["edges"]] == [
            ("first", "b"),
            ("b", "first"),
        ]

    def test_only_one_of_two_equal_names_matches_the_existing_listener(self) -> None:
        text = definition("  # lead", line("a"))
        derived, problems = canvas_to_yaml(canvas(block("1", name="a"), block("2", name="a")), text, REGISTRY)
        assert derived.count("# lead") == derived.count(line("a")) == 1
        assert [problem.code for problem in problems] == ["duplicate_listener"]

    def test_keys_missing_on_the_canvas_are_kept(self) -> None:
        text = definition(
            line("a", "[b]", "handler: transform, config: {output: 1}, mine: [1]"),
            line("b", "[]", "prompt: p, model: m"),
        )
        shown = canvas(node("1", name="a", config={"output": 1}), node("2", name="b", prompt="p"), edge("1", "2"))
        derived, problems = canvas_to_yaml(shown, text, REGISTRY)
        assert [problem.code for problem in problems] == ["unknown_key"]
        [a, b] = parse(derived, REGISTRY).listeners
        assert (a.handler, a.description, b.description, b.given_config) == ("transform", "d", "d", {"prompt": "p"})
        assert "mine:" in derived
        assert changed_listeners(shown, text, REGISTRY) == ["b"]

    def test_comments_lost_by_rewriting_are_reported(self) -> None:
        text = "# one\norganism: {name: x}\nlisteners: [{name: a, description: d, handler: echo}]\n"
        shown = canvas_of_yaml(text)
        shown["nodes"].append(block("b"))
        derived, problems = canvas_to_yaml(shown, text, REGISTRY)
        assert "# one" not in derived
        assert problem_rows((derived, problems)) == [("warning", "comments_lost", ())]
        assert canvas_to_yaml(shown, text.removeprefix("# one\n"), REGISTRY)[1] == []
        assert (
            canvas_to_yaml(shown, text.removeprefix("# one\n").replace("name: x", 'name: "x # y"'), REGISTRY)[1] == []
        )

    @pytest.mark.parametrize(
        ("shown", "code", "path"),
        [
            (canvas(block("a"), block("a", name="b")), "duplicate_node", ("nodes", "a")),
            (canvas(block("a"), block("b", name="a")), "duplicate_listener", ("nodes", "b", "data", "name")),
            (canvas(block("a b")), "invalid_name", ("nodes", "a b", "data", "name")),
            (canvas(block("a", name=5)), "wrong_type", ("nodes", "a", "data", "name")),
            (canvas(block("a", handler="ecko")), "unknown_handler", ("nodes", "a", "data", "handler")),
            (canvas(block("a", config={"x": 1})), "invalid_config", ("nodes", "a", "data", "config", "x")),
            (canvas(node("a", kind="agent", description="d")), "missing_field", ("nodes", "a", "data", "handler")),
            (canvas(block("a"), edge("a", "b")), "dangling_edge", ("edges", "a-b")),
            (canvas(block("b"), edge("a", "b")), "dangling_edge", ("edges", "a-b")),
            (canvas(block("a"), edge("a", "a", when="a b")), "invalid_expression", ("edges", "a-a", "data", "when")),
            (canvas(block("a"), edge("a", "a", on="never")), "wrong_type", ("edges", "a-a", "data", "on")),
            (canvas(block("a"), edge("a", "a"), edge("a", "a")), "duplicate_peer", ("edges", "a-a")),
            (canvas(), "missing_field", ("listeners",)),
            ({}, "missing_field", ("listeners",)),
        ],
    )
    def test_problems_have_canvas_paths(self, shown: Canvas, code: str, path: tuple[str, ...]) -> None:
        text, problems = canvas_to_yaml(shown, "organism: {name: x}", REGISTRY)
        assert problem_rows((text, problems)) == [("error", code, path)]
        assert all(problem.hint and problem.message for problem in problems)

    @pytest.mark.parametrize(
        ("shown", "code", "path"),
        [
            (canvas(block("a"), node("n", kind="note")), "not_a_listener", ("nodes", "n")),
            (canvas(block("a"), node("t", kind="trigger"), edge("t", "a")), "not_a_listener", ("nodes", "t")),
            (canvas(block("a", peers=["b"])), "peers_are_edges", ("nodes", "a")),
            (canvas(block("a", color="red", icon=1)), "unknown_key", ("nodes", "a")),
            (
                canvas(block("a"), edge("a", "a", "answer", on="error", when="payload.more")),
                "edge_contradiction",
                ("edges", "a-a"),
            ),
        ],
    )
    def test_inexpressible_canvas_parts_are_reported_and_left_out(
        self, shown: Canvas, code: str, path: tuple[str, ...]
    ) -> None:
        text, problems = canvas_to_yaml(shown, "organism: {name: x}", REGISTRY)
        assert problem_rows((text, problems)) == [("warning", code, path)]
        assert all(problem.hint and problem.message for problem in problems)
        assert [one.name for one in parse(text, REGISTRY).listeners] == ["a"]

    @pytest.mark.parametrize(
        ("shown", "peers"),
        [
            (canvas(block("a"), edge("a", "a", "right")), ["a"]),
            (canvas(block("a"), edge("a", "a", "tool")), ["a"]),
            (canvas(block("a"), edge("a", "a", "answer", on="answer")), ["a"]),
            (canvas(block("a"), edge("a", "a", "answer", when="")), ["a"]),
            (canvas(block("a"), edge("a", "a", on="error")), [{"to": "a", "on": "error"}]),
            (canvas(block("a"), edge("a", "a", "error", when="true")), [{"to": "a", "on": "error", "when": "true"}]),
            (canvas(block("a"), node("g", kind="group"), edge("a", "g"), edge("g", "a")), None),
            (canvas(node("a", kind="my-own", handler="echo"), edge("a", "a")), ["a"]),
        ],
    )
    def test_canvases_of_other_clients_are_accepted(self, shown: Canvas, peers: list[JsonValue] | None) -> None:
        text, _ = canvas_to_yaml(shown, "", REGISTRY)
        written = canvas_of_yaml(text)
        assert written["nodes"][0]["data"]["name"] == "a"
        listeners = load(text).value["listeners"]
        assert isinstance(listeners, list)
        assert isinstance(listeners[0], dict)
        assert listeners[0].get("peers") == peers

    def test_edges_of_a_branch_are_written_to_its_config(self) -> None:
        text = DEFINITIONS["a branch"]
        shown = canvas_of_yaml(text)
        assert [(one["sourceHandle"], one["target"]) for one in shown["edges"]] == [
            ("case:0", "b"),
            ("case:1", "c"),
            ("otherwise", "d"),
        ]
        shown["edges"][0]["target"] = "d"
        shown["edges"].append(edge("a", "b"))
        shown["nodes"][2]["data"]["name"] = "see"
        derived, problems = canvas_to_yaml(shown, text, REGISTRY)
        assert problems == []
        branch = parse(derived, REGISTRY).listener("a")
        assert [case["to"] for case in branch.given_config["cases"]] == ["d", "see"]  # type: ignore[union-attr, index, call-overload]
        assert [peer.to for peer in branch.peers] == ["b", "d", "see"]

    def test_case_without_target_gets_the_target_of_its_edge(self) -> None:
        config = {"cases": [{"when": "payload.x"}]}
        shown = canvas(block("a", handler="branch", config=config), block("b"), edge("a", "b", "case:0"))
        text, problems = canvas_to_yaml(shown, "organism: {name: x}", REGISTRY)
        assert problems == []
        assert [peer.to for peer in parse(text, REGISTRY).listener("a").peers] == ["b"]
        assert config == {"cases": [{"when": "payload.x"}]}

    @pytest.mark.parametrize("handle", ["case:2", "case:", "case:x", "case:-1", "case:²", "case:" + "9" * 5000])
    def test_edge_of_an_unknown_case_is_reported(self, handle: str) -> None:
        text = DEFINITIONS["a branch"]
        shown = canvas_of_yaml(text)
        shown["edges"].append(edge("a", "b", handle))
        derived = canvas_to_yaml(shown, text, REGISTRY)
        assert problem_rows(derived) == [("error", "unknown_case", ("edges", "a-b"))]
        assert derived[0] == text

    def test_case_without_edge_is_reported(self) -> None:
        text = DEFINITIONS["a branch"]
        shown = canvas_of_yaml(text)
        del shown["edges"][1:]
        derived = canvas_to_yaml(shown, text, REGISTRY)
        assert problem_rows(derived) == [("warning", "undrawn_case", ("nodes", "a"))] * 2
        assert derived[0] == text

    def test_react_flow_members_change_nothing(self) -> None:
        text = DEFINITIONS["a chain"]
        shown = canvas_of_yaml(text)
        for one in [*shown["nodes"], *shown["edges"]]:
            one |= {"selected": True, "width": 150, "style": {"stroke": "red"}, "zIndex": 3, "measured": {"width": 1}}
        shown["viewport"] = {"x": 5}
        shown["nodes"][0]["position"] = {"x": -1e9}
        assert canvas_to_yaml(shown, text, REGISTRY) == (text, [])

    def test_unreadable_definition_is_replaced_and_reported(self) -> None:
        for base in ("", "[", "\0", "a: &a [*a]"):
            text, problems = canvas_to_yaml(canvas(block("a")), base, REGISTRY)
            assert parse(text, REGISTRY).name == "my-flow"
            assert [problem.code for problem in problems] == ["definition_unreadable"]

    def test_too_large_definition_is_reported(self) -> None:
        text, problems = canvas_to_yaml(canvas(block("a", description="x" * 300_000)), "", REGISTRY)
        assert len(text) > 300_000
        assert "yaml_limit" in [problem.code for problem in problems]

    @pytest.mark.parametrize(
        "shown",
        [
            {"nodes": None, "edges": 5},
            {"nodes": [None, 5, [], "x", {}], "edges": [None, {}, {"source": 5}]},
            {"nodes": [{"id": None, "data": None}, {"id": 5, "data": []}, {"data": {"name": {"a": 1}}}]},
            canvas(block("a", config="x", handler=["echo"]), block("b", prompt=5), edge("a", "b", when={"a": [1]})),
            canvas(block("a", handler="star", config={"names": 5}), edge("a", "a", "config")),
            canvas(block("a", config=json.loads(objects(55)))),
            canvas(block("a", **{"": {"": ""}, "\x07": "\x07", "on": True, "<<": {}, "mine": 10**400})),
            canvas(block("\x85\u2028"), edge("\x85\u2028", "\x85\u2028")),
            canvas(block("a", name=["x"]), block("b"), edge("b", "a"), edge("a", "b")),
            canvas(block("a", name=True), edge("a", "a")),
        ],
    )
    def test_invalid_canvases_never_raise(self, shown: Canvas) -> None:
        for base in ("", DEFAULT_ORGANISM, DEFINITIONS["comments"]):
            text, problems = canvas_to_yaml(as_sent(shown), base, REGISTRY)
            assert all(problem.hint for problem in problems)
            text.encode()
            json.dumps([problem.path for problem in problems])
            try:
                changed_listeners(shown, base, REGISTRY)
            except OrganismError:
                assert base == ""

    def test_random_canvases_never_raise(self) -> None:
        chance = random.Random(9)  # noqa: S311
        values = [
            None,
            True,
            0,
            1.5,
            *RANDOM_TEXTS,
            [],
            {},
            ["a"],
            {"to": "a"},
            {"cases": [{"to": "a"}, 5], "otherwise": "b"},
        ]

        def data() -> dict[str, Any]:
            return {chance.choice(RANDOM_KEYS): chance.choice(values) for _ in range(chance.randrange(6))}

        for _ in range(500):
            nodes = [
                {
                    "id": chance.choice(RANDOM_TEXTS),
                    "type": chance.choice([None, "agent", "block", "note"]),
                    "data": data(),
                }
                for _ in range(chance.randrange(5))
            ]
            edges = [
                edge(chance.choice(RANDOM_TEXTS), chance.choice(RANDOM_TEXTS), chance.choice(RANDOM_TEXTS), **data())
                for _ in range(chance.randrange(6))
            ]
            base = chance.choice(list(DEFINITIONS.values()))
            text, problems = canvas_to_yaml({"nodes": nodes, "edges": edges}, base, REGISTRY)
            assert all(problem.hint for problem in problems)
            if all(problem.severity != "error" for problem in problems):
                parse(text, REGISTRY)
