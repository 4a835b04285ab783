"""Overrides that third-party tests use: the user, the session, and their own app."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from fastapi import Depends, FastAPI
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from bloxserver.api.dependencies import (
    CurrentUser,
    RequireEnterprise,
    RequirePro,
    get_current_user,
    require_tier,
)
from bloxserver.api.errors import install_error_handlers
from bloxserver.api.main import app
from bloxserver.models.database import get_db
from bloxserver.models.tables import FlowRecord, Tier, TriggerRecord, UserRecord
from tests import factories
from tests.api.contract import API, assert_problem, covers, path_of

PRO_OR_MORE = "This feature requires one of: pro, enterprise"


class TestRequireTier:
    @covers("require-tier")
    @pytest.mark.parametrize("tier", [*Tier, "unknown"])
    async def test_users_of_the_required_tiers_are_allowed(self, tier: str) -> None:
        other = FastAPI()
        install_error_handlers(other)

        @other.get("/pro")
        async def pro(user: RequirePro) -> str:
            return user.tier

        @other.get("/enterprise")
        async def enterprise(user: RequireEnterprise) -> str:
            return user.tier

        @other.get("/own")
        async def own(user: Annotated[CurrentUser, Depends(require_tier("free", "high_frequency"))]) -> str:
            return user.tier

        user = UserRecord(id=uuid4(), clerk_id="user_1", tier=tier)
        other.dependency_overrides[get_current_user] = lambda: CurrentUser(user, {})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=other), base_url="http://test") as client:
            answers = {path: await client.get(path) for path in ("/pro", "/enterprise", "/own")}
        allowed = {"/pro": ("pro", "enterprise"), "/enterprise": ("enterprise",), "/own": ("free", "high_frequency")}
        for path, response in answers.items():
            names = allowed[path]
            if tier in names:
                assert (response.status_code, response.json()) == (200, tier)
            else:
                body = response.json()
                message = f"This feature requires one of: {', '.join(names)}"
                assert (response.status_code, body["code"], body["detail"]) == (403, "tier_required", message)
        assert (tier in allowed["/pro"]) or answers["/pro"].json()["detail"] == PRO_OR_MORE


class TestCurrentUser:
    @covers("current-user")
    @pytest.mark.parametrize("tier", [Tier.ENTERPRISE, "enterprise"])
    def test_current_user_has_the_attributes_of_its_record(self, tier: str) -> None:
        record = UserRecord(id=uuid4(), clerk_id="user_1", email="a@example.com", tier=tier)
        user = CurrentUser(record, {"sub": "user_1"})
        assert (user.user, user.clerk_payload) == (record, {"sub": "user_1"})
        assert (user.id, user.clerk_id, user.email) == (record.id, "user_1", "a@example.com")
        assert (user.tier, type(user.tier)) == ("enterprise", str)

    @covers("override.current-user")
    async def test_override_may_return_a_detached_record(
        self, client: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        user = await factories.create_user(session, tier=Tier.PRO)
        flow = await factories.create_flow(session, user)
        session.expunge(user)
        app.dependency_overrides[get_current_user] = lambda: CurrentUser(user, {})
        assert (await client.get(f"{API}/me")).json()["id"] == str(user.id)
        assert (await client.get(f"{API}/usage")).json()["runsUsed"] == 0
        created = await client.post(f"{API}/flows", json={"name": "Another"})
        assert (created.status_code, created.json()["userId"]) == (201, str(user.id))
        assert (await client.get(f"{API}/flows")).json()["total"] == 2
        assert (await client.post(f"{path_of(flow)}/executions/run")).status_code == 201

    @covers("override.current-user")
    @pytest.mark.parametrize("whole", [True, False])
    async def test_override_may_return_a_record_without_a_row(
        self, client: httpx.AsyncClient, session: AsyncSession, database_engine: AsyncEngine, whole: bool
    ) -> None:
        """PostgreSQL enforces foreign keys, so a user without a row can only read there."""
        more: dict[str, Any] = {"email": "a@example.com", "tier": Tier.PRO} if whole else {}
        user = UserRecord(id=uuid4(), clerk_id="user_1", **more)
        app.dependency_overrides[get_current_user] = lambda: CurrentUser(user, {})
        assert (await client.get(f"{API}/flows")).json()["items"] == []
        assert (await client.get(f"{API}/flows/{uuid4()}")).status_code == 404
        assert (await client.get(f"{API}/usage")).json()["runsUsed"] == 0
        if database_engine.dialect.name == "sqlite":
            created = await client.post(f"{API}/flows", json={"name": "A flow"})
            assert (created.status_code, created.json()["userId"]) == (201, str(user.id))
            await client.post(f"{API}/flows", json={"name": "A flow"})
            assert (await client.get(f"{API}/flows")).json()["total"] == (2 if whole else 1)
            flow = (await session.scalars(sa.select(FlowRecord))).first()
            assert flow is not None
            flow.status = "running"  # type: ignore[assignment]
            await session.commit()
            assert (await client.post(f"{path_of(flow)}/executions/run")).status_code == 201
        assert list(await session.scalars(sa.select(UserRecord))) == []


class TestSession:
    @covers("testers.no-commit", "testers.only-get-db")
    async def test_routes_neither_commit_nor_roll_back_the_session(
        self, client: httpx.AsyncClient, sessions: async_sessionmaker[AsyncSession]
    ) -> None:
        async with sessions() as session:
            app.dependency_overrides[get_db] = lambda: session
            flow = (await client.post(f"{API}/flows", json={"name": "A flow"})).json()
            path = f"{API}/flows/{flow['id']}"
            assert (await client.patch(path, json={"name": "Renamed"})).json()["name"] == "Renamed"
            hook = {"type": "webhook", "name": "Hook", "config": {}}
            trigger = (await client.post(f"{path}/triggers", json=hook)).json()
            assert (await client.post(f"{path}/triggers", json=hook | {"type": "schedule"})).status_code == 422
            assert (await client.post(f"{path}/triggers/{trigger['id']}/regenerate-token")).status_code == 200
            assert (await client.post(f"{path}/executions/run")).status_code == 400
            assert (await client.post(f"{path}/start")).json()["status"] == "starting"
            assert (await client.post(f"{path}/start")).status_code == 400
            record = (await session.scalars(sa.select(FlowRecord))).one()
            record.status = "running"  # type: ignore[assignment]
            assert (await client.post(f"{path}/executions/run")).status_code == 201
            assert (await client.delete(f"{path}/triggers/{trigger['id']}")).status_code == 204
            assert (await client.get(f"{path}/executions/stats")).json()["executionsTotal"] == 1
            assert (await client.get(path)).json()["name"] == "Renamed"
            assert session.in_transaction()
            await session.rollback()
            for table in (UserRecord, FlowRecord, TriggerRecord):
                assert list(await session.scalars(sa.select(table))) == []

    @covers("testers.rows-by-hand", "testers.only-get-db")
    async def test_every_route_sees_rows_written_by_the_test(
        self, client: httpx.AsyncClient, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        trigger = await factories.create_trigger(session, flow, webhook_token="by-hand")
        execution = await factories.create_execution(session, flow)
        seen = {
            "": flow.id,
            f"/triggers/{trigger.id}": trigger.id,
            f"/executions/{execution.id}": execution.id,
        }
        for path, wanted in seen.items():
            assert (await client.get(f"{path_of(flow)}{path}")).json()["id"] == str(wanted)
        assert (await client.get(f"{API}/flows")).json()["total"] == 1
        assert len((await client.get(f"{path_of(flow)}/triggers")).json()) == 1
        assert (await client.get(f"{path_of(flow)}/executions")).json()["total"] == 1
        assert (await client.get(f"{path_of(flow)}/executions/stats")).json()["executionsTotal"] == 1
        assert (await client.get("/webhooks/by-hand/test")).json()["valid"] is True
        assert (await client.post("/webhooks/by-hand")).status_code == 200

    @covers("testers.only-get-db")
    async def test_routes_use_only_the_session_of_get_db(self, client: httpx.AsyncClient) -> None:
        async def no_database() -> AsyncIterator[None]:
            yield None

        app.dependency_overrides[get_db] = no_database
        app.dependency_overrides[get_current_user] = lambda: CurrentUser(UserRecord(id=uuid4(), clerk_id="u"), {})
        for method, path in [("GET", f"{API}/flows"), ("POST", f"{API}/flows"), ("POST", "/webhooks/token")]:
            response = await client.request(method, path, json={"name": "A flow"})
            assert_problem(response, 500, "internal_error", "Internal server error")
