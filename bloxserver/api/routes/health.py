from __future__ import annotations

from fastapi import APIRouter, Response

from bloxserver import __version__
from bloxserver.api.dependencies import DbSession
from bloxserver.api.models.types import now
from bloxserver.api.schemas import Health, Liveness, Readiness, ServiceInfo
from bloxserver.queries.health import database_problem, schema_problem
from bloxserver.settings import get_settings

router = APIRouter(tags=["health"])


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
async def ready(session: DbSession, response: Response) -> object:
    """Whether requests can be served: the database answers and its schema is known."""
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
    if errors:
        response.status_code = 503
        response.headers["Retry-After"] = "5"
        return Readiness(status="unhealthy", timestamp=now(), checks=checks, errors=errors)
    return Readiness(status="ready", timestamp=now(), checks=checks)
