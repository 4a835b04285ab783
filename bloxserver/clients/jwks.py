"""Fetches and caches the public keys of an identity provider, a JSON Web Key Set (RFC 7517)."""

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
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from bloxserver.errors import Unavailable

FETCH_SECONDS = 5.0
MAX_BODY_BYTES = 64 * 1024
MIN_KEY_BITS = 2048
"""RFC 7518 section 3.3."""

FRESH_SECONDS = 600.0
"""Keys older than this are used while a background fetch replaces them."""
USABLE_SECONDS = 24 * 3600.0
"""Keys older than this are not used."""
MIN_INTERVAL_SECONDS = 30.0
"""Minimum time between two fetches. Any client can send unknown key ids, each of which would cause a fetch."""
RETRY_SECONDS = 5.0
"""Minimum time between a failed fetch and the next one."""

PublicKey = RSAPublicKey | EllipticCurvePublicKey
RS256 = frozenset({"RS256"})

log = structlog.get_logger(__name__)


class InvalidKeySet(Exception):
    """The response of the provider contains no usable keys."""


class SigningKeys:
    """The keys published at `url`, by key id. An instance belongs to one event loop.

    With `issuer`, `url` is that of the issuer's configuration, which names the keys. A fetch replaces the whole set, so
    that revoked keys are no longer accepted. A failed fetch changes nothing. `clock` returns monotonic seconds.
    """

    def __init__(
        self,
        url: str,
        *,
        issuer: str | None = None,
        algorithms: frozenset[str] = RS256,
        clock: Callable[[], float] = time.monotonic,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        self._url = url
        self._issuer = issuer
        self.algorithms = algorithms
        self._clock = clock
        self._fetch_seconds = fetch_seconds
        self._keys: dict[str, PublicKey] = {}
        self._fetched_at = float("-inf")
        self._next_fetch_at = float("-inf")
        self._last_fetch_failed = False
        self._fetch: asyncio.Task[None] | None = None

    async def find(self, key_id: str) -> PublicKey | None:
        """Return the key with this id, or None if the provider does not publish it.

        Raises `Unavailable` if the keys cannot be fetched.
        """
        if self._is_usable() and key_id in self._keys:
            if self._clock() - self._fetched_at > FRESH_SECONDS:
                self._start_fetch()
            return self._keys[key_id]
        fetch = self._start_fetch()
        if fetch is not None:
            # Shielded: the request that started the fetch may be cancelled while other requests wait for it.
            await asyncio.shield(fetch)
        if self._is_usable() and key_id in self._keys:
            return self._keys[key_id]
        if self._last_fetch_failed or not self._is_usable():
            raise Unavailable("identity_provider_unavailable", "The identity provider does not respond")
        return None

    async def aclose(self) -> None:
        """Cancel a running fetch."""
        fetch = self._fetch
        if fetch is not None:
            fetch.cancel()
            await asyncio.gather(fetch, return_exceptions=True)

    def _is_usable(self) -> bool:
        return self._clock() - self._fetched_at <= USABLE_SECONDS

    def _start_fetch(self) -> asyncio.Task[None] | None:
        """Return the running fetch or start one; None if the minimum time since the last fetch has not passed."""
        if self._fetch is None and self._clock() >= self._next_fetch_at:
            self._fetch = asyncio.create_task(self._replace_keys(), name="jwks")
            self._fetch.add_done_callback(self._forget_fetch)
        return self._fetch

    def _forget_fetch(self, _: asyncio.Task[None]) -> None:
        self._fetch = None

    async def _replace_keys(self) -> None:
        try:
            async with asyncio.timeout(self._fetch_seconds):
                url = self._url
                if self._issuer is not None:
                    url = key_address(await self._download(url), self._issuer)
                keys = parse_keys(await self._download(url), self.algorithms)
        except Exception as error:
            # Any exception means that the keys are unavailable. httpx also raises errors of lower layers: a port of
            # 99999 is an ExceptionGroup.
            log.warning("signing key fetch failed", reason=str(error), error=type(error).__name__)
            self._last_fetch_failed = True
            self._next_fetch_at = self._clock() + RETRY_SECONDS
            return
        self._keys = keys
        self._last_fetch_failed = False
        self._fetched_at = self._clock()
        self._next_fetch_at = self._fetched_at + MIN_INTERVAL_SECONDS

    async def _download(self, url: str) -> bytes:
        """Return the body. Raises `InvalidKeySet` unless the status is 200 and the size at most `MAX_BODY_BYTES`."""
        # A client for each fetch: fetches are minutes apart, and no connection must outlive the event loop.
        # timeout: the caller limits the whole fetch; httpx would limit each read.
        # trust_env: a proxy or .netrc of the machine must not influence which keys are trusted.
        client = httpx.AsyncClient(verify=_tls(), trust_env=False, follow_redirects=False, timeout=None)  # noqa: S113  # nosec B113
        # Without compression, so that the number of bytes received is the number of bytes in memory.
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with client, client.stream("GET", url, headers=headers) as response:
            if response.status_code != httpx.codes.OK:
                raise InvalidKeySet(f"status {response.status_code}")
            body = bytearray()
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise InvalidKeySet(f"body of more than {MAX_BODY_BYTES} bytes")
            return bytes(body)


def key_address(body: bytes, issuer: str) -> str:
    """Return the address of the keys in the configuration of an issuer. Raises `InvalidKeySet`.

    The issuer must be the one that was asked (OpenID Connect Discovery, section 4.3).
    """
    document = _json(body)
    if not isinstance(document, dict) or document.get("issuer") != issuer:
        raise InvalidKeySet("not the configuration of this issuer")
    address = document.get("jwks_uri")
    if not isinstance(address, str) or not address.startswith("https://" if issuer.startswith("https://") else "http"):
        raise InvalidKeySet("no address of keys")
    return address


def algorithm_of(key: PublicKey) -> str:
    """Return the algorithm of signatures with a key (RFC 7518 section 3.1)."""
    return "RS256" if isinstance(key, RSAPublicKey) else "ES256"


def _json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise InvalidKeySet("not JSON") from None


def parse_keys(body: bytes, algorithms: frozenset[str] = RS256) -> dict[str, PublicKey]:
    """Return the keys of a key set that can verify tokens, by key id. Others are skipped (RFC 7517 section 5).

    Raises `InvalidKeySet` if there are none.
    """
    document = _json(body)
    published = document.get("keys") if isinstance(document, dict) else None
    keys: dict[str, PublicKey] = {}
    for jwk in published if isinstance(published, list) else []:
        key = _parse_key(jwk) if isinstance(jwk, dict) else None
        if key is not None and algorithm_of(key) in algorithms and isinstance(jwk.get("kid"), str):
            keys[jwk["kid"]] = key
    if not keys:
        raise InvalidKeySet("no usable key")
    return keys


def _parse_key(jwk: dict[str, Any]) -> PublicKey | None:
    """Return the key if it is a public one for RS256 or ES256 signatures; `use` and `alg` are optional (RFC 7517)."""
    if jwk.get("use", "sig") != "sig":
        return None
    try:
        if jwk.get("kty") == "RSA" and jwk.get("alg", "RS256") == "RS256":
            rsa = RSAAlgorithm.from_jwk(jwk)
            return rsa if isinstance(rsa, RSAPublicKey) and rsa.key_size >= MIN_KEY_BITS else None
        if jwk.get("kty") == "EC" and jwk.get("alg", "ES256") == "ES256":
            ec = ECAlgorithm.from_jwk(jwk)
            return ec if isinstance(ec, EllipticCurvePublicKey) and isinstance(ec.curve, SECP256R1) else None
    except (jwt.InvalidKeyError, ValueError, TypeError):
        return None
    return None


@lru_cache
def _tls() -> SSLContext:
    """Return the TLS context. Cached, because loading the certificate authorities takes tens of milliseconds."""
    return httpx.create_ssl_context(trust_env=False)
