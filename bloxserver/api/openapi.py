"""The OpenAPI document: titles, examples, error responses, authentication and Server-Sent Events."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.routing import APIRoute, iter_route_contexts
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from bloxserver.api.event_examples import EVENTS
from bloxserver.api.examples import STILL_RUNNING
from bloxserver.api.openai_errors import OPENAI_PREFIX
from bloxserver.api.request_schemas import complete_request_schemas
from bloxserver.api.schemas import AgentTextEvent, ApiError, AwaitedExecution, ExecutionEvent, StepEvent
from bloxserver.api.scopes import required_scope

Responses = dict[int | str, dict[str, Any]]

AUTHENTICATED_PREFIX = "/api/v1"
DESCRIPTION = (
    "Create flows, start them, attach triggers and monitor their executions. Requests and responses are JSON in "
    "camelCase. Every error response is `application/problem+json` with a stable `code`."
)
TAGS = [
    {"name": "users", "description": "The signed-in user and their usage."},
    {"name": "flows", "description": "Flows and the versions of their definitions."},
    {"name": "triggers", "description": "Webhooks and schedules that start executions of a flow."},
    {"name": "executions", "description": "Runs of a flow: start, monitor, cancel and retry them."},
    {"name": "api keys", "description": "Secrets with which programs call the API as a user."},
    {"name": "billing", "description": "The user's subscription at Stripe, if the server has billing."},
    {"name": "audit", "description": "Who changed what in the account."},
    {
        "name": "language models",
        "description": "The user's calls of language models and own keys for providers.",
    },
    {"name": "secrets", "description": "Encrypted, write-only values for the config of listeners."},
    {"name": "organisms", "description": "Validation of definitions, the available blocks, and canvases."},
    {"name": "webhooks", "description": "Public endpoints that start executions. The URL contains a secret token."},
    {"name": "language models", "description": "Language models, in the form of OpenAI's API."},
    {"name": "health", "description": "Public endpoints for probes."},
]
EXAMPLES = {
    400: ("flow_not_running", "Flow must be running to execute (current: stopped)"),
    401: ("missing_token", "Missing authentication token"),
    403: ("run_limit_reached", "Run limit reached (1000). Upgrade to run more."),
    404: ("flow_not_found", "Flow not found"),
    408: ("request_timeout", "The request body did not arrive in time"),
    413: ("payload_too_large", "Request body is larger than 1048576 bytes"),
    422: ("validation_error", "Request validation failed"),
    429: (
        "rate_limited",
        "The limit of 600 requests per minute is reached (used: 601). Try again in 31 seconds. Send fewer requests, or "
        "ask the operator to raise the limit of your plan.",
    ),
    503: ("database_unavailable", "The database cannot be reached, try again"),
}
DESCRIPTIONS = {
    400: "The flow is not running.",
    401: "The bearer token is missing, invalid or expired.",
    403: "The user has reached the limit of runs or of stored bytes of their plan.",
    404: "Not found.",
    408: "The request body did not arrive in time.",
    413: "The request body is too large.",
    422: "The request is invalid. `details` maps each invalid field to the reason.",
    429: "A rate limit of the client's address, the user or the webhook is reached. `RateLimit` and `RateLimit-Policy` "
    "describe the limits of the request, and `Retry-After` has the seconds to wait.",
    503: "The database or another dependency is unavailable. `Retry-After` has the seconds to wait before a retry.",
}
API_KEY_SCHEME = "An API key. Each operation names the scope that the key needs."
EVENT_SCHEMAS = (ExecutionEvent, StepEvent, AgentTextEvent)


def response_of(
    status: int,
    description: str,
    example: object = None,
    *,
    model: type[BaseModel] | None = None,
    headers: Mapping[str, str] | None = None,
    **examples: object,
) -> Responses:
    """A response of a route, for its `responses`.

    Its JSON body has one `example` or several named `examples`; without both, the response has no body. `model` is
    the type of the body if it is not the route's `response_model`. `headers` are numbers, with their descriptions.
    """
    response: dict[str, Any] = {"description": description}
    if headers is not None:
        number = {"schema": {"type": "integer"}}
        response["headers"] = {name: {"description": text, **number} for name, text in headers.items()}
    if model is not None:
        response["model"] = model
    if example is not None:
        response["content"] = {"application/json": {"example": _encoded(example)}}
    elif examples:
        named = {name: {"value": _encoded(value)} for name, value in examples.items()}
        response["content"] = {"application/json": {"examples": named}}
    return {status: response}


def still_running() -> Responses:
    """The 202 response of a route with `?wait`."""
    description = "The execution is still running after `wait` seconds."
    return response_of(202, description, STILL_RUNNING, model=AwaitedExecution)


def event_stream(description: str) -> Responses:
    """The Server-Sent Events of a route.

    `itemSchema` describes a single event. It is a keyword of OpenAPI 3.2, which FastAPI writes into 3.1 documents too.
    """
    references = [{"$ref": f"#/components/schemas/{model.__name__}"} for model in EVENT_SCHEMAS]
    content = {"schema": {"type": "string"}, "itemSchema": {"oneOf": references}, "example": EVENTS}
    return {200: {"description": description, "content": {"text/event-stream": content}}}


def errors(*statuses: int) -> Responses:
    """Error responses of a route, for its `responses`, with the default description and example of each status."""
    return {status: _error(status, DESCRIPTIONS[status], *EXAMPLES[status]) for status in statuses}


def error_of(status: int, description: str, code: str, message: str) -> Responses:
    """An error response of a route, for its `responses`, with its own description and example."""
    return {status: _error(status, description, code, message)}


def invalid_cursor() -> Responses:
    """The error response of a list with cursors."""
    return error_of(
        400,
        "The cursor is malformed, or belongs to another list or to other filters.",
        "invalid_cursor",
        "The cursor is not one of this list with these filters",
    )


def storage_limit_reached() -> Responses:
    """The error response of a route that stores a version."""
    return error_of(
        403,
        "The definition changes, and the user has reached the limit of stored bytes of their plan.",
        "stored_bytes_limit_reached",
        "The limit of 1073741824 stored bytes is reached (in use: 1073741830). Delete flows that are no longer needed,"
        " wait until old executions expire, or upgrade.",
    )


def any_body(description: str) -> dict[str, Any]:
    """An optional request body of any content type, for a route's `openapi_extra`."""
    content = {"*/*": {"schema": {}}, "application/json": {"schema": {}, "example": {"number": 17}}}
    return {"requestBody": {"required": False, "description": description, "content": content}}


