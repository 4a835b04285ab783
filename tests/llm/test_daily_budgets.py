"""Budgets of a day: of flows, and of the operator for all users."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from bloxserver.llm.budgets import BudgetExceeded
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.gateway import CallerModels, LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord
from bloxserver.plans import PLANS
from tests.factories import create_user
from tests.llm.catalogues import Clock, providers, settings_of
from tests.llm_server import language_model, says
from tests.metric_increase import measure_increase
from tests.statements import count_statements

MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]
PRICED = {"parrot-1": {"prices": {"input": 1_000, "output": 1_000}}}
"""A thousand tokens are a dollar. A call reserves $0.106, and uses $0.1."""
USED = says("Fine.", input_tokens=90, output_tokens=10)
NANO = 1_000_000_000


@pytest.fixture
async def calling(live_database: Database) -> Caller:
    async with live_database.transaction() as session:
        user = await create_user(session)
    return Caller(user.id, "pro", PLANS["pro"], uuid4(), uuid4(), uuid4())


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    # The ledger uses the time of the machine.
    clock.moment = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(hours=1)
    return clock


@pytest.fixture
async def stack() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


async def gateway(
    stack: AsyncExitStack, folder: Path, database: Database, clock: Clock, **settings: Any
) -> LanguageModels:
    """A process."""
    server = await stack.enter_async_context(language_model(lambda asked: USED))
    document = {"providers": providers({"one": server.url}, models=PRICED)}
    folder = folder / f"{uuid4()}"
    folder.mkdir()
    models = LanguageModels(settings_of(folder, document, **settings), database, clock)
    stack.push_async_callback(models.aclose)
    return models


def limited(models: LanguageModels, caller: Caller, dollars: float) -> CallerModels:
    assert caller.flow_id is not None
    return models.of(replace(caller, budgets=models.daily_budget(caller.user_id, caller.flow_id, dollars)))


async def ask(models: CallerModels, **options: Any) -> Any:
    return await models.request(MESSAGES, model="parrot-1", max_tokens=100, **options)


async def spend(database: Database, caller: Caller, dollars: float, moment: datetime, **values: Any) -> None:
    row: dict[str, Any] = {"id": uuid4(), "user_id": caller.user_id, "flow_id": caller.flow_id, "model": "m"}
    row |= {"cost_nanousd": round(dollars * NANO), "created_at": moment, **values}
    async with database.transaction() as session:
        await session.execute(sa.insert(LlmCallRecord), [row])


async def test_calls_of_today_count_against_the_budget_of_the_flow(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    midnight = clock().replace(hour=0)
    await spend(live_database, calling, 5, midnight - timedelta(microseconds=1))
    await spend(live_database, calling, 5, midnight, flow_id=uuid4())
    await spend(live_database, calling, 0.6, midnight)
    models = limited(await gateway(stack, tmp_path, live_database, clock), calling, 0.8)
    await ask(models)
    with pytest.raises(BudgetExceeded) as caught:
        await ask(models)
    assert caught.value.code == "daily_budget_exceeded"
    reset = f"{midnight + timedelta(days=1):%Y-%m-%d}T00:00:00Z"
    assert caught.value.message == (
        "the daily budget of the flow is $0.8, $0.7 are used or reserved, and the next call may use $0.106 "
        f"(execution.daily_max_cost_usd); it resets at {reset}"
    )


async def test_warning_is_given_at_80_percent(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    models = limited(await gateway(stack, tmp_path, live_database, clock), calling, 0.5)
    warnings = []
    for _ in range(4):
        await ask(models)
        warnings.append([warning.message for warning in models.take_warnings()])
    assert warnings == [[], [], [], ["$0.4 of $0.5 are used today (execution.daily_max_cost_usd)"]]


async def test_calls_of_other_processes_count_after_five_seconds(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    first = await gateway(stack, tmp_path, live_database, clock)
    second = limited(await gateway(stack, tmp_path, live_database, clock), calling, 0.25)
    await ask(second)
    await spend(live_database, calling, 0.1, clock())
    clock.advance(4.9)
    await ask(second)
    clock.advance(0.1)
    with pytest.raises(BudgetExceeded, match=r"\$0\.3 are used"):
        await ask(second)
    # A process that has read nothing yet reads at once.
    with pytest.raises(BudgetExceeded, match=r"\$0\.3 are used"):
        await ask(limited(first, calling, 0.25))


async def test_own_calls_are_counted_once_after_the_sum_is_read_again(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    models = limited(await gateway(stack, tmp_path, live_database, clock), calling, 0.51)
    for _ in range(4):
        await ask(models)
        clock.advance(5)
    await ask(models)
    with pytest.raises(BudgetExceeded, match=r"\$0\.5 are used"):
        await ask(models)


async def test_budget_resets_at_midnight(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    models = limited(await gateway(stack, tmp_path, live_database, clock), calling, 0.15)
    await ask(models)
    with pytest.raises(BudgetExceeded):
        await ask(models)
    clock.advance(86_400)
    await ask(models)


async def test_operator_has_a_budget_for_all_users(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    async with live_database.transaction() as session:
        other = await create_user(session, clerk_id="o", email="o@example.com")
    await spend(live_database, replace(calling, user_id=other.id), 0.5, clock())
    await spend(live_database, calling, 7, clock(), own_key=True)
    models = await gateway(stack, tmp_path, live_database, clock, llm_daily_max_usd=0.65)
    await ask(models.of(calling))
    with (
        measure_increase("bloxserver_llm_limited_total", limit="operator_daily_budget") as refused,
        pytest.raises(BudgetExceeded, match="the daily budget of this server") as caught,
    ):
        await ask(models.of(replace(calling, user_id=other.id)))
    assert refused.number == 1
    assert "$" not in caught.value.message
    assert caught.value.retry_after == 82_800


async def test_budget_of_the_operator_limits_streams_and_embeddings(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    await spend(live_database, calling, 1, clock())
    models = await gateway(stack, tmp_path, live_database, clock, llm_daily_max_usd=1)
    with pytest.raises(BudgetExceeded):
        await anext(models.stream(ModelCall(MESSAGES, "parrot-1"), calling))
    with pytest.raises(BudgetExceeded):
        await models.embed(["Fine."], "parrot-1", calling)


async def test_sum_is_read_with_one_statement(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    models = limited(await gateway(stack, tmp_path, live_database, clock), calling, 100)
    await ask(models)
    engine = live_database.reading_engine if live_database.is_sqlite else live_database.engine
    with count_statements(engine) as statements:
        await ask(models)
        clock.advance(5)
        await ask(models)
    assert len([each for each in statements if "sum(llm_calls.cost_nanousd)" in each.lower()]) == 1


async def test_sum_of_all_calls_is_read_from_the_index_alone(live_database: Database) -> None:
    async with live_database.transaction() as session:
        if live_database.is_sqlite:
            prefix, expected = "EXPLAIN QUERY PLAN ", "USING COVERING INDEX"
        else:
            prefix, expected = "EXPLAIN ", "Index Only Scan"
            for kind in ("seqscan", "bitmapscan"):  # which are faster for an empty table
                await session.execute(sa.text(f"SET LOCAL enable_{kind} = off"))
        statement = "SELECT sum(cost_nanousd) FROM llm_calls WHERE created_at >= '2026-01-01' AND own_key IS false"
        plan = [str(row) for row in await session.execute(sa.text(prefix + statement))]
    assert any(expected in row and "ix_llm_calls_created_at_own_key_cost_nanousd" in row for row in plan)


async def test_calls_are_made_while_the_sum_cannot_be_read(
    tmp_path: Path, live_database: Database, calling: Caller, clock: Clock, stack: AsyncExitStack
) -> None:
    models = limited(await gateway(stack, tmp_path, live_database, clock), calling, 0.25)
    async with live_database.transaction() as session:
        await session.execute(sa.text("ALTER TABLE llm_calls RENAME TO hidden_calls"))
    try:
        await ask(models)
        await ask(models)
        with pytest.raises(BudgetExceeded, match=r"\$0\.2 are used"):
            await ask(models)
    finally:
        async with live_database.transaction() as session:
            await session.execute(sa.text("ALTER TABLE hidden_calls RENAME TO llm_calls"))
