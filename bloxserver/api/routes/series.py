from __future__ import annotations

from fastapi import APIRouter, Response

from bloxserver.api import examples
from bloxserver.api.current_user import reads_requester
from bloxserver.api.dependencies import AuthenticatedUser, FlowId, ReadingStatements
from bloxserver.api.execution_queries import SeriesQuery, StatsSeriesQuery
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import errors, response_of
from bloxserver.api.query_models import query_document
from bloxserver.api.rendering import render_series
from bloxserver.api.schemas import StatsSeries
from bloxserver.queries.execution_series import read_series

router = APIRouter(prefix="/flows/{flow_id}/executions", tags=["executions"], route_class=JsonRoute)


@router.get(
    "/stats/series",
    response_model=StatsSeries,
    operation_id="getFlowStatsSeries",
    summary="Retrieve statistics over time",
    responses=response_of(200, "The buckets.", examples.SERIES) | errors(404),
    openapi_extra=query_document(StatsSeriesQuery),
)
@reads_requester
async def get_series(
    user: AuthenticatedUser, session: ReadingStatements, flow_id: FlowId, query: SeriesQuery
) -> Response:
    """Return counts and mean durations of a flow's executions, by the time at which they started.

    They are those of the executions that are stored. Hours and days are those of `tz`: a day has 23 or 25 hours if the
    clock changes.
    """
    buckets = await read_series(session, user, flow_id, query.request())
    return render_series(StatsSeries(flow_id=flow_id, bucket=query.bucket, tz=query.tz, buckets=[]), buckets)
