from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Depends, Header, Query, Response
from pydantic import AfterValidator

from bloxserver.api import examples
from bloxserver.api.current_user import reads_requester
from bloxserver.api.dependencies import (
    AuthenticatedUser,
    DbSession,
    ExecutionId,
    FlowId,
    ReadingStatements,
    ServerShutdown,
    Sessions,
    StepPage,
    WaitSeconds,
)
from bloxserver.api.execution_queries import ExecutionListQuery, ExecutionQuery
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import (
    AUTHENTICATED_PREFIX,
    error_of,
    errors,
    event_stream,
    invalid_cursor,
    response_of,
    still_running,
)
from bloxserver.api.query_models import query_document
from bloxserver.api.rendering import render_lines, render_page
from bloxserver.api.request_schemas import WITHOUT_NUL
from bloxserver.api.schemas import (
    CursorPage,
    Execution,
    ExecutionSummary,
    FlowStats,
    PaginatedResponse,
    RunRequest,
    Step,
)
from bloxserver.api.scopes import requires_scope
from bloxserver.api.stream_slots import StreamSlot, WaitSlot, refuse_stream_again, refuse_wait_again
from bloxserver.api.streaming import END_EVENT_ID, EventStream, WaitingResponse, Watcher
from bloxserver.api.watching import Watch
from bloxserver.clock import now
from bloxserver.models.enums import Scope
from bloxserver.queries import executions as queries
from bloxserver.queries.execution_lists import read_executions
from bloxserver.queries.execution_statistics import read_statistics
from bloxserver.queries.steps import read_steps
from bloxserver.services import executions as services
from bloxserver.services import retries, transitions
from bloxserver.storable import check_text

router = APIRouter(prefix="/flows/{flow_id}/executions", tags=["executions"], route_class=JsonRoute)

InputPayload = Annotated[
    str | None,
    Query(description="The input as text. Takes precedence over the body.", json_schema_extra={"pattern": WITHOUT_NUL}),
    AfterValidator(lambda text: text and check_text(text)),
]
LastEventId = Annotated[
    str | None, Header(alias="Last-Event-ID", description="The id of the last event that was received.")
]
RetryFrom = Annotated[
    retries.RetryFrom,
    Query(
        alias="from",
        description="`start` runs all steps. `failed` copies finished steps and handled errors, and runs the rest.",
    ),
]
RetryVersion = Annotated[
    retries.RetryVersion, Query(description="The definition to run: `same` as the execution, or the flow's `latest`.")
]


@router.get(
    "",
    response_model=CursorPage[ExecutionSummary],
    operation_id="listExecutions",
    summary="List executions",
    responses=response_of(200, "A page of executions.", examples.cursor_page(examples.EXECUTION_SUMMARY))
    | invalid_cursor()
    | errors(404),
    openapi_extra=query_document(ExecutionQuery),
)
@reads_requester
async def list_executions(
    user: AuthenticatedUser, session: ReadingStatements, flow_id: FlowId, query: ExecutionListQuery
) -> Response:
    """Return the executions of a flow, newest first."""
    return render_lines(await read_executions(session, user, flow_id, query.request()))


@router.post(
    "/run",
    status_code=201,
    response_model=Execution,
    dependencies=[Depends(refuse_wait_again)],
    operation_id="runFlow",
    summary="Run a flow",
    responses=response_of(201, "The execution is started. With `wait`: it has ended.", examples.MANUAL_EXECUTION)
    | still_running()
    | errors(400, 403, 404),
)
@requires_scope(Scope.RUN)
async def run_flow(
    user: AuthenticatedUser,
    session: DbSession,
    sessions: Sessions,
    shutdown: ServerShutdown,
    watcher: Watcher,
    slot: WaitSlot,
    response: Response,
    idempotent: Idempotent,
    flow_id: FlowId,
    input_payload: InputPayload = None,
    wait: WaitSeconds = None,
    body: RunRequest | None = None,
) -> object:
    """Start an execution manually. Its status is `running` until it ends."""
    payload = input_payload if input_payload is not None else body and body.input_payload
    period = user.period_at(now())
    given = services.input_of_json(payload)
    execution = await idempotent.create(
        lambda: services.run_flow(session, user.id, user.plan, period, flow_id, given),
        lambda execution_id: queries.read_execution(session, user.id, flow_id, UUID(execution_id)),
    )
    if wait is None:
        return execution
    accepted = Execution.model_validate(execution)
    location = f"{AUTHENTICATED_PREFIX}/flows/{flow_id}/executions/{accepted.id}"
    watch = Watch(sessions, shutdown, accepted.id)
    return WaitingResponse(
        watcher, watch, accepted, wait, status_code=201, body=Execution, location=location, headers=response.headers
    )


