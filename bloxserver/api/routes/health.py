from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy.exc import SQLAlchemyError

from bloxserver import __version__
from bloxserver.api import examples
from bloxserver.api.dependencies import LocalEngine, Sessions
from bloxserver.api.openapi import response_of
from bloxserver.api.schemas import Health, Liveness, Readiness, ServiceInfo
from bloxserver.clock import now
from bloxserver.queries.health import schema_problem
from bloxserver.settings import get_settings

CHECK_TIMEOUT_SECONDS = 3
"""Timeout of the database check in seconds. Probes usually time out after 5 seconds, and closing the connection can
take 2 seconds more.
"""

router = APIRouter(tags=["health"])


async def check_timeout() -> float:
    return CHECK_TIMEOUT_SECONDS


@router.get(
    "/",
    response_model=ServiceInfo,
    operation_id="getServiceInfo",
    summary="Retrieve the service's name and version",
    responses=response_of(200, "The service.", examples.SERVICE),
)
async def root() -> object:
    """Return the name and version of the service and the paths of its documentation and health check."""
    return ServiceInfo(name="BloxServer API", version=__version__, docs="/docs", health="/health")


@router.get(
    "/health",
    response_model=Health,
    operation_id="getHealth",
    summary="Check the service",
    responses=response_of(200, "The process responds.", examples.HEALTH),
)
async def health() -> object:
    """Check whether the process responds. The database is not used."""
    return Health(status="healthy", timestamp=now(), service="bloxserver-api")


@router.get(
    "/health/live",
    response_model=Liveness,
    operation_id="getLiveness",
    summary="Check liveness",
    responses=response_of(200, "The process responds.", examples.LIVENESS),
)
async def live() -> object:
    """Check whether the process responds, for liveness probes. The database is not used."""
    return Liveness(status="alive", timestamp=now())


@router.get(
    "/health/ready",
    response_model=Readiness,
    response_model_exclude_none=True,
    operation_id="getReadiness",
    summary="Check readiness",
    responses=response_of(200, "All checks passed.", examples.READINESS)
    | response_of(503, "A check failed. `errors` has the reasons.", examples.NOT_READY, model=Readiness),
)
async def ready(
    sessions: Sessions,
    engine: LocalEngine,
    response: Response,
    seconds: Annotated[float, Depends(check_timeout)],
) -> object:
    """Check whether the process can handle requests: the database, its schema, and the engine if one runs here."""
    checks: dict[str, str] = {}
    errors: list[str] = []

    def note(check: str, problem: str | None) -> None:
        checks[check] = "ok" if problem is None else "failed"
        if problem is not None:
            errors.append(f"{check}: {problem}")

    try:
        async with asyncio.timeout(seconds), sessions.reading() as session:
            schema = await schema_problem(session, must_be_migrated=get_settings().is_production)
    except (SQLAlchemyError, OSError):  # TimeoutError is an OSError
        note("database", "the database cannot be reached")
    else:
        note("database", None)
        note("migrations", schema)
    if engine is not None:
        note("engine", engine.problem)
    if errors:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
        return Readiness(status="unhealthy", timestamp=now(), checks=checks, errors=errors)
    return Readiness(status="ready", timestamp=now(), checks=checks)
