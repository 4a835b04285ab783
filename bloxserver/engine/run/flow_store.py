"""What blocks remember: a transaction for each call."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.base import BlockError
from bloxserver.engine.retry import retry_transaction
from bloxserver.errors import BloxError
from bloxserver.models.database import Database
from bloxserver.services import key_values

Result = TypeVar("Result")


class FlowStore:
    """The memory of a flow as one step uses it, which `idempotency_key` names."""

    def __init__(
        self,
        database: Database,
        flow_id: UUID,
        idempotency_key: str,
        require: Callable[[AsyncSession], Awaitable[None]] | None = None,
    ) -> None:
        """`require` raises, in a transaction that writes, where the step must not write any more."""
        self._database = database
        self._flow_id = flow_id
        self._require = require
        self._step = idempotency_key

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        return await self._do(lambda session: key_values.get_value(session, self._flow_id, key), read_only=True)

    async def set(self, key: str, value: JsonValue) -> None:
        await self._do(lambda session: key_values.set_value(session, self._flow_id, key, value, self._step))

    async def delete(self, key: str) -> bool:
        return await self._do(lambda session: key_values.delete_value(session, self._flow_id, key))

    async def add(self, key: str, value: JsonValue) -> tuple[bool, JsonValue]:
        return await self._do(lambda session: key_values.add_value(session, self._flow_id, key, value, self._step))

    async def increment(self, key: str, by: float) -> float:
        return await self._do(lambda session: key_values.increment_value(session, self._flow_id, key, by, self._step))

    async def _do(self, work: Callable[[AsyncSession], Awaitable[Result]], *, read_only: bool = False) -> Result:
        async def checked(session: AsyncSession) -> Result:
            result = await work(session)
            if self._require is not None and not read_only:
                # Last: the flow's row is locked before those of executions.
                await self._require(session)
            return result

        try:
            return await retry_transaction(self._database, checked, read_only=read_only)
        except BloxError as error:
            raise BlockError(error.code, error.message, retryable=False) from None
