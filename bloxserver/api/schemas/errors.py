from __future__ import annotations

from typing import Any

from pydantic import Field

from bloxserver.json_models import CamelModel


class ApiError(CamelModel):
    """The body of every error: a problem of RFC 9457 with our members. Names match what clients already read."""

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Flow not found"])
    code: str = Field(description="Stable, snake_case: what a program decides by.", examples=["flow_not_found"])
    message: str = Field(description="The same text as `detail`.", examples=["Flow not found"])
    details: dict[str, Any] | None = Field(None, description="More about the error, by code.")
    request_id: str = Field(description="The request's `X-Request-Id`.", examples=["0190b1e2c3d4"])
