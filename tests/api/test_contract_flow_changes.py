"""PATCH, the canvas, and the transitions of a flow's status."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.engine.engine import Engine
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import FlowRecord, FlowStatus, UserRecord
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, eventually, path_of

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
NOON_TEXT = "2024-05-01T12:00:00.000000Z"
CANVAS = {
    "nodes": [
        {
            "id": "n1",
            "type": "listener",
            "position": {"x": 1.5, "y": -20, "snapped": True},
            "data": {"label": "Ärger", "deep": {"snake_case": [1, None, {"a": 1e-7}]}},
            "dragging": False,
            "measured": {"width": 10, "height": 20.25},
            "parent_id": "kept as it is",
        },
        {"id": "n2", "type": "any", "position": {"x": 0, "y": 0}, "data": {}},
    ],
    "edges": [
        {
            "id": "e1",
            "source": "n1",
            "target": "n2",
            "sourceHandle": "out",
            "targetHandle": None,
            "animated": True,
            "style": {"strokeWidth": 2},
        }
    ],
    "viewport": {"x": 0, "y": 1, "zoom": 0.5, "locked": True},
    "version": 3,
}


@pytest.fixture
async def flow(dev_user: UserRecord, session: AsyncSession) -> FlowRecord:
    return await factories.create_flow(
        session,
        dev_user,
        name="Before",
        description="Before",
        organism_yaml="before",
        canvas_state={"nodes": [], "edges": []},
        status=FlowStatus.STOPPED,
        updated_at=NOON,
    )


class TestUpdateFlow:
    @covers("flows.patch", "json.snake-case-in")
    @pytest.mark.parametrize(
        ("body", "column", "value"),
        [
            ({"name": "After"}, "name", "After"),
            ({"description": "After"}, "description", "After"),
            ({"description": ""}, "description", ""),
            ({"organismYaml": "after"}, "organism_yaml", "after"),
            ({"organism_yaml": "after"}, "organism_yaml", "after"),
            ({"organismYaml": ": not [ yaml"}, "organism_yaml", ": not [ yaml"),
            ({"canvasState": CANVAS}, "canvas_state", CANVAS),
            ({"canvas_state": CANVAS}, "canvas_state", CANVAS),
        ],
        ids=lambda value: None if isinstance(value, str) else "-".join(value),
    )
    async def test_each_member_can_be_changed_alone(
        self,
        client: httpx.AsyncClient,
        flow: FlowRecord,
        session: AsyncSession,
        body: dict[str, Any],
        column: str,
        value: object,
    ) -> None:
        before = (await client.get(path_of(flow))).json()
        response = await client.patch(path_of(flow), json=body)
        assert response.status_code == 200
        after = response.json()
        assert after["updatedAt"] > before["updatedAt"] == NOON_TEXT
        changed = {name for name in before if before[name] != after[name]} - {"updatedAt", "latestVersion"}
        camel = {"organism_yaml": "organismYaml", "canvas_state": "canvasState"}
        assert changed == {camel.get(column, column)}
        await session.refresh(flow)
        assert getattr(flow, column) == after[camel.get(column, column)] == value
        assert (await client.get(path_of(flow))).json() == after

    @covers("flows.patch.null")
    @pytest.mark.parametrize(
        ("member", "value"),
        [("description", None), ("canvasState", None), ("name", "Before"), ("organismYaml", "before")],
    )
    async def test_null_clears_description_and_canvas_only(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, member: str, value: str | None
    ) -> None:
        response = await client.patch(path_of(flow), json={member: None})
        assert (response.status_code, response.json()[member]) == (200, value)
        await session.refresh(flow)
        column = {"canvasState": "canvas_state", "organismYaml": "organism_yaml"}.get(member, member)
        assert getattr(flow, column) == value
        assert (response.json()["updatedAt"] == NOON_TEXT) is (value is not None)

    @covers("flows.patch.empty")
    @pytest.mark.parametrize(
        "body", [{}, {"status": "running", "userId": "7", "id": None, "containerId": "c"}], ids=len
    )
    async def test_body_without_known_members_changes_nothing(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, body: dict[str, Any]
    ) -> None:
        before = (await client.get(path_of(flow))).json()
        response = await client.patch(path_of(flow), json=body)
        assert (response.status_code, response.json()) == (200, before)
        await session.refresh(flow)
        assert (flow.updated_at, flow.status, flow.container_id) == (NOON, FlowStatus.STOPPED, None)

    @covers("json.unknown-members", "json.camel-case")
    async def test_whole_flow_can_be_sent_back(self, client: httpx.AsyncClient, dev_user: UserRecord) -> None:
        created = (await client.post(f"{API}/flows", json={"name": "A flow"})).json()
        whole = created | {"name": "Renamed", "canvasState": CANVAS, "status": "running", "selected": [1]}
        response = await client.patch(f"{API}/flows/{created['id']}", json=whole)
        assert response.status_code == 200
        renamed = {"name": "Renamed", "canvasState": CANVAS, "updatedAt": response.json()["updatedAt"]}
        assert response.json() == created | renamed | {"latestVersion": 2}
        assert not any("_" in member for member in response.json())

    @covers("flows.patch.every-status", "flows.status")
    @pytest.mark.parametrize("status", FlowStatus)
    async def test_flow_can_be_changed_in_every_status(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, status: FlowStatus
    ) -> None:
        flow = await factories.create_flow(session, dev_user, status=status, error_message="Why")
        response = await client.patch(path_of(flow), json={"name": "After", "organismYaml": "x"})
        assert response.status_code == 200
        body = response.json()
        assert (body["name"], body["status"], body["errorMessage"]) == ("After", status.value, "Why")

    async def test_invalid_change_is_rejected_and_changes_nothing(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        node = {"id": "n", "type": "t", "position": {"x": 0, "y": 0}, "data": {}}
        refusals: list[tuple[dict[str, Any], str]] = [
            ({"name": ""}, "body.name"),
            ({"name": "x" * 101, "description": "After"}, "body.name"),
            ({"description": "x" * 501, "name": "After"}, "body.description"),
            ({"organismYaml": 7, "name": "After"}, "body.organismYaml"),
            ({"canvasState": []}, "body.canvasState"),
            ({"canvasState": {"nodes": {}}}, "body.canvasState.nodes"),
            ({"canvasState": {"nodes": [{}]}}, "body.canvasState.nodes.0.id"),
            ({"canvasState": {"nodes": [node | {"position": {"x": "left"}}]}}, "body.canvasState.nodes.0.position.x"),
        ]
        for body, field in refusals:
            assert_invalid(await client.patch(path_of(flow), json=body), field)
        await session.refresh(flow)
        assert (flow.name, flow.description, flow.organism_yaml) == ("Before", "Before", "before")
        assert flow.canvas_state == {"nodes": [], "edges": []}
        assert flow.updated_at == NOON


class TestCanvas:
    @covers("canvas.shape", "canvas.extra-members")
    async def test_canvas_is_returned_as_sent(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        changed = await client.patch(path_of(flow), json={"canvasState": CANVAS})
        assert changed.json()["canvasState"] == CANVAS
        assert (await client.get(path_of(flow))).json()["canvasState"] == CANVAS

    @covers("canvas.partial")
    @pytest.mark.parametrize("position", [{}, {"x": 1}, {"y": 2.5}, {"z": 3}], ids=str)
    async def test_positions_and_viewport_may_be_partial(
        self, client: httpx.AsyncClient, flow: FlowRecord, position: dict[str, float]
    ) -> None:
        canvas = {
            "nodes": [{"id": "n", "type": "t", "position": position, "data": {}}],
            "edges": [],
            "viewport": position,
        }
        assert (await client.patch(path_of(flow), json={"canvasState": canvas})).json()["canvasState"] == canvas
        assert (await client.get(path_of(flow))).json()["canvasState"] == canvas

    @covers("canvas.handles")
    async def test_missing_handles_are_returned_as_null(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        edge = {"id": "e", "source": "a", "target": "b"}
        for sent in ({"edges": [edge]}, {"edges": [edge | {"source_handle": None}]}):
            changed = await client.patch(path_of(flow), json={"canvasState": sent})
            assert changed.json()["canvasState"]["edges"] == [edge | {"sourceHandle": None, "targetHandle": None}]
        flow.canvas_state = {"nodes": [], "edges": [edge]}
        await session.commit()
        read = (await client.get(path_of(flow))).json()["canvasState"]
        assert read["edges"] == [edge | {"sourceHandle": None, "targetHandle": None}]


STARTABLE = {FlowStatus.STOPPED, FlowStatus.ERROR}
STOPPABLE = {FlowStatus.RUNNING, FlowStatus.STARTING, FlowStatus.ERROR}


class TestStartAndStop:
    @covers("flows.start", "flows.start.refused", "flows.stop", "flows.stop.refused", "flows.error-message")
    @pytest.mark.parametrize("status", FlowStatus)
    @pytest.mark.parametrize("verb", ["start", "stop"])
    async def test_start_and_stop_from_every_status(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, verb: str, status: FlowStatus
    ) -> None:
        flow = await factories.create_flow(session, dev_user, status=status, error_message="Why", updated_at=NOON)
        response = await client.post(f"{path_of(flow)}/{verb}")
        await session.refresh(flow)
        if status in (STARTABLE if verb == "start" else STOPPABLE):
            after = {"start": FlowStatus.STARTING, "stop": FlowStatus.STOPPING}[verb]
            message = None if verb == "start" else "Why"
            assert response.status_code == 200
            body = response.json()
            assert (body["status"], body["errorMessage"]) == (after.value, message)
            assert (flow.status, flow.error_message) == (after, message)
            assert (await client.get(path_of(flow))).json() == body
        else:
            assert_problem(response, 400, "flow_wrong_state", f"Cannot {verb} flow in {status.value} state")
            assert (flow.status, flow.error_message, flow.updated_at) == (status, "Why", NOON)

    @covers("flows.start.outcome", "flows.stop.outcome", "flows.yaml.judged-at-start", "flows.error-message")
    async def test_start_and_stop_reach_their_final_statuses(
        self, live_client: httpx.AsyncClient, engine: Engine
    ) -> None:
        created = await live_client.post(f"{API}/flows", json={"name": "A flow", "organismYaml": "a: ["})
        path = f"{API}/flows/{created.json()['id']}"
        await live_client.post(f"{path}/start")
        failed = await eventually(live_client, path, {"running", "error"})
        assert (failed["status"], bool(failed["errorMessage"])) == ("error", True)
        await live_client.post(f"{path}/stop")
        stopped = await eventually(live_client, path, {"stopped"})
        assert stopped["errorMessage"] == failed["errorMessage"]
        await live_client.patch(path, json={"organismYaml": DEFAULT_ORGANISM})
        await live_client.post(f"{path}/start")
        running = await eventually(live_client, path, {"running", "error"})
        assert (running["status"], running["errorMessage"]) == ("running", None)
        await live_client.post(f"{path}/stop")
        assert (await eventually(live_client, path, {"stopped"}))["errorMessage"] is None
