from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request

from bloxserver.api.addresses import client_address
from bloxserver.api.dependencies import DbSession
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.provider_events import counted_event
from bloxserver.api.schemas import EventReceived
from bloxserver.models.enums import ActorKind
from bloxserver.services.audit import Actor, current_actor
from bloxserver.services.clerk_events import receive_event

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

EXAMPLE = {"type": "user.deleted", "object": "event", "data": {"id": "user_2nGq8mXvT4bL", "deleted": True}}


async def _body(request: Request) -> bytes:
    """Read before the session opens a connection, so that a slow client holds none."""
    return await request.body()


@router.post(
    "/clerk",
    response_model=EventReceived,
    operation_id="receiveClerkEvent",
    summary="Receive an event of Clerk",
    responses=response_of(200, "The event is processed.", {"status": "received"})
    | error_of(
        400,
        "The signature is missing or invalid, or the body is not JSON.",
        "invalid_signature",
        "The signature of the webhook is missing or invalid",
    )
    | error_of(404, "The setting `CLERK_WEBHOOK_SECRET` is not set.", "webhook_not_found", "Webhook not found")
    | errors(422),
    openapi_extra={
        "requestBody": {
            "required": True,
            "description": "An event, signed as Standard Webhooks specifies.",
            "content": {"application/json": {"schema": {"type": "object"}, "example": EXAMPLE}},
        }
    },
)
async def receive(request: Request, session: DbSession, body: Annotated[bytes, Depends(_body)]) -> object:
    """Create, update or delete the user whom an event of Clerk is about. Other events change nothing."""
    address, request_id = client_address(request.scope), request.scope.get("state", {}).get("request_id")
    current_actor.set(Actor(ActorKind.IDENTITY_PROVIDER, "clerk", address, request_id))
    with counted_event("clerk", session) as counted:
        counted.created = await receive_event(session, body, request.headers)
    return EventReceived(status="received")
