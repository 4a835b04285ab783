from __future__ import annotations

from fastapi import APIRouter, Response

from bloxserver.api import examples
from bloxserver.api.current_user import reads_requester
from bloxserver.api.dependencies import AuthenticatedUser, ReadingStatements
from bloxserver.api.execution_queries import AllExecutionsListQuery, AllExecutionsQuery
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import invalid_cursor, response_of
from bloxserver.api.query_models import query_document
from bloxserver.api.rendering import render_lines
from bloxserver.api.schemas import CursorPage, FlowExecutionSummary
from bloxserver.queries.execution_lists import read_all_executions

router = APIRouter(prefix="/executions", tags=["executions"], route_class=JsonRoute)


@router.get(
    "",
    response_model=CursorPage[FlowExecutionSummary],
    operation_id="listAllExecutions",
    summary="List executions of all flows",
    responses=response_of(200, "A page of executions.", examples.cursor_page(examples.FLOW_EXECUTION_SUMMARY))
    | invalid_cursor(),
    openapi_extra=query_document(AllExecutionsQuery),
)
@reads_requester
async def list_all_executions(
    user: AuthenticatedUser, session: ReadingStatements, query: AllExecutionsListQuery
) -> Response:
    """Return the executions of all flows of the user, newest first."""
    return render_lines(await read_all_executions(session, user, query.request(user.visible_flows(query.flow_id))))
