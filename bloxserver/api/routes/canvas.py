from __future__ import annotations

from fastapi import APIRouter, Depends

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId
from bloxserver.api.openapi import errors
from bloxserver.api.routes.organisms import only_reads
from bloxserver.api.schemas import DerivedOrganism, DeriveRequest, FlowCanvas
from bloxserver.queries import canvas as queries

router = APIRouter(prefix="/flows/{flow_id}/canvas", tags=["organisms"], dependencies=[Depends(only_reads)])


@router.get("", response_model=FlowCanvas, operation_id="getFlowCanvas", responses=errors(404))
async def get_canvas(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """The flow's canvas or, where none is stored, one that shows its YAML."""
    return await queries.read_canvas(session, user.id, flow_id)


@router.post("/derive", response_model=DerivedOrganism, operation_id="deriveOrganism", responses=errors(404))
async def derive_organism(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, body: DeriveRequest | None = None
) -> object:
    """The YAML that a canvas means: the one in the body, or the flow's own. Nothing is stored."""
    canvas = body.canvas_state.model_dump(by_alias=True) if body and body.canvas_state else None
    derived = await queries.derive_definition(session, user.id, flow_id, canvas)
    valid = all(problem.severity != "error" for problem in derived.problems)
    return {"organism_yaml": derived.organism_yaml, "valid": valid, "problems": derived.problems}