def _error(status: int, description: str, code: str, message: str) -> dict[str, Any]:
    example = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        "details": {"body.name": "String should have at least 1 character"} if status == 422 else None,
        "requestId": "5f0c6f6e1f5c4c4b8d0e0a5b2f1f7a3e",
    }
    schema = {"$ref": "#/components/schemas/ApiError"}
    content = {"application/problem+json": {"schema": schema, "example": _encoded(example)}}
    return {"description": description, "content": content}


def _encoded(example: object) -> str:
    """The example as JSON text, because FastAPI removes nulls. `_decode_examples` replaces it by the value."""
    return json.dumps(example)


def _decode_examples(response: dict[str, Any]) -> None:
    for media_type, content in response.get("content", {}).items():
        if not media_type.endswith("json"):
            continue
        if "example" in content:
            content["example"] = json.loads(content["example"])
        for example in content.get("examples", {}).values():
            example["value"] = json.loads(example["value"])


def _errors_by_name(*statuses: int) -> dict[str, dict[str, Any]]:
    """The responses of `errors`, with text as keys, as in the generated document."""
    return {str(status): response for status, response in errors(*statuses).items()}


def install_openapi(app: FastAPI) -> None:
    """Replace `app.openapi` with a function that adds what all routes share."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=TAGS
            )
            app.openapi_schema = _completed(document, _scopes(app))
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _scopes(app: FastAPI) -> dict[str, str]:
    """The scope that an API key needs for each operation, by the operation's id."""
    routes = [context.original_route for context in iter_route_contexts(app.router.routes)]
    return {
        route.operation_id: required_scope(route.endpoint, method)
        for route in routes
        if isinstance(route, APIRoute) and route.operation_id
        for method in route.methods or ()
    }


def _completed(document: dict[str, Any], scopes: Mapping[str, str]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["ApiError"] = ApiError.model_json_schema(mode="serialization")
    schemas |= _event_schemas()
    components["securitySchemes"] = {
        "clerk": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A token of the issuer."},
        "apiKey": {"type": "http", "scheme": "bearer", "bearerFormat": "blx_live_…", "description": API_KEY_SCHEME},
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            if "422" in responses:
                responses |= _errors_by_name(422)
            if "requestBody" in operation:
                responses |= _errors_by_name(408, 413)
            if not path.startswith("/health"):
                responses |= _errors_by_name(429)
            if not path.startswith("/health") and path != "/":
                responses |= _errors_by_name(503)
            if path.startswith((f"{AUTHENTICATED_PREFIX}/", f"{OPENAI_PREFIX}/")):
                scope = scopes[operation["operationId"]]
                operation["security"] = [{"clerk": []}, {"apiKey": [scope]}]
                responses |= _errors_by_name(401)
                responses.setdefault("403", _missing_scope(scope))
            operation["responses"] = dict(sorted(responses.items()))
            for response in responses.values():
                _decode_examples(response)
    complete_request_schemas(document)
    return document


def _missing_scope(scope: str) -> dict[str, Any]:
    message = f"The API key does not have the scope `{scope}`"
    return _error(403, "The API key does not have the scope of the operation.", "missing_scope", message)


def _event_schemas() -> dict[str, Any]:
    """The schemas of the events, in validation mode, in which `data` is a string that contains JSON."""
    _, definitions = models_json_schema(
        [(model, "validation") for model in EVENT_SCHEMAS], ref_template="#/components/schemas/{model}"
    )
    schemas: dict[str, Any] = definitions["$defs"]
    return schemas
