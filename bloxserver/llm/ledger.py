"""Records each call of a language model: who made it, what it used, and what it cost."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clients.model_errors import ModelError
from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.llm.calls import Caller
from bloxserver.llm.settlements import GroupWriter
from bloxserver.model_catalogue import Provider
from bloxserver.model_prices import cost_of
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord, UserRecord
from bloxserver.queries.usage import Period, period_at
from bloxserver.services.usage import count_tokens

MAX_CODE = 64
MAX_MODEL = 200


@dataclass
class CallReport:
    """What has happened in a call so far."""

    provider: Provider | None = None
    """The provider that was asked last."""
    provider_model: str = ""
    """Its own name of the model."""
    attempts: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cached: bool = False
    own_key: bool = False
    first_token_ms: int | None = None
    error_code: str | None = None
    started: float = field(default_factory=time.perf_counter)

    def asked(self, provider: Provider, model: str, *, own_key: bool = False) -> None:
        self.provider, self.provider_model, self.own_key = provider, model, own_key
        self.attempts += 1

    def began(self) -> None:
        """The first token was streamed."""
        self.first_token_ms = round((time.perf_counter() - self.started) * 1_000)

    def used(self, input_tokens: int, output_tokens: int) -> None:
        self.input_tokens, self.output_tokens = input_tokens, output_tokens


class Ledger:
    """Writes calls in groups, after they have ended. Those of a process that dies before that are lost."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._ends: GroupWriter[dict[str, Any]] = GroupWriter(self._write)

    @asynccontextmanager
    async def reported(self, caller: Caller, model: str) -> AsyncIterator[CallReport]:
        """Record the call that the block makes, whatever its result."""
        report = CallReport()
        try:
            yield report
        except ModelError as error:
            report.used(error.input_tokens, error.output_tokens)
            report.error_code = error.code
            raise
        except BaseException:
            report.error_code = "cancelled"
            raise
        finally:
            # The costs of an execution are read when it ends.
            self._ends.put(_values(caller, model, report), at_once=caller.execution_id is not None)

    async def _write(self, calls: Sequence[dict[str, Any]]) -> None:
        async with self._database.transaction() as session:
            # A user can be deleted during their call.
            users = {values["user_id"] for values in calls}
            columns = (UserRecord.id, UserRecord.current_period_start, UserRecord.current_period_end)
            rows = await session.execute(sa.select(*columns).where(UserRecord.id.in_(users)))
            moment = now()
            periods = {user_id: period_at(moment, start, end) for user_id, start, end in rows}
            if kept := [values for values in calls if values["user_id"] in periods]:
                await session.execute(sa.insert(LlmCallRecord), kept)
                await _count_tokens(session, kept, periods)

    async def flush(self) -> None:
        """Wait until all calls that have ended are written, or cannot be written now."""
        await self._ends.flush()

    async def aclose(self) -> None:
        await self.flush()


async def _count_tokens(session: AsyncSession, calls: Sequence[dict[str, Any]], periods: Mapping[UUID, Period]) -> None:
    """Add the tokens of calls without an execution to the usage. Those of executions are counted with their steps.

    The ids of the calls are unique, so a group that is written again after a lost answer counts nothing.
    """
    sums: Counter[tuple[UUID, str]] = Counter()
    for values in calls:
        if values["execution_id"] is None:
            sums[values["user_id"], "input"] += values["input_tokens"]
            sums[values["user_id"], "output"] += values["output_tokens"]
    # In the same order in all processes, so that their transactions do not deadlock.
    for user_id in sorted({user_id for user_id, _ in +sums}, key=lambda each: each.bytes):
        await count_tokens(session, user_id, periods[user_id], sums[user_id, "input"], sums[user_id, "output"])


def _values(caller: Caller, model: str, report: CallReport) -> dict[str, Any]:
    cost = 0 if report.cached else None
    if cost is None and report.provider is not None:
        cost = cost_of(report.provider, report.provider_model, report.input_tokens, report.output_tokens)
    return {
        "id": new_id(),
        "user_id": caller.user_id,
        "flow_id": caller.flow_id,
        "execution_id": caller.execution_id,
        "step_id": caller.step_id,
        "provider": None if report.provider is None else report.provider.name,
        "model": model[:MAX_MODEL],
        "input_tokens": report.input_tokens,
        "output_tokens": report.output_tokens,
        "cost_nanousd": cost,
        "cached": report.cached,
        "own_key": report.own_key,
        "attempts": report.attempts,
        "first_token_ms": report.first_token_ms,
        "duration_ms": round((time.perf_counter() - report.started) * 1_000),
        "error_code": None if report.error_code is None else report.error_code[:MAX_CODE],
        "created_at": now(),
    }
