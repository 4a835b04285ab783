"""Methods of paths: 405 with a complete `Allow`, HEAD, OPTIONS, and redirects that contain no host."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import httpx
import pytest
from fastapi import APIRouter
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.api.main import app
from bloxserver.api.paths import PathTable
from bloxserver.api.worker_server import create_worker_app
from bloxserver.models.tables import UserRecord
from tests.api.contract import API, assert_problem, covers
from tests.conftest import api_client
from tests.factories import create_execution, create_flow
from tests.server import connection, head, run_server

FLOW = f"{API}/flows/{UUID(int=0)}"
METHODS = {"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"}
PATHS = {
    "/": "GET, HEAD, OPTIONS",
    "/health": "GET, HEAD, OPTIONS",
    "/webhooks/token": "OPTIONS, POST",
    "/webhooks/token/test": "GET, HEAD, OPTIONS",
    f"{API}/flows": "GET, HEAD, OPTIONS, POST",
    FLOW: "DELETE, GET, HEAD, OPTIONS, PATCH",
    f"{FLOW}/start": "OPTIONS, POST",
    f"{FLOW}/executions": "GET, HEAD, OPTIONS",
    f"{FLOW}/executions/run": "OPTIONS, POST",
    f"{FLOW}/executions/stats": "GET, HEAD, OPTIONS",
    f"{FLOW}/executions/not-an-id": "GET, HEAD, OPTIONS",
    f"{FLOW}/executions/run/cancel": "OPTIONS, POST",
    f"{FLOW}/triggers/{UUID(int=1)}": "DELETE, GET, HEAD, OPTIONS, PATCH",
    f"{API}/secrets/NAME": "DELETE, OPTIONS, PUT",
}


@pytest.fixture
async def plain_client() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the API for requests that use no database."""
    async with api_client() as client:
        yield client


@covers("methods.allow")
@pytest.mark.parametrize(("path", "allow"), PATHS.items())
async def test_allow_names_all_methods_of_the_path(plain_client: httpx.AsyncClient, path: str, allow: str) -> None:
    for method in sorted({*METHODS, "TRACE", "BREW"} - {*allow.split(", ")}):
        answer = await plain_client.request(method, path, content=b"{", headers={"Content-Type": "application/json"})
        if method == "HEAD":
            assert answer.status_code == 405
        else:
            assert_problem(answer, 405, "method_not_allowed", "Method Not Allowed")
        assert answer.headers["Allow"] == allow
    options = await plain_client.options(path)
    assert (options.status_code, options.headers["Allow"], options.content) == (204, allow, b"")


async def test_every_documented_method_is_allowed(plain_client: httpx.AsyncClient) -> None:
    for template, item in app.openapi()["paths"].items():
        path = template.replace("{number}", "1").replace("{name}", "N").replace("{webhook_token}", "t")
        for name in ("flow_id", "trigger_id", "execution_id"):
            path = path.replace(f"{{{name}}}", str(UUID(int=0)))
        allow = (await plain_client.options(path)).headers["Allow"].split(", ")
        assert {*allow} - {"HEAD", "OPTIONS"} == {method.upper() for method in item}


async def test_unknown_path_is_not_found_with_every_method(plain_client: httpx.AsyncClient) -> None:
    for path in ("/nothing", f"{API}/nothing", f"{API}/flows/a/b/c/d", "//health", "/health//"):
        for method in METHODS - {"HEAD"}:
            answer = await plain_client.request(method, httpx.URL(scheme="http", host="test", raw_path=path.encode()))
            assert_problem(answer, 404, "not_found", "Not Found")
            assert "Allow" not in answer.headers


def test_path_with_the_fewest_parameters_is_meant_whatever_the_order() -> None:
    router = APIRouter()
    router.add_api_route("/things/{name}", lambda: None, methods=["GET"])
    router.add_api_route("/things/new", lambda: None, methods=["POST"])
    table = PathTable()
    table.add([router], "/api")
    found = [table.find(path) for path in ("/api/things/new", "/api/things/old", "/api/things", "/things/new")]
    assert [path and path.allow for path in found] == ["OPTIONS, POST", "GET, HEAD, OPTIONS", None, None]


@covers("methods.head")
async def test_head_has_the_headers_of_get_and_no_body(
    client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
) -> None:
    flow = await create_flow(session, dev_user)
    for path in ("/health/live", f"{API}/flows/{flow.id}", f"{API}/flows/{UUID(int=9)}", f"{API}/flows/x", "/docs"):
        get, head = await client.get(path), await client.head(path)
        assert (head.status_code, head.content) == (get.status_code, b"")
        assert head.headers["Content-Type"] == get.headers["Content-Type"]
        assert abs(int(head.headers["Content-Length"]) - int(get.headers["Content-Length"])) <= 1


async def test_head_of_a_stream_ends(client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord) -> None:
    execution = await create_execution(session, await create_flow(session, dev_user))
    async with asyncio.timeout(20):
        answer = await client.head(f"{API}/flows/{execution.flow_id}/executions/{execution.id}/events")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["Content-Type"].startswith("text/event-stream")


async def test_server_sends_no_body_for_head() -> None:
    async with run_server() as port, connection(port) as (reader, writer):
        for path in ("/health", "/nothing", "/webhooks/none"):
            writer.write(head("HEAD", path))
            first = await reader.readuntil(b"\r\n\r\n")
            assert first.startswith(b"HTTP/1.1 "), "the next head follows at once"
            assert b"content-length: 0" not in first


@covers("methods.slash")
@pytest.mark.parametrize(
    ("path", "location", "target"),
    [
        ("/health/", "../health", "/health"),
        (f"{API}/flows/?page=2&page_size=5", "../flows?page=2&page_size=5", f"{API}/flows?page=2&page_size=5"),
        (f"{FLOW}/executions/", "../executions", f"{FLOW}/executions"),
        ("/webhooks/a%3Fb%23c%0D%0A/", "../a%3Fb%23c%0D%0A", "/webhooks/a%3Fb%23c%0D%0A"),
    ],
)
async def test_slash_at_the_end_redirects_without_a_host(
    plain_client: httpx.AsyncClient, path: str, location: str, target: str
) -> None:
    for method in ("GET", "POST"):
        answer = await plain_client.request(method, path, headers={"Host": "evil.example"})
        assert (answer.status_code, answer.headers["Location"]) == (307, location)
        assert answer.next_request is not None
        assert answer.next_request.url.raw_path.decode() == target


class HealthyEngine:
    problem = None


async def test_worker_has_the_same_rules() -> None:
    transport = httpx.ASGITransport(app=create_worker_app(HealthyEngine()))
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        refused = await client.post("/health/live")
        assert_problem(refused, 405, "method_not_allowed", "Method Not Allowed")
        assert refused.headers["Allow"] == "GET, HEAD, OPTIONS"
        assert (await client.head("/health/live")).status_code == 200
        assert (await client.get("/health/")).headers["Location"] == "../health"
