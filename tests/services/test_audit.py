"""Events of the audit log, and the transaction that they belong to."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clock import iso_utc, now
from bloxserver.encryption import SecretCipher
from bloxserver.errors import BadRequest, NotFound
from bloxserver.models.database import Database
from bloxserver.models.enums import ActorKind, AuditAction, Scope
from bloxserver.models.tables import AuditEventRecord, FlowRecord, FlowStatus, Tier
from bloxserver.plans import get_plan
from bloxserver.services import audit, deletions, flows, triggers, user_accounts
from bloxserver.services.account_deletions import delete_account
from bloxserver.services.api_keys import NewKey, create_api_key, revoke_api_key
from bloxserver.services.audit import Actor, current_actor
from bloxserver.services.secrets import set_secret
from bloxserver.services.users import user_of_claims
from tests import factories

CIPHER = SecretCipher(["a key of 32 bytes or more: 12345"])


@pytest.fixture(autouse=True)
def operator() -> Iterator[None]:
    token = current_actor.set(Actor(ActorKind.OPERATOR, "root"))
    yield
    current_actor.reset(token)


async def events_of(session: AsyncSession) -> list[tuple[str, Any, Any]]:
    wanted = sa.select(AuditEventRecord.action, AuditEventRecord.before, AuditEventRecord.after)
    return [tuple(row) for row in await session.execute(wanted.order_by(AuditEventRecord.id))]


async def test_event_names_the_operator(session: AsyncSession) -> None:
    user = await factories.create_user(session)
    await audit.record(session, AuditAction.USER_ENABLED, user.id, user.id)
    event = (await session.scalars(sa.select(AuditEventRecord))).one()
    assert (event.actor, event.actor_id, event.address, event.request_id) == ("operator", "root", None, None)
    assert (event.user_id, event.resource_id, event.flow_id) == (user.id, str(user.id), None)


async def test_without_an_actor_the_user_is_the_actor(session: AsyncSession) -> None:
    current_actor.set(Actor())
    user = await factories.create_user(session)
    await audit.record(session, AuditAction.SECRET_DELETED, user.id, "S")
    event = (await session.scalars(sa.select(AuditEventRecord))).one()
    assert (event.actor, event.actor_id, event.resource_id) == ("user", str(user.id), "S")


async def test_long_texts_are_cut_and_hidden_values_left_out(session: AsyncSession) -> None:
    user = await factories.create_user(session)
    after = {"name": "n" * 1000, "config": {"token": "t"}, "number": 1, "absent": None}
    await audit.record(session, AuditAction.FLOW_UPDATED, user.id, "r", after=after, hidden={"config"})
    [(_, before, recorded)] = await events_of(session)
    expected = {"name": "n" * 500, "config": "[not recorded]", "number": 1, "absent": None}
    assert (before, recorded) == (None, expected)


def test_difference_has_the_members_that_differ() -> None:
    assert audit.difference({"a": 1, "b": None}, {"a": 2, "b": None}) == ({"a": 1}, {"a": 2})


async def test_rollback_leaves_no_event(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session)
    async with live_database.transaction() as session:
        await flows.create_flow(session, user.id, get_plan(Tier.PRO), "A", None, None)
        assert len(await events_of(session)) == 1
        await session.rollback()
    async with live_database.transaction(read_only=True) as session:
        assert await events_of(session) == []
        assert await session.scalar(sa.select(sa.func.count()).select_from(FlowRecord)) == 0


async def test_operations_of_operators_are_recorded(live_database: Database) -> None:
    async with live_database.transaction() as session:
        user = await user_accounts.create_user(session, "ada@example.com", Tier.PRO, "Ada Lovelace")
        await factories.create_flow(session, user)
        for tier in (Tier.PRO, Tier.ENTERPRISE):
            await user_accounts.set_tier(session, user, tier)
        for _ in range(2):
            await user_accounts.disable_user(session, user)
        for _ in range(2):
            await user_accounts.enable_user(session, user)
        for _ in range(2):
            await delete_account(session, user.id)
        recorded = await events_of(session)
        assert recorded == [
            ("user.created", None, {"tier": "pro"}),
            ("user.tier_changed", {"tier": "pro"}, {"tier": "enterprise"}),
            ("user.disabled", None, None),
            ("flow.stopped", {"status": "running"}, {"status": "stopping"}),
            ("user.enabled", None, None),
            ("user.deleted", {"tier": "enterprise"}, None),
        ]
        assert set(await session.scalars(sa.select(AuditEventRecord.actor))) == {ActorKind.OPERATOR}
        rows = (await session.execute(sa.select(AuditEventRecord.__table__))).all()
        assert not re.search("ada@|Lovelace", repr(rows)), "events outlive the user, so they lack the profile"


async def test_keys_are_recorded_with_their_access(session: AsyncSession) -> None:
    user = await factories.create_user(session)
    flow, expires_at = await factories.create_flow(session, user), now() + timedelta(days=1)
    row, _ = await create_api_key(session, user.id, NewKey("K", [Scope.RUN, Scope.READ], [flow.id], expires_at))
    await revoke_api_key(session, row.id)
    key = {"name": "K", "scopes": ["read", "run"], "flowIds": [str(flow.id)], "expiresAt": iso_utc(expires_at)}
    assert await events_of(session) == [("api_key.created", None, key), ("api_key.revoked", key, None)]
    assert (await session.scalars(sa.select(AuditEventRecord.user_id))).all() == [user.id, user.id]


async def test_secret_is_created_once_and_then_updated(session: AsyncSession) -> None:
    user = await factories.create_user(session)
    for value in ("a", "b", "c"):
        await set_secret(session, CIPHER, user.id, "S", value)
    actions = [action for action, _, _ in await events_of(session)]
    assert actions == ["secret.created", "secret.updated", "secret.updated"]


async def test_concurrent_changes_have_one_event_for_each_that_happened(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session)
        flow = await factories.create_flow(session, user, status=FlowStatus.STOPPED)
        trigger = await factories.create_trigger(session, flow)

    async def attempt(change: Any) -> None:
        with suppress(BadRequest, NotFound):
            async with live_database.transaction() as session:
                await change(session)

    changes = [
        *[lambda session: flows.start_flow(session, user.id, flow.id)] * 4,
        *[lambda session: deletions.delete_trigger(session, user.id, flow.id, trigger.id)] * 4,
        *[lambda session: user_of_claims(session, {"sub": "user_new"})] * 4,
    ]
    await asyncio.gather(*map(attempt, changes))
    async with live_database.transaction(read_only=True) as session:
        actions = sorted(action for action, _, _ in await events_of(session))
    assert actions == ["flow.started", "trigger.deleted", "user.created"]


async def test_values_before_concurrent_changes_are_those_of_the_change_before(live_database: Database) -> None:
    async with live_database.sessions() as session:
        user = await factories.create_user(session)
        flow = await factories.create_flow(session, user, name="0")
        trigger = await factories.create_trigger(session, flow, name="0")

    async def rename(name: str) -> None:
        async with live_database.transaction() as session:
            await flows.update_flow(session, user.id, get_plan(Tier.PRO), flow.id, {"name": name})
        async with live_database.transaction() as session:
            await triggers.update_trigger(session, user.id, flow.id, trigger.id, {"name": name})

    await asyncio.gather(*(rename(str(number)) for number in range(1, 9)))
    async with live_database.transaction(read_only=True) as session:
        for action in ("flow.updated", "trigger.updated"):
            found = [
                (before["name"], after["name"]) for each, before, after in await events_of(session) if each == action
            ]
            follows = dict(found)
            chain = ["0"]
            while chain[-1] in follows:
                chain.append(follows.pop(chain[-1]))
            assert (len(found), len(chain), follows) == (8, 9, {})
