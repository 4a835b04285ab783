"""Lets a step call another flow of the same user."""

from __future__ import annotations

from uuid import UUID

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.base import BlockError
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.flow_call_rows import CallingExecution, call_flow
from bloxserver.errors import BloxError
from bloxserver.models.database import Database

RETRYABLE = frozenset({"flow_not_running"})
"""A flow that is being restarted runs again soon. Another name, less depth or a new billing period do not come."""


class FlowCalls:
    """What one attempt at a step may call; its calls are all the same one."""

    def __init__(self, database: Database, caller: CallingExecution) -> None:
        self._database = database
        self._caller = caller

    async def call(self, flow: str, payload: JsonValue, target: str | None) -> UUID:
        """The id of the execution that was accepted, by this call or by one before; raises `BlockError`."""

        async def work(session: AsyncSession) -> UUID:
            return await call_flow(session, caller=self._caller, flow=flow, payload=payload, target=target)

        try:
            return await retry_transaction(self._database, work)
        except BloxError as error:
            raise BlockError(error.code, error.message, retryable=error.code in RETRYABLE) from None
