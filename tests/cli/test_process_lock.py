"""The lock that allows one server per SQLite file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bloxserver.cli.process_lock import DatabaseInUse, lock_database

HOLD = "import sys, time; from bloxserver.cli.process_lock import lock_database as lock; "
HOLD += "held = lock(sys.argv[1]); print('held', flush=True); time.sleep(60)"


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Start a process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_lock_is_exclusive_under_every_path_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link.db").symlink_to("a.db")
    with holder(f"sqlite+aiosqlite:///{tmp_path}/a.db") as process:
        for name in ("a.db", "./a.db", f"{tmp_path}/a.db", "link.db"):
            with pytest.raises(DatabaseInUse, match=f"^{process.pid}$"):
                lock_database(f"sqlite+aiosqlite:///{name}")
        other = lock_database("sqlite+aiosqlite:///b.db")
        assert other is not None
        other.close()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_lock_is_released_when_its_process_ends(tmp_path: Path, number: signal.Signals) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/a.db"
    with holder(url) as process:
        process.send_signal(number)
        process.wait(10)
        lock = lock_database(url)
        assert lock is not None
        assert (tmp_path / "a.db.lock").read_text() == f"{os.getpid()}\n"
        lock.close()


@pytest.mark.parametrize(
    "url",
    [
        "sqlite+aiosqlite:///:memory:",
        "sqlite+aiosqlite://",
        "sqlite+aiosqlite:///file:a?mode=memory&uri=true",
        "sqlite+aiosqlite:////nowhere/at/all.db",
        "sqlite+aiosqlite:////proc/a.db",
        "postgresql+asyncpg://a@b/c",
    ],
)
def test_databases_without_a_lockable_file_are_not_locked(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert lock_database(url) is None
    assert list(tmp_path.iterdir()) == []
