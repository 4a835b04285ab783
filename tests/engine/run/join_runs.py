"""Organisms with joins, and runs of them."""

from __future__ import annotations

import asyncio
from typing import Any

from pydantic import JsonValue

from bloxserver.blocks.base import Block, BlockContext, BlockError, NoConfig, Result
from bloxserver.engine.run.messages import Finished, Step
from bloxserver.raw_json import plain
from tests.engine.pump_runs import Anything, Log, block, echo, pump


def says(name: str, output: str, peers: str, more: str = "") -> str:
    """A listener that answers with the value of `output` in YAML."""
    return f"name: {name}, handler: transform, config: {{output: {output}}}, peers: [{peers}]{more}"


def join(name: str, *peers: str, mode: str = "all") -> str:
    return f"{echo(name, *peers)}, join: {mode}"


def fails(name: str, peers: str) -> str:
    return f"name: {name}, handler: transform, config: {{output: '{{{{ payload.missing }}}}'}}, peers: [{peers}]"


async def finished(text: str, payload: JsonValue = None, **options: Any) -> JsonValue:
    """The output of a run that succeeds."""
    outcome, _ = await pump(text, payload, **options)
    assert isinstance(outcome, Finished)
    return plain(outcome.output)


def steps_of(log: Log, listener: str) -> list[Step]:
    return [step for step in log.steps if step.message.listener == listener]


def kept_of(log: Log, changes: int) -> list[Step]:
    """The steps as they are stored after the first changes."""
    return Log(log.changes[:changes]).steps


class Branches:
    """Blocks for races: `slow` waits for its gate; `counted` counts its messages."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.begun: list[str] = []
        self.stopped: list[str] = []

    async def slow(self, payload: JsonValue, context: BlockContext) -> Result:
        self.begun.append(context.idempotency_key)
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.stopped.append(context.idempotency_key)
            raise
        return "slow"

    async def failing(self, payload: JsonValue, context: BlockContext) -> Result:
        raise BlockError("odd", "odd")

    async def counted(self, payload: JsonValue, context: BlockContext) -> Result:
        self.begun.append(context.idempotency_key)
        return payload

    @property
    def blocks(self) -> list[Block[Anything, NoConfig]]:
        return [block("slow", self.slow), block("counted", self.counted), block("failing", self.failing)]
