from __future__ import annotations

from fastapi import APIRouter, Response

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, VersionNumber, VersionPage
from bloxserver.api.etags import tagged
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import errors, response_of, storage_limit_reached
from bloxserver.api.rendering import render_page
from bloxserver.api.schemas import Flow, FlowVersion, FlowVersionSummary, PaginatedResponse
from bloxserver.queries import versions as queries
from bloxserver.services import flows as services

router = APIRouter(prefix="/flows/{flow_id}/versions", tags=["flows"], route_class=JsonRoute)


@router.get(
    "",
    response_model=PaginatedResponse[FlowVersionSummary],
    operation_id="listFlowVersions",
    summary="List versions",
    responses=response_of(200, "A page of versions.", examples.page(examples.VERSION_SUMMARY)) | errors(404),
)
async def list_versions(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, page: VersionPage) -> Response:
    """Return the versions of a flow's definition, newest first."""
    return await render_page(FlowVersionSummary, await queries.read_versions(session, user.id, flow_id, page))


@router.get(
    "/{number}",
    response_model=FlowVersion,
    operation_id="getFlowVersion",
    summary="Retrieve a version",
    responses=response_of(200, "The version.", examples.VERSION) | errors(404),
)
async def get_version(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, number: VersionNumber) -> object:
    """Return a version with its definition and canvas."""
    return await queries.read_version(session, user.id, flow_id, number)


@router.post(
    "/{number}/restore",
    response_model=Flow,
    operation_id="restoreFlowVersion",
    summary="Restore a version",
    responses=response_of(200, "The flow with the restored definition.", examples.RESTORED_FLOW)
    | storage_limit_reached()
    | errors(404),
)
async def restore_version(
    user: AuthenticatedUser, session: DbSession, response: Response, flow_id: FlowId, number: VersionNumber
) -> object:
    """Save an earlier definition as the flow's newest version. A running flow continues with its active version."""
    return tagged(response, await services.restore_version(session, user.id, user.plan, flow_id, number))
