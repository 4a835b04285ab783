"""`bloxserver billing setup`: creates or verifies the objects at Stripe."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bloxserver.billing.client import Stripe, StripeUnavailable, get_stripe
from bloxserver.billing.events import ENDPOINT_EVENTS
from bloxserver.billing.prices import PRO_LOOKUP_KEY, RUNS_LOOKUP_KEY, STORAGE_LOOKUP_KEY
from bloxserver.billing.setup import SetUp, set_up
from bloxserver.settings import Settings
from tests.processes import bloxserver
from tests.stripe_server import StripeServer, stripe_server

URL = "https://flows.example.com/webhooks/stripe"
CREATED = ["product", "meter", "meter", "price", "price", "price", "configuration", "webhook endpoint"]
PRICES = PRO_LOOKUP_KEY, RUNS_LOOKUP_KEY, STORAGE_LOOKUP_KEY


def client_of(server: StripeServer) -> Stripe:
    stripe = get_stripe(Settings(stripe_secret_key="sk_test_x", stripe_api_base=server.url))  # type: ignore[arg-type]
    assert stripe is not None
    return stripe


def kinds(server: StripeServer) -> list[str]:
    return [one["object"].rpartition(".")[2].replace("_", " ") for one in server.objects.values()]


def results(done: list[SetUp]) -> dict[str, str]:
    return {one.name: one.result for one in done}


async def test_objects_are_created_once() -> None:
    async with stripe_server() as server:
        first = await set_up(client_of(server), URL)
        assert {*results(first).values()} == {"created"}
        assert [one.secret for one in first if one.secret] == ["whsec_of-the-endpoint"]
        objects = {**server.objects}
        second = await set_up(client_of(server), URL)
        assert {*results(second).values()} == {"exists"}
        assert all(one.is_right for one in second)
        assert server.objects == objects
        assert kinds(server) == CREATED
        (endpoint,) = server.of_kind("webhook_endpoint")
        assert (endpoint["url"], endpoint["enabled_events"]) == (URL, [*ENDPOINT_EVENTS])
        assert not any(kind.startswith("v1.") for kind in endpoint["enabled_events"])
        prices = {price["lookup_key"]: price for price in server.of_kind("price")}
        pro, runs, storage = (prices[key] for key in PRICES)
        assert (pro["unit_amount"], pro["recurring"]) == (2900, {"interval": "month"})
        meters = server.of_kind("billing.meter")
        assert [meter["event_name"] for meter in meters] == ["bloxserver_runs", "bloxserver_storage"]
        assert {meter["default_aggregation"]["formula"] for meter in meters} == {"sum"}
        assert [price["recurring"]["meter"] for price in (runs, storage)] == [meter["id"] for meter in meters]
        assert (storage["billing_scheme"], storage["unit_amount_decimal"]) == ("per_unit", "0.000333333333")
        assert [(tier["up_to"], tier["unit_amount_decimal"]) for tier in runs["tiers"]] == [
            (100_000, "0"),
            (None, "0.05"),
        ]


@pytest.mark.parametrize(
    ("key", "change"),
    [
        (PRO_LOOKUP_KEY, {"unit_amount": 2800}),
        (PRO_LOOKUP_KEY, {"currency": "eur"}),
        (PRO_LOOKUP_KEY, {"recurring": {"interval": "year"}}),
        (RUNS_LOOKUP_KEY, {"tiers": [{"up_to": None, "unit_amount_decimal": "0.05"}]}),
        (RUNS_LOOKUP_KEY, {"tiers": None}),
        (STORAGE_LOOKUP_KEY, {"unit_amount_decimal": "0.000333333334"}),
        (STORAGE_LOOKUP_KEY, {"unit_amount_decimal": None}),
        (STORAGE_LOOKUP_KEY, {"currency": "eur"}),
        (STORAGE_LOOKUP_KEY, {"recurring": {"usage_type": "licensed"}}),
    ],
)
async def test_price_that_differs_is_reported(key: str, change: dict[str, Any]) -> None:
    async with stripe_server() as server:
        await set_up(client_of(server), URL)
        price = next(one for one in server.of_kind("price") if one["lookup_key"] == key)
        price.update(change)
        done = await set_up(client_of(server), URL)
        assert [one.name for one in done if not one.is_right] == [f"price {key}"]
        assert f"({price['id']})" in results(done)[f"price {key}"]


async def test_missing_events_are_added_to_the_endpoint() -> None:
    async with stripe_server() as server:
        await set_up(client_of(server), URL)
        (endpoint,) = server.of_kind("webhook_endpoint")
        endpoint["enabled_events"] = ["invoice.paid"]
        assert results(await set_up(client_of(server), URL))["webhook endpoint"] == "changed"
        assert endpoint["enabled_events"] == [*ENDPOINT_EVENTS]
        endpoint["enabled_events"] = ["*"]
        assert results(await set_up(client_of(server), URL))["webhook endpoint"] == "exists"


async def test_interrupted_setup_can_be_repeated() -> None:
    async with stripe_server() as server:
        server.fault = lambda call: "500" if call.path == "/v1/prices" and call.method == "POST" else None
        with pytest.raises(StripeUnavailable):
            await set_up(client_of(server), URL)
        server.fault = lambda call: None
        assert {*results(await set_up(client_of(server), URL)).values()} == {"created", "exists"}
        assert (len(server.of_kind("product")), len(server.of_kind("billing.meter"))) == (1, 2)


async def test_command_prints_the_results_and_the_secret() -> None:
    async with stripe_server() as server:
        variables = {"STRIPE_SECRET_KEY": "sk_test_x", "STRIPE_API_BASE": server.url}
        variables["WEBHOOK_BASE_URL"] = "https://flows.example.com/webhooks"
        first = await asyncio.to_thread(bloxserver, "billing", "setup", **variables)
        assert first.returncode == 0, first.stderr
        assert "price bloxserver_pro_base: created\n" in first.stdout
        assert "STRIPE_WEBHOOK_SECRET=whsec_of-the-endpoint\n" in first.stdout
        assert server.of_kind("webhook_endpoint")[0]["url"] == URL
        server.of_kind("price")[0]["unit_amount"] = 1
        second = await asyncio.to_thread(bloxserver, "billing", "setup", **variables)
        assert second.returncode == 1
        assert "price bloxserver_pro_base: differs" in second.stdout
        assert "whsec_" not in second.stdout
    without = await asyncio.to_thread(bloxserver, "billing", "setup")
    assert without.returncode != 0
    assert "STRIPE_SECRET_KEY must be set" in without.stderr
