"""The prices at Stripe are those of the plan and of `GET /api/v1/billing`."""

from __future__ import annotations

from decimal import Decimal

from bloxserver.billing import prices
from bloxserver.billing.overview import PRICES
from bloxserver.plans import GIGABYTE, MEGABYTE, PLANS

PRO = PLANS["pro"]


def test_gigabyte_for_30_days_costs_10_cents() -> None:
    price = Decimal(prices.STORAGE_CENTS)
    for gigabytes in (1, 40, 10_000):
        assert round(price * (gigabytes * GIGABYTE // MEGABYTE) * 30, 2) == 10 * gigabytes
    assert -price.as_tuple().exponent <= 12  # type: ignore[operator]


def test_prices_that_users_see_are_those_of_the_plan() -> None:
    shown = {price["name"]: (Decimal(str(price["usd"])), price["included"]) for price in PRICES}
    assert shown["pro"] == (Decimal(prices.PRO_CENTS) / 100, 0)
    assert shown["runs"] == (Decimal(str(PRO.overage_usd_per_thousand)), PRO.runs)
    assert shown["runs"] == (Decimal(prices.RUN_CENTS) * 1_000 / 100, prices.INCLUDED_RUNS)
    price = Decimal(str(PRO.storage_overage_usd_per_gb))
    assert shown["storage"] == (price, prices.INCLUDED_GIGABYTES)
    assert PRO.included_stored_bytes == prices.INCLUDED_GIGABYTES * GIGABYTE
    assert round(Decimal(prices.STORAGE_CENTS) * 30 * GIGABYTE / MEGABYTE / 100, 6) == price
