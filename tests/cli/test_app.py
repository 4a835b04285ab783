"""The options that all commands share."""

from __future__ import annotations

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from bloxserver import __version__
from bloxserver.cli import app
from bloxserver.cli.startup import print_lines

COMMANDS = (
    "serve",
    "worker",
    "migrate",
    "status",
    "prune",
    "rotate-keys",
    "demo",
    "check",
    "users",
    "api-keys",
    "audit",
    "billing",
    "emails",
)
SLOW_IMPORTS = {"alembic", "asyncpg", "fastapi", "httpx", "httpx2", "openai", "pydantic_ai", "uvicorn"}


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)])
def test_help_describes_every_command(command: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_help_lists_the_commands_in_order() -> None:
    output = CliRunner().invoke(app, ["--help"]).output
    positions = [output.index(f"│ {name} ") for name in COMMANDS]
    assert positions == sorted(positions)


def test_escapes_in_names_of_users_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    print_lines("ada\x1b[2J\nbob\r")
    assert capsys.readouterr().out == "ada\N{REPLACEMENT CHARACTER}[2J\nbob\N{REPLACEMENT CHARACTER}\n"


def test_version_option_prints_the_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).output == f"{__version__}\n"


def test_import_of_the_app_loads_no_slow_modules() -> None:
    """The start-up time of `bloxserver --help` is the time of this import."""
    code = "import sys, bloxserver.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "typer" in modules
    assert SLOW_IMPORTS.isdisjoint(modules), SLOW_IMPORTS.intersection(modules)
