"""What the documents show of the examples is what is there, and what their commands do."""

from __future__ import annotations

import importlib.util
import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from bloxserver.cli import app
from bloxserver.settings import Settings
from tests.examples.documents import Shell, blocks_of, masked, shown
from tests.examples.installation import EXAMPLES, ROOT
from tests.examples.served import BLOXSERVER, free_port, outside_settings, outside_world, served

ORGANISMS = sorted(EXAMPLES.glob("*.yaml"))
EXAMPLES_PAGE = ROOT / "docs/examples.md"
GUIDE = ROOT / "docs/guides/first-flow.md"
LOG_SECONDS = 20


def by_name(path: Path) -> str:
    return path.stem


@pytest.mark.parametrize("example", ORGANISMS, ids=by_name)
class TestExample:
    def test_it_has_neither_errors_nor_warnings(self, example: Path) -> None:
        checked = CliRunner().invoke(app, ["check", "--no-settings", str(example)])
        assert (checked.exit_code, checked.output) == (0, f"{example}: 0 errors, 0 warnings\n")

    def test_it_fits_a_screen(self, example: Path) -> None:
        lines = example.read_text(encoding="utf-8").splitlines()
        assert len(lines) <= 60
        assert [line for line in lines if len(line) > 120] == []

    def test_its_drawing_is_up_to_date(self, example: Path) -> None:
        script = importlib.util.spec_from_file_location("draw_organism", ROOT / "scripts/draw_organism.py")
        assert script is not None
        assert script.loader is not None
        module = importlib.util.module_from_spec(script)
        script.loader.exec_module(module)
        drawn = module.draw(example.read_text(encoding="utf-8"))
        assert (ROOT / f"docs/examples/{example.stem}.svg").read_text(encoding="utf-8") == drawn

    def test_the_page_shows_it_as_it_is(self, example: Path) -> None:
        page = EXAMPLES_PAGE.read_text(encoding="utf-8")
        [section] = re.findall(rf"^## {example.stem}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        assert f"```yaml\n{example.read_text(encoding='utf-8')}```\n" in section
        assert f"](examples/{example.stem}.svg)" in section
        assert f"](#{example.stem})" in page


def test_there_are_no_drawings_of_what_is_gone() -> None:
    assert [path.stem for path in sorted(ROOT.glob("docs/examples/*.svg"))] == [path.stem for path in ORGANISMS]


def test_the_settings_for_the_outside_are_settings() -> None:
    names = set(re.findall(r"^([A-Z_]+)=", (EXAMPLES / "outside.env").read_text(encoding="utf-8"), re.MULTILINE))
    assert names <= {name.upper() for name in Settings.model_fields}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """Where commands are run: there are the examples and the program, as in the root."""
    (tmp_path / "examples").symlink_to(EXAMPLES)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/bloxserver").symlink_to(BLOXSERVER)
    return tmp_path


def assert_printed_as_shown(page: Path, outputs: list[str]) -> None:
    expected = shown(blocks_of(page))
    assert len(outputs) == len(expected), outputs
    for output, text in zip(outputs, expected, strict=True):
        assert masked(output) == masked(text or "")


def test_the_commands_of_the_page_do_what_it_shows(directory: Path) -> None:
    port, smtp_port = free_port(), free_port()
    blocks = blocks_of(EXAMPLES_PAGE)
    with (
        outside_world(directory, port, smtp_port) as log,
        served(directory, outside_settings(port, smtp_port)) as server,
    ):
        here = {"localhost:8000": f"localhost:{server}", "127.0.0.1:9000": f"127.0.0.1:{port}"}
        outputs = Shell(directory, here).outputs(blocks, {"API": f"http://localhost:{server}/api/v1"})
        assert_printed_as_shown(EXAMPLES_PAGE, outputs)
        for block in blocks:
            if block.language == "log":
                assert_logged(log, masked(block.text))


def assert_logged(log: Path, text: str) -> None:
    """A notice goes out when the execution has ended, not before it is said to have."""
    deadline = time.monotonic() + LOG_SECONDS
    while text not in (logged := masked(log.read_text(encoding="utf-8"))):
        assert time.monotonic() < deadline, f"{text}\nis not in\n{logged}"
        time.sleep(0.1)


def test_the_commands_of_the_guide_do_what_it_shows(directory: Path) -> None:
    port, smtp_port = free_port(), free_port()
    with served(directory, outside_settings(port, smtp_port)) as server:
        here = {"localhost:8000": f"localhost:{server}", "127.0.0.1:9000": f"127.0.0.1:{port}"}
        ports = {"OUTSIDE_PORT": str(port), "OUTSIDE_SMTP_PORT": str(smtp_port)}
        outputs = Shell(directory, here).outputs(blocks_of(GUIDE), ports)
    assert_printed_as_shown(GUIDE, outputs)
