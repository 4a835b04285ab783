from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response

from bloxserver.api import examples
from bloxserver.api.current_user import reads_requester
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, FlowPage
from bloxserver.api.etags import IfMatch, tagged
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, errors, response_of, storage_limit_reached
from bloxserver.api.rendering import render_page
from bloxserver.api.schemas import CreateFlowRequest, Flow, FlowSummary, PaginatedResponse, UpdateFlowRequest
from bloxserver.api.scopes import for_all_flows
from bloxserver.queries import flows as queries
from bloxserver.queries.flow_etags import read_etags
from bloxserver.services import deletions
from bloxserver.services import flows as services

router = APIRouter(prefix="/flows", tags=["flows"], route_class=JsonRoute)


@router.get(
    "",
    response_model=PaginatedResponse[FlowSummary],
    operation_id="listFlows",
    summary="List flows",
    responses=response_of(200, "A page of flows.", examples.page(examples.FLOW_SUMMARY)),
)
@reads_requester
async def list_flows(user: AuthenticatedUser, session: DbSession, page: FlowPage) -> Response:
    """Return the user's flows, most recently changed first."""
    return await render_page(FlowSummary, await queries.read_flows(session, user, page, user.flow_ids))


@router.post(
    "",
    status_code=201,
    response_model=Flow,
    operation_id="createFlow",
    summary="Create a flow",
    responses=response_of(201, "The created flow.", examples.CREATED_FLOW)
    | error_of(
        403,
        "The user has reached the limit of flows or of stored bytes of their plan.",
        "flow_limit_reached",
        "Flow limit reached (1). Upgrade to create more flows.",
    ),
)
@for_all_flows
async def create_flow(
    user: AuthenticatedUser,
    session: DbSession,
    response: Response,
    idempotent: Idempotent,
    body: CreateFlowRequest,
) -> object:
    """Create a stopped flow. Without a definition it gets the default definition."""
    flow = await idempotent.create(
        lambda: services.create_flow(session, user.id, user.plan, body.name, body.description, body.organism_yaml),
        lambda flow_id: queries.read_flow(session, user.id, UUID(flow_id)),
    )
    return tagged(response, flow)


@router.get(
    "/{flow_id}",
    response_model=Flow,
    operation_id="getFlow",
    summary="Retrieve a flow",
    responses=response_of(200, "The flow.", examples.FLOW) | errors(404),
)
@reads_requester
async def get_flow(
    user: AuthenticatedUser,
    session: DbSession,
    response: Response,
    flow_id: FlowId,
) -> object:
    """Return a flow with its definition and canvas.

    The `ETag` is for `If-Match`: it changes with name, description, definition and canvas, and not with the status.
    """
    return tagged(response, await queries.read_flow_of(session, user, flow_id))


@router.patch(
    "/{flow_id}",
    response_model=Flow,
    operation_id="updateFlow",
    summary="Update a flow",
    responses=response_of(200, "The updated flow.", examples.UPDATED_FLOW)
    | storage_limit_reached()
    | error_of(
        412,
        "The flow has another `ETag` than `If-Match`. `details` has its `etag`, `latestVersion` and `updatedAt`.",
        "flow_changed",
        "The flow has changed meanwhile. Read it again before you change it.",
    )
    | errors(404),
)
async def update_flow(
    user: AuthenticatedUser,
    session: DbSession,
    response: Response,
    flow_id: FlowId,
    body: UpdateFlowRequest,
    if_match: IfMatch = None,
) -> object:
    """Change the members in the body. A running flow continues with the version that its last start activated."""
    expected = None if if_match is None else read_etags(if_match)
    flow = await services.update_flow(session, user.id, user.plan, flow_id, body.changes(), expected)
    return tagged(response, flow)


@router.delete(
    "/{flow_id}",
    status_code=204,
    operation_id="deleteFlow",
    summary="Delete a flow",
    responses=response_of(204, "The flow is deleted.") | errors(404),
)
async def delete_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> None:
    """Delete a flow with its triggers and executions. The flow may have any status."""
    await deletions.delete_flow(session, user.id, flow_id)


@router.post(
    "/{flow_id}/start",
    response_model=Flow,
    operation_id="startFlow",
    summary="Start a flow",
    responses=response_of(200, "The flow, with the status `starting`.", examples.STARTING_FLOW)
    | error_of(
        400,
        "The flow's status is neither `stopped` nor `error`.",
        "flow_wrong_state",
        "Cannot start flow in running state",
    )
    | error_of(
        403,
        "As many flows run as the plan allows. `details` has `limit` and `used`, and with billing `upgradeUrl`.",
        "running_flows_limit_reached",
        "As many flows run as the plan allows (1). Stop one of them, or upgrade.",
    )
    | errors(404),
)
async def start_flow(user: AuthenticatedUser, session: DbSession, response: Response, flow_id: FlowId) -> object:
    """Start a flow. Its status is `starting`, then `running`, or `error` with the reason in `errorMessage`."""
    return tagged(response, await services.start_flow(session, user.id, flow_id))


@router.post(
    "/{flow_id}/stop",
    response_model=Flow,
    operation_id="stopFlow",
    summary="Stop a flow",
    responses=response_of(200, "The flow, with the status `stopping`.", examples.STOPPING_FLOW)
    | error_of(
        400, "The flow's status is `stopped` or `stopping`.", "flow_wrong_state", "Cannot stop flow in stopped state"
    )
    | errors(404),
)
async def stop_flow(user: AuthenticatedUser, session: DbSession, response: Response, flow_id: FlowId) -> object:
    """Stop a flow. Its status is `stopping`, then `stopped`. New runs are rejected at once."""
    return tagged(response, await services.stop_flow(session, user.id, flow_id))
