"""What queue and database alone allow: executions are claimed and ended, without a pump and without a step."""

from __future__ import annotations

import time
from uuid import uuid4

from benchmarks.figures import Figure
from benchmarks.installation import Installation, Laboratory
from benchmarks.sizes import Sizes
from benchmarks.workload import accept_backlog, create_flows
from bloxserver.engine.queue.checkpoints import Checkpoint, save_checkpoints
from bloxserver.engine.queue.claims import claim_executions
from bloxserver.engine.run.claimer import concurrency_by_tier
from bloxserver.settings import Settings


async def measure(laboratory: Laboratory, kind: str, sizes: Sizes) -> list[Figure]:
    """By the engine's own statements, in one process, one transaction at a time."""
    async with laboratory.installation(kind) as installation:
        flows = await create_flows(installation, sizes.users)
        await accept_backlog(installation, flows, sizes.bare)
        began, processor = time.perf_counter(), time.process_time()
        ended = await _claim_and_end(installation)
        seconds, processor = time.perf_counter() - began, time.process_time() - processor
    value = f"{ended / seconds:.0f}/s, {processor / ended * 1000:.2f} ms of CPU each"
    return [Figure("bare", kind, f"{ended} executions claimed and ended, without steps", value)]


async def _claim_and_end(installation: Installation) -> int:
    settings = Settings()
    slots_per_user = concurrency_by_tier(settings)
    places = dict.fromkeys(slots_per_user, settings.worker_concurrency)
    ended = 0
    while True:
        async with installation.database.transaction() as session:
            taken = await claim_executions(session, "benchmark", uuid4(), places, slots_per_user)
        if not taken:
            return ended
        async with installation.database.transaction() as session:
            await save_checkpoints(session, [Checkpoint(execution, [], "null") for execution in taken])
        ended += len(taken)
