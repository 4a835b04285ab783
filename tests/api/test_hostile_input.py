"""Malformed and malicious input is rejected or stored: no server error, and no row that breaks a later read."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.clients import oidc
from bloxserver.models.tables import UserRecord
from bloxserver.settings import get_settings
from tests import factories
from tests.api.hostile import ROWS, Row
from tests.clerk import Clerk, clerk_authentication, override_settings
from tests.conftest import api_client
from tests.jwks_server import JwksServer, SigningKey, claims


@pytest.fixture
async def values(dev_user: UserRecord, session: AsyncSession) -> dict[str, str]:
    """The values of the placeholders in rows."""
    flow = await factories.create_flow(session, dev_user)
    trigger = await factories.create_trigger(session, flow)
    assert trigger.webhook_token is not None
    return {"{flow}": str(flow.id), "{trigger}": str(trigger.id), "{token}": trigger.webhook_token}


async def broken_reads(client: httpx.AsyncClient, values: dict[str, str]) -> dict[str, int]:
    """Reads that do not respond with 200, with their statuses."""
    flow = f"/api/v1/flows/{values['{flow}']}"
    reads = [
        "/api/v1/flows?page_size=1000",
        "/api/v1/usage",
        "/api/v1/api-keys",
        flow,
        f"{flow}/executions?page_size=1000",
    ]
    reads += [f"{flow}/triggers", f"{flow}/executions/stats"]
    answers = {path: (await client.get(path)).status_code for path in reads}
    return {path: status for path, status in answers.items() if status != 200}


async def answers_of(client: httpx.AsyncClient, rows: Iterable[Row], values: dict[str, str]) -> dict[str, Any]:
    """The status of each row. For a row that was accepted and breaks later reads: these reads."""
    answers: dict[str, Any] = {}
    for row in rows:
        assert row.name not in answers, "row names are unique"
        path, content = row.path, row.content
        for placeholder, value in values.items():
            path = path.replace(placeholder, value)
            content = content and content.replace(placeholder.encode(), value.encode())
        response = await client.request(row.method, path, content=content, headers=row.raw_headers())
        answers[row.name] = response.status_code
        if response.status_code >= 400:
            problem = response.json()
            assert response.headers["Content-Type"] == "application/problem+json", row.name
            assert problem["status"] == response.status_code, row.name
            assert set(problem) >= {"type", "title", "detail", "code", "message", "details", "requestId"}, row.name
        elif row.method != "GET":
            answers[row.name] = await broken_reads(client, values) or response.status_code
    return answers


@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS.keys())
async def test_hostile_input_gets_the_expected_status_and_breaks_no_reads(
    client: httpx.AsyncClient, values: dict[str, str], rows: list[Row]
) -> None:
    assert await answers_of(client, rows, values) == {row.name: row.status for row in rows}
    assert await broken_reads(client, values) == {}


REQUEST_IDS = [
    b"", b" ", b"a b", b"<script>",
    b"x" * 129, b"x" * 20_000, b"\xff\xfe", b"a\tb", b"%0d%0aSet-Cookie: a=b", b"{}", b"\xe9",
]  # fmt: skip


async def test_invalid_request_id_is_replaced() -> None:
    async with api_client() as client:
        for request_id in REQUEST_IDS:
            response = await client.get("/nothing", headers=[(b"X-Request-Id", request_id)])
            assert response.status_code == 404, request_id[:80]
            assert re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-Id"]), request_id[:80]
            assert response.json()["requestId"] == response.headers["X-Request-Id"], request_id[:80]


async def test_valid_request_id_is_kept() -> None:
    async with api_client() as client:
        response = await client.get("/nothing", headers={"X-Request-Id": "trace:01.a_b-c"})
    assert response.headers["X-Request-Id"] == response.json()["requestId"] == "trace:01.a_b-c"


MISSING = [
    b"",
    b" ",
    b"Bearer",
    b"Bearer ",
    b"Basic YTpi",
    b"bearer:x",
    b"\xff",
    b"Bearer\tx",
    b"Negotiate " + b"x" * 20_000,
]
INVALID = [
    b"Bearer x", b"bearer a.b.c", b"Bearer " + b"x" * 20_000, b"Bearer " + b"x" * 7_000 + b".y.z", b"Bearer a b c",
    b"Bearer ..",
    b"Bearer \xff.\xff.\xff", b"Bearer %00.%00.%00", b"Bearer null", b"Bearer eyJ9.e30.", b"Bearer " + b"." * 8_000,
    b"Bearer " + b64encode(b"[" * 6_000).rstrip(b"=") + b".e30.x",
    b"Bearer " + b64encode(b'{"alg":NaN}').rstrip(b"=") + b".e30.x",
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "headers"), [("missing_token", MISSING), ("invalid_token", INVALID)], ids=["missing", "invalid"]
)
async def test_invalid_authorization_header_gets_401(
    client: httpx.AsyncClient, code: str, headers: list[bytes]
) -> None:
    async with clerk_authentication():
        for header in headers:
            response = await client.get("/api/v1/flows", headers=[(b"Authorization", header)])
            assert (response.status_code, response.json()["code"]) == (401, code), header[:80]
            assert response.headers["WWW-Authenticate"].startswith("Bearer"), header[:80]


JUNK = [
    7,
    True,
    [],
    {"a": []},
    "",
    "\0",
    "\ud800",
    "\u20ac",
    "x" * 4_000,
    float("nan"),
    float("inf"),
    10**400,
    -(10**400),
]
"""Values of claims. A token of 20 kB is among the invalid headers above."""
CLAIMS = ["sub", "iss", "aud", "exp", "nbf", "iat", "email", "name", "image_url", "picture", "azp", "events"]
HEADERS = ["kid", "typ", "crit"]


@asynccontextmanager
async def oidc_authentication() -> AsyncIterator[Clerk]:
    """Run a provider of OpenID Connect tokens."""
    key = SigningKey()
    async with JwksServer(key) as server:
        with override_settings(OIDC_ISSUER=server.issuer, OIDC_AUDIENCE="blox"):
            yield Clerk(server.issuer, key)
            await oidc.get_verifier(get_settings()).aclose()


@pytest.mark.parametrize("authentication", [clerk_authentication, oidc_authentication])
async def test_signed_token_with_junk_is_rejected_or_ignored(
    client: httpx.AsyncClient, authentication: Callable[[], AbstractAsyncContextManager[Clerk]]
) -> None:
    async with authentication() as provider:
        valid = claims(provider.issuer, aud="blox")
        payloads: list[object] = [valid | {name: value} for name in CLAIMS for value in JUNK]
        payloads += [*JUNK, [valid]]
        tokens = [provider.key.sign(payload) for payload in payloads]
        tokens += [provider.key.sign(valid, **{name: value}) for name in HEADERS for value in JUNK]
        for number, token in enumerate(tokens):
            response = await client.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})
            assert response.status_code in (200, 401), (number, response.text)
        headers = {"Authorization": f"Bearer {provider.key.sign(valid)}"}
        for path in ("/api/v1/me", "/api/v1/flows", "/api/v1/executions", "/api/v1/api-keys"):
            assert (await client.get(path, headers=headers)).status_code == 200
