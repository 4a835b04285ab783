"""Verifies session tokens of Clerk.

A token is a JWT (RFC 7519) signed with RS256. Clerk's own claims are described at
https://clerk.com/docs/guides/sessions/session-tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import jwt
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from bloxserver.clients.jwks import FETCH_SECONDS, SigningKeys
from bloxserver.errors import Unauthorized, Unavailable
from bloxserver.settings import Settings

MAX_TOKEN_CHARACTERS = 8 * 1024
MAX_VERIFIED = 10_000
"""Tokens whose signature is not verified again. A token of Clerk lasts a minute."""
LEEWAY_SECONDS = 5
"""Tolerated difference between the clocks of Clerk and of this machine; the default of Clerk's libraries."""

# The compact serialization of RFC 7515 section 7.1, without padding. An encrypted token would have five parts.
COMPACT_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
# The subject is stored as a unique key in the database.
SUBJECT = re.compile(r"[ -~]{1,255}")

_rs256 = jwt.PyJWS(algorithms=["RS256"])


class _Verified(NamedTuple):
    """A token whose signature and claims are valid. Its times are checked each time."""

    key_id: str
    key: RSAPublicKey
    claims: dict[str, Any]


class ClerkVerifier:
    """Verifies tokens of `settings.clerk_issuer` with the keys that this issuer publishes.

    `clock` returns the seconds since 1970, for the times in tokens. `monotonic` returns seconds, for the age of keys.
    A verifier belongs to one event loop; see `get_verifier`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        self._issuer = settings.clerk_issuer
        self._audience = settings.clerk_audience
        # An origin has no path, but an address copied from a browser ends with a slash.
        self._authorized_parties = frozenset(party.rstrip("/") for party in settings.clerk_authorized_parties)
        self._require_azp = settings.clerk_require_azp
        self._clock = clock
        self._verified: dict[bytes, _Verified] = {}
        """By a hash of the token, so that no token stays in memory."""
        self._keys = SigningKeys(f"{self._issuer}/.well-known/jwks.json", clock=monotonic, fetch_seconds=fetch_seconds)

    async def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of the token. Only the claims named in `_check_claims` are validated.

        Raises `Unauthorized` with the code `token_expired` or `invalid_token`, and `Unavailable` if no keys are
        available to verify the signature. No error contains the token or its claims.
        """
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        verified = self._verified.get(digest)
        key_id = _key_id(token) if verified is None else verified.key_id
        if self._issuer is None:
            raise Unavailable("identity_provider_unavailable", "No identity provider is configured")
        key = await self._keys.find(key_id)
        if key is None:
            raise _invalid("unknown signing key")
        if verified is not None and verified.key is key:
            self._check_times(verified.claims)
            return dict(verified.claims)
        claims = _signed_claims(token, key)
        self._check_claims(claims)
        self._remember(digest, _Verified(key_id, key, claims))
        return dict(claims)

    def _remember(self, digest: bytes, verified: _Verified) -> None:
        if len(self._verified) >= MAX_VERIFIED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = verified

    async def aclose(self) -> None:
        """Cancel a running fetch of keys. The verifier can still be used."""
        await self._keys.aclose()

    def _check_claims(self, claims: dict[str, Any]) -> None:
        """Raise `Unauthorized` unless the token is valid now, for this issuer, audience and authorized party."""
        self._check_times(claims)
        if _text(claims, "iss") != self._issuer:
            raise _invalid("wrong issuer")
        if not SUBJECT.fullmatch(_text(claims, "sub")):
            raise _invalid("invalid claim sub")
        if self._audience is not None and self._audience not in _audiences(claims):
            raise _invalid("wrong audience")
        self._check_authorized_party(claims)
        # The user has signed in but must complete another task, such as choosing an organization.
        if claims.get("sts") == "pending":
            raise _invalid("session is pending")

    def _check_times(self, claims: dict[str, Any]) -> None:
        """Check `exp`, `nbf` and `iat` (RFC 7519 sections 4.1.4 to 4.1.6). Clerk always sets all three."""
        now = self._clock()
        expires, starts, issued = (_seconds(claims, name) for name in ("exp", "nbf", "iat"))
        if expires + LEEWAY_SECONDS <= now:
            raise Unauthorized("token_expired", "Token has expired")
        if starts - LEEWAY_SECONDS > now or issued - LEEWAY_SECONDS > now:
            raise _invalid("not valid yet")

    def _check_authorized_party(self, claims: dict[str, Any]) -> None:
        """Check `azp`, which Clerk omits if the browser sent no Origin. A setting can require it."""
        if claims.get("azp") is None:
            if self._require_azp:
                raise _invalid("missing claim azp")
            return
        party = _text(claims, "azp")
        if self._authorized_parties and party not in self._authorized_parties:
            raise _invalid("wrong authorized party")


_verifiers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[object, ...], ClerkVerifier]] = WeakKeyDictionary()


def get_verifier(settings: Settings) -> ClerkVerifier:
    """Return the verifier of the running event loop for these settings, so that its keys are fetched once.

    Raises `RuntimeError` outside of an event loop.
    """
    configuration = (
        settings.clerk_issuer,
        settings.clerk_audience,
        settings.clerk_authorized_parties,
        settings.clerk_require_azp,
    )
    verifiers = _verifiers.setdefault(asyncio.get_running_loop(), {})
    if configuration not in verifiers:
        verifiers[configuration] = ClerkVerifier(settings)
    return verifiers[configuration]


def _invalid(reason: str) -> Unauthorized:
    return Unauthorized("invalid_token", f"Invalid token: {reason}")


def _key_id(token: str) -> str:
    """Return the key id in the header. The other members of the header are checked but not used."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise _invalid("too long")
    if not COMPACT_TOKEN.fullmatch(token):
        raise _invalid("malformed")
    try:
        header = _rs256.get_unverified_header(token)
    except jwt.PyJWTError:
        raise _invalid("malformed") from None
    if header.get("alg") != "RS256":
        raise _invalid("algorithm is not RS256")
    # RFC 7515 section 4.1.11: reject critical extensions that are not supported; none is.
    if "crit" in header:
        raise _invalid("critical header is not supported")
    key_id = header.get("kid")
    if not isinstance(key_id, str):
        raise _invalid("missing key id")
    return key_id


def _signed_claims(token: str, key: RSAPublicKey) -> dict[str, Any]:
    try:
        payload = _rs256.decode_complete(token, key, algorithms=["RS256"])["payload"]
    except jwt.PyJWTError:
        raise _invalid("signature does not match") from None
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        raise _invalid("malformed") from None
    if not isinstance(claims, dict):
        raise _invalid("malformed")
    return claims


def _claim(claims: dict[str, Any], name: str) -> object:
    value = claims.get(name)
    if value is None:
        raise _invalid(f"missing claim {name}")
    return value


def _text(claims: dict[str, Any], name: str) -> str:
    value = _claim(claims, name)
    if not isinstance(value, str):
        raise _invalid(f"invalid claim {name}")
    return value


def _seconds(claims: dict[str, Any], name: str) -> float:
    """Return a claim that is a NumericDate (RFC 7519 section 2)."""
    value = _claim(claims, name)
    # bool is a subclass of int. Python's JSON parser accepts NaN, which compares as neither past nor future.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _invalid(f"invalid claim {name}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _invalid(f"invalid claim {name}")
    return value


def _audiences(claims: dict[str, Any]) -> list[object]:
    """Return the audiences; the claim is one text or a list (RFC 7519 section 4.1.3)."""
    audience = _claim(claims, "aud")
    return audience if isinstance(audience, list) else [audience]
