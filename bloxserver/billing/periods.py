"""Which periods of a user are billed: only usage of these is reported to Stripe."""

from __future__ import annotations

from datetime import datetime

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.enums import TierSource
from bloxserver.models.tables import BillingPeriodRecord, UserRecord
from bloxserver.models.upsert import insert_into

OVER = (None, "canceled")
"""States after a subscription. The periods in which it was active remain billed."""


async def record_period(session: AsyncSession, user: UserRecord, moment: datetime) -> None:
    """Record whether the current period of the user is billed, after a read of their subscription at this time.

    A period is billed if the subscription is active in it and gives the plan, which an operator may have set instead.
    Trials, and periods that are not paid, are not billed.
    """
    period = BillingPeriodRecord
    start, end = user.current_period_start, user.current_period_end
    is_active = user.stripe_status == "active" and user.tier_source is TierSource.STRIPE
    if is_active and start is not None and end is not None:
        values = {"period_end": end, "customer_id": user.stripe_customer_id, "is_billed": True}
        inserted = insert_into(session, period).values(user_id=user.id, period_start=start, **values)
        await session.execute(
            inserted.on_conflict_do_update(index_elements=[period.user_id, period.period_start], set_=values)
        )
        # Stripe can begin a new period before the end of the last one. Their usage must not be mixed.
        await session.execute(
            sa.update(period)
            .where(period.user_id == user.id, period.period_start < start, period.period_end > start)
            .values(period_end=start)
        )
    elif user.stripe_status not in OVER:
        await session.execute(
            sa.update(period)
            .where(period.user_id == user.id, period.period_start <= moment, period.period_end > moment)
            .values(is_billed=False)
        )
