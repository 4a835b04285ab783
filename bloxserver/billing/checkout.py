"""Checkout and the customer portal: pages of Stripe on which a user subscribes, pays and cancels."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.client import Stripe
from bloxserver.billing.prices import PRO_LOOKUP_KEY, RUNS_LOOKUP_KEY, STORAGE_LOOKUP_KEY, TRIAL_DAYS
from bloxserver.errors import Conflict, Unavailable
from bloxserver.models.database import release
from bloxserver.models.tables import UserRecord
from bloxserver.settings import Settings

METERED = (RUNS_LOOKUP_KEY, STORAGE_LOOKUP_KEY)
LIVE = ("active", "trialing", "past_due", "unpaid", "paused")
"""Statuses of subscriptions that can be changed in the portal."""


async def start_checkout(session: AsyncSession, stripe: Stripe, settings: Settings, user_id: UUID) -> str:
    """The URL of a checkout for the pro plan, with a trial unless the user had one.

    Repeated requests get the same checkout. Raises `Conflict` if the user has a subscription, `StripeUnavailable`, and
    `Unavailable` if the prices do not exist.
    """
    user = await _read_user(session, user_id)
    if user.stripe_subscription_id is not None and user.stripe_status in LIVE:
        raise Conflict("subscription_exists", "There is a subscription already. Change it in the customer portal.")
    customer_id = await _require_customer(session, stripe, user)
    prices = await stripe.read_prices([PRO_LOOKUP_KEY, *METERED])
    if {*prices} != {PRO_LOOKUP_KEY, *METERED}:
        raise Unavailable("billing_not_set_up", "The operator must run `bloxserver billing setup` first")
    items: list[dict[str, Any]] = [{"price": prices[PRO_LOOKUP_KEY]["id"], "quantity": 1}]
    items += [{"price": prices[key]["id"]} for key in METERED]  # a metered price has no quantity
    metadata = {"user_id": str(user_id)}
    subscription: dict[str, Any] = {"metadata": metadata}
    if user.trial_used_at is None:
        subscription["trial_period_days"] = TRIAL_DAYS
        subscription["trial_settings"] = {"end_behavior": {"missing_payment_method": "cancel"}}
    values = {
        "mode": "subscription",
        "customer": customer_id,
        "client_reference_id": str(user_id),
        "line_items": items,
        "payment_method_collection": "always",
        "subscription_data": subscription,
        "success_url": settings.billing_success_url,
        "cancel_url": settings.billing_cancel_url,
    }
    # Of two checkouts, both could be completed. After each change of the subscription, a new one is possible.
    return await stripe.create_checkout(values, f"checkout:{user_id}:{user.stripe_synced_at}")


async def open_portal(session: AsyncSession, stripe: Stripe, settings: Settings, user_id: UUID) -> str:
    """The URL of the customer portal. Raises `Conflict` for a user who was never a customer, `StripeUnavailable`."""
    user = await _read_user(session, user_id)
    if user.stripe_customer_id is None:
        raise Conflict("no_customer", "There is no subscription yet. Start a checkout.")
    return await stripe.create_portal(user.stripe_customer_id, settings.billing_cancel_url)


async def _read_user(session: AsyncSession, user_id: UUID) -> UserRecord:
    """The user's row as it is now. Ends the transaction."""
    user = await session.get_one(UserRecord, user_id, populate_existing=True)
    session.expunge(user)
    await release(session)
    return user


async def _require_customer(session: AsyncSession, stripe: Stripe, user: UserRecord) -> str:
    """The id of the user's customer, which is created at Stripe if there is none. It remains that of the user."""
    if user.stripe_customer_id is not None:
        return user.stripe_customer_id
    key = f"customer:{user.id}:{user.stripe_synced_at}"
    created = await stripe.create_customer(str(user.id), user.email or None, key)
    await session.execute(
        sa.update(UserRecord)
        .where(UserRecord.id == user.id, UserRecord.stripe_customer_id.is_(None))
        .values(stripe_customer_id=created)
        .execution_options(synchronize_session=False)
    )
    stored = await session.scalar(sa.select(UserRecord.stripe_customer_id).where(UserRecord.id == user.id))
    await release(session)
    return stored or created