# Before `/{execution_id}`, which would match this path.
@router.get(
    "/stats",
    response_model=FlowStats,
    operation_id="getFlowStats",
    summary="Retrieve statistics",
    responses=response_of(200, "The statistics.", examples.STATISTICS) | errors(404),
)
@reads_requester
async def get_statistics(user: AuthenticatedUser, session: ReadingStatements, flow_id: FlowId) -> Response:
    """Return the counts and the durations of all executions of a flow."""
    statistics = FlowStats.model_validate(await read_statistics(session, user, flow_id))
    return Response(statistics.model_dump_json(by_alias=True), media_type="application/json")


@router.get(
    "/{execution_id}",
    response_model=Execution,
    operation_id="getExecution",
    summary="Retrieve an execution",
    responses=response_of(200, "The execution.", examples.EXECUTION) | errors(404),
)
@reads_requester
async def get_execution(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, execution_id: ExecutionId
) -> object:
    """Return an execution with its input and output."""
    return await queries.read_execution_of(session, user, flow_id, execution_id)


@router.get(
    "/{execution_id}/steps",
    response_model=PaginatedResponse[Step],
    operation_id="listSteps",
    summary="List steps",
    responses=response_of(200, "A page of steps.", examples.page(examples.STEP, 100)) | errors(404),
)
async def list_steps(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, execution_id: ExecutionId, page: StepPage
) -> Response:
    """Return the steps of an execution, oldest first. A step is a message that a listener handles."""
    return await render_page(Step, await read_steps(session, user.id, flow_id, execution_id, page))


@router.get(
    "/{execution_id}/events",
    status_code=200,
    response_class=EventStream,
    dependencies=[Depends(refuse_stream_again)],
    operation_id="streamExecution",
    summary="Stream an execution",
    responses=event_stream("A stream of `execution`, `step` and `agent.text` events.")
    | response_of(204, "The client has received all events: `Last-Event-ID` is `end`.")
    | errors(403, 404),
)
async def stream_execution(
    user: AuthenticatedUser,
    session: DbSession,
    sessions: Sessions,
    shutdown: ServerShutdown,
    watcher: Watcher,
    slot: StreamSlot,
    flow_id: FlowId,
    execution_id: ExecutionId,
    last_event_id: Annotated[str | None, Query(description="For clients that cannot send `Last-Event-ID`.")] = None,
    last_event_id_header: LastEventId = None,
) -> Response:
    """Stream an execution as Server-Sent Events.

    The first event is `execution`. A `step` event follows for each step, and again whenever the step changes. An
    `agent.text` event has the next part of the text that a language model writes for an agent. When the execution has
    ended, the last event is `execution` with the id `end`. The JSON in `data` is the execution or the step without
    its payloads, or the part of the text. Reconnect with the last id in `Last-Event-ID` to continue after that event.
    """
    await queries.require_execution(session, user.id, flow_id, execution_id)
    last = last_event_id_header if last_event_id_header is not None else last_event_id
    if last == END_EVENT_ID:
        return Response(status_code=204)
    return EventStream(watcher, Watch(sessions, shutdown, execution_id, with_steps=True), last)


@router.post(
    "/{execution_id}/cancel",
    response_model=Execution,
    operation_id="cancelExecution",
    summary="Cancel an execution",
    responses=response_of(200, "The cancelled execution.", examples.CANCELLED_EXECUTION)
    | error_of(
        400,
        "The execution has ended, and was not cancelled.",
        "execution_ended",
        "Cannot cancel execution in success state",
    )
    | errors(404),
)
@requires_scope(Scope.RUN)
async def cancel_execution(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, execution_id: ExecutionId
) -> object:
    """Cancel a running execution. Its running steps are stopped within a second."""
    return await transitions.cancel_execution(session, user.id, flow_id, execution_id)


@router.post(
    "/{execution_id}/retry",
    status_code=201,
    response_model=Execution,
    operation_id="retryExecution",
    summary="Retry an execution",
    responses=response_of(201, "The new execution.", examples.RETRIED_EXECUTION)
    | error_of(
        400,
        "The flow is not running, the execution is still running, or with `from=failed` it has not failed.",
        "execution_running",
        "Cannot retry execution in running state",
    )
    | errors(403, 404),
)
@requires_scope(Scope.RUN)
async def retry_execution(
    user: AuthenticatedUser,
    session: DbSession,
    idempotent: Idempotent,
    flow_id: FlowId,
    execution_id: ExecutionId,
    begin: RetryFrom = retries.RetryFrom.START,
    version: RetryVersion = retries.RetryVersion.SAME,
) -> object:
    """Start a new execution with the input of an execution that has ended. It counts as a run."""
    period = user.period_at(now())
    return await idempotent.create(
        lambda: retries.retry_execution(session, user.id, user.plan, period, flow_id, execution_id, begin, version),
        lambda new_id: queries.read_execution(session, user.id, flow_id, UUID(new_id)),
    )
