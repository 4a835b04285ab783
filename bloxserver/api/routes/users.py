from __future__ import annotations

from fastapi import APIRouter

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import response_of
from bloxserver.api.schemas import UsageDashboard, User
from bloxserver.clock import now
from bloxserver.queries.usage import read_usage

router = APIRouter(tags=["users"], route_class=JsonRoute)


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
