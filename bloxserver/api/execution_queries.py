"""Query parameters of lists and statistics of executions."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from fastapi import Depends
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field
from pydantic_core import PydanticCustomError

from bloxserver.api.query_models import query_reader
from bloxserver.api.request_schemas import WITHOUT_NUL
from bloxserver.clock import checked_utc
from bloxserver.models.enums import ExecutionStatus, TriggerType
from bloxserver.queries.execution_filters import ExecutionFilter
from bloxserver.queries.execution_lists import ListRequest
from bloxserver.queries.execution_series import Interval, SeriesRequest
from bloxserver.queries.paging import MAX_PAGE, PageRequest
from bloxserver.storable import check_text

MAX_FLOWS = 100
MAX_SEARCH_LENGTH = 1_000


def _iso_text(value: Any) -> Any:
    # A number would be taken as seconds since 1970.
    if isinstance(value, str) and not re.match(r"\d{4}-\d\d-\d\d", value):
        raise PydanticCustomError("time_not_iso", "Must be a time in ISO 8601, for example 2026-03-02T09:36:09Z")
    return value


QueryTime = Annotated[datetime, BeforeValidator(_iso_text), AfterValidator(checked_utc)]
"""A time in ISO 8601. Without an offset it is UTC."""
SearchText = Annotated[
    str,
    Field(min_length=1, max_length=MAX_SEARCH_LENGTH, json_schema_extra={"pattern": WITHOUT_NUL}),
    AfterValidator(check_text),
]


def _zone_name(value: str) -> str:
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise PydanticCustomError("time_zone_unknown", "Not the name of a time zone") from None
    return value


ZoneName = Annotated[str, Field(json_schema_extra={"format": "timezone"}), AfterValidator(_zone_name)]


class ExecutionQuery(BaseModel):
    """The query parameters of a list of a flow's executions."""

    page: int = Field(1, ge=1, le=MAX_PAGE, description="The number of the page, from 1.")
    page_size: int = Field(50, ge=1, le=1000, description="The maximum number of items in a page.")
    cursor: str | None = Field(
        None,
        description="`nextCursor` of a page of the same list with the same filters: return the items after that page. "
        "Excludes `page`.",
    )
    status_filter: list[ExecutionStatus] = Field(
        [], description="Return only executions with one of these statuses. Repeatable."
    )
    trigger_type: list[TriggerType] = Field([], description="Return only executions of these kinds. Repeatable.")
    trigger_id: UUID | None = Field(None, description="Return only executions that this trigger started.")
    started_after: QueryTime | None = Field(
        None, description="Return only executions that started at this time or later. Without an offset it is UTC."
    )
    started_before: QueryTime | None = Field(
        None, description="Return only executions that started before this time. Without an offset it is UTC."
    )
    min_duration_ms: int | None = Field(
        None, ge=0, lt=2**63, description="Return only executions whose `durationMs` is at least this."
    )
    has_error: bool | None = Field(None, description="Return only executions with, or without, an `errorMessage`.")
    filtered: bool | None = Field(
        None, description="Return only executions for whose outputs no condition chose a listener, or only others."
    )
    q: SearchText | None = Field(
        None,
        description="Return only executions whose `errorMessage` contains this text. Upper and lower case differ. The "
        "newest 10,000 executions that match the other filters are searched.",
    )

    def request(self, flow_ids: tuple[UUID, ...] = ()) -> ListRequest:
        wanted = ExecutionFilter(
            statuses=tuple(sorted(set(self.status_filter))),
            trigger_types=tuple(sorted(set(self.trigger_type))),
            flow_ids=flow_ids,
            trigger_id=self.trigger_id,
            started_after=self.started_after,
            started_before=self.started_before,
            min_duration_ms=self.min_duration_ms,
            has_error=self.has_error,
            filtered=self.filtered,
            error_text=self.q,
        )
        return ListRequest(wanted, PageRequest(self.page, self.page_size), self.cursor)


class AllExecutionsQuery(ExecutionQuery):
    """The query parameters of the list of all executions of a user."""

    flow_id: list[UUID] = Field(
        [], max_length=MAX_FLOWS, description="Return only executions of these flows. Repeatable."
    )


class StatsSeriesQuery(BaseModel):
    """The query parameters of statistics over time."""

    bucket: Interval = Field(Interval.HOUR, description="The width of the buckets. An execution counts at `startedAt`.")
    begin: QueryTime | None = Field(
        None,
        alias="from",
        description="The first bucket contains this time. Without an offset it is UTC. By default there are 60 "
        "minutes, 24 hours or 30 days.",
    )
    end: QueryTime | None = Field(
        None,
        alias="to",
        description="The last bucket contains the moment before this time. Without an offset it is UTC. The default is "
        "now.",
    )
    tz: ZoneName = Field("UTC", description="The time zone of hours and days, for example `Europe/Berlin`.")

    def request(self) -> SeriesRequest:
        return SeriesRequest(self.bucket, ZoneInfo(self.tz), self.begin, self.end)


SeriesQuery = Annotated[StatsSeriesQuery, Depends(query_reader(StatsSeriesQuery))]
ExecutionListQuery = Annotated[ExecutionQuery, Depends(query_reader(ExecutionQuery))]
AllExecutionsListQuery = Annotated[AllExecutionsQuery, Depends(query_reader(AllExecutionsQuery))]
