from __future__ import annotations

from operator import attrgetter
from typing import Annotated

from fastapi import APIRouter, Path

from bloxserver.api import examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, response_of
from bloxserver.api.schemas import CreateSecretRequest, Secret, SetSecretRequest
from bloxserver.api.scopes import requires_scope
from bloxserver.encryption import SECRET_NAME, get_cipher
from bloxserver.models.enums import Scope
from bloxserver.queries import secrets as queries
from bloxserver.services import secrets as services
from bloxserver.settings import get_settings

router = APIRouter(prefix="/secrets", tags=["secrets"], route_class=JsonRoute)

LIMIT_REACHED = error_of(
    403,
    "The user has reached the limit of secrets.",
    "secret_limit_reached",
    "The limit of 100 secrets is reached (in use: 100). Delete one that is no longer used, or upgrade.",
)

SecretName = Annotated[str, Path(pattern=f"^{SECRET_NAME}$", description="The secret's name.")]


@router.get(
    "",
    response_model=list[Secret],
    operation_id="listSecrets",
    summary="List secrets",
    responses=response_of(200, "The secrets, sorted by name.", [examples.SECRET]),
)
@requires_scope(Scope.ADMIN)
async def list_secrets(user: AuthenticatedUser, session: DbSession) -> object:
    """Return the names of all secrets, without their values."""
    return await queries.read_secrets(session, user.id)


@router.post(
    "",
    status_code=201,
    response_model=Secret,
    operation_id="createSecret",
    summary="Create a secret",
    responses=response_of(201, "The created secret.", examples.SECRET)
    | LIMIT_REACHED
    | error_of(409, "A secret with this name exists.", "secret_exists", "There is a secret called SHOP_TOKEN already"),
)
@requires_scope(Scope.ADMIN)
async def create_secret(
    user: AuthenticatedUser, session: DbSession, idempotent: Idempotent, body: CreateSecretRequest
) -> object:
    """Create a secret. If a secret with this name exists, it is not changed and the response is 409."""
    cipher = get_cipher(get_settings())
    return await idempotent.create(
        lambda: services.create_secret(session, cipher, user.id, body.name, body.value.get_secret_value()),
        lambda name: queries.read_secret(session, user.id, name),
        name=attrgetter("name"),
    )


@router.put(
    "/{name}",
    response_model=Secret,
    operation_id="setSecret",
    summary="Create or replace a secret",
    responses=response_of(200, "The secret.", examples.SECRET) | LIMIT_REACHED,
)
@requires_scope(Scope.ADMIN)
async def set_secret(user: AuthenticatedUser, session: DbSession, name: SecretName, body: SetSecretRequest) -> object:
    """Create a secret or replace its value. Each attempt uses the current value."""
    cipher = get_cipher(get_settings())
    return await services.set_secret(session, cipher, user.id, name, body.value.get_secret_value())


@router.delete(
    "/{name}",
    status_code=204,
    operation_id="deleteSecret",
    summary="Delete a secret",
    responses=response_of(204, "The secret is deleted.")
    | error_of(404, "Not found.", "secret_not_found", "Secret not found"),
)
@requires_scope(Scope.ADMIN)
async def delete_secret(user: AuthenticatedUser, session: DbSession, name: SecretName) -> None:
    """Delete a secret. Flows that use it fail from then on."""
    await services.delete_secret(session, user.id, name)
