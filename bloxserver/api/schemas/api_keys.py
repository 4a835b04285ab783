from __future__ import annotations

from typing import Annotated
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, Field

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime, checked_utc
from bloxserver.json_models import CamelModel
from bloxserver.models.enums import Scope

MAX_FLOWS = 100


class ApiKey(CamelModel):
    """An API key without the key itself, of which only a hash is stored."""

    id: UUID
    name: str
    hint: str = Field(description="The beginning and the last characters of the key.")
    scopes: list[Scope]
    flow_ids: list[UUID] | None = Field(description="The flows to which the key is restricted; null if it is not.")
    expires_at: UtcTime | None
    last_used_at: UtcTime | None = Field(description="The last use, exact to a minute.")
    last_used_address: str | None
    created_at: UtcTime


class CreatedApiKey(ApiKey):
    """A new API key. This is the only response that contains the key."""

    key: str | None = Field(
        description="The secret for the header `Authorization: Bearer …`; null in the response to a repeated request."
    )


class CreateApiKeyRequest(RequestModel):
    """A new API key."""

    name: str = Field(min_length=1, max_length=100, examples=["Deployment"])
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=10)] = Field(
        description="What the key may do. No scope includes another one.", examples=[["read", "run"]]
    )
    flow_ids: Annotated[list[UUID], Field(min_length=1, max_length=MAX_FLOWS)] | None = Field(
        None, description="Restrict the key to these flows: requests for others are 404, and it cannot create flows."
    )
    expires_at: Annotated[AwareDatetime, AfterValidator(checked_utc)] | None = Field(
        None, description="When the key becomes invalid. Without it, the key is valid until it is revoked."
    )
