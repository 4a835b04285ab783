from __future__ import annotations

from fastapi import APIRouter, Depends, Request, Response

from bloxserver.api import examples
from bloxserver.api.dependencies import (
    DbSession,
    ReceivedCall,
    RequestAdmission,
    ServerShutdown,
    Sessions,
    WaitSeconds,
    WebhookToken,
    refuse_exceeded_webhook,
)
from bloxserver.api.errors import error_response
from bloxserver.api.idempotency import REPLAYED, IdempotencyHeader
from bloxserver.api.openapi import EXAMPLES, any_body, error_of, errors, response_of, still_running
from bloxserver.api.schemas import AwaitedExecution, Execution, WebhookAccepted, WebhookTest
from bloxserver.api.stream_slots import WebhookWaitSlot, refuse_webhook_wait_again
from bloxserver.api.streaming import WaitingResponse, Watcher
from bloxserver.api.watching import Watch
from bloxserver.api.webhook_responses import ACCEPTED, WebhookResponse
from bloxserver.errors import BloxError, NotFound
from bloxserver.queries.executions import find_execution
from bloxserver.services.rate_limits import read_admitted_webhook
from bloxserver.services.webhook_deliveries import record_rejection
from bloxserver.services.webhooks import receive_webhook

router = APIRouter(prefix="/webhooks", tags=["webhooks"], dependencies=[Depends(refuse_exceeded_webhook)])

NOT_FOUND = ("webhook_not_found", "Webhook not found")


@router.post(
    "/{webhook_token}",
    dependencies=[Depends(refuse_webhook_wait_again)],
    response_model=WebhookAccepted | AwaitedExecution,
    operation_id="receiveWebhook",
    summary="Start an execution by webhook",
    responses=response_of(
        200,
        "The execution is started. With `wait`: the execution has ended. If the trigger has `respond`, the output of "
        "the execution, or the response of a listener with the block `respond`, which can also have another status.",
        accepted=examples.WEBHOOK_ACCEPTED,
        ended=examples.ENDED_EXECUTION,
    )
    | still_running()
    | errors(403)
    | error_of(
        400,
        "The flow is not running, or the call depth is too large.",
        "flow_not_running",
        "Flow is not running (status: stopped)",
    )
    | error_of(404, "Not found.", *NOT_FOUND)
    | error_of(
        401,
        "The trigger requires a signature, which is missing or invalid.",
        "invalid_signature",
        "The signature of the webhook is missing or invalid",
    )
    | error_of(
        422,
        "The request is invalid. If the trigger has `respond`: `execution_failed`, `execution_timed_out` or "
        "`execution_cancelled`.",
        *EXAMPLES[422],
    )
    | error_of(409, "The webhook is disabled.", "trigger_disabled", "Webhook is disabled"),
    openapi_extra=any_body("The input of the execution, of any content type. It becomes `inputPayload`."),
)
async def receive(
    request: Request,
    response: Response,
    session: DbSession,
    sessions: Sessions,
    shutdown: ServerShutdown,
    watcher: Watcher,
    slot: WebhookWaitSlot,
    webhook_token: WebhookToken,
    call: ReceivedCall,
    key: IdempotencyHeader = None,  # for the document: `call` has all headers
    wait: WaitSeconds = None,
) -> object:
    """Start an execution of the webhook's flow. The body is its input; it may have any content type or be empty.

    If the trigger has a `signature`, the sender must sign the body or send credentials, as its scheme requires.
    """
    try:
        async with session.begin_nested():
            accepted = await receive_webhook(session, call)
    except BloxError as error:
        await record_rejection(session, webhook_token, error, len(call.body))
        return error_response(request, error)  # not raised: the record is committed
    if accepted.is_repeated:
        response.headers.update(REPLAYED)
    if wait is None and accepted.wait is not None:
        return WebhookResponse(request, accepted, accepted.wait)
    if wait is None:
        return WebhookAccepted(status="accepted", execution_id=accepted.execution_id, message=ACCEPTED)
    execution = await find_execution(session, accepted.execution_id)
    if execution is None:
        raise NotFound("Execution")
    shown = Execution.model_validate(execution)
    watch = Watch(sessions, shutdown, shown.id)
    return WaitingResponse(
        watcher, watch, shown, wait, status_code=200, body=AwaitedExecution, headers=response.headers
    )


@router.get(
    "/{webhook_token}/test",
    response_model=WebhookTest,
    operation_id="testWebhook",
    summary="Test a webhook",
    responses=response_of(200, "The token is valid.", examples.WEBHOOK_TEST) | error_of(404, "Not found.", *NOT_FOUND),
)
async def test(session: DbSession, webhook_token: WebhookToken, admission: RequestAdmission) -> object:
    """Check a webhook's token. No execution is started."""
    webhook = await read_admitted_webhook(session, webhook_token, admission)
    return WebhookTest(
        valid=True,
        trigger_name=webhook.trigger_name,
        flow_name=webhook.flow_name,
        flow_status=webhook.flow_status,
    )
