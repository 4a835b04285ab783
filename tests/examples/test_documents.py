"""The examples are valid, and the documents show them unchanged."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bloxserver.cli import app
from bloxserver.settings import Settings
from tests.examples.installation import EXAMPLES, ROOT

ORGANISMS = sorted(EXAMPLES.glob("*.yaml"))
EXAMPLES_PAGE = ROOT / "docs/examples.md"


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("example", ORGANISMS, ids=by_name)
class TestExample:
    def test_example_has_no_errors_or_warnings(self, example: Path) -> None:
        checked = CliRunner().invoke(app, ["check", "--no-settings", str(example)])
        assert (checked.exit_code, checked.output) == (0, f"{example}: 0 errors, 0 warnings\n")

    def test_example_fits_on_one_screen(self, example: Path) -> None:
        lines = example.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60
        assert [line for line in lines if len(line) > 120] == []

    def test_example_drawing_is_up_to_date(self, example: Path) -> None:
        script = importlib.util.spec_from_file_location("draw_organism", ROOT / "scripts/draw_organism.py")
        assert script is not None
        assert script.loader is not None
        module = importlib.util.module_from_spec(script)
        script.loader.exec_module(module)
        drawn = module.draw(example.read_text(encoding="utf-8"))
        assert (ROOT / f"docs/examples/{example.stem}.svg").read_text(encoding="utf-8") == drawn

    def test_page_contains_the_example(self, example: Path) -> None:
        page = EXAMPLES_PAGE.read_text(encoding="utf-8")
        [section] = re.findall(rf"^## {example.stem}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert f"```yaml\n{example.read_text(encoding='utf-8')}```\n" in section
        assert f"](examples/{example.stem}.svg)" in section
        assert f"](#{example.stem})" in page


def test_every_drawing_has_an_example() -> None:
    assert [path.stem for path in sorted(ROOT.glob("docs/examples/*.svg"))] == [path.stem for path in ORGANISMS]


def test_outside_env_contains_valid_settings() -> None:
    names = set(re.findall(r"^([A-Z_]+)=", (EXAMPLES / "outside.env").read_text(encoding="utf-8"), re.MULTILINE))
    assert names <= {name.upper() for name in Settings.model_fields}
