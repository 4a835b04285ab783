"""Conversion of definitions to canvases."""

from __future__ import annotations

import random

import pytest

from bloxserver.organism.canvas import yaml_to_canvas
from bloxserver.organism.layout import COLUMN_WIDTH, ROW_HEIGHT, positions
from tests.organism.canvases import AGENT, DEFINITIONS, REGISTRY, canvas_of_yaml, definition, line


class TestYamlToCanvas:
    def test_canvas_has_a_node_per_listener_and_an_edge_per_route(self) -> None:
        text = definition(
            line("a", "[b, {to: c, when: payload.x}, {to: c, on: error}]"),
            line("b", "[c, {to: c, on: answer}]", AGENT),
            line("c"),
        )
        shown, problems = yaml_to_canvas(text, REGISTRY)
        assert problems == []
        assert shown["nodes"][1] == {
            "id": "b",
            "type": "agent",
            "position": {"x": COLUMN_WIDTH, "y": 0},
            "data": {
                "label": "b", "name": "b", "description": "d", "prompt": "Be kind", "model": "m", "max_tokens": 5,
                "temperature": 0.5,
            },
        }  # fmt: skip
        assert [one["type"] for one in shown["nodes"]] == ["block", "agent", "block"]
        assert [(one["id"], one["sourceHandle"], one["data"]["on"], one["data"]["when"]) for one in shown["edges"]] == [
            ("a->b", "answer", "answer", None),
            ("a->c", "answer", "answer", "payload.x"),
            ("a->c:error", "error", "error", None),
            ("b->c", "tool", None, None),
            ("b->c:answer", "answer", "answer", None),
        ]

    def test_targets_of_a_config_become_edges(self) -> None:
        [to_b, to_c] = canvas_of_yaml(DEFINITIONS["its own targets"])["edges"][1:]
        assert (to_b["sourceHandle"], to_b["target"], to_c["target"]) == ("config", "b", "c")

    def test_problems_of_the_definition_are_returned(self) -> None:
        text = definition("  - {description: d, handler: ecko, peers: [nobody, 5]}", "  - text", "  - {}")
        shown, problems = yaml_to_canvas(text, REGISTRY)
        assert [one["id"] for one in shown["nodes"]] == ["listener-1", "listener-2"]
        assert shown["edges"] == []
        assert {"unknown_handler", "unknown_peer", "wrong_type", "missing_field"} == {one.code for one in problems}

    @pytest.mark.parametrize("text", ["", "[", "- a", "listeners: 5", "listeners: {a: b}"])
    def test_unreadable_definition_gives_an_empty_canvas(self, text: str) -> None:
        shown, problems = yaml_to_canvas(text, REGISTRY)
        assert shown == {"nodes": [], "edges": [], "viewport": {"x": 0, "y": 0, "zoom": 1}}
        assert problems

    def test_node_ids_are_unique(self) -> None:
        text = definition(
            line("a", "[a, a, {to: a, on: error}]"), line("a"), line("a~2"), line("a"), line("''"), line("5")
        )
        shown = canvas_of_yaml(text)
        for members in (shown["nodes"], shown["edges"]):
            ids = [one["id"] for one in members]
            assert len(ids) == len(set(ids))

    def test_thousands_of_equal_names_are_fast(self) -> None:
        assert len(canvas_of_yaml("listeners:\n" + "- {name: a, peers: [a]}\n" * 3000)["nodes"]) == 3000


class TestLayout:
    def test_edges_point_from_left_to_right(self) -> None:
        edges = [(0, 1), (0, 2), (1, 3), (2, 3), (3, 4), (0, 4)]
        places = positions(5, edges)
        assert [x // COLUMN_WIDTH for x, _ in places] == [0, 1, 1, 2, 3]
        assert [y // ROW_HEIGHT for _, y in places] == [0, 0, 1, 0, 0]

    def test_cycle_starts_at_its_first_node(self) -> None:
        assert [x // COLUMN_WIDTH for x, _ in positions(4, [(0, 1), (1, 2), (2, 0), (2, 2), (2, 3)])] == [0, 1, 2, 3]

    def test_positions_are_unique_and_predecessors_are_left(self) -> None:
        chance = random.Random(5)  # noqa: S311
        for _ in range(100):
            count = chance.randrange(1, 30)
            edges = [(chance.randrange(count), chance.randrange(count)) for _ in range(chance.randrange(60))]
            if chance.random() < 0.5:
                edges = [(one, other) for one, other in edges if one < other]
            places = positions(count, edges)
            assert len(set(places)) == count
            assert places == positions(count, edges)
            forward = [(one, other) for one, other in edges if one < other]
            assert all(places[one][0] < places[other][0] for one, other in forward if _is_acyclic(edges))

    def test_layout_of_a_long_chain_terminates(self) -> None:
        assert positions(5000, [(i, i + 1) for i in range(4999)])[-1] == (4999 * COLUMN_WIDTH, 0)


def _is_acyclic(edges: list[tuple[int, int]]) -> bool:
    return all(one < other for one, other in edges)
