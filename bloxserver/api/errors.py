"""The only place where an exception becomes a response: RFC 9457 `application/problem+json` with our members."""

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
    """The one error body."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        "details": details,
        "requestId": getattr(request.state, "request_id", ""),
    }
    return JSONResponse(body, status, headers=dict(headers or {}), media_type=MEDIA_TYPE)


def unexpected_error_response(request: Request, error: Exception) -> JSONResponse:
    """The answer to an exception that no one turned into a `BloxError`: a database's, or a bug's."""
    known = _of_database(error)
    if known is not None:
        log.warning("database error", code=known.code, error=type(error).__name__, sqlstate=_sqlstate(error))
        return _respond(request, known)
    # As text: where logging is not configured, in other people's tests, structlog would print every variable.
    log.error("unhandled exception", exception="".join(traceback.format_exception(error)))
    return problem(request, 500, "internal_error", "Internal server error")


async def _blox_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, BloxError)  # noqa: S101
    return _respond(request, error)


def _respond(request: Request, error: BloxError) -> JSONResponse:
    return problem(request, error.status, error.code, error.message, error.details, error.headers)


async def _validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    reasons: dict[str, str] = {}
    for item in error.errors():
        place = ".".join(_printable(part) for part in item["loc"])
        reasons.setdefault(place, _printable(item["msg"]))
    return _respond(request, Unprocessable(reasons))


async def _http_exception(request: Request, error: Exception) -> JSONResponse:
    """What the framework raises itself: no such route, wrong method, a body that is no JSON."""
    assert isinstance(error, StarletteHTTPException)  # noqa: S101
    if isinstance(error.__cause__, ValueError | RecursionError):  # of the JSON parser
        return _respond(request, Unprocessable({"body": "Not readable as JSON"}))
    phrase = HTTPStatus(error.status_code).phrase  # that of 413 differs between versions of Python
    code = "payload_too_large" if error.status_code == 413 else phrase.lower().replace(" ", "_")
    return problem(request, error.status_code, code, error.detail or phrase, headers=error.headers)


def _printable(part: object) -> str:
    """Text that any JSON encoder takes, whatever a client sent as a member's name."""
    return str(part).encode(errors="replace").decode()


def _sqlstate(error: BaseException) -> str:
    return str(getattr(getattr(error, "orig", error), "sqlstate", None) or "")


def _of_database(error: Exception) -> BloxError | None:
    """A database's error by its SQLSTATE class (with asyncpg the exception's class does not tell), or None."""
    state = _sqlstate(error)
    text = str(getattr(error, "orig", "")) if isinstance(error, DBAPIError) else ""
    if state[:2] == "22" or state[:2] == "54":
        return Unprocessable({"body": "The database cannot store this value"})
    if state == "23503":
        return NotFound("Resource")
    if state[:2] == "23" or "constraint failed" in text:
        return Conflict("conflict", "The change conflicts with what is stored")
    if is_transient(error):
        return Unavailable("database_unavailable", "The database cannot be reached, try again")
    return None
