from __future__ import annotations

from typing import Literal
from uuid import UUID

from pydantic import Field, SecretStr

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel


class Delivery(CamelModel):
    """A call of a webhook. Its body is the input of its execution; the body of a rejected call is not stored."""

    id: UUID
    received_at: UtcTime
    outcome: Literal["accepted", "repeated", "rejected"] = Field(
        description="`repeated`: an earlier call with the same idempotency key, or the same id of its sender, started "
        "the execution."
    )
    status: int = Field(description="The status of the response.")
    code: str | None = Field(description="The code of the error; null for an accepted call.")
    message: str | None = Field(description="The reason; null for an accepted call.")
    bytes: int = Field(description="The size of the body.")
    execution_id: UUID | None
    redelivery_of: UUID | None = Field(
        description="The execution whose input the owner of the webhook delivered again; null for calls of senders."
    )


class SigningSecret(CamelModel):
    """A signing secret of a webhook without the secret itself."""

    id: UUID
    hint: str = Field(description="The last four characters; empty for a secret of less than 16 characters.")
    created_at: UtcTime


class CreatedSigningSecret(SigningSecret):
    """A new signing secret. This is the only response that contains the secret."""

    secret: str | None = Field(description="The secret; null in the response to a repeated request.")


class CreateSigningSecretRequest(RequestModel):
    """A new signing secret."""

    secret: SecretStr | None = Field(
        None,
        min_length=8,
        max_length=512,
        description="A secret that the sender has generated. Without it, the server generates one: `whsec_` and the "
        "base64 of 32 bytes, which every scheme can use.",
        examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
    )
