"""Conversion of definitions to canvases and back."""

from __future__ import annotations

import pytest

from bloxserver.organism.canvas_to_yaml import canvas_to_yaml, changed_listeners
from bloxserver.organism.parse import parse
from tests.organism.canvases import REGISTRY, VALID, canvas_of_yaml, meaning


@pytest.mark.parametrize("text", VALID.values(), ids=VALID.keys())
class TestRoundTrip:
    def test_unchanged_canvas_returns_the_same_text(self, text: str) -> None:
        parse(text, REGISTRY)
        derived, problems = canvas_to_yaml(canvas_of_yaml(text), text, REGISTRY)
        assert derived.strip() == text.strip()
        assert [problem for problem in problems if problem.severity == "error"] == []
        assert changed_listeners(canvas_of_yaml(text), text, REGISTRY) == []

    def test_meaning_is_kept_without_an_existing_definition(self, text: str) -> None:
        """Without the existing YAML, only the parts that a canvas cannot hold are lost."""
        derived, problems = canvas_to_yaml(canvas_of_yaml(text), "[", REGISTRY)
        assert "definition_unreadable" in [problem.code for problem in problems]
        assert meaning(derived) == meaning(text)
        assert canvas_of_yaml(derived) == {**canvas_of_yaml(text), "nodes": canvas_of_yaml(derived)["nodes"]}
        again, _ = canvas_to_yaml(canvas_of_yaml(derived), derived, REGISTRY)
        assert again == derived

    def test_meaning_is_kept_if_every_listener_is_rewritten(self, text: str) -> None:
        changed = canvas_of_yaml(text)
        for one in changed["nodes"]:
            one["data"]["description"] = f"other: {one['data']['description']}"
        derived, _ = canvas_to_yaml(changed, text, REGISTRY)
        organism, before = parse(derived, REGISTRY), parse(text, REGISTRY)
        assert (organism.name, organism.execution, organism.on_failure) == (
            before.name, before.execution, before.on_failure,
        )  # fmt: skip
        assert canvas_of_yaml(derived) == changed
        assert len(changed_listeners(changed, text, REGISTRY)) == len(before.listeners)
        restored = canvas_of_yaml(derived)
        for one in restored["nodes"]:
            one["data"]["description"] = one["data"]["description"].removeprefix("other: ")
        assert meaning(canvas_to_yaml(restored, derived, REGISTRY)[0]) == meaning(text)
