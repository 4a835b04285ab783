"""Authentication with real tokens of a Clerk issuer on loopback, without the development user."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from bloxserver.clients.clerk import get_verifier
from bloxserver.settings import get_settings
from tests.jwks_server import JwksServer, SigningKey, claims


@dataclass(frozen=True)
class Clerk:
    issuer: str
    key: SigningKey

    def headers(self, clerk_id: str, **overrides: Any) -> dict[str, str]:
        """Return the headers of a request of this user."""
        token = self.key.sign(claims(self.issuer, sub=clerk_id, **overrides))
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def clerk_authentication() -> AsyncIterator[Clerk]:
    """Run an issuer whose tokens every request needs."""
    key = SigningKey()
    async with JwksServer(key) as server:
        with override_settings(CLERK_ISSUER=server.issuer):
            yield Clerk(server.issuer, key)
            await get_verifier(get_settings()).aclose()


class override_settings:  # noqa: N801
    """Set environment variables and reload the settings for the block."""

    def __init__(self, **variables: str) -> None:
        self._variables = variables
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for name, value in self._variables.items():
            self._patch.setenv(name, value)
        get_settings.cache_clear()

    def __exit__(self, *_: object) -> None:
        self._patch.undo()
        get_settings.cache_clear()
