"""Create, list, read and delete flows. Changing them is in test_contract_flow_changes.py."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
import yaml
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.models.database import Database
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import (
    ExecutionRecord,
    ExecutionStepRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    Tier,
    TriggerRecord,
    UserRecord,
)
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, path_of
from tests.statements import count_statements

FLOW = {
    "id",
    "userId",
    "name",
    "description",
    "organismYaml",
    "canvasState",
    "status",
    "containerId",
    "errorMessage",
    "createdAt",
    "updatedAt",
}
SUMMARY = {"id", "name", "description", "status", "updatedAt"}
JSON = {"Content-Type": "application/json"}
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


async def count(session: AsyncSession, table: type[Any]) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


class TestCreateFlow:
    @covers("flows.create", "flows.shape", "flows.create.default-yaml")
    async def test_created_flow_is_stored_and_returned(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        response = await client.post(f"{API}/flows", json={"name": "Orders", "description": "All of them"})
        body = response.json()
        assert response.status_code == 201
        assert body.keys() >= FLOW
        flow = await session.get_one(FlowRecord, UUID(body["id"]))
        assert flow.user_id == dev_user.id
        assert (flow.name, flow.description, flow.status) == ("Orders", "All of them", FlowStatus.STOPPED)
        assert body["userId"] == str(dev_user.id)
        assert (body["name"], body["description"], body["status"]) == ("Orders", "All of them", "stopped")
        assert (body["canvasState"], body["containerId"], body["errorMessage"]) == (None, None, None)
        assert body["organismYaml"] == flow.organism_yaml == DEFAULT_ORGANISM
        assert (await client.get(f"{API}/flows/{body['id']}")).json() == body

    @covers("organism.default")
    async def test_default_organism_has_one_greeter(self, client: httpx.AsyncClient, dev_user: UserRecord) -> None:
        created = await client.post(f"{API}/flows", json={"name": "A flow"})
        assert yaml.safe_load(created.json()["organismYaml"]) == {
            "organism": {"name": "my-flow"},
            "listeners": [
                {
                    "name": "greeter",
                    "payload_class": "handlers.hello.Greeting",
                    "handler": "handlers.hello.handle_greeting",
                    "description": "A friendly greeter agent",
                    "agent": True,
                    "peers": [],
                }
            ],
        }

    @covers("flows.yaml.any", "flows.yaml.empty-is-default")
    async def test_any_yaml_is_stored_unchanged(self, client: httpx.AsyncClient, dev_user: UserRecord) -> None:
        for yaml_text, stored in {
            None: DEFAULT_ORGANISM,
            "": DEFAULT_ORGANISM,
            " ": " ",
            "a: [": "a: [",
            "é🌍": "é🌍",
        }.items():
            created = await client.post(f"{API}/flows", json={"name": "A flow", "organismYaml": yaml_text})
            assert created.status_code == 201
            read = await client.get(f"{API}/flows/{created.json()['id']}")
            assert created.json()["organismYaml"] == read.json()["organismYaml"] == stored
        large = "# " + "x" * 1_000_000
        created = await client.post(f"{API}/flows", json={"name": "A flow", "organismYaml": large})
        assert created.json()["organismYaml"] == large

    @pytest.mark.parametrize("name", ["x", "é" * 100, "x" * 100, " ", "a\nb"], ids=lambda name: ascii(name)[:12])
    async def test_name_may_have_1_to_100_characters(self, client: httpx.AsyncClient, name: str) -> None:
        created = await client.post(f"{API}/flows", json={"name": name, "description": "é" * 500})
        assert (created.status_code, created.json()["name"]) == (201, name)
        assert created.json()["description"] == "é" * 500

    async def test_invalid_body_is_rejected(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        refusals: list[tuple[Any, str]] = [
            ({}, "body.name"),
            ({"name": ""}, "body.name"),
            ({"name": None}, "body.name"),
            ({"name": 7}, "body.name"),
            ({"name": "x" * 101}, "body.name"),
            ({"name": "x", "description": "x" * 501}, "body.description"),
            ({"name": "x", "description": {}}, "body.description"),
            ({"name": "x", "organismYaml": ["a"]}, "body.organismYaml"),
            ({"name": "a\0b"}, "body"),
            ({"name": "x", "description": "\ud800"}, "body"),
            ([], "body"),
            (None, "body"),
        ]
        for body, field in refusals:
            assert_invalid(await client.post(f"{API}/flows", content=json.dumps(body), headers=JSON), field)
        assert await count(session, FlowRecord) == 0


class TestFlowLimit:
    @covers("flows.limit", "flows.limit.tiers")
    @pytest.mark.parametrize(
        ("tier", "limit"),
        [(Tier.FREE, 1), (Tier.PRO, 100), (Tier.ENTERPRISE, 1000), (Tier.HIGH_FREQUENCY, 1000)],
    )
    async def test_flow_limit_depends_on_the_tier(
        self, client: httpx.AsyncClient, session: AsyncSession, tier: Tier, limit: int
    ) -> None:
        user = await factories.create_user(session, clerk_id="dev_user_001", tier=tier)
        if limit > 1:
            await session.execute(
                sa.insert(FlowRecord), [{"user_id": user.id, "name": f"Flow {n}"} for n in range(limit - 1)]
            )
            await session.commit()
        stranger = await factories.create_user(session)
        await factories.create_flow(session, stranger)
        assert (await client.post(f"{API}/flows", json={"name": "The last"})).status_code == 201
        message = f"Flow limit reached ({limit}). Upgrade to create more flows."
        for _ in range(2):
            refused = await client.post(f"{API}/flows", json={"name": "One too many"})
            assert_problem(refused, 403, "flow_limit_reached", message, {"limit": limit})
        assert await count(session, FlowRecord) == limit + 1
        listed = (await client.get(f"{API}/flows")).json()
        assert (listed["total"], listed["items"][0]["name"]) == (limit, "The last")
        await client.delete(f"{API}/flows/{listed['items'][0]['id']}")
        assert (await client.post(f"{API}/flows", json={"name": "In its place"})).status_code == 201

    @covers("flows.limit.concurrency")
    async def test_flow_limit_is_exact_under_concurrency(
        self, live_client: httpx.AsyncClient, live_database: Database
    ) -> None:
        await live_client.get(f"{API}/me")
        async with live_database.transaction() as session:
            user_id = await session.scalar(sa.select(UserRecord.id))
            await session.execute(
                sa.insert(FlowRecord), [{"user_id": user_id, "name": f"Flow {number}"} for number in range(97)]
            )
        create = [live_client.post(f"{API}/flows", json={"name": "Another"}) for _ in range(12)]
        statuses = [response.status_code for response in await asyncio.gather(*create)]
        assert sorted(statuses) == [201] * 3 + [403] * 9
        assert (await live_client.get(f"{API}/flows")).json()["total"] == 100


class TestListFlows:
    @covers("flows.list", "flows.summary", "flows.status", "paging.shape")
    async def test_list_is_sorted_by_last_change(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        for hours, status in enumerate(FlowStatus):
            at = NOON + timedelta(hours=hours)
            await factories.create_flow(session, dev_user, name=f"{hours}", status=status, updated_at=at)
        await factories.create_flow(session, await factories.create_user(session))
        page = (await client.get(f"{API}/flows")).json()
        names = [item["name"] for item in page["items"]]
        assert names == ["4", "3", "2", "1", "0"]
        assert [item["status"] for item in page["items"]] == ["error", "stopping", "running", "starting", "stopped"]
        assert page["items"][0].keys() >= SUMMARY
        assert page["items"][0]["updatedAt"] == "2024-05-01T16:00:00.000000Z"
        assert {name: page[name] for name in page if name != "items"} == {
            "total": 5,
            "page": 1,
            "pageSize": 20,
            "hasMore": False,
            "totalIsExact": True,
        }
        await client.patch(f"{API}/flows/{page['items'][-1]['id']}", json={"name": "changed"})
        assert (await client.get(f"{API}/flows")).json()["items"][0]["name"] == "changed"

    @covers("paging.past-the-end", "query.snake-case")
    async def test_pages_contain_every_flow_once(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        for number in range(5):
            await factories.create_flow(session, dev_user, name=f"{number}", updated_at=NOON)
        ids = []
        for page in (1, 2, 3):
            body = (await client.get(f"{API}/flows", params={"page": page, "page_size": 2})).json()
            assert (body["total"], body["page"], body["pageSize"], body["hasMore"]) == (5, page, 2, page < 3)
            ids += [item["id"] for item in body["items"]]
        assert len(ids) == len(set(ids)) == 5
        for number in (4, 1_000_000_000):
            past = await client.get(f"{API}/flows", params={"page": number, "page_size": 2 if number == 4 else 1000})
            assert past.status_code == 200
            assert (past.json()["items"], past.json()["total"], past.json()["hasMore"]) == ([], 5, False)

    @covers("paging.bounds")
    async def test_page_parameters_out_of_range_are_rejected(
        self, client: httpx.AsyncClient, dev_user: UserRecord
    ) -> None:
        for wrong in ("0", "-1", "1e30", str(10**30), "1.5", "x", "", "9" * 5000):
            assert_invalid(await client.get(f"{API}/flows", params={"page": wrong}), "query.page")
        for size in ("0", "-1", "1001", str(10**30), "x"):
            assert_invalid(await client.get(f"{API}/flows", params={"page_size": size}), "query.page_size")
        for size in ("1", "1000"):
            listed = await client.get(f"{API}/flows", params={"page_size": size})
            assert (listed.status_code, listed.json()["pageSize"]) == (200, int(size))


class TestGetFlow:
    @covers("flows.404")
    async def test_unknown_id_is_not_found_and_malformed_id_is_rejected(
        self, client: httpx.AsyncClient, dev_user: UserRecord
    ) -> None:
        for method in ("GET", "PATCH", "DELETE"):
            response = await client.request(method, f"{API}/flows/{uuid4()}", json={"name": "x"})
            assert_problem(response, 404, "flow_not_found", "Flow not found")
            assert_invalid(await client.request(method, f"{API}/flows/7", json={"name": "x"}), "path.flow_id")


class TestDeleteFlow:
    @covers("flows.delete.every-state", "flows.delete.takes-along", "testers.no-pragma")
    @pytest.mark.parametrize("status", FlowStatus)
    async def test_delete_removes_everything_that_belongs_to_the_flow(
        self,
        client: httpx.AsyncClient,
        dev_user: UserRecord,
        session: AsyncSession,
        database_engine: AsyncEngine,
        status: FlowStatus,
    ) -> None:
        if database_engine.dialect.name == "sqlite":
            assert await session.scalar(sa.text("PRAGMA foreign_keys")) == 0
        kept = await factories.create_flow(session, dev_user, name="Kept")
        flow = await factories.create_flow(session, dev_user, status=status)
        for other in (kept, flow):
            session.add(version := FlowVersionRecord(flow_id=other.id, number=1, organism_yaml="x"))
            await session.flush()
            trigger = await factories.create_trigger(session, other)
            execution = await factories.create_execution(
                session, other, trigger_id=trigger.id, flow_version_id=version.id
            )
            await factories.create_execution(session, other)
            session.add(ExecutionStepRecord(execution_id=execution.id, key="1", listener="greeter"))
            await session.commit()
        response = await client.delete(path_of(flow))
        assert (response.status_code, response.content) == (204, b"")
        assert (await client.get(path_of(flow))).status_code == 404
        assert (await client.delete(path_of(flow))).status_code == 404
        tables = (FlowRecord, FlowVersionRecord, TriggerRecord, ExecutionRecord, ExecutionStepRecord)
        assert [await count(session, table) for table in tables] == [1, 1, 1, 2, 1]
        assert set(await session.scalars(sa.select(ExecutionRecord.flow_id))) == {kept.id}

    @covers("flows.delete.takes-along")
    async def test_delete_loads_neither_triggers_nor_executions(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession, database_engine: AsyncEngine
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        for _ in range(3):
            await factories.create_execution(
                session, flow, trigger_id=(await factories.create_trigger(session, flow)).id
            )
        with count_statements(database_engine) as statements:
            assert (await client.delete(path_of(flow))).status_code == 204
        assert any(statement.startswith("DELETE FROM executions") for statement in statements)
        reads = [statement for statement in statements if statement.startswith("SELECT")]
        assert not any("FROM triggers" in read for read in reads)
        assert all(read.startswith("SELECT count(") for read in reads if "FROM executions" in read)
