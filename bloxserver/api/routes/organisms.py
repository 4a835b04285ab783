from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response

from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId
from bloxserver.api.openapi import errors
from bloxserver.api.schemas import BlockDescription, Validation
from bloxserver.api.schemas.flows import ORGANISM_EXAMPLE
from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import AnyBlock
from bloxserver.blocks.registry import get_registry
from bloxserver.errors import Unprocessable
from bloxserver.models.database import read_only_request
from bloxserver.organism.problems import Problem
from bloxserver.services import validation as services
from bloxserver.settings import get_settings

NAMES = ("organismYaml", "organism_yaml")
SCHEMA_DIALECT = "https://json-schema.org/draft/2020-12/schema"


async def only_reads() -> None:
    """Who asks for a judgement writes nothing, whatever the method is: it need not wait for who does."""
    read_only_request.set(True)


router = APIRouter(tags=["organisms"], dependencies=[Depends(only_reads)])


async def given_definition(request: Request) -> bytes | None:
    """The definition in the body, or None where there is no body.

    It is the body itself, of any content type, or the `organismYaml` of a JSON object. Read before the session takes
    a connection, so that a slow sender holds none.
    """
    body = await request.body()
    if "json" not in request.headers.get("content-type", "").lower():
        return body or None
    try:
        given = json.loads(body)
    # JSON is YAML: the loader says what is wrong with it, and where.
    except (ValueError, RecursionError):
        return body or None
    if not isinstance(given, dict) or (given and given.keys().isdisjoint(NAMES)):
        return body
    text = next((given[name] for name in NAMES if name in given), None)
    if text is not None and not isinstance(text, str):
        raise Unprocessable({"body.organismYaml": "Input should be a valid string"})
    return None if text is None else text.encode(errors="surrogatepass")


GivenDefinition = Annotated[bytes | None, Depends(given_definition)]


def _body(description: str, *, required: bool) -> dict[str, Any]:
    as_json = {"type": "object", "properties": {"organismYaml": {"type": "string"}}}
    content = {
        "application/yaml": {"schema": {"type": "string"}, "example": ORGANISM_EXAMPLE},
        "application/json": {"schema": as_json, "example": {"organismYaml": ORGANISM_EXAMPLE}},
        "*/*": {"schema": {}},
    }
    return {"requestBody": {"required": required, "description": description, "content": content}}


def _validation(problems: Sequence[Problem]) -> dict[str, Any]:
    return {"valid": all(problem.severity != "error" for problem in problems), "problems": problems}


@router.post(
    "/organisms/validate",
    response_model=Validation,
    operation_id="validateOrganism",
    openapi_extra=_body("The definition, or a JSON object with it.", required=True),
)
async def validate_organism(definition: GivenDefinition, user: AuthenticatedUser, session: DbSession) -> object:
    """Say everything that is wrong with a definition, as a start would find it; nothing is stored."""
    return _validation(await services.validate(session, get_settings(), user.id, definition or b""))


@router.post(
    "/flows/{flow_id}/validate",
    response_model=Validation,
    operation_id="validateFlow",
    responses=errors(404),
    openapi_extra=_body("Another definition for the flow; without one its own is judged.", required=False),
)
async def validate_flow(
    definition: GivenDefinition, user: AuthenticatedUser, session: DbSession, flow_id: FlowId
) -> object:
    """Say everything that is wrong with a flow's definition, or with another one for it."""
    return _validation(await services.validate_flow(session, get_settings(), user.id, flow_id, definition))


@router.get("/blocks", response_model=list[BlockDescription], operation_id="listBlocks")
async def list_blocks(user: AuthenticatedUser) -> Response:
    """What listeners can be, by name, with the schemas that a form or a palette is made of."""
    return Response(_rendered_blocks(), media_type="application/json")


@lru_cache(maxsize=1)
def _rendered_blocks() -> bytes:
    """The answer, which stays the same as long as the process does."""
    blocks = sorted([*get_registry().blocks, agent], key=lambda block: block.name)
    return json.dumps([_described(block).model_dump(by_alias=True) for block in blocks], ensure_ascii=False).encode()


def _described(block: AnyBlock) -> BlockDescription:
    return BlockDescription(
        kind="agent" if block is agent else "block",
        name=block.name,
        aliases=list(block.aliases),
        description=block.description,
        config_schema={"$schema": SCHEMA_DIALECT} | block.config.model_json_schema(),
        payload_schema={"$schema": SCHEMA_DIALECT} | block.payload.model_json_schema(),
        example=block.example,
        templates=sorted(block.templates),
    )
