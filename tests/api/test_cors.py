"""Preflight requests of browsers (https://fetch.spec.whatwg.org/#cors-preflight-fetch)."""

from __future__ import annotations

import httpx
import pytest

from tests.api.contract import API, assert_problem

ALLOWED = "http://localhost:3000"


def headers(**changes: str) -> dict[str, str]:
    return {"Origin": ALLOWED, "Access-Control-Request-Method": "PATCH"} | changes


@pytest.mark.parametrize("path", [f"{API}/flows", "/webhooks/token", "/unknown"])
async def test_refused_preflight_has_the_body_of_all_errors(client: httpx.AsyncClient, path: str) -> None:
    response = await client.options(path, headers=headers(Origin="https://evil.example"))
    assert_problem(response, 400, "cors_refused", "Disallowed CORS origin")
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "Access-Control-Allow-Origin" not in response.headers
    assert "Origin" in response.headers["Vary"]
    assert response.json()["requestId"] == response.headers["X-Request-Id"]


async def test_refused_method_is_named(client: httpx.AsyncClient) -> None:
    response = await client.options(
        f"{API}/flows", headers=headers(**{"Access-Control-Request-Method": "BREW"}, Origin="https://evil.example")
    )
    assert_problem(response, 400, "cors_refused", "Disallowed CORS origin, method")


async def test_preflight_of_an_allowed_origin_is_answered(client: httpx.AsyncClient) -> None:
    response = await client.options(
        f"{API}/flows", headers=headers(**{"Access-Control-Request-Headers": "if-match, idempotency-key"})
    )
    assert response.status_code == 200
    assert response.headers["Access-Control-Allow-Origin"] == ALLOWED
    assert response.headers["Access-Control-Allow-Headers"] == "if-match, idempotency-key"


@pytest.mark.parametrize(
    "given",
    [{"Origin": ALLOWED}, {"Access-Control-Request-Method": "GET"}, {}],
    ids=["no method", "no origin", "neither"],
)
async def test_other_options_requests_are_no_preflight(client: httpx.AsyncClient, given: dict[str, str]) -> None:
    response = await client.options(f"{API}/flows", headers=given)
    assert (response.status_code, response.content) == (204, b"")
    assert "GET" in response.headers["Allow"]
