"""The registry, and what is true of every block in it."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from bloxserver.blocks import echo
from bloxserver.blocks.base import AnyBlock, BlockConfig
from bloxserver.blocks.registry import BlockRegistry, get_registry


def registered() -> list[AnyBlock]:
    return [block for name in get_registry().names if (block := get_registry().find(name)) is not None]


def test_names_and_aliases_lead_to_the_same_block() -> None:
    registry = get_registry()
    assert {"delay", "echo", "handlers.hello.handle_greeting", "http.request", "transform"} <= set(registry.names)
    for block in registered():
        assert all(registry.find(name) is block for name in (block.name, *block.aliases))
    assert registry.find("xml_pipeline.tools.fetch.handle_fetch") is registry.find("http.request")


def test_two_blocks_cannot_have_one_name() -> None:
    with pytest.raises(ValueError, match="two blocks are called echo"):
        BlockRegistry([echo.block, echo.block])


@pytest.mark.parametrize(
    ("name", "nearest"), [("ecko", "echo"), ("http.requests", "http.request"), ("os.system", None), ("", None)]
)
def test_an_unknown_name_is_not_found_but_may_have_a_neighbour(name: str, nearest: str | None) -> None:
    assert get_registry().find(name) is None
    assert get_registry().nearest(name) == nearest


@pytest.mark.parametrize("block", registered(), ids=lambda block: block.name)
class TestEveryBlock:
    def test_describes_itself(self, block: AnyBlock) -> None:
        assert block.description.endswith(".")
        assert set(block.example) == {"config", "payload"}
        assert issubclass(block.config, BlockConfig)

    def test_accepts_its_own_example(self, block: AnyBlock) -> None:
        block.config.model_validate(block.example["config"])
        block.payload.model_validate(block.example["payload"])

    def test_refuses_settings_that_it_does_not_know(self, block: AnyBlock) -> None:
        with pytest.raises(ValidationError, match="Extra inputs"):
            block.config.model_validate(block.example["config"] | {"unknown_setting": 1})

    def test_has_schemas_for_agents_and_people(self, block: AnyBlock) -> None:
        assert isinstance(block.payload.model_json_schema(), dict)
        assert block.config.model_json_schema()["additionalProperties"] is False
