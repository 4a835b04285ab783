"""Limits the rates of requests: the middleware, and the exchange of counters with other processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloxserver.api.addresses import address_key
from bloxserver.api.errors import error_response
from bloxserver.api.hosts import PROBES
from bloxserver.engine.loops import PollLoop, cancel, run_forever
from bloxserver.errors import RateLimited, SettingsError
from bloxserver.models.database import Database
from bloxserver.services.rate_counters import SHARE_SECONDS, CounterSharing, DatabaseCounters
from bloxserver.services.rate_limits import WINDOW_SECONDS, Admission, RateLimiter
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from bloxserver.clients.redis_counters import RedisCounters

HEADERS = ("RateLimit", "RateLimit-Policy")


class RateLimits:
    """Limits the requests of a client address, and describes all limits of a request in the headers of its response.

    Probes and scrapes are exempt: a limit must not make a healthy process look unhealthy.
    """

    def __init__(self, app: ASGIApp, limiter: RateLimiter) -> None:
        self.app = app
        self._limiter = limiter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(PROBES):
            await self.app(scope, receive, send)
            return
        client = scope.get("client")
        admission = Admission(self._limiter, address_key(client[0] if client else None))
        scope.setdefault("state", {})["admission"] = admission

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                _describe(admission, MutableHeaders(scope=message))
            await send(message)

        try:
            admission.count_address()
        except RateLimited as error:
            await error_response(Request(scope), error)(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)


def _describe(admission: Admission, headers: MutableHeaders) -> None:
    """Set the headers of draft-ietf-httpapi-ratelimit-headers, with one item for each limit of the request."""
    quotas = admission.quotas.values()
    headers["RateLimit-Policy"] = ", ".join(f'"{each.name}";q={each.limit};w={WINDOW_SECONDS}' for each in quotas)
    headers["RateLimit"] = ", ".join(f'"{each.name}";r={each.remaining};t={each.reset_seconds}' for each in quotas)


@asynccontextmanager
async def sharing_counters(limiter: RateLimiter | None, settings: Settings, database: Database) -> AsyncIterator[None]:
    """Within the block, exchange the counters with other processes. SQLite supports one server, which shares none."""
    async with AsyncExitStack() as stack:
        counters: DatabaseCounters | RedisCounters | None = None
        if limiter is not None and settings.redis_url is not None:
            counters = _redis_counters(settings.redis_url)
            stack.push_async_callback(counters.aclose)
        elif limiter is not None and not settings.uses_sqlite:
            counters = DatabaseCounters(database)
        if limiter is not None and counters is not None:
            sharing = CounterSharing(limiter, counters.add)
            loop = PollLoop(sharing.share, failure="counters not shared", retry_seconds=SHARE_SECONDS)
            task = asyncio.create_task(run_forever(loop.run))
            stack.push_async_callback(cancel, [task])
        yield


def _redis_counters(url: str) -> RedisCounters:
    from bloxserver.clients.redis_counters import RedisCounters  # few installations use Redis

    try:
        return RedisCounters(url)
    except ValueError as error:
        raise SettingsError([f"REDIS_URL: {error}"]) from None
