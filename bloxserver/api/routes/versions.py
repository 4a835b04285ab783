from __future__ import annotations

from fastapi import APIRouter

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, VersionNumber, VersionPage
from bloxserver.api.openapi import errors
from bloxserver.api.schemas import Flow, FlowVersion, FlowVersionSummary, PaginatedResponse
from bloxserver.queries import versions as queries
from bloxserver.services import flows as services

router = APIRouter(prefix="/flows/{flow_id}/versions", tags=["flows"])


@router.get(
    "",
    response_model=PaginatedResponse[FlowVersionSummary],
    operation_id="listFlowVersions",
    responses=errors(404),
)
async def list_versions(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, page: VersionPage) -> object:
    """The definitions that a flow has had, the newest first."""
    return await queries.read_versions(session, user.id, flow_id, page)


@router.get("/{number}", response_model=FlowVersion, operation_id="getFlowVersion", responses=errors(404))
async def get_version(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, number: VersionNumber) -> object:
    """One version with its organism and its canvas."""
    return await queries.read_version(session, user.id, flow_id, number)


@router.post("/{number}/restore", response_model=Flow, operation_id="restoreFlowVersion", responses=errors(404))
async def restore_version(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, number: VersionNumber
) -> object:
    """Make an earlier definition the flow's again, as a new version; what runs goes on with what was started."""
    return await services.restore_version(session, user.id, flow_id, number)
