from __future__ import annotations

from typing import Literal
from uuid import UUID

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


class BillingFlow(CamelModel):
    """A flow by its id and name."""

    id: UUID
    name: str


class BillingFlows(CamelModel):
    """Which flows run, and how many the plan allows to run at the same time."""

    limit: int = Field(description="The number of flows that may run at the same time.")
    used: int = Field(description="The number of flows that run or are starting.")
    running: list[BillingFlow] = Field(
        description="Flows that run or are starting, at most 100, in the order in which a smaller plan keeps them: "
        "those with the most recent executions first."
    )
    stopped_by_plan: list[BillingFlow] = Field(
        description="Flows that a change to a smaller plan has stopped, at most 100. None is deleted. A flow leaves "
        "the list when it is started."
    )


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
    flows: BillingFlows
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
