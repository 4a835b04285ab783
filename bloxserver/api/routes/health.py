from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Response
from sqlalchemy.exc import SQLAlchemyError

from bloxserver import __version__
from bloxserver.api.dependencies import EngineOfProcess, Sessions
from bloxserver.api.schemas import Health, Liveness, Readiness, ServiceInfo
from bloxserver.clock import now
from bloxserver.queries.health import schema_problem
from bloxserver.settings import get_settings

ANSWER_SECONDS = 3
"""How long the database may take: who probes waits some 5 seconds, and a statement may take far longer. To let go of
the connection takes up to 2 more.
"""

router = APIRouter(tags=["health"])


def answer_seconds() -> float:
    return ANSWER_SECONDS


@router.get("/", response_model=ServiceInfo, operation_id="getServiceInfo")
async def root() -> object:
    """What this service is."""
    return ServiceInfo(name="BloxServer API", version=__version__, docs="/docs", health="/health")


@router.get("/health", response_model=Health, operation_id="getHealth")
async def health() -> object:
    """Whether the process answers."""
    return Health(status="healthy", timestamp=now(), service="bloxserver-api")


@router.get("/health/live", response_model=Liveness, operation_id="getLiveness")
async def live() -> object:
    """Whether the process answers; touches no database."""
    return Liveness(status="alive", timestamp=now())


@router.get(
    "/health/ready",
    response_model=Readiness,
    response_model_exclude_none=True,
    operation_id="getReadiness",
    responses={503: {"model": Readiness, "description": "A check failed; `errors` says which."}},
)
async def ready(
    sessions: Sessions,
    engine: EngineOfProcess,
    response: Response,
    seconds: Annotated[float, Depends(answer_seconds)],
) -> object:
    """Whether there is work to be sent here: database and schema can be used, and the engine, where there is one."""
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
