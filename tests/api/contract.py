"""Ties tests to the statements of docs/api-contract.md, and reads the one error body."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Container
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import httpx
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import FlowRecord

API = "/api/v1"
UTC_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")
TITLES = {
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    422: "Unprocessable",
    500: "Internal Server Error",
    503: "Service Unavailable",
}

Test = TypeVar("Test", bound=Callable[..., Any])


def covers(*ids: str) -> Callable[[Test], Test]:
    """Says which statements of the contract a test, or a class of tests, holds to; read from the source."""
    assert ids
    return lambda test: test


def path_of(flow: FlowRecord) -> str:
    return f"{API}/flows/{flow.id}"


def assert_problem(
    response: httpx.Response, status: int, code: str, message: str, details: dict[str, Any] | None = None
) -> None:
    """The response is this error, with every member of the one error body and no other."""
    body = response.json()
    assert response.status_code == status, body
    assert response.headers["content-type"] == "application/problem+json"
    assert body.pop("title").startswith(TITLES.get(status, ""))
    assert body == {
        "type": "about:blank",
        "status": status,
        "detail": message,
        "code": code,
        "message": message,
        "details": details,
        "requestId": response.headers["x-request-id"],
    }


def assert_invalid(response: httpx.Response, *places: str) -> None:
    """The response refuses what stands at these places, each with a reason."""
    details = response.json()["details"]
    assert_problem(response, 422, "validation_error", "Request validation failed", details)
    assert set(details) == set(places)
    assert all(isinstance(reason, str) and reason for reason in details.values())


@asynccontextmanager
async def failing_with(error: Exception | None) -> AsyncIterator[AsyncSession]:
    """A session that cannot be made."""
    if error is not None:
        raise error
    yield AsyncSession()


async def eventually(client: httpx.AsyncClient, path: str, wanted: Container[str]) -> dict[str, Any]:
    """The object at `path` once its status is one of those wanted."""
    async with asyncio.timeout(20):
        while True:
            body: dict[str, Any] = (await client.get(path)).json()
            if body["status"] in wanted:
                return body
            await asyncio.sleep(0.02)


async def running_flow(client: httpx.AsyncClient) -> str:
    """The path of a new flow with the default organism, which an engine has started."""
    path = f"{API}/flows/{(await client.post(f'{API}/flows', json={'name': 'A flow'})).json()['id']}"
    await client.post(f"{path}/start")
    assert (await eventually(client, path, {"running", "error"}))["status"] == "running"
    return path
