"""The tier and the billing status as a function of Stripe's subscriptions."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from bloxserver.billing.prices import ENTERPRISE_LOOKUP_KEY, PRO_LOOKUP_KEY, RUNS_LOOKUP_KEY
from bloxserver.billing.state import GRACE, BillingState, UnknownStatus, state_of
from bloxserver.models.enums import BillingStatus, Tier

START, END = datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)
NOW = START + timedelta(days=3)
LATER = START + GRACE
TRIAL_END = START + timedelta(days=14)
CANCEL = END - timedelta(days=5)


def subscription(status: str, key: str | None = PRO_LOOKUP_KEY, **values: Any) -> dict[str, Any]:
    period = {"current_period_start": int(START.timestamp()), "current_period_end": int(END.timestamp())}
    items = [{"id": "si_runs", "price": {"lookup_key": RUNS_LOOKUP_KEY}, **period}]
    items.append({"id": "si_base", "price": {"lookup_key": key}, **period})
    return {"id": "sub_1", "status": status, "created": 1, "items": {"data": items}} | values


TRIAL: dict[str, Any] = {"trial_start": int(START.timestamp()), "trial_end": int(TRIAL_END.timestamp())}
AT_PERIOD_END: dict[str, Any] = {"cancel_at_period_end": True}
AT: dict[str, Any] = {"cancel_at": int(CANCEL.timestamp())}
PRO, ACTIVE = Tier.PRO, BillingStatus.ACTIVE
TABLE: list[tuple[str, dict[str, Any], datetime, Tier | None, BillingStatus]] = [
    ("trialing", TRIAL, NOW, PRO, BillingStatus.TRIALING),
    ("trialing", TRIAL | AT, NOW, PRO, BillingStatus.CANCELING),
    ("active", {}, NOW, PRO, ACTIVE),
    ("active", AT_PERIOD_END, NOW, PRO, BillingStatus.CANCELING),
    ("active", AT, NOW, PRO, BillingStatus.CANCELING),
    ("past_due", {}, NOW, PRO, BillingStatus.PAST_DUE),
    ("past_due", AT_PERIOD_END, NOW, PRO, BillingStatus.PAST_DUE),
    ("past_due", {}, LATER, None, BillingStatus.PAST_DUE),
    ("unpaid", {}, NOW, None, BillingStatus.PAST_DUE),
    ("paused", {}, NOW, None, BillingStatus.PAST_DUE),
    ("incomplete", {}, NOW, None, ACTIVE),
    ("incomplete_expired", {}, NOW, None, ACTIVE),
    ("canceled", {}, NOW, None, BillingStatus.CANCELED),
    ("canceled", AT, NOW, None, BillingStatus.CANCELED),
]
"""Stripe's status, other values of the subscription and the time; the tier and the billing status."""


@pytest.mark.parametrize(("status", "values", "moment", "tier", "billing_status"), TABLE)
def test_state_follows_the_table(
    status: str, values: dict[str, Any], moment: datetime, tier: Tier | None, billing_status: BillingStatus
) -> None:
    state = state_of([subscription(status, **values)], moment)
    assert (state.tier, state.billing_status, state.stripe_status) == (tier, billing_status, status)
    has_period = tier is not None
    assert (state.period_start, state.period_end) == ((START, END) if has_period else (None, None))
    assert state.trial_ends_at == (TRIAL_END if status == "trialing" else None)
    assert state.grace_ends_at == (START + GRACE if status == "past_due" else None)
    assert state.has_trialed == ("trial_start" in values)
    ids = (None, None) if status in ("canceled", "incomplete", "incomplete_expired") else ("sub_1", "si_base")
    assert (state.subscription_id, state.item_id) == ids


def test_cancellation_has_a_time() -> None:
    assert state_of([subscription("active", **AT)], NOW).cancel_at == CANCEL
    assert state_of([subscription("active", **AT_PERIOD_END)], NOW).cancel_at == END
    assert state_of([subscription("active")], NOW).cancel_at is None


@pytest.mark.parametrize("status", ["active", "trialing", "past_due"])
def test_enterprise_price_gives_the_enterprise_tier(status: str) -> None:
    state = state_of([subscription(status, ENTERPRISE_LOOKUP_KEY)], NOW)
    assert (state.tier, state.item_id) == (Tier.ENTERPRISE, "si_base")


def test_customer_without_a_subscription_has_no_tier() -> None:
    assert state_of([], NOW) == BillingState()
    for key in ("another_product", "", None):
        assert state_of([subscription("active", key)], NOW) == BillingState()


def test_best_of_several_subscriptions_counts() -> None:
    others = [subscription("canceled", id="sub_0", created=9), subscription("past_due", id="sub_2", created=9)]
    best = subscription("active", id="sub_3", created=2)
    for order in ([*others, best], [best, *others], [*others, best, subscription("active", created=1)]):
        assert state_of(order, NOW).subscription_id == "sub_3"
    ended = state_of([*others[:1], subscription("trialing", id="sub_5", **TRIAL)], NOW)
    assert (ended.subscription_id, ended.has_trialed) == ("sub_5", True)
    assert state_of([subscription("canceled", **TRIAL), subscription("active", created=5)], NOW).has_trialed


def test_unknown_status_is_an_error() -> None:
    with pytest.raises(UnknownStatus, match="suspended"):
        state_of([subscription("active"), subscription("suspended")], NOW)
