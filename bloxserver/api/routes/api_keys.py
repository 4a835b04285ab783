from __future__ import annotations

from operator import itemgetter
from typing import Annotated, Any
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Path

from bloxserver.api import examples
from bloxserver.api.api_key_sign_in import forget_keys
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.schemas import ApiKey, CreateApiKeyRequest, CreatedApiKey
from bloxserver.api.scopes import requires_scope
from bloxserver.models.enums import Scope
from bloxserver.queries import api_keys as queries
from bloxserver.services import api_keys as services

router = APIRouter(prefix="/api-keys", tags=["api keys"], route_class=JsonRoute)

ApiKeyId = Annotated[UUID, Path(description="The key's id.")]


@router.get(
    "",
    response_model=list[ApiKey],
    operation_id="listApiKeys",
    summary="List API keys",
    responses=response_of(200, "The keys, newest first.", [examples.API_KEY]),
)
@requires_scope(Scope.ADMIN)
async def list_api_keys(user: AuthenticatedUser, session: DbSession) -> object:
    """Return all API keys of the user, without the keys themselves."""
    return await queries.read_api_keys(session, user.id)


@router.post(
    "",
    status_code=201,
    response_model=CreatedApiKey,
    operation_id="createApiKey",
    summary="Create an API key",
    responses=response_of(201, "The created key.", examples.CREATED_API_KEY)
    | error_of(
        403,
        "The limit of keys is reached, or the request has an API key with less access than the new one.",
        "missing_scope",
        "An API key cannot create a key with scopes that it does not have: write",
    )
    | errors(404),
)
@requires_scope(Scope.ADMIN)
async def create_api_key(
    user: AuthenticatedUser, session: DbSession, idempotent: Idempotent, body: CreateApiKeyRequest
) -> object:
    """Create an API key. Only this response contains it. An API key can create only keys with no more access."""
    new = services.NewKey(body.name, body.scopes, body.flow_ids, body.expires_at)

    async def create() -> dict[str, Any]:
        row, key = await services.create_api_key(session, user.id, new, user.api_key)
        return {**row._mapping, "key": key}

    async def read(key_id: str) -> dict[str, Any]:
        return {**(await queries.read_api_key(session, user.id, UUID(key_id)))._mapping, "key": None}

    return await idempotent.create(create, read, name=itemgetter("id"))


@router.delete(
    "/{key_id}",
    status_code=204,
    operation_id="revokeApiKey",
    summary="Revoke an API key",
    responses=response_of(204, "The key is revoked.") | errors(404),
)
@requires_scope(Scope.ADMIN)
async def revoke_api_key(user: AuthenticatedUser, session: DbSession, key_id: ApiKeyId) -> None:
    """Delete an API key. Every server rejects it within a second."""
    await services.revoke_api_key(session, key_id, user_id=user.id)
    sa.event.listen(session.sync_session, "after_commit", forget_keys, once=True)
