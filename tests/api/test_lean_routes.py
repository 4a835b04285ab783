"""Hot routes on the application's own database. They answer without the framework as they do with it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Depends, Query, Response
from starlette.types import Receive, Scope, Send

from bloxserver.api import current_user
from bloxserver.api.current_user import reads_requester
from bloxserver.api.dependencies import AuthenticatedUser, DbSession, FlowId, ReadingStatements
from bloxserver.api.lean_routes import lean_app
from bloxserver.api.main import app
from bloxserver.api.paths import RouteIndex
from bloxserver.api.routes import all_executions, executions, series
from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionStatus, FlowRecord, UserRecord
from bloxserver.services.users import DEV_CLERK_ID
from bloxserver.settings import get_settings
from tests.api.contract import API
from tests.clerk import override_settings
from tests.conftest import api_client
from tests.database_override import override_database
from tests.factories import create_execution, create_flow, create_user
from tests.statements import count_statements

MOMENT = datetime(2026, 3, 2, 9, 30, tzinfo=UTC)
PATHS = {
    "list": "flows/{flow}/executions",
    "page": "flows/{flow}/executions?page=2&page_size=2",
    "filters": "flows/{flow}/executions?status_filter=error&status_filter=success&started_after=2026-03-02T09:31:00Z",
    "invalid filter": "flows/{flow}/executions?status_filter=unknown&page=0",
    "invalid cursor": "flows/{flow}/executions?cursor=unknown",
    "statistics": "flows/{flow}/executions/stats",
    "series": "flows/{flow}/executions/stats/series?bucket=hour&from=2026-03-02T09:00:00Z&to=2026-03-02T11:00:00Z",
    "invalid series": "flows/{flow}/executions/stats/series",
    "executions of all flows": "executions",
    "executions of some flows": "executions?flow_id={flow}",
    "unknown parameter": "executions?unknown=1",
    "foreign list": "flows/{foreign}/executions",
    "foreign statistics": "flows/{foreign}/executions/stats",
    "invalid id": "flows/unknown/executions",
    "id in another format": "flows/urn:uuid:{flow}/executions/stats",
    "id in braces": "flows/{{{flow}}}/executions/stats",
    "id without hyphens": "flows/{hex}/executions/stats",
    "id with a misplaced hyphen": "flows/-{hex}/executions/stats",
    "id with an underscore": "flows/0_{hex}/executions/stats",
    "id in capitals": "flows/{upper}/executions/stats",
}


@pytest.fixture
async def flow(live_database: Database) -> FlowRecord:
    """The development user's flow, with executions. Another user has a flow, too."""
    async with live_database.transaction() as session:
        user = await create_user(session, clerk_id=DEV_CLERK_ID, tier="pro")
        flow = await create_flow(session, user)
        await create_flow(session, await create_user(session), id=UUID(int=1))
        for minute, status in enumerate((*ExecutionStatus, *ExecutionStatus)):
            started_at = MOMENT + timedelta(minutes=minute)
            await create_execution(session, flow, status=status, started_at=started_at, duration_ms=10 * minute)
    return flow


