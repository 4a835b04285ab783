"""Create, list, read and delete triggers."""

from __future__ import annotations

import asyncio
import base64
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import ExecutionRecord, FlowRecord, Tier, TriggerRecord, TriggerType, UserRecord
from bloxserver.plans import FREE, PLANS
from tests import factories
from tests.api.contract import API, assert_invalid, assert_problem, covers, path_of
from tests.clerk import override_settings

TRIGGER = {"id", "flowId", "type", "name", "config", "webhookToken", "webhookUrl", "createdAt"}
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
CONFIG = {"snake_case": 1, "camelCase": {"a": [None, True, 0.1, "é🌍", {}]}, "": "", "cron": 7, "timezone": []}


async def triggers(session: AsyncSession) -> list[TriggerRecord]:
    statement = sa.select(TriggerRecord).order_by(TriggerRecord.name).execution_options(populate_existing=True)
    return list(await session.scalars(statement))


class TestCreateTrigger:
    @covers("triggers.shape", "triggers.webhook.token", "triggers.webhook.url", "env.webhook-base-url")
    async def test_webhook_gets_a_token_and_a_url(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        body = {"type": "webhook", "name": "Hook", "config": {}}
        created = [(await client.post(f"{path_of(flow)}/triggers", json=body)).json() for _ in range(3)]
        tokens = {trigger["webhookToken"] for trigger in created}
        assert len(tokens) == 3
        for trigger in created:
            assert trigger.keys() >= TRIGGER
            assert (trigger["flowId"], trigger["type"], trigger["name"]) == (str(flow.id), "webhook", "Hook")
            assert len(trigger["webhookToken"]) == 43
            assert len(base64.urlsafe_b64decode(trigger["webhookToken"] + "=")) == 32
            assert trigger["webhookUrl"] == f"https://api.openblox.ai/webhooks/{trigger['webhookToken']}"
        assert {trigger.webhook_token for trigger in await triggers(session)} == tokens
        with override_settings(WEBHOOK_BASE_URL="https://hooks.example/in/"):
            moved = (await client.get(f"{path_of(flow)}/triggers/{created[0]['id']}")).json()
        assert moved["webhookUrl"] == f"https://hooks.example/in/{moved['webhookToken']}"

    @covers("triggers.token-null", "triggers.schedule.cron", "triggers.schedule.timezone")
    @pytest.mark.parametrize(
        ("kind", "config"),
        [
            ("manual", {}),
            ("schedule", {"cron": "* * * * *"}),
            ("schedule", {"cron": "*/5 0-6 1,15 * mon-fri", "timezone": "Europe/Berlin"}),
            ("schedule", {"cron": "0 9 29 2 *", "timezone": "UTC", "target": "greeter"}),
        ],
    )
    async def test_other_types_get_no_token(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, kind: str, config: dict[str, str]
    ) -> None:
        response = await client.post(
            f"{path_of(flow)}/triggers", json={"type": kind, "name": "x" * 100, "config": config}
        )
        assert response.status_code == 201
        body = response.json()
        assert (body["type"], body["name"], body["config"]) == (kind, "x" * 100, config)
        assert (body["webhookToken"], body["webhookUrl"]) == (None, None)
        stored = (await triggers(session))[0]
        assert (str(stored.id), stored.flow_id, stored.config) == (body["id"], flow.id, config)
        assert (stored.webhook_token, stored.webhook_url) == (None, None)
        assert (await client.get(f"{path_of(flow)}/triggers/{body['id']}")).json() == body

    @covers("triggers.config")
    async def test_config_is_returned_exactly(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        response = await client.post(
            f"{path_of(flow)}/triggers", json={"type": "webhook", "name": "Hook", "config": CONFIG}
        )
        assert (response.status_code, response.json()["config"]) == (201, CONFIG)
        listed = (await client.get(f"{path_of(flow)}/triggers")).json()
        assert [trigger["config"] for trigger in listed] == [CONFIG]
        assert (await triggers(session))[0].config == CONFIG

    @covers("triggers.create.input", "triggers.config")
    async def test_invalid_body_is_rejected(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        whole: dict[str, Any] = {"type": "webhook", "name": "Hook", "config": {}}
        refusals: list[tuple[dict[str, Any], str]] = [
            (whole | {"type": "cron"}, "body.type"),
            (whole | {"type": "WEBHOOK"}, "body.type"),
            (whole | {"type": None}, "body.type"),
            (whole | {"name": ""}, "body.name"),
            (whole | {"name": "x" * 101}, "body.name"),
            (whole | {"config": None}, "body.config"),
            (whole | {"config": []}, "body.config"),
            (whole | {"config": "{}"}, "body.config"),
            *[({key: whole[key] for key in whole if key != absent}, f"body.{absent}") for absent in whole],
        ]
        for body, field in refusals:
            assert_invalid(await client.post(f"{path_of(flow)}/triggers", json=body), field)
        assert await triggers(session) == []

    @covers("triggers.schedule.invalid", "triggers.schedule.cron", "triggers.schedule.timezone")
    async def test_invalid_schedules_are_rejected(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        crons = [
            "@daily",
            "@reboot",
            "banana",
            "",
            "* * * *",
            "* * * * * *",
            "60 * * * *",
            "* 24 * * *",
            "* * 0 * *",
            "* * * 13 *",
            "*/0 * * * *",
            "0 0 31 2 *",
            "* * * * \N{ARABIC-INDIC DIGIT ONE}\N{ZERO WIDTH SPACE}",
            "*," * 200 + "* * * * *",
            None,
            7,
            ["* * * * *"],
        ]
        zones = [
            "../../etc/passwd",
            "America",
            "",
            "Europe/Atlantis",
            "/etc/localtime",
            "utc+1",
            "a\u2028b",
            7,
            None,
            {},
        ]
        refusals: list[tuple[dict[str, Any], set[str]]] = [
            ({}, {"cron"}),
            ({"timezone": "nowhere"}, {"cron", "timezone"}),
            *[({"cron": cron}, {"cron"}) for cron in crons],
            *[({"cron": "* * * * *", "timezone": zone}, {"timezone"}) for zone in zones],
        ]
        for config, fields in refusals:
            body = {"type": "schedule", "name": "Daily", "config": config}
            refused = await client.post(f"{path_of(flow)}/triggers", json=body)
            assert_invalid(refused, *[f"body.config.{field}" for field in fields])
        assert await triggers(session) == []


class TestListTriggers:
    @covers("triggers.list")
    async def test_list_is_an_array_sorted_oldest_first(
        self, client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        assert (await client.get(f"{path_of(flow)}/triggers")).json() == []
        for name, hours in {"b": 2, "c": 3, "a": 1}.items():
            kind = list(TriggerType)[hours - 1]
            await factories.create_trigger(
                session, flow, name=name, type=kind, created_at=NOON + timedelta(hours=hours)
            )
        await factories.create_trigger(session, await factories.create_flow(session, dev_user))
        listed = (await client.get(f"{path_of(flow)}/triggers")).json()
        assert [(trigger["name"], trigger["type"]) for trigger in listed] == [
            ("a", "webhook"),
            ("b", "schedule"),
            ("c", "manual"),
        ]
        assert listed[0]["createdAt"] == "2024-05-01T13:00:00.000000Z"
        for trigger in listed:
            assert (await client.get(f"{path_of(flow)}/triggers/{trigger['id']}")).json() == trigger


class TestTriggerNotFound:
    @covers("triggers.404")
    async def test_unknown_id_is_not_found_and_malformed_id_is_rejected(
        self, client: httpx.AsyncClient, flow: FlowRecord, dev_user: UserRecord, session: AsyncSession
    ) -> None:
        elsewhere = await factories.create_trigger(session, await factories.create_flow(session, dev_user))
        for method, suffix in [("GET", ""), ("DELETE", ""), ("POST", "/regenerate-token")]:
            for trigger_id in (uuid4(), elsewhere.id):
                response = await client.request(method, f"{path_of(flow)}/triggers/{trigger_id}{suffix}")
                assert_problem(response, 404, "trigger_not_found", "Trigger not found")
            malformed = await client.request(method, f"{path_of(flow)}/triggers/7{suffix}")
            assert_invalid(malformed, "path.trigger_id")
        assert [trigger.webhook_token for trigger in await triggers(session)] == [elsewhere.webhook_token]


class TestDeleteTrigger:
    @covers("triggers.delete", "testers.no-pragma")
    async def test_executions_of_a_deleted_trigger_are_kept(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        gone = await factories.create_trigger(session, flow)
        kept = await factories.create_trigger(session, flow, name="Kept")
        first = await factories.create_execution(session, flow, trigger_id=gone.id, trigger_type=TriggerType.WEBHOOK)
        await factories.create_execution(session, flow, trigger_id=kept.id)
        response = await client.delete(f"{path_of(flow)}/triggers/{gone.id}")
        assert (response.status_code, response.content) == (204, b"")
        assert [trigger.name for trigger in await triggers(session)] == ["Kept"]
        links = await session.execute(sa.select(ExecutionRecord.id, ExecutionRecord.trigger_id))
        assert {row.trigger_id for row in links} == {None, kept.id}
        read = (await client.get(f"{path_of(flow)}/executions/{first.id}")).json()
        assert (read["triggerId"], read["triggerType"]) == (None, "webhook")
        assert (await client.post(f"/webhooks/{gone.webhook_token}")).status_code == 404


class TestRegenerateToken:
    @covers("triggers.regenerate")
    async def test_old_token_is_invalid_at_once(self, client: httpx.AsyncClient, flow: FlowRecord) -> None:
        body = {"type": "webhook", "name": "Hook", "config": CONFIG}
        old = (await client.post(f"{path_of(flow)}/triggers", json=body)).json()
        assert (await client.post(f"/webhooks/{old['webhookToken']}")).status_code == 200
        response = await client.post(f"{path_of(flow)}/triggers/{old['id']}/regenerate-token")
        new = response.json()
        assert response.status_code == 200
        assert (await client.post(f"/webhooks/{old['webhookToken']}")).status_code == 404
        assert (await client.get(f"/webhooks/{old['webhookToken']}/test")).status_code == 404
        assert (await client.post(f"/webhooks/{new['webhookToken']}")).status_code == 200
        assert len(new["webhookToken"]) == 43
        assert new["webhookUrl"] == f"https://api.openblox.ai/webhooks/{new['webhookToken']}"
        assert new == old | {"webhookToken": new["webhookToken"], "webhookUrl": new["webhookUrl"]}
        assert (await client.get(f"{path_of(flow)}/triggers/{old['id']}")).json() == new

    @covers("triggers.regenerate.grace")
    async def test_old_token_is_valid_for_the_grace_period(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession
    ) -> None:
        body = {"type": "webhook", "name": "Hook", "config": CONFIG}
        first = (await client.post(f"{path_of(flow)}/triggers", json=body)).json()
        path = f"{path_of(flow)}/triggers/{first['id']}/regenerate-token"
        before = now()
        second = (await client.post(f"{path}?grace_seconds=60")).json()
        until = datetime.fromisoformat(second["previousTokenExpiresAt"])
        assert before + timedelta(seconds=60) <= until <= now() + timedelta(seconds=60)
        for shown in (first, second):
            assert (await client.post(f"/webhooks/{shown['webhookToken']}")).status_code == 200
            assert (await client.get(f"/webhooks/{shown['webhookToken']}/test")).status_code == 200
        await session.execute(sa.update(TriggerRecord).values(previous_token_expires_at=now()))
        await session.commit()
        assert (await client.post(f"/webhooks/{first['webhookToken']}")).status_code == 404
        assert (await client.post(f"/webhooks/{second['webhookToken']}")).status_code == 200
        shown = (await client.get(f"{path_of(flow)}/triggers/{first['id']}")).json()
        assert shown["previousTokenExpiresAt"] is None

    async def test_regeneration_invalidates_all_earlier_tokens(
        self, client: httpx.AsyncClient, flow: FlowRecord
    ) -> None:
        body = {"type": "webhook", "name": "Hook", "config": CONFIG}
        tokens = [(await client.post(f"{path_of(flow)}/triggers", json=body)).json()]
        path = f"{path_of(flow)}/triggers/{tokens[0]['id']}/regenerate-token"
        tokens += [(await client.post(f"{path}?grace_seconds={grace}")).json() for grace in (600, 600, 0)]
        statuses = [(await client.post(f"/webhooks/{one['webhookToken']}")).status_code for one in tokens]
        assert statuses == [404, 404, 404, 200]
        assert tokens[-1]["previousTokenExpiresAt"] is None

    @pytest.mark.parametrize("grace", ["-1", "604801", "1.5", "x", "", "9" * 400])
    async def test_invalid_grace_period_is_refused(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, grace: str
    ) -> None:
        trigger = await factories.create_trigger(session, flow)
        path = f"{path_of(flow)}/triggers/{trigger.id}/regenerate-token"
        assert (await client.post(path, params={"grace_seconds": grace})).status_code == 422
        assert (await client.post(f"/webhooks/{trigger.webhook_token}")).status_code == 200

    @covers("triggers.regenerate.refused")
    @pytest.mark.parametrize("kind", [TriggerType.SCHEDULE, TriggerType.MANUAL])
    async def test_token_of_other_types_cannot_be_regenerated(
        self, client: httpx.AsyncClient, flow: FlowRecord, session: AsyncSession, kind: TriggerType
    ) -> None:
        trigger = await factories.create_trigger(session, flow, type=kind)
        response = await client.post(f"{path_of(flow)}/triggers/{trigger.id}/regenerate-token")
        message = "Can only regenerate token for webhook triggers"
        assert_problem(response, 400, "trigger_not_a_webhook", message)
        assert (await triggers(session))[0].webhook_token is None


def schedule_of(size: int) -> dict[str, str]:
    """A config that is `size` bytes long as JSON."""
    return {"note": "é" * ((size - 11) // 2) + "a" * ((size - 11) % 2)}


class TestLimits:
    @pytest.fixture(autouse=True)
    async def _free_user(self, dev_user: UserRecord, session: AsyncSession) -> None:
        dev_user.tier = Tier.FREE
        await session.commit()

    @pytest.mark.parametrize(("existing", "status"), [(FREE.triggers_per_flow - 1, 201), (FREE.triggers_per_flow, 403)])
    async def test_number_of_triggers_of_a_flow_is_limited(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, existing: int, status: int
    ) -> None:
        flow, other = await factories.create_flow(session, dev_user), await factories.create_flow(session, dev_user)
        for _ in range(existing):
            await factories.create_trigger(session, flow)
        await factories.create_trigger(session, flow, deleted_at=now())
        body = {"type": "webhook", "name": "n", "config": {}}
        response = await client.post(f"{path_of(flow)}/triggers", json=body)
        assert response.status_code == status
        if status == 403:
            details = {"name": "triggers_per_flow", "limit": 20, "used": 20}
            message = (
                "The limit of 20 triggers per flow is reached (in use: 20). "
                "Delete a trigger that is no longer used, or upgrade your plan."
            )
            assert_problem(response, 403, "triggers_per_flow_limit_reached", message, details)
        assert (await client.post(f"{path_of(other)}/triggers", json=body)).status_code == 201
        assert len((await client.get(f"{path_of(flow)}/triggers")).json()) == 20

    async def test_triggers_in_the_database_over_the_limit_are_listed(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        for _ in range(30):
            await factories.create_trigger(session, flow, config=schedule_of(FREE.trigger_config_bytes + 1))
        assert len((await client.get(f"{path_of(flow)}/triggers")).json()) == 30

    @pytest.mark.parametrize("difference", [-1, 0, 1])
    async def test_size_of_a_config_is_limited(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, difference: int
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        trigger = await factories.create_trigger(session, flow)
        config = schedule_of(FREE.trigger_config_bytes + difference)
        body = {"type": "webhook", "name": "n", "config": config}
        created = await client.post(f"{path_of(flow)}/triggers", json=body)
        changed = await client.patch(f"{path_of(flow)}/triggers/{trigger.id}", json={"config": config})
        if difference <= 0:
            assert (created.json()["config"], changed.json()["config"]) == (config, config)
            return
        details = {"name": "trigger_config_bytes", "limit": 16384, "used": 16385}
        for refused in (created, changed):
            message = "The limit of 16384 trigger config bytes is reached (in use: 16385). Send a smaller config."
            assert_problem(refused, 403, "trigger_config_bytes_limit_reached", message, details)
        [listed] = (await client.get(f"{path_of(flow)}/triggers")).json()
        assert listed["config"] != config


async def test_concurrent_requests_create_no_more_triggers_than_the_limit(
    live_client: httpx.AsyncClient, live_database: Database
) -> None:
    await live_client.post(f"{API}/flows", json={"name": "n"})
    limit = PLANS["pro"].triggers_per_flow
    async with live_database.sessions() as session:
        flow = (await session.scalars(sa.select(FlowRecord))).one()
        for _ in range(limit - 2):
            await factories.create_trigger(session, flow)
    body = {"type": "webhook", "name": "n", "config": {}}
    responses = await asyncio.gather(*(live_client.post(f"{path_of(flow)}/triggers", json=body) for _ in range(5)))
    assert sorted(response.status_code for response in responses) == [201] * 2 + [403] * 3


class TestPages:
    @pytest.mark.parametrize("limit", [1, 2, 3, 7, 8])
    async def test_pages_have_every_trigger_once_in_the_order_of_the_list(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, limit: int
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        for number in range(7):
            await factories.create_trigger(session, flow, created_at=now() - timedelta(hours=number // 3))
        path = f"{path_of(flow)}/triggers"
        listed = [trigger["id"] for trigger in (await client.get(path)).json()]
        paged, sizes, following = [], [], f"?limit={limit}"
        while following:
            response = await client.get(f"{path}{following}")
            paged += [trigger["id"] for trigger in response.json()]
            sizes.append(len(response.json()))
            following = response.links["next"]["url"] if "Link" in response.headers else ""
        assert paged == listed
        assert sizes == [limit] * (7 // limit) + ([7 % limit] if 7 % limit else [])

    @pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "limit=5&cursor=x", "limit=5&cursor=1~2"])
    async def test_invalid_page_is_rejected(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord, query: str
    ) -> None:
        flow = await factories.create_flow(session, dev_user)
        name = "cursor" if "cursor" in query else "limit"
        assert_invalid(await client.get(f"{path_of(flow)}/triggers?{query}"), f"query.{name}")
