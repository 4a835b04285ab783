"""What a user sees of their subscription, from the database alone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing import prices
from bloxserver.models.enums import TierSource
from bloxserver.models.tables import UserRecord

SOURCES = {None: "default", TierSource.OPERATOR: "operator", TierSource.STRIPE: "subscription"}
PROBLEMS = {"past_due": "payment_failed", "unpaid": "unpaid", "paused": "paused"}
PRICES = (
    {"name": "pro", "usd": "29.00", "unit": "month", "included": 0},
    {"name": "runs", "usd": "0.50", "unit": "1,000 runs", "included": prices.INCLUDED_RUNS},
)


async def read_billing(session: AsyncSession, user_id: UUID) -> dict[str, Any]:
    """The plan of the user and the state of their subscription."""
    user = await session.get_one(UserRecord, user_id)
    return {
        "plan": user.tier,
        "plan_source": SOURCES[user.tier_source],
        "status": user.billing_status,
        "trial_ends_at": user.trial_ends_at,
        "trial_available": user.trial_used_at is None,
        "current_period_start": user.current_period_start,
        "current_period_end": user.current_period_end,
        "cancel_at": user.cancel_at,
        "payment_problem": PROBLEMS.get(user.stripe_status or ""),
        "grace_ends_at": user.grace_ends_at,
        "prices": PRICES,
    }
