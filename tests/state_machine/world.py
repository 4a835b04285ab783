"""The application that the state machine calls: the API, its database and its engine, in the test's event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import httpx

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import Tier, UserRecord
from tests.clerk import Clerk

Value = TypeVar("Value")
HOUR = 3600
SETTLE_SECONDS = 30
LIMITS = {"flows": 3, "api_keys": 4, "triggers_per_flow": 3}
"""Small enough that the calls reach them."""


@dataclass
class World:
    """The event loop runs only during a call. The engine draws random numbers, as hypothesis does between the calls."""

    loop: asyncio.AbstractEventLoop
    client: httpx.AsyncClient
    database: Database
    clerk: Clerk

    def wait(self, work: Coroutine[Any, Any, Value]) -> Value:
        return self.loop.run_until_complete(work)

    def user(self) -> Caller:
        """A new user: an example finds none of the rows of others."""
        name = f"user_{uuid4().hex}"
        self.wait(self._create_user(name))
        return Caller(self, self.clerk.headers(name, exp=int(now().timestamp()) + HOUR))

    def caller(self, authorization: str) -> Caller:
        return Caller(self, {"Authorization": authorization} if authorization else {})

    async def _create_user(self, name: str) -> None:
        day = timedelta(days=1)
        async with self.database.transaction() as session:
            session.add(
                UserRecord(
                    clerk_id=name,
                    email=f"{name}@example.com",
                    tier=Tier.ENTERPRISE,
                    limits=LIMITS,
                    current_period_start=now() - day,
                    current_period_end=now() + day,
                )
            )


@dataclass
class Caller:
    """Sends requests with the headers of one user or key. A server error fails the test."""

    world: World
    headers: dict[str, str]

    def request(self, method: str, path: str, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        return self.together((method, path, {"headers": headers or {}} | options))[0]

    def together(self, *requests: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        """Send requests at the same time."""
        return self.world.wait(self._send(requests))

    async def _send(self, requests: tuple[tuple[str, str, dict[str, Any]], ...]) -> list[httpx.Response]:
        sent = [
            self.world.client.request(method, path, **options | {"headers": self.headers | options.get("headers", {})})
            for method, path, options in requests
        ]
        responses = await asyncio.gather(*sent)
        for response in responses:
            assert response.status_code < 500, (response.request, response.text)
        return responses

    def settled(self, path: str, statuses: set[str]) -> str:
        """The status of the object at the path, once it is one of these."""
        return self.world.wait(self._settled(path, statuses))

    async def _settled(self, path: str, statuses: set[str]) -> str:
        async with asyncio.timeout(SETTLE_SECONDS):
            while True:
                (response,) = await self._send((("GET", path, {}),))
                status: str = response.json()["status"]
                if status in statuses:
                    return status
                await asyncio.sleep(0.005)

    def get(self, path: str) -> httpx.Response:
        return self.request("GET", path)

    def post(self, path: str, headers: dict[str, str] | None = None, **options: Any) -> httpx.Response:
        return self.request("POST", path, headers, **options)

    def patch(self, path: str, json: dict[str, Any], headers: dict[str, str] | None = None) -> httpx.Response:
        return self.request("PATCH", path, headers, json=json)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)
