"""Which emails a change of a subscription causes. They are written in the transaction that stores the change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.account_emails.outbox import enqueue
from bloxserver.clock import iso_utc
from bloxserver.models.enums import FlowStatus, Tier, TierSource
from bloxserver.models.tables import FlowRecord, UserRecord
from bloxserver.queries.requesters import owned_by
from bloxserver.queries.running_flows import STOPPED_BY_PLAN

MAX_FLOWS = 20
"""Flows whose names an email has."""
DOWNGRADES = (EmailKind.DOWNGRADED_PAYMENT_FAILED, EmailKind.DOWNGRADED_TO_FREE)
UNPAID = ("past_due", "unpaid")


@dataclass(frozen=True)
class Snapshot:
    """What emails depend on: the stored state of a user's subscription."""

    tier: Tier
    tier_source: TierSource | None
    status: str | None
    """Stripe's."""
    subscription_id: str | None
    """None after the end of the subscription."""
    period_start: datetime | None
    """None unless the subscription gives its plan."""
    period_end: datetime | None
    trial_ends_at: datetime | None
    cancel_at: datetime | None
    grace_ends_at: datetime | None

    @classmethod
    def of(cls, user: UserRecord) -> Self:
        return cls(
            tier=user.tier,
            tier_source=user.tier_source,
            status=user.stripe_status,
            subscription_id=user.stripe_subscription_id,
            period_start=user.current_period_start,
            period_end=user.current_period_end,
            trial_ends_at=user.trial_ends_at,
            cancel_at=user.cancel_at,
            grace_ends_at=user.grace_ends_at,
        )


def emails_of(before: Snapshot, after: Snapshot) -> list[Email]:
    """The emails about a change. Each has the same key whenever the same thing happens, so it is sent once.

    A state that was never stored between the two causes none.
    """
    return [*_of_trial(before, after), *_of_payment(before, after), *_of_end(before, after), *_of_plan(before, after)]


def _of_trial(before: Snapshot, after: Snapshot) -> list[Email]:
    subscription_id = after.subscription_id
    is_same = subscription_id == before.subscription_id
    was_trial = is_same and before.status == "trialing"
    if after.status == "trialing" and not was_trial:
        data = {"plan": _plan(after), "trial_ends_at": _text(after.trial_ends_at)}
        return [Email(EmailKind.TRIAL_STARTED, f"trial_started:{subscription_id}", data)]
    if after.status == "active" and was_trial:
        data = {"plan": _plan(after), "period_end": _text(after.period_end)}
        return [Email(EmailKind.TRIAL_CONVERTED, f"trial_converted:{subscription_id}", data)]
    return []


def _of_payment(before: Snapshot, after: Snapshot) -> list[Email]:
    """The first email about a failed payment. After the grace period, it is the email about the loss of the plan."""
    if after.status != "past_due" or after.period_start is None:
        return []
    known = before.status == "past_due" and before.subscription_id == after.subscription_id
    if known and before.period_start == after.period_start:
        return []
    key = f"payment_failed_soft:{after.subscription_id}:{_text(after.period_start)}"
    data = {"plan": _plan(after), "grace_ends_at": _text(after.grace_ends_at)}
    return [Email(EmailKind.PAYMENT_FAILED_SOFT, key, data)]


def _of_end(before: Snapshot, after: Snapshot) -> list[Email]:
    if after.cancel_at is not None:
        if (before.subscription_id, before.cancel_at) == (after.subscription_id, after.cancel_at):
            return []
        subscription, ends_at = after, after.cancel_at
    elif after.subscription_id is None and before.subscription_id is not None and before.cancel_at is None:
        subscription, ends_at = before, None  # it was not cancelled before its end
    else:
        return []
    key = f"subscription_canceled:{subscription.subscription_id}:{_text(ends_at) or 'ended'}"
    return [Email(EmailKind.SUBSCRIPTION_CANCELED, key, {"plan": _plan(subscription), "ends_at": _text(ends_at)})]


def _of_plan(before: Snapshot, after: Snapshot) -> list[Email]:
    """The loss of a plan that a subscription gave. A plan that an operator has set is not lost."""
    is_lost = before.tier_source is TierSource.STRIPE and after.tier_source is None and before.tier != after.tier
    if not is_lost:
        return []
    is_unpaid = after.status in UNPAID or (after.subscription_id is None and before.status in UNPAID)
    kind = EmailKind.DOWNGRADED_PAYMENT_FAILED if is_unpaid else EmailKind.DOWNGRADED_TO_FREE
    key = f"{kind}:{before.subscription_id}:{_text(before.period_start)}"
    return [Email(kind, key, {"plan": after.tier.value, "previous_plan": before.tier.value})]


def _plan(state: Snapshot) -> str:
    """The plan of the subscription. An operator may have set another one; the subscription is that of the pro plan."""
    return state.tier.value if state.tier_source is TierSource.STRIPE else Tier.PRO.value


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else iso_utc(moment)


async def write_emails(session: AsyncSession, user: UserRecord, before: Snapshot) -> None:
    """Write the emails about the change of this user. `before` is the state that was stored until then."""
    if user.deleted_at is not None:
        return
    emails = emails_of(before, Snapshot.of(user))
    if any(email.kind in DOWNGRADES for email in emails):
        flows = await _read_flows(session, user.id)
        emails = [replace(each, data={**each.data, **flows}) if each.kind in DOWNGRADES else each for each in emails]
    await enqueue(session, [(user.id, email) for email in emails])


async def _read_flows(session: AsyncSession, user_id: UUID) -> dict[str, Any]:
    """The flows that run, and those that the plan has stopped, in this transaction or shortly before."""
    running = await _read_names(session, user_id, FlowRecord.status.in_((FlowStatus.RUNNING, FlowStatus.STARTING)))
    by_plan = (FlowRecord.status == FlowStatus.STOPPING) & (FlowRecord.error_message == STOPPED_BY_PLAN)
    stopped = await _read_names(session, user_id, by_plan)
    return _listed("running", running) | _listed("stopped", stopped)


async def _read_names(session: AsyncSession, user_id: UUID, condition: sa.ColumnElement[bool]) -> list[str]:
    flow = FlowRecord
    wanted = sa.select(flow.name).where(owned_by(user_id), condition)
    return list(await session.scalars(wanted.order_by(flow.updated_at.desc(), flow.id)))


def _listed(name: str, flows: Sequence[str]) -> dict[str, Any]:
    return {name: [*flows[:MAX_FLOWS]], f"{name}_number": len(flows)}
