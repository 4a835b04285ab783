from __future__ import annotations

from typing import Annotated

import sqlalchemy as sa
from fastapi import APIRouter, Query
from fastapi.responses import StreamingResponse

from bloxserver.api import billing_examples, examples
from bloxserver.api.account_export import AccountExport
from bloxserver.api.api_key_sign_in import forget_keys
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, Sessions
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, response_of
from bloxserver.api.schemas import UsageDashboard, UsagePeriod, User
from bloxserver.api.scopes import for_all_flows, requires_scope
from bloxserver.api.stream_slots import StreamSlot
from bloxserver.clock import now
from bloxserver.errors import Forbidden
from bloxserver.models.enums import Scope
from bloxserver.queries.usage import read_usage, read_usage_history
from bloxserver.services.account_deletions import delete_account
from bloxserver.services.users import DEV_CLAIMS

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


@router.delete(
    "/me",
    status_code=204,
    operation_id="deleteCurrentUser",
    summary="Delete the current user",
    responses=response_of(204, "The user is deleted. Their rows are deleted in the background.")
    | error_of(
        403,
        "The user is the development user, or the API key has not the scope, or is restricted to flows.",
        "development_user",
        "The development user cannot be deleted",
    ),
)
@requires_scope(Scope.ADMIN)
@for_all_flows
async def delete_current_user(user: AuthenticatedUser, session: DbSession) -> None:
    """Delete the signed-in user with all their data. Their identity cannot sign in again.

    The account at an identity provider is not deleted.
    """
    if user.clerk_payload == DEV_CLAIMS:
        raise Forbidden("development_user", "The development user cannot be deleted")
    await delete_account(session, user.id)
    sa.event.listen(session.sync_session, "after_commit", forget_keys, once=True)


@router.get(
    "/me/export",
    response_class=StreamingResponse,
    operation_id="exportCurrentUser",
    summary="Export the data of the current user",
    responses={
        200: {
            "description": "A ZIP of JSON files.",
            "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
        }
    },
)
@requires_scope(Scope.ADMIN)
@for_all_flows
async def export_current_user(user: AuthenticatedUser, sessions: Sessions, slot: StreamSlot) -> StreamingResponse:
    """Return all data of the signed-in user. It has no value of a secret, no token and no key.

    The response is written while it is sent, and counts as an open stream.
    """
    name = f"bloxserver-{now():%Y-%m-%d}.zip"
    headers = {"Content-Disposition": f'attachment; filename="{name}"', "Cache-Control": "no-store"}
    return StreamingResponse(AccountExport(sessions, user.id).chunks(), media_type="application/zip", headers=headers)


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
