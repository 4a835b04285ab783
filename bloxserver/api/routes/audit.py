from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.execution_queries import QueryTime, SearchText
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import invalid_cursor, response_of
from bloxserver.api.query_models import query_document, query_reader
from bloxserver.api.schemas import AuditEventPage
from bloxserver.api.scopes import for_all_flows, requires_scope
from bloxserver.models.enums import ActorKind, AuditAction, Scope
from bloxserver.queries.audit import AuditFilter, read_events

router = APIRouter(prefix="/audit", tags=["audit"], route_class=JsonRoute)


class AuditQuery(BaseModel):
    """The query parameters of the audit log."""

    action: list[AuditAction] = Field([], description="Return only events with one of these actions. Repeatable.")
    actor: ActorKind | None = Field(None, description="Return only changes by actors of this kind.")
    resource_id: SearchText | None = Field(
        None, description="Return only changes of the resource with this id, or of the secret with this name."
    )
    flow_id: UUID | None = Field(None, description="Return only changes of this flow and of what belongs to it.")
    since: QueryTime | None = Field(
        None, description="Return only events at this time or later. Without an offset it is UTC."
    )
    until: QueryTime | None = Field(
        None, description="Return only events before this time. Without an offset it is UTC."
    )
    limit: int = Field(50, ge=1, le=100, description="The maximum number of events in a page.")
    cursor: str | None = Field(
        None,
        description="`nextCursor` of a page of the same list with the same filters: return the events after that page.",
    )

    def filter(self) -> AuditFilter:
        actions = tuple(sorted(set(self.action)))
        return AuditFilter(actions, self.actor, self.resource_id, self.flow_id, self.since, self.until)


AuditListQuery = Annotated[AuditQuery, Depends(query_reader(AuditQuery))]


@router.get(
    "",
    response_model=AuditEventPage,
    operation_id="listAuditEvents",
    summary="List audit events",
    responses=response_of(
        200, "A page of the audit log.", {"items": [examples.AUDIT_EVENT], "nextCursor": examples.NEXT_CURSOR}
    )
    | invalid_cursor(),
    openapi_extra=query_document(AuditQuery),
)
@requires_scope(Scope.ADMIN)
@for_all_flows
async def list_audit_events(user: AuthenticatedUser, session: DbSession, query: AuditListQuery) -> object:
    """Return the changes of the account by its user, by API keys and by operators, newest first."""
    return await read_events(session, user.id, query.filter(), query.limit, query.cursor)
