from __future__ import annotations

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models.tables import UserApiKeyRecord, UserRecord
from bloxserver.queries.llm_keys import read_llm_keys, read_usable_keys, read_usable_kinds
from tests import factories


@pytest.fixture
async def ada(session: AsyncSession) -> UserRecord:
    """A user with one usable key, and keys that cannot be used."""
    ada = await factories.create_user(session, tier="pro")
    bob = await factories.create_user(session, tier="pro")
    session.add_all(
        [
            UserApiKeyRecord(user_id=ada.id, provider="xai", encrypted_key=b"x", is_valid=False),
            UserApiKeyRecord(user_id=ada.id, provider="openai", encrypted_key=b"o"),
            UserApiKeyRecord(user_id=ada.id, provider="anthropic"),
            UserApiKeyRecord(user_id=bob.id, provider="together", encrypted_key=b"t"),
        ]
    )
    await session.commit()
    return ada


async def test_only_valid_keys_of_the_user_are_usable(session: AsyncSession, ada: UserRecord) -> None:
    assert [key.provider for key in await read_usable_keys(session, ada.id)] == ["openai"]
    assert await read_usable_kinds(session, ada.id) == {"openai"}
    assert [row.provider for row in await read_llm_keys(session, ada.id)] == ["anthropic", "openai", "xai"]


@pytest.mark.parametrize(
    ("tier", "limits", "kinds"),
    [("free", None, set()), ("free", {"own_model_keys": True}, {"openai"}), ("pro", {"own_model_keys": False}, set())],
)
async def test_plan_determines_whether_keys_are_usable(
    session: AsyncSession, ada: UserRecord, tier: str, limits: dict[str, bool] | None, kinds: set[str]
) -> None:
    ada.tier, ada.limits = tier, limits  # type: ignore[assignment]
    await session.commit()
    assert await read_usable_kinds(session, ada.id) == kinds
