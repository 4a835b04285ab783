"""The user who is measured: lists flows and executions, runs a flow of three steps, and probes the liveness."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial

from benchmarks.neighbours.connections import Answer, Client

MAX_RUNS = 8
"""Runs that the victim waits for at the same time. The free tier allows ten."""


@dataclass(frozen=True)
class Pace:
    """Seconds between requests, and the seconds after which a request without a response is a failure."""

    list_interval: float = 0.1
    run_interval: float = 0.25
    probe_interval: float = 0.1
    request_seconds: int = 10
    recovery_seconds: float = 5
    """The time from the end of the attack to the last requests."""


MEASURING = Pace()
CHECKING = Pace(1, 2, 1, 60, 0)
"""For tests, on machines that are busy with other tests."""


@dataclass
class Samples:
    """Milliseconds of each request, and what failed."""

    lists: list[float] = field(default_factory=list)
    runs: list[float] = field(default_factory=list)
    probes: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


class Victim:
    """Sends requests at a fixed rate, whether earlier ones have been answered or not: a stall affects all requests that
    were due during it. Each request uses a new connection.
    """

    def __init__(self, client: Client, probed: list[Client], flow_id: str, webhook_token: str, pace: Pace) -> None:
        self._client = client
        self._probed = probed
        self._flow = f"/api/v1/flows/{flow_id}"
        self._webhook = f"/webhooks/{webhook_token}?wait={pace.request_seconds}"
        self._pace = pace
        self._places = asyncio.Semaphore(MAX_RUNS)
        self._number = 0
        self.samples = Samples()

    async def run_until(self, ended: asyncio.Event) -> None:
        """Send requests until the event is set, and wait for their responses."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._repeat(ended, self._pace.list_interval, self.list_both))
            group.create_task(self._repeat(ended, self._pace.run_interval, self.run))
            for client in self._probed:
                group.create_task(self._repeat(ended, self._pace.probe_interval, partial(self._probe, client)))

    async def warm_up(self) -> None:
        """Send each request once, without measuring it."""
        for _ in range(3):
            await self.list_both()
            await self.run()
        self.samples = Samples()

    async def recovery(self) -> str:
        """Send each request once after the attack, and return the slowest time, or what failed."""
        measured, self.samples = self.samples, Samples()
        await asyncio.gather(self.list_both(), self.run(), *(self._probe(client) for client in self._probed))
        after, self.samples = self.samples, measured
        if after.failures:
            return after.failures[0]
        return f"{max(after.lists + after.runs + after.probes):.0f} ms"

    async def list_both(self) -> None:
        for path, members in (("/api/v1/flows", 1), (f"{self._flow}/executions?page_size=20", None)):
            answer = await self._measured(self.samples.lists, "list", self._client.request("GET", path))
            if answer and answer.status == 200 and members is not None and answer.json()["total"] != members:
                self.samples.failures.append("list: wrong number of flows")

    async def run(self) -> None:
        self._number += 1
        message = {"number": self._number}
        answer = await self._measured(self.samples.runs, "run", self._send_run(json.dumps(message).encode()))
        if answer and answer.status == 200:
            ended = answer.json()
            if ended["status"] != "success" or json.loads(ended["outputPayload"] or "null") != message:
                self.samples.failures.append(f"run: {ended['status']} {ended['errorMessage']}")

    async def _send_run(self, body: bytes) -> Answer:
        async with self._places:
            return await self._client.request("POST", self._webhook, body)

    async def _probe(self, client: Client) -> None:
        await self._measured(self.samples.probes, "liveness", client.request("GET", "/health/live"))

    async def _repeat(self, ended: asyncio.Event, interval: float, action: Callable[[], Awaitable[None]]) -> None:
        async with asyncio.TaskGroup() as group:
            due = time.monotonic()
            while not ended.is_set():
                group.create_task(_awaited(action))
                due += interval
                await asyncio.sleep(max(0, due - time.monotonic()))

    async def _measured(self, samples: list[float], name: str, request: Awaitable[Answer]) -> Answer | None:
        """Send the request and record its time. A request without a response counts as long as we waited for it."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._pace.request_seconds + 1):
                answer = await request
        except (OSError, TimeoutError) as error:
            self.samples.failures.append(f"{name}: {type(error).__name__}")
            return None
        finally:
            samples.append((time.monotonic() - started) * 1000)
        if answer.status != 200:
            self.samples.failures.append(f"{name}: {answer.outcome}")
        return answer


async def _awaited(action: Callable[[], Awaitable[None]]) -> None:
    await action()
