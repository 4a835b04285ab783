"""Measures the time of a response of a language model from the cache, and of the key of a large request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.installation import BenchmarkEnvironment
from benchmarks.results import Result, percentile
from benchmarks.sizes import Sizes
from bloxserver.llm.gateway import CallerModels, LanguageModels
from bloxserver.settings import Settings
from tests.llm.callers import caller
from tests.llm_server import language_model, says

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.tools import ToolDefinition

ANSWER_CHARACTERS = 1_000
LARGE_CHARACTERS = 1024 * 1024 - 2_000
"""Close to the limit of a request, with its other texts."""


async def measure(environment: BenchmarkEnvironment, kind: str, sizes: Sizes) -> list[Result]:
    """Measure in this process. There is no database."""
    if kind != environment.kinds[0]:
        return []
    async with language_model(lambda asked: says("a" * ANSWER_CHARACTERS)) as server:
        settings = Settings(llm_base_url=server.url, llm_provider="openai", llm_model="parrot-1", llm_providers=None)
        models = LanguageModels(settings)
        try:
            await models.load(None)
            user = models.of(caller())
            return [
                await _measure(user, "a hit: one question, five tools", _conversation(0), sizes, "p50 <= 0.3 ms"),
                await _measure(user, "a hit: after ten calls of tools", _conversation(10), sizes, "p50 <= 0.3 ms"),
                await _measure(user, "a hit: 1 MiB of ASCII", _question("a" * LARGE_CHARACTERS), sizes, "<= 10 ms"),
                await _measure(user, "a hit: 4 MiB of emoji", _question("😀" * LARGE_CHARACTERS), sizes, "<= 10 ms"),
            ]
        finally:
            await models.aclose()


async def _measure(
    user: CallerModels, measured: str, messages: Sequence[ModelMessage], sizes: Sizes, target: str
) -> Result:
    tools = _tools()
    times: list[float] = []
    cpu_times: list[float] = []
    for _ in range(sizes.cache_hits + 1):
        started, cpu_started = time.perf_counter(), time.thread_time()
        await user.request(messages, tools=tools, temperature=0)
        times.append((time.perf_counter() - started) * 1000)
        cpu_times.append((time.thread_time() - cpu_started) * 1000)
    del times[0], cpu_times[0]  # the request to the model
    return Result("llm_cache", "", measured, f"{_summary(times)}; CPU {_summary(cpu_times)}", target)


def _summary(times: Sequence[float]) -> str:
    return f"p50 {percentile(times, 0.5):.3f}, p99 {percentile(times, 0.99):.3f} ms"


def _tools() -> list[ToolDefinition]:
    from pydantic_ai.tools import ToolDefinition

    properties = {name: {"type": "string", "description": "x" * 40} for name in "abcdef"}
    schema = {"type": "object", "properties": properties}
    return [
        ToolDefinition(name=f"tool_{number}", parameters_json_schema=schema, description="d" * 100)
        for number in range(5)
    ]


def _question(text: str) -> list[ModelMessage]:
    from pydantic_ai.messages import ModelRequest, SystemPromptPart, UserPromptPart

    return [ModelRequest([SystemPromptPart("p" * 1_000), UserPromptPart(text)])]


def _conversation(calls: int) -> list[ModelMessage]:
    from pydantic_ai.messages import ModelRequest, ModelResponse, ToolCallPart, ToolReturnPart

    messages = _question("q" * 300)
    for number in range(calls):
        messages += [
            ModelResponse([ToolCallPart("tool_1", {"a": "x" * 50}, f"call_{number}")]),
            ModelRequest([ToolReturnPart("tool_1", "y" * 500, f"call_{number}")]),
        ]
    return messages
