from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, TriggerId
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.schemas import Delivery, Execution
from bloxserver.api.scopes import requires_scope
from bloxserver.clock import now
from bloxserver.models.enums import Scope
from bloxserver.queries import webhook_deliveries as queries
from bloxserver.queries.executions import read_execution
from bloxserver.services import webhook_deliveries as services

router = APIRouter(prefix="/flows/{flow_id}/triggers/{trigger_id}/deliveries", tags=["triggers"], route_class=JsonRoute)

DeliveryId = Annotated[UUID, Path(description="The delivery's id.")]


@router.get(
    "",
    response_model=list[Delivery],
    operation_id="listDeliveries",
    summary="List deliveries",
    responses=response_of(200, "The deliveries, newest first.", examples.DELIVERIES) | errors(404),
)
async def list_deliveries(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId
) -> object:
    """Return the last 100 calls of a webhook that were accepted or rejected.

    Calls whose body was too large are not among them, and of those that exceed the rate limit only the first.
    """
    return await queries.read_deliveries(session, user.id, flow_id, trigger_id)


@router.post(
    "/{delivery_id}/redeliver",
    status_code=201,
    response_model=Execution,
    operation_id="redeliverWebhook",
    summary="Redeliver a delivery",
    responses=response_of(201, "The new execution.", examples.REDELIVERED_EXECUTION)
    | errors(400, 403, 404)
    | error_of(
        409,
        "The delivery was rejected, or the webhook is disabled.",
        "delivery_rejected",
        "The delivery was rejected, and its body is not stored",
    ),
)
@requires_scope(Scope.RUN)
async def redeliver(
    user: AuthenticatedUser,
    session: DbSession,
    idempotent: Idempotent,
    flow_id: FlowId,
    trigger_id: TriggerId,
    delivery_id: DeliveryId,
) -> object:
    """Start an execution with the body of an accepted call, as if the sender had called again. It counts as a run."""
    period = user.period_at(now())
    return await idempotent.create(
        lambda: services.redeliver(session, user.id, user.plan, period, flow_id, trigger_id, delivery_id),
        lambda execution_id: read_execution(session, user.id, flow_id, UUID(execution_id)),
    )
