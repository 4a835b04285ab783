"""Counts runs. Called in the transaction that accepts the run, so that a run and its count exist together or not."""

from __future__ import annotations

import random
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.models.statements import insert_into
from bloxserver.api.models.tables import UsageRecord
from bloxserver.api.models.types import new_id
from bloxserver.errors import Forbidden
from bloxserver.plans import plan_of
from bloxserver.queries.usage import Period, read_usage

SLOTS = 16
"""Rows over which the count of a user without a hard limit is spread, so that his runs do not queue at one row."""


async def count_run(session: AsyncSession, user_id: UUID, tier: str, period: Period, now: datetime) -> None:
    """Count one run, in one statement; raises `Forbidden` (`run_limit_reached`) at a hard limit."""
    limit = plan_of(tier).hard_run_limit
    slot = 0 if limit is not None else random.randrange(SLOTS)  # noqa: S311
    values = {
        "id": new_id(),
        "user_id": user_id,
        "period_start": period.start,
        "period_end": period.end,
        "slot": slot,
        "workflow_runs": 1,
    }
    statement = insert_into(session, UsageRecord)
    if limit is None:
        counted = statement.values(**values).on_conflict_do_update(
            index_elements=[UsageRecord.user_id, UsageRecord.period_start, UsageRecord.slot],
            set_={"workflow_runs": UsageRecord.workflow_runs + 1},
        )
        await session.execute(counted)
        return
    # Slots other than 0 hold runs from before the user had this limit: nothing adds to them any more.
    elsewhere = (
        sa.select(sa.func.coalesce(sa.func.sum(UsageRecord.workflow_runs), 0))
        .where(UsageRecord.user_id == user_id, UsageRecord.period_start == period.start, UsageRecord.slot != 0)
        .correlate(None)
        .scalar_subquery()
    )
    columns = UsageRecord.__table__.c
    row = sa.select(*(sa.literal(value, columns[name].type).label(name) for name, value in values.items()))
    limited = (
        statement.from_select(list(values), row.where(elsewhere < limit))
        .on_conflict_do_update(
            index_elements=[UsageRecord.user_id, UsageRecord.period_start, UsageRecord.slot],
            set_={"workflow_runs": UsageRecord.workflow_runs + 1},
            where=UsageRecord.workflow_runs + elsewhere < limit,
        )
        .returning(UsageRecord.workflow_runs)
    )
    if (await session.execute(limited)).first() is None:
        used = (await read_usage(session, user_id, tier, period, now)).runs_used
        resets_at = period.end.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        raise Forbidden(
            "run_limit_reached",
            f"Run limit reached ({limit}). Upgrade to run more.",
            details={"limit": limit, "used": used, "resetsAt": resets_at},
        )
