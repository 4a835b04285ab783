"""The client of OpenAI's library for a real server, with the language models of a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from bloxserver.api.main import app
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.enums import Scope, Tier
from bloxserver.services.api_keys import NewKey, create_api_key
from tests import factories
from tests.clerk import clerk_authentication
from tests.database_override import override_database
from tests.llm.catalogues import settings_of
from tests.server import run_server


@dataclass(frozen=True)
class Endpoint:
    openai: AsyncOpenAI
    http: httpx.AsyncClient
    """A client with the same key."""
    key: str
    user_id: UUID


@asynccontextmanager
async def endpoint(
    database: Database,
    folder: Path,
    document: Mapping[str, Any],
    *,
    scopes: Sequence[Scope] = (Scope.LLM,),
    tier: Tier = Tier.ENTERPRISE,
    **settings: Any,
) -> AsyncIterator[Endpoint]:
    """Run the API on the database, with these providers, and an API key with the scopes."""
    models = LanguageModels(settings_of(folder, document, **settings), database)
    async with database.transaction() as session:
        user = await factories.create_user(session, tier=tier)
        _, key = await create_api_key(session, user.id, NewKey("Mine", scopes))
    app.state.language_models = models
    try:
        async with clerk_authentication(), run_server() as port:
            with override_database(app, database):
                url, headers = f"http://127.0.0.1:{port}", {"Authorization": f"Bearer {key}"}
                async with (
                    httpx.AsyncClient(base_url=url, headers=headers, timeout=30) as http,
                    AsyncOpenAI(
                        api_key=key,
                        base_url=f"{url}/v1",
                        max_retries=0,
                        http_client=DefaultAsyncHttpxClient(trust_env=False),
                    ) as openai,
                ):
                    yield Endpoint(openai, http, key, user.id)
    finally:
        app.state.language_models = None
        await models.aclose()
