"""What a user sees of their subscription, from the database alone."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing import prices
from bloxserver.models.enums import TierSource
from bloxserver.models.tables import UserRecord
from bloxserver.plans import get_plan
from bloxserver.queries.running_flows import number_running, read_running, read_stopped_by_plan

MAX_FLOWS = 100
"""Flows of each list."""
SOURCES = {None: "default", TierSource.OPERATOR: "operator", TierSource.STRIPE: "subscription"}
PROBLEMS = {"past_due": "payment_failed", "unpaid": "unpaid", "paused": "paused"}
PRICES = (
    {"name": "pro", "usd": "29.00", "unit": "month", "included": 0},
    {"name": "runs", "usd": "0.50", "unit": "1,000 runs", "included": prices.INCLUDED_RUNS},
    {"name": "storage", "usd": "0.10", "unit": "GB for 30 days", "included": prices.INCLUDED_GIGABYTES},
)


async def read_billing(session: AsyncSession, user_id: UUID) -> dict[str, Any]:
    """The plan of the user, the state of their subscription, and the flows that run."""
    user = await session.get_one(UserRecord, user_id)
    running = await read_running(session, user_id, MAX_FLOWS)
    used = await session.scalar(sa.select(number_running(user_id)))
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
        "flows": {
            "limit": get_plan(user.tier, user.limits).flows,
            "used": used,
            "running": running,
            "stopped_by_plan": await read_stopped_by_plan(session, user_id, MAX_FLOWS),
        },
        "prices": PRICES,
    }
