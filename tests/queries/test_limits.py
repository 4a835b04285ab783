"""Which users are at a limit, and which are near it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import ApiKeyRecord, SecretRecord, StoredBytesRecord, Tier, UsageRecord, UserRecord
from bloxserver.plans import get_plan
from bloxserver.queries.limits import MAX_USERS, LimitState, read_limits
from bloxserver.raw_json import RawJson
from tests.factories import create_flow, create_trigger, create_user

MOMENT = datetime(2026, 6, 15, tzinfo=UTC)


async def states(session: AsyncSession) -> dict[str, LimitState]:
    return {state.name: state for state in await read_limits(session, MOMENT)}


async def store(session: AsyncSession, size: int, **values: Any) -> None:
    """Create a user who stores this many bytes, in two slots."""
    user = await create_user(session, **values)
    for slot, part in enumerate((size + 5, -5)):
        session.add(StoredBytesRecord(user_id=user.id, source="executions", slot=slot, bytes=part))
    await session.commit()


async def test_without_users_no_limit_is_reached(session: AsyncSession) -> None:
    assert {name: tuple(state)[1:] for name, state in (await states(session)).items()} == dict.fromkeys(
        ("runs", "flows", "triggers_per_flow", "secrets", "api_keys", "stored_bytes"), (0, 0, [])
    )


@pytest.mark.parametrize(
    ("limits", "used", "at", "near"),
    [
        ({"stored_bytes": 100}, 79, 0, 0),
        ({"stored_bytes": 100}, 80, 0, 1),
        ({"stored_bytes": 100}, 99, 0, 1),
        ({"stored_bytes": 100}, 100, 1, 0),
        ({"stored_bytes": 100}, 101, 1, 0),
        ({"stored_bytes": 100.9}, 100, 1, 0),
        ({"stored_bytes": 0}, 1, 1, 0),
        ({"stored_bytes": "100"}, 100, 0, 0),
        ({"stored_bytes": -1}, 100, 0, 0),
        ({"stored_bytes": True}, 100, 0, 0),
        ({"stored_bytes": None}, 2**30, 1, 0),
        ([1], 2**30, 1, 0),
        (None, 2**30 - 1, 0, 1),
        (None, 2**30, 1, 0),
    ],
)
async def test_users_are_compared_with_the_limits_of_their_plan_and_their_own(
    session: AsyncSession, limits: Any, used: int, at: int, near: int
) -> None:
    await store(session, used, clerk_id="ada", limits=limits)
    state = (await states(session))["stored_bytes"]
    assert (state.at, state.near) == (at, near)
    expected = [("ada", "free", used, get_plan("free", limits).stored_bytes)] if at or near else []
    assert [tuple(user) for user in state.users] == expected


VALUES = [
    *("1e999", "-1e999", "1e309", "1e400", "1e308", "1e16", "9e15", "-1e308", "1e-400", "1e-999", "1e99999"),
    *(
        "1e+0000000000002",
        "1E2",
        "1e1000000000",
        "100.5e0",
        "0",
        "-0",
        "-0.0",
        "0e999",
        "9007199254740992",
        "9007199254740993",
    ),
    *("9" * 308, "9" * 309, "9" * 400, "-" + "9" * 400, "9" * 5_000, "9" * 200_000, "100." + "0" * 4_000 + "9"),
    *('"1e999"', '"NaN"', '"100"', "{}", "[]", "[1e999]", '{"stored_bytes": 1e999}', "true", "null"),
]
VALUES += ["[" * 5_000 + "]" * 5_000]
SQLITE_ONLY = ["NaN", "Infinity", "-Infinity", "+1", "0x10", ".5", "", "}{"]
"""PostgreSQL rejects them, since they are not JSON."""


@pytest.mark.parametrize("name", ["stored_bytes", "runs"])
async def test_override_of_another_program_is_read_as_in_the_plan(session: AsyncSession, name: str) -> None:
    """Whatever the value is, and without an error."""
    used = {"stored_bytes": 2**54, "runs": 2**31 - 1}
    user = await create_user(session, clerk_id="ada")
    session.add(StoredBytesRecord(user_id=user.id, source="executions", slot=0, bytes=used["stored_bytes"]))
    period = {"period_start": MOMENT - timedelta(days=5), "period_end": MOMENT + timedelta(days=5)}
    session.add(UsageRecord(user_id=user.id, workflow_runs=used["runs"], slot=0, **period))
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    for value in VALUES + (SQLITE_ONLY if is_sqlite else []):
        await session.execute(sa.update(UserRecord).values(limits=RawJson(f'{{"{name}": {value}}}')))
        await session.refresh(user)
        limit = getattr(get_plan("free", user.limits), name)
        listed = [user.limit for user in (await states(session))[name].users]
        assert listed == ([] if limit is None or limit > used[name] else [limit]), value[:30]


async def test_limits_depend_on_the_tier_and_null_is_unlimited(session: AsyncSession) -> None:
    period = {"period_start": MOMENT - timedelta(days=5), "period_end": MOMENT + timedelta(days=5)}
    for name, tier, limits in (
        ("free", Tier.FREE, None),
        ("pro", Tier.PRO, None),
        ("enterprise", Tier.ENTERPRISE, None),
        ("unlimited", Tier.FREE, {"runs": None}),
    ):
        user = await create_user(session, clerk_id=name, tier=tier, limits=limits)
        session.add_all(UsageRecord(user_id=user.id, workflow_runs=500, slot=slot, **period) for slot in range(2))
        earlier = {"period_start": MOMENT - timedelta(days=35), "period_end": MOMENT - timedelta(days=5)}
        session.add(UsageRecord(user_id=user.id, workflow_runs=10**9, **earlier))
    await session.commit()
    runs = (await states(session))["runs"]
    assert (runs.at, runs.near, [tuple(user) for user in runs.users]) == (1, 0, [("free", "free", 1_000, 1_000)])


async def test_flows_triggers_secrets_and_keys_are_counted(session: AsyncSession) -> None:
    limits = {"triggers_per_flow": 2, "secrets": 1, "api_keys": 1, "flows": 3}
    user = await create_user(session, clerk_id="ada", limits=limits)
    flows = [await create_flow(session, user) for _ in range(2)]
    await create_flow(session, user, deleted_at=MOMENT)
    for flow in (flows[0], flows[0], flows[1]):
        await create_trigger(session, flow)
    await create_trigger(session, flows[1], deleted_at=MOMENT)
    session.add(SecretRecord(user_id=user.id, name="A"))
    session.add(ApiKeyRecord(user_id=user.id, name="A", key_hash=b"1", hint="", scopes=["read"]))
    await session.commit()
    found = await states(session)
    assert [(user.used, user.limit) for user in found["triggers_per_flow"].users] == [(2, 2)]
    assert [(user.used, user.limit) for user in found["secrets"].users] == [(1, 1)]
    assert [(user.used, user.limit) for user in found["api_keys"].users] == [(1, 1)]
    assert found["flows"].users == []
    await create_flow(session, user)
    assert [(user.used, user.limit) for user in (await states(session))["flows"].users] == [(3, 3)]


async def test_list_is_bounded_and_has_the_largest_shares_first(session: AsyncSession) -> None:
    for number in range(MAX_USERS + 5):
        await store(session, 90 + number, clerk_id=f"user {number:02}", limits={"stored_bytes": 100})
    state = (await states(session))["stored_bytes"]
    assert (state.at, state.near, len(state.users)) == (5, 10, MAX_USERS)
    assert [user.used for user in state.users] == list(range(104, 94, -1))


async def test_unknown_tier_has_the_free_limits(session: AsyncSession) -> None:
    await store(session, 2**30, clerk_id="ada")
    await session.execute(sa.text("UPDATE users SET tier = 'platinum'"))
    assert (await states(session))["stored_bytes"].at == 1
