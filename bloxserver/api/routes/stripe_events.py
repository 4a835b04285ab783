from __future__ import annotations

from fastapi import APIRouter, Request

from bloxserver.api import billing_examples as examples
from bloxserver.api.dependencies import DbSession, RequestAdmission
from bloxserver.api.openapi import any_body, error_of, response_of
from bloxserver.api.provider_events import counted_event
from bloxserver.api.schemas import ReceivedEvent
from bloxserver.billing.client import get_stripe
from bloxserver.billing.events import is_live, process_event, read_event, webhook_secrets
from bloxserver.clock import now
from bloxserver.errors import NotFound
from bloxserver.settings import get_settings

router = APIRouter(prefix="/webhooks", tags=["webhooks"])


@router.post(
    "/stripe",
    response_model=ReceivedEvent,
    operation_id="receiveStripeEvent",
    summary="Receive an event of Stripe",
    responses=response_of(200, "The event is processed, or needs nothing.", examples.RECEIVED_EVENT)
    | error_of(
        400,
        "The signature is missing or invalid, or the body is not an event.",
        "invalid_signature",
        "The signature of the event is missing or invalid",
    )
    | error_of(404, "The server has no billing.", "webhook_not_found", "Webhook not found"),
    openapi_extra=any_body("The event, as Stripe has signed it."),
)
async def receive_event(request: Request, session: DbSession, admission: RequestAdmission) -> object:
    """Receive an event of Stripe. The state of the customer is read from Stripe, not from the event."""
    settings = get_settings()
    stripe = get_stripe(settings)
    secrets = webhook_secrets(settings)
    if stripe is None or not secrets:
        admission.charge_invalid_token()
        raise NotFound("Webhook")
    body = await request.body()
    with counted_event("stripe", session) as counted:
        event = read_event(body, request.headers, secrets, now(), live=is_live(settings))
        counted.created = event.created
        counted.is_repeated = not await process_event(session, stripe, event)
    return ReceivedEvent(received=True)
