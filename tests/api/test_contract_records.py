"""Records as third-party tests use them: inserted with models and with SQL, and read through relationships."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import selectinload

from bloxserver.api.schemas import Execution, Flow, Trigger
from bloxserver.models.database import Base
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.models.tables import (
    BillingStatus,
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    StripeEventRecord,
    Tier,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserApiKeyRecord,
    UserRecord,
)
from tests.api.contract import API, covers

USER_ATTRIBUTES = [
    "clerk_id",
    "email",
    "name",
    "avatar_url",
    "tier",
    "billing_status",
    "stripe_customer_id",
    "stripe_subscription_id",
    "stripe_subscription_item_id",
    "trial_ends_at",
    "current_period_start",
    "current_period_end",
]


@covers("records.attributes", "records.user-attributes")
@pytest.mark.parametrize(
    ("record", "names"),
    [
        (FlowRecord, list(Flow.model_fields)),
        (TriggerRecord, list(Trigger.model_fields)),
        (ExecutionRecord, list(Execution.model_fields)),
        (UserRecord, ["id", "created_at", *USER_ATTRIBUTES]),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_attributes_have_the_names_of_the_api(record: type[Base], names: list[str]) -> None:
    assert len(names) > 7
    assert [name for name in names if not hasattr(record, name)] == []
    assert record(**dict.fromkeys(names)) is not None


class TestMinimalRows:
    @covers("records.minimal", "records.defaults", "testers.rows-by-hand")
    async def test_minimal_rows_inserted_with_models_are_served(
        self, client: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        user = UserRecord(clerk_id="dev_user_001", email="a@example.com")
        session.add(user)
        await session.flush()
        flow = FlowRecord(user_id=user.id, name="By hand")
        session.add(flow)
        await session.flush()
        trigger = TriggerRecord(flow_id=flow.id, type=TriggerType.MANUAL, name="By hand")
        execution = ExecutionRecord(flow_id=flow.id, trigger_type=TriggerType.MANUAL)
        session.add_all([trigger, execution])
        session.add(UsageRecord(user_id=user.id, period_start=datetime.now(UTC)))
        session.add(UserApiKeyRecord(user_id=user.id, provider="openai"))
        session.add(StripeEventRecord(event_id="evt_1"))
        await session.commit()
        await assert_minimal_rows_are_served(client, session)
        assert execution.started_at.tzinfo is UTC

    @covers("records.minimal", "records.defaults", "testers.rows-by-hand")
    async def test_minimal_rows_inserted_with_sql_are_served(
        self, client: httpx.AsyncClient, session: AsyncSession
    ) -> None:
        for statement in (
            "INSERT INTO users (clerk_id, email) VALUES ('dev_user_001', 'a@example.com')",
            "INSERT INTO flows (user_id, name) SELECT id, 'By hand' FROM users",
            "INSERT INTO triggers (flow_id, type, name) SELECT id, 'manual', 'By hand' FROM flows",
            "INSERT INTO executions (flow_id, trigger_type) SELECT id, 'manual' FROM flows",
            "INSERT INTO usage_records (user_id, period_start) SELECT id, created_at FROM users",
            "INSERT INTO user_api_keys (user_id, provider) SELECT id, 'openai' FROM users",
            "INSERT INTO stripe_events (event_id) VALUES ('evt_1')",
        ):
            await session.execute(sa.text(statement))
        await session.commit()
        await assert_minimal_rows_are_served(client, session)

    @covers("records.defaults")
    @pytest.mark.parametrize("table", Base.metadata.sorted_tables, ids=str)
    def test_every_optional_column_has_a_default(self, table: sa.Table) -> None:
        named = {
            "users": {"clerk_id", "email"},
            "flows": {"user_id", "name"},
            "triggers": {"flow_id", "type", "name"},
            "executions": {"flow_id", "trigger_type"},
            "usage_records": {"user_id", "period_start"},
            "user_api_keys": {"user_id", "provider"},
            "stripe_events": {"event_id"},
        }
        unnamed = [column for column in table.c if column.name not in named.get(table.name, set())]
        bare = {column.name for column in unnamed if not column.nullable and column.server_default is None}
        pythonless = {column.name for column in unnamed if not column.nullable and column.default is None}
        assert bare == pythonless
        assert bare == set() or table.name not in named


async def assert_minimal_rows_are_served(client: httpx.AsyncClient, session: AsyncSession) -> None:
    """Rows with only their required columns have the defaults, and every route accepts them."""
    user = (await session.scalars(sa.select(UserRecord).execution_options(populate_existing=True))).one()
    assert (user.tier, user.billing_status, user.name) == (Tier.FREE, BillingStatus.ACTIVE, None)
    usage = (await session.scalars(sa.select(UsageRecord).execution_options(populate_existing=True))).one()
    assert (usage.workflow_runs, usage.llm_tokens_in, usage.llm_tokens_out) == (0, 0, 0)
    assert (await client.get(f"{API}/me")).json()["id"] == str(user.id)
    listed = (await client.get(f"{API}/flows")).json()["items"]
    assert [(flow["name"], flow["status"]) for flow in listed] == [("By hand", "stopped")]
    path = f"{API}/flows/{listed[0]['id']}"
    flow = (await client.get(path)).json()
    assert (flow["organismYaml"], flow["canvasState"], flow["userId"]) == (DEFAULT_ORGANISM, None, str(user.id))
    trigger = (await client.get(f"{path}/triggers")).json()[0]
    assert (trigger["config"], trigger["webhookToken"], trigger["webhookUrl"]) == ({}, None, None)
    execution = (await client.get(f"{path}/executions")).json()["items"][0]
    assert (execution["status"], execution["triggerType"]) == ("running", "manual")
    for time in (flow["createdAt"], flow["updatedAt"], trigger["createdAt"], execution["startedAt"]):
        assert abs(datetime.fromisoformat(time) - datetime.now(UTC)) < timedelta(minutes=1)
    read = (await client.get(f"{path}/executions/{execution['id']}")).json()
    assert (read["inputPayload"], read["inputEncoding"], read["triggerId"]) == (None, "text", None)
    assert (await client.get(f"{path}/executions/stats")).json()["executionsTotal"] == 1
    assert (await client.post(f"{API}/flows", json={"name": "Second"})).status_code == 403
    assert (await client.patch(path, json={"name": "After"})).json()["name"] == "After"
    assert (await client.post(f"{path}/start")).json()["status"] == "starting"
    assert (await client.delete(f"{path}/triggers/{trigger['id']}")).status_code == 204
    assert (await client.delete(path)).status_code == 204


class TestRelationships:
    @covers("records.relationships")
    async def test_relationships_load(self, session: AsyncSession) -> None:
        user = UserRecord(clerk_id="user_1", email="a@example.com")
        flow = FlowRecord(name="A flow", user=user)
        trigger = TriggerRecord(type=TriggerType.WEBHOOK, name="Hook", flow=flow, webhook_token="token")
        session.add(ExecutionRecord(flow=flow, trigger=trigger, trigger_type=TriggerType.WEBHOOK))
        await session.commit()
        session.expunge_all()
        user = (
            await session.scalars(
                sa.select(UserRecord).options(
                    selectinload(UserRecord.flows)
                    .selectinload(FlowRecord.triggers)
                    .selectinload(TriggerRecord.executions),
                    selectinload(UserRecord.flows).selectinload(FlowRecord.executions),
                )
            )
        ).one()
        loaded = user.flows[0]
        assert [trigger.name for trigger in loaded.triggers] == ["Hook"]
        assert loaded.executions == loaded.triggers[0].executions
        assert len(loaded.executions) == 1
        session.expunge_all()
        execution = (
            await session.scalars(
                sa.select(ExecutionRecord).options(
                    selectinload(ExecutionRecord.flow).selectinload(FlowRecord.user),
                    selectinload(ExecutionRecord.trigger).selectinload(TriggerRecord.flow),
                )
            )
        ).one()
        assert execution.trigger is not None
        assert execution.flow is execution.trigger.flow
        assert execution.flow.user.clerk_id == "user_1"

    @covers("records.naive-datetime")
    async def test_naive_datetime_is_taken_as_utc(self, session: AsyncSession) -> None:
        naive = datetime.fromisoformat("2024-03-31T02:30:00.000001")
        user = UserRecord(clerk_id="user_1", trial_ends_at=naive, current_period_start=naive, current_period_end=naive)
        session.add(user)
        await session.commit()
        await session.refresh(user)
        for read in (user.trial_ends_at, user.current_period_start, user.current_period_end):
            assert (read, read and read.tzinfo) == (naive.replace(tzinfo=UTC), UTC)
        found = sa.select(UserRecord.clerk_id).where(UserRecord.trial_ends_at == naive)
        assert await session.scalar(found) == "user_1"

    @covers("records.attributes")
    async def test_enum_columns_accept_plain_text(self, session: AsyncSession) -> None:
        user = UserRecord(clerk_id="user_1", tier="pro", billing_status="past_due")
        flow = FlowRecord(name="A flow", user=user, status="running")
        execution = ExecutionRecord(flow=flow, trigger_type="manual", status="success")
        session.add_all([user, flow, execution])
        await session.commit()
        for record in (user, flow, execution):
            await session.refresh(record)
        assert (user.tier, user.billing_status) == (Tier.PRO, BillingStatus.PAST_DUE)
        assert (flow.status, execution.status) == (FlowStatus.RUNNING, ExecutionStatus.SUCCESS)
