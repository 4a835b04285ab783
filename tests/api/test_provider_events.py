"""Metrics of the events of Stripe and Clerk: how they ended, and how late they were processed."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from typing import Any

import httpx
import pytest

from bloxserver.billing.prices import PRO_LOOKUP_KEY
from bloxserver.models.database import Database
from tests.billing.billing_world import BillingWorld, billing_world, event_of
from tests.clerk import override_settings
from tests.clerk_events import SECRET, event, signed, updated
from tests.metric_increase import Increase, measure_increase

OUTCOMES = ("processed", "repeated", "invalid_signature", "refused", "failed")
EVENTS, LAG = "bloxserver_provider_events_total", "bloxserver_provider_event_lag_seconds"


@pytest.fixture
async def world(live_client: httpx.AsyncClient, live_database: Database) -> AsyncIterator[BillingWorld]:
    async with billing_world(live_client, live_database) as world:
        yield world


class Measured:
    """What the metrics of a provider counted in a block."""

    def __init__(self, provider: str) -> None:
        self._stack = ExitStack()
        self._provider = provider

    def __enter__(self) -> Measured:
        provider = self._provider
        self._outcomes = {outcome: self._measure(EVENTS, provider=provider, outcome=outcome) for outcome in OUTCOMES}
        self._count = self._measure(f"{LAG}_count", provider=provider)
        self._sum = self._measure(f"{LAG}_sum", provider=provider)
        return self

    def _measure(self, name: str, **labels: str) -> Increase:
        return self._stack.enter_context(measure_increase(name, **labels))

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def outcomes(self) -> dict[str, float]:
        return {outcome: found.number for outcome, found in self._outcomes.items() if found.number}

    @property
    def lags(self) -> tuple[float, float]:
        """The number of lags and their sum."""
        return self._count.number, self._sum.number


class TestStripe:
    async def test_lag_is_measured_once(self, world: BillingWorld) -> None:
        customer_id = await world.customer()
        world.stripe.subscribe(customer_id, PRO_LOOKUP_KEY)
        sent = {**event_of(customer_id), "created": int(time.time()) - 90}
        with Measured("stripe") as measured:
            for _ in range(3):
                await world.send(sent)
        assert measured.outcomes == {"processed": 1, "repeated": 2}
        count, seconds = measured.lags
        assert count == 1
        assert 89 < seconds < 150

    @pytest.mark.parametrize("created", [None, "yesterday", 0, -1, 2**70, 1.5])
    async def test_event_without_a_time_is_counted(self, world: BillingWorld, created: Any) -> None:
        with Measured("stripe") as measured:
            assert (await world.send({**event_of(None), "created": created})).status_code == 200
        assert (measured.outcomes, measured.lags) == ({"processed": 1}, (0, 0))

    async def test_time_in_the_future_is_no_lag(self, world: BillingWorld) -> None:
        with Measured("stripe") as measured:
            await world.send({**event_of(None), "created": int(time.time()) + 100})
        assert measured.lags == (1, 0)

    async def test_refused_and_failed_events(self, world: BillingWorld) -> None:
        customer_id = await world.customer()
        with Measured("stripe") as measured:
            await world.send(event_of(customer_id), secret="whsec_other")
            await world.send(event_of(customer_id) | {"livemode": True})
            world.stripe.fault = lambda call: "500"
            assert (await world.send(event_of(customer_id))).status_code == 503
        assert measured.outcomes == {"invalid_signature": 1, "refused": 1, "failed": 1}
        assert measured.lags == (0, 0)

    async def test_route_that_is_switched_off_counts_nothing(self, live_client: httpx.AsyncClient) -> None:
        with Measured("stripe") as measured:
            assert (await live_client.post("/webhooks/stripe", content=b"{}")).status_code == 404
        assert measured.outcomes == {}


class TestClerk:
    async def send(self, client: httpx.AsyncClient, body: bytes) -> int:
        return (await client.post("/webhooks/clerk", content=body, headers=signed(body))).status_code

    async def test_outcomes_and_lag(self, live_client: httpx.AsyncClient) -> None:
        late = {**json.loads(event("session.created", {})), "timestamp": (time.time_ns() // 10**6) - 90_000}
        strange = {**late, "timestamp": "yesterday"}
        with override_settings(CLERK_WEBHOOK_SECRET=SECRET), Measured("clerk") as measured:
            assert await self.send(live_client, updated(2_000)) == 200
            for body in (late, strange):
                assert await self.send(live_client, json.dumps(body).encode()) == 200
            assert await self.send(live_client, b"[]") == 422
            await live_client.post("/webhooks/clerk", content=b"{}")
        assert measured.outcomes == {"processed": 3, "refused": 1, "invalid_signature": 1}
        count, seconds = measured.lags
        assert count == 1
        assert 89 < seconds < 150

    async def test_route_that_is_switched_off_counts_nothing(self, live_client: httpx.AsyncClient) -> None:
        with Measured("clerk") as measured:
            assert await self.send(live_client, updated(2_000)) == 404
        assert measured.outcomes == {}
