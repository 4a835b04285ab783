"""Measures how long a server takes to start, and how long the import of the application takes.

If `BENCHMARK_PYTHON` is set, both installations start in turn.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

from benchmarks.installation import BenchmarkEnvironment, Installation
from benchmarks.processes import INHERITED_VARIABLES, PYTHON_VARIABLE
from benchmarks.results import Result, percentile, summarize
from benchmarks.sizes import Sizes

IMPORT = "import time; started = time.perf_counter(); import bloxserver.api.main; print(time.perf_counter() - started)"


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure `bloxserver serve` with an existing database, from its execution to the first 200 of /health/ready."""
    pythons = {"this version": sys.executable}
    if other := os.environ.get(PYTHON_VARIABLE):
        pythons[PYTHON_VARIABLE] = other
    starts: dict[str, list[float]] = {name: [] for name in pythons}
    imports: dict[str, list[float]] = {name: [] for name in pythons}
    async with AsyncExitStack() as stack:
        installations = {
            name: await stack.enter_async_context(environment.installation(kind, migrate=False)) for name in pythons
        }
        for number in range(sizes.starts + 1):
            for name, python in pythons.items():
                milliseconds = await _start(installations[name], python)
                if number > 0:  # the first start creates the tables
                    starts[name].append(milliseconds)
                    imports[name].append(await asyncio.to_thread(_import, python, installations[name].directory))
    results = [Result("startup", kind, f"start to ready, {name}", summarize(found)) for name, found in starts.items()]
    results += [Result("startup", kind, f"import of the app, {name}", summarize(it)) for name, it in imports.items()]
    if len(pythons) > 1:
        results.append(Result("startup", kind, "start to ready, ratio of the medians", _ratio(starts), "<= 0.8"))
        results.append(Result("startup", kind, "import of the app, ratio of the medians", _ratio(imports), "<= 0.5"))
    return results


async def _start(installation: Installation, python: str) -> float:
    started = time.perf_counter()
    async with installation.serve(python=python):
        return (time.perf_counter() - started) * 1000


def _import(python: str, directory: Path) -> float:
    environment = {name: os.environ[name] for name in INHERITED_VARIABLES if name in os.environ}
    ended = subprocess.run(  # noqa: S603
        [python, "-c", IMPORT], env=environment, cwd=directory, check=True, capture_output=True, text=True
    )
    return float(ended.stdout) * 1000


def _ratio(found: dict[str, list[float]]) -> str:
    this, other = (percentile(values, 0.5) for values in found.values())
    return f"{this / other:.2f}"
