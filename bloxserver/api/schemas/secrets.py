from __future__ import annotations

from pydantic import Field, SecretStr

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.encryption import SECRET_NAME
from bloxserver.json_models import CamelModel


class Secret(CamelModel):
    """A secret without its value, which is write-only."""

    name: str
    created_at: UtcTime
    updated_at: UtcTime


class SetSecretRequest(RequestModel):
    """The value of a secret."""

    value: SecretStr = Field(
        min_length=1,
        max_length=8192,
        description="Any text. The value cannot be read back.",
        examples=["a-long-random-text"],
    )


class CreateSecretRequest(SetSecretRequest):
    """A new secret."""

    name: str = Field(
        pattern=f"^{SECRET_NAME}$",
        description="The name for `{{ secrets.NAME }}` in a listener's config.",
        examples=["SHOP_TOKEN"],
    )
