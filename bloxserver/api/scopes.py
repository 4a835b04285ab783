"""The scope that an API key needs for an operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar
from uuid import UUID

from fastapi import Request

from bloxserver.errors import Forbidden, NotFound
from bloxserver.models.enums import Scope
from bloxserver.queries.api_keys import KeyAccess

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def requires_scope(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Set the scope of an endpoint. Without it, `GET` needs `read`, and every other method `write`."""

    def mark(endpoint: Endpoint) -> Endpoint:
        endpoint.required_scope = scope  # type: ignore[attr-defined]
        return endpoint

    return mark


def for_all_flows(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint that keys which are restricted to flows may not call."""
    endpoint.for_all_flows = True  # type: ignore[attr-defined]
    return endpoint


def required_scope(endpoint: object, method: str) -> Scope:
    """Return the scope that an operation needs."""
    default = Scope.READ if method in {"GET", "HEAD"} else Scope.WRITE
    scope: Scope = getattr(endpoint, "required_scope", default)
    return scope


def check_access(request: Request, access: KeyAccess) -> None:
    """Raise `Forbidden` if the key has not the scope of the request, and `NotFound` if it does not reach the flow."""
    endpoint = request.scope.get("endpoint")
    scope = required_scope(endpoint, request.method)
    if scope not in access.scopes:
        raise Forbidden(
            "missing_scope", f"The API key does not have the scope `{scope}`", details={"scope": scope.value}
        )
    if access.flow_ids is None:
        return
    if getattr(endpoint, "for_all_flows", False):
        raise Forbidden("flow_restricted", "The API key is restricted to flows")
    flow_id = request.path_params.get("flow_id")
    if flow_id is not None and not _reaches(access, str(flow_id)):
        raise NotFound("Flow")


def _reaches(access: KeyAccess, flow_id: str) -> bool:
    try:
        return access.reaches(UUID(flow_id))
    except ValueError:
        return True  # the route rejects it
