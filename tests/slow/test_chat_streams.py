"""Many streamed chat completions at the same time."""

from __future__ import annotations

import asyncio
from pathlib import Path

from bloxserver.models.database import Database
from tests.api.chat_completions import streamed, text_of
from tests.api.openai_clients import endpoint
from tests.llm.catalogues import providers
from tests.llm_server import Asked, Reply, language_model
from tests.llm_streams import streams


async def test_five_hundred_concurrent_streams_complete(live_database: Database, tmp_path: Path) -> None:
    started, go_on = 0, asyncio.Event()

    def script(asked: Asked) -> Reply:
        nonlocal started
        started += 1
        if started == 500:
            go_on.set()
        return streams("A ", go_on, "door.")

    async with language_model(script) as provider:
        document = {"providers": providers({"first": provider.url})}
        async with endpoint(live_database, tmp_path, document) as server:
            results = await asyncio.gather(*(streamed(server.openai) for _ in range(500)))
    assert [text_of(chunks) for chunks in results] == ["A door."] * 500
