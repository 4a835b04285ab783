from __future__ import annotations

from typing import Literal

from pydantic import Field

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import BillingStatus, Tier


class Price(CamelModel):
    """A price of the pro plan, in US dollars."""

    name: str
    usd: str = Field(description="The price of one unit, as a decimal number.")
    unit: str
    included: int = Field(description="Units in each billing period that cost nothing.")


class Billing(CamelModel):
    """The user's plan and subscription."""

    plan: Tier
    plan_source: Literal["default", "operator", "subscription"] = Field(description="What gives the user the plan.")
    status: BillingStatus
    trial_ends_at: UtcTime | None
    trial_available: bool = Field(description="Whether the next checkout begins with a trial.")
    current_period_start: UtcTime | None
    current_period_end: UtcTime | None
    cancel_at: UtcTime | None = Field(description="When the subscription ends, if it was cancelled.")
    payment_problem: Literal["payment_failed", "unpaid", "paused"] | None = Field(
        description="`payment_failed`: the plan is kept until `graceEndsAt`. `unpaid` and `paused`: it is not."
    )
    grace_ends_at: UtcTime | None
    prices: list[Price]


class StartCheckoutRequest(RequestModel):
    """The plan to subscribe to."""

    plan: Literal["pro"] = Field("pro", description="The plan. Others are agreed with the operator.", examples=["pro"])


class BillingPage(CamelModel):
    """A page of Stripe, to which the front end sends the user."""

    url: str


class ReceivedEvent(CamelModel):
    """The response to an event of Stripe."""

    received: bool
