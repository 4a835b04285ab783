"""The public keys of an identity provider, fetched when needed and kept: a JSON Web Key Set (RFC 7517)."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from functools import lru_cache
from ssl import SSLContext
from typing import Any

import httpx
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import RSAAlgorithm

from bloxserver.errors import Unavailable

FETCH_SECONDS = 5.0
MAXIMUM_BODY_BYTES = 64 * 1024
MINIMUM_KEY_BITS = 2048
"""RFC 7518 section 3.3."""

FRESH_SECONDS = 600.0
"""Older keys are still served, while one fetch in the background replaces them."""
USABLE_SECONDS = 24 * 3600.0
"""Keys that could not be replaced for so long are served no more."""
PAUSE_AFTER_SUCCESS_SECONDS = 30.0
"""Anybody can make up key ids; they cause no more than one fetch in this time."""
PAUSE_AFTER_FAILURE_SECONDS = 5.0

log = structlog.get_logger(__name__)


class UnusableKeySet(Exception):
    """The provider answered, but not with keys that we can verify tokens with."""


class SigningKeys:
    """The RSA keys published at `url`, by key id. Belongs to the event loop that it is first used on.

    A fetch replaces the whole set, so that a key that is withdrawn stops working. A fetch that fails changes nothing.
    `clock` counts seconds and never goes back.
    """

    def __init__(
        self, url: str, *, clock: Callable[[], float] = time.monotonic, fetch_seconds: float = FETCH_SECONDS
    ) -> None:
        self._url = url
        self._clock = clock
        self._fetch_seconds = fetch_seconds
        self._keys: dict[str, RSAPublicKey] = {}
        self._fetched_at = float("-inf")
        self._next_fetch_at = float("-inf")
        self._last_fetch_failed = False
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> RSAPublicKey | None:
        """The key of that id; None if the provider publishes no such key.

        Raises `Unavailable` if that cannot be known, since the provider's keys are not to be had.
        """
        if self._usable() and key_id in self._keys:
            if self._clock() - self._fetched_at > FRESH_SECONDS:
                self._start_fetch()
            return self._keys[key_id]
        fetch = self._start_fetch()
        if fetch is not None:
            # Shielded: the request that started the fetch may be cancelled while others wait for the same one.
            await asyncio.shield(fetch)
        if self._usable() and key_id in self._keys:
            return self._keys[key_id]
        if self._last_fetch_failed or not self._usable():
            raise Unavailable("identity_provider_unavailable", "The identity provider does not answer")
        return None

    async def aclose(self) -> None:
        """Stop the fetch that runs, if any."""
        fetch = self._fetch
        if fetch is not None:
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)

    def _usable(self) -> bool:
        return self._clock() - self._fetched_at <= USABLE_SECONDS

    def _start_fetch(self) -> asyncio.Task[None] | None:
        """The fetch that runs, or a new one; None if it is too early for a new one."""
        if self._fetch is None and self._clock() >= self._next_fetch_at:
            self._fetch = asyncio.create_task(self._replace_keys(), name="jwks")
            self._fetch.add_done_callback(self._forget_fetch)
        return self._fetch

    def _forget_fetch(self, _: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _replace_keys(self) -> None:
        try:
            async with asyncio.timeout(self._fetch_seconds):
                keys = usable_keys(await self._download())
        except Exception as error:
            # Everything: httpx lets errors of lower layers through (a port of 99999 is an ExceptionGroup), and
            # whatever keeps the keys from us is an outage to those who wait.
            log.warning("jwks_fetch_failed", reason=str(error), error=type(error).__name__)
            self._last_fetch_failed = True
            self._next_fetch_at = self._clock() + PAUSE_AFTER_FAILURE_SECONDS
            return
        self._keys = keys
        self._last_fetch_failed = False
        self._fetched_at = self._clock()
        self._next_fetch_at = self._fetched_at + PAUSE_AFTER_SUCCESS_SECONDS

    async def _download(self) -> bytes:
        """The body of the answer. Raises `UnusableKeySet` unless it is a 200 of at most `MAXIMUM_BODY_BYTES`."""
        # A client for each fetch: they are minutes apart, and nothing is left open on a loop that ends.
        # timeout: the caller bounds the whole fetch, which a limit on each read would not.
        # trust_env: a proxy or .netrc of the machine has no say in which keys we trust.
        client = httpx.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113
        # identity, and raw below: what is counted is what is held, which would not hold for a compressed body.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with client, client.stream("GET", self._url, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                raise UnusableKeySet(f"status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAXIMUM_BODY_BYTES:
                    raise UnusableKeySet(f"body of more than {MAXIMUM_BODY_BYTES} bytes")
            return bytes(body)


def usable_keys(body: bytes) -> dict[str, RSAPublicKey]:
    """The keys of a key set that may verify our tokens, by key id; others are skipped (RFC 7517 section 5).

    Raises `UnusableKeySet` if there are none.
    """
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        raise UnusableKeySet("not JSON") from None
    published = document.get("keys") if isinstance(document, dict) else None
    keys: dict[str, RSAPublicKey] = {}
    for jwk in published if isinstance(published, list) else []:
        key = _usable_key(jwk) if isinstance(jwk, dict) else None
        if key is not None and isinstance(jwk.get("kid"), str):
            keys[jwk["kid"]] = key
    if not keys:
        raise UnusableKeySet("no usable key")
    return keys


def _usable_key(jwk: dict[str, Any]) -> RSAPublicKey | None:
    """The key, if it is public, RSA, and meant for RS256 signatures; `use` and `alg` may be absent (RFC 7517)."""
    if jwk.get("kty") != "RSA" or jwk.get("use", "sig") != "sig" or jwk.get("alg", "RS256") != "RS256":
        return None
    try:
        key = RSAAlgorithm.from_jwk(jwk)
    except (jwt.InvalidKeyError, ValueError, TypeError):
        return None
    return key if isinstance(key, RSAPublicKey) and key.key_size >= MINIMUM_KEY_BITS else None


@lru_cache
def _tls() -> SSLContext:
    """Made once: reading the certificate authorities takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)
