from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from bloxserver.api.dependencies import CallDepth, DbSession, ServerShutdown, Sessions, WaitSeconds, WebhookInput
from bloxserver.api.openapi import STILL_RUNNING, any_body, errors
from bloxserver.api.schemas import AwaitedExecution, Execution, WebhookAccepted, WebhookTest
from bloxserver.api.streaming import WaitingResponse
from bloxserver.queries.executions import find_execution
from bloxserver.queries.triggers import read_webhook
from bloxserver.services.executions import receive_webhook

router = APIRouter(prefix="/webhooks", tags=["webhooks"])

WebhookToken = Annotated[str, Path(description="The secret token of the webhook's address.")]


@router.post(
    "/{webhook_token}",
    response_model=WebhookAccepted | AwaitedExecution,
    operation_id="receiveWebhook",
    responses=errors(400, 403, 404, 409) | STILL_RUNNING,
    openapi_extra=any_body("Becomes the execution's `inputPayload`, whatever it is."),
)
async def receive(
    session: DbSession,
    sessions: Sessions,
    shutdown: ServerShutdown,
    webhook_token: WebhookToken,
    given: WebhookInput,
    depth: CallDepth,
    wait: WaitSeconds = None,
) -> object:
    """Start an execution; the body, of any kind or none, is its input."""
    execution_id = await receive_webhook(session, webhook_token, given, depth)
    if wait is None:
        return WebhookAccepted(
            status="accepted", execution_id=execution_id, message="Webhook received and execution started"
        )
    accepted = Execution.model_validate(await find_execution(session, execution_id))
    return WaitingResponse(sessions, shutdown, accepted, wait, status_code=200, body=AwaitedExecution)


@router.get("/{webhook_token}/test", response_model=WebhookTest, operation_id="testWebhook", responses=errors(404))
async def test(session: DbSession, webhook_token: WebhookToken) -> object:
    """Say whether the address is known, without starting anything."""
    webhook = await read_webhook(session, webhook_token)
    return WebhookTest(
        valid=True,
        trigger_name=webhook.trigger_name,
        flow_name=webhook.flow_name,
        flow_status=webhook.flow_status,
    )
