"""Users that are created from the claims of their first token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.database import Database
from bloxserver.models.tables import Tier, UserRecord
from bloxserver.services.users import DEV_CLAIMS, user_of_claims
from tests.factories import create_user


async def count_users(session: AsyncSession) -> int:
    return await session.scalar(sa.select(sa.func.count()).select_from(UserRecord)) or 0


async def test_first_token_creates_a_free_user_with_the_profile_of_its_claims(session: AsyncSession) -> None:
    claims = {"sub": "user_ada", "email": "ada@example.com", "name": "Ada", "image_url": "https://example.com/ada.png"}
    user = await user_of_claims(session, claims)
    assert (user.clerk_id, user.email, user.name) == ("user_ada", "ada@example.com", "Ada")
    assert (user.avatar_url, user.tier) == ("https://example.com/ada.png", Tier.FREE)


async def test_later_token_returns_the_user_unchanged(session: AsyncSession) -> None:
    user = await create_user(session, clerk_id="user_ada", name="Ada", tier=Tier.PRO)
    found = await user_of_claims(session, {"sub": "user_ada", "name": "Another name"})
    assert (found.id, found.name, found.tier) == (user.id, "Ada", Tier.PRO)
    assert await count_users(session) == 1


async def test_development_claims_create_a_pro_user(session: AsyncSession) -> None:
    user = await user_of_claims(session, DEV_CLAIMS)
    assert (user.email, user.name, user.tier) == ("dev@localhost", "Dev User", Tier.PRO)


async def test_token_with_a_dev_claim_and_others_creates_a_free_user(session: AsyncSession) -> None:
    user = await user_of_claims(session, DEV_CLAIMS | {"iss": "https://clerk.example.com"})
    assert (user.tier, user.name) == (Tier.FREE, None)


@pytest.mark.parametrize(
    ("claims", "email", "name", "avatar_url"),
    [
        ({}, "user_ada@unknown", None, None),
        ({"email": "", "name": "", "image_url": ""}, "user_ada@unknown", None, None),
        ({"email": 1, "name": ["Ada"], "image_url": None}, "user_ada@unknown", None, None),
        ({"email": "a\0@b", "name": "A\ud800da", "image_url": "\0"}, "a@b", "Ada", None),
        ({"email": "e" * 400, "name": "n" * 400, "image_url": "u" * 3_000}, "e" * 320, "n" * 255, "u" * 2_048),
    ],
    ids=["missing", "empty", "not text", "not storable", "too long"],
)
async def test_claims_that_cannot_be_stored_do_not_prevent_the_creation(
    session: AsyncSession, claims: dict[str, Any], email: str, name: str | None, avatar_url: str | None
) -> None:
    user = await user_of_claims(session, {"sub": "user_ada"} | claims)
    assert (user.email, user.name, user.avatar_url) == (email, name, avatar_url)


async def test_concurrent_first_tokens_create_one_user(live_database: Database) -> None:
    async def receive() -> UserRecord:
        async with live_database.transaction() as session:
            return await user_of_claims(session, {"sub": "user_ada"})

    users = await asyncio.gather(*(receive() for _ in range(10)))
    assert len({user.id for user in users}) == 1
    async with live_database.sessions() as session:
        assert await count_users(session) == 1
