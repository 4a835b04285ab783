"""From a definition to a canvas and back: nothing is lost."""

from __future__ import annotations

import pytest

from bloxserver.organism.canvas_to_yaml import canvas_to_yaml, changed_listeners
from bloxserver.organism.parse import parse
from tests.organism.canvases import REGISTRY, VALID, drawn, meaning


@pytest.mark.parametrize("text", VALID.values(), ids=VALID.keys())
class TestRoundTrip:
    def test_unchanged_canvas_returns_the_same_text(self, text: str) -> None:
        parse(text, REGISTRY)
        derived, problems = canvas_to_yaml(drawn(text), text, REGISTRY)
        assert derived.strip() == text.strip()
        assert [problem for problem in problems if problem.severity == "error"] == []
        assert changed_listeners(drawn(text), text, REGISTRY) == []

    def test_meaning_is_kept_without_an_existing_definition(self, text: str) -> None:
        """As it is where the YAML was lost: but for what a canvas does not hold, nothing is missing."""
        derived, problems = canvas_to_yaml(drawn(text), "[", REGISTRY)
        assert "definition_unreadable" in [problem.code for problem in problems]
        assert meaning(derived) == meaning(text)
        assert drawn(derived) == {**drawn(text), "nodes": drawn(derived)["nodes"]}
        again, _ = canvas_to_yaml(drawn(derived), derived, REGISTRY)
        assert again == derived

    def test_meaning_is_kept_if_every_listener_is_rewritten(self, text: str) -> None:
        changed = drawn(text)
        for one in changed["nodes"]:
            one["data"]["description"] = f"other: {one['data']['description']}"
        derived, _ = canvas_to_yaml(changed, text, REGISTRY)
        organism, before = parse(derived, REGISTRY), parse(text, REGISTRY)
        assert (organism.name, organism.execution, organism.on_failure) == (
            before.name, before.execution, before.on_failure,
        )  # fmt: skip
        assert drawn(derived) == changed
        assert len(changed_listeners(changed, text, REGISTRY)) == len(before.listeners)
        restored = drawn(derived)
        for one in restored["nodes"]:
            one["data"]["description"] = one["data"]["description"].removeprefix("other: ")
        assert meaning(canvas_to_yaml(restored, derived, REGISTRY)[0]) == meaning(text)
