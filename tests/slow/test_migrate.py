"""`bloxserver migrate` in separate processes: several at once, and from an installed wheel."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
import tarfile
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder

from bloxserver.models import migrate
from bloxserver.models.database import Database
from bloxserver.models.migrate import SchemaState, schema_state
from bloxserver.settings import Settings

ROOT = Path(__file__).parents[2]
PROCESSES = 5


async def state(settings: Settings) -> SchemaState:
    database = Database(settings)
    async with database.engine.connect() as connection:
        found = await connection.run_sync(schema_state)
        await connection.run_sync(migrate.check)
    await database.dispose()
    return found


async def test_five_processes_that_migrate_at_once_succeed(live_settings: Settings) -> None:
    """The test holds the migration lock until all processes wait for it."""
    holder = Database(live_settings)
    async with holder.migration_connection(print):
        processes = [
            await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "bloxserver", "migrate"),
                env=os.environ | {"DATABASE_URL": live_settings.database_url},
                stdout=PIPE,
                stderr=PIPE,
            )
            for _ in range(PROCESSES)
        ]
        for process in processes:
            assert process.stderr is not None
            assert b"another process is migrating the database" in await process.stderr.readline()
    await holder.dispose()
    outputs = await asyncio.gather(*(process.communicate() for process in processes))
    assert outputs == [(b"database schema: current\n", b"")] * PROCESSES
    assert [process.returncode for process in processes] == [0] * PROCESSES
    assert await state(live_settings) is SchemaState.CURRENT


@pytest.fixture(scope="module", params=["checkout", "sdist"])
def installed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as a wheel installs it, built from this checkout or from its sdist."""
    directory = tmp_path_factory.mktemp("wheel")
    source = ROOT
    if request.param == "sdist":
        [archive] = SdistBuilder(str(ROOT)).build(directory=str(directory), versions=["standard"])
        with tarfile.open(archive) as file:
            file.extractall(directory, filter="data")
        [source] = directory.glob("*/")
    [wheel] = WheelBuilder(str(source)).build(directory=str(directory), versions=["standard"])
    target = directory / "site-packages"
    shutil.unpack_archive(wheel, target, "zip")
    return target


def run_installed(target: Path, directory: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code with the installed package and the dependencies of this environment, but without the checkout."""
    # -I ignores PYTHONPATH and the working directory. The checkout is on `sys.path` by a .pth file, which is
    # appended: what precedes it wins, and the checkout is removed.
    start = f"import sys; sys.path[:] = [{str(target)!r}, *(p for p in sys.path if p != {str(ROOT)!r})]; {code}"
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-I", "-c", start],
        env=kept | variables,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_an_installed_wheel_migrates(installed: Path, live_settings: Settings, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    found = run_installed(
        installed,
        empty,
        "from bloxserver.models import migrate; print(migrate.__file__); print(migrate.SCRIPTS)",
    )
    paths = [Path(line) for line in found.stdout.splitlines()]
    assert paths == [installed / "bloxserver/models/migrate.py", installed / "bloxserver/migrations"], found.stderr
    assert {path.relative_to(installed / "bloxserver") for path in paths[1].rglob("*.*")} == {
        path.relative_to(ROOT) for path in (ROOT / "migrations").rglob("*.*") if "__pycache__" not in path.parts
    }
    run = "from bloxserver.cli import app; app(['migrate'])"
    migrated = run_installed(installed, empty, run, DATABASE_URL=live_settings.database_url)
    assert (migrated.returncode, migrated.stdout) == (0, "database schema: current\n"), migrated.stderr
    assert list(empty.iterdir()) == []
    assert asyncio.run(state(live_settings)) is SchemaState.CURRENT
