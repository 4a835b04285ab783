"""Budgets in US dollars of a day in UTC: those of flows, and that of the operator for all users."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import structlog

from bloxserver.blocks.base import DAILY_BUDGET_USED, DAILY_BUDGET_WARNING, StepWarning
from bloxserver.llm.budgets import BudgetExceeded, Estimate, Used, dollars, is_crossed
from bloxserver.llm.ledger import Ledger
from bloxserver.model_prices import NANO
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import describe_error
from bloxserver.observability import metrics
from bloxserver.queries.execution_costs import day_of, read_cost_since

log = structlog.stdlib.get_logger("bloxserver.llm")

MAX_AGE = timedelta(seconds=5)
"""How long a process uses the sum that it has read. Calls of other processes count after this time."""
Flow = tuple[UUID, UUID]
"""A user and their flow."""


@dataclass(slots=True)
class _Day:
    """What the calls of a day have cost, in billionths of a US dollar."""

    begin: datetime
    stored: int = 0
    added: int = 0
    """By calls of this process that ended after the sum was read."""
    reserved: int = 0
    read_at: datetime | None = None
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def used(self) -> int:
        return self.stored + self.added


class DailyCosts:
    """The costs of the current day, of all flows that have a budget. An instance belongs to one event loop."""

    def __init__(self, database: Database, ledger: Ledger, clock: Callable[[], datetime]) -> None:
        self._database = database
        self._ledger = ledger
        self._clock = clock
        self._days: dict[Flow | None, _Day] = {}

    async def day_of(self, flow: Flow | None) -> _Day:
        """The costs of a flow, or of all users with the keys of the operator, at most `MAX_AGE` old.

        If they cannot be read, they are those that were read last.
        """
        moment = self._clock()
        begin = day_of(moment)
        day = self._days.get(flow)
        if day is None or day.begin != begin:
            self._days = {key: each for key, each in self._days.items() if each.begin == begin}
            day = self._days[flow] = _Day(begin)
        async with day.reading:
            if day.read_at is None or moment - day.read_at >= MAX_AGE:
                try:
                    await self._read(day, flow)
                except Exception as error:
                    log.error("daily budgets of language models are not checked", reason=describe_error(error))
                day.read_at = moment
        return day

    def seconds_until(self, moment: datetime) -> float:
        return max(0.0, (moment - self._clock()).total_seconds())

    async def _read(self, day: _Day, flow: Flow | None) -> None:
        added = day.added
        await self._ledger.flush()  # what was added until now is in the sum
        async with self._database.transaction(read_only=True) as session:
            day.stored = await read_cost_since(session, day.begin, flow)
        day.added -= added


class DailyBudget:
    """A budget of a flow, or of the operator."""

    def __init__(self, costs: DailyCosts, max_cost_usd: float, flow: Flow | None) -> None:
        self._costs = costs
        self._max_cost = round(max_cost_usd * NANO)
        self._flow = flow
        self._warnings: list[StepWarning] = []

    @asynccontextmanager
    async def reserved(self, estimate: Estimate, used: Used) -> AsyncIterator[None]:
        day = await self._costs.day_of(self._flow)
        if day.used + day.reserved + estimate.cost > self._max_cost:
            raise self._exceeded(day, estimate)
        day.reserved += estimate.cost
        try:
            yield
        finally:
            day.reserved -= estimate.cost
            before = day.used
            day.added += used.cost
            if is_crossed(self._max_cost, before, day.used):
                self._warn(day)

    def take_warnings(self) -> Iterator[StepWarning]:
        while self._warnings:
            yield self._warnings.pop(0)

    def _warn(self, day: _Day) -> None:
        shown = f"{dollars(day.used)} of {dollars(self._max_cost)} are used today"
        if self._flow is None:
            log.warning("the daily budget of language models is almost used", used=shown)
        else:
            message = f"{shown} (execution.daily_max_cost_usd)"
            self._warnings.append(StepWarning(DAILY_BUDGET_WARNING, message))

    def _exceeded(self, day: _Day, estimate: Estimate) -> BudgetExceeded:
        end = day.begin + timedelta(days=1)
        reset = f"it resets at {end:%Y-%m-%dT%H:%M:%SZ}"
        if self._flow is None:
            log.error("the daily budget of language models is used", used=dollars(day.used))
            metrics.LLM_LIMITED.labels("operator_daily_budget").inc()
            message = f"the daily budget of this server for language models is used; {reset}"
        else:
            used, wanted = dollars(day.used + day.reserved), dollars(estimate.cost)
            message = (
                f"the daily budget of the flow is {dollars(self._max_cost)}, {used} are used or reserved, and the next "
                f"call may use {wanted} (execution.daily_max_cost_usd); {reset}"
            )
            self._warnings.append(StepWarning(DAILY_BUDGET_USED, message))
        return BudgetExceeded("daily_budget_exceeded", message, retry_after=self._costs.seconds_until(end))
