from __future__ import annotations

from operator import itemgetter
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, TriggerId
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, errors, response_of
from bloxserver.api.schemas import CreatedSigningSecret, CreateSigningSecretRequest, SigningSecret
from bloxserver.api.scopes import requires_scope
from bloxserver.encryption import get_cipher
from bloxserver.models.enums import Scope
from bloxserver.queries import signing_secrets as queries
from bloxserver.services import signing_secrets as services
from bloxserver.settings import get_settings

router = APIRouter(
    prefix="/flows/{flow_id}/triggers/{trigger_id}/signing-secrets", tags=["triggers"], route_class=JsonRoute
)

SigningSecretId = Annotated[UUID, Path(description="The signing secret's id.")]


@router.get(
    "",
    response_model=list[SigningSecret],
    operation_id="listSigningSecrets",
    summary="List signing secrets",
    responses=response_of(200, "The signing secrets, oldest first.", [examples.SIGNING_SECRET]) | errors(404),
)
@requires_scope(Scope.ADMIN)
async def list_signing_secrets(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId
) -> object:
    """Return the signing secrets of a webhook, without the secrets themselves."""
    return await queries.read_signing_secrets(session, user.id, flow_id, trigger_id)


@router.post(
    "",
    status_code=201,
    response_model=CreatedSigningSecret,
    operation_id="createSigningSecret",
    summary="Create a signing secret",
    responses=response_of(201, "The created signing secret.", examples.CREATED_SIGNING_SECRET)
    | error_of(400, "The trigger is not a webhook.", "trigger_not_a_webhook", "Only webhooks have signing secrets")
    | errors(404)
    | error_of(
        409,
        "The webhook has two signing secrets already.",
        "signing_secrets_limit",
        "A webhook has at most 2 signing secrets. Delete one first.",
    ),
)
@requires_scope(Scope.ADMIN)
async def create_signing_secret(
    user: AuthenticatedUser,
    session: DbSession,
    idempotent: Idempotent,
    flow_id: FlowId,
    trigger_id: TriggerId,
    body: CreateSigningSecretRequest | None = None,
) -> object:
    """Add a signing secret to a webhook. Only this response contains it. Two secrets can be valid, for a rotation."""
    given = None if body is None or body.secret is None else body.secret.get_secret_value()
    cipher = get_cipher(get_settings())

    async def create() -> dict[str, Any]:
        row, secret = await services.create_signing_secret(session, cipher, user.id, flow_id, trigger_id, given)
        return {**row._mapping, "secret": secret}

    async def read(secret_id: str) -> dict[str, Any]:
        row = await queries.read_signing_secret(session, user.id, flow_id, trigger_id, UUID(secret_id))
        return {**row._mapping, "secret": None}

    return await idempotent.create(create, read, name=itemgetter("id"))


@router.delete(
    "/{secret_id}",
    status_code=204,
    operation_id="deleteSigningSecret",
    summary="Delete a signing secret",
    responses=response_of(204, "The signing secret is deleted.") | errors(404),
)
@requires_scope(Scope.ADMIN)
async def delete_signing_secret(
    user: AuthenticatedUser, session: DbSession, flow_id: FlowId, trigger_id: TriggerId, secret_id: SigningSecretId
) -> None:
    """Delete a signing secret. Requests that are signed with it are rejected from then on."""
    await services.delete_signing_secret(session, user.id, flow_id, trigger_id, secret_id)
