"""The commands that the documents show print what the documents show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.examples.documents import Shell, blocks_of, masked, shown
from tests.examples.installation import EXAMPLES, ROOT
from tests.examples.served import BLOXSERVER, free_port, outside_settings, outside_world, served
from tests.examples.test_documents import EXAMPLES_PAGE

GUIDE = ROOT / "docs/guides/first-flow.md"
LOG_SECONDS = 20


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A working directory with the examples and the program, like the root of the repository."""
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
    """Wait for the log entry: a notification is sent after the end of its execution is visible."""
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
