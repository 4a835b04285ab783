"""Notices of usage: who gets one, when, and with which values."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email
from bloxserver.account_emails.usage_notices import find_notices
from bloxserver.clock import iso_utc
from bloxserver.models.enums import BillingStatus, Tier
from bloxserver.models.tables import StoredBytesRecord, UsageRecord, UserRecord
from bloxserver.plans import FREE, GIGABYTE, PLANS
from tests.factories import create_user

NOW = datetime(2026, 6, 20, 12, tzinfo=UTC)
MONTH = datetime(2026, 6, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
PERIOD = datetime(2026, 6, 11, tzinfo=UTC), datetime(2026, 7, 11, tzinfo=UTC)
OF_STRIPE = {"current_period_start": PERIOD[0], "current_period_end": PERIOD[1]}


async def use(session: AsyncSession, user: UserRecord, *runs: int, period: tuple[datetime, datetime] = MONTH) -> None:
    values = {"user_id": user.id, "period_start": period[0], "period_end": period[1]}
    for slot, number in enumerate(runs):
        await session.execute(sa.insert(UsageRecord).values(**values, slot=slot, workflow_runs=number))


async def store(session: AsyncSession, user: UserRecord, *sizes: int) -> None:
    for slot, size in enumerate(sizes):
        values = {"user_id": user.id, "source": "executions", "slot": slot, "bytes": size}
        await session.execute(sa.insert(StoredBytesRecord).values(values))


async def notices(session: AsyncSession, moment: datetime = NOW) -> dict[UUID, list[Email]]:
    found: dict[UUID, list[Email]] = {}
    for user_id, email in await find_notices(session, moment):
        found.setdefault(user_id, []).append(email)
    return found


async def keys(session: AsyncSession, user: UserRecord, moment: datetime = NOW) -> list[str]:
    return [email.key for email in (await notices(session, moment)).get(user.id, [])]


@pytest.mark.parametrize(
    ("runs", "percent"),
    [((799,), None), ((800,), 80), ((999,), 80), ((1_000,), 100), ((5_000,), 100), ((9, 791), 80)],
)
async def test_highest_reached_threshold_counts(
    session: AsyncSession, runs: tuple[int, ...], percent: int | None
) -> None:
    user = await create_user(session)
    await use(session, user, *runs)
    assert await keys(session, user) == ([] if percent is None else [f"runs:{percent}:{iso_utc(MONTH[0])}"])


async def test_notice_has_the_values_of_the_plan(session: AsyncSession) -> None:
    user = await create_user(session)
    await use(session, user, 812)
    [email] = (await notices(session))[user.id]
    assert email.data == {
        "limit": "runs",
        "percent": 80,
        "used": 812,
        "maximum": 1_000,
        "plan": "free",
        "period_end": iso_utc(MONTH[1]),
        "usd_per_thousand": None,
        "usd_per_gb": None,
    }


@pytest.mark.parametrize(
    ("status", "price"),
    [
        (BillingStatus.ACTIVE, 0.5),
        (BillingStatus.CANCELING, 0.5),
        (BillingStatus.TRIALING, None),
        (BillingStatus.PAST_DUE, None),
    ],
)
async def test_notice_of_the_pro_plan_has_the_price_of_overage(
    session: AsyncSession, status: BillingStatus, price: float | None
) -> None:
    user = await create_user(session, tier=Tier.PRO, billing_status=status, **OF_STRIPE)
    await use(session, user, 80_000, period=PERIOD)
    [email] = (await notices(session))[user.id]
    assert (email.data["usd_per_thousand"], email.data["period_end"]) == (price, iso_utc(PERIOD[1]))


async def test_plan_without_a_limit_has_none(session: AsyncSession) -> None:
    for tier in (Tier.ENTERPRISE, Tier.HIGH_FREQUENCY):
        await use(session, await create_user(session, tier=tier), 10**9)
    assert await notices(session) == {}


@pytest.mark.parametrize(
    ("limits", "percent"), [({"runs": 10}, 100), ({"runs": 10_000}, None), ({"runs": None}, None), ({"runs": 0}, None)]
)
async def test_limit_of_an_operator_counts(session: AsyncSession, limits: dict[str, Any], percent: int | None) -> None:
    user = await create_user(session, limits=limits)
    await use(session, user, 1_000 if percent is None else 10)
    assert [key.split(":")[1] for key in await keys(session, user)] == ([] if percent is None else [str(percent)])


async def test_limit_of_the_plans_file_counts(session: AsyncSession, lower_limit: int) -> None:
    user = await create_user(session)
    await use(session, user, lower_limit)
    assert await keys(session, user) == [f"runs:100:{iso_utc(MONTH[0])}"]


@pytest.fixture
def lower_limit(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(PLANS, "free", replace(FREE, runs=5))
    return 5


async def test_usage_of_other_periods_does_not_count(session: AsyncSession) -> None:
    past, other = datetime(2026, 5, 1, tzinfo=UTC), await create_user(session, **OF_STRIPE)
    user = await create_user(session)
    await use(session, user, 900, period=(past, MONTH[0]))
    await use(session, other, 900)  # the calendar month contains the time, but is not the period of this user
    assert await notices(session) == {}


async def test_period_whose_assumed_end_was_too_early_counts(session: AsyncSession) -> None:
    user = await create_user(session, **OF_STRIPE)
    await use(session, user, 900, period=(PERIOD[0], PERIOD[1] - timedelta(days=2)))
    assert await keys(session, user, PERIOD[1] - timedelta(hours=1)) == [f"runs:80:{iso_utc(PERIOD[0])}"]


async def test_next_period_has_notices_of_its_own(session: AsyncSession) -> None:
    user, july = await create_user(session), (MONTH[1], datetime(2026, 8, 1, tzinfo=UTC))
    await use(session, user, 800)
    await use(session, user, 800, period=july)
    found = {key for moment in (NOW, NOW + timedelta(days=30)) for key in await keys(session, user, moment)}
    assert found == {f"runs:80:{iso_utc(start)}" for start, _ in (MONTH, july)}


@pytest.mark.parametrize(("share", "percent"), [(0.79, None), (0.8, 80), (0.99, 80), (1.0, 100), (1.2, 100)])
async def test_storage_has_notices(session: AsyncSession, share: float, percent: int | None) -> None:
    user, size = await create_user(session), int(FREE.stored_bytes * share) + 1
    await store(session, user, size + 50, -50)
    assert await keys(session, user) == ([] if percent is None else [f"stored_bytes:{percent}:{iso_utc(MONTH[0])}"])


@pytest.mark.parametrize(("status", "price"), [(BillingStatus.ACTIVE, 0.1), (BillingStatus.TRIALING, None)])
async def test_storage_of_the_pro_plan_has_a_price_unless_it_is_not_paid(
    session: AsyncSession, status: BillingStatus, price: float | None
) -> None:
    user = await create_user(session, tier=Tier.PRO, billing_status=status, **OF_STRIPE)
    await store(session, user, 10 * GIGABYTE)
    [email] = (await notices(session))[user.id]
    assert email.key == f"stored_bytes:100:{iso_utc(PERIOD[0])}"
    assert (email.data["usd_per_gb"], email.data["usd_per_thousand"]) == (price, None)


async def test_deleted_user_has_none(session: AsyncSession) -> None:
    user = await create_user(session, deleted_at=NOW)
    await use(session, user, 1_000)
    await store(session, user, FREE.stored_bytes)
    assert await notices(session) == {}


async def test_rows_of_current_periods_are_found_by_their_index(session: AsyncSession) -> None:
    indexes = await session.run_sync(lambda sync: sa.inspect(sync.connection()).get_indexes("usage_records"))
    assert ["period_end"] in [index["column_names"] for index in indexes]
