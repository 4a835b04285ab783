"""Budgets of calls of language models: reservations, settlements and warnings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from bloxserver.clients.model_errors import ModelError
from bloxserver.llm.budgets import BudgetExceeded, Estimate, ExecutionBudget, Used, dollars, estimate_of
from bloxserver.llm.calls import ModelCall
from bloxserver.llm.gateway import CallerModels, LanguageModels
from bloxserver.model_catalogue import Price, Provider, Route
from tests.llm.callers import caller
from tests.llm.catalogues import providers, settings_of
from tests.llm_server import LanguageModelServer, fails, language_model, never, says

MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]
CALL = ModelCall(MESSAGES, "parrot-1", max_tokens=100)
PRICED = {"parrot-1": {"prices": {"input": 3, "output": 15}}}
NANO = 1_000_000_000


def budget_of(max_tokens: int | None = None, max_cost_usd: float | None = None, **earlier: int) -> ExecutionBudget:
    async def read_cost() -> int:
        return earlier.get("cost", 0)

    return ExecutionBudget(max_tokens, max_cost_usd, earlier.get("tokens", 0), read_cost)


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def world(
    stack: AsyncExitStack, folder: Path, budgets: Sequence[ExecutionBudget], script: Any
) -> tuple[list[CallerModels], LanguageModelServer]:
    """The access of one user's executions with these budgets."""
    server = await stack.enter_async_context(language_model(script))
    models = LanguageModels(settings_of(folder, {"providers": providers({"one": server.url}, models=PRICED)}))
    stack.push_async_callback(models.aclose)
    user = caller()
    return [models.of(replace(user, budgets=[budget])) for budget in budgets], server


async def ask(models: CallerModels, **options: Any) -> Any:
    return await models.request(MESSAGES, model="parrot-1", max_tokens=100, **options)


def test_estimate_has_the_price_of_the_most_expensive_provider() -> None:
    routes = [
        Route(Provider(f"{price}", "openai", "http://x", models={"m": None}, prices=prices), "m")
        for price, prices in {0: {}, 3: {"m": Price(3, 15)}, 1: {"m": Price(1, 2)}}.items()
    ]
    # 18 characters are 6 tokens.
    assert estimate_of(CALL, routes) == Estimate(106, 6 * 3_000 + 100 * 15_000)
    assert estimate_of(CALL, routes[:1]) == Estimate(106, 0)


async def test_call_that_would_exceed_the_budget_is_not_sent(tmp_path: Path, stack: AsyncExitStack) -> None:
    budget = budget_of(max_tokens=150)
    [models], server = await world(stack, tmp_path, [budget], [says("One.", input_tokens=40, output_tokens=5)] * 3)
    await ask(models)
    with pytest.raises(BudgetExceeded) as caught:
        await ask(models)
    assert len(server.requests) == 1
    assert (caught.value.code, caught.value.retryable) == ("execution_budget_exceeded", False)
    assert caught.value.message == (
        "the budget of the execution is 150 tokens, 45 are used or reserved, and the next call may use 106 "
        "(execution.max_tokens)"
    )


async def test_cost_of_earlier_runs_counts(tmp_path: Path, stack: AsyncExitStack) -> None:
    budgets = [budget_of(max_cost_usd=1, cost=NANO - 1_518_000 + extra) for extra in range(2)]
    script = [says("One.", input_tokens=40, output_tokens=5)] * 2
    [fits, exceeds], server = await world(stack, tmp_path, budgets, script)
    await ask(fits)
    with pytest.raises(BudgetExceeded, match=r"the budget of the execution is \$1, \$0\.998482 are used"):
        await ask(exceeds)
    assert len(server.requests) == 1


async def test_concurrent_calls_reserve_together(tmp_path: Path, stack: AsyncExitStack) -> None:
    [models], server = await world(stack, tmp_path, [budget_of(max_tokens=211)], lambda asked: never())
    first = asyncio.create_task(ask(models))
    await server.was_asked.wait()
    with pytest.raises(BudgetExceeded, match="106 are used or reserved"):
        await ask(models)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    # The provider may have counted the tokens of the cancelled call.
    with pytest.raises(BudgetExceeded, match="106 are used or reserved"):
        await ask(models)


async def test_failed_call_uses_nothing(tmp_path: Path, stack: AsyncExitStack) -> None:
    script = [fails(400), says("One.")]
    [models], _ = await world(stack, tmp_path, [budget_of(max_tokens=106, max_cost_usd=0.001518)], script)
    with pytest.raises(ModelError, match="rejected"):
        await ask(models)
    await ask(models)


async def test_warning_is_given_once_at_80_percent(tmp_path: Path, stack: AsyncExitStack) -> None:
    budget = budget_of(max_tokens=200, tokens=60)
    script = [says("One.", input_tokens=number, output_tokens=0) for number in (99, 1, 1)]
    [models], _ = await world(stack, tmp_path, [budget], script)
    given: list[list[str]] = []
    for used in (99, 1):
        budget_estimate = Estimate(1, 0)
        async with budget.reserved(budget_estimate, Used(used, 0)):
            pass
        given.append([warning.message for warning in models.take_warnings()])
    assert given == [[], ["160 of 200 tokens are used (execution.max_tokens)"]]
    async with budget.reserved(Estimate(1, 0), Used(1, 0)):
        pass
    assert models.take_warnings() == []


async def test_later_run_does_not_repeat_the_warning() -> None:
    budget = budget_of(max_tokens=200, max_cost_usd=1, tokens=160, cost=8 * NANO // 10)
    async with budget.reserved(Estimate(1, 1), Used(1, 1)):
        pass
    assert [*budget.take_warnings()] == []


async def test_response_of_the_cache_is_free(tmp_path: Path, stack: AsyncExitStack) -> None:
    budgets = [budget_of(max_tokens=106), budget_of(max_tokens=1)]
    [first, second], server = await world(stack, tmp_path, budgets, [says("One.")])
    await ask(first, temperature=0)
    assert (await ask(second, temperature=0)).text == "One."
    assert len(server.requests) == 1


async def test_equal_call_of_an_execution_with_a_larger_budget_is_sent(tmp_path: Path, stack: AsyncExitStack) -> None:
    reading, read = asyncio.Event(), asyncio.Event()

    async def read_cost() -> int:
        reading.set()
        await read.wait()
        return 0

    budgets = [ExecutionBudget(1, 1, 0, read_cost), budget_of(max_tokens=106)]
    [small, large], server = await world(stack, tmp_path, budgets, [says("One.")])
    await large.load("parrot-1")
    first = asyncio.create_task(ask(small, temperature=0))
    await reading.wait()
    second = asyncio.create_task(ask(large, temperature=0))
    for _ in range(20):  # until the second call waits for the first one
        await asyncio.sleep(0)
    read.set()
    with pytest.raises(BudgetExceeded):
        await first
    assert (await second).text == "One."
    assert len(server.requests) == 1


@pytest.mark.parametrize(("nano", "shown"), [(0, "$0"), (NANO, "$1"), (1_500_000, "$0.0015"), (1, "$0")])
def test_amounts_are_shown_in_dollars(nano: int, shown: str) -> None:
    assert dollars(nano) == shown
