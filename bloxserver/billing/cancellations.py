"""Cancels the subscriptions of deleted users, whose rows remain until then."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
import structlog

from bloxserver.billing.client import StripeUnavailable, get_stripe
from bloxserver.models.database import Database
from bloxserver.models.tables import UserRecord
from bloxserver.settings import get_settings

log = structlog.stdlib.get_logger("bloxserver.billing")

MAX_SUBSCRIPTIONS = 100
"""Subscriptions that one call cancels."""


async def cancel_subscriptions_of_deleted_users(database: Database) -> None:
    """Cancel them at Stripe, and remove their ids from the rows. Those that Stripe does not cancel now are kept."""
    stripe = get_stripe(get_settings())
    if stripe is None:
        return
    wanted = sa.select(UserRecord.id, UserRecord.stripe_subscription_id).where(
        UserRecord.deleted_at.is_not(None), UserRecord.stripe_subscription_id.is_not(None)
    )
    async with database.transaction(read_only=True) as session:
        rows: Sequence[Any] = (
            await session.execute(wanted.order_by(UserRecord.deleted_at).limit(MAX_SUBSCRIPTIONS))
        ).all()
    for user_id, subscription_id in rows:
        try:
            await stripe.cancel_subscription(subscription_id)
        except StripeUnavailable:
            log.warning("subscription of a deleted user is not cancelled yet", user_id=str(user_id))
            continue
        async with database.transaction() as session:
            await session.execute(
                sa.update(UserRecord)
                .where(UserRecord.id == user_id, UserRecord.stripe_subscription_id == subscription_id)
                .values(stripe_subscription_id=None, stripe_subscription_item_id=None)
            )
