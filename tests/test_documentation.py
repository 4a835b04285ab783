"""The documents name what is there."""

import re
from pathlib import Path

import pytest
import yaml

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check
from bloxserver.settings import Settings

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
FIELDS = {name.upper(): field for name, field in Settings.model_fields.items() if name != "problems"}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def shown_default(name: str) -> str:
    default = FIELDS[name].default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    return "" if default is None else str(default)


def blocks_of(document: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


class TestSettings:
    def test_the_example_has_every_setting_at_its_default(self) -> None:
        shown = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE))
        assert shown == {name: shown_default(name) for name in FIELDS}

    def test_the_example_describes_every_setting(self) -> None:
        example = read(".env.example")
        missing = [name for name, field in FIELDS.items() if f"# {field.description}\n# {name}=" not in example]
        assert missing == []

    def test_the_example_copied_as_it_is_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in FIELDS:
            monkeypatch.delenv(name, raising=False)
        copied = Settings(_env_file=ROOT / ".env.example")
        assert copied == Settings()
        assert copied.model_fields_set == set()

    def test_the_example_with_everything_uncommented_starts_in_development(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in FIELDS:
            monkeypatch.delenv(name, raising=False)
        uncommented = tmp_path / ".env"
        uncommented.write_text(re.sub(r"^# ([A-Z_]+=)", r"\1", read(".env.example"), flags=re.MULTILINE))
        settings = Settings(_env_file=uncommented)
        settings.check_startup()
        assert settings == Settings()

    def test_the_configuration_page_has_every_setting_at_its_default(self) -> None:
        rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", read("docs/configuration.md"), re.MULTILINE)
        expected = {
            (name, f"`{shown_default(name)}`" if shown_default(name) else "none", field.description)
            for name, field in FIELDS.items()
        }
        assert set(rows) == expected

    def test_compose_and_image_set_nothing_that_is_no_setting(self) -> None:
        compose = yaml.safe_load(read("docker-compose.yml"))
        for service in ("migrate", "api", "worker"):
            assert set(compose["services"][service]["environment"]) <= set(FIELDS)


class TestDocuments:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
    def test_relative_links_lead_somewhere(self, document: Path) -> None:
        targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
        paths = [target.partition("#")[0] for target in targets if not re.match(r"[a-z]+:|#", target)]
        assert [path for path in paths if not (document.parent / path).exists()] == []

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
    def test_make_has_every_target_that_is_named(self, document: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)) | {".venv"}
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"^make ([a-z.-]+)|`make (?:[A-Z]+=\S+ )*([a-z.-]+)`", text, re.MULTILINE)
        assert {first or second for first, second in named} <= targets

    @pytest.mark.parametrize("name", ["README.md", "docs/organisms.md"])
    def test_organisms_that_are_shown_have_no_problems(self, name: str) -> None:
        shown = blocks_of(ROOT / name, "yaml")
        assert shown
        assert [check(text, get_registry()) for text in shown] == [[]] * len(shown)

    def test_every_block_is_described(self) -> None:
        described = re.findall(r"^### `(.+)`$", read("docs/organisms.md"), re.MULTILINE)
        assert sorted(described) == get_registry().names

    def test_every_decision_is_listed(self) -> None:
        pages = sorted(path.name for path in ROOT.glob("docs/decisions/[0-9]*.md"))
        assert re.findall(r"\(([0-9][^)]+)\)", read("docs/decisions/README.md")) == pages
