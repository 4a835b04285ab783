"""Requests to Stripe, with the official library. No transaction of the database may be open meanwhile.

Since version 15 of the library its objects are no dicts, so they are converted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import structlog

from bloxserver.errors import Unavailable
from bloxserver.observability import metrics
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from stripe import StripeClient

log = structlog.stdlib.get_logger("bloxserver.billing")

TIMEOUT_SECONDS = 10
RETRIES = 2
"""The library sends an idempotency key with repeated requests."""
MAX_SUBSCRIPTIONS = 100


class StripeUnavailable(Unavailable):
    """Stripe cannot be reached, or has refused a request."""

    def __init__(self, *, is_final: bool = False) -> None:
        """`is_final` tells whether Stripe will refuse the same request again."""
        super().__init__("stripe_unavailable", "Stripe cannot be reached, or has refused the request", retry_after=30)
        self.is_final = is_final


class Stripe:
    """The requests of billing."""

    def __init__(self, client: StripeClient) -> None:
        self.client = client

    async def read_subscriptions(self, customer_id: str) -> list[dict[str, Any]]:
        """All subscriptions of the customer, also those that have ended."""
        with errors():
            found = await self.client.v1.subscriptions.list_async(
                {"customer": customer_id, "status": "all", "limit": MAX_SUBSCRIPTIONS}
            )
            return [subscription.to_dict() async for subscription in found.auto_paging_iter()]

    async def read_invoice(self, invoice_id: str) -> dict[str, Any] | None:
        """The invoice; None if it does not exist."""
        import stripe

        with errors():
            try:
                invoice = await self.client.v1.invoices.retrieve_async(invoice_id)
            except stripe.InvalidRequestError as error:
                if error.code != "resource_missing":
                    raise
                return None
            return invoice.to_dict()

    async def cancel_subscription(self, subscription_id: str) -> None:
        """Cancel the subscription at once. Does nothing if it does not exist, or was cancelled before."""
        import stripe

        with errors():
            try:
                await self.client.v1.subscriptions.cancel_async(subscription_id)
            except stripe.InvalidRequestError as error:
                if error.code != "resource_missing":
                    raise

    async def create_customer(self, user_id: str, email: str | None, key: str) -> str:
        """Create a customer, and return its id. Of requests with one key, one creates it."""
        values: dict[str, Any] = {"metadata": {"user_id": user_id}}
        if email:
            values["email"] = email
        with errors():
            customer = await self.client.v1.customers.create_async(values, {"idempotency_key": key})  # type: ignore[arg-type]
            return customer.id

    async def create_checkout(self, values: Mapping[str, Any], key: str) -> str:
        """Create a checkout session, and return its URL."""
        with errors():
            session = await self.client.v1.checkout.sessions.create_async(
                {**values},  # type: ignore[arg-type]
                {"idempotency_key": key},
            )
            return session.url or ""

    async def create_portal(self, customer_id: str, return_url: str) -> str:
        """Create a session of the customer portal, and return its URL."""
        with errors():
            session = await self.client.v1.billing_portal.sessions.create_async(
                {"customer": customer_id, "return_url": return_url}
            )
            return session.url

    async def read_prices(self, lookup_keys: list[str]) -> dict[str, dict[str, Any]]:
        """The active prices with these lookup keys, by key."""
        with errors():
            found = await self.client.v1.prices.list_async(
                {"lookup_keys": lookup_keys, "active": True, "expand": ["data.tiers"]}
            )
            return {price["lookup_key"]: price.to_dict() for price in found.data}


@contextmanager
def errors() -> Iterator[None]:
    """Raise `StripeUnavailable` for errors of the library, and log them without the request."""
    import stripe

    try:
        yield
    except stripe.StripeError as error:
        kind = type(error).__name__
        log.warning("request to Stripe failed", error=kind, code=error.code, stripe_request_id=error.request_id)
        metrics.STRIPE_ERRORS.labels(kind).inc()
        refused = isinstance(error, stripe.InvalidRequestError)
        raise StripeUnavailable(is_final=refused) from None


def get_stripe(settings: Settings) -> Stripe | None:
    """The client of the running event loop; None without `STRIPE_SECRET_KEY`."""
    if settings.stripe_secret_key is None:
        return None
    by_settings = _clients.setdefault(asyncio.get_running_loop(), {})
    key = settings.stripe_secret_key.get_secret_value(), settings.stripe_api_base
    if key not in by_settings:
        by_settings[key] = Stripe(_new_client(*key))
    return by_settings[key]


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[str, str | None], Stripe]] = WeakKeyDictionary()


def _new_client(secret_key: str, base: str | None) -> StripeClient:
    import stripe  # takes 0.3 s

    return stripe.StripeClient(
        secret_key,
        http_client=stripe.HTTPXClient(timeout=TIMEOUT_SECONDS),
        max_network_retries=RETRIES,
        base_addresses={} if base is None else {"api": base, "meter_events": base},
    )
