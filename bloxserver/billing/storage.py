"""Samples once a day what each billed user stores, and reports what exceeds the included storage."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.billing.metering import KEPT, time_in_period
from bloxserver.billing.prices import STORAGE_METER
from bloxserver.models.enums import Tier, TierSource
from bloxserver.models.tables import BillingPeriodRecord, MeterReportRecord, StorageSampleRecord, UserRecord
from bloxserver.models.upsert import insert_into
from bloxserver.plans import get_plan
from bloxserver.queries.usage import stored_bytes_of

SAMPLED_AT_ONCE = 100
DELETED_AT_ONCE = 1_000


async def sample_storage(session: AsyncSession, moment: datetime) -> bool:
    """Sample billed users that have no sample of this day, in UTC. Returns whether there may be more of them.

    Of several processes, one writes the sample of a user and its report, in one transaction.
    """
    midnight = moment.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    day = midnight.date()
    users = {row.user_id: row for row in await _read_unsampled(session, midnight)}
    if not users:
        return False
    samples = [
        {
            "user_id": user_id,
            "day": day,
            "period_start": row.period_start,
            "bytes": row.stored_bytes,
            "billed_megabytes": get_plan(row.tier or Tier.FREE, row.limits).stored_megabytes_over(row.stored_bytes),
        }
        for user_id, row in users.items()
    ]
    sample = StorageSampleRecord
    inserted = await session.execute(
        insert_into(session, sample)
        .values(samples)
        .on_conflict_do_nothing()
        .returning(sample.user_id, sample.billed_megabytes)
    )
    session.add_all(
        MeterReportRecord(
            user_id=user_id,
            period_start=users[user_id].period_start,
            customer_id=users[user_id].customer_id,
            event_name=STORAGE_METER,
            identifier=f"storage:{user_id}:{day}",
            value=billed,
            timestamp=time_in_period(moment, users[user_id].period_start, users[user_id].period_end),
            due_at=moment,
        )
        for user_id, billed in inserted.all()
        if billed
    )
    await session.flush()
    return len(users) == SAMPLED_AT_ONCE


async def _read_unsampled(session: AsyncSession, midnight: datetime) -> Sequence[sa.Row[Any]]:
    """Billed users without a sample of the day that begins then.

    A day counts for the period that contains its beginning, so a period has as many samples as midnights.
    """
    period, user, sample = BillingPeriodRecord, UserRecord, StorageSampleRecord
    is_sampled = sa.exists().where(sample.user_id == period.user_id, sample.day == midnight.date())
    columns = (period.user_id, period.period_start, period.period_end, period.customer_id, user.tier, user.limits)
    rows = await session.execute(
        sa.select(*columns, stored_bytes_of(period.user_id).label("stored_bytes"))
        .join(user, user.id == period.user_id)
        .where(
            period.is_billed,
            period.period_start <= midnight,
            period.period_end > midnight,
            # A period remains billed for its runs after the subscription was cancelled at once.
            user.tier_source == TierSource.STRIPE,
            user.deleted_at.is_(None),
            ~is_sampled,
        )
        .order_by(period.user_id)
        .limit(SAMPLED_AT_ONCE)
    )
    return rows.all()


async def delete_old_samples(session: AsyncSession, moment: datetime) -> bool:
    """Delete samples that nothing reads any more. Returns whether there may be more of them."""
    sample = StorageSampleRecord
    key = sa.tuple_(sample.user_id, sample.day)
    old = sa.select(sample.user_id, sample.day).where(sample.day < (moment - KEPT).date()).limit(DELETED_AT_ONCE)
    deleted = await session.scalars(
        sa.delete(sample).where(key.in_(old)).returning(sample.user_id).execution_options(synchronize_session=False)
    )
    return len(deleted.all()) == DELETED_AT_ONCE
