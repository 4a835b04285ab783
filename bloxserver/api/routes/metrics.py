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
    """Matches no request unless `METRICS_TOKEN` is set, so that every method gets 404."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if get_settings().metrics_token is None:
            return Match.NONE, {}
        return super().matches(scope)


router = APIRouter(tags=["metrics"], route_class=_HiddenRoute, include_in_schema=False)


@router.get("/metrics")
async def metrics(sessions: Sessions, authorization: Authorization = None) -> Response:
    """Return the metrics in Prometheus' text format. Requires `METRICS_TOKEN` as the bearer token."""
    _require_token(bearer_token(authorization))
    return Response(render_metrics(await collect_metrics(sessions)), media_type=CONTENT_TYPE)


def _require_token(token: str) -> None:
    expected = get_settings().metrics_token
    if expected is None or not secrets.compare_digest(
        token.encode(), expected.get_secret_value().encode(errors="replace")
    ):
        raise Unauthorized("invalid_token", "Invalid authentication token")
