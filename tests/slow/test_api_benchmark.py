"""The benchmark of the API runs, and its two servers answer the same. Its results are not tested."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import sqlalchemy as sa

from benchmarks.api.results import BEGIN, END

ROOT = Path(__file__).parents[2]


def run_benchmark(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "benchmarks", "api", "--small", *arguments],
        env=os.environ | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def endpoints_in(rows: list[dict[str, object]]) -> set[object]:
    return {row["endpoint"] for row in rows}


def test_results_are_written(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    for name in ("README.md", "docs/performance.md"):
        (tmp_path / name).write_text(f"{BEGIN}\n{END}\n")
    ended = run_benchmark("--database", "sqlite", "--save", str(tmp_path))
    assert ended.returncode == 0, ended.stderr
    stored = json.loads((tmp_path / "benchmarks/results/api.json").read_text())["SQLite"]
    assert endpoints_in(stored["rows"]) == {"health", "flows", "flow", "list", "stats", "webhook"}
    assert endpoints_in(stored["signed_in"]) == {"list", "stats"}
    assert stored["memory"]["requests"] == 50
    assert "SQLite" in (tmp_path / "README.md").read_text()


def test_postgresql_is_measured(postgres: sa.URL) -> None:
    url = postgres.render_as_string(hide_password=False)
    wanted = ["list", "stats", "webhook"]
    options = [argument for name in wanted for argument in ("--endpoint", name)]
    ended = run_benchmark("--database", "postgresql", *options, TEST_POSTGRES_URL=url)
    assert ended.returncode == 0, ended.stderr
    rows = [line.split("|") for line in ended.stdout.splitlines() if line.startswith("| ")]
    assert [row[1].strip() for row in rows[1:]] == wanted


def test_unknown_endpoint_is_rejected() -> None:
    ended = run_benchmark("--endpoint", "everything")
    assert ended.returncode == 2
    assert "unknown endpoint: everything" in ended.stderr
