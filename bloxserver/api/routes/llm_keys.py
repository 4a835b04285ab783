from __future__ import annotations

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Path

from bloxserver.api import llm_examples as examples
from bloxserver.api.dependencies import AuthenticatedUser, DbSession
from bloxserver.api.idempotency import Idempotent
from bloxserver.api.json_bodies import JsonRoute
from bloxserver.api.openapi import error_of, response_of
from bloxserver.api.schemas import AddApiKeyRequest, ApiKeyInfo
from bloxserver.api.scopes import requires_scope
from bloxserver.encryption import get_cipher
from bloxserver.models.enums import Scope
from bloxserver.queries import llm_keys as queries
from bloxserver.services import llm_keys as services
from bloxserver.settings import get_settings

router = APIRouter(prefix="/llm/keys", tags=["language models"], route_class=JsonRoute)

Provider = Annotated[str, Path(max_length=64, description="The provider: `openai`, `anthropic`, `xai` or `together`.")]


@router.get(
    "",
    response_model=list[ApiKeyInfo],
    operation_id="listLlmKeys",
    summary="List own keys for providers",
    responses=response_of(200, "The keys, sorted by provider.", [examples.OWN_KEY]),
)
@requires_scope(Scope.ADMIN)
async def list_llm_keys(user: AuthenticatedUser, session: DbSession) -> object:
    """Return the user's own keys for providers of language models, without the keys themselves."""
    return await queries.read_llm_keys(session, user.id)


@router.post(
    "",
    status_code=201,
    response_model=ApiKeyInfo,
    operation_id="addLlmKey",
    summary="Add an own key for a provider",
    responses=response_of(201, "The added key.", examples.OWN_KEY | {"lastUsedAt": None})
    | error_of(
        400,
        "The key is malformed, or the provider rejected it.",
        "invalid_provider_key",
        "anthropic rejected the key (status 401). Check that it is complete and may list models.",
    )
    | error_of(
        403,
        "The plan does not include own keys.",
        "own_model_keys_not_in_plan",
        "Your plan does not include own keys for language models. Upgrade to add one.",
    ),
)
@requires_scope(Scope.ADMIN)
async def add_llm_key(
    user: AuthenticatedUser, session: DbSession, idempotent: Idempotent, body: AddApiKeyRequest
) -> object:
    """Test a key at its provider and store it, in place of the user's key for this provider if there is one.

    Language models of the provider are then called with this key first. If the provider cannot be reached, the key is
    not stored and the response is 503 `provider_unavailable`.
    """
    settings, key = get_settings(), body.api_key.get_secret_value()
    return await idempotent.create(
        lambda: services.store_llm_key(session, get_cipher(settings), user.id, body.provider, key),
        lambda key_id: queries.read_llm_key(session, user.id, UUID(key_id)),
        prepare=lambda: services.verify_new_key(session, settings, user.id, body.provider, key),
    )


@router.delete(
    "/{provider}",
    status_code=204,
    operation_id="deleteLlmKey",
    summary="Delete an own key",
    responses=response_of(204, "The key is deleted.")
    | error_of(404, "Not found.", "llm_key_not_found", "LLM key not found"),
)
@requires_scope(Scope.ADMIN)
async def delete_llm_key(user: AuthenticatedUser, session: DbSession, provider: Provider) -> None:
    """Delete the user's own key for the provider. Every server stops using it within a second."""
    await services.delete_llm_key(session, user.id, provider)
