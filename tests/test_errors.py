"""Errors of the domain, the framework and the database have one response format."""

from __future__ import annotations

import json
import re
import sqlite3
from typing import Any

import httpx
import pytest
from sqlalchemy.exc import DBAPIError, IntegrityError, InterfaceError, InvalidRequestError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from starlette.requests import Request

from bloxserver import errors
from bloxserver.api.errors import unexpected_error_response
from bloxserver.api.routes.billing import BillingDisabled
from bloxserver.billing.client import StripeUnavailable
from bloxserver.errors import BloxError
from bloxserver.services.executions import FlowNotRunning
from bloxserver.services.idempotency import KeyReused
from bloxserver.services.resumptions import AlreadyAnswered, BodyTooLarge
from bloxserver.services.secrets import SecretUnavailable
from bloxserver.services.users import AccountDeleted
from bloxserver.services.webhook_signatures import InvalidSignature
from tests.conftest import api_client

MEMBERS = {"type", "title", "status", "detail", "code", "message", "details", "requestId"}
STATUSES = {
    errors.BadRequest: 400,
    errors.Unauthorized: 401,
    errors.Forbidden: 403,
    errors.LimitReached: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.PreconditionFailed: 412,
    errors.Unprocessable: 422,
    errors.RateLimited: 429,
    errors.Unavailable: 503,
    errors.LanguageModelFailed: 503,
    FlowNotRunning: 400,
    InvalidSignature: 401,
    KeyReused: 422,
    BillingDisabled: 404,
    StripeUnavailable: 503,
    SecretUnavailable: 409,
    AccountDeleted: 401,
    AlreadyAnswered: 409,
    BodyTooLarge: 413,
}


def all_subclasses(parent: type[BloxError]) -> set[type[BloxError]]:
    children = set(parent.__subclasses__())
    return children.union(*map(all_subclasses, children))


def test_every_domain_error_has_its_status() -> None:
    ours = {error for error in all_subclasses(BloxError) if error.__module__.startswith("bloxserver.")}
    assert ours == set(STATUSES), "a new kind of error needs a line here"
    assert {error: error.status for error in ours} == STATUSES


@pytest.mark.parametrize(
    ("error", "code", "message", "headers"),
    [
        (errors.NotFound("Flow"), "flow_not_found", "Flow not found", None),
        (errors.BadRequest("c", "m"), "c", "m", None),
        (errors.Forbidden("c", "m", details={"limit": 1}), "c", "m", None),
        (errors.Conflict("c", "m"), "c", "m", None),
        (errors.Unauthorized("missing_token", "m"), "missing_token", "m", {"WWW-Authenticate": "Bearer"}),
        (errors.Unauthorized("x", "m"), "x", "m", {"WWW-Authenticate": 'Bearer error="invalid_token"'}),
        (errors.Unprocessable({"body.a": "b"}), "validation_error", "Request validation failed", None),
        (errors.Unavailable("c", "m", retry_after=9), "c", "m", {"Retry-After": "9"}),
    ],
)
def test_error_has_code_message_and_headers(
    error: BloxError, code: str, message: str, headers: dict[str, str] | None
) -> None:
    assert (error.code, error.message, str(error), error.headers) == (code, message, message, headers)


class Reported(Exception):
    """An exception of a driver; those of asyncpg have an SQLSTATE."""

    def __init__(self, sqlstate: str | None = None, text: str = "the statement and its secret value") -> None:
        super().__init__(text)
        self.sqlstate = sqlstate


def wrapped(sqlstate: str) -> DBAPIError:
    return DBAPIError("SELECT secret", {"a": "secret"}, Reported(sqlstate))


def of_sqlite(kind: type[DBAPIError], text: str) -> DBAPIError:
    return kind("SELECT secret", {}, sqlite3.OperationalError(text))


