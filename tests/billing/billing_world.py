"""A server with billing, a user, and the server that stands in for Stripe."""

from __future__ import annotations

import hmac
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import sqlalchemy as sa

from bloxserver.billing.prices import PRO_LOOKUP_KEY, RUNS_LOOKUP_KEY, STORAGE_LOOKUP_KEY
from bloxserver.models.database import Database
from bloxserver.models.enums import Tier
from bloxserver.models.tables import UserRecord
from tests.api.contract import API
from tests.clerk import override_settings
from tests.stripe_server import StripeServer, stripe_server

SECRET_KEY = "rk_test_canary-key-41c9"
WEBHOOK_SECRET = "whsec_canary-secret-8d20"
EVENT_TYPE = "customer.subscription.updated"


@dataclass
class BillingWorld:
    client: httpx.AsyncClient
    stripe: StripeServer
    database: Database

    async def user(self) -> UserRecord:
        async with self.database.sessions() as session:
            return (await session.scalars(sa.select(UserRecord))).one()

    async def customer(self) -> str:
        """Bind the user to a customer, as a checkout does."""
        customer = self.stripe.add("customer", "cus")
        async with self.database.transaction() as session:
            await session.execute(sa.update(UserRecord).values(stripe_customer_id=customer["id"]))
        customer_id: str = customer["id"]
        return customer_id

    async def send(self, event: dict[str, Any], **changes: Any) -> httpx.Response:
        """Send an event as Stripe does."""
        body = json.dumps(event).encode()
        headers = {"Stripe-Signature": signature_of(body, **changes)}
        return await self.client.post("/webhooks/stripe", content=body, headers=headers)

    async def billing(self) -> dict[str, Any]:
        found: dict[str, Any] = (await self.client.get(f"{API}/billing")).json()
        return found


def signature_of(body: bytes, secret: str = WEBHOOK_SECRET, seconds: float | None = None) -> str:
    moment = int(time.time() if seconds is None else seconds)
    return f"t={moment},v1={hmac.new(secret.encode(), f'{moment}.'.encode() + body, 'sha256').hexdigest()}"


def event_of(customer_id: str | None, number: object = 1, kind: str = EVENT_TYPE) -> dict[str, Any]:
    subject = {"object": "subscription", "id": "sub_1", "customer": customer_id, "status": "never used"}
    return {"id": f"evt_{number}", "object": "event", "type": kind, "livemode": False, "data": {"object": subject}}


@asynccontextmanager
async def billing_world(client: httpx.AsyncClient, database: Database) -> AsyncIterator[BillingWorld]:
    async with stripe_server() as stripe:
        for key in (PRO_LOOKUP_KEY, RUNS_LOOKUP_KEY, STORAGE_LOOKUP_KEY):
            stripe.add("price", "price", lookup_key=key, active=True)
        with override_settings(
            STRIPE_SECRET_KEY=SECRET_KEY, STRIPE_WEBHOOK_SECRET=WEBHOOK_SECRET, STRIPE_API_BASE=stripe.url
        ):
            await client.get(f"{API}/me")
            async with database.transaction() as session:
                await session.execute(sa.update(UserRecord).values(tier=Tier.FREE))
            yield BillingWorld(client, stripe, database)
