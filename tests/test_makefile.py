"""`make .venv`: the choice of Python, and errors for unusable ones. These tests install nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NAMES = ("Makefile", "pyproject.toml", "requirements-dev.lock")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A directory with the files that `make .venv` reads. Its path contains a space."""
    directory = tmp_path / "a checkout"
    directory.mkdir()
    for name in NAMES:
        shutil.copy(ROOT / name, directory)
    return directory


def make(checkout: Path, *arguments: str, python: Path | str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHON", "MAKEFLAGS")}
    given = [] if python is None else [f"PYTHON={python}"]
    return subprocess.run(
        ["make", *arguments, *given, ".venv"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def script(directory: Path, name: str, text: str) -> Path:
    file = directory / name
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return file


def pretend_environment(checkout: Path, python: str) -> None:
    """Create the files that `make .venv` leaves after creating the environment with this Python."""
    identity = "import sys; print(sys.base_prefix, sys.version.split()[0])"
    made_by = subprocess.run([python, "-c", identity], capture_output=True, text=True, check=True).stdout
    (checkout / ".venv").mkdir()
    (checkout / ".venv/.locked").write_text(f"{checkout}\n{made_by}")
    (checkout / ".venv/.installed").touch()


def test_python_that_does_not_start_is_reported(checkout: Path, tmp_path: Path) -> None:
    shim = script(tmp_path, "python3.13", "echo 'shim: no such version' >&2; exit 127")
    for python in (shim, tmp_path / "nowhere/python"):
        refused = make(checkout, python=python)
        assert refused.returncode != 0
        assert f"{python} does not start" in refused.stderr
        assert "3.11 or later" not in refused.stderr
        assert not (checkout / ".venv").exists()


def test_old_python_is_rejected(checkout: Path, tmp_path: Path) -> None:
    old = script(tmp_path, "python3.10", 'case "$2" in *version_info*) exit 1;; esac')
    refused = make(checkout, python=old)
    assert f"{old} is not Python 3.11 or later" in refused.stderr


def test_environment_is_recreated_for_another_python_or_directory(checkout: Path, tmp_path: Path) -> None:
    another = script(tmp_path, "another", "echo /elsewhere 3.13.1")
    pretend_environment(checkout, sys.executable)
    creates = {
        "none": "creating .venv" in make(checkout, "-n").stdout,
        "the same": "creating .venv" in make(checkout, "-n", python=sys.executable).stdout,
        "another": "creating .venv" in make(checkout, "-n", python=another).stdout,
    }
    assert creates == {"none": False, "the same": False, "another": True}
    copy = checkout.rename(tmp_path / "copy")
    assert "creating .venv" in make(copy, "-n").stdout


def test_environment_is_kept_if_the_named_python_does_not_start(checkout: Path, tmp_path: Path) -> None:
    pretend_environment(checkout, sys.executable)
    refused = make(checkout, python=script(tmp_path, "broken", "exit 127"))
    assert "broken does not start" in refused.stderr
    assert (checkout / ".venv/.locked").exists()
