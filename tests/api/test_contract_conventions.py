"""Conventions of all routes: the error body, request ids, CORS, times, ownership, commits."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from bloxserver.api.main import app
from bloxserver.models.database import get_db
from bloxserver.models.tables import FlowRecord, FlowStatus, TriggerType, UserRecord
from tests import factories
from tests.api.contract import API, UTC_TIME, assert_invalid, assert_problem, covers, failing_with, path_of

ORIGIN = {"Origin": "https://app.openblox.ai"}
JSON = {"Content-Type": "application/json"}


async def session_with_a_bug() -> AsyncIterator[AsyncSession]:
    async with failing_with(RuntimeError("secret-word")) as session:
        yield session


class TestErrors:
    @covers("errors.body")
    async def test_errors_of_the_framework_have_the_error_body(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        assert_problem(await client.get("/nothing/here"), 404, "not_found", "Not Found")
        for method, path in [("PUT", f"{API}/flows"), ("POST", "/health"), ("DELETE", f"{path_of(flow)}/start")]:
            response = await client.request(method, path)
            assert_problem(response, 405, "method_not_allowed", "Method Not Allowed")
            assert response.headers["allow"]
        refused = await client.post(f"{path_of(flow)}/start")
        assert_problem(refused, 400, "flow_wrong_state", "Cannot start flow in running state")

    @covers("errors.body")
    async def test_unexpected_error_reveals_no_details(self, client: httpx.AsyncClient) -> None:
        app.dependency_overrides[get_db] = session_with_a_bug
        response = await client.get(f"{API}/flows", headers={"X-Request-Id": "mine"})
        assert_problem(response, 500, "internal_error", "Internal server error")
        assert response.json()["requestId"] == "mine"
        assert "secret-word" not in response.text

    @covers("errors.validation")
    async def test_validation_error_lists_each_invalid_field(
        self, client: httpx.AsyncClient, dev_user: UserRecord
    ) -> None:
        empty = await client.post(f"{API}/flows", json={"name": "", "description": 7})
        assert_problem(
            empty,
            422,
            "validation_error",
            "Request validation failed",
            {
                "body.name": "String should have at least 1 character",
                "body.description": "Input should be a valid string",
            },
        )
        several = await client.get(f"{API}/flows", params={"page": 0, "page_size": "x"})
        assert_invalid(several, "query.page", "query.page_size")

    @covers("errors.validation")
    @pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"name": }', b"NaN", b'"x"', b"", b"null"])
    async def test_body_that_is_not_a_json_object_is_rejected(self, client: httpx.AsyncClient, content: bytes) -> None:
        response = await client.post(f"{API}/flows", content=content, headers=JSON)
        details = response.json()["details"]
        assert_invalid(response, *details)
        assert all(field == "body" or field.startswith("body.") for field in details)

    @covers("errors.malformed-uuid")
    async def test_malformed_id_is_rejected(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        for text in ("7", "x" * 36, f"{uuid4()}0", "%00", "None", "{}", "é"):
            assert_invalid(await client.get(f"{API}/flows/{text}"), "path.flow_id")
            assert_invalid(await client.post(f"{API}/flows/{text}/start"), "path.flow_id")
            assert_invalid(await client.get(f"{path_of(flow)}/triggers/{text}"), "path.trigger_id")
            assert_invalid(await client.get(f"{path_of(flow)}/executions/{text}"), "path.execution_id")
        assert (await client.get(f"{API}/flows/{str(flow.id).upper()}")).json()["id"] == str(flow.id)


class TestRequestId:
    async def test_valid_request_id_is_kept_and_invalid_ones_are_replaced(self, client: httpx.AsyncClient) -> None:
        for valid in ("abc-1.2_3:4", "x" * 128):
            response = await client.get("/health/live", headers={"X-Request-Id": valid})
            assert response.headers["x-request-id"] == valid
            refused = await client.get("/nothing", headers={"X-Request-Id": valid})
            assert refused.json()["requestId"] == valid
        seen = set()
        for invalid in ("", "x" * 129, "a b", "a\tb", "<x>"):
            response = await client.get("/nothing", headers={"X-Request-Id": invalid})
            assert response.headers["x-request-id"] == response.json()["requestId"] != invalid
            seen.add(response.json()["requestId"])
        assert len(seen) == 5


class TestCors:
    @covers("env.cors-origins")
    async def test_responses_and_errors_have_cors_headers(self, client: httpx.AsyncClient) -> None:
        for origin in ("http://localhost:3000", "https://app.openblox.ai"):
            for path, status in [("/health", 200), (f"{API}/flows/{uuid4()}", 404), (f"{API}/flows/7", 422)]:
                response = await client.get(path, headers={"Origin": origin})
                assert response.status_code == status
                assert response.headers["access-control-allow-origin"] == origin
                assert response.headers["access-control-allow-credentials"] == "true"
        stranger = await client.get("/health", headers={"Origin": "https://evil.example"})
        assert "access-control-allow-origin" not in stranger.headers
        app.dependency_overrides[get_db] = session_with_a_bug
        response = await client.get(f"{API}/flows", headers=ORIGIN)
        assert response.status_code == 500
        assert response.headers["access-control-allow-origin"] == ORIGIN["Origin"]
        assert response.json()["code"] == "internal_error"

    @covers("env.cors-origins")
    async def test_preflight_allows_every_method_and_header(self, client: httpx.AsyncClient) -> None:
        for method in ("GET", "POST", "PATCH", "PUT", "DELETE"):
            ask = {"Access-Control-Request-Method": method, "Access-Control-Request-Headers": "authorization,x-any"}
            response = await client.options(f"{API}/flows", headers=ORIGIN | ask)
            assert response.status_code == 200
            assert response.headers["access-control-allow-origin"] == ORIGIN["Origin"]
            assert response.headers["access-control-allow-credentials"] == "true"
            assert method in response.headers["access-control-allow-methods"]
            assert response.headers["access-control-allow-headers"] == "authorization,x-any"


class TestTimes:
    @covers("times.utc", "json.camel-case", "records.naive-datetime")
    @pytest.mark.parametrize(
        ("written", "read"),
        [
            (datetime(2024, 2, 29, 23, 59, 59, 999999, UTC), "2024-02-29T23:59:59.999999Z"),
            (datetime(2024, 1, 1, tzinfo=UTC), "2024-01-01T00:00:00.000000Z"),
            (
                datetime(2024, 1, 1, 1, 30, tzinfo=timezone(timedelta(hours=5.5))),
                "2023-12-31T20:00:00.000000Z",
            ),
            (datetime.fromisoformat("2024-07-01T12:00:00.000001"), "2024-07-01T12:00:00.000001Z"),
        ],
    )
    async def test_times_written_to_the_database_are_returned_in_utc(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, written: datetime, read: str
    ) -> None:
        flow = await factories.create_flow(session, dev_user, created_at=written, updated_at=written)
        trigger = await factories.create_trigger(session, flow, created_at=written)
        times = {"started_at": written, "completed_at": written, "picked_up_at": written}
        execution = await factories.create_execution(session, flow, **times)
        body = (await client.get(path_of(flow))).json()
        assert (body["createdAt"], body["updatedAt"]) == (read, read)
        assert (await client.get(f"{path_of(flow)}/triggers/{trigger.id}")).json()["createdAt"] == read
        body = (await client.get(f"{path_of(flow)}/executions/{execution.id}")).json()
        assert [body[name] for name in ("startedAt", "completedAt", "pickedUpAt")] == [read] * 3
        assert (await client.get(f"{path_of(flow)}/executions/stats")).json()["lastExecutedAt"] == read
        await session.refresh(flow)
        assert flow.created_at == datetime.fromisoformat(read)
        assert flow.created_at.tzinfo is UTC

    @covers("times.utc")
    async def test_times_set_by_requests_are_in_utc(self, client: httpx.AsyncClient, dev_user: UserRecord) -> None:
        before = datetime.now(UTC)
        body = (await client.post(f"{API}/flows", json={"name": "A flow"})).json()
        for name in ("createdAt", "updatedAt"):
            assert UTC_TIME.fullmatch(body[name])
            assert before <= datetime.fromisoformat(body[name]) <= datetime.now(UTC)


class TestOwnership:
    @covers("ownership.404")
    async def test_resource_of_another_user_responds_like_a_missing_one(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        theirs = await factories.create_flow(session, await factories.create_user(session), status=FlowStatus.STOPPED)
        mine = await factories.create_flow(session, dev_user)
        trigger = await factories.create_trigger(session, theirs)
        execution = await factories.create_execution(session, theirs, trigger_id=trigger.id)
        calls: list[tuple[str, str, dict[str, Any] | None]] = [
            ("GET", "{flow}", None),
            ("PATCH", "{flow}", {"name": "Mine now"}),
            ("DELETE", "{flow}", None),
            ("POST", "{flow}/start", None),
            ("POST", "{flow}/stop", None),
            ("GET", "{flow}/triggers", None),
            ("POST", "{flow}/triggers", {"type": "manual", "name": "Mine", "config": {}}),
            ("GET", "{flow}/executions", None),
            ("POST", "{flow}/executions/run", None),
            ("GET", "{flow}/executions/stats", None),
            *[(method, "{flow}/triggers/{trigger}", None) for method in ("GET", "DELETE")],
            ("POST", "{flow}/triggers/{trigger}/regenerate-token", None),
            ("GET", "{flow}/executions/{execution}", None),
        ]
        real = {"flow": theirs.id, "trigger": trigger.id, "execution": execution.id}
        through_mine = real | {"flow": mine.id}
        unknown: dict[str, UUID] = {name: uuid4() for name in real}
        headers = {"X-Request-Id": "the-same"}
        for method, path, body in calls:
            ways = [real, unknown] if path.count("{") == 1 else [real, unknown, through_mine]
            urls = [f"{API}/flows/{path.format(**ids)}" for ids in ways]
            answers = [await client.request(method, url, json=body, headers=headers) for url in urls]
            assert {answer.status_code for answer in answers} == {404}, (method, path)
            assert len({answer.text for answer in answers}) == 1, (method, path)
            assert answers[0].headers == answers[1].headers
        await session.refresh(theirs)
        await session.refresh(trigger)
        assert (theirs.name, theirs.status) == ("A flow", FlowStatus.STOPPED)
        assert (trigger.type, trigger.webhook_token is not None) == (TriggerType.WEBHOOK, True)
        assert (await client.get(f"{API}/flows")).json()["total"] == 1


class TestCommit:
    @covers("writes.committed-first")
    async def test_commit_happens_before_the_response(self, sessions: async_sessionmaker[AsyncSession]) -> None:
        events: list[str] = []

        async def override() -> AsyncIterator[AsyncSession]:
            async with sessions() as session:
                yield session
                await session.commit()
                events.append("committed")

        def recording(inner: ASGIApp) -> ASGIApp:
            async def outer(scope: Scope, receive: Receive, send: Send) -> None:
                async def record(message: Message) -> None:
                    events.append(message["type"])
                    await send(message)

                await inner(scope, receive, record)

            return outer

        app.dependency_overrides[get_db] = override
        try:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(recording(app)), base_url="http://t") as client:
                created = await client.post(f"{API}/flows", json={"name": "A flow"})
                assert created.status_code == 201
                assert events[0] == "committed"
                assert events.count("committed") == 1
                read = await client.get(f"{API}/flows/{created.json()['id']}")
                assert read.json() == created.json()
        finally:
            app.dependency_overrides.clear()

    @covers("writes.failed-commit")
    @pytest.mark.parametrize(
        ("error", "status"), [(OSError("gone"), 503), (RuntimeError("bug"), 500), (TimeoutError(), 503)], ids=repr
    )
    async def test_failed_commit_is_an_error_response(
        self,
        client: httpx.AsyncClient,
        dev_user: UserRecord,
        session: AsyncSession,
        sessions: async_sessionmaker[AsyncSession],
        error: Exception,
        status: int,
    ) -> None:
        async def override() -> AsyncIterator[AsyncSession]:
            async with sessions() as session:
                yield session
                await session.rollback()
                raise error

        flow = await factories.create_flow(session, dev_user, status=FlowStatus.RUNNING)
        app.dependency_overrides[get_db] = override
        calls: list[Callable[[], Any]] = [
            lambda: client.post(f"{API}/flows", json={"name": "A flow"}),
            lambda: client.patch(path_of(flow), json={"name": "After"}),
            lambda: client.delete(path_of(flow)),
            lambda: client.post(f"{path_of(flow)}/stop"),
            lambda: client.post(f"{path_of(flow)}/executions/run"),
        ]
        for call in calls:
            response = await call()
            assert response.status_code == status
            assert response.json()["status"] == status
        rows = (await session.execute(sa.select(FlowRecord.name, FlowRecord.status))).all()
        assert [tuple(row) for row in rows] == [("A flow", FlowStatus.RUNNING)]
