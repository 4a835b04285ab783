"""The clients of providers, which share one HTTP client."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bloxserver.clients.llm import ModelClient, create_http_client
from bloxserver.model_catalogue import Provider
from bloxserver.redaction import Redactor

if TYPE_CHECKING:
    from httpx2 import AsyncClient


class ProviderClients:
    """Creates clients in a thread, because importing the libraries takes seconds. Belongs to one event loop."""

    def __init__(self, secrets: Sequence[tuple[str, str]]) -> None:
        """`secrets` are pairs of the mark that replaces a secret of the operator in responses, and the secret."""
        self._secrets = secrets
        self._redactor = Redactor(secrets)
        self._http: AsyncClient | None = None
        self._clients: dict[str, ModelClient] = {}
        self._lock = asyncio.Lock()

    async def get(self, provider: Provider) -> ModelClient:
        """Return the client with the operator's key."""
        if provider.name not in self._clients:
            async with self._lock:
                if provider.name not in self._clients:
                    self._clients[provider.name] = await asyncio.to_thread(self._create, provider, self._redactor)
        return self._clients[provider.name]

    async def create_own(self, provider: Provider, secret: tuple[str, str]) -> ModelClient:
        """Create a client for a request with a user's own key. It shares the connections."""
        redactor = Redactor([*self._secrets, secret])
        async with self._lock:
            return await asyncio.to_thread(self._create, provider, redactor)

    def _create(self, provider: Provider, redactor: Redactor) -> ModelClient:
        import pydantic_ai.direct  # noqa: F401

        if self._http is None:
            self._http = create_http_client()
        return ModelClient(provider, self._http, redactor)

    async def aclose(self) -> None:
        """Close the connections. The clients cannot be used afterwards."""
        if self._http is not None:
            await self._http.aclose()
