"""A scripted language model on loopback, and a conversation in memory, for the tests of the agent."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any
from uuid import uuid4

import pytest
from pydantic import JsonValue, SecretStr

from bloxserver.blocks import http_request, transform
from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import AgentContext, BlockContext, BlockError, StepWarning, Tool
from bloxserver.blocks.tools import tool_of
from bloxserver.engine.live_texts import LiveTexts
from bloxserver.engine.run.live_models import LiveModels
from bloxserver.engine.run.messages import Message
from bloxserver.llm.gateway import CallerModels, LanguageModels
from bloxserver.raw_json import Value, plain, text_of_value
from bloxserver.settings import Settings
from tests.llm.callers import caller
from tests.llm_server import Api, LanguageModelServer, Reply, language_model

KEY = "sk-canary-key-4711"
PROMPT = "You answer briefly. {{ payload.secret }}"
QUESTION = "What is on the page?"
FETCH = tool_of("fetch.page", "Fetches a page.", http_request.block, http_request.HttpRequestConfig(), ())
SHAPE = tool_of("shape", "Shapes anything.", transform.block, transform.TransformConfig(expression="payload"), ())

both_providers = pytest.mark.parametrize("provider", ["openai", "anthropic"])

Respond = Callable[[JsonValue], Awaitable[JsonValue]]


@dataclass
class StoredConversation:
    """A conversation that keeps in memory what the engine stores in the database."""

    respond: Mapping[str, Respond] = field(default_factory=dict)
    state: JsonValue = None
    answered: dict[str, JsonValue] = field(default_factory=dict)
    kept: list[JsonValue] = field(default_factory=list)
    tokens: list[tuple[int, int]] = field(default_factory=list)
    called: list[tuple[str, JsonValue, str]] = field(default_factory=list)
    warnings: list[StepWarning] = field(default_factory=list)

    async def keep(self, state: Value, *, input_tokens: int, output_tokens: int) -> None:
        self.state = json.loads(text_of_value(state))
        self.kept.append(self.state)
        self.tokens.append((input_tokens, output_tokens))

    def warn(self, warning: StepWarning) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    async def call(self, tool: Tool, payload: Value, call: str) -> JsonValue:
        payload = plain(payload)
        if call not in self.answered:
            self.called.append((tool.listener, payload, call))
            self.answered[call] = await self.respond[tool.listener](payload)
        return self.answered[call]


async def fetched(payload: JsonValue) -> JsonValue:
    assert isinstance(payload, dict)
    return {"status": 200, "body": f"page {payload.get('url')}"}


async def refused(payload: JsonValue) -> JsonValue:
    raise BlockError("http_error_status", "example.com answered 404 Not Found")


@asynccontextmanager
async def language_models(
    *script: Reply, provider: Api = "openai"
) -> AsyncIterator[tuple[CallerModels, LanguageModelServer]]:
    async with language_model(script) as server:
        settings = Settings(
            llm_provider=provider,
            llm_base_url=server.url,
            llm_api_key=SecretStr(KEY),
            llm_model="parrot-1",
            llm_timeout_seconds=20,
        )
        models = LanguageModels(settings)
        yield models.of(caller()), server
        await models.aclose()


async def answer_of(
    context: BlockContext,
    models: CallerModels,
    memory: StoredConversation,
    payload: JsonValue = QUESTION,
    tools: tuple[Tool, ...] = (FETCH, SHAPE),
    **config: Any,
) -> JsonValue:
    given = agent.config.model_validate({"prompt": PROMPT} | config)
    agent_context = replace(
        context, agent=AgentContext(LiveModels(models, LiveTexts(), uuid4(), Message("a", None), 1), tools, memory)
    )
    answer = await agent.handler(agent.payload.model_validate(payload), given, agent_context)
    assert isinstance(answer, dict)
    return answer
