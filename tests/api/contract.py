"""Links tests to the statements of docs/api-contract.md, and checks error bodies."""

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
    """Marks the statements of the contract that a test or a class of tests covers; read from the source."""
    assert ids
    return lambda test: test


def path_of(flow: FlowRecord) -> str:
    return f"{API}/flows/{flow.id}"


def assert_problem(
    response: httpx.Response, status: int, code: str, message: str, details: dict[str, Any] | None = None
) -> None:
    """The response is this error, with exactly the members of the error body.

    Those of the OpenAI-compatible routes have the member `error` too.
    """
    body = response.json()
    if response.request.url.path.startswith("/v1/"):
        assert body.pop("error")["code"] == code
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


def assert_invalid(response: httpx.Response, *fields: str) -> None:
    """The response is a validation error with a reason for exactly these fields."""
    details = response.json()["details"]
    assert_problem(response, 422, "validation_error", "Request validation failed", details)
    assert set(details) == set(fields)
    assert all(isinstance(reason, str) and reason for reason in details.values())


@asynccontextmanager
async def failing_with(error: Exception | None) -> AsyncIterator[AsyncSession]:
    """A session that raises `error` when it is opened."""
    if error is not None:
        raise error
    yield AsyncSession()


async def eventually(client: httpx.AsyncClient, path: str, statuses: Container[str]) -> dict[str, Any]:
    """The object at `path` once its status is one of `statuses`."""
    async with asyncio.timeout(20):
        while True:
            body: dict[str, Any] = (await client.get(path)).json()
            if body["status"] in statuses:
                return body
            await asyncio.sleep(0.02)


async def running_flow(client: httpx.AsyncClient) -> str:
    """The path of a new flow with the default organism that an engine has started."""
    path = f"{API}/flows/{(await client.post(f'{API}/flows', json={'name': 'A flow'})).json()['id']}"
    await client.post(f"{path}/start")
    assert (await eventually(client, path, {"running", "error"}))["status"] == "running"
    return path
