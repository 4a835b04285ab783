"""One row for each call: who made it, what it used and what it cost."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy as sa
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from bloxserver.clients.model_errors import ModelError
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import LanguageModels
from bloxserver.model_catalogue import BASE_URLS, Price, Provider
from bloxserver.model_prices import cost_of
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord, UsageRecord, UserRecord
from bloxserver.plans import PLANS
from tests.factories import create_user
from tests.llm.catalogues import providers, settings_of
from tests.llm_server import fails, language_model, never, says

MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]
PRICED = {"parrot-1": {"prices": {"input": 3, "output": 15}}}


@pytest.fixture
async def calling(live_database: Database) -> Caller:
    async with live_database.transaction() as session:
        user = await create_user(session)
    return Caller(user.id, "pro", PLANS["pro"], uuid4(), uuid4(), uuid4())


async def recorded(database: Database) -> Sequence[LlmCallRecord]:
    async with database.transaction(read_only=True) as session:
        return (await session.scalars(sa.select(LlmCallRecord).order_by(LlmCallRecord.created_at))).all()


async def world(
    stack: AsyncExitStack, folder: Path, database: Database, *scripts: Any, **values: Any
) -> LanguageModels:
    """Access to one provider for each script."""
    servers = [await stack.enter_async_context(language_model(script)) for script in scripts]
    urls = {f"provider-{number}": server.url for number, server in enumerate(servers, start=1)}
    models = LanguageModels(settings_of(folder, {"providers": providers(urls, **values)}), database)
    stack.push_async_callback(models.aclose)
    return models


async def test_call_is_recorded_with_its_tokens_and_cost(
    tmp_path: Path, live_database: Database, calling: Caller
) -> None:
    async with AsyncExitStack() as stack:
        script = [says("A canary.", input_tokens=1_000, output_tokens=200)]
        models = await world(stack, tmp_path, live_database, script, models=PRICED)
        await models.of(calling).request(MESSAGES, model="parrot-1")
    [call] = await recorded(live_database)
    assert (call.user_id, call.flow_id, call.execution_id, call.step_id) == (
        calling.user_id, calling.flow_id, calling.execution_id, calling.step_id
    )  # fmt: skip
    assert (call.provider, call.model, call.attempts, call.error_code) == ("provider-1", "parrot-1", 1, None)
    # 1,000 tokens at $3 and 200 at $15 for a million.
    assert (call.input_tokens, call.output_tokens, call.cost_nanousd) == (1_000, 200, 6_000_000)
    assert (call.cached, call.own_key, call.first_token_ms) == (False, False, None)
    assert call.duration_ms >= 0


async def test_call_from_the_cache_is_recorded_without_tokens_and_cost(
    tmp_path: Path, live_database: Database, calling: Caller
) -> None:
    async with AsyncExitStack() as stack:
        script = [says("A canary.", input_tokens=1_000, output_tokens=200)]
        models = await world(stack, tmp_path, live_database, script, models=PRICED)
        for _ in range(2):
            await models.of(calling).request(MESSAGES, model="parrot-1", temperature=0)
    sent, hit = sorted(await recorded(live_database), key=lambda call: call.cached)
    assert (sent.cached, sent.input_tokens, sent.cost_nanousd) == (False, 1_000, 6_000_000)
    assert (hit.cached, hit.input_tokens, hit.output_tokens, hit.cost_nanousd) == (True, 0, 0, 0)
    assert (hit.provider, hit.attempts, hit.error_code) == (None, 0, None)


@pytest.mark.parametrize(("in_execution", "counted"), [(False, (3_000, 600)), (True, (0, 0))])
async def test_tokens_of_a_call_without_an_execution_count_once_in_the_usage(
    tmp_path: Path, live_database: Database, calling: Caller, in_execution: bool, counted: tuple[int, int]
) -> None:
    """Those of executions are counted with their steps."""
    user = calling if in_execution else replace(calling, flow_id=None, execution_id=None, step_id=None)
    async with AsyncExitStack() as stack:
        script = [says("A canary.", input_tokens=1_000, output_tokens=200)] * 3
        models = await world(stack, tmp_path, live_database, script)
        for _ in script:
            await models.of(user).request(MESSAGES, model="parrot-1")
    async with live_database.transaction(read_only=True) as session:
        sums = sa.select(sa.func.sum(UsageRecord.llm_tokens_in), sa.func.sum(UsageRecord.llm_tokens_out))
        row = (await session.execute(sums.where(UsageRecord.user_id == calling.user_id))).one()
    assert (row[0] or 0, row[1] or 0) == counted


async def test_failover_is_one_call_with_two_attempts(tmp_path: Path, live_database: Database, calling: Caller) -> None:
    async with AsyncExitStack() as stack:
        models = await world(stack, tmp_path, live_database, [fails(500)], [says("I did.")])
        await models.of(calling).request(MESSAGES, model="parrot-1")
    [call] = await recorded(live_database)
    assert (call.provider, call.attempts, call.error_code, call.cost_nanousd) == ("provider-2", 2, None, None)


async def test_failed_call_is_recorded_with_its_error_and_tokens(
    tmp_path: Path, live_database: Database, calling: Caller
) -> None:
    async with AsyncExitStack() as stack:
        script = [says("I", finish="length", input_tokens=30, output_tokens=4), fails(400)]
        models = await world(stack, tmp_path, live_database, script)
        for _ in range(2):
            with pytest.raises(ModelError):
                await models.of(calling).request(MESSAGES, model="parrot-1")
    calls = await recorded(live_database)
    assert [(call.error_code, call.input_tokens, call.output_tokens) for call in calls] == [
        ("llm_too_long", 30, 4),
        ("llm_rejected", 0, 0),
    ]


async def test_cancelled_call_is_recorded(tmp_path: Path, live_database: Database, calling: Caller) -> None:
    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(language_model([never()]))
        models = LanguageModels(settings_of(tmp_path, {"providers": providers({"only": server.url})}), live_database)
        stack.push_async_callback(models.aclose)
        request = asyncio.create_task(models.of(calling).request(MESSAGES, model="parrot-1"))
        async with asyncio.timeout(10):
            await server.was_asked.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
    [call] = await recorded(live_database)
    assert (call.error_code, call.attempts) == ("cancelled", 1)


async def test_call_of_a_user_who_was_deleted_does_not_stop_other_records(
    tmp_path: Path, live_database: Database, calling: Caller
) -> None:
    async with AsyncExitStack() as stack:
        models = await world(stack, tmp_path, live_database, [says("a"), says("b")])
        await models.of(replace(calling, user_id=uuid4())).request(MESSAGES, model="parrot-1")
        await models.of(calling).request(MESSAGES, model="parrot-1")
    assert [call.user_id for call in await recorded(live_database)] == [calling.user_id]


async def test_calls_are_deleted_with_their_user(tmp_path: Path, live_database: Database, calling: Caller) -> None:
    async with AsyncExitStack() as stack:
        models = await world(stack, tmp_path, live_database, [says("a")])
        await models.of(calling).request(MESSAGES, model="parrot-1")
    async with live_database.transaction() as session:
        await session.execute(sa.delete(UserRecord).where(UserRecord.id == calling.user_id))
    assert await recorded(live_database) == []


@pytest.mark.parametrize(
    ("provider", "model", "cost"),
    [
        (Provider("a", "openai", BASE_URLS["openai"]), "gpt-4o-mini", 210_000),
        (Provider("a", "anthropic", BASE_URLS["anthropic"]), "claude-sonnet-4-5", 4_500_000),
        (Provider("a", "openai", BASE_URLS["openai"]), "parrot-1", None),
        # A server of the operator can run a model of any name.
        (Provider("a", "openai", "http://localhost:11434/v1"), "gpt-4o-mini", None),
        (
            Provider("a", "openai", "http://localhost:1/v1", models={"m": "own"}, prices={"m": Price(1, 2)}),
            "own",
            1_200_000,
        ),
        (Provider("a", "openai", BASE_URLS["openai"], prices={"*": Price(0, 0)}), "gpt-4o-mini", 0),
    ],
)
def test_cost_is_that_of_the_file_or_the_public_price(provider: Provider, model: str, cost: int | None) -> None:
    assert cost_of(provider, model, 1_000, 100) == cost
