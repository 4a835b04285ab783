"""A client like a load balancer with impatient users behind it: it sends runs, and keeps what it was told."""

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
from tests.chaos.waiting import until

REQUEST_SECONDS = 30
PAUSE_SECONDS = 0.05
SENDERS = 16


@dataclass(frozen=True)
class Flow:
    """One that runs, and how to make it run: by hand, and by its webhook."""

    id: UUID
    path: str
    webhook: str


@dataclass
class Answers:
    """What became of the requests."""

    acknowledged: dict[UUID, int] = field(default_factory=dict)
    """Executions that were accepted with a 2xx, and the number that each was given."""
    times: list[float] = field(default_factory=list)
    """When, on the monotonic clock."""
    refused: int = 0
    """Connections that were refused, so that another replica was asked."""
    unanswered: list[str] = field(default_factory=list)
    """Sent, but the connection broke, or the time was up: accepted or not, nobody can tell."""
    unavailable: int = 0
    """Answered with 503."""
    failed: list[str] = field(default_factory=list)
    """Any other answer."""
    longest: float = 0
    """Seconds that the slowest request took."""

    def first_after(self, moment: float) -> float:
        """When a request was acknowledged for the first time since then."""
        return next(at for at in self.times if at >= moment)


class Client:
    """Asks the replicas in turn; one that refuses the connection is passed over."""

    def __init__(self, replicas: Sequence[Replica]) -> None:
        self._replicas = replicas
        self._turn = itertools.count()
        # A connection for each request: on one that is kept, a request may cross with the end of it.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.AsyncClient(timeout=REQUEST_SECONDS, limits=limits)
        self.answers = Answers()

    async def aclose(self) -> None:
        await self._http.aclose()

    async def call(self, method: str, path: str, status: int, **options: Any) -> Any:
        """A request that must work, for arranging."""
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
        """Ask for one execution; returns its id where it was acknowledged."""
        path = flow.webhook if by_webhook else f"{flow.path}/executions/run"
        body = {"number": number} if by_webhook else {"inputPayload": {"number": number}}
        response = await self._post(path, body)
        if response is None:
            return None
        if response.status_code == 503:
            self.answers.unavailable += 1
            return None
        if response.status_code not in (200, 201):
            self.answers.failed.append(f"{response.status_code} {response.text[:100]}")
            return None
        execution_id = UUID(response.json()["executionId" if by_webhook else "id"])
        self.answers.acknowledged[execution_id] = number
        self.answers.times.append(time.monotonic())
        return execution_id

    async def _post(self, path: str, body: object) -> httpx.Response | None:
        """The answer of the first replica that takes the connection; None where none does, or it breaks."""
        for _ in self._replicas:
            replica = self._replicas[next(self._turn) % len(self._replicas)]
            replica.under_way += 1
            begun = time.monotonic()
            try:
                return await self._http.post(f"{replica.url}{path}", json=body)
            except httpx.ConnectError:
                self.answers.refused += 1
            except httpx.TransportError as error:
                self.answers.unanswered.append(f"{replica.name} {type(error).__name__}")
                return None
            finally:
                replica.under_way -= 1
                self.answers.longest = max(self.answers.longest, time.monotonic() - begun)
        return None


async def start_flow(client: Client, database: Database, organism: str) -> Flow:
    """A flow of a user whose plan does not limit runs, with a webhook."""
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

    await until("the flow to run", runs, 30)
    return Flow(UUID(created["id"]), path, f"/webhooks/{trigger['webhookToken']}")


class Load:
    """Runs at a steady pace, by hand and by webhook in turn, until it is stopped or has had `count` acknowledged."""

    def __init__(self, client: Client, flow: Flow, *, per_second: float, count: int | None = None) -> None:
        self._client = client
        self._flow = flow
        self._per_second = per_second
        self._count = count
        self._numbers = itertools.count(1)
        self._stopped = asyncio.Event()
        self._senders: list[asyncio.Task[None]] = []

    @property
    def answers(self) -> Answers:
        return self._client.answers

    def start(self) -> None:
        begun = time.monotonic()
        self._senders = [asyncio.create_task(self._send(begun)) for _ in range(SENDERS)]

    async def finish(self, seconds: float) -> None:
        """Wait until all that was wanted is acknowledged."""
        async with asyncio.timeout(seconds):
            await asyncio.gather(*self._senders)

    async def stop(self) -> None:
        """Send no more, and wait for the answers to what was sent."""
        self._stopped.set()
        await self.finish(REQUEST_SECONDS * 2)

    async def abandon(self) -> None:
        """For a scenario that has failed."""
        for sender in self._senders:
            sender.cancel()
        await asyncio.gather(*self._senders, return_exceptions=True)

    def is_over(self) -> bool:
        return self._stopped.is_set() or (self._count is not None and len(self.answers.acknowledged) >= self._count)

    async def _send(self, begun: float) -> None:
        while not self.is_over():
            number = next(self._numbers)
            due = begun + number / self._per_second
            await self._pause(due - time.monotonic())
            if self.is_over():
                return
            if await self._client.run(self._flow, number, by_webhook=number % 2 == 0) is None:
                await self._pause(PAUSE_SECONDS)

    async def _pause(self, seconds: float) -> None:
        """Until then, or until the load is stopped."""
        try:
            async with asyncio.timeout(max(seconds, 0)):
                await self._stopped.wait()
        except TimeoutError:
            pass
