"""Measures the queue and the database alone: executions are claimed and ended without running any step."""

from __future__ import annotations

import time
from uuid import uuid4

from benchmarks.installation import BenchmarkEnvironment, Installation
from benchmarks.results import Result
from benchmarks.sizes import Sizes
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.engine.queue.checkpoints import Checkpoint, save_checkpoints
from bloxserver.engine.queue.claims import claim_executions
from bloxserver.engine.run.claimer import concurrency_by_tier
from bloxserver.settings import Settings


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Use the statements of the engine in one process, one transaction at a time."""
    async with environment.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, sizes.bare)
        started, cpu = time.perf_counter(), time.process_time()
        ended = await _claim_and_end(installation)
        seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    value = f"{ended / seconds:.0f}/s, {cpu / ended * 1000:.2f} ms of CPU each"
    return [Result("bare", kind, f"{ended} executions claimed and ended, without steps", value)]


async def _claim_and_end(installation: Installation) -> int:
    settings = Settings()
    slots_per_user = concurrency_by_tier(settings)
    slots = dict.fromkeys(slots_per_user, settings.worker_concurrency)
    ended = 0
    while True:
        async with installation.database.transaction() as session:
            claimed = await claim_executions(session, "benchmark", uuid4(), slots, slots_per_user)
        if not claimed:
            return ended
        async with installation.database.transaction() as session:
            await save_checkpoints(session, [Checkpoint(execution, [], "null") for execution in claimed])
        ended += len(claimed)
