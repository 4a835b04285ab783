from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Response
from pydantic import AfterValidator

from bloxserver.api.dependencies import (
    AuthenticatedUser,
    DbSession,
    ExecutionId,
    ExecutionPage,
    FlowId,
    ServerShutdown,
    Sessions,
    StepPage,
    WaitSeconds,
)
from bloxserver.api.openapi import AUTHENTICATED_PREFIX, STILL_RUNNING, errors
from bloxserver.api.schemas import (
    Execution,
    ExecutionStatus,
    ExecutionSummary,
    FlowStats,
    PaginatedResponse,
    RunRequest,
    Step,
)
from bloxserver.api.streaming import END, EventStream, WaitingResponse
from bloxserver.clock import now
from bloxserver.queries import executions as queries
from bloxserver.queries.steps import read_steps
from bloxserver.services import executions as services
from bloxserver.services import retries
from bloxserver.services import transitions as cancellation
from bloxserver.storable import check_text

router = APIRouter(prefix="/flows/{flow_id}/executions", tags=["executions"])

StatusFilter = Annotated[ExecutionStatus | None, Query(description="Only executions of this status.")]
InputPayload = Annotated[
    str | None,
    Query(description="Input as text; wins over the body."),
    AfterValidator(lambda text: text and check_text(text)),
]
LastEventId = Annotated[str | None, Header(alias="Last-Event-ID", description="The last event that was seen.")]
RetryFrom = Annotated[
    retries.RetryFrom,
    Query(alias="from", description="`failed` takes over the finished steps of an execution that failed."),
]
RetryVersion = Annotated[
    retries.RetryVersion, Query(description="The definition to run: that of the execution, or the flow's newest.")
]


@router.get(
    "", response_model=PaginatedResponse[ExecutionSummary], operation_id="listExecutions", responses=errors(404)
)
async def list_executions(
    user: AuthenticatedUser,
    session: DbSession,
    flow_id: FlowId,
    page: ExecutionPage,
    status_filter: StatusFilter = None,
) -> object:
    """A flow's history, the newest first."""
    return await queries.read_executions(session, user.id, flow_id, page, status_filter)


@router.post(
    "/run",
    status_code=201,
    response_model=Execution,
    operation_id="runFlow",
    responses=errors(400, 403, 404) | STILL_RUNNING,
)
async def run_flow(
    user: AuthenticatedUser,
    session: DbSession,
    sessions: Sessions,
    shutdown: ServerShutdown,
    flow_id: FlowId,
    input_payload: InputPayload = None,
    wait: WaitSeconds = None,
    body: RunRequest | None = None,
) -> object:
    """Run a flow by hand; the execution is `running` until the engine has ended it."""
    given = services.input_of_json(input_payload if input_payload is not None else body and body.input_payload)
    execution = await services.run_flow(session, user.id, user.tier, user.period_at(now()), flow_id, given)
    if wait is None:
        return execution
    accepted = Execution.model_validate(execution)
    location = f"{AUTHENTICATED_PREFIX}/flows/{flow_id}/executions/{accepted.id}"
    return WaitingResponse(sessions, shutdown, accepted, wait, status_code=201, body=Execution, location=location)


# Stands before `/{execution_id}`, which would swallow it.
@router.get("/stats", response_model=FlowStats, operation_id="getFlowStats", responses=errors(404))
async def get_statistics(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """Counts over all executions of a flow."""
    return await queries.read_statistics(session, user.id, flow_id)


@router.get("/{execution_id}", response_model=Execution, operation_id="getExecution", responses=errors(404))
async def get_execution(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, execution_id: ExecutionId
) -> object:
    """One execution with its input and its output."""
    return await queries.read_execution(session, user.id, flow_id, execution_id)


@router.get(
    "/{execution_id}/steps",
    response_model=PaginatedResponse[Step],
    operation_id="listSteps",
    responses=errors(404),
)
async def list_steps(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, execution_id: ExecutionId, page: StepPage
) -> object:
    """An execution's timeline: the messages that its listeners handled, the oldest first."""
    return await read_steps(session, user.id, flow_id, execution_id, page)


@router.get(
    "/{execution_id}/events",
    status_code=200,
    response_class=EventStream,
    operation_id="streamExecution",
    responses=errors(404) | {204: {"description": "The caller has seen the end."}},
)
async def stream_execution(
    user: AuthenticatedUser,
    session: DbSession,
    sessions: Sessions,
    shutdown: ServerShutdown,
    flow_id: FlowId,
    execution_id: ExecutionId,
    last_event_id: Annotated[str | None, Query(description="Where a header cannot be set.")] = None,
    last_event_id_header: LastEventId = None,
) -> Response:
    """An execution as it goes on, by Server-Sent Events: `execution` now and at the end, `step` for each change."""
    await queries.require_execution(session, user.id, flow_id, execution_id)
    last = last_event_id_header if last_event_id_header is not None else last_event_id
    return Response(status_code=204) if last == END else EventStream(sessions, shutdown, execution_id, last)


@router.post(
    "/{execution_id}/cancel", response_model=Execution, operation_id="cancelExecution", responses=errors(400, 404)
)
async def cancel_execution(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, execution_id: ExecutionId
) -> object:
    """End a running execution; what it is doing is stopped within a second."""
    return await cancellation.cancel_execution(session, user.id, flow_id, execution_id)


@router.post(
    "/{execution_id}/retry",
    status_code=201,
    response_model=Execution,
    operation_id="retryExecution",
    responses=errors(400, 403, 404),
)
async def retry_execution(
    user: AuthenticatedUser,
    session: DbSession,
    flow_id: FlowId,
    execution_id: ExecutionId,
    begin: RetryFrom = retries.RetryFrom.START,
    version: RetryVersion = retries.RetryVersion.SAME,
) -> object:
    """Run an execution that has ended again, with the same input; what this starts is a run of its own."""
    period = user.period_at(now())
    return await retries.retry_execution(session, user.id, user.tier, period, flow_id, execution_id, begin, version)
