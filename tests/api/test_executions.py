"""Create, list and read executions, and their statistics."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    Tier,
    TriggerType,
    UsageRecord,
    UserRecord,
)
from tests import factories
from tests.api.contract import UTC_TIME, assert_invalid, assert_problem, covers, path_of
from tests.statements import count_statements

EXECUTION = {
    "id",
    "flowId",
    "triggerId",
    "triggerType",
    "status",
    "startedAt",
    "completedAt",
    "durationMs",
    "errorMessage",
    "inputPayload",
    "outputPayload",
    "pickedUpAt",
    "inputEncoding",
}
SUMMARY = {"id", "status", "triggerType", "startedAt", "durationMs"}
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)

JSON = {"Content-Type": "application/json"}


async def executions(session: AsyncSession) -> list[ExecutionRecord]:
    statement = sa.select(ExecutionRecord).order_by(ExecutionRecord.started_at)
    return list(await session.scalars(statement.execution_options(populate_existing=True)))


class TestListExecutions:
    @covers("executions.list", "executions.status")
    async def test_list_is_sorted_newest_first(
        self, client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        assert (await client.get(f"{path_of(flow)}/executions")).json()["items"] == []
        for hours, status in enumerate(ExecutionStatus):
            at = NOON + timedelta(hours=hours)
            await factories.create_execution(session, flow, status=status, started_at=at, duration_ms=hours or None)
        await factories.create_execution(session, await factories.create_flow(session, dev_user))
        page = (await client.get(f"{path_of(flow)}/executions")).json()
        assert [item["status"] for item in page["items"]] == ["cancelled", "timeout", "error", "success", "running"]
        assert [item["durationMs"] for item in page["items"]] == [4, 3, 2, 1, None]
        assert (page["total"], page["page"], page["pageSize"], page["hasMore"]) == (5, 1, 50, False)
        first = page["items"][0]
        assert first.keys() >= SUMMARY
        assert (first["triggerType"], first["startedAt"]) == ("manual", "2024-05-01T16:00:00.000000Z")

    @covers("executions.list", "paging.past-the-end")
    async def test_executions_with_equal_times_are_sorted_by_id(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        for _ in range(5):
            await factories.create_execution(session, flow, id=uuid4(), started_at=NOON)
        ids = []
        for page in range(1, 6):
            body = (await client.get(f"{path_of(flow)}/executions", params={"page": page, "page_size": 1})).json()
            assert (body["total"], body["pageSize"], body["hasMore"]) == (5, 1, page < 5)
            ids += [item["id"] for item in body["items"]]
        assert ids == sorted(ids, reverse=True)
        assert len(set(ids)) == 5
        past = await client.get(f"{path_of(flow)}/executions", params={"page": 6, "page_size": 1})
        assert (past.status_code, past.json()["items"], past.json()["total"]) == (200, [], 5)

    @covers("executions.list.filter", "paging.bounds")
    async def test_list_can_be_filtered_and_checks_its_parameters(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        for status in [*ExecutionStatus, ExecutionStatus.ERROR]:
            await factories.create_execution(session, flow, status=status)
        path = f"{path_of(flow)}/executions"
        for status in ExecutionStatus:
            page = (await client.get(path, params={"status_filter": status.value})).json()
            wanted = [status.value] * (2 if status is ExecutionStatus.ERROR else 1)
            assert ([item["status"] for item in page["items"]], page["total"]) == (wanted, len(wanted))
        for value in ("SUCCESS", "unknown", "", "stopped"):
            assert_invalid(await client.get(path, params={"status_filter": value}), "query.status_filter")
        for page_size in ("0", "1001", "-1", "1e30"):
            assert_invalid(await client.get(path, params={"page_size": page_size}), "query.page_size")
        for number in ("0", "-1", "1e30", str(10**30)):
            assert_invalid(await client.get(path, params={"page": number}), "query.page")


class TestGetExecution:
    @covers("executions.shape", "executions.duration-by-hand")
    async def test_response_has_every_member(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        trigger = await factories.create_trigger(session, flow)
        execution = await factories.create_execution(
            session,
            flow,
            trigger_id=trigger.id,
            trigger_type=TriggerType.WEBHOOK,
            status=ExecutionStatus.ERROR,
            started_at=NOON,
            picked_up_at=NOON + timedelta(microseconds=1),
            completed_at=NOON + timedelta(seconds=2),
            duration_ms=777,
            error_message="Why",
            input_payload='{"a": 1}',
            output_payload="é",
        )
        body = (await client.get(f"{path_of(flow)}/executions/{execution.id}")).json()
        assert body.keys() >= EXECUTION
        assert {name: body[name] for name in EXECUTION} == {
            "id": str(execution.id),
            "flowId": str(flow.id),
            "triggerId": str(trigger.id),
            "triggerType": "webhook",
            "status": "error",
            "startedAt": "2024-05-01T12:00:00.000000Z",
            "completedAt": "2024-05-01T12:00:02.000000Z",
            "pickedUpAt": "2024-05-01T12:00:00.000001Z",
            "durationMs": 777,
            "errorMessage": "Why",
            "inputPayload": '{"a": 1}',
            "inputEncoding": "text",
            "outputPayload": "é",
        }

    @covers("executions.get")
    async def test_unknown_id_is_not_found_and_malformed_id_is_rejected(
        self, client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        other = await factories.create_flow(session, dev_user)
        elsewhere = await factories.create_execution(session, other)
        for execution_id in (uuid4(), elsewhere.id):
            response = await client.get(f"{path_of(flow)}/executions/{execution_id}")
            assert_problem(response, 404, "execution_not_found", "Execution not found")
        for text in ("7", "RUN", "STATS", "%00"):
            assert_invalid(await client.get(f"{path_of(flow)}/executions/{text}"), "path.execution_id")
        found = await client.get(f"{path_of(other)}/executions/{elsewhere.id}")
        assert found.json()["id"] == str(elsewhere.id)


class TestRunFlow:
    @covers("executions.run", "executions.acceptance", "executions.picked-up-at")
    async def test_accepted_execution_is_running(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        before = datetime.now(UTC)
        response = await client.post(f"{path_of(flow)}/executions/run")
        after = datetime.now(UTC)
        body = response.json()
        assert response.status_code == 201
        assert body.keys() >= EXECUTION
        assert UTC_TIME.fullmatch(body["startedAt"])
        assert before <= datetime.fromisoformat(body["startedAt"]) <= after
        assert (body["flowId"], body["triggerType"], body["triggerId"]) == (str(flow.id), "manual", None)
        assert body["status"] == "running"
        empty = ("pickedUpAt", "completedAt", "durationMs", "errorMessage", "inputPayload", "outputPayload")
        assert [body[name] for name in empty] == [None] * 6
        stored = (await executions(session))[0]
        assert (stored.id, stored.status) == (UUID(body["id"]), ExecutionStatus.RUNNING)
        assert before <= stored.started_at <= after
        assert (await client.get(f"{path_of(flow)}/executions/{body['id']}")).json() == body

    @covers("executions.run.payload", "json.snake-case-in", "json.unknown-members")
    async def test_payload_from_query_and_body_is_stored(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        cases: list[tuple[dict[str, Any], str | None]] = [
            ({}, None),
            ({"json": {}}, None),
            ({"json": {"inputPayload": None}}, None),
            ({"json": {"other": 1, "payload": "x"}}, None),
            ({"json": {"inputPayload": "text é🌍"}}, "text é🌍"),
            ({"json": {"inputPayload": '{"name": "Ada"}'}}, '{"name": "Ada"}'),
            ({"json": {"input_payload": "snake"}}, "snake"),
            ({"params": {"input_payload": "query"}}, "query"),
            ({"params": {"input_payload": "query"}, "json": {"inputPayload": "body"}}, "query"),
            ({"params": {"input_payload": '{"a": 1}'}, "json": {}}, '{"a": 1}'),
            ({"content": b'\xef\xbb\xbf{"inputPayload": "marked"}', "headers": JSON}, "marked"),
            ({"content": '{"inputPayload": "é"}'.encode("utf-16"), "headers": JSON}, "é"),
            ({"json": {"inputPayload": '\ufeff{"a": 1}'}}, '\ufeff{"a": 1}'),
        ]
        for request, payload in cases:
            response = await client.post(f"{path_of(flow)}/executions/run", **request)
            assert response.status_code == 201, request
            assert (response.json()["inputPayload"], response.json()["inputEncoding"]) == (payload, "text")
        assert [execution.input_payload for execution in await executions(session)] == [payload for _, payload in cases]

    @covers("executions.run.payload")
    @pytest.mark.parametrize("value", [{"name": "Ä", "deep": [1, None]}, [], {}, 0, 1.5, True, False], ids=str)
    async def test_any_json_payload_is_stored_as_text(
        self, client: httpx.AsyncClient, flow: FlowRecord, value: object
    ) -> None:
        response = await client.post(f"{path_of(flow)}/executions/run", json={"inputPayload": value})
        text = response.json()["inputPayload"]
        assert isinstance(text, str)
        assert json.loads(text) == value
        assert "\\u" not in text

    async def test_payload_that_cannot_be_stored_is_rejected(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        deep = "[" * 70 + "]" * 70
        for body in (b'"text"', b"[]", b'{"inputPayload": "a\\u0000"}', b'{"inputPayload": ["\\ud800"]}'):
            refused = await client.post(
                f"{path_of(flow)}/executions/run", content=body, headers={"Content-Type": "application/json"}
            )
            assert_invalid(refused, "body")
        refused = await client.post(f"{path_of(flow)}/executions/run", json={"inputPayload": json.loads(deep)})
        assert_invalid(refused, "body")
        refused = await client.post(f"{path_of(flow)}/executions/run", params={"input_payload": "a\0b"})
        assert_invalid(refused, "query.input_payload")
        assert await executions(session) == []

    @covers("executions.run.refused")
    @pytest.mark.parametrize("status", [status for status in FlowStatus if status is not FlowStatus.RUNNING])
    async def test_run_of_a_flow_that_is_not_running_is_rejected(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, status: FlowStatus
    ) -> None:
        flow = await factories.create_flow(session, dev_user, status=status)
        message = f"Flow must be running to execute (current: {status.value})"
        for _ in range(2):
            response = await client.post(f"{path_of(flow)}/executions/run", json={"inputPayload": "x"})
            assert_problem(response, 400, "flow_not_running", message)
        assert await executions(session) == []
        assert (await session.scalars(sa.select(UsageRecord))).all() == []

    async def test_run_limit_applies_to_runs_and_webhooks(
        self, client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        begun = datetime.now(UTC).replace(microsecond=0) - timedelta(days=3)
        dev_user.tier = Tier.FREE
        dev_user.current_period_start = begun
        dev_user.current_period_end = begun + timedelta(days=30)
        usage = UsageRecord(user_id=dev_user.id, period_start=begun, workflow_runs=998)
        session.add(usage)
        trigger = await factories.create_trigger(session, flow)
        assert (await client.post(f"{path_of(flow)}/executions/run")).status_code == 201
        assert (await client.post(f"/webhooks/{trigger.webhook_token}")).status_code == 200
        resets_at = dev_user.current_period_end.strftime("%Y-%m-%dT%H:%M:%S.000000Z")
        for path in (f"{path_of(flow)}/executions/run", f"/webhooks/{trigger.webhook_token}"):
            assert_problem(
                await client.post(path),
                403,
                "run_limit_reached",
                "Run limit reached (1000). Upgrade to run more.",
                {"limit": 1000, "used": 1000, "resetsAt": resets_at},
            )
        await session.refresh(usage)
        assert usage.workflow_runs == 1000
        assert len(await executions(session)) == 2
        dev_user.tier = Tier.PRO
        await session.commit()
        assert (await client.post(f"{path_of(flow)}/executions/run")).status_code == 201


class TestStatistics:
    @covers("executions.stats", "executions.stats.route")
    async def test_statistics_of_a_flow_without_executions(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        assert (await client.get(f"{path_of(flow)}/executions/stats")).json() == {
            "flowId": str(flow.id),
            "executionsTotal": 0,
            "executionsSuccess": 0,
            "executionsError": 0,
            "executionsTimeout": 0,
            "executionsCancelled": 0,
            "executionsRunning": 0,
            "avgDurationMs": 0,
            "p50DurationMs": None,
            "p95DurationMs": None,
            "p99DurationMs": None,
            "inputTokens": 0,
            "outputTokens": 0,
            "lastExecutedAt": None,
        }

    @covers("executions.stats", "executions.stats.added-members", "executions.duration-by-hand", "testers.rows-by-hand")
    async def test_statistics_include_rows_written_to_the_database(
        self,
        client: httpx.AsyncClient,
        flow: FlowRecord,
        dev_user: UserRecord,
        session: AsyncSession,
        database_engine: AsyncEngine,
    ) -> None:
        success, error = ExecutionStatus.SUCCESS, ExecutionStatus.ERROR
        rows = [(success, 10), (success, 21), (error, 0), (error, None), (ExecutionStatus.TIMEOUT, 30)]
        rows += [(ExecutionStatus.CANCELLED, None), (ExecutionStatus.RUNNING, None)]
        for hours, (status, duration) in enumerate(rows):
            await factories.create_execution(
                session,
                flow,
                status=status,
                duration_ms=duration,
                started_at=NOON - timedelta(hours=hours),
                completed_at=NOON + timedelta(days=1),
            )
        other = await factories.create_flow(session, dev_user)
        await factories.create_execution(session, other, status=success, duration_ms=10**6)
        with count_statements(database_engine) as statements:
            response = await client.get(f"{path_of(flow)}/executions/stats")
        assert response.json() == {
            "flowId": str(flow.id),
            "executionsTotal": 7,
            "executionsSuccess": 2,
            "executionsError": 2,
            "executionsTimeout": 1,
            "executionsCancelled": 1,
            "executionsRunning": 1,
            "avgDurationMs": 15.25,
            "p50DurationMs": 10,
            "p95DurationMs": 30,
            "p99DurationMs": 30,
            "inputTokens": 0,
            "outputTokens": 0,
            "lastExecutedAt": "2024-05-01T12:00:00.000000Z",
        }
        assert len([statement for statement in statements if "executions" in statement]) == 1