def caused_by(cause: Exception) -> Exception:
    error = InvalidRequestError("secret")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        *((wrapped(state), 422, "validation_error") for state in ("22021", "22P05", "22001", "22003", "54000")),
        *((wrapped(state), 409, "conflict") for state in ("23505", "23502", "23514", "23P01")),
        (wrapped("23503"), 404, "resource_not_found"),
        *(
            (wrapped(state), 503, "database_unavailable")
            for state in (
                "08006",
                "08001",
                "40001",
                "40P01",
                "53300",
                "53100",
                "55P03",
                "57014",
                "57P01",
                "57P03",
                "25006",
                "25P03",
            )
        ),
        *((wrapped(state), 500, "internal_error") for state in ("42P01", "42703", "0A000", "XX000", "25P02")),
        (Reported("57P01"), 503, "database_unavailable"),
        (ConnectionRefusedError("secret"), 503, "database_unavailable"),
        (DBAPIError("SELECT", {}, ConnectionRefusedError("secret")), 503, "database_unavailable"),
        (TimeoutError("secret"), 503, "database_unavailable"),
        (PoolTimeoutError("secret"), 503, "database_unavailable"),
        (caused_by(ConnectionResetError()), 503, "database_unavailable"),
        (DBAPIError("SELECT", {}, Reported(), connection_invalidated=True), 503, "database_unavailable"),
        (of_sqlite(OperationalError, "database is locked"), 503, "database_unavailable"),
        (of_sqlite(OperationalError, "unable to open database file"), 503, "database_unavailable"),
        (of_sqlite(OperationalError, "database or disk is full"), 503, "database_unavailable"),
        (of_sqlite(OperationalError, "attempt to write a readonly database"), 503, "database_unavailable"),
        (of_sqlite(IntegrityError, "UNIQUE constraint failed: users.clerk_id"), 409, "conflict"),
        (of_sqlite(IntegrityError, "FOREIGN KEY constraint failed"), 409, "conflict"),
        (of_sqlite(OperationalError, "no such table: secret"), 500, "internal_error"),
        (InterfaceError("SELECT", {}, Reported()), 500, "internal_error"),
        (caused_by(ValueError()), 500, "internal_error"),
        (RuntimeError("secret"), 500, "internal_error"),
        (ExceptionGroup("secret", [ValueError("secret")]), 500, "internal_error"),
        (RecursionError("secret"), 500, "internal_error"),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | int) else re.sub(r"\W+", "-", repr(value))[:60],
)
def test_database_error_maps_to_a_status_by_its_sqlstate(error: Exception, status: int, code: str) -> None:
    request = Request({"type": "http", "headers": [], "method": "GET", "path": "/", "state": {"request_id": "r"}})
    response = unexpected_error_response(request, error)
    body: dict[str, Any] = json.loads(bytes(response.body))
    assert (response.status_code, body["status"], body["code"], body["requestId"]) == (status, status, code, "r")
    assert set(body) == MEMBERS
    assert response.media_type == "application/problem+json"
    assert ("Retry-After" in response.headers) == (status == 503)
    assert b"secret" not in bytes(response.body)


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/api/v1/nothing", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("PUT", "/api/v1/flows", 405, "method_not_allowed"),
    ],
)
async def test_framework_error_has_the_same_format(method: str, path: str, status: int, code: str) -> None:
    async with api_client() as client:
        response = await client.request(method, path, headers={"Origin": "http://localhost:3000"})
    body = response.json()
    assert (response.status_code, body["status"], body["code"]) == (status, status, code)
    assert set(body) == MEMBERS
    assert response.headers["Content-Type"] == "application/problem+json"
    assert body["requestId"] == response.headers["X-Request-Id"]
    assert response.headers["Access-Control-Allow-Origin"] == "http://localhost:3000"
    assert (status == 405) == ("Allow" in response.headers)


async def test_validation_error_lists_every_invalid_field(client: httpx.AsyncClient) -> None:
    body = {"name": "", "description": "d" * 501}
    response = await client.post("/api/v1/flows", json=body)
    assert response.status_code == 422
    problem = response.json()
    assert problem["code"] == "validation_error"
    assert problem["detail"] == problem["message"] == "Request validation failed"
    assert problem["details"] == {
        "body.name": "String should have at least 1 character",
        "body.description": "String should have at most 500 characters",
    }
