"""The states of the circuit breakers, which all processes share through the database."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Protocol

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.llm.breaker import Admission, BreakerState
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmProviderRecord
from bloxserver.models.transient_errors import describe_error
from bloxserver.models.upsert import insert_into
from bloxserver.observability import metrics

log = structlog.stdlib.get_logger("bloxserver.llm")

MAX_AGE_SECONDS = 1.0
"""The states are read again after this time, so a breaker that another process has opened is known within it."""
PROBE_MARGIN_SECONDS = 5.0
NAMES = [field.name for field in dataclasses.fields(BreakerState)]
CLOSED = BreakerState()

Clock = Callable[[], datetime]
Change = Callable[[BreakerState], BreakerState | None]
"""Returns the new state, or None if it does not change."""


class BreakerStates(Protocol):
    async def read(self) -> Mapping[str, BreakerState]:
        """Return the states by provider. Providers without a state are closed."""

    async def change(self, provider: str, change: Change) -> bool:
        """Change a state atomically. Returns whether it changed."""


class MemoryStates:
    """The states of one process."""

    def __init__(self) -> None:
        self._states: dict[str, BreakerState] = {}

    async def read(self) -> Mapping[str, BreakerState]:
        return self._states

    async def change(self, provider: str, change: Change) -> bool:
        changed = change(self._states.get(provider, CLOSED))
        if changed is not None:
            self._states[provider] = changed
        return changed is not None


class DatabaseStates:
    """The states of all processes. While the database cannot be reached, those that were read last remain."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._states: dict[str, BreakerState] = {}
        self._read_at = -MAX_AGE_SECONDS
        self._lock = asyncio.Lock()

    async def read(self) -> Mapping[str, BreakerState]:
        if time.monotonic() - self._read_at >= MAX_AGE_SECONDS:
            async with self._lock:
                if time.monotonic() - self._read_at >= MAX_AGE_SECONDS:
                    await self._read()
        return self._states

    async def _read(self) -> None:
        record = LlmProviderRecord
        columns = [record.name, *(getattr(record, name) for name in NAMES)]
        try:
            async with self._database.transaction(read_only=True, single_statement=True) as session:
                rows = (await session.execute(sa.select(*columns))).all()
        except Exception as error:
            log.warning("states of language model providers not read", reason=describe_error(error))
        else:
            self._states = {name: BreakerState(*values) for name, *values in rows}
        self._read_at = time.monotonic()

    async def change(self, provider: str, change: Change) -> bool:
        try:
            async with self._database.transaction() as session:
                changed = await _change(session, provider, change)
        except Exception as error:
            log.warning("state of a language model provider not stored", reason=describe_error(error))
            changed = change(self._states.get(provider, CLOSED))
        if changed is not None:
            self._states = {**self._states, provider: changed}
        return changed is not None


async def _change(session: AsyncSession, provider: str, change: Change) -> BreakerState | None:
    record = LlmProviderRecord
    await session.execute(
        insert_into(session, record).values(name=provider).on_conflict_do_nothing(index_elements=[record.name])
    )
    row = (
        await session.execute(
            sa.select(*(getattr(record, name) for name in NAMES)).where(record.name == provider).with_for_update()
        )
    ).one()
    changed = change(BreakerState(*row))
    if changed is not None:
        await session.execute(
            sa.update(record).where(record.name == provider).values(**dataclasses.asdict(changed), updated_at=now())
        )
    return changed


class Breakers:
    """The circuit breakers of all providers."""

    def __init__(self, states: BreakerStates, clock: Clock = now) -> None:
        self._states = states
        self._clock = clock

    async def admit(self, provider: str, seconds: float) -> Request | None:
        """Begin a request that takes at most this many seconds; None if the provider must not be asked now."""
        state = await self.state(provider)
        metrics.LLM_BREAKER_OPEN.labels(provider).set(not state.is_closed)
        moment = self._clock()
        admission = state.admission(moment)
        if admission is Admission.SENT:
            return Request(self._states, provider, self._clock, was_failing=state.failures > 0)
        if admission is Admission.REFUSED:
            return None
        seconds += PROBE_MARGIN_SECONDS

        def begin(current: BreakerState) -> BreakerState | None:
            is_free = current.admission(moment) is Admission.PROBE
            return current.began_probe(moment, seconds) if is_free else None

        begun = await self._states.change(provider, begin)
        return Request(self._states, provider, self._clock, is_probe=True) if begun else None

    async def state(self, provider: str) -> BreakerState:
        return (await self._states.read()).get(provider, CLOSED)


class Request:
    """A request to a provider, whose result determines the state of the breaker."""

    def __init__(
        self, states: BreakerStates, provider: str, clock: Clock, *, is_probe: bool = False, was_failing: bool = False
    ) -> None:
        self._states = states
        self._provider = provider
        self._clock = clock
        self._is_probe = is_probe
        self._was_failing = was_failing

    async def succeeded(self) -> None:
        if self._is_probe or self._was_failing:
            await self._change(lambda state: state.succeeded(probe=self._is_probe))

    async def failed(self) -> None:
        moment = self._clock()
        await self._change(lambda state: state.failed(moment, probe=self._is_probe))

    async def paused(self, seconds: float) -> None:
        """The provider accepts no requests for this time."""
        moment = self._clock()
        await self._change(lambda state: state.paused(moment, seconds))

    async def ended(self) -> None:
        """The result says nothing about the provider, for example because the request was cancelled."""
        if self._is_probe:
            await self._change(lambda state: state.ended_probe())

    async def _change(self, change: Callable[[BreakerState], BreakerState]) -> None:
        before = (await self._states.read()).get(self._provider, CLOSED)
        await self._states.change(self._provider, _only_if_different(change))
        after = (await self._states.read()).get(self._provider, CLOSED)
        metrics.LLM_BREAKER_OPEN.labels(self._provider).set(not after.is_closed)
        if before.is_closed != after.is_closed:
            log.warning("circuit breaker of a language model provider", provider=self._provider, closed=after.is_closed)


def _only_if_different(change: Callable[[BreakerState], BreakerState]) -> Change:
    def changed(state: BreakerState) -> BreakerState | None:
        after = change(state)
        return None if after == state else after

    return changed
