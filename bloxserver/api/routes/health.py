from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError

from bloxserver import __version__
from bloxserver.api.dependencies import DbSession, EngineOfProcess
from bloxserver.api.models.types import now
from bloxserver.api.schemas import Health, Liveness, Readiness, ServiceInfo
from bloxserver.queries.health import UNREACHABLE, database_problem, schema_problem
from bloxserver.settings import get_settings


class _HealthRoute(APIRoute):
    """Answers with the body of readiness also where not even a session could be made."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handler(request)
            except (SQLAlchemyError, OSError):
                errors = [f"database: {UNREACHABLE}"]
                body = Readiness(status="unhealthy", timestamp=now(), checks={"database": "failed"}, errors=errors)
                return JSONResponse(body.model_dump(mode="json"), 503, headers={"Retry-After": "5"})

        return answer


router = APIRouter(tags=["health"], route_class=_HealthRoute)


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
async def ready(session: DbSession, engine: EngineOfProcess, response: Response) -> object:
    """Whether there is work to be sent here: database and schema can be used, and the engine, where there is one."""
    checks: dict[str, str] = {}
    errors: list[str] = []

    def note(check: str, problem: str | None) -> None:
        checks[check] = "ok" if problem is None else "failed"
        if problem is not None:
            errors.append(f"{check}: {problem}")

    unreachable = await database_problem(session)
    note("database", unreachable)
    if unreachable is None:
        note("migrations", await schema_problem(session, must_be_migrated=get_settings().is_production))
    if engine is not None:
        note("engine", engine.problem)
    if errors:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
        return Readiness(status="unhealthy", timestamp=now(), checks=checks, errors=errors)
    return Readiness(status="ready", timestamp=now(), checks=checks)
