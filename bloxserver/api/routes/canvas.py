from __future__ import annotations

from fastapi import APIRouter, Depends

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import errors, response_of
from bloxserver.api.routes.organisms import use_read_only_session
from bloxserver.api.schemas import CanvasState, DerivedOrganism, DeriveRequest, FlowCanvas
from bloxserver.api.scopes import requires_scope
from bloxserver.models.enums import Scope
from bloxserver.queries import canvas as queries

router = APIRouter(
    prefix="/flows/{flow_id}/canvas",
    tags=["organisms"],
    dependencies=[Depends(use_read_only_session)],
    route_class=JsonRoute,
)


@router.get(
    "",
    response_model=FlowCanvas,
    operation_id="getFlowCanvas",
    summary="Retrieve a flow's canvas",
    responses=response_of(200, "The canvas and the problems found in it.", examples.DERIVED_CANVAS) | errors(404),
)
async def get_canvas(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """Return the flow's stored canvas. If none is stored, return a canvas that is derived from the YAML."""
    return await queries.read_canvas(session, user.id, flow_id)


@router.post(
    "/derive",
    response_model=DerivedOrganism,
    operation_id="deriveOrganism",
    summary="Convert a canvas to YAML",
    responses=response_of(200, "The definition and its problems.", examples.DERIVED_ORGANISM) | errors(404),
)
@requires_scope(Scope.READ)
async def derive_organism(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, body: DeriveRequest | None = None
) -> object:
    """Return the YAML definition of the canvas in the body, or of the flow's own canvas. Nothing is stored."""
    given = body.canvas_state if body is not None else None
    canvas = given.model_dump(by_alias=True) if isinstance(given, CanvasState) else given
    derived = await queries.derive_definition(session, user.id, flow_id, canvas)
    valid = all(problem.severity != "error" for problem in derived.problems)
    return {"organism_yaml": derived.organism_yaml, "valid": valid, "problems": derived.problems}
