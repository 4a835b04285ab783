from __future__ import annotations

import secrets

from fastapi import APIRouter, Response
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope

from bloxserver.api.dependencies import Authorization, Sessions, bearer_token
from bloxserver.api.metrics_collector import collect_metrics
from bloxserver.errors import Unauthorized
from bloxserver.observability.metrics import CONTENT_TYPE, render_metrics
from bloxserver.settings import get_settings


class _HiddenRoute(APIRoute):
    """Not there, whatever the method, unless there is a token for it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if get_settings().metrics_token is None:
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(tags=["metrics"], route_class=_HiddenRoute, include_in_schema=False)


@router.get("/metrics")
async def metrics(sessions: Sessions, authorization: Authorization = None) -> Response:
    """What Prometheus reads; with `METRICS_TOKEN` as bearer token."""
    _require_token(bearer_token(authorization))
    return Response(render_metrics(await collect_metrics(sessions)), media_type=CONTENT_TYPE)


def _require_token(given: str) -> None:
    wanted = get_settings().metrics_token
    if wanted is None or not secrets.compare_digest(given.encode(), wanted.get_secret_value().encode(errors="replace")):
        raise Unauthorized("invalid_token", "Invalid authentication token")
