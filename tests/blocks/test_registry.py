"""The registry, blocks of installed packages, and the properties of every built-in block."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder
from pydantic import ValidationError

from bloxserver.blocks import echo
from bloxserver.blocks.base import AnyBlock, BlockConfig
from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.errors import SettingsError

PLUGIN = Path(__file__).parents[1] / "plugin"
BUILT_IN = get_registry().blocks


def test_registry_contains_every_built_in_block() -> None:
    names = get_registry().names
    assert {"delay", "echo", "handlers.hello.handle_greeting", "http.request", "transform"} <= set(names)
    assert names == sorted(names)
    assert [block.name for block in get_registry().blocks] == names


def test_name_and_aliases_find_the_same_block() -> None:
    registry = get_registry()
    for block in registry.blocks:
        plain = [name for name in (block.name, *block.aliases) if not name.endswith("*")]
        assert all(registry.find(name) is block for name in plain)
    assert registry.find("xml_pipeline.tools.fetch.handle_fetch") is registry.find("http.request")


def test_wildcard_alias_matches_a_prefix() -> None:
    near, far = replace(echo.block, name="near", aliases=("a.b.handle_*",)), replace(echo.block, name="far")
    far = replace(far, aliases=("a.*", "a.b.handle_me"))
    registry = BlockRegistry([near, far])
    found = {
        name: block.name if (block := registry.find(name)) else None
        for name in ("a.b.handle_it", "a.b.handle_", "a.b.handle_*", "a.b", "a.c", "a", "A.c", "*", "a.b.handle_me")
    }
    assert found == {
        "a.b.handle_it": "near",
        "a.b.handle_": "near",
        "a.b.handle_*": "near",
        "a.b": "far",
        "a.c": "far",
        "a": None,
        "A.c": None,
        "*": None,
        "a.b.handle_me": "far",
    }
    assert registry.nearest("a.b.handel_me") == "a.b.handle_me"


@pytest.mark.parametrize("aliases", [("other",), ("mine", "mine"), ("other.*",), ("new",)])
def test_duplicate_block_names_are_rejected(aliases: tuple[str, ...]) -> None:
    registry = BlockRegistry([replace(echo.block, name="other", aliases=("other.*", "new"))])
    with pytest.raises(ValueError, match="two blocks have the name"):
        registry.add(replace(echo.block, name="mine", aliases=aliases))
    assert registry.names == ["other"]
    assert registry.find("mine") is None


@pytest.mark.parametrize(
    ("name", "nearest"), [("ecko", "echo"), ("http.requests", "http.request"), ("os.system", None), ("", None)]
)
def test_unknown_name_has_a_suggestion(name: str, nearest: str | None) -> None:
    assert get_registry().find(name) is None
    assert get_registry().nearest(name) == nearest


class TestPlugins:
    @pytest.fixture(autouse=True)
    def installation(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
        """A directory for packages, from which a separate registry is loaded."""
        known = set(sys.modules)
        monkeypatch.syspath_prepend(tmp_path)
        get_registry.cache_clear()
        yield tmp_path
        get_registry.cache_clear()
        for name in set(sys.modules) - known:
            if getattr(sys.modules[name], "__file__", "").startswith(str(tmp_path)):
                del sys.modules[name]

    @staticmethod
    def install(directory: Path, value: str, source: str) -> None:
        """Create the files of an installed package with one module and one entry point."""
        (directory / "broken_blocks.py").write_text(source)
        information = directory / "broken-1.0.dist-info"
        information.mkdir()
        (information / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
        (information / "entry_points.txt").write_text(f"[bloxserver.blocks]\nmine = {value}\n")

    def test_installed_package_adds_its_blocks(self, installation: Path) -> None:
        [wheel] = WheelBuilder(str(PLUGIN)).build(directory=str(installation / "built"), versions=["standard"])
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(installation)
        registry = get_registry()
        assert registry.names == sorted([*(block.name for block in BUILT_IN), "acme.postage"])
        postage = registry.find("acme.postage")
        assert postage is not None
        assert registry.find("acme.handle_anything") is postage
        assert postage.config.model_validate({}).model_dump() == {"per_kilogram": 2}

    @pytest.mark.parametrize(
        ("value", "source", "reason"),
        [
            ("broken_blocks:block", "import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
            ("broken_blocks:block", "raise RuntimeError('two\\nlines')", "RuntimeError: two lines"),
            ("broken_blocks:nothing", "", "AttributeError: "),
            ("no_such_module", "", "ModuleNotFoundError: "),
            ("broken_blocks", "", "a value of type module is not a Block"),
            ("broken_blocks:block", "block = {}", "a value of type dict is not a Block"),
            ("broken_blocks:block", "block = [echo, 1]", "a value of type int is not a Block"),
            ("broken_blocks:block", "block = echo", "two blocks have the name echo"),
            ("broken_blocks:block", "block = replace(echo, name='mine', aliases=('delay',))", "have the name delay"),
            ("broken_blocks:block", "block = replace(echo, name=' ')", "has an invalid name"),
            ("broken_blocks:block", "block = replace(echo, name='a', description=None)", "must have strings"),
            (
                "broken_blocks:block",
                "block = replace(echo, name='a', payload=dict)",
                "must have a Pydantic model as payload",
            ),
            ("broken_blocks:block", "block = replace(echo, name='a', config=echo.payload)", "must have a BlockConfig"),
            ("broken_blocks:block", "block = replace(echo, name='a', handler=print)", "must have an async function"),
            ("broken_blocks:block", "block = replace(echo, name='a', templates=frozenset({'url'}))", "in 'url'"),
            ("broken_blocks:block", "block = replace(echo, name='a', example={'config': echo})", "as JSON"),
        ],
    )
    def test_invalid_plugin_is_rejected_with_its_entry_point(
        self, installation: Path, value: str, source: str, reason: str
    ) -> None:
        prelude = "from dataclasses import replace\nfrom bloxserver.blocks.echo import block as echo\n"
        self.install(installation, value, prelude + source)
        for _ in range(2):
            with pytest.raises(SettingsError) as refused:
                get_registry()
            [problem] = refused.value.problems
            assert problem.startswith(f'the block plugin "mine = {value}" of broken cannot be used: ')
            assert reason in problem
            assert "\n" not in problem

    @pytest.mark.parametrize("command", [("serve", "--port", "1"), ("check", __file__)])
    def test_no_process_starts_with_an_invalid_plugin(self, installation: Path, command: tuple[str, ...]) -> None:
        self.install(installation, "broken_blocks:block", "raise RuntimeError('broken')")
        environment = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(installation),
            "DATABASE_URL": "sqlite+aiosqlite:///:memory:",
        }
        refused = subprocess.run(
            [sys.executable, "-m", "bloxserver", *command],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert refused.returncode == 1
        assert refused.stderr.startswith('bloxserver: cannot start:\n  - the block plugin "mine = broken_blocks:block"')
        assert len(refused.stderr.splitlines()) == 2

    def test_all_invalid_plugins_are_reported_at_once(self, installation: Path) -> None:
        self.install(installation, "broken_blocks:block\nother = no_such_module", "block = 1")
        with pytest.raises(SettingsError, match=r"(?s)mine = .*other = "):
            get_registry()


@pytest.mark.parametrize("block", BUILT_IN, ids=lambda block: block.name)
class TestEveryBlock:
    def test_block_has_name_and_description(self, block: AnyBlock) -> None:
        assert block.description.endswith(".")
        assert set(block.example) == {"config", "payload"}
        assert issubclass(block.config, BlockConfig)
        assert block.templates <= block.config.model_json_schema().get("properties", {}).keys()

    def test_example_is_valid(self, block: AnyBlock) -> None:
        block.config.model_validate(block.example["config"])
        block.payload.model_validate(block.example["payload"])

    def test_unknown_settings_are_rejected(self, block: AnyBlock) -> None:
        with pytest.raises(ValidationError, match="Extra inputs"):
            block.config.model_validate(block.example["config"] | {"unknown_setting": 1})

    def test_block_has_payload_and_config_schemas(self, block: AnyBlock) -> None:
        assert isinstance(block.payload.model_json_schema(), dict)
        assert block.config.model_json_schema()["additionalProperties"] is False
