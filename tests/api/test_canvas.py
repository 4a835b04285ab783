"""Conversion of a flow to a canvas and back over HTTP."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import FlowRecord, UserRecord
from tests import factories
from tests.api.contract import API, assert_problem, covers, path_of
from tests.api.hostile import DEEP, arrays
from tests.statements import count_statements

CHAIN = """\
# mine
organism: {name: x}
listeners:
  - {name: a, description: d, handler: echo, peers: [b]}
  - {name: b, description: d, handler: echo}
"""
NODE = {"id": "n", "type": "block", "position": {"x": 1, "y": 2}, "data": {"handler": "echo", "description": "d"}}


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    return await factories.create_flow(session, dev_user, organism_yaml=CHAIN)


async def stored(client: httpx.AsyncClient, flow: FlowRecord) -> tuple[str, Any]:
    body = (await client.get(path_of(flow))).json()
    return body["organismYaml"], body["canvasState"]


async def opened(client: httpx.AsyncClient, flow: FlowRecord) -> dict[str, Any]:
    response = await client.get(f"{path_of(flow)}/canvas")
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def derived(client: httpx.AsyncClient, flow: FlowRecord, **sent: Any) -> dict[str, Any]:
    response = await client.post(f"{path_of(flow)}/canvas/derive", **sent)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


@covers("canvas.get")
class TestGetCanvas:
    async def test_canvas_is_derived_from_yaml_if_none_is_stored(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        body = await opened(client, flow)
        assert (body["derived"], body["problems"]) == (True, [])
        state = body["canvasState"]
        assert [(node["id"], node["type"]) for node in state["nodes"]] == [("a", "block"), ("b", "block")]
        assert state["nodes"][0]["data"] == {"label": "a", "name": "a", "description": "d", "handler": "echo"}
        assert state["nodes"][0]["position"]["x"] < state["nodes"][1]["position"]["x"]
        assert [(edge["source"], edge["target"], edge["targetHandle"]) for edge in state["edges"]] == [("a", "b", None)]
        assert state["viewport"] == {"x": 0, "y": 0, "zoom": 1}
        assert await stored(client, flow) == (CHAIN, None)

    async def test_derived_canvas_can_be_stored_unchanged(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        state = (await opened(client, flow))["canvasState"]
        assert (await client.patch(path_of(flow), json={"canvasState": state})).status_code == 200
        assert await opened(client, flow) == {"canvasState": state, "derived": False, "problems": []}

    async def test_problems_of_the_yaml_are_reported(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        for text, code in (
            (CHAIN.replace("[b]", "[c]"), "unknown_peer"),
            ("[", "yaml_syntax"),
            ("a: \0", "yaml_syntax"),
        ):
            flow.organism_yaml = text.replace("\0", "\x07")
            await session.commit()
            body = await opened(client, flow)
            assert body["derived"] is True
            assert [one["code"] for one in body["problems"]] == [code]

    async def test_canvas_that_differs_from_the_yaml_has_a_warning(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        await client.patch(path_of(flow), json={"canvasState": {"nodes": [NODE], "edges": []}})
        body = await opened(client, flow)
        assert body["derived"] is False
        assert [node["id"] for node in body["canvasState"]["nodes"]] == ["n"]
        [problem] = body["problems"]
        assert (problem["code"], problem["severity"]) == ("canvas_differs", "warning")
        assert '"a", "b", "n"' in problem["message"]

    async def test_stored_canvas_is_returned_if_the_yaml_is_invalid(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        await client.patch(path_of(flow), json={"canvasState": {"nodes": [NODE]}, "organismYaml": "["})
        body = await opened(client, flow)
        assert (body["derived"], [one["code"] for one in body["problems"]]) == (False, ["yaml_syntax"])


@covers("canvas.derive")
class TestDerive:
    async def test_canvas_in_the_body_is_converted_and_not_stored(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        state = (await opened(client, flow))["canvasState"]
        state["nodes"].append(NODE | {"selected": True})
        state["edges"].append({"id": "e", "source": "b", "target": "n", "animated": True})
        body = await derived(client, flow, json={"canvasState": state})
        assert body == {"organismYaml": body["organismYaml"], "valid": True, "problems": []}
        assert body["organismYaml"].startswith(CHAIN[: CHAIN.index("  - {name: b")])
        assert await stored(client, flow) == (CHAIN, None)
        await client.patch(path_of(flow), json={"organismYaml": body["organismYaml"], "canvasState": state})
        assert (await opened(client, flow))["problems"] == []

    @pytest.mark.parametrize("sent", [{}, {"json": {}}, {"json": {"canvasState": None}}])
    async def test_stored_canvas_is_converted_if_the_body_has_none(
        self, client: httpx.AsyncClient, flow: FlowRecord, sent: dict[str, Any]
    ) -> None:
        assert (await derived(client, flow, **sent))["organismYaml"] == CHAIN
        await client.patch(path_of(flow), json={"canvasState": {"nodes": [NODE]}})
        assert "name: n\n" in (await derived(client, flow, **sent))["organismYaml"]
        await client.patch(path_of(flow), json={"canvasState": {}})
        body = await derived(client, flow, **sent)
        assert (body["valid"], [one["code"] for one in body["problems"]]) == (
            False,
            ["comments_lost", "missing_field"],
        )

    async def test_problem_has_its_path_on_the_canvas(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        state = {"nodes": [NODE | {"data": {"handler": "ecko", "description": "d"}}]}
        body = await derived(client, flow, json={"canvasState": state})
        assert body["valid"] is False
        [problem] = body["problems"]
        assert (problem["code"], problem["path"]) == ("unknown_handler", ["nodes", "n", "data", "handler"])
        assert body["organismYaml"].splitlines()[problem["line"] - 1][problem["column"] - 1 :] == "ecko"

    @pytest.mark.parametrize(
        "body",
        [
            {"canvasState": {"nodes": [{"id": ""}], "edges": [{"id": "", "source": "", "target": ""}]}},
            {"canvasState": {"nodes": [NODE | {"id": "\x85", "data": {"name": {"a": [1e300, 10**400]}}}]}},
            {"canvasState": {"nodes": [NODE] * 2000, "edges": []}},
            {"canvasState": {"nodes": [NODE | {"id": f"n{i}"} for i in range(2000)], "edges": []}},
            {"canvasState": {"nodes": [NODE | {"data": {"prompt": "x" * 500_000}}]}},
        ],
        ids=["empty ids", "unusual values", "duplicate ids", "many nodes", "large prompt"],
    )
    async def test_any_canvas_that_can_be_stored_can_be_converted(
        self, client: httpx.AsyncClient, flow: FlowRecord, body: dict[str, Any]
    ) -> None:
        assert (await client.patch(path_of(flow), json=body)).status_code == 200
        from_body = await derived(client, flow, json=body)
        assert all(one["hint"] for one in from_body["problems"])
        assert await derived(client, flow) == from_body
        await opened(client, flow)

    @pytest.mark.parametrize("depth", DEEP)
    async def test_canvas_that_cannot_be_stored_is_rejected(
        self, client: httpx.AsyncClient, flow: FlowRecord, depth: int
    ) -> None:
        text = f'{{"canvasState": {{"nodes": [{{"id": "n", "data": {{"a": {arrays(depth)}}}}}]}}}}'
        headers = {"Content-Type": "application/json"}
        response = await client.post(f"{path_of(flow)}/canvas/derive", content=text, headers=headers)
        assert (response.status_code, response.json()["code"]) == (422, "validation_error")


async def test_flow_of_another_user_is_not_found(client: httpx.AsyncClient, session: AsyncSession) -> None:
    theirs = await factories.create_flow(session, await factories.create_user(session))
    for flow_id in (theirs.id, uuid4()):
        path = f"{API}/flows/{flow_id}/canvas"
        for response in (await client.get(path), await client.post(f"{path}/derive")):
            assert_problem(response, 404, "flow_not_found", "Flow not found")


async def test_canvas_needs_two_statements(
    client: httpx.AsyncClient, flow: FlowRecord, database_engine: AsyncEngine
) -> None:
    for method, path in (("GET", "canvas"), ("POST", "canvas/derive")):
        with count_statements(database_engine) as statements:
            await client.request(method, f"{path_of(flow)}/{path}")
        assert len(statements) == 2, statements


async def test_default_definition_can_be_converted_to_a_canvas_and_back(client: httpx.AsyncClient) -> None:
    created = (await client.post(f"{API}/flows", json={"name": "New"})).json()
    body = (await client.get(f"{API}/flows/{created['id']}/canvas")).json()
    assert [node["id"] for node in body["canvasState"]["nodes"]] == ["greeter"]
    back = (await client.post(f"{API}/flows/{created['id']}/canvas/derive")).json()
    assert back == {"organismYaml": DEFAULT_ORGANISM, "valid": True, "problems": []}
