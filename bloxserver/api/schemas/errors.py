from __future__ import annotations

from typing import Any

from pydantic import Field

from bloxserver.json_models import CamelModel


class ApiError(CamelModel):
    """The body of every error response: RFC 9457 problem details with additional members."""

    type: str = Field("about:blank", examples=["about:blank"])
    title: str = Field(examples=["Not Found"])
    status: int = Field(examples=[404])
    detail: str = Field(examples=["Flow not found"])
    code: str = Field(
        description="The kind of error, for programs: stable, in snake_case.", examples=["flow_not_found"]
    )
    message: str = Field(description="The same text as `detail`.", examples=["Flow not found"])
    details: dict[str, Any] | None = Field(None, description="Details, depending on `code`.")
    request_id: str = Field(description="The request's `X-Request-Id`.", examples=["5f0c6f6e1f5c4c4b8d0e0a5b2f1f7a3e"])
    error: dict[str, Any] | None = Field(
        None, description="The same error as OpenAI's API describes it. Only routes under `/v1` have it."
    )
