"""Creates what billing needs at Stripe, or verifies it. Each object is found again by a fixed name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

from bloxserver.billing.client import Stripe, errors
from bloxserver.billing.events import ENDPOINT_EVENTS
from bloxserver.billing.prices import (
    CURRENCY,
    INCLUDED_RUNS,
    METERS,
    PRO_CENTS,
    PRO_LOOKUP_KEY,
    RUN_CENTS,
    RUNS_LOOKUP_KEY,
    RUNS_METER,
    STORAGE_CENTS,
    STORAGE_LOOKUP_KEY,
    STORAGE_METER,
)

PRODUCT_ID = "bloxserver_pro"
MARK = {"bloxserver": "1"}
"""The metadata by which objects without a fixed name are found."""
PORTAL_FEATURES = {
    "customer_update": {"enabled": True, "allowed_updates": ["email", "address", "tax_id"]},
    "invoice_history": {"enabled": True},
    "payment_method_update": {"enabled": True},
    "subscription_cancel": {"enabled": True, "mode": "at_period_end"},
}


class SetUp(NamedTuple):
    """What was done for an object."""

    name: str
    result: str
    """`created`, `exists`, `changed`, or `differs: …`, which an operator must resolve."""
    secret: str | None = None
    """The signing secret of a new webhook endpoint, which Stripe shows once."""

    @property
    def is_right(self) -> bool:
        return not self.result.startswith("differs")


async def set_up(stripe: Stripe, webhook_url: str) -> list[SetUp]:
    """Create or verify the product, the prices, the meters, the portal and the webhook endpoint.

    It can be repeated. Raises `StripeUnavailable`.
    """
    with errors():
        done = [await _product(stripe)]
        meters = {event_name: await _meter(stripe, event_name) for event_name in METERS}
        done += [meter for _, meter in meters.values()]
        monthly = {"interval": "month"}
        done.append(
            await _price(stripe, PRO_LOOKUP_KEY, {"unit_amount": PRO_CENTS, "recurring": monthly}, _is_pro_price)
        )
        runs = {
            "billing_scheme": "tiered",
            "tiers_mode": "graduated",
            "tiers": [
                {"up_to": INCLUDED_RUNS, "unit_amount_decimal": "0"},
                {"up_to": "inf", "unit_amount_decimal": RUN_CENTS},
            ],
            "recurring": monthly | {"usage_type": "metered", "meter": meters[RUNS_METER][0]},
        }
        done.append(await _price(stripe, RUNS_LOOKUP_KEY, runs, _is_price_of_runs))
        storage = {
            "billing_scheme": "per_unit",
            "unit_amount_decimal": STORAGE_CENTS,
            "recurring": monthly | {"usage_type": "metered", "meter": meters[STORAGE_METER][0]},
        }
        done.append(await _price(stripe, STORAGE_LOOKUP_KEY, storage, _is_price_of_storage))
        done.append(await _portal(stripe))
        done.append(await _endpoint(stripe, webhook_url))
    return done


async def _product(stripe: Stripe) -> SetUp:
    import stripe as library

    products = stripe.client.v1.products
    try:
        await products.retrieve_async(PRODUCT_ID)
    except library.InvalidRequestError as error:
        if error.code != "resource_missing":
            raise
        await products.create_async({"id": PRODUCT_ID, "name": "BloxServer Pro", "metadata": MARK})
        return SetUp("product", "created")
    return SetUp("product", "exists")


async def _meter(stripe: Stripe, event_name: str) -> tuple[str, SetUp]:
    """The id of the meter of these events, and what was done for it."""
    name = METERS[event_name]
    meters = stripe.client.v1.billing.meters
    async for meter in (await meters.list_async({"limit": 100})).auto_paging_iter():
        if meter.event_name == event_name:
            return meter.id, SetUp(f"meter of {name}", "exists")
    created = await meters.create_async(
        {
            "display_name": name.capitalize(),
            "event_name": event_name,
            "default_aggregation": {"formula": "sum"},
            "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
            "value_settings": {"event_payload_key": "value"},
        }
    )
    return created.id, SetUp(f"meter of {name}", "created")


async def _price(
    stripe: Stripe, lookup_key: str, values: Mapping[str, Any], is_right: Callable[[Mapping[str, Any]], bool]
) -> SetUp:
    name = f"price {lookup_key}"
    found = (await stripe.read_prices([lookup_key])).get(lookup_key)
    if found is not None:
        # A price cannot be changed, and subscriptions keep theirs.
        differs = f"differs: move the lookup key to a new price ({found['id']})"
        return SetUp(name, "exists" if is_right(found) else differs)
    common = {"product": PRODUCT_ID, "currency": CURRENCY, "lookup_key": lookup_key, "metadata": MARK}
    await stripe.client.v1.prices.create_async({**common, **values})  # type: ignore[typeddict-item]
    return SetUp(name, "created")


def _is_pro_price(price: Mapping[str, Any]) -> bool:
    return (price["unit_amount"], price["currency"], price["recurring"]["interval"]) == (PRO_CENTS, CURRENCY, "month")


def _is_price_of_runs(price: Mapping[str, Any]) -> bool:
    tiers = [(tier["up_to"], Decimal(str(tier["unit_amount_decimal"]))) for tier in price.get("tiers") or ()]
    wanted = [(INCLUDED_RUNS, Decimal(0)), (None, Decimal(RUN_CENTS))]
    return tiers == wanted and price["recurring"]["usage_type"] == "metered" and price["currency"] == CURRENCY


def _is_price_of_storage(price: Mapping[str, Any]) -> bool:
    amount = Decimal(str(price["unit_amount_decimal"] or 0))
    is_metered = price["recurring"]["usage_type"] == "metered"
    return amount == Decimal(STORAGE_CENTS) and is_metered and price["currency"] == CURRENCY


async def _portal(stripe: Stripe) -> SetUp:
    configurations = stripe.client.v1.billing_portal.configurations
    async for found in (await configurations.list_async({"limit": 100, "active": True})).auto_paging_iter():
        if "bloxserver" in (found.metadata or {}):
            return SetUp("customer portal", "exists")
    await configurations.create_async({"features": PORTAL_FEATURES, "metadata": MARK})  # type: ignore[typeddict-item]
    return SetUp("customer portal", "created")


async def _endpoint(stripe: Stripe, url: str) -> SetUp:
    endpoints = stripe.client.v1.webhook_endpoints
    events: list[Any] = [*ENDPOINT_EVENTS]
    async for found in (await endpoints.list_async({"limit": 100})).auto_paging_iter():
        if found.url == url:
            if {*events} <= {*found.enabled_events} or "*" in found.enabled_events:
                return SetUp("webhook endpoint", "exists")
            await endpoints.update_async(found.id, {"enabled_events": events})
            return SetUp("webhook endpoint", "changed")
    created = await endpoints.create_async({"url": url, "enabled_events": events, "metadata": MARK})
    return SetUp("webhook endpoint", "created", created.secret)
