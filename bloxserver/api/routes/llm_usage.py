from __future__ import annotations

from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from bloxserver.api import llm_examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.execution_queries import QueryTime
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import response_of
from bloxserver.api.query_models import query_document, query_reader
from bloxserver.api.schemas import LlmUsage
from bloxserver.api.scopes import for_all_flows
from bloxserver.clock import now
from bloxserver.queries.llm_usage import GroupBy, read_llm_usage

router = APIRouter(prefix="/llm", tags=["language models"], route_class=JsonRoute)

DEFAULT_DAYS = timedelta(days=30)


class LlmUsageQuery(BaseModel):
    """The query parameters of the usage of language models."""

    group_by: GroupBy = Field(GroupBy.MODEL, description="What the calls of a group have in common. Days are in UTC.")
    begin: QueryTime | None = Field(
        None,
        alias="from",
        description="Count only calls at this time or later. Without an offset it is UTC. The default is 30 days "
        "before the end.",
    )
    end: QueryTime | None = Field(
        None,
        alias="to",
        description="Count only calls before this time. Without an offset it is UTC. The default is now.",
    )


UsageQuery = Annotated[LlmUsageQuery, Depends(query_reader(LlmUsageQuery))]


@router.get(
    "/usage",
    response_model=LlmUsage,
    operation_id="getLlmUsage",
    summary="Retrieve the usage of language models",
    responses=response_of(200, "The calls in groups.", llm_examples.USAGE),
    openapi_extra=query_document(LlmUsageQuery),
)
@for_all_flows
async def get_llm_usage(user: AuthenticatedUser, session: DbSession, query: UsageQuery) -> object:
    """Return what the user's calls of language models have used and cost, as far as they are kept."""
    end = query.end or now()
    begin = query.begin or end - DEFAULT_DAYS
    groups = await read_llm_usage(session, user.id, query.group_by, begin, end)
    return {"group_by": query.group_by, "groups": groups}
