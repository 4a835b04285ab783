"""Emails before the end of a trial and of the grace period."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import SAMPLES, EmailKind
from bloxserver.billing.due_emails import find_due_emails
from bloxserver.clock import iso_utc
from bloxserver.models.enums import Tier, TierSource
from tests.factories import create_user

NOW = datetime(2026, 6, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)
SECOND = timedelta(seconds=1)
TRIAL = {"stripe_status": "trialing", "stripe_subscription_id": "sub_1"}
FAILED = {"stripe_status": "past_due", "stripe_subscription_id": "sub_1"}


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (TRIAL | {"trial_ends_at": NOW + 3 * DAY + SECOND}, None),
        (TRIAL | {"trial_ends_at": NOW + 3 * DAY}, EmailKind.TRIAL_ENDING),
        (TRIAL | {"trial_ends_at": NOW + SECOND}, EmailKind.TRIAL_ENDING),
        (TRIAL | {"trial_ends_at": NOW}, None),
        (TRIAL | {"trial_ends_at": NOW + DAY, "cancel_at": NOW + DAY}, None),
        (TRIAL | {"trial_ends_at": NOW + DAY, "deleted_at": NOW}, None),
        ({"stripe_status": "active", "trial_ends_at": NOW + DAY}, None),
        (FAILED | {"grace_ends_at": NOW + 2 * DAY + SECOND}, None),
        (FAILED | {"grace_ends_at": NOW + 2 * DAY}, EmailKind.PAYMENT_FAILED_WARNING),
        (FAILED | {"grace_ends_at": NOW + SECOND}, EmailKind.PAYMENT_FAILED_WARNING),
        (FAILED | {"grace_ends_at": NOW}, None),
        ({"stripe_status": "unpaid", "grace_ends_at": NOW + DAY}, None),
    ],
)
async def test_email_is_due_shortly_before_the_end(
    session: AsyncSession, values: dict[str, Any], kind: EmailKind | None
) -> None:
    user = await create_user(session, tier=Tier.PRO, tier_source=TierSource.STRIPE, **values)
    found = await find_due_emails(session, NOW)
    if kind is None:
        assert found == []
        return
    [(user_id, email)] = found
    end = iso_utc(values.get("trial_ends_at") or values["grace_ends_at"])
    assert (user_id, email.kind, email.key) == (user.id, kind, f"{kind}:sub_1:{end}")
    assert email.data.keys() == SAMPLES[kind][0].keys()
    assert (email.data["plan"], end in email.data.values()) == ("pro", True)


async def test_extended_trial_has_another_email(session: AsyncSession) -> None:
    user = await create_user(session, trial_ends_at=NOW + DAY, **TRIAL)
    first = await find_due_emails(session, NOW)
    user.trial_ends_at = NOW + 2 * DAY
    await session.flush()
    second = await find_due_emails(session, NOW)
    assert first[0][1].key != second[0][1].key
