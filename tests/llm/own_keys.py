"""Users with keys for providers, a provider on loopback, and the gateway of an installation."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, UserPromptPart

from bloxserver.encryption import SecretCipher
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import LanguageModels
from bloxserver.model_catalogue import BASE_URLS, ProviderKind, catalogue_of
from bloxserver.models.database import Database
from bloxserver.models.tables import UserApiKeyRecord
from bloxserver.plans import PLANS
from bloxserver.services.llm_keys import store_llm_key
from bloxserver.settings import Settings
from tests import factories
from tests.llm_server import Asked, LanguageModelServer, Reply, language_model, says

ENCRYPTION_KEY = "a-key-of-an-operator-93d4a86b1f7c"
CIPHER = SecretCipher([ENCRYPTION_KEY])
OWN_KEY = "sk-proj-canary-of-a-user-4711"
PLATFORM_KEY = "sk-of-the-platform-0815"
MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]


class Script:
    """Replies of a server, which a test may change."""

    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def __call__(self, asked: Asked) -> Reply:
        return self.reply


@dataclass
class Scene:
    """An installation, whose platform has a server of its own, and a provider that has a model `gpt-1`."""

    database: Database
    models: LanguageModels
    platform: LanguageModelServer
    provider: LanguageModelServer
    own: Script
    """Replies of the provider."""
    served: Script
    """Replies of the platform's server."""

    async def user(self, tier: str = "pro", **keys: str) -> Caller:
        """A new user with these keys."""
        async with self.database.sessions() as session:
            user = await factories.create_user(session, tier=tier)
        for kind, key in keys.items():
            await self.store(user.id, kind, key)  # type: ignore[arg-type]
        return Caller(user.id, tier, PLANS[tier])

    async def store(self, user_id: UUID, kind: ProviderKind, key: str) -> None:
        async with self.database.transaction() as session:
            await store_llm_key(session, CIPHER, user_id, kind, key)

    async def row(self, caller: Caller) -> UserApiKeyRecord:
        """The only key of the user."""
        async with self.database.sessions() as session:
            found = await session.scalars(sa.select(UserApiKeyRecord).where(UserApiKeyRecord.user_id == caller.user_id))
            return found.one()

    async def ask(self, caller: Caller, model: str | None = "gpt-1") -> ModelResponse:
        return await self.models.of(caller).request(MESSAGES, model=model)

    def forget(self) -> None:
        """As if the time had passed after which the keys of users are read again."""
        assert self.models._own_keys is not None
        for user_id, known in self.models._own_keys._known.items():
            self.models._own_keys._known[user_id] = known._replace(read_at=float("-inf"))


def keys_sent(server: LanguageModelServer) -> list[str]:
    return [asked.headers["authorization"].removeprefix("Bearer ") for asked in server.requests]


@asynccontextmanager
async def scene(
    database: Database, monkeypatch: pytest.MonkeyPatch, *, has_platform: bool = True, **given: Any
) -> AsyncIterator[Scene]:
    async with AsyncExitStack() as stack:
        own, served = Script(says("With your key.")), Script(says("With ours."))
        platform = await stack.enter_async_context(language_model(served))
        provider = await stack.enter_async_context(language_model(own))
        monkeypatch.setitem(BASE_URLS, "openai", provider.url)
        values: dict[str, Any] = {"api_key_encryption_key": ENCRYPTION_KEY, "database_url": "sqlite+aiosqlite://"}
        if has_platform:
            values |= {"llm_base_url": platform.url, "llm_api_key": PLATFORM_KEY, "llm_provider": "openai"}
        catalogue_of.cache_clear()  # it has the URLs of providers
        models = LanguageModels(Settings(**(values | given)), database)
        stack.push_async_callback(models.aclose)
        yield Scene(database, models, platform, provider, own, served)
    catalogue_of.cache_clear()
