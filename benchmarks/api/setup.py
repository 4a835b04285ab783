"""What was measured, and on what: for the results, without names of hosts or paths."""

from __future__ import annotations

import os
import platform
import shutil
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from tempfile import gettempdir

import sqlalchemy as sa

from benchmarks.installation import Installation
from benchmarks.processes import PYTHON_VARIABLE

LIBRARIES = ("fastapi", "uvicorn", "uvloop", "httptools", "sqlalchemy", "asyncpg", "aiosqlite", "pydantic", "orjson")
MEASURED_DIRECTORIES = ("bloxserver", "migrations", "benchmarks/api")
LOCATION = "import pathlib, bloxserver; print(pathlib.Path(bloxserver.__file__).parents[1])"


@dataclass(frozen=True)
class Setup:
    commit: str
    """Of the measured version, with `-dirty` if its files differ from the commit; `unknown` without git."""
    date: str
    cores: int
    system: str
    load_average: str
    """Before the measurement. Other load on the machine affects every result."""
    versions: dict[str, str]
    settings: dict[str, str]
    rounds: int
    seconds: float

    @property
    def line(self) -> str:
        """The setup in one line of text."""
        versions = ", ".join(f"{name} {value}" for name, value in self.versions.items())
        settings = "".join(f"; {name}={value}" for name, value in self.settings.items())
        return (
            f"Commit {self.commit}, {self.date}; {self.system}, {self.cores} cores, load average before the run"
            f" {self.load_average}; medians of rounds of {self.seconds:g} s: {self.rounds}; {versions}{settings}"
        )


def describe_setup(settings: dict[str, str], rounds: int, seconds: float) -> Setup:
    """Describe the setup before the measurement. The version of the database is not known yet."""
    return Setup(
        commit=_commit(),
        date=datetime.now(UTC).date().isoformat(),
        cores=os.cpu_count() or 1,
        system=f"{platform.system()} {platform.machine()}",
        load_average=f"{os.getloadavg()[0]:.1f}",
        versions={"Python": platform.python_version()} | {name: version(name) for name in LIBRARIES},
        settings=settings,
        rounds=rounds,
        seconds=seconds,
    )


async def read_database_version(installation: Installation) -> str:
    if installation.is_sqlite:
        return sqlite3.sqlite_version
    async with installation.database.engine.connect() as connection:
        shown: str = (await connection.execute(sa.text("SHOW server_version"))).scalar_one()
    return shown.split()[0]


def _commit() -> str:
    """Return the commit of the version that `benchmarks.processes` starts."""
    git = shutil.which("git")
    if git is None:
        return "unknown"
    directory = _run(os.environ.get(PYTHON_VARIABLE, sys.executable), "-c", LOCATION)
    commit = _run(git, "-C", directory, "rev-parse", "--short", "HEAD") if directory else ""
    dirty = _run(git, "-C", directory, "status", "--porcelain", "--", *MEASURED_DIRECTORIES) if commit else ""
    return f"{commit or 'unknown'}{'-dirty' if dirty else ''}"


def _run(*command: str) -> str:
    """Return the output of a program, without its end of line; empty if it fails."""
    ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=gettempdir())  # noqa: S603
    return ended.stdout.strip() if ended.returncode == 0 else ""
