"""Processes whose event loop is blocked by an execution."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa

from bloxserver.engine.run.runner import MAX_CRASHES
from bloxserver.models.database import Database
from bloxserver.models.enums import ExecutionStatus
from bloxserver.models.tables import ExecutionRecord
from bloxserver.settings import Settings
from tests.chaos.hostile import install_plugin
from tests.factories import create_execution, create_flow, create_user
from tests.processes import Process, free_port

ROOT = Path(__file__).parents[2]
ORGANISM = """\
organism: {{name: blocking}}
listeners:
  - {{name: a, description: d, handler: chaos.stubborn, config: {{how: holds, seconds: {seconds}, every: {every}}}}}
"""
PAYLOAD = '{"body": {"number": 1}}'
HARMLESS = 2
"""The block does nothing to number 1 if it blocks every second number only."""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    install_plugin(tmp_path)
    return {
        "PYTHONPATH": os.pathsep.join((str(tmp_path), str(ROOT))),
        "CHAOS_RUNS": str(tmp_path / "runs"),
        "EVENT_LOOP_TIMEOUT": "3",
    }


async def accept(
    database: Database, number: int, *, seconds: int = 3600, every: int = 1, crashes: int = 0
) -> set[UUID]:
    async with database.sessions() as session:
        organism = ORGANISM.format(seconds=seconds, every=every)
        flow = await create_flow(session, await create_user(session), organism_yaml=organism)
        return {
            (await create_execution(session, flow, crash_count=crashes, input_payload=PAYLOAD)).id
            for _ in range(number)
        }


async def statuses(database: Database) -> dict[UUID, tuple[ExecutionStatus, int]]:
    async with database.transaction(read_only=True) as session:
        rows = await session.execute(sa.select(ExecutionRecord.id, ExecutionRecord.status, ExecutionRecord.crash_count))
        return {row.id: (row.status, row.crash_count) for row in rows}


async def test_blocked_processes_are_killed_until_the_executions_that_block_them_fail(
    live_settings: Settings, live_database: Database, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Two executions block a worker each; on SQLite they block the one process in turn."""
    blocking = await accept(live_database, 2, crashes=MAX_CRASHES - 2)
    harmless = await accept(live_database, 6, every=HARMLESS)
    arguments = ("serve", "--port", str(free_port())) if live_settings.uses_sqlite else ("worker",)

    def start() -> Process:
        return Process(live_settings, tmp_path, *arguments, **environment)

    running = [start() for _ in range(1 if live_settings.uses_sqlite else 2)]
    killed = [0] * len(running)
    try:
        async with asyncio.timeout(180):
            while ExecutionStatus.RUNNING in {status for status, _ in (await statuses(live_database)).values()}:
                for place, process in enumerate(running):
                    if (status := process.poll()) is not None:
                        assert status == -signal.SIGKILL
                        killed[place] += 1
                        running[place] = start()
                await asyncio.sleep(0.1)
    finally:
        for process in running:
            process.kill()
    ended = await statuses(live_database)
    assert {ended[each] for each in blocking} == {(ExecutionStatus.ERROR, MAX_CRASHES)}
    assert {ended[each][0] for each in harmless} == {ExecutionStatus.SUCCESS}
    assert all(killed)
    assert "event loop blocked; killing the process" in running[0].log.read_text()
    assert "execution recovered" in running[0].log.read_text()


async def test_an_api_without_a_worker_is_killed(
    live_settings: Settings, live_database: Database, tmp_path: Path, environment: dict[str, str]
) -> None:
    """Nothing that is reachable blocks its loop, so a module does that the interpreter imports at startup."""
    (tmp_path / "sitecustomize.py").write_text(BLOCKS_AFTER_START)
    arguments = ("serve", "--no-worker", "--port", str(free_port()))
    api = Process(live_settings, tmp_path, *arguments, **environment)
    assert await asyncio.to_thread(api.wait) == -signal.SIGKILL
    assert "event loop blocked; killing the process" in api.log.read_text()


BLOCKS_AFTER_START = """
import ctypes, logging

class Block(logging.Filter):
    def filter(self, record):
        if "application started" in str(record.msg):
            ctypes.PyDLL(None).sleep(3600)
        return True

logging.getLogger("bloxserver").addFilter(Block())
"""


async def test_a_process_of_another_program_is_not_killed(
    live_settings: Settings, live_database: Database, tmp_path: Path, environment: dict[str, str]
) -> None:
    (execution,) = await accept(live_database, 1, seconds=7)
    variables = {"DATABASE_URL": live_settings.database_url, "HOST": "127.0.0.1", "PORT": str(free_port())}
    with other_program(tmp_path, environment | variables) as (api, log):
        async with asyncio.timeout(60):
            while await statuses(live_database) != {execution: (ExecutionStatus.SUCCESS, 0)}:  # noqa: ASYNC110  # nothing notifies
                await asyncio.sleep(0.1)
        assert api.poll() is None
        assert "event loop blocked" in log.read_text()
        assert "killing" not in log.read_text()


@contextmanager
def other_program(directory: Path, variables: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A program that serves the application, and its log."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    log = directory / "log"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-m", "bloxserver.api.main"], env=kept | variables, cwd=directory, stderr=output
        ) as process,
    ):
        try:
            yield process, log
        finally:
            process.kill()
