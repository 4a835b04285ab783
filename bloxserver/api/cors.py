"""Cross-origin requests of browsers."""

from __future__ import annotations

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from bloxserver.api.errors import problem


class Cors(CORSMiddleware):
    """Answers refused preflight requests with the body of all errors; Starlette's answer is a text."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope) if scope["type"] == "http" and scope["method"] == "OPTIONS" else Headers()
        if "origin" not in headers or "access-control-request-method" not in headers:
            await super().__call__(scope, receive, send)
            return
        response = self.preflight_response(headers)
        if response.status_code >= 400:
            kept = {name: value for name, value in response.headers.items() if not name.startswith("content-")}
            message = bytes(response.body).decode()
            response = problem(Request(scope), response.status_code, "cors_refused", message, headers=kept)
        await response(scope, receive, send)
