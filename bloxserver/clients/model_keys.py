"""Tests keys for providers of language models."""

from __future__ import annotations

import asyncio

import structlog

from bloxserver.clients.llm import create_http_client
from bloxserver.errors import Unavailable
from bloxserver.model_catalogue import ProviderKind

log = structlog.stdlib.get_logger("bloxserver.llm")

TIMEOUT_SECONDS = 10
ANTHROPIC_VERSION = "2023-06-01"
REJECTED = (400, 401, 403)
"""xAI rejects an unknown key with 400. The request has nothing else that could be wrong."""


class KeyRejected(Exception):
    """The provider rejects the key. The message is for its user, and does not contain the key."""


async def check_key(provider: ProviderKind, key: str, base_url: str) -> None:
    """List the models of the provider at this URL with the key.

    Raises `KeyRejected`, and `Unavailable` if the provider cannot be reached or fails.
    """
    base_url = base_url.rstrip("/")
    if provider == "anthropic":
        url = f"{base_url.removesuffix('/v1')}/v1/models"
        headers = {"x-api-key": key, "anthropic-version": ANTHROPIC_VERSION}
    else:
        url = f"{base_url}/models"
        headers = {"Authorization": f"Bearer {key}"}
    try:
        # The body is not read.
        async with (
            asyncio.timeout(TIMEOUT_SECONDS),
            create_http_client() as http,
            http.stream("GET", url, headers=headers) as response,
        ):
            status = response.status_code
    except Exception as error:
        # The libraries raise errors of lower layers too. The message may contain what was sent.
        log.warning("key for a language model not tested", provider=provider, error=type(error).__name__)
        raise _unavailable(provider) from None
    if status in REJECTED:
        raise KeyRejected(
            f"{provider} rejected the key (status {status}). Check that it is complete and may list models."
        )
    if not 200 <= status < 300:
        raise _unavailable(provider, f" (status {status})")


def _unavailable(provider: str, reason: str = "") -> Unavailable:
    message = f"{provider} cannot test the key now{reason}. The key is not stored, try again."
    return Unavailable("provider_unavailable", message, retry_after=30)
