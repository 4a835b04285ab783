"""Large JSON bodies get the same answers as small ones, and the API's process does not parse them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.isolation import isolated
from bloxserver.isolation.pool import MAX_WAITING
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    TriggerRecord,
    UserRecord,
)
from bloxserver.raw_json import MAX_CHARACTERS, MAX_STORED_VALUES, RawJson
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, path_of

JSON = {"Content-Type": "application/json"}
PADDING = [0] * (MAX_STORED_VALUES + 1)
NODES = [{"id": f"n{number}", "position": {"x": number, "y": 0.5}, "data": {"é": [None]}} for number in range(600)]
CANVAS = {"nodes": NODES, "viewport": {"zoom": 2}, "version": 3}
SHOWN = {
    "nodes": [{"type": None} | node for node in NODES],
    "edges": [],
    "viewport": {"zoom": 2},
    "version": 3,
}


@pytest.fixture
async def flow(session: AsyncSession, dev_user: UserRecord) -> FlowRecord:
    return await factories.create_flow(session, dev_user, status=FlowStatus.RUNNING)


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the JSON texts that this process parses."""
    lengths: list[int] = []
    loads = json.loads

    def spy(text: str | bytes, *arguments: Any, **options: Any) -> Any:
        lengths.append(len(text))
        return loads(text, *arguments, **options)

    monkeypatch.setattr(json, "loads", spy)
    return lengths


async def send(client: httpx.AsyncClient, method: str, path: str, body: object) -> tuple[int, bytes]:
    response = await client.request(method, path, content=json.dumps(body), headers=JSON)
    return response.status_code, response.content


