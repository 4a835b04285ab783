"""Requests that schemathesis generates from the OpenAPI document, sent to the server on a real connection."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path(__file__).parent
ROOT = DIRECTORY.parents[1]
ALL_PHASES = "examples,coverage,fuzzing,stateful"


@dataclass(frozen=True)
class Result:
    failed: bool
    cases: int
    """The number of requests."""
    output: str


async def run_schemathesis(
    port: int, authorization: str, directory: Path, *, phases: str, examples: int, seed: int
) -> Result:
    """Send the requests of the phases with all checks. `examples` is their number in phases with random requests.

    The requests are the same in each run with this seed.
    """
    report = directory / "report.json"
    arguments = [
        *("--config-file", str(DIRECTORY / "schemathesis.toml"), "run", f"http://127.0.0.1:{port}/openapi.json"),
        *("--header", f"Authorization: {authorization}", "--seed", str(seed), "--max-examples", str(examples)),
        *(
            "--phases",
            phases,
            "--checks",
            "all",
            "--continue-on-failure",
            "--suppress-health-check",
            "all",
            "--warnings",
            "off",
        ),
        *("--report-json-path", str(report)),
    ]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "schemathesis.cli", *arguments),
        env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": "tests.schemathesis.hooks"},
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    text = output.decode()
    cases = json.loads(report.read_text())["test_cases"]["generated"] if report.exists() else 0
    return Result(process.returncode != 0, cases, text)
