"""A client that sends runs to the replicas, like a load balancer, and records the responses."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import httpx
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.tables import Tier, UserRecord
from tests.chaos.processes import Replica
from tests.chaos.waiting import wait_until

REQUEST_SECONDS = 30
RETRY_SECONDS = 0.05
SENDERS = 16


@dataclass(frozen=True)
class Flow:
    """A running flow, with the paths for manual runs and for its webhook."""

    id: UUID
    path: str
    webhook: str


@dataclass
class Responses:
    """The results of the requests."""

    acknowledged: dict[UUID, int] = field(default_factory=dict)
    """Executions that were accepted with a 2xx status, and the number in their input."""
    times: list[float] = field(default_factory=list)
    """When each was acknowledged, in monotonic seconds."""
    refused: int = 0
    """Refused connections, after which another replica was used."""
    unanswered: list[str] = field(default_factory=list)
    """Requests without a response because of a broken connection or a timeout; they may have been accepted."""
    unavailable: int = 0
    """Responses with status 503."""
    failed: list[str] = field(default_factory=list)
    """Any other response."""
    longest: float = 0
    """Duration of the slowest request, in seconds."""

    def first_after(self, moment: float) -> float:
        """Return when the first request after `moment` was acknowledged."""
        return next(at for at in self.times if at >= moment)


class Client:
    """Sends requests to the replicas in turn, and skips a replica that refuses the connection."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._turn = itertools.count()
        # A connection for each request: the server could close a kept connection just as a request is sent.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(timeout=REQUEST_SECONDS, limits=limits)
        self.responses = Responses()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, status: int, **options: Any) -> Any:
        """Send a setup request, which must succeed."""
        response = await self._http.request(method, f"{self._replicas[0].url}{path}", **options)
        assert response.status_code == status, response.text
        return response.json() if response.content else None

    async def accepts(self, replica: Replica, flow: Flow) -> bool:
        """Whether this replica accepts a run."""
        try:
            response = await self._http.post(f"{replica.url}{flow.webhook}", json={"number": 1})
        except httpx.TransportError:
            return False
        return response.status_code == 200

    async def run(self, flow: Flow, number: int, *, by_webhook: bool) -> UUID | None:
        """Request one execution; returns its id if it was acknowledged."""
        path = flow.webhook if by_webhook else f"{flow.path}/executions/run"
        body = {"number": number} if by_webhook else {"inputPayload": {"number": number}}
        response = await self._post(path, body)
        if response is None:
            return None
        if response.status_code == 503:
            self.responses.unavailable += 1
            return None
        if response.status_code not in (200, 201):
            self.responses.failed.append(f"{response.status_code} {response.text[:100]}")
            return None
        execution_id = UUID(response.json()["executionId" if by_webhook else "id"])
        self.responses.acknowledged[execution_id] = number
        self.responses.times.append(time.monotonic())
        return execution_id

    async def _post(self, path: str, body: object) -> httpx.Response | None:
        """Send a request to the first replica that accepts a connection; None if none does or the connection breaks."""
        for _ in self._replicas:
            replica = self._replicas[next(self._turn) % len(self._replicas)]
            replica.open_requests += 1
            started = time.monotonic()
            try:
                return await self._http.post(f"{replica.url}{path}", json=body)
            except httpx.ConnectError:
                self.responses.refused += 1
            except httpx.TransportError as error:
                self.responses.unanswered.append(f"{replica.name} {type(error).__name__}")
                return None
            finally:
                replica.open_requests -= 1
                self.responses.longest = max(self.responses.longest, time.monotonic() - started)
        return None


async def start_flow(client: Client, database: Database, organism: str) -> Flow:
    """Create and start a flow with a webhook, for a user without a run limit."""
    await client.call("GET", "/api/v1/me", 200)
    async with database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(tier=Tier.ENTERPRISE))
    created = await client.call("POST", "/api/v1/flows", 201, json={"name": "chaos", "organismYaml": organism})
    path = f"/api/v1/flows/{created['id']}"
    hook = {"type": "webhook", "name": "load", "config": {}}
    trigger = await client.call("POST", f"{path}/triggers", 201, json=hook)
    await client.call("POST", f"{path}/start", 200)

    async def runs() -> bool:
        status = (await client.call("GET", path, 200))["status"]
        assert status in ("starting", "running"), status
        return bool(status == "running")

    await wait_until("the flow to start", runs, 30)
    return Flow(UUID(created["id"]), path, f"/webhooks/{trigger['webhookToken']}")


class Load:
    """Sends manual runs and webhooks alternately at a fixed rate, until stopped or `count` runs are acknowledged."""

    def __init__(self, client: Client, flow: Flow, *, per_second: float, count: int | None = None) -> None:
        self._client = client
        self._flow = flow
        self._per_second = per_second
        self._count = count
        self._numbers = itertools.count(1)
        self._stopped = asyncio.Event()
        self._senders: list[asyncio.Task[None]] = []

    @property
    def responses(self) -> Responses:
        return self._client.responses

    def start(self) -> None:
        started = time.monotonic()
        self._senders = [asyncio.create_task(self._send(started)) for _ in range(SENDERS)]

    async def finish(self, seconds: float) -> None:
        """Wait until `count` runs are acknowledged."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._senders)

    async def stop(self) -> None:
        """Stop sending, and wait for the open responses."""
        self._stopped.set()
        await self.finish(REQUEST_SECONDS * 2)

    async def abandon(self) -> None:
        """Cancel all requests after a failure."""
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)

    def is_over(self) -> bool:
        return self._stopped.is_set() or (self._count is not None and len(self.responses.acknowledged) >= self._count)

    async def _send(self, started: float) -> None:
        while not self.is_over():
            number = next(self._numbers)
            due = started + number / self._per_second
            await self._pause(due - time.monotonic())
            if self.is_over():
                return
            if await self._client.run(self._flow, number, by_webhook=number % 2 == 0) is None:
                await self._pause(RETRY_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Sleep, but at most until the load is stopped."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._stopped.wait()
        except TimeoutError:
            pass
