"""Checks the lease of an execution before a step starts: another worker may have finished that step meanwhile.

A worker that was frozen, or cut off from the database, may receive the answer to a transaction long after the server
committed it. By then, its execution may have been recovered.
"""

from __future__ import annotations

import asyncio
import time

from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.queue.leases import valid_leases
from bloxserver.engine.queue.values import LeaseLost
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database

RECHECK_SECONDS = 1.0
"""Age of the last confirmation from which the lease is checked. `HEARTBEAT_TIMEOUT_SECONDS` should be longer."""


class LeaseCheck:
    """Knows when the database last confirmed the lease of an execution."""

    def __init__(self, database: Database, execution: ClaimedExecution) -> None:
        self._database = database
        self._key = execution.lease_key
        self._confirmed_at = execution.claimed_at
        self._checking = asyncio.Lock()

    def confirm(self, began_at: float) -> None:
        """Note that a transaction which began at this monotonic time found the lease valid."""
        self._confirmed_at = max(self._confirmed_at, began_at)

    async def require(self) -> None:
        """Check the lease if its last confirmation is old; raises `LeaseLost`."""
        if self._is_recent():
            return
        async with self._checking:
            if not self._is_recent():  # no other step has checked it meanwhile
                await self._check()

    def _is_recent(self) -> bool:
        return time.monotonic() - self._confirmed_at <= RECHECK_SECONDS

    async def _check(self) -> None:
        began_at = time.monotonic()
        valid = await retry_transaction(
            self._database, lambda session: valid_leases(session, [self._key]), read_only=True
        )
        if self._key not in valid:
            raise LeaseLost
        self.confirm(began_at)
