from __future__ import annotations

from pydantic import Field

from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel


class ServiceInfo(CamelModel):
    """The name and version of the service."""

    name: str
    version: str
    docs: str | None = Field(description="The path of the API reference.")
    health: str = Field(description="The path of the health check.")


class Health(CamelModel):
    """The process responds."""

    status: str
    timestamp: UtcTime
    service: str


class Liveness(CamelModel):
    """The process responds."""

    status: str
    timestamp: UtcTime


class Readiness(CamelModel):
    """The results of the readiness checks."""

    status: str = Field(description="`ready` or `unhealthy`.")
    timestamp: UtcTime
    checks: dict[str, str] = Field(description="`ok` or `failed` for each check.")
    errors: list[str] | None = Field(None, description="The failed checks with their reasons.")
