"""Measures what the gateway adds to a call of a language model, by alternating with the same request by raw httpx2."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING
from uuid import UUID

from benchmarks.installation import SQLITE, BenchmarkEnvironment
from benchmarks.results import Result, percentile
from benchmarks.sizes import Sizes
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import CallerModels, LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.sqlite_connection import shorten_switch_interval
from bloxserver.plans import MAX_LIMIT, Plan
from bloxserver.settings import Settings
from tests.factories import create_user
from tests.llm.callers import caller
from tests.llm_server import language_model, says
from tests.redis_server import redis_server

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

PLAN = Plan(1, None, llm_requests_per_minute=MAX_LIMIT, llm_tokens_per_minute=MAX_LIMIT, llm_concurrent=1_000)
CONCURRENT = 50
BODY = {"model": "parrot-1", "messages": [{"role": "user", "content": "q" * 300}]}


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure in this process, without limits, and with limits in the database and in Redis."""
    if kind == SQLITE:
        shorten_switch_interval()  # as a server does
    results: list[Result] = []
    async with environment.installation(kind) as installation:
        async with installation.database.transaction() as session:
            user_id = (await create_user(session)).id
        if kind == environment.kinds[0]:
            results.append(await _measure("", "without a database", sizes, "p50 <= 2 ms, p99 <= 6 ms"))
        limited = await _measure(kind, "limits in the database", sizes, "p50 <= 4 ms", installation.database, user_id)
        results.append(limited)
        async with redis_server() as url:
            results.append(
                await _measure(
                    kind,
                    "limits in Redis",
                    sizes,
                    "p50 <= 2 ms, p99 <= 6 ms",
                    installation.database,
                    user_id,
                    redis_url=url,
                )
            )
    return results


async def _measure(
    kind: str,
    measured: str,
    sizes: Sizes,
    target: str,
    database: Database | None = None,
    user_id: UUID | None = None,
    **settings: str,
) -> Result:
    import httpx2

    async with AsyncExitStack() as stack:
        server = await stack.enter_async_context(language_model(lambda asked: says("a" * 1_000)))
        given = {"llm_base_url": server.url, "llm_provider": "openai", "llm_model": "parrot-1", "llm_providers": None}
        models = LanguageModels(Settings(**{**given, "rate_limits": True, **settings}), database)  # type: ignore[arg-type]
        stack.push_async_callback(models.aclose)
        http = await stack.enter_async_context(httpx2.AsyncClient(trust_env=False))
        await models.load(None)
        user = models.of(caller() if user_id is None else Caller(user_id, "enterprise", PLAN))
        messages = _messages()

        async def directly() -> None:
            (await http.post(f"{server.url}/chat/completions", json=BODY)).json()

        async def through_gateway() -> None:
            await user.request(messages)

        for _ in range(5):
            await directly()
            await through_gateway()
        times = await _alternating(directly, through_gateway, sizes.llm_calls)
        rate = await _calls_per_cpu_second(user, messages, sizes.llm_calls)
        added = [gateway - raw for raw, gateway in times]
    summary = ", ".join(f"p{round(100 * part)} {percentile(added, part):.2f}" for part in (0.5, 0.99))
    return Result("llm_gateway", kind, f"added: {measured}", f"{summary} ms; {rate:.0f} calls/s of CPU", target)


async def _alternating(
    first: Callable[[], Awaitable[None]], second: Callable[[], Awaitable[None]], number: int
) -> list[tuple[float, float]]:
    """The times of both in milliseconds, in turn."""
    times: list[tuple[float, float]] = []
    for _ in range(number):
        started = time.perf_counter()
        await first()
        between = time.perf_counter()
        await second()
        times.append(((between - started) * 1_000, (time.perf_counter() - between) * 1_000))
    return times


async def _calls_per_cpu_second(user: CallerModels, messages: list[ModelMessage], number: int) -> float:
    """Calls in a second of CPU time of this process, which also runs the server of the model."""

    async def some() -> None:
        for _ in range(number // CONCURRENT or 1):
            await user.request(messages)

    started = time.process_time()
    await asyncio.gather(*(some() for _ in range(CONCURRENT)))
    return CONCURRENT * (number // CONCURRENT or 1) / (time.process_time() - started)


def _messages() -> list[ModelMessage]:
    from pydantic_ai.messages import ModelRequest, UserPromptPart

    return [ModelRequest([UserPromptPart("q" * 300)])]
