"""ASGI middleware that knows the methods of each path: 405, `Allow`, HEAD, OPTIONS, and slashes at the end."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple
from urllib.parse import quote

from fastapi import APIRouter
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, NoMatchFound, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloxserver.api.errors import problem
from bloxserver.api.lean_routes import lean_app

PATH_CHARACTERS = "!$&'()*+,;=:@-._~"
"""Characters that need no percent-encoding in a segment of a path (RFC 3986)."""

FOUND_PATH = "bloxserver.path"
"""The member of the scope with the `Path` of the request, for the router."""


class Path(NamedTuple):
    """A path template with the methods of all its routes."""

    template: str
    pattern: re.Pattern[str]
    route: APIRoute
    """One of the routes, for the log and the metrics."""
    methods: frozenset[str]

    @property
    def allow(self) -> str:
        return ", ".join(sorted(self.methods | {"OPTIONS"}))


class PathTable:
    """The paths of some routers. Routes that match only sometimes are not included: the framework handles them."""

    def __init__(self) -> None:
        self._paths: dict[int, list[Path]] = {}
        """By the number of slashes: a parameter matches no slash."""

    def add(self, routers: Iterable[APIRouter], prefix: str = "") -> None:
        """Add the routes of the routers, whose paths begin with the prefix."""
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        templates: dict[str, list[APIRoute]] = {}
        for route in routes:
            if type(route).matches is APIRoute.matches:
                templates.setdefault(prefix + route.path, []).append(route)
        for template, found in templates.items():
            methods = frozenset(method for route in found for method in route.methods or ())
            head = {"HEAD"} if "GET" in methods else set()
            similar = self._paths.setdefault(template.count("/"), [])
            similar.append(Path(template, compile_path(template)[0], found[0], methods | head))
            # `…/executions/run` is not an execution: of several templates, that with the fewest parameters is meant.
            similar.sort(key=lambda path: path.pattern.groups)

    def find(self, path: str) -> Path | None:
        return next((one for one in self._paths.get(path.count("/"), ()) if one.pattern.match(path)), None)


def _route_path(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


class PathMethods:
    """Responds to methods that a path does not have with 405 and a complete `Allow`, before anything is validated.

    OPTIONS is answered with `Allow`, HEAD like GET without the body. A path with a slash too many is redirected by a
    relative reference, because an absolute one would contain the `Host` that the client sent.
    """

    def __init__(self, app: ASGIApp, table: PathTable) -> None:
        self.app = app
        self.table = table

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        route_path = _route_path(scope)
        path, method = self.table.find(route_path), scope["method"]
        scope[FOUND_PATH] = path
        if path is None:
            await (self._redirect(route_path, scope) or self.app)(scope, receive, send)
        elif method == "OPTIONS":
            scope["route"] = path.route
            await Response(status_code=204, headers={"Allow": path.allow})(scope, receive, send)
        elif method not in path.methods:
            scope["route"] = path.route
            headers = {"Allow": path.allow}
            response = problem(Request(scope), 405, "method_not_allowed", "Method Not Allowed", headers=headers)
            await response(scope, receive, send)
        elif method == "HEAD":
            await self._answer_head(path, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _redirect(self, route_path: str, scope: Scope) -> Response | None:
        shorter = route_path[:-1]
        if not route_path.endswith("/") or self.table.find(shorter) is None:
            return None
        query = scope["query_string"].decode("latin-1")
        location = f"../{quote(shorter.rpartition('/')[2], safe=PATH_CHARACTERS)}{query and '?'}{query}"
        return Response(status_code=307, headers={"Location": location})

    async def _answer_head(self, path: Path, scope: Scope, receive: Receive, send: Send) -> None:
        """Call the app with a copy of the scope: the server drops the body because of the method in its own."""

        async def send_head(message: Message) -> None:
            if message.get("more_body"):
                raise _HeadComplete  # the rest of a stream is not needed
            await send(message)

        scope["route"] = path.route
        try:
            await self.app({**scope, "method": "GET"}, receive, send_head)
        except _HeadComplete:
            await send({"type": "http.response.body", "body": b""})


class IndexedRoute(NamedTuple):
    route: APIRoute
    app: ASGIApp


class RouteIndex(BaseRoute):
    """The first route of an application: it calls the route of the path that `PathMethods` has found.

    The framework tries all routes in turn, which takes longer than all middleware together. Paths that are not in the
    table, such as those of routes that another program has added, are left to it.
    """

    def __init__(self, router: APIRouter) -> None:
        self._router = router
        self._routes: dict[tuple[str, str], IndexedRoute] = {}

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path: Path | None = scope.get(FOUND_PATH)
        if path is None or (route := self._find(path.template, scope["method"])) is None:
            return Match.NONE, {}
        found = path.pattern.match(_route_path(scope))
        parameters = {} if found is None else found.groupdict()
        return Match.FULL, {"route": route.route, "endpoint": route.route.endpoint, "path_params": parameters}

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._find(scope[FOUND_PATH].template, scope["method"])
        await route.app(scope, receive, send)  # type: ignore[union-attr]

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, path_params)

    def _find(self, template: str, method: str) -> IndexedRoute | None:
        if not self._routes:  # not when the application is created: handlers of all routes are made
            found: dict[tuple[str, str], IndexedRoute] = {}
            for context in iter_route_contexts(self._router.routes):
                route = context.original_route
                if isinstance(route, APIRoute):
                    app = context.app if context.dependencies else lean_app(route.endpoint, context.app)
                    for each in context.methods or ():
                        found.setdefault((str(context.path), each), IndexedRoute(route, app))
            self._routes = found
        return self._routes.get((template, method))


class _HeadComplete(Exception):
    """The head of the response is sent."""
