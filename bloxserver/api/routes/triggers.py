from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, TriggerId
from bloxserver.api.openapi import errors
from bloxserver.api.schemas import CreateTriggerRequest, Trigger, UpcomingFirings, UpdateTriggerRequest
from bloxserver.queries import triggers as queries
from bloxserver.services import triggers as services

router = APIRouter(prefix="/flows/{flow_id}/triggers", tags=["triggers"])

UpcomingCount = Annotated[int, Query(ge=1, le=100, description="How many.")]


@router.get("", response_model=list[Trigger], operation_id="listTriggers", responses=errors(404))
async def list_triggers(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """All triggers of a flow, the oldest first."""
    return await queries.read_triggers(session, user.id, flow_id)


@router.post("", status_code=201, response_model=Trigger, operation_id="createTrigger", responses=errors(404))
async def create_trigger(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, body: CreateTriggerRequest
) -> object:
    """Create a trigger; a webhook gets its token and address."""
    return await services.create_trigger(session, user.id, flow_id, body.type, body.name, body.config)


@router.get("/{trigger_id}", response_model=Trigger, operation_id="getTrigger", responses=errors(404))
async def get_trigger(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId) -> object:
    """One trigger of a flow."""
    return await queries.read_trigger(session, user.id, flow_id, trigger_id)


@router.patch("/{trigger_id}", response_model=Trigger, operation_id="updateTrigger", responses=errors(404))
async def update_trigger(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId, body: UpdateTriggerRequest
) -> object:
    """Change a trigger's name or config, or switch it off and on."""
    return await services.update_trigger(session, user.id, flow_id, trigger_id, body.changes())


@router.get(
    "/{trigger_id}/upcoming",
    response_model=UpcomingFirings,
    operation_id="listUpcomingFirings",
    responses=errors(400, 404),
)
async def get_upcoming(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId, n: UpcomingCount = 5
) -> object:
    """When a schedule fires next."""
    return UpcomingFirings(times=await services.upcoming_firings(session, user.id, flow_id, trigger_id, n))


@router.delete("/{trigger_id}", status_code=204, operation_id="deleteTrigger", responses=errors(404))
async def delete_trigger(user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId) -> None:
    """Delete a trigger; the executions that it started stay."""
    await services.delete_trigger(session, user.id, flow_id, trigger_id)


@router.post(
    "/{trigger_id}/regenerate-token",
    response_model=Trigger,
    operation_id="regenerateTriggerToken",
    responses=errors(400, 404),
)
async def regenerate_token(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId
) -> object:
    """Give a webhook a new token and address; the old ones are dead at once."""
    return await services.regenerate_token(session, user.id, flow_id, trigger_id)
