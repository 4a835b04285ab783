"""Blocks that do not give the event loop back: their worker is silent to everybody, but must not count as dead."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.chaos.evidence import until_all_ended
from tests.chaos.place import Place
from tests.chaos.processes import Timing
from tests.chaos.report import Report
from tests.chaos.stage import Stage, stage
from tests.chaos.workers import longest_silence

PLUGIN = '''\
"""A block that keeps its thread, and with it the event loop of its worker, or kills it."""

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
    """What the step before answered."""

    body: Numbered


class Stubbornness(BlockConfig):
    how: str
    seconds: float
    every: int = 1


async def work(payload: Anything, config: Stubbornness, context: BlockContext) -> JsonValue:
    with open(os.environ["CHAOS_RUNS"], "a") as runs:
        runs.write(f"{context.idempotency_key}\\n")
    if config.how == "kills":
        if payload.body.number % config.every == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(config.seconds)
        return "done"
    if config.how == "holds":
        # No thread of this process runs meanwhile, as with an extension in C that computes.
        ctypes.PyDLL(None).sleep(int(config.seconds))
        return "done"
    until = time.monotonic() + config.seconds
    while time.monotonic() < until:
        time.sleep(until - time.monotonic()) if config.how == "sleeps" else sum(range(1000))
    return "done"


block = Block(
    name="chaos.stubborn",
    description="Does not give the loop back.",
    payload=Anything,
    config=Stubbornness,
    handler=work,
    example={"config": {"how": "sleeps", "seconds": 1}, "payload": {"body": {"number": 1}}},
)
'''
LOOK_SECONDS = 0.05


def install_plugin(directory: Path) -> None:
    """What pip leaves behind of a package with one module and one entry point."""
    (directory / "chaos_stubborn.py").write_text(PLUGIN)
    information = directory / "chaos_stubborn-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: chaos-stubborn\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[bloxserver.blocks]\nchaos = chaos_stubborn:block\n")


async def hostile(place: Place, *, how: str, executions: int, timing: Timing) -> Report:
    """Each execution keeps the loop for twice the time after which a silent worker counts as dead."""
    seconds = timing.dead_after * 2
    report = Report(f"a block that {how} for {seconds:g} s, {place.backend}, dead after {timing.dead_after:g} s")
    install_plugin(place.directory)
    runs = place.directory / "runs"
    environment = {"PYTHONPATH": str(place.directory), "CHAOS_RUNS": str(runs)}
    second = {"handler": "chaos.stubborn", "config": {"how": how, "seconds": seconds}}
    async with stage(place, timing, second=second, environment=environment) as scene:
        await scene.start(replicas=1, workers=2)
        await scene.run(executions)
        silences: list[float] = []
        watching = asyncio.create_task(_watch(scene, silences))
        report.figure("all had ended after (s)", await until_all_ended(scene.database, seconds * executions * 2 + 60))
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        report.figure("longest silence of a worker (s)", max(silences))
        await scene.judge(report)
        report.equal("runs of the block", len(runs.read_text().splitlines()), executions)
        report.equal("take-overs of what ran", report.figures.pop("take-overs"), 0)
    return report


async def _watch(scene: Stage, silences: list[float]) -> None:
    while True:
        silences.append(await longest_silence(scene.database))
        await asyncio.sleep(LOOK_SECONDS)
