"""Validation of the placeholders in a definition."""

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check, parse
from bloxserver.organism.requirements import SecretRequirement


def listeners(line: str) -> str:
    """A definition with one listener, which is in line 3."""
    return f"organism: {{name: x}}\nlisteners:\n{line}"


class TestTemplates:
    def test_secrets_are_allowed_only_in_templated_members(self) -> None:
        request = (
            "  - {name: a, description: d, handler: http.request, config: {url: 'https://x.example/{{ secrets.A }}'}}"
        )
        organism = parse(listeners(request), get_registry())
        assert organism.listener("a").templates == {"url"}
        assert organism.listener("a").secrets == {"A"}
        [secret, *_] = organism.requirements
        assert isinstance(secret, SecretRequirement)
        assert (secret.name, secret.place) == ("A", (3, 87))
        transform = "  - {name: a, description: d, handler: transform, config: {output: {x: '{{ secrets.A }}'}}}"
        assert [problem.code for problem in check(listeners(transform), get_registry())] == ["secret_not_allowed"]

    def test_unknown_setting_has_a_suggestion(self) -> None:
        request = "  - {name: a, description: d, handler: http.request, config: {metod: GET}}"
        assert [problem.hint for problem in check(listeners(request), get_registry())] == ['did you mean "method"?']

    @pytest.mark.parametrize("text", ["{{ secrets }}", "{{ secrets.A.b }}", "{{ nope.x }}", "{{ payload.x"])
    def test_invalid_placeholders_are_reported(self, text: str) -> None:
        request = f"  - {{name: a, description: d, handler: http.request, config: {{url: 'https://x.example/{text}'}}}}"
        assert [problem.code for problem in check(listeners(request), get_registry())] == ["invalid_template"]
