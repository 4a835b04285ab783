"""Counts runs and tokens, in the same transaction that writes the counted rows."""

from __future__ import annotations

import random
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import Forbidden, LimitReached
from bloxserver.ids import new_id
from bloxserver.models.tables import UsageRecord, UserRecord
from bloxserver.models.upsert import insert_into
from bloxserver.plans import PLANS, Plan
from bloxserver.queries.usage import Period, read_usage
from bloxserver.settings import get_settings

SLOTS = 16
"""Counter rows per user without a hard limit, so that concurrent runs do not wait for the lock of one row."""


async def count_run(session: AsyncSession, user_id: UUID, plan: Plan, period: Period, now: datetime) -> None:
    """Count one run, in one statement; raises `Forbidden` (`run_limit_reached`) at a hard limit."""
    limit = plan.hard_run_limit
    slot = 0 if limit is not None else any_slot()
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
    # The other slots hold runs from before the user had this limit. They no longer change.
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
        used = (await read_usage(session, user_id, plan, period, now)).runs_used
        resets_at = period.end.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        details = limit_details(limit, used, resetsAt=resets_at)
        raise Forbidden("run_limit_reached", f"Run limit reached ({limit}). Upgrade to run more.", details=details)


def limit_details(limit: int, used: int, **more: str) -> dict[str, Any]:
    """The `details` of an error of a limit of the plan, with the address at which the user can upgrade."""
    details: dict[str, Any] = {"limit": limit, "used": used, **more}
    settings = get_settings()
    if settings.stripe_secret_key is not None:
        details["upgradeUrl"] = settings.billing_cancel_url
    return details


def require_storage(plan: Plan, stored_bytes: int) -> None:
    """Raise `LimitReached` if the user stores as many bytes as the plan allows."""
    if stored_bytes >= plan.stored_bytes:
        raise storage_limit_reached(plan, stored_bytes)


def storage_limit_reached(plan: Plan, stored_bytes: int) -> LimitReached:
    hint = "Delete flows that are no longer needed, wait until old executions expire, or upgrade."
    return LimitReached("stored_bytes", plan.stored_bytes, stored_bytes, hint)


async def count_tokens(
    session: AsyncSession, user_id: UUID, period: Period, input_tokens: int, output_tokens: int
) -> None:
    """Count the input and output tokens of language models, in one statement. Enforces no limit."""
    unlimited = [tier for tier, plan in PLANS.items() if plan.hard_run_limit is None]
    slot = sa.case((UserRecord.tier.in_(unlimited), any_slot()), else_=0)
    counted = insert_into(session, UsageRecord).values(
        id=new_id(),
        user_id=user_id,
        period_start=period.start,
        period_end=period.end,
        slot=sa.select(slot).where(UserRecord.id == user_id).scalar_subquery(),
        llm_tokens_in=input_tokens,
        llm_tokens_out=output_tokens,
    )
    await session.execute(
        counted.on_conflict_do_update(
            index_elements=[UsageRecord.user_id, UsageRecord.period_start, UsageRecord.slot],
            set_={
                "llm_tokens_in": UsageRecord.llm_tokens_in + counted.excluded.llm_tokens_in,
                "llm_tokens_out": UsageRecord.llm_tokens_out + counted.excluded.llm_tokens_out,
            },
        )
    )


def any_slot() -> int:
    """The slot of a user without a hard limit."""
    return random.randrange(SLOTS)  # noqa: S311
