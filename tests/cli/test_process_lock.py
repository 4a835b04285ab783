"""One server for one SQLite file."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from bloxserver.cli.process_lock import DatabaseInUse, lock_database
from bloxserver.settings import Settings
from tests.cli.test_cli import bloxserver
from tests.engine.test_processes import Process, free_port, until_ready

HOLD = "import sys, time; from bloxserver.cli.process_lock import lock_database as lock; "
HOLD += "held = lock(sys.argv[1]); print('held', flush=True); time.sleep(60)"


@contextmanager
def holder(url: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_file_has_one_holder_whatever_it_is_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_whoever_ends_however_gives_it_back(tmp_path: Path, number: signal.Signals) -> None:
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
def test_there_may_be_nothing_to_lock(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert lock_database(url) is None
    assert list(tmp_path.iterdir()) == []


async def test_a_second_server_is_refused_and_other_commands_are_not(live_settings: Settings, tmp_path: Path) -> None:
    """On SQLite; on PostgreSQL there may be any number."""
    ports = [free_port(), free_port()]
    url = {"DATABASE_URL": live_settings.database_url}
    first = Process(live_settings, tmp_path, "serve", "--port", str(ports[0]))
    servers = [first]
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[0]}") as client:
            await until_ready(client)
        if live_settings.uses_sqlite:
            refused = await asyncio.to_thread(bloxserver, "serve", "--no-worker", "--port", str(ports[1]), **url)
            assert refused.returncode == 1
            assert refused.stderr == (
                f"bloxserver: another server (process {first.pid}) has the database of DATABASE_URL: "
                "SQLite is for one at a time\n"
            )
        for command in ("migrate", "prune"):
            assert (await asyncio.to_thread(bloxserver, command, **url)).returncode == 0
        if live_settings.uses_sqlite:
            servers.remove(first)
            first.end(signal.SIGKILL)
        servers.append(Process(live_settings, tmp_path, "serve", "--port", str(ports[1])))
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{ports[1]}") as client:
            await until_ready(client)
            assert (await client.get("/health")).status_code == 200
    finally:
        for server in servers:
            server.end(signal.SIGKILL)
