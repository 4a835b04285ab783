from __future__ import annotations

from fastapi import APIRouter

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.schemas import FlowVars, SetFlowVarsRequest
from bloxserver.queries import flow_vars as queries
from bloxserver.services import flow_vars as services

router = APIRouter(prefix="/flows/{flow_id}/vars", tags=["flows"], route_class=JsonRoute)

EXAMPLE = {"vars": {"channel": "#orders", "limit": 100}}


@router.get(
    "",
    response_model=FlowVars,
    operation_id="getFlowVars",
    summary="Retrieve the variables",
    responses=response_of(200, "The variables.", EXAMPLE) | errors(404),
)
async def get_vars(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """Return the variables of a flow."""
    return {"vars": await queries.read_vars(session, user.id, flow_id)}


@router.put(
    "",
    response_model=FlowVars,
    operation_id="setFlowVars",
    summary="Replace the variables",
    responses=response_of(200, "The variables.", EXAMPLE)
    | error_of(
        400,
        "The variables are too large.",
        "vars_too_large",
        "The variables of a flow must not exceed 65536 bytes as JSON",
    )
    | errors(404),
)
async def set_vars(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, body: SetFlowVarsRequest) -> object:
    """Replace all variables of a flow. Executions that were accepted before keep the earlier ones."""
    await services.set_vars(session, user.id, flow_id, body.vars)
    return body