class TestLargeCanvas:
    async def test_large_canvas_is_stored_and_returned_without_being_parsed(
        self, client: httpx.AsyncClient, flow: FlowRecord, parsed: list[int]
    ) -> None:
        status, changed = await send(client, "PATCH", path_of(flow), {"canvasState": CANVAS})
        read = await client.get(path_of(flow))
        version = await client.get(f"{path_of(flow)}/versions/2")
        canvas = await client.get(f"{path_of(flow)}/canvas")
        assert max(parsed, default=0) <= MAX_CHARACTERS
        assert (status, json.loads(changed)["canvasState"]) == (200, SHOWN)
        for response in (read, version, canvas):
            assert response.headers["content-type"] == "application/json"
            assert response.json()["canvasState"] == SHOWN

    async def test_large_canvas_is_stored_as_a_small_one_would_be(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        await send(client, "PATCH", path_of(flow), {"canvasState": CANVAS})
        text = await session.scalar(sa.select(sa.cast(FlowRecord.canvas_state, sa.Text)))
        assert text == json.dumps(json.loads(text or ""))
        assert json.loads(text) == SHOWN

    async def test_unchanged_large_canvas_makes_no_version(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        path = path_of(flow)
        for canvas, latest in ((CANVAS, 2), (SHOWN, 2), (CANVAS | {"version": 4}, 3), (None, 4)):
            await send(client, "PATCH", path, {"canvasState": canvas})
            await session.rollback()
            assert await session.scalar(sa.select(sa.func.max(FlowVersionRecord.number))) == latest

    async def test_canvas_that_only_grows_by_being_stored_makes_no_version(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        canvas = {"nodes": [{"id": "é" * (MAX_CHARACTERS // 4)}]}  # each character is stored as six
        for _ in range(2):
            assert (await client.patch(path_of(flow), json={"canvasState": canvas})).status_code == 200
        assert await session.scalar(sa.select(sa.func.max(FlowVersionRecord.number))) == 2
        assert (await client.get(path_of(flow))).json()["canvasState"]["nodes"][0]["id"] == canvas["nodes"][0]["id"]

    async def test_large_canvas_can_be_restored_and_cleared(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        await send(client, "PATCH", path_of(flow), {"canvasState": CANVAS})
        assert (await client.patch(path_of(flow), json={"canvasState": None})).json()["canvasState"] is None
        restored = await client.post(f"{path_of(flow)}/versions/2/restore")
        assert (restored.json()["canvasState"], restored.json()["latestVersion"]) == (SHOWN, 4)


class TestOtherMembers:
    async def test_large_config_of_a_trigger_is_stored_and_listed_without_being_parsed(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, parsed: list[int]
    ) -> None:
        config = {"cron": "0 9 * * *", "payload": [[]] * 4_000, "ü": 1}
        body = {"type": "schedule", "name": "t", "config": config}
        status, created = await send(client, "POST", f"{path_of(flow)}/triggers", body)
        listed = await client.get(f"{path_of(flow)}/triggers")
        assert max(parsed, default=0) <= MAX_CHARACTERS
        assert (status, json.loads(created)["config"]) == (201, config)
        assert listed.json()[0]["config"] == config
        trigger = (await session.scalars(sa.select(TriggerRecord))).one()
        assert isinstance(trigger.config, RawJson)
        changed = await client.patch(f"{path_of(flow)}/triggers/{trigger.id}", json={"enabled": True})
        assert changed.json()["config"] == config

    async def test_size_of_a_large_config_is_that_of_its_compact_text(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        config = {"ü": [0] * 40_000}
        body = {"type": "webhook", "name": "t", "config": config}
        response = await client.post(f"{path_of(flow)}/triggers", json=body)
        size = len(json.dumps(config, ensure_ascii=False, separators=(",", ":")).encode())
        assert (response.status_code, response.json()["details"]["used"]) == (403, size)

    async def test_large_schedule_is_checked(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        body = {"type": "schedule", "name": "t", "config": {"cron": "nonsense", "payload": [0] * 3_000}}
        assert_invalid(await client.post(f"{path_of(flow)}/triggers", json=body), "body.config.cron")

    @pytest.mark.parametrize(
        "given",
        [{"é": [1.0, None] * 3_000}, "é\n" * 100_000, [[]] * 3_000, "[" * 50_000],
        ids=["object", "text", "list", "text of brackets"],
    )
    async def test_large_input_of_a_run_is_stored_as_a_small_one_would_be(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, parsed: list[int], given: object
    ) -> None:
        status, _ = await send(client, "POST", f"{path_of(flow)}/executions/run", {"inputPayload": given})
        assert max(parsed, default=0) <= MAX_CHARACTERS
        assert status == 201
        stored = await session.scalar(sa.select(ExecutionRecord.input_payload))
        assert stored == (given if isinstance(given, str) else json.dumps(given, ensure_ascii=False))

    async def test_large_definition_is_stored(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        definition = 'a: "é", b: [' + "1," * 50_000 + "]\n"
        response = await client.patch(path_of(flow), json={"organismYaml": definition, "name": "new"})
        assert (response.json()["organismYaml"], response.json()["name"]) == (definition, "new")

    async def test_large_canvas_is_converted_without_being_parsed(
        self, client: httpx.AsyncClient, flow: FlowRecord, parsed: list[int]
    ) -> None:
        names = [f"n{number}" for number in range(300)]
        data = [{"name": name, "handler": "echo", "description": "d"} for name in names]
        canvas = {"nodes": [{"id": one["name"], "type": "block", "data": one} for one in data], "edges": []}
        status, content = await send(client, "POST", f"{path_of(flow)}/canvas/derive", {"canvasState": canvas})
        assert max(parsed, default=0) <= MAX_CHARACTERS
        assert (status, json.loads(content)["valid"]) == (200, True)
        await client.patch(path_of(flow), json={"organismYaml": json.loads(content)["organismYaml"]})
        parsed.clear()
        derived = await client.get(f"{path_of(flow)}/canvas")
        assert max(parsed, default=0) <= MAX_CHARACTERS
        assert [node["id"] for node in derived.json()["canvasState"]["nodes"]] == names

    @pytest.mark.parametrize("body", [{"organismYaml": "organism: 1"}, {"organismYaml": 1}, {"organismYaml": None}, {}])
    async def test_definition_in_a_large_body_is_validated(
        self, client: httpx.AsyncClient, dev_user: UserRecord, parsed: list[int], body: dict[str, Any]
    ) -> None:
        content = json.dumps(body)
        small = await client.post(f"{API}/organisms/validate", content=content, headers=JSON)
        large = await client.post(f"{API}/organisms/validate", content=content + " " * 50_000, headers=JSON)
        assert max(parsed, default=0) <= MAX_CHARACTERS
        assert without_request_id(large) == without_request_id(small)


@asynccontextmanager
async def waiting_tasks(tenant: Hashable) -> AsyncIterator[None]:
    """As many tasks of this tenant as may wait, behind an endless one."""
    endless = json.dumps({"code": "while True: pass", "values": {}, "timeout_seconds": 30, "memory_mb": 64}).encode()
    tasks = [asyncio.ensure_future(isolated("python.run", endless, tenant=tenant, share=1))]
    await asyncio.sleep(0)
    await isolated("organism.check", b"", tenant="other")  # begins after the endless one
    tasks += [
        asyncio.ensure_future(isolated("python.run", endless, tenant=tenant, share=1)) for _ in range(MAX_WAITING)
    ]
    await asyncio.sleep(0)
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class TestBusyPool:
    async def test_large_body_is_refused_while_too_many_of_its_address_wait(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        async with waiting_tasks(("address", "127.0.0.1")):
            large = await client.patch(path_of(flow), json={"canvasState": CANVAS})
            definition = await client.post(f"{API}/organisms/validate", json={"organismYaml": "a,\n" * 20_000})
            small = await client.patch(path_of(flow), json={"canvasState": {}})
        for response in (large, definition):
            message = "The body cannot be read now: 1000 tasks wait already: run fewer at once"
            assert_problem(response, 503, "isolation_unavailable", message)
            assert response.headers["retry-after"] == "5"
        assert small.status_code == 200

    async def test_canvas_is_unavailable_while_too_many_tasks_of_its_owner_wait(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        async with waiting_tasks(flow.user_id):
            read = await client.get(f"{path_of(flow)}/canvas")
            derived = await client.post(f"{path_of(flow)}/canvas/derive")
        for response in (read, derived):
            message = "The canvas cannot be converted now: 1000 tasks wait already: run fewer at once"
            assert_problem(response, 503, "isolation_unavailable", message)


def without_request_id(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    body: dict[str, Any] = response.json()
    return response.status_code, body | {"requestId": ""}


class TestInvalidBodies:
    @pytest.mark.parametrize(
        "text",
        [
            '{"name": "", "description": 1, "canvasState": {"nodes": [{"id": 1}, 2], "viewport": {"x": true}}',
            '{"canvasState": []',
            '{"canvasState": {"nodes": [{"id": "a\\u0000"}]}',
            '{"canvasState": {"nodes": [], "x": 1e999}',
            '{"canvasState": {"nodes": [], "x": ' + "[" * 70 + "]" * 70 + "}",
            '{"canvas_state": {"nodes": 1}, "canvasState": {}',
            '{"canvasState": {"nodes": 1}, "canvas_state": {}',
            '{"name": nope',
            '{"name": "\\ud800"',
            '{"name": ' + "1" * 5_000,
            '{"organismYaml": null, "name": null, "enabled": 1',
        ],
    )
    async def test_answer_is_the_same_as_to_a_small_body(
        self, client: httpx.AsyncClient, flow: FlowRecord, text: str
    ) -> None:
        for path in (path_of(flow), f"{API}/flows/{uuid4()}", f"{API}/flows/nonsense"):
            small = await client.patch(path, content=f'{text}, "padding": []}}', headers=JSON)
            large = await client.patch(path, content=f'{text}, "padding": {PADDING}}}', headers=JSON)
            shown = [without_request_id(response) for response in (small, large)]
            for _, body in shown:
                body.pop("updatedAt", None)
            assert shown[0] == shown[1]

    @pytest.mark.parametrize("text", ["null", "[]", "true", '"text"', "1.5", "[" * 3_000, "\xff"])
    @pytest.mark.parametrize("path", ["", "/executions/run", "/triggers"])
    async def test_body_that_is_no_object_gets_the_same_answer(
        self, client: httpx.AsyncClient, flow: FlowRecord, text: str, path: str
    ) -> None:
        method = "POST" if path else "PATCH"
        sent = [text.encode("latin-1"), text.encode("latin-1") + b" " * 50_000]
        small, large = [
            await client.request(method, path_of(flow) + path, content=content, headers=JSON) for content in sent
        ]
        assert small.status_code == large.status_code
        if small.status_code != 201:
            assert without_request_id(large) == without_request_id(small)

    async def test_body_of_another_content_type_is_not_read(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        content = json.dumps({"name": "new", "padding": PADDING})
        response = await client.patch(path_of(flow), content=content, headers={"Content-Type": "text/plain"})
        assert_invalid(response, "body")

    async def test_number_of_reported_fields_is_limited(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        response = await client.patch(path_of(flow), json={"canvasState": {"nodes": [{}] * 20_000}})
        assert (response.status_code, len(response.json()["details"])) == (422, 1_000)

    async def test_secrets_and_other_small_members_are_unchanged(
        self, client: httpx.AsyncClient, dev_user: UserRecord
    ) -> None:
        response = await client.put(f"{API}/secrets/A", json={"value": "v", "padding": PADDING})
        assert response.status_code in (200, 503), response.text
