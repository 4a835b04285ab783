from __future__ import annotations

from fastapi import APIRouter

from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.schemas import UsageDashboard, User
from bloxserver.clock import now
from bloxserver.queries.usage import read_usage

router = APIRouter(tags=["users"])


@router.get("/me", response_model=User, operation_id="getCurrentUser")
async def get_current_user(user: AuthenticatedUser) -> object:
    """The signed-in user."""
    return user


@router.get("/usage", response_model=UsageDashboard, operation_id="getUsage")
async def get_usage(user: AuthenticatedUser, session: DbSession) -> object:
    """What the user has used in the current billing period, and what his plan includes."""
    moment = now()
    return await read_usage(session, user.id, user.tier, user.period_at(moment), moment)
