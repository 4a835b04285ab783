"""What the OpenAPI document says beyond what FastAPI derives: errors, sign-in, bodies of any kind."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from bloxserver.api.schemas import ApiError, AwaitedExecution

AUTHENTICATED_PREFIX = "/api/v1"
DESCRIPTION = (
    "Create flows, start them, attach triggers and follow their executions. JSON in camelCase; every error is "
    "`application/problem+json` with a stable `code`."
)
EXAMPLES = {
    400: ("flow_not_running", "Flow must be running to execute (current: stopped)"),
    401: ("missing_token", "Missing authentication token"),
    403: ("run_limit_reached", "Run limit reached (1000). Upgrade to run more."),
    404: ("flow_not_found", "Flow not found"),
    409: ("trigger_disabled", "Webhook is disabled"),
    408: ("request_timeout", "The request body did not arrive in time"),
    413: ("payload_too_large", "Request body is larger than 1048576 bytes"),
    422: ("validation_error", "Request validation failed"),
    503: ("database_unavailable", "The database cannot be reached, try again"),
}
MEANINGS = {
    400: "Not possible in the present state.",
    401: "No valid token.",
    403: "Beyond what the plan allows.",
    404: "No such thing, or somebody else's.",
    409: "Switched off, or there already.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    422: "The request is malformed; `details` maps each place to its reason.",
    503: "Something that the service depends on does not answer; try again after `Retry-After` seconds.",
}
STILL_RUNNING: dict[int | str, dict[str, Any]] = {
    202: {"model": AwaitedExecution, "description": "The execution has not ended within `wait` seconds."}
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The error responses of a route, for its `responses`."""
    return {status: _error(status) for status in statuses}


def errors_by_name(*statuses: int) -> dict[str, dict[str, Any]]:
    """The same as they stand in the document."""
    return {str(status): _error(status) for status in statuses}


def any_body(description: str) -> dict[str, Any]:
    """An optional request body of any content type, for a route's `openapi_extra`."""
    content = {"*/*": {"schema": {}}, "application/json": {"schema": {}, "example": {"name": "Ada"}}}
    return {"requestBody": {"required": False, "description": description, "content": content}}


def _error(status: int) -> dict[str, Any]:
    code, message = EXAMPLES[status]
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
    content = {"application/problem+json": {"schema": schema, "example": example}}
    return {"description": MEANINGS[status], "content": content}


def install_openapi(app: FastAPI) -> None:
    """Make `app.openapi` add what every route shares."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, description=DESCRIPTION, routes=app.routes, tags=app.openapi_tags
            )
            app.openapi_schema = _completed(document)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any]) -> dict[str, Any]:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    schemas["ApiError"] = ApiError.model_json_schema(mode="serialization")
    components["securitySchemes"] = {
        "clerk": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT", "description": "A Clerk session token."}
    }
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            if "422" in responses:
                responses |= errors_by_name(422)
            if "requestBody" in operation:
                responses |= errors_by_name(408, 413)
            if not path.startswith("/health") and path != "/":
                responses |= errors_by_name(503)
            if path.startswith(AUTHENTICATED_PREFIX):
                operation["security"] = [{"clerk": []}]
                responses |= errors_by_name(401)
            operation["responses"] = dict(sorted(responses.items()))
    return document
