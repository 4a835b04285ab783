from __future__ import annotations

from bloxserver.clock import UtcTime
from bloxserver.json_models import CamelModel


class ServiceInfo(CamelModel):
    name: str
    version: str
    docs: str | None
    health: str


class Health(CamelModel):
    status: str
    timestamp: UtcTime
    service: str


class Liveness(CamelModel):
    status: str
    timestamp: UtcTime


class Readiness(CamelModel):
    status: str
    timestamp: UtcTime
    checks: dict[str, str]
    errors: list[str] | None = None
