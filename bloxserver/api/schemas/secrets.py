from __future__ import annotations

from pydantic import Field, SecretStr

from bloxserver.api.schemas.base import RequestModel
from bloxserver.clock import UtcTime
from bloxserver.encryption import SECRET_NAME
from bloxserver.json_models import CamelModel


class Secret(CamelModel):
    """A secret as far as it is shown: its value never is."""

    name: str
    created_at: UtcTime
    updated_at: UtcTime


class SetSecretRequest(RequestModel):
    value: SecretStr = Field(
        min_length=1,
        max_length=8192,
        description="Any text. It cannot be read again.",
        examples=["a long text that nobody guesses"],
    )


class CreateSecretRequest(SetSecretRequest):
    name: str = Field(
        pattern=f"^{SECRET_NAME}$",
        description="Used as `{{ secrets.NAME }}` in a listener's config.",
        examples=["SHOP_TOKEN"],
    )
