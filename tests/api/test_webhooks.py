"""Public webhook endpoints."""

from __future__ import annotations

import base64
import gzip
from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    InputEncoding,
    TriggerRecord,
    TriggerType,
    UserRecord,
)
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import assert_problem, covers, path_of
from tests.clerk import override_settings

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    return await factories.create_flow(session, dev_user, name="Orders")


@pytest.fixture
async def trigger(flow: FlowRecord, session: AsyncSession) -> TriggerRecord:
    return await factories.create_trigger(session, flow, name="From the shop")


async def executions(session: AsyncSession) -> list[ExecutionRecord]:
    return list(await session.scalars(sa.select(ExecutionRecord)))


class TestReceive:
    @covers("webhooks.receive", "executions.acceptance")
    async def test_webhook_starts_an_execution(
        self, client: httpx.AsyncClient, trigger: TriggerRecord, flow: FlowRecord, session: AsyncSession
    ) -> None:
        response = await client.post(f"/webhooks/{trigger.webhook_token}", json={"name": "Ada"})
        stored = (await executions(session))[0]
        assert response.status_code == 200
        assert response.json() == {
            "status": "accepted",
            "executionId": str(stored.id),
            "message": "Webhook received and execution started",
        }
        assert (stored.flow_id, stored.trigger_id, stored.trigger_type) == (flow.id, trigger.id, TriggerType.WEBHOOK)
        assert (stored.status, stored.input_payload) == (ExecutionStatus.RUNNING, '{"name":"Ada"}')
        read = (await client.get(f"{path_of(flow)}/executions/{stored.id}")).json()
        assert (read["triggerId"], read["triggerType"], read["status"]) == (str(trigger.id), "webhook", "running")

    @covers("webhooks.body.text", "webhooks.body.empty", "webhooks.input-encoding")
    @pytest.mark.parametrize(
        ("body", "content_type"),
        [
            (b'{"a": 1}\n', "application/json"),
            (b'{"a": ', "application/json; charset=utf-8"),
            ("é🌍\ufeff".encode(), "text/plain"),
            (b"\xef\xbb\xbfwith a mark", "text/csv;header=present"),
            (b"a=1&b=%00", "application/x-www-form-urlencoded"),
            (b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\n1\r\n--x--', "multipart/form-data; boundary=x"),
            (b"<a/>", "application/xml"),
            (b" \t\r\n", None),
            (b"data:text/plain;base64,AA==", None),
            (b"\x01\x1b\x7f", "no content type at all"),
            (b"", "application/json"),
            (b"", None),
        ],
    )
    async def test_text_body_is_stored_unchanged(
        self,
        client: httpx.AsyncClient,
        trigger: TriggerRecord,
        flow: FlowRecord,
        session: AsyncSession,
        body: bytes,
        content_type: str | None,
    ) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        response = await client.post(f"/webhooks/{trigger.webhook_token}", content=body, headers=headers)
        assert response.status_code == 200, response.json()
        expected = body.decode() or None
        stored = (await executions(session))[0]
        assert (stored.input_payload, stored.input_encoding) == (expected, InputEncoding.TEXT)
        read = (await client.get(f"{path_of(flow)}/executions/{stored.id}")).json()
        assert (read["inputPayload"], read["inputEncoding"]) == (expected, "text")

    @covers("webhooks.body.data-url", "webhooks.input-encoding")
    @pytest.mark.parametrize(
        ("body", "content_type", "media_type"),
        [
            (PNG, "image/png", "image/png"),
            (PNG, None, "application/octet-stream"),
            (PNG, "  ", "application/octet-stream"),
            ("Grüße".encode("latin-1"), "text/plain; charset=latin-1", "text/plain;charset=latin-1"),
            ("Grüße".encode("utf-16"), 'text/plain;charset="utf-16"', 'text/plain;charset="utf-16"'),
            (b"a\0b", "application/json", "application/json"),
            (b"\0", None, "application/octet-stream"),
            (b"\xed\xa0\x80", "text/plain", "text/plain"),
            (gzip.compress(b"{}", mtime=0), "application/json", "application/json"),
            (PNG, "image/png, text/html", "image/png%2C%20text/html"),
        ],
    )
    async def test_other_bodies_are_stored_as_data_urls(
        self,
        client: httpx.AsyncClient,
        trigger: TriggerRecord,
        flow: FlowRecord,
        session: AsyncSession,
        body: bytes,
        content_type: str | None,
        media_type: str,
    ) -> None:
        headers = {} if content_type is None else {"Content-Type": content_type}
        response = await client.post(f"/webhooks/{trigger.webhook_token}", content=body, headers=headers)
        read = (await client.get(f"{path_of(flow)}/executions/{response.json()['executionId']}")).json()
        prefix, encoded = read["inputPayload"].split(",")
        assert prefix == f"data:{media_type};base64"
        assert base64.b64decode(encoded, validate=True) == body
        assert read["inputEncoding"] == "data-url"
        assert (await executions(session))[0].input_encoding is InputEncoding.DATA_URL

    @covers("webhooks.too-large", "webhooks.limit")
    async def test_body_size_is_limited(
        self, client: httpx.AsyncClient, trigger: TriggerRecord, session: AsyncSession
    ) -> None:
        async def in_pieces(size: int) -> AsyncIterator[bytes]:
            for _ in range(size):
                yield b"x"

        path = f"/webhooks/{trigger.webhook_token}"
        with override_settings(MAX_BODY_BYTES="100"):
            for size in (99, 100):
                assert (await client.post(path, content=b"x" * size)).status_code == 200
                assert (await client.post(path, content=in_pieces(size))).status_code == 200
            for size in (101, 5000):
                for content in (b"x" * size, in_pieces(size)):
                    response = await client.post(path, content=content)
                    message = "Request body is larger than 100 bytes"
                    assert_problem(response, 413, "payload_too_large", message)
        assert sorted(len(execution.input_payload or "") for execution in await executions(session)) == [
            *[99] * 2,
            *[100] * 2,
        ]
        assert Settings.model_fields["max_body_bytes"].default == 1024 * 1024
        assert (await client.post(path, content=b"x" * 1024 * 1024)).status_code == 200
        assert (await client.post(path, content=b"x" * (1024 * 1024 + 1))).status_code == 413
        assert len(await executions(session)) == 5

    @covers("webhooks.unknown")
    async def test_unknown_token_is_not_found(
        self, client: httpx.AsyncClient, trigger: TriggerRecord, flow: FlowRecord, session: AsyncSession
    ) -> None:
        manual = await factories.create_trigger(session, flow, type=TriggerType.MANUAL)
        tokens = ["unknown", "x" * 300, "%00", "%FF", "é", f"{trigger.webhook_token}x", str(trigger.id), "None"]
        for token in [*tokens, str(manual.id), str(trigger.webhook_token).upper()]:
            response = await client.post(f"/webhooks/{token}", content=b"x")
            assert_problem(response, 404, "webhook_not_found", "Webhook not found")
            response = await client.get(f"/webhooks/{token}/test")
            assert_problem(response, 404, "webhook_not_found", "Webhook not found")
        assert await executions(session) == []

    @covers("webhooks.not-running")
    @pytest.mark.parametrize("status", [status for status in FlowStatus if status is not FlowStatus.RUNNING])
    async def test_webhook_of_a_flow_that_is_not_running_is_rejected(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, status: FlowStatus
    ) -> None:
        flow = await factories.create_flow(session, dev_user, status=status)
        trigger = await factories.create_trigger(session, flow)
        response = await client.post(f"/webhooks/{trigger.webhook_token}", content=PNG)
        assert_problem(response, 400, "flow_not_running", f"Flow is not running (status: {status.value})")
        assert await executions(session) == []


class TestTest:
    @covers("webhooks.test")
    @pytest.mark.parametrize("status", FlowStatus)
    async def test_webhook_test_starts_nothing(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, status: FlowStatus
    ) -> None:
        flow = await factories.create_flow(session, dev_user, name="Orders", status=status)
        trigger = await factories.create_trigger(session, flow, name="From the shop")
        response = await client.get(f"/webhooks/{trigger.webhook_token}/test")
        assert response.status_code == 200
        assert response.json() == {
            "valid": True,
            "triggerName": "From the shop",
            "flowName": "Orders",
            "flowStatus": status.value,
        }
        assert await executions(session) == []
