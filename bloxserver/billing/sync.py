"""Writes what Stripe knows of a customer into the user's row.

Stripe neither orders events nor sends each of them once. So the state is always read from Stripe, and never taken from
an event.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
import structlog
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.client import Stripe
from bloxserver.billing.emails import Snapshot, write_emails
from bloxserver.billing.periods import record_period
from bloxserver.billing.state import BillingState, UnknownStatus, state_of
from bloxserver.errors import Unavailable
from bloxserver.models.database import release
from bloxserver.models.enums import ActorKind, AuditAction, Tier, TierSource
from bloxserver.models.tables import UserRecord
from bloxserver.models.types import database_now
from bloxserver.services import audit
from bloxserver.services.downgrades import stop_flows_beyond
from bloxserver.settings import get_settings

log = structlog.stdlib.get_logger("bloxserver.billing")

BILLING = audit.Actor(ActorKind.BILLING, "stripe")


async def sync_customer(session: AsyncSession, stripe: Stripe, customer_id: str) -> None:
    """Read the customer's subscriptions from Stripe, and store the state that they give.

    Ends the transaction of the session before the request. Raises `StripeUnavailable`, and `Unavailable` for a status
    that this version does not know.
    """
    started_at = (await session.execute(sa.select(database_now()))).scalar_one()
    await release(session)
    subscriptions = await stripe.read_subscriptions(customer_id)
    try:
        state = state_of(subscriptions, started_at)
    except UnknownStatus as error:
        log.error("Stripe has an unknown status of a subscription", status=str(error))
        raise Unavailable("unknown_subscription_status", "The status of the subscription is unknown") from None
    await store_state(session, customer_id, state, started_at)


async def store_state(session: AsyncSession, customer_id: str, state: BillingState, started_at: datetime) -> bool:
    """Store the state that was read from Stripe after `started_at`, unless a later one is stored already.

    Returns whether it was stored.
    """
    user = await session.scalar(
        sa.select(UserRecord)
        .where(UserRecord.stripe_customer_id == customer_id)
        .with_for_update(key_share=True)
        .execution_options(populate_existing=True)
    )
    if user is None:
        log.warning("event of an unknown customer of Stripe", customer=customer_id)
        return False
    if user.stripe_synced_at is not None and user.stripe_synced_at > started_at:
        return False
    snapshot = Snapshot.of(user)
    before = {"tier": user.tier, "billingStatus": user.billing_status}
    if user.tier_source is not TierSource.OPERATOR:
        tier = state.tier or Tier(get_settings().default_tier)
        with audit.acting_as(BILLING):
            await stop_flows_beyond(session, user, tier)
        user.tier = tier
        user.tier_source = TierSource.STRIPE if state.tier is not None else None
    user.billing_status = state.billing_status
    user.stripe_status = state.stripe_status
    user.stripe_subscription_id = state.subscription_id
    user.stripe_subscription_item_id = state.item_id
    user.current_period_start, user.current_period_end = state.period_start, state.period_end
    user.trial_ends_at = state.trial_ends_at
    user.cancel_at = state.cancel_at
    user.grace_ends_at = state.grace_ends_at
    if state.has_trialed and user.trial_used_at is None:
        user.trial_used_at = started_at
    user.stripe_synced_at = started_at
    await session.flush()
    await record_period(session, user, started_at)
    await write_emails(session, user, snapshot)
    await _record(session, user.id, before, {"tier": user.tier, "billingStatus": user.billing_status})
    return True


async def _record(session: AsyncSession, user_id: UUID, before: Mapping[str, str], after: Mapping[str, str]) -> None:
    changed_before, changed_after = audit.difference(before, after)
    if changed_after:
        action = AuditAction.USER_TIER_CHANGED
        with audit.acting_as(BILLING):
            await audit.record(session, action, user_id, user_id, before=changed_before, after=changed_after)
