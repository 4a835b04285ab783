"""Chat completions with OpenAI's library as the client of a real server, and providers with scripted responses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import openai
from openai.types.chat import ChatCompletionChunk

from bloxserver.models.database import Database
from tests.api.openai_clients import Endpoint, endpoint
from tests.llm.catalogues import providers
from tests.llm_server import (
    Asked,
    LanguageModelServer,
    Reply,
    language_model,
)

MESSAGES: list[Any] = [{"role": "user", "content": "What do you guard?"}]
Scripts = Sequence[Callable[[Asked], Reply]]


def always(reply: Reply) -> Callable[[Asked], Reply]:
    return lambda asked: reply


@asynccontextmanager
async def serving(
    database: Database, folder: Path, *replies: Reply, kind: str = "openai", **options: Any
) -> AsyncIterator[tuple[Endpoint, list[LanguageModelServer]]]:
    """The endpoint with a provider of `parrot-1` for each reply, which are asked in this order."""
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(language_model(always(reply))) for reply in replies]
        urls = {f"provider-{number}": server.url for number, server in enumerate(servers)}
        provider = {name: options.pop(name) for name in [*options] if name.endswith("timeout_seconds")}
        document = {"providers": providers(urls, **provider | {"kind": kind}), "aliases": {"fast": ["parrot-1"]}}
        yield await stack.enter_async_context(endpoint(database, folder, document, **options)), servers


async def streamed(client: openai.AsyncOpenAI, **given: Any) -> list[ChatCompletionChunk]:
    stream = await client.chat.completions.create(
        **{"model": "parrot-1", "messages": MESSAGES, "stream": True} | given  # type: ignore[call-overload]
    )
    return [chunk async for chunk in stream]


def text_of(chunks: Sequence[ChatCompletionChunk]) -> str:
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