@pytest.fixture
async def own_client(
    live_database: Database, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[httpx.AsyncClient]:
    """The API on its own database: no dependency is overridden."""
    monkeypatch.setattr(models_database, "database", live_database)
    async with api_client() as client:
        yield client


async def answer_of(client: httpx.AsyncClient, url: str) -> object:
    response = await client.get(url)
    body = response.json()
    body.pop("requestId", None)
    headers = {
        name: value for name, value in response.headers.items() if name not in ("x-request-id", "content-length")
    }
    return response.status_code, headers, body


def reading_engine(database: Database) -> Any:
    return database.reading_engine


@pytest.mark.parametrize("name", PATHS)
async def test_request_is_answered_as_by_the_framework(
    own_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord, name: str
) -> None:
    path = PATHS[name].format(flow=flow.id, hex=flow.id.hex, upper=str(flow.id).upper(), foreign=UUID(int=1))
    for _ in range(2):  # the id of the user is not known in the first request
        answer = await answer_of(own_client, f"{API}/{path}")
        with override_database(app, live_database):
            assert answer == await answer_of(own_client, f"{API}/{path}")


async def test_request_executes_one_statement(
    own_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    await own_client.get(f"{API}/me")
    for name in ("list", "filters", "statistics", "series", "executions of all flows"):
        with count_statements(reading_engine(live_database)) as statements:
            response = await own_client.get(f"{API}/{PATHS[name].format(flow=flow.id)}")
        assert (response.status_code, len(statements)) == (200, 1), name


async def test_changes_of_the_user_apply_at_once(
    own_client: httpx.AsyncClient, live_database: Database, flow: FlowRecord
) -> None:
    url = f"{API}/flows/{flow.id}/executions/stats"
    assert (await own_client.get(url)).status_code == 200
    async with live_database.transaction() as session:
        await session.execute(sa.update(UserRecord).values(clerk_id=UserRecord.clerk_id + "_old"))
    assert (await own_client.get(url)).json()["code"] == "flow_not_found"
    async with live_database.transaction(read_only=True) as session:
        user = await session.scalar(sa.select(UserRecord).where(UserRecord.clerk_id == DEV_CLERK_ID))
    assert user is not None
    assert current_user._known_ids[DEV_CLERK_ID] == user.id != flow.user_id
    with count_statements(reading_engine(live_database)) as statements:
        assert (await own_client.get(url)).json()["code"] == "flow_not_found"
    assert len(statements) == 1


async def test_cursor_is_valid_although_the_users_id_was_outdated(
    own_client: httpx.AsyncClient, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current_user, "_known_ids", {DEV_CLERK_ID: uuid4()})
    url = f"{API}/flows/{flow.id}/executions?page_size=4"
    first = (await own_client.get(url)).json()
    second = (await own_client.get(f"{url}&cursor={first['nextCursor']}")).json()
    ids = [item["id"] for item in (*first["items"], *second["items"])]
    assert len(set(ids)) == len(ids) == 8


async def test_request_without_a_sign_in_is_401(own_client: httpx.AsyncClient, flow: FlowRecord) -> None:
    with override_settings(CLERK_ISSUER="https://issuer.example"):
        for path in (f"flows/{flow.id}/executions", f"flows/{flow.id}/executions?page=0", "executions"):
            response = await own_client.get(f"{API}/{path}")
            assert (response.status_code, response.json()["code"]) == (401, "missing_token")


async def test_database_that_cannot_be_reached_is_503(
    own_client: httpx.AsyncClient, flow: FlowRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    await own_client.get(f"{API}/me")
    url = "postgresql+asyncpg://user@127.0.0.1:1/database"
    unreachable = Database(get_settings().model_copy(update={"database_url": url}))
    monkeypatch.setattr(models_database, "database", unreachable)
    response = await own_client.get(f"{API}/flows/{flow.id}/executions")
    assert (response.status_code, response.json()["code"]) == (503, "database_unavailable")


async def framework(scope: Scope, receive: Receive, send: Send) -> None:
    raise AssertionError("is not called")


@pytest.mark.parametrize(
    "endpoint",
    [
        executions.list_executions,
        executions.get_statistics,
        series.get_series,
        all_executions.list_all_executions,
    ],
)
def test_hot_routes_do_not_need_the_framework(endpoint: Callable[..., Any]) -> None:
    assert lean_app(endpoint, framework) is not framework


def test_index_of_routes_calls_them_without_the_framework() -> None:
    index = next(route for route in app.routes if isinstance(route, RouteIndex))
    for path, is_lean in (("executions", True), ("executions/stats", True), ("executions/{execution_id}", False)):
        found = index._find(f"{API}/flows/{{flow_id}}/{path}", "GET")
        assert found is not None
        assert (found.app.__module__ == lean_app.__module__) == is_lean, path


async def _with_a_session(request: DbSession) -> None: ...


@reads_requester
async def with_a_session(user: AuthenticatedUser, session: DbSession) -> Response:
    raise NotImplementedError


@reads_requester
async def with_a_model(user: AuthenticatedUser, session: ReadingStatements) -> dict[str, str]:
    raise NotImplementedError


@reads_requester
async def with_a_query(user: AuthenticatedUser, session: ReadingStatements, page: Annotated[int, Query()]) -> Response:
    raise NotImplementedError


@reads_requester
async def with_another_dependency(
    user: AuthenticatedUser, session: ReadingStatements, other: Annotated[None, Depends(_with_a_session)]
) -> Response:
    raise NotImplementedError


async def without_the_mark(user: AuthenticatedUser, session: ReadingStatements, flow_id: FlowId) -> Response:
    raise NotImplementedError


@pytest.mark.parametrize(
    "endpoint", [with_a_session, with_a_model, with_a_query, with_another_dependency, without_the_mark]
)
def test_other_routes_need_the_framework(endpoint: Callable[..., Any]) -> None:
    assert lean_app(endpoint, framework) is framework


async def test_unknown_flow_is_404(own_client: httpx.AsyncClient) -> None:
    response = await own_client.get(f"{API}/flows/{uuid4()}/executions/stats")
    assert (response.status_code, response.json()["code"]) == (404, "flow_not_found")
