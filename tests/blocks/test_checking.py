"""Whether configs are validated completely."""

from __future__ import annotations

import pytest

from bloxserver.blocks.checking import checking, is_checking
from bloxserver.blocks.python import PythonConfig
from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check, parse

DEFINITION = """
organism: {name: test}
listeners:
  - {name: snippet, description: d, handler: python, config: {code: "import requests"}}
"""


def test_configs_are_validated_completely_only_while_they_are_checked() -> None:
    assert not is_checking()
    with checking():
        assert is_checking()
        with pytest.raises(ValueError, match="requests"):
            PythonConfig(code="import requests")
    assert not is_checking()
    assert PythonConfig(code="import requests").code == "import requests"


def test_checking_ends_with_an_error() -> None:
    with pytest.raises(LookupError), checking():
        raise LookupError
    assert not is_checking()


def test_definition_is_checked_completely_for_its_author_and_not_for_an_execution() -> None:
    assert [problem.code for problem in check(DEFINITION, get_registry())] == ["invalid_config"]
    organism = parse(DEFINITION, get_registry())
    assert [listener.name for listener in organism.listeners] == ["snippet"]
