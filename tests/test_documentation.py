"""The documents match the program, and their examples are valid."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bloxserver.api.main import app
from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import AnyBlock
from bloxserver.blocks.calculate import CALCULATIONS
from bloxserver.blocks.cel.functions import FUNCTIONS
from bloxserver.blocks.expressions import compile_expression
from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.engine.run.facts import TRIGGER_MEMBERS
from bloxserver.organism import listeners, parse, peers, sections
from bloxserver.organism.parse import check
from bloxserver.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "bloxserver"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
GUIDE = ROOT / "docs/guides/writing-a-block.md"
FIELDS = {name.upper(): field for name, field in Settings.model_fields.items()}


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def shown_default(name: str) -> str:
    default = FIELDS[name].default
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    return "" if default is None else str(default)


def shown_in(document: Path, language: str) -> list[str]:
    """Return the code blocks of a document in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def words_of_code(text: str) -> set[str]:
    """Return the words in backticks."""
    return {word for span in re.findall(r"`([^`\n]+)`", text) for word in re.findall(r"[\w.*]+", span)}


def anchors_of(document: Path) -> set[str]:
    """Return the anchors of a document, as GitHub derives them from headings."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def codes_in(sources: Iterable[Path], makers: set[str]) -> set[str]:
    """Return the codes that are passed to these functions or assigned to a variable `code`."""
    found: set[str] = set()
    for source in sources:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            given: list[ast.expr] = []
            if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in makers:
                given = [each for each in node.args if isinstance(each, ast.Constant) and isinstance(each.value, str)]
            elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
                names = [ast.unparse(each) for each in getattr(node.targets[0], "elts", [])]
                given = [value for name, value in zip(names, node.value.elts, strict=False) if name == "code"]
            codes = [each.value for each in given if isinstance(each, ast.Constant) and each.value not in CANVAS_PARTS]
            found |= {str(code) for code in codes[:1] if re.fullmatch("[a-z]+(_[a-z]+)*", str(code))}
    return found


CANVAS_PARTS = ("nodes", "edges")


class TestSettings:
    def test_example_has_the_default_of_every_setting(self) -> None:
        shown = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", read(".env.example"), re.MULTILINE))
        assert shown == {name: shown_default(name) for name in FIELDS}

    def test_example_describes_every_setting(self) -> None:
        example = read(".env.example")
        missing = [name for name, field in FIELDS.items() if f"# {field.description}\n# {name}=" not in example]
        assert missing == []

    def test_unmodified_example_changes_no_setting(self, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in FIELDS:
            monkeypatch.delenv(name, raising=False)
        copied = Settings(_env_file=ROOT / ".env.example")
        assert copied == Settings()
        assert copied.model_fields_set == set()

    def test_uncommented_example_starts_in_development(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        for name in FIELDS:
            monkeypatch.delenv(name, raising=False)
        uncommented = tmp_path / ".env"
        uncommented.write_text(re.sub(r"^# ([A-Z_]+=)", r"\1", read(".env.example"), flags=re.MULTILINE))
        settings = Settings(_env_file=uncommented)
        settings.check_startup()
        assert settings == Settings()

    def test_configuration_page_has_the_default_of_every_setting(self) -> None:
        rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| (.*?) \|$", read("docs/configuration.md"), re.MULTILINE)
        expected = {
            (name, f"`{shown_default(name)}`" if shown_default(name) else "none", field.description)
            for name, field in FIELDS.items()
        }
        assert set(rows) == expected

    def test_compose_and_image_set_only_settings(self) -> None:
        compose = yaml.safe_load(read("docker-compose.yml"))
        for service in ("migrate", "api", "worker"):
            assert set(compose["services"][service]["environment"]) <= set(FIELDS)


class TestDocuments:
    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
    def test_relative_links_have_existing_targets(self, document: Path) -> None:
        targets = re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
        broken = []
        for target in targets:
            path, _, anchor = target.partition("#")
            aim = document.parent / path if path else document
            if re.match(r"[a-z]+:", target):
                continue
            if not aim.exists() or (anchor and aim.suffix == ".md" and anchor not in anchors_of(aim)):
                broken.append(target)
        assert broken == []

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
    def test_documented_make_targets_exist(self, document: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", read("Makefile"), re.MULTILINE)) | {".venv"}
        text = document.read_text(encoding="utf-8")
        named = re.findall(r"^make ([a-z.-]+)|`make (?:[A-Z]+=\S+ )*([a-z.-]+)`", text, re.MULTILINE)
        assert {first or second for first, second in named} <= targets

    def test_every_document_is_linked_from_the_readme(self) -> None:
        reached: set[Path] = set()
        waiting = [(ROOT / "README.md").resolve()]
        while waiting:
            document = waiting.pop()
            reached.add(document)
            for target in re.findall(r"\]\(([^):#\s]+)[^)]*\)", document.read_text(encoding="utf-8")):
                path = (document.parent / target).resolve()
                path = path / "README.md" if path.is_dir() else path
                if path.suffix == ".md" and path not in reached and path.exists():
                    waiting.append(path)
        assert {document.resolve() for document in DOCUMENTS} - reached == set()

    @pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
    def test_camel_case_names_are_members_of_the_api_or_the_manifests(self, document: Path) -> None:
        manifests = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("deploy/kubernetes/*.yaml"))
        schemas = app.openapi()["components"]["schemas"].values()
        members = {name for schema in schemas for name in schema.get("properties", {})}
        known = members | set(FUNCTIONS) | {*TRIGGER_MEMBERS, "firedAt"} | set(re.findall(r"(\w+):", manifests))
        words = words_of_code(document.read_text(encoding="utf-8"))
        named = {word for word in words if re.fullmatch("[a-z]+([A-Z][a-z]+)+", word)}
        assert named - known == set()

    def test_every_decision_is_listed(self) -> None:
        pages = sorted(path.name for path in ROOT.glob("docs/decisions/[0-9]*.md"))
        assert re.findall(r"\(([0-9][^)]+)\)", read("docs/decisions/README.md")) == pages


class TestOrganisms:
    @pytest.mark.parametrize(
        "document",
        [document for document in DOCUMENTS if shown_in(document, "yaml")],
        ids=lambda path: str(path.relative_to(ROOT)),
    )
    def test_documented_organisms_are_valid(self, document: Path) -> None:
        registry = BlockRegistry([*get_registry().blocks, *([self.block_of_guide()] if document == GUIDE else [])])
        for text in shown_in(document, "yaml"):
            value = yaml.safe_load(text)
            if isinstance(value, dict) and "organism" in value:
                assert check(text, registry) == [], text
            elif isinstance(value, list) and all(isinstance(item, dict) and "description" in item for item in value):
                # An excerpt with some listeners of an organism, whose peers may be missing.
                problems = check(f"organism: {{name: shown}}\nlisteners:\n{text}", registry)
                assert [problem for problem in problems if problem.code != "unknown_peer"] == [], text

    @staticmethod
    def block_of_guide() -> AnyBlock:
        module: dict[str, Any] = {"__name__": "acme_blocks"}
        exec(compile(shown_in(GUIDE, "python")[0], "acme_blocks.py", "exec", dont_inherit=True), module)  # noqa: S102
        block: AnyBlock = module["block"]
        return block

    def test_reference_names_every_key(self) -> None:
        keys = {
            *(*parse.TOP_KEYS, *parse.ORGANISM_KEYS, *parse.EXECUTION_KEYS, *parse.ON_FAILURE_KEYS),
            *(*listeners.LISTENER_KEYS, *peers.PEER_KEYS, *sections.UNUSED_KEYS),
        }
        assert keys - words_of_code(read("docs/organisms.md")) == set()

    def test_reference_names_every_problem_code(self) -> None:
        sources = [
            *PACKAGE.glob("organism/*.py"),
            *(PACKAGE / name for name in ("queries/canvas.py", "services/preflight.py", "services/validation.py")),
        ]
        makers = {
            "Problem",
            "error",
            "warning",
            "_error",
            "_warn",
            "_warning",
            "_report",
            "_refusal",
            "_failed",
            "_problem",
        }
        codes = codes_in(sources, makers)
        assert {
            "yaml_syntax",
            "unknown_peer",
            "unused_key",
            "missing_secret",
            "dangling_edge",
            "address_refused",
        } <= codes
        assert codes - words_of_code(read("docs/organisms.md")) == set()

    def test_reference_names_every_expression_function(self) -> None:
        assert set(FUNCTIONS) - words_of_code(read("docs/organisms.md")) == set()
        assert set(CALCULATIONS) - set(FUNCTIONS) - words_of_code(read("docs/blocks.md")) == set()

    def test_documented_expressions_compile(self) -> None:
        table = read("docs/organisms.md").partition("\n### Operators and functions\n")[2].partition("\n| for |")[0]
        shown = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
        assert len(shown) >= 5
        for text in shown:
            compile_expression(text)


class TestBlocks:
    SECTIONS = dict(re.findall(r"^## `(.+?)`$\n(.*?)(?=^## |\Z)", read("docs/blocks.md"), re.MULTILINE | re.DOTALL))

    def test_every_block_has_a_section(self) -> None:
        assert sorted(self.SECTIONS) == get_registry().names

    @pytest.mark.parametrize("block", [*get_registry().blocks, agent], ids=lambda block: block.name)
    def test_every_config_member_is_documented(self, block: AnyBlock) -> None:
        section = read("docs/agents.md") if block is agent else self.SECTIONS[block.name]
        words = {word.removeprefix("config.") for word in words_of_code(section)}
        schema = block.config.model_json_schema()
        members = {name for each in [schema, *schema.get("$defs", {}).values()] for name in each.get("properties", {})}
        assert members - words == set()

    @pytest.mark.parametrize("block", get_registry().blocks, ids=lambda block: block.name)
    def test_aliases_and_placeholders_are_documented(self, block: AnyBlock) -> None:
        section = self.SECTIONS[block.name]
        words = words_of_code(section)
        names = [alias.rstrip("*") for alias in (*block.aliases, *block.payload_aliases)]
        assert [name for name in names if name not in words] == []
        marked = {
            name
            for row in re.findall(r"^\| (`.+`) \| [^|]*\| yes \|", section, re.MULTILINE)
            for name in words_of_code(row)
        }
        assert marked == block.templates

    def test_every_error_code_is_documented(self) -> None:
        sources = [
            *PACKAGE.glob("blocks/**/*.py"),
            *PACKAGE.glob("clients/*.py"),
            *(PACKAGE / name for name in ("engine/run/attempt.py", "engine/run/context.py", "services/key_values.py")),
        ]
        makers = {
            "BlockError",
            "OutgoingRequestError",
            "MailError",
            "ModelError",
            "BadRequest",
            "Forbidden",
            "_refusal",
        }
        codes = codes_in(sources, makers)
        assert {"http_error_status", "timeout", "llm_refused", "mail_refused", "key_value_limit"} <= codes
        told = words_of_code(read("docs/blocks.md") + read("docs/agents.md"))
        # Only the model receives the first two.
        assert codes - {"unknown_tool", "invalid_arguments"} - told == set()
