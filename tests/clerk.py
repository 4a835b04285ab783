"""Signing in with real tokens: the app with a Clerk issuer on loopback, where nobody is the development user."""

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
        """What a browser of this user sends."""
        token = self.key.sign(claims(self.issuer, sub=clerk_id, **overrides))
        return {"Authorization": f"Bearer {token}"}


@asynccontextmanager
async def clerk_sign_in() -> AsyncIterator[Clerk]:
    """Every request needs a token of this issuer."""
    key = SigningKey()
    async with JwksServer(key) as server:
        with changed_settings(CLERK_ISSUER=server.issuer):
            yield Clerk(server.issuer, key)
            await get_verifier(get_settings()).aclose()


class changed_settings:  # noqa: N801
    """The settings of the process with these variables in its environment, inside of the block."""

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
