from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import AfterValidator

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, ExecutionId, ExecutionPage, FlowId
from bloxserver.api.models.types import now
from bloxserver.api.openapi import errors
from bloxserver.api.schemas import (
    Execution,
    ExecutionStatus,
    ExecutionSummary,
    FlowStats,
    PaginatedResponse,
    RunRequest,
)
from bloxserver.api.schemas.base import check_text
from bloxserver.queries import executions as queries
from bloxserver.services import executions as services

router = APIRouter(prefix="/flows/{flow_id}/executions", tags=["executions"])

StatusFilter = Annotated[ExecutionStatus | None, Query(description="Only executions of this status.")]
InputPayload = Annotated[
    str | None,
    Query(description="Input as text; wins over the body."),
    AfterValidator(lambda text: text and check_text(text)),
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


@router.post("/run", status_code=201, response_model=Execution, operation_id="runFlow", responses=errors(400, 403, 404))
async def run_flow(
    user: AuthenticatedUser,
    session: DbSession,
    flow_id: FlowId,
    input_payload: InputPayload = None,
    body: RunRequest | None = None,
) -> object:
    """Run a flow by hand; the execution is `running` until the engine has ended it."""
    given = services.input_of_json(input_payload if input_payload is not None else body and body.input_payload)
    return await services.run_flow(session, user.id, user.tier, user.period_at(now()), flow_id, given)


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
