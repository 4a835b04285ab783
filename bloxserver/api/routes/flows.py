from __future__ import annotations

from fastapi import APIRouter

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, FlowPage
from bloxserver.api.openapi import errors
from bloxserver.api.schemas import CreateFlowRequest, Flow, FlowSummary, PaginatedResponse, UpdateFlowRequest
from bloxserver.queries import flows as queries
from bloxserver.services import flows as services

router = APIRouter(prefix="/flows", tags=["flows"])


@router.get("", response_model=PaginatedResponse[FlowSummary], operation_id="listFlows")
async def list_flows(user: AuthenticatedUser, session: DbSession, page: FlowPage) -> object:
    """The user's flows, the last changed first."""
    return await queries.read_flows(session, user.id, page)


@router.post("", status_code=201, response_model=Flow, operation_id="createFlow", responses=errors(403))
async def create_flow(user: AuthenticatedUser, session: DbSession, body: CreateFlowRequest) -> object:
    """Create a stopped flow; without an organism it gets the default one."""
    return await services.create_flow(session, user.id, user.tier, body.name, body.description, body.organism_yaml)


@router.get("/{flow_id}", response_model=Flow, operation_id="getFlow", responses=errors(404))
async def get_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """One flow with its organism and its canvas."""
    return await queries.read_flow(session, user.id, flow_id)


@router.patch("/{flow_id}", response_model=Flow, operation_id="updateFlow", responses=errors(404))
async def update_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, body: UpdateFlowRequest) -> object:
    """Change what the body names, in any status of the flow; a running flow goes on with what it was started with."""
    return await services.update_flow(session, user.id, flow_id, body.changes())


@router.delete("/{flow_id}", status_code=204, operation_id="deleteFlow", responses=errors(404))
async def delete_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> None:
    """Delete a flow in any status, with its triggers and executions."""
    await services.delete_flow(session, user.id, flow_id)


@router.post("/{flow_id}/start", response_model=Flow, operation_id="startFlow", responses=errors(400, 404))
async def start_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """Start a stopped flow: it is `starting`, then `running`, or `error` with the reason in `errorMessage`."""
    return await services.start_flow(session, user.id, flow_id)


@router.post("/{flow_id}/stop", response_model=Flow, operation_id="stopFlow", responses=errors(400, 404))
async def stop_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """Stop a flow: it is `stopping`, then `stopped`, and takes no more runs."""
    return await services.stop_flow(session, user.id, flow_id)
