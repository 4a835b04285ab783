from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from bloxserver.api import billing_examples as examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.execution_queries import QueryTime
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import invalid_cursor, response_of
from bloxserver.api.query_models import query_document, query_reader
from bloxserver.api.schemas import FlowUsagePage
from bloxserver.clock import now
from bloxserver.queries.flow_usage import read_flow_usage
from bloxserver.queries.usage import read_previous_period

router = APIRouter(prefix="/usage", tags=["users"], route_class=JsonRoute)


class FlowUsageQuery(BaseModel):
    """The query parameters of the usage of flows."""

    period: Literal["current", "previous"] = Field(
        "current", description="The billing period: the current one, or the last one before it with usage."
    )
    begin: QueryTime | None = Field(
        None,
        alias="from",
        description="Count runs from this minute on. Without an offset it is UTC. The default is the start of the "
        "period.",
    )
    end: QueryTime | None = Field(
        None,
        alias="to",
        description="Count runs before this minute. Without an offset it is UTC. The default is the end of the period.",
    )
    limit: int = Field(50, ge=1, le=100, description="The maximum number of flows in a page.")
    cursor: str | None = Field(
        None,
        description="`nextCursor` of a page of the same list with the same times: return the flows after that page.",
    )


@router.get(
    "/flows",
    response_model=FlowUsagePage,
    operation_id="listFlowUsage",
    summary="List the usage of flows",
    responses=response_of(200, "A page of flows, those with most runs first.", examples.FLOW_USAGE_PAGE)
    | invalid_cursor(),
    openapi_extra=query_document(FlowUsageQuery),
)
async def list_flow_usage(
    user: AuthenticatedUser, session: DbSession, query: Annotated[FlowUsageQuery, Depends(query_reader(FlowUsageQuery))]
) -> object:
    """Return the runs and tokens of each flow that ran in a billing period, or in another time.

    They are those of stored executions of flows that exist.
    """
    period = user.period_at(now())
    if query.period == "previous":
        period = await read_previous_period(session, user.id, period)
    begin, end = query.begin or period.start, query.end or period.end
    return await read_flow_usage(session, user.id, begin, end, query.limit, query.cursor, user.flow_ids)
