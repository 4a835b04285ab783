"""A process whose settings cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.test_settings import ROOT, SECRET

BROKEN = {"PORT": "abc", "DATABASE_URL": f"oracle://x:{SECRET}@y", "ENV": "moon", "MAX_BODY_BYTES": "much"}


def python(*arguments: str, directory: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "error"} | variables
    return subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_settings_that_cannot_be_read_do_not_break_an_import(tmp_path: Path) -> None:
    done = python("-c", "from bloxserver.api.main import app; print(app.title)", directory=tmp_path, **BROKEN)
    assert (done.returncode, done.stdout.strip()) == (0, "BloxServer API"), done.stderr


def test_a_start_with_them_says_which(tmp_path: Path) -> None:
    done = python("-m", "bloxserver.api.main", directory=tmp_path, **BROKEN)
    assert done.returncode != 0
    for name in BROKEN:
        assert f"- {name}: " in done.stderr
    assert SECRET not in done.stderr + done.stdout
    assert list(tmp_path.iterdir()) == [], "no database was made"
