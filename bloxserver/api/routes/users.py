from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from bloxserver.api import billing_examples, examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import response_of
from bloxserver.api.schemas import UsageDashboard, UsagePeriod, User
from bloxserver.clock import now
from bloxserver.queries.usage import read_usage, read_usage_history

router = APIRouter(tags=["users"], route_class=JsonRoute)

Months = Annotated[int, Query(ge=1, le=120, description="The maximum number of billing periods.")]


@router.get(
    "/me",
    response_model=User,
    operation_id="getCurrentUser",
    summary="Retrieve the current user",
    responses=response_of(200, "The user.", examples.USER),
)
async def get_current_user(user: AuthenticatedUser) -> object:
    """Return the signed-in user."""
    return user


@router.get(
    "/usage",
    response_model=UsageDashboard,
    operation_id="getUsage",
    summary="Retrieve the usage",
    responses=response_of(200, "The usage and the limits of the plan.", examples.USAGE),
)
async def get_usage(user: AuthenticatedUser, session: DbSession) -> object:
    """Return the user's usage in the current billing period and the limits of their plan."""
    moment = now()
    return await read_usage(session, user.id, user.plan, user.period_at(moment), moment)


@router.get(
    "/usage/history",
    response_model=list[UsagePeriod],
    operation_id="getUsageHistory",
    summary="Retrieve the usage of past periods",
    responses=response_of(200, "The billing periods with usage, newest first.", [billing_examples.USAGE_PERIOD]),
)
async def get_usage_history(user: AuthenticatedUser, session: DbSession, months: Months = 12) -> object:
    """Return the user's usage in their last billing periods, among them the current one."""
    return await read_usage_history(session, user.id, months)
