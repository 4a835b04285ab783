"""Calls the endpoints of hot routes without FastAPI, which takes longer to solve dependencies than a statement takes.

The responses are the same. The framework handles requests if a program has overridden dependencies, and requests whose
ids in the path are not in the usual notation.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args, get_type_hints
from uuid import UUID

from fastapi import Request, Response
from fastapi.params import Depends, Path
from starlette.types import ASGIApp, Receive, Scope, Send

from bloxserver.api.dependencies import get_current_user, sign_in
from bloxserver.models import database as models_database
from bloxserver.models.database import get_db
from bloxserver.models.single_statements import Statements

Reader = Callable[[Request], Awaitable[Any]]


@dataclass(frozen=True)
class Parameters:
    """The parameters of an endpoint besides `user` and `session`."""

    ids: list[str]
    """Those that are ids in the path."""
    readers: dict[str, Reader]
    """The functions that read the others from the request."""

    def ids_in(self, path: Mapping[str, str]) -> dict[str, UUID]:
        """The ids in the path of a request. Raises `ValueError`, also for unusual notations of ids."""
        ids = {name: UUID(path[name]) for name in self.ids}
        if any(str(found) != path[name] for name, found in ids.items()):
            raise ValueError
        return ids


def lean_app(endpoint: Callable[..., Any], framework: ASGIApp) -> ASGIApp:
    """Return the app that calls the endpoint of a route without dependencies of its own.

    The result is `framework` if only the framework can call the endpoint. Otherwise the endpoint is marked with
    `reads_requester` and returns a `Response`. It has no other parameters than the user, `ReadingStatements` as
    `session`, ids in the path, and dependencies that have only the request.
    """
    parameters = _parameters_of(endpoint) if getattr(endpoint, "reads_requester", False) else None
    if parameters is None:
        return framework

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            values: dict[str, Any] = {**parameters.ids_in(scope["path_params"])}
        except ValueError:
            await framework(scope, receive, send)
            return
        if scope["app"].dependency_overrides:
            await framework(scope, receive, send)
            return
        request = Request(scope, receive)
        database = models_database.database
        user = await sign_in(request, request.headers.get("authorization"), database.request_transaction)
        for name, read in parameters.readers.items():
            values[name] = await read(request)
        response: Response = await endpoint(user=user, session=database.statements, **values)
        await response(scope, receive, send)

    return app


def _parameters_of(endpoint: Callable[..., Any]) -> Parameters | None:
    types = get_type_hints(endpoint, include_extras=True)
    if types.pop("return") is not Response:
        return None
    parameters = Parameters([], {})
    for name, annotation in types.items():
        kind, marker = get_args(annotation) if len(get_args(annotation)) == 2 else (None, None)
        if isinstance(marker, Path) and kind is UUID:
            parameters.ids.append(name)
        elif not isinstance(marker, Depends) or marker.dependency is None:
            return None
        elif _has_only_the_request(marker.dependency):
            parameters.readers[name] = marker.dependency
        elif marker.dependency is not get_current_user and (marker.dependency is not get_db or kind is not Statements):
            return None
    return parameters


def _has_only_the_request(dependency: Any) -> bool:
    parameters = inspect.signature(dependency, eval_str=True).parameters.values()
    return [parameter.annotation for parameter in parameters] == [Request]
