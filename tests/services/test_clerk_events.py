"""Events of Clerk about its users, in any order and any number of times."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from itertools import permutations
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import BadRequest, NotFound, Unprocessable
from bloxserver.models.tables import AuditEventRecord, DeletedUserRecord, Tier, UserRecord
from bloxserver.services.clerk_events import receive_event
from bloxserver.services.users import AccountDeleted, user_of_claims
from tests.clerk import override_settings
from tests.clerk_events import ADA, SECRET, created, deleted, event, profile, signed, updated
from tests.factories import create_user

Change = Callable[[AsyncSession, str], Awaitable[None]]


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with override_settings(CLERK_WEBHOOK_SECRET=SECRET):
        yield


async def receive(session: AsyncSession, body: bytes) -> None:
    await receive_event(session, body, signed(body))
    await session.commit()


async def sign_in(session: AsyncSession, clerk_id: str) -> None:
    """Use a token that is valid, as a first sign-in or a later one."""
    try:
        user = await user_of_claims(session, {"sub": clerk_id, "email": "token@example.com"})
        assert user.clerk_id == clerk_id
    except AccountDeleted:
        await session.rollback()
    await session.commit()


async def stored(session: AsyncSession, clerk_id: str = ADA) -> list[tuple[Any, ...]]:
    row = UserRecord.__table__.c
    columns = (row.email, row.name, row.avatar_url, row.clerk_updated_at, row.deleted_at.is_not(None))
    return [tuple(found) for found in await session.execute(sa.select(*columns).where(row.clerk_id == clerk_id))]


async def count(session: AsyncSession, table: type[Any]) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0


def receiving(make: Callable[[str], bytes]) -> Change:
    async def change(session: AsyncSession, clerk_id: str) -> None:
        await receive(session, make(clerk_id))

    return change


CHANGES: dict[str, Change] = {
    "sign_in": sign_in,
    "created": receiving(lambda clerk_id: created(1_000, clerk_id)),
    "updated": receiving(lambda clerk_id: updated(2_000, clerk_id)),
    "updated again": receiving(lambda clerk_id: updated(3_000, clerk_id)),
    "deleted": receiving(deleted),
}
NEWEST = ("ada3000@example.com", "Ada Lovelace", "https://img.clerk.com/ada.png", 3_000, False)


async def test_profile_is_the_newest_one_in_every_order(session: AsyncSession) -> None:
    names = [name for name in CHANGES if name != "deleted"]
    for number, order in enumerate(permutations(names)):
        clerk_id = f"user_{number}"
        for name in [*order, *order[:2]]:  # the first two are delivered again
            await CHANGES[name](session, clerk_id)
        assert await stored(session, clerk_id) == [NEWEST], order
    assert await count(session, DeletedUserRecord) == 0


async def test_deleted_user_stays_deleted_in_every_order(session: AsyncSession) -> None:
    for number, order in enumerate(permutations(CHANGES)):
        clerk_id = f"user_{number}"
        for name in [*order, *order[:2], "sign_in"]:
            await CHANGES[name](session, clerk_id)
        rows = await stored(session, clerk_id)
        assert rows in ([], [("", None, None, rows and rows[0][3], True)]), order
        assert (rows == []) == (order[0] == "deleted"), order
    assert await count(session, DeletedUserRecord) == 120


async def test_created_user_has_the_default_tier_and_an_audit_event(session: AsyncSession) -> None:
    with override_settings(DEFAULT_TIER="pro"):
        await receive(session, created())
    user = (await session.scalars(sa.select(UserRecord))).one()
    assert (user.clerk_id, user.tier) == (ADA, Tier.PRO)
    recorded = (await session.scalars(sa.select(AuditEventRecord))).one()
    assert (recorded.action, recorded.user_id, recorded.after) == ("user.created", user.id, {"tier": "pro"})


async def test_repeated_event_changes_nothing(session: AsyncSession) -> None:
    body = updated(2_000)
    headers = signed(body)
    await receive_event(session, body, headers)
    await session.commit()
    row = sa.select(UserRecord.__table__)
    before = (await session.execute(row)).all()
    await receive_event(session, body, headers)
    await session.commit()
    assert (await session.execute(row)).all() == before


async def test_email_of_another_user_is_no_conflict(session: AsyncSession) -> None:
    """Clerk lets an address move from one user to another."""
    await create_user(session, email="ada1000@example.com")
    await receive(session, created())
    assert (await stored(session))[0][0] == "ada1000@example.com"


@pytest.mark.parametrize(
    ("changes", "email", "name", "avatar"),
    [
        ({"primary_email_address_id": None}, f"{ADA}@unknown", "Ada Lovelace", True),
        ({"primary_email_address_id": "idn_9"}, f"{ADA}@unknown", "Ada Lovelace", True),
        ({"primary_email_address_id": "idn_1"}, "old@example.com", "Ada Lovelace", True),
        ({"email_addresses": []}, f"{ADA}@unknown", "Ada Lovelace", True),
        ({"first_name": None}, "ada1000@example.com", "Lovelace", True),
        ({"last_name": ""}, "ada1000@example.com", "Ada", True),
        ({"first_name": None, "last_name": None, "image_url": None}, "ada1000@example.com", None, False),
        ({"first_name": "x" * 300}, "ada1000@example.com", "x" * 255, True),
    ],
)
async def test_profile_without_some_members(
    session: AsyncSession, changes: dict[str, Any], email: str, name: str | None, avatar: bool
) -> None:
    await receive(session, created(**changes))
    row = (await stored(session))[0]
    assert (row[0], row[1], row[2] is not None) == (email, name, avatar)


INVALID: list[dict[str, Any]] = [
    {"id": ""},
    {"id": 7},
    {"id": "x" * 256},
    {"id": "user ada"},
    {"id": "local:1"},
    {"id": "oidc:1"},
    {"id": "deleted:1"},
    {"updated_at": None},
    {"updated_at": "1000"},
    {"updated_at": True},
    {"updated_at": 1.5},
    {"updated_at": -1},
    {"updated_at": 2**63},
    {"updated_at": 10**400},
    {"primary_email_address_id": 1},
    {"email_addresses": None},
    {"email_addresses": [None]},
    {"email_addresses": [{"id": "idn_2"}]},
    {"first_name": ["Ada"]},
    {"last_name": {}},
    {"image_url": False},
]


@pytest.mark.parametrize("changes", INVALID, ids=lambda changes: ascii(changes)[:40])
async def test_invalid_profile_is_refused(session: AsyncSession, changes: dict[str, Any]) -> None:
    for kind in ("user.created", "user.updated"):
        with pytest.raises(Unprocessable):
            await receive(session, event(kind, profile(**changes)))
    assert await count(session, UserRecord) == 0


@pytest.mark.parametrize("data", [{}, {"id": None}, {"id": "deleted:1"}, {"id": "x" * 256}])
async def test_invalid_deletion_is_refused(session: AsyncSession, data: dict[str, Any]) -> None:
    with pytest.raises(Unprocessable):
        await receive(session, event("user.deleted", data))
    assert await count(session, DeletedUserRecord) == 0


async def test_unknown_events_change_nothing(session: AsyncSession) -> None:
    for kind in ("session.created", "user.merged", "", "user.deleted.", "organization.deleted"):
        await receive(session, event(kind, profile()))
    assert await count(session, UserRecord) == 0


async def test_events_need_a_secret_and_a_signature(session: AsyncSession) -> None:
    body = created()
    with pytest.raises(BadRequest):
        await receive_event(session, body, {})
    with override_settings(CLERK_WEBHOOK_SECRET=""), pytest.raises(NotFound, match="Webhook not found"):
        await receive_event(session, body, signed(body))
