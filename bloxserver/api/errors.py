"""Converts exceptions to responses: RFC 9457 `application/problem+json` with additional members."""

from __future__ import annotations

import traceback
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException as StarletteHTTPException

from bloxserver.api.openai_errors import is_openai_path, openai_error
from bloxserver.errors import BloxError, Conflict, NotFound, Unavailable, Unprocessable
from bloxserver.models.transient_errors import is_transient

log = structlog.stdlib.get_logger("bloxserver.error")

MEDIA_TYPE = "application/problem+json"


def install_error_handlers(app: FastAPI) -> None:
    app.add_exception_handler(BloxError, _blox_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(StarletteHTTPException, _http_exception)


def problem(
    request: Request,
    status: int,
    code: str,
    message: str,
    details: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """A response with the body of all errors."""
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        "details": details,
        "requestId": getattr(request.state, "request_id", ""),
    }
    if is_openai_path(request.scope):
        body["error"] = openai_error(status, code, message, details)
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def error_response(request: Request, error: BloxError) -> JSONResponse:
    return problem(request, error.status, error.code, error.message, error.details, error.headers)


def unexpected_error_response(request: Request, error: Exception) -> JSONResponse:
    """The response to an exception that no handler caught: an error of the database, or a bug."""
    known = _of_database(error)
    if known is not None:
        log.warning("database error", code=known.code, error=type(error).__name__, sqlstate=_sqlstate(error))
        return error_response(request, known)
    # As text: if logging is not configured, as in third-party tests, structlog would print all local variables.
    log.error("unhandled exception", exception="".join(traceback.format_exception(error)))
    return problem(request, 500, "internal_error", "Internal server error")


async def _blox_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BloxError)  # noqa: S101
    return error_response(request, error)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    reasons: dict[str, str] = {}
    for item in error.errors():
        # A value of a repeated query parameter has no place of its own.
        place = item["loc"][:2] if item["loc"][0] == "query" else item["loc"]
        field = ".".join(_printable(part) for part in place)
        reasons.setdefault(field, _printable(item["msg"]))
    return error_response(request, Unprocessable(reasons))


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """Errors of the framework: no such route, wrong method, invalid JSON."""
    assert isinstance(error, StarletteHTTPException)  # noqa: S101
    if isinstance(error.__cause__, ValueError | RecursionError):  # raised by the JSON parser
        return error_response(request, Unprocessable({"body": "The body is not valid JSON"}))
    phrase = HTTPStatus(error.status_code).phrase  # the phrase of 413 depends on the version of Python
    code = "payload_too_large" if error.status_code == 413 else phrase.lower().replace(" ", "_")
    return problem(request, error.status_code, code, error.detail or phrase, headers=error.headers)


def _printable(part: object) -> str:
    """Text without lone surrogates, which a client can send in a member's name and which cannot be encoded."""
    return str(part).encode(errors="replace").decode()


def _sqlstate(error: BaseException) -> str:
    return str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")


def _of_database(error: Exception) -> BloxError | None:
    """The error for an exception of the database, by the class of its SQLSTATE; None for other exceptions.

    With asyncpg, the exception's type does not identify the error.
    """
    state = _sqlstate(error)
    text = str(getattr(error, "orig", "")) if isinstance(error, DBAPIError) else ""
    if state[:2] == "22" or state[:2] == "54":
        return Unprocessable({"body": "The database cannot store this value"})
    if state == "23503":
        return NotFound("Resource")
    if state[:2] == "23" or "constraint failed" in text:
        return Conflict("conflict", "The change conflicts with stored data")
    if is_transient(error):
        return Unavailable("database_unavailable", "The database cannot be reached, try again")
    return None
