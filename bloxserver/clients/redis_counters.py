"""Counters in Redis, for rate limits."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from limits.aio.storage import RedisStorage

PREFIX = "bloxserver-rates"
EXPIRY_SECONDS = 180
CONNECTIONS = 8
SOCKET_SECONDS = 2


class RedisCounters:
    """Counters of all processes that use this Redis. Redis deletes a counter some minutes after its window."""

    def __init__(self, url: str) -> None:
        """Raises `ValueError` if the URL is invalid. Connects when it is first used."""
        if not url.startswith(("redis://", "rediss://")):
            raise ValueError("the URL must start with redis:// or rediss://")
        self._storage = RedisStorage(
            f"async+{url}",
            implementation="redispy",
            key_prefix=PREFIX,
            socket_timeout=SOCKET_SECONDS,
            socket_connect_timeout=SOCKET_SECONDS,
        )
        self._connections = asyncio.Semaphore(CONNECTIONS)

    async def add(self, window: int, counts: Mapping[str, int]) -> dict[str, int]:
        """Add counts to those of all processes, and return the totals."""
        return dict(await asyncio.gather(*(self._add(window, key, count) for key, count in counts.items())))

    async def _add(self, window: int, key: str, count: int) -> tuple[str, int]:
        async with self._connections:
            return key, await self._storage.incr(f"{window}/{key}", EXPIRY_SECONDS, count)

    async def aclose(self) -> None:
        bridge: Any = self._storage.bridge  # the type of the bridges of all clients has no connection
        await bridge.get_connection().aclose()
