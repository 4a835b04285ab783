from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Response

from bloxserver.api import examples, llm_examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId
from bloxserver.api.json_bodies import definition_in_body
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.schemas import BlockDescription, FlowEstimate, Validation
from bloxserver.api.scopes import requires_scope
from bloxserver.models.database import read_only_request
from bloxserver.models.enums import Scope
from bloxserver.organism.problems import Problem
from bloxserver.services import validation as services
from bloxserver.settings import get_settings

if TYPE_CHECKING:
    from bloxserver.blocks.base import AnyBlock

SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


async def use_read_only_session() -> None:
    """Make the request's session read-only. Validation by POST writes nothing and need not wait for writers."""
    read_only_request.set(True)


router = APIRouter(tags=["organisms"], dependencies=[Depends(use_read_only_session)])


DefinitionInBody = Annotated[bytes | None, Depends(definition_in_body)]


def _body(description: str, *, required: bool) -> dict[str, Any]:
    # JSON without this member is a definition too, because JSON is YAML.
    as_json = {"properties": {"organismYaml": {"type": ["string", "null"]}}}
    content = {
        "application/yaml": {"schema": {}, "example": examples.ORGANISM_YAML},
        "application/json": {"schema": as_json, "example": {"organismYaml": examples.ORGANISM_YAML}},
        "*/*": {"schema": {}},
    }
    return {"requestBody": {"required": required, "description": description, "content": content}}


def _validation(problems: Sequence[Problem]) -> dict[str, Any]:
    return {"valid": all(problem.severity != "error" for problem in problems), "problems": problems}


@router.post(
    "/organisms/validate",
    response_model=Validation,
    operation_id="validateOrganism",
    summary="Validate a definition",
    responses=response_of(200, "All problems of the definition.", examples.VALIDATION),
    openapi_extra=_body("The definition, or a JSON object with the member `organismYaml`.", required=False),
)
@requires_scope(Scope.READ)
async def validate_organism(definition: DefinitionInBody, user: AuthenticatedUser, session: DbSession) -> object:
    """Return all problems that a start of a flow with this definition would report. Nothing is stored."""
    return _validation(await services.validate(session, get_settings(), user.id, definition or b""))


@router.post(
    "/flows/{flow_id}/validate",
    response_model=Validation,
    operation_id="validateFlow",
    summary="Validate a flow's definition",
    responses=response_of(200, "All problems of the definition.", examples.VALID) | errors(404),
    openapi_extra=_body("Another definition for the flow. If absent, the flow's own definition.", required=False),
)
@requires_scope(Scope.READ)
async def validate_flow(
    definition: DefinitionInBody, user: AuthenticatedUser, session: DbSession, flow_id: FlowId
) -> object:
    """Return all problems of the flow's definition, or of the definition in the body. Nothing is stored."""
    return _validation(await services.validate_flow(session, get_settings(), user.id, flow_id, definition))


@router.post(
    "/flows/{flow_id}/estimate",
    response_model=FlowEstimate,
    operation_id="estimateFlow",
    summary="Estimate the usage of language models",
    responses=response_of(200, "Upper bounds for one execution.", llm_examples.ESTIMATE)
    | error_of(400, "The definition is invalid.", "invalid_definition", "The definition is invalid: line 3: …")
    | errors(404),
)
@requires_scope(Scope.READ)
async def estimate_flow(user: AuthenticatedUser, session: DbSession, flow_id: FlowId) -> object:
    """Return upper bounds of what the agents of one execution may use, from the flow's definition. Nothing is run."""
    # It needs the blocks, which only a process that starts imports, not one that imports `app`.
    from bloxserver.services import estimates

    return await estimates.estimate_flow(session, get_settings(), user.id, flow_id)


@router.get(
    "/blocks",
    response_model=list[BlockDescription],
    operation_id="listBlocks",
    summary="List blocks",
    responses=response_of(200, "The blocks and the agent, sorted by name.", [examples.BLOCK]),
)
async def list_blocks(user: AuthenticatedUser) -> Response:
    """Return the blocks that a listener can use, with the JSON Schemas of their configs and payloads."""
    return Response(_rendered_blocks(), media_type="application/json")


@lru_cache(maxsize=1)
def _rendered_blocks() -> bytes:
    """The response body. The registry does not change while the process runs."""
    from bloxserver.blocks.agent import agent
    from bloxserver.blocks.registry import get_registry

    blocks = sorted([*get_registry().blocks, agent], key=lambda block: block.name)
    return json.dumps(
        [_described(block, is_agent=block is agent).model_dump(by_alias=True) for block in blocks], ensure_ascii=False
    ).encode()


def _described(block: AnyBlock, *, is_agent: bool) -> BlockDescription:
    return BlockDescription(
        kind="agent" if is_agent else "block",
        name=block.name,
        aliases=list(block.aliases),
        description=block.description,
        config_schema={"$schema": SCHEMA_DIALECT} | block.config.model_json_schema(),
        payload_schema={"$schema": SCHEMA_DIALECT} | block.payload.model_json_schema(),
        example=block.example,
        templates=sorted(block.templates),
    )
