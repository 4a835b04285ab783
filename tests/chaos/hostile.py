"""Blocks that block the event loop of their worker, which must not be declared dead."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.checks import wait_for_all_ends
from tests.chaos.processes import Timing
from tests.chaos.report import Report
from tests.chaos.scenario import ScenarioRun, run_scenario
from tests.chaos.workers import longest_heartbeat_gap
from tests.chaos.workspace import Workspace

PLUGIN = '''\
"""A block that blocks the event loop of its worker, or kills the worker."""

import asyncio
import ctypes
import os
import signal
import time

from pydantic import BaseModel, JsonValue

from bloxserver.blocks.base import Block, BlockConfig, BlockContext


class Numbered(BaseModel):
    number: int


class Anything(BaseModel):
    """The output of the previous step."""

    body: Numbered


class BlockingConfig(BlockConfig):
    how: str
    seconds: float = 3600
    every: int = 1
    harmless_seconds: float = 0


async def work(payload: Anything, config: BlockingConfig, context: BlockContext) -> JsonValue:
    with open(os.environ["CHAOS_RUNS"], "a") as runs:
        runs.write(f"{context.idempotency_key}\\n")
    if payload.body.number % config.every:
        await asyncio.sleep(config.harmless_seconds)
        return "done"
    if config.how == "kills":
        os.kill(os.getpid(), signal.SIGKILL)
    if config.how == "holds":
        # Holds the interpreter lock, like a C extension that computes: no other thread of the process runs.
        ctypes.PyDLL(None).sleep(int(config.seconds))
        return "done"
    until = time.monotonic() + config.seconds
    while time.monotonic() < until:
        time.sleep(until - time.monotonic()) if config.how == "sleeps" else sum(range(1000))
    return "done"


block = Block(
    name="chaos.stubborn",
    description="Blocks the event loop.",
    payload=Anything,
    config=BlockingConfig,
    handler=work,
    example={"config": {"how": "sleeps", "seconds": 1}, "payload": {"body": {"number": 1}}},
)
'''
POLL_SECONDS = 0.05


def install_plugin(directory: Path) -> None:
    """Create the files that pip installs for a package with one module and one entry point."""
    (directory / "chaos_stubborn.py").write_text(PLUGIN)
    information = directory / "chaos_stubborn-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-stubborn\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[bloxserver.blocks]\nchaos = chaos_stubborn:block\n")


async def hostile(workspace: Workspace, *, how: str, executions: int, timing: Timing) -> Report:
    """Each execution blocks the event loop for twice the heartbeat timeout."""
    seconds = timing.heartbeat_timeout * 2
    report = Report(
        f"a block that {how} for {seconds:g} s, {workspace.backend}, heartbeat timeout {timing.heartbeat_timeout:g} s"
    )
    install_plugin(workspace.directory)
    runs = workspace.directory / "runs"
    environment = {"PYTHONPATH": str(workspace.directory), "CHAOS_RUNS": str(runs)}
    second = {"handler": "chaos.stubborn", "config": {"how": how, "seconds": seconds}}
    async with run_scenario(workspace, timing, second=second, environment=environment) as run:
        await run.start(replicas=1, workers=2)
        await run.run(executions)
        gaps: list[float] = []
        watcher = asyncio.create_task(_watch(run, gaps))
        report.record(
            "all executions ended after (s)", await wait_for_all_ends(run.database, seconds * executions * 2 + 60)
        )
        watcher.cancel()
        await asyncio.gather(watcher, return_exceptions=True)
        report.record("longest time without a heartbeat (s)", max(gaps))
        await run.check(report)
        report.expect_equal("runs of the block", len(runs.read_text().splitlines()), executions)
        report.expect_equal("recoveries of running executions", report.measurements.pop("recoveries"), 0)
    return report


async def _watch(run: ScenarioRun, gaps: list[float]) -> None:
    while True:
        gaps.append(await longest_heartbeat_gap(run.database))
        await asyncio.sleep(POLL_SECONDS)
