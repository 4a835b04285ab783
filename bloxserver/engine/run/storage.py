"""The limit of stored bytes, for a running execution."""

from __future__ import annotations

from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.queries.usage import read_stored_bytes
from bloxserver.services.usage import storage_limit_reached

ALLOWANCE = 1.1
"""Executions run until the user stores this multiple of the limit, so that those accepted below the limit can end."""
RECHECK_CHARACTERS = 1024 * 1024
"""An execution that has stored this much reads again what all of the user's executions have stored."""


class StorageCheck:
    """Checks before each checkpoint that the owner may store more.

    The number is read with the claim. An execution that stores little reads it no second time.
    """

    def __init__(self, database: Database, execution: ClaimedExecution) -> None:
        self._database = database
        self._user_id = execution.user_id
        self._plan = execution.plan
        self._maximum = int(execution.plan.stored_bytes * ALLOWANCE)
        self._stored = execution.stored_bytes
        self._written = 0

    async def before_saving(self, characters: int) -> None:
        """`characters` is the size of the checkpoint. Raises `LimitReached`."""
        if self._stored + self._written >= self._maximum or self._written >= RECHECK_CHARACTERS:
            self._stored = await retry_transaction(
                self._database, lambda session: read_stored_bytes(session, self._user_id), read_only=True
            )
            self._written = 0
            if self._stored >= self._maximum:
                raise storage_limit_reached(self._plan, self._stored)
        self._written += max(0, characters)
