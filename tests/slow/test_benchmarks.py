"""The benchmarks run. Their results are not tested: they depend on the machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

ROOT = Path(__file__).parents[1]


def run_benchmarks(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "--small", *arguments],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def names_in(output: str, database: str) -> set[str]:
    """The benchmarks that have a row for this database in the table."""
    rows = [[cell.strip() for cell in line.split("|")] for line in output.splitlines() if line.startswith("| ")]
    return {row[1] for row in rows if row[2] == database}


def test_benchmarks_run_on_sqlite() -> None:
    names = {"latency", "startup", "idle", "waiting", "waiters", "fairness", "bare", "isolation"}
    ended = run_benchmarks(*names, "--database", "sqlite")
    assert ended.returncode == 0, ended.stderr
    assert names_in(ended.stdout, "SQLite") == names
    assert "| 5 " in ended.stdout  # all five requests of `waiting` were open at once


def test_benchmarks_run_on_postgresql(postgres: sa.URL) -> None:
    names = {"throughput", "claim", "waiters", "startup"}
    url = postgres.render_as_string(hide_password=False)
    ended = run_benchmarks(*names, "--database", "postgresql", TEST_POSTGRES_URL=url)
    assert ended.returncode == 0, ended.stderr
    assert names_in(ended.stdout, "PostgreSQL") == names


def test_benchmark_of_expressions_runs_without_a_database() -> None:
    ended = run_benchmarks("expressions", "--database", "sqlite")
    assert ended.returncode == 0, ended.stderr
    assert names_in(ended.stdout, "") == {"expressions"}


def test_unknown_benchmark_is_rejected() -> None:
    ended = run_benchmarks("speed", "--database", "sqlite")
    assert ended.returncode == 2
    assert "unknown benchmark: speed" in ended.stderr
