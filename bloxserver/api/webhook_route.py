"""The route of webhooks in the usual case, without FastAPI.

Solving the dependencies of `routes.webhooks.receive` takes several times as long as the rest of a webhook. This route
answers the same request in the same way, unless the request has `wait`, or a program has overridden `get_db`.
"""

from __future__ import annotations

from starlette.datastructures import URLPath
from starlette.requests import Request
from starlette.routing import BaseRoute, Match, NoMatchFound
from starlette.types import Receive, Scope, Send

from bloxserver.api.dependencies import call_depth, received_call, refuse_exceeded_webhook, request_admission
from bloxserver.api.paths import FOUND_PATH
from bloxserver.api.routes import webhooks
from bloxserver.api.webhook_responses import WebhookResponse, accepted_response
from bloxserver.models import database as models_database
from bloxserver.models.database import get_db
from bloxserver.services.webhook_batches import batches_of


class WebhookRoute(BaseRoute):
    """Accepts webhooks in batches, on the application's own database."""

    path = f"{webhooks.router.prefix}/{{webhook_token}}"

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        path = scope.get(FOUND_PATH)
        if path is None or path.template != self.path or scope["method"] != "POST":
            return Match.NONE, {}
        query: bytes = scope["query_string"]
        if b"wait" in query or b"%" in query or get_db in scope["app"].dependency_overrides:
            return Match.NONE, {}
        return Match.FULL, {"route": self}

    def url_path_for(self, name: str, /, **path_params: object) -> URLPath:
        raise NoMatchFound(name, path_params)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        token = scope["path"].rpartition("/")[2]
        admission = await request_admission(request)
        await refuse_exceeded_webhook(token, admission)
        depth = await call_depth(request.headers.get("bloxserver-depth", ""))
        call = await received_call(request, token, depth, admission)
        accepted = await batches_of(models_database.database).receive(call)
        wait = accepted.wait
        response = accepted_response(accepted) if wait is None else WebhookResponse(request, accepted, wait)
        await response(scope, receive, send)
