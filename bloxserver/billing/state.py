"""What a user's subscriptions at Stripe mean for their tier: a pure function of what Stripe returns.

Stripe's statuses are described at https://docs.stripe.com/billing/subscriptions/overview.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from bloxserver.billing.prices import ENTERPRISE_LOOKUP_KEY, PRO_LOOKUP_KEY
from bloxserver.models.enums import BillingStatus, Tier

GRACE = timedelta(days=7)
"""How long a user keeps their tier after a payment has failed."""
LIVE = ("active", "trialing", "past_due")
"""Statuses of subscriptions that give a tier, the best first."""
UNPAID = ("unpaid", "paused")
"""Statuses of subscriptions that exist and give no tier, because they are not paid."""
OVER = ("canceled", "incomplete", "incomplete_expired")
"""Statuses of subscriptions that have ended, or whose first payment has not succeeded."""
TIERS = {ENTERPRISE_LOOKUP_KEY: Tier.ENTERPRISE, PRO_LOOKUP_KEY: Tier.PRO}
"""Tiers by the lookup key of the base price, the best first."""

Subscription = Mapping[str, Any]
"""A subscription as Stripe returns it."""


@dataclass(frozen=True)
class BillingState:
    """The tier that the subscriptions give, and what the user sees of them. None for the tier without one."""

    tier: Tier | None = None
    billing_status: BillingStatus = BillingStatus.ACTIVE
    stripe_status: str | None = None
    """Stripe's status of the subscription."""
    subscription_id: str | None = None
    item_id: str | None = None
    """The item with the base price."""
    period_start: datetime | None = None
    period_end: datetime | None = None
    trial_ends_at: datetime | None = None
    cancel_at: datetime | None = None
    """When the subscription ends, if it was cancelled."""
    grace_ends_at: datetime | None = None
    """Until when the tier is kept, if a payment has failed."""
    has_trialed: bool = False
    """Whether a subscription ever had a trial."""


class UnknownStatus(Exception):
    """Stripe has a status that this version does not know. What is stored remains valid."""


def state_of(subscriptions: Sequence[Subscription], moment: datetime) -> BillingState:
    """The state that all subscriptions of one customer give at this time. The best of several counts.

    Raises `UnknownStatus`.
    """
    unknown = {subscription["status"] for subscription in subscriptions} - {*LIVE, *UNPAID, *OVER}
    if unknown:
        raise UnknownStatus(", ".join(sorted(unknown)))
    known = [(subscription, item) for subscription in subscriptions if (item := _base_item(subscription)) is not None]
    has_trialed = any(subscription.get("trial_start") is not None for subscription, _ in known)
    if not known:
        return BillingState(has_trialed=has_trialed)
    subscription, item = min(known, key=lambda pair: _rank(*pair))
    status: str = subscription["status"]
    period_start = _time(item.get("current_period_start"))
    grace_ends_at = period_start + GRACE if status == "past_due" and period_start is not None else None
    is_live = status in LIVE and (grace_ends_at is None or moment < grace_ends_at)
    is_over = status in OVER
    cancel_at = _cancel_at(subscription, item)
    return BillingState(
        tier=_tier(item) if is_live else None,
        billing_status=_billing_status(status, cancel_at),
        stripe_status=status,
        subscription_id=None if is_over else subscription["id"],
        item_id=None if is_over else item["id"],
        period_start=period_start if is_live else None,
        period_end=_time(item.get("current_period_end")) if is_live else None,
        trial_ends_at=_time(subscription.get("trial_end")) if status == "trialing" else None,
        cancel_at=None if is_over else cancel_at,
        grace_ends_at=grace_ends_at,
        has_trialed=has_trialed,
    )


def _billing_status(status: str, cancel_at: datetime | None) -> BillingStatus:
    if status in ("active", "trialing"):
        if cancel_at is not None:
            return BillingStatus.CANCELING
        return BillingStatus.ACTIVE if status == "active" else BillingStatus.TRIALING
    if status in ("past_due", *UNPAID):
        return BillingStatus.PAST_DUE
    # A subscription whose first payment never succeeded is none.
    return BillingStatus.CANCELED if status == "canceled" else BillingStatus.ACTIVE


def _base_item(subscription: Subscription) -> Mapping[str, Any] | None:
    """The item of the subscription whose price gives a tier. Periods are those of items."""
    items = [item for item in subscription["items"]["data"] if _lookup_key(item) in TIERS]
    return min(items, key=lambda item: [*TIERS].index(_lookup_key(item)), default=None)


def _lookup_key(item: Mapping[str, Any]) -> str:
    return item["price"].get("lookup_key") or ""


def _tier(item: Mapping[str, Any]) -> Tier:
    return TIERS[_lookup_key(item)]


def _rank(subscription: Subscription, item: Mapping[str, Any]) -> tuple[int, int, int]:
    """The order of subscriptions, the best first: by status, tier and age."""
    position = [*LIVE, *UNPAID, *OVER].index(subscription["status"])
    return position, [*TIERS].index(_lookup_key(item)), -int(subscription["created"])


def _cancel_at(subscription: Subscription, item: Mapping[str, Any]) -> datetime | None:
    """The portal sets `cancel_at_period_end` or `cancel_at`, depending on the billing mode."""
    if subscription.get("cancel_at") is not None:
        return _time(subscription["cancel_at"])
    return _time(item.get("current_period_end")) if subscription.get("cancel_at_period_end") else None


def _time(seconds: int | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)
