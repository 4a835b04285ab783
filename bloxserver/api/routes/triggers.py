from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated
from urllib.parse import urlencode
from uuid import UUID

from fastapi import APIRouter, Query, Response

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, CurrentUser, DbSession, FlowId, TriggerId
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.schemas import CreateTriggerRequest, Trigger, UpcomingFirings, UpdateTriggerRequest
from bloxserver.clock import as_utc
from bloxserver.models.enums import Scope
from bloxserver.models.tables import TriggerRecord
from bloxserver.queries import triggers as queries
from bloxserver.services import deletions
from bloxserver.services import triggers as services

router = APIRouter(prefix="/flows/{flow_id}/triggers", tags=["triggers"], route_class=JsonRoute)

TriggerLimit = Annotated[
    int | None, Query(ge=1, le=100, description="The maximum number of triggers in a page; all triggers without it.")
]
EPOCH, MICROSECOND = datetime(1970, 1, 1, tzinfo=UTC), timedelta(microseconds=1)
CURSOR = "^-?[0-9]{1,16}~[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
"""Microseconds since 1970, which are always a valid time, and an id."""
Cursor = Annotated[
    str | None,
    Query(pattern=CURSOR, description="The position in the list, from the `Link` header of the previous page."),
]


def cursor_text(cursor: queries.TriggerCursor) -> str:
    return f"{(as_utc(cursor.created_at) - EPOCH) // MICROSECOND}~{cursor.id}"


def read_cursor(text: str) -> queries.TriggerCursor:
    """Return the position of a text that matches `CURSOR`."""
    microseconds, _, trigger_id = text.partition("~")
    return queries.TriggerCursor(EPOCH + int(microseconds) * MICROSECOND, UUID(trigger_id))


def _shown(user: CurrentUser, trigger: TriggerRecord) -> Trigger:
    """The trigger, without the token of a webhook for an API key that may neither run flows nor change triggers."""
    shown = Trigger.model_validate(trigger)
    if not (user.has_scope(Scope.RUN) or user.has_scope(Scope.WRITE)):
        shown.webhook_token = shown.webhook_url = None
    return shown


GraceSeconds = Annotated[
    int, Query(ge=0, le=7 * 86_400, description="Seconds for which the old token remains valid, at most 7 days.")
]
UpcomingCount = Annotated[int, Query(ge=1, le=100, description="The number of times to return.")]


@router.get(
    "",
    response_model=list[Trigger],
    operation_id="listTriggers",
    summary="List triggers",
    responses=response_of(200, "The triggers, oldest first.", [examples.TRIGGER, examples.SCHEDULE]) | errors(404),
)
async def list_triggers(
    user: AuthenticatedUser,
    session: DbSession,
    response: Response,
    flow_id: FlowId,
    limit: TriggerLimit = None,
    cursor: Cursor = None,
) -> object:
    """Return all triggers of a flow, oldest first. With `limit`, return a page.

    If there are more triggers, the response has a `Link` header with the relation `next` (RFC 8288).
    """
    page = await queries.read_triggers(
        session, user.id, flow_id, limit, None if cursor is None else read_cursor(cursor)
    )
    if page.next is not None:
        query = urlencode({"limit": limit, "cursor": cursor_text(page.next)})
        response.headers["Link"] = f'<?{query}>; rel="next"'
    return [_shown(user, trigger) for trigger in page.triggers]


@router.post(
    "",
    status_code=201,
    response_model=Trigger,
    operation_id="createTrigger",
    summary="Create a trigger",
    responses=response_of(201, "The created trigger.", examples.SCHEDULE) | errors(403, 404),
)
async def create_trigger(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, idempotent: Idempotent, body: CreateTriggerRequest
) -> object:
    """Create a trigger. A webhook gets a secret token and a URL."""
    return await idempotent.create(
        lambda: services.create_trigger(session, user.id, flow_id, body.type, body.name, body.config),
        lambda trigger_id: queries.read_trigger(session, user.id, flow_id, UUID(trigger_id)),
    )


@router.get(
    "/{trigger_id}",
    response_model=Trigger,
    operation_id="getTrigger",
    summary="Retrieve a trigger",
    responses=response_of(200, "The trigger.", examples.TRIGGER) | errors(404),
)
async def get_trigger(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId) -> object:
    """Return a trigger of a flow."""
    return _shown(user, await queries.read_trigger(session, user.id, flow_id, trigger_id))


@router.patch(
    "/{trigger_id}",
    response_model=Trigger,
    operation_id="updateTrigger",
    summary="Update a trigger",
    responses=response_of(200, "The updated trigger.", examples.UPDATED_TRIGGER) | errors(403, 404),
)
async def update_trigger(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId, body: UpdateTriggerRequest
) -> object:
    """Change the name or the config of a trigger, or disable or enable it."""
    return await services.update_trigger(session, user.id, flow_id, trigger_id, body.changes())


@router.get(
    "/{trigger_id}/upcoming",
    response_model=UpcomingFirings,
    operation_id="listUpcomingFirings",
    summary="List upcoming firings",
    responses=response_of(200, "The times, earliest first.", examples.UPCOMING)
    | error_of(400, "The trigger is not a schedule.", "trigger_not_a_schedule", "Only schedules have upcoming firings")
    | errors(404),
)
async def get_upcoming(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId, n: UpcomingCount = 5
) -> object:
    """Return the next times at which the schedule fires if the flow is running and the trigger is enabled."""
    return UpcomingFirings(times=await services.upcoming_firings(session, user.id, flow_id, trigger_id, n))


@router.delete(
    "/{trigger_id}",
    status_code=204,
    operation_id="deleteTrigger",
    summary="Delete a trigger",
    responses=response_of(204, "The trigger is deleted.") | errors(404),
)
async def delete_trigger(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId) -> None:
    """Delete a trigger. The executions that it started are kept."""
    await deletions.delete_trigger(session, user.id, flow_id, trigger_id)


@router.post(
    "/{trigger_id}/regenerate-token",
    response_model=Trigger,
    operation_id="regenerateTriggerToken",
    summary="Regenerate a webhook's token",
    responses=response_of(200, "The webhook with its new token and URL.", examples.TRIGGER)
    | error_of(
        400,
        "The trigger is not a webhook.",
        "trigger_not_a_webhook",
        "Can only regenerate token for webhook triggers",
    )
    | errors(404),
)
async def regenerate_token(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId, grace_seconds: GraceSeconds = 0
) -> object:
    """Replace the token and URL of a webhook. The old token is invalid at once, or after `grace_seconds`."""
    grace = timedelta(seconds=grace_seconds)
    return await services.regenerate_token(session, user.id, flow_id, trigger_id, grace)
