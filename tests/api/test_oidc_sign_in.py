"""Sign-in with tokens of an OpenID Connect provider."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import httpx
import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clients.oidc import get_verifier, identity_of
from bloxserver.models.tables import UserRecord
from bloxserver.settings import get_settings
from tests import factories
from tests.api.contract import API
from tests.clerk import override_settings
from tests.jwks_server import JwksServer, SigningKey

KEY = SigningKey()


@pytest.fixture
async def issuer() -> AsyncIterator[str]:
    async with JwksServer(KEY) as server:
        with override_settings(OIDC_ISSUER=server.issuer, OIDC_AUDIENCE="blox"):
            yield server.issuer
            await get_verifier(get_settings()).aclose()


def headers(issuer: str, subject: str = "1001", **claims: object) -> dict[str, str]:
    now = time.time()
    members = {"iss": issuer, "sub": subject, "aud": "blox", "iat": now, "exp": now + 60}
    return {"Authorization": f"Bearer {KEY.sign(members | claims)}"}


async def test_first_token_creates_a_user_with_issuer_and_subject(
    client: httpx.AsyncClient, session: AsyncSession, issuer: str
) -> None:
    signed_in = headers(issuer, email="ada@example.com", name="Ada", picture="https://sso.example.com/ada.png")
    me = (await client.get(f"{API}/me", headers=signed_in)).json()
    assert (me["clerkId"], me["email"], me["name"]) == (identity_of(issuer, "1001"), "ada@example.com", "Ada")
    assert (me["avatarUrl"], me["tier"]) == ("https://sso.example.com/ada.png", "free")
    user = (await session.scalars(sa.select(UserRecord))).one()
    assert (user.issuer, user.subject) == (issuer, "1001")
    for path in (f"{API}/me", f"{API}/flows", f"{API}/executions"):
        assert (await client.get(path, headers=headers(issuer))).status_code == 200
    assert (await client.get(f"{API}/me", headers=headers(issuer, "1002"))).json()["id"] != me["id"]


async def test_user_with_the_same_email_is_not_linked(
    client: httpx.AsyncClient, session: AsyncSession, issuer: str
) -> None:
    existing = await factories.create_user(session, email="ada@example.com", clerk_id="user_ada")
    me = (await client.get(f"{API}/me", headers=headers(issuer, email="ada@example.com"))).json()
    assert me["id"] != str(existing.id)


@pytest.mark.parametrize("subject", ["user_ada", "local:1", "oidc:1"])
async def test_subject_cannot_be_the_identity_of_another_kind_of_user(
    client: httpx.AsyncClient, session: AsyncSession, issuer: str, subject: str
) -> None:
    existing = await factories.create_user(session, clerk_id=subject)
    me = (await client.get(f"{API}/me", headers=headers(issuer, subject))).json()
    assert me["id"] != str(existing.id)


async def test_invalid_token_is_rejected(client: httpx.AsyncClient, issuer: str) -> None:
    rejected = await client.get(f"{API}/me", headers=headers(issuer, aud="another"))
    assert (rejected.status_code, rejected.json()["message"]) == (401, "Invalid token: wrong audience")
    assert (await client.get(f"{API}/me")).status_code == 401
