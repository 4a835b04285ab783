"""Tests of keys at their providers, with a real server on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from bloxserver.clients.model_keys import KeyRejected, check_key
from bloxserver.errors import Unavailable
from bloxserver.model_catalogue import BASE_URLS, ProviderKind
from tests.provider_server import VALID_KEYS, ProviderServer, provider_server


@pytest.fixture
def server() -> Iterator[ProviderServer]:
    with provider_server() as server:
        yield server


@pytest.mark.parametrize("provider", BASE_URLS)
async def test_key_is_tested_by_listing_the_models(server: ProviderServer, provider: ProviderKind) -> None:
    # As in the catalogue: the URL of Anthropic has no version.
    url = server.url.removesuffix("/v1") if provider == "anthropic" else server.url
    await check_key(provider, VALID_KEYS[provider], url)
    [request] = server.requests
    assert (request.path, request.key) == ("/v1/models", VALID_KEYS[provider])
    assert ("anthropic-version" in request.headers) == ("x-api-key" in request.headers) == (provider == "anthropic")


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_rejected_key_is_an_error_without_the_key(server: ProviderServer, status: int) -> None:
    with pytest.raises(KeyRejected, match=rf"^openai rejected the key \(status {status}\)") as caught:
        await check_key("openai", f"sk-canary-status-{status}", server.url)
    assert "canary" not in str(caught.value)


@pytest.mark.parametrize("status", [429, 500])
async def test_provider_that_fails_is_unavailable(server: ProviderServer, status: int) -> None:
    with pytest.raises(Unavailable, match=rf"\(status {status}\)") as caught:
        await check_key("openai", f"sk-canary-status-{status}", server.url)
    assert caught.value.code == "provider_unavailable"


async def test_provider_that_cannot_be_reached_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    url = f"http://127.0.0.1:{port}/v1"
    with capture_logs() as logs, pytest.raises(Unavailable, match="The key is not stored") as caught:
        await check_key("openai", VALID_KEYS["openai"], url)
    assert caught.value.code == "provider_unavailable"
    assert len(logs) == 1
    assert "canary" not in repr(logs)
