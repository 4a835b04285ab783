"""Joins the checkpoints of executions that come at the same time in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import structlog

from bloxserver.engine.queue.checkpoint_rows import Checkpoint, save_checkpoints
from bloxserver.engine.queue.leases import LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.observability import metrics

log = structlog.stdlib.get_logger("bloxserver.engine")

MAX_BATCH = 100
"""Checkpoints in one transaction."""

Entry = tuple[Checkpoint, asyncio.Future[None]]


class CheckpointWriter:
    """What comes while a transaction is being written goes into the next one: alone, a checkpoint waits for nobody."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._entries: list[Entry] = []
        self._writing: asyncio.Task[None] | None = None
        self._alone: set[asyncio.Task[None]] = set()

    async def save(self, checkpoint: Checkpoint) -> None:
        """Returns when the checkpoint is kept; raises `LeaseLost`, or why the database refuses it."""
        kept: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._entries.append((checkpoint, kept))
        if self._writing is None or self._writing.done():
            self._writing = asyncio.create_task(self._write())
        await kept

    async def _write(self) -> None:
        while self._entries:
            entries = [entry for entry in self._entries[:MAX_BATCH] if not entry[1].done()]
            del self._entries[:MAX_BATCH]
            try:
                await self._write_together(entries)
            except Exception as error:
                # One of them may be the reason: each for itself, so that the others, and those that come, are kept.
                log.debug("checkpoints are written one by one", error=type(error).__name__, number=len(entries))
                for entry in entries:
                    self._alone.add(task := asyncio.create_task(self._write_alone(entry)))
                    task.add_done_callback(self._alone.discard)

    async def _write_together(self, entries: Sequence[Entry]) -> None:
        if not entries:
            return
        async with self._database.transaction() as session:
            lost = await save_checkpoints(session, [checkpoint for checkpoint, _ in entries])
        metrics.CHECKPOINT_BATCH_SIZE.observe(len(entries))
        for checkpoint, kept in entries:
            _settle(kept, LeaseLost() if checkpoint.execution.lease_key in lost else None)

    async def _write_alone(self, entry: Entry) -> None:
        checkpoint, kept = entry
        try:
            lost = await retry_transaction(self._database, lambda session: save_checkpoints(session, [checkpoint]))
        except Exception as error:
            _settle(kept, error)
        else:
            _settle(kept, LeaseLost() if lost else None)


def _settle(kept: asyncio.Future[None], error: Exception | None) -> None:
    if kept.done():
        return  # whoever wanted to know was stopped
    if error is None:
        kept.set_result(None)
    else:
        kept.set_exception(error)
