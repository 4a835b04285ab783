"""Budgets of calls of language models. A call reserves what it may use, and settles it with what it has used.

A budget counts what calls have used and what calls that have not ended reserve. If a reservation would exceed it, the
call is not made, and the execution ends.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from bloxserver.blocks.base import EXECUTION_BUDGET_WARNING, StepWarning
from bloxserver.clients.model_errors import ModelError
from bloxserver.llm.calls import ModelCall
from bloxserver.llm.ledger import CallReport
from bloxserver.llm.limits import estimated_usage
from bloxserver.model_catalogue import Route
from bloxserver.model_prices import NANO, cost_of

WARNED_SHARE = 0.8
"""Of a budget. When calls have used this much, the step gets a warning, once for each execution."""


class BudgetExceeded(ModelError):
    """A call would exceed a budget. The execution ends, and no listener or model gets the error."""

    ends_execution = True

    def __init__(self, code: str, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(code, message, retryable=False, retry_after=retry_after)


@dataclass(frozen=True, slots=True)
class Estimate:
    """The most that a call may use. Costs are in billionths of a US dollar, and 0 if the price is unknown."""

    tokens: int
    cost: int


def estimate_of(call: ModelCall, routes: Sequence[Route]) -> Estimate:
    """The estimate for a call, with the price of the most expensive provider that may be asked."""
    used = estimated_usage(call)
    costs = [cost_of(route.provider, route.model, *used) or 0 for route in routes]
    return Estimate(sum(used), max(costs, default=0))


@dataclass(slots=True)
class Used:
    """What a call has used. Until it is set, what it has reserved: the provider may have counted it."""

    tokens: int
    cost: int

    def settle(self, report: CallReport) -> None:
        self.tokens = report.input_tokens + report.output_tokens
        cost = None
        if report.provider is not None:
            cost = cost_of(report.provider, report.provider_model, report.input_tokens, report.output_tokens)
        self.cost = cost or 0


class Budget(Protocol):
    """A limit of what calls use. Instances belong to one event loop."""

    def reserved(self, estimate: Estimate, used: Used) -> AbstractAsyncContextManager[None]:
        """Reserve the estimate within the block, and count `used` when it ends. Raises `BudgetExceeded`."""

    def take_warnings(self) -> Iterator[StepWarning]:
        """Yield warnings that were not taken yet."""


@asynccontextmanager
async def reserved(
    budgets: Sequence[Budget], call: ModelCall, routes: Sequence[Route], report: CallReport
) -> AsyncIterator[None]:
    """Reserve what the call may use in all budgets within the block, which reports what it has used.

    If the block is cancelled, what it has reserved counts as used. Raises `BudgetExceeded`.
    """
    if not budgets:
        yield
        return
    estimate = estimate_of(call, routes)
    used = Used(estimate.tokens, estimate.cost)
    async with AsyncExitStack() as stack:
        for budget in budgets:
            await stack.enter_async_context(budget.reserved(estimate, used))
        try:
            yield
        except ModelError as error:
            report.used(error.input_tokens, error.output_tokens)
            used.settle(report)
            raise
        used.settle(report)


class ExecutionBudget:
    """The budget of one execution, while one worker runs it."""

    def __init__(
        self,
        max_tokens: int | None,
        max_cost_usd: float | None,
        used_tokens: int,
        read_cost: Callable[[], Awaitable[int]],
    ) -> None:
        """`used_tokens` and the result of `read_cost` are those of earlier runs of the execution."""
        self._max_tokens = max_tokens
        self._max_cost = None if max_cost_usd is None else round(max_cost_usd * NANO)
        self._tokens = used_tokens
        self._cost = 0
        self._read_cost = None if self._max_cost is None else read_cost
        self._reserved_tokens = 0
        self._reserved_cost = 0
        self._warnings: list[str] = []

    @asynccontextmanager
    async def reserved(self, estimate: Estimate, used: Used) -> AsyncIterator[None]:
        if self._read_cost is not None:
            earlier = await self._read_cost()
            if self._read_cost is not None:  # not read meanwhile by a concurrent call
                self._cost += earlier
                self._read_cost = None
        self._check(estimate)
        self._reserved_tokens += estimate.tokens
        self._reserved_cost += estimate.cost
        try:
            yield
        finally:
            self._reserved_tokens -= estimate.tokens
            self._reserved_cost -= estimate.cost
            self._count(used)

    def take_warnings(self) -> Iterator[StepWarning]:
        while self._warnings:
            yield StepWarning(EXECUTION_BUDGET_WARNING, self._warnings.pop(0))

    def _check(self, estimate: Estimate) -> None:
        tokens = self._tokens + self._reserved_tokens
        if self._max_tokens is not None and tokens + estimate.tokens > self._max_tokens:
            raise _exceeded("max_tokens", f"{self._max_tokens} tokens", f"{tokens}", f"{estimate.tokens}")
        cost = self._cost + self._reserved_cost
        if self._max_cost is not None and cost + estimate.cost > self._max_cost:
            raise _exceeded("max_cost_usd", dollars(self._max_cost), dollars(cost), dollars(estimate.cost))

    def _count(self, used: Used) -> None:
        before = self._tokens, self._cost
        self._tokens += used.tokens
        self._cost += used.cost
        if is_crossed(self._max_tokens, before[0], self._tokens):
            self._warnings.append(f"{self._tokens} of {self._max_tokens} tokens are used (execution.max_tokens)")
        if is_crossed(self._max_cost, before[1], self._cost):
            shown = f"{dollars(self._cost)} of {dollars(self._max_cost or 0)}"
            self._warnings.append(f"{shown} are used (execution.max_cost_usd)")


def is_crossed(maximum: int | None, before: int, after: int) -> bool:
    """Whether calls have reached the share for a warning between these counts."""
    return maximum is not None and before < WARNED_SHARE * maximum <= after


def _exceeded(key: str, maximum: str, used: str, estimate: str) -> BudgetExceeded:
    message = (
        f"the budget of the execution is {maximum}, {used} are used or reserved, and the next call may use {estimate} "
        f"(execution.{key})"
    )
    return BudgetExceeded("execution_budget_exceeded", message)


def dollars(nanousd: int) -> str:
    """An amount in billionths of a US dollar, as text."""
    return f"${nanousd / NANO:.6f}".rstrip("0").rstrip(".")
