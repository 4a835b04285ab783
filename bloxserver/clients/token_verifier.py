"""Verifies tokens of an identity provider: JWTs (RFC 7519) that it signs with a key that it publishes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import jwt

from bloxserver.clients.jwks import PublicKey, SigningKeys, algorithm_of
from bloxserver.errors import Unauthorized, Unavailable
from bloxserver.settings import Settings

MAX_TOKEN_CHARACTERS = 8 * 1024
MAX_VERIFIED = 10_000
"""Tokens whose signature is not verified again. A token of Clerk lasts a minute."""
LEEWAY_SECONDS = 5
"""Tolerated difference between the clocks of the provider and of this machine; the default of Clerk's libraries."""

# The compact serialization of RFC 7515 section 7.1, without padding. An encrypted token would have five parts.
COMPACT_TOKEN = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+", re.ASCII)
# The subject is stored as a unique key in the database.
SUBJECT = re.compile(r"[ -~]{1,255}")

_jws = jwt.PyJWS(algorithms=["RS256", "ES256"])


class _Verified(NamedTuple):
    """A token whose signature and claims are valid. Its times are checked each time."""

    key_id: str
    key: PublicKey
    claims: dict[str, Any]


class TokenVerifier:
    """Verifies tokens of `issuer` with its keys. A verifier belongs to one event loop."""

    required_times: ClassVar[frozenset[str]] = frozenset({"exp", "iat"})
    """The times without which a token is invalid. `nbf` is checked if it is there."""

    def __init__(
        self, issuer: str | None, audience: str | None, keys: SigningKeys, *, clock: Callable[[], float] = time.time
    ) -> None:
        """`clock` returns the seconds since 1970, for the times in tokens. Without `audience`, any is accepted."""
        self._issuer = issuer
        self._audience = audience
        self._keys = keys
        self._clock = clock
        self._verified: dict[bytes, _Verified] = {}
        """By a hash of the token, so that no token stays in memory."""

    async def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of the token. Only the claims named in `_check_claims` are validated.

        Raises `Unauthorized` with the code `token_expired` or `invalid_token`, and `Unavailable` if no keys are
        available to verify the signature. No error contains the token or its claims.
        """
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        verified = self._verified.get(digest)
        key_id = self._key_id(token) if verified is None else verified.key_id
        if self._issuer is None:
            raise Unavailable("identity_provider_unavailable", "No identity provider is configured")
        key = await self._keys.find(key_id)
        if key is None:
            raise invalid("unknown signing key")
        if verified is not None and verified.key is key:
            self._check_times(verified.claims)
            return dict(verified.claims)
        claims = _signed_claims(token, key)
        self._check_claims(claims)
        self._remember(digest, _Verified(key_id, key, claims))
        return dict(claims)

    async def aclose(self) -> None:
        """Cancel a running fetch of keys. The verifier can still be used."""
        await self._keys.aclose()

    def _remember(self, digest: bytes, verified: _Verified) -> None:
        if len(self._verified) >= MAX_VERIFIED:
            del self._verified[next(iter(self._verified))]
        self._verified[digest] = verified

    def _check_claims(self, claims: dict[str, Any]) -> None:
        """Raise `Unauthorized` unless the token is valid now, for this issuer and audience."""
        self._check_times(claims)
        if text_of(claims, "iss") != self._issuer:
            raise invalid("wrong issuer")
        if not SUBJECT.fullmatch(text_of(claims, "sub")):
            raise invalid("invalid claim sub")
        if self._audience is not None and self._audience not in _audiences(claims):
            raise invalid("wrong audience")

    def _check_times(self, claims: dict[str, Any]) -> None:
        """Check `exp`, `nbf` and `iat` (RFC 7519 sections 4.1.4 to 4.1.6)."""
        now = self._clock()
        names = [name for name in ("exp", "nbf", "iat") if name in self.required_times or claims.get(name) is not None]
        times = {name: _seconds(claims, name) for name in names}
        if times["exp"] + LEEWAY_SECONDS <= now:
            raise Unauthorized("token_expired", "Token has expired")
        if any(seconds - LEEWAY_SECONDS > now for name, seconds in times.items() if name != "exp"):
            raise invalid("not valid yet")

    def _key_id(self, token: str) -> str:
        """Return the key id in the header. The other members of the header are checked but not used."""
        if len(token) > MAX_TOKEN_CHARACTERS:
            raise invalid("too long")
        if not COMPACT_TOKEN.fullmatch(token):
            raise invalid("malformed")
        try:
            header = _jws.get_unverified_header(token)
        except jwt.PyJWTError:
            raise invalid("malformed") from None
        if header.get("alg") not in self._keys.algorithms:
            raise invalid(f"algorithm is not {' or '.join(sorted(self._keys.algorithms, reverse=True))}")
        # RFC 7515 section 4.1.11: reject critical extensions that are not supported; none is.
        if "crit" in header:
            raise invalid("critical header is not supported")
        key_id = header.get("kid")
        if not isinstance(key_id, str):
            raise invalid("missing key id")
        return key_id


Verifier = TypeVar("Verifier", bound=TokenVerifier)
_verifiers: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[object, ...], Any]] = WeakKeyDictionary()


def shared_verifier(make: Callable[[Settings], Verifier], settings: Settings, *names: str) -> Verifier:
    """Return the verifier of the running event loop for the settings of these names, so that keys are fetched once.

    Raises `RuntimeError` outside of an event loop.
    """
    configuration = (make, *(getattr(settings, name) for name in names))
    verifiers = _verifiers.setdefault(asyncio.get_running_loop(), {})
    if configuration not in verifiers:
        verifiers[configuration] = make(settings)
    verifier: Verifier = verifiers[configuration]
    return verifier


def invalid(reason: str) -> Unauthorized:
    """Return the error for an invalid token."""
    return Unauthorized("invalid_token", f"Invalid token: {reason}")


def text_of(claims: dict[str, Any], name: str) -> str:
    """Return a claim that must be a text. Raises `Unauthorized`."""
    value = _claim(claims, name)
    if not isinstance(value, str):
        raise invalid(f"invalid claim {name}")
    return value


def _signed_claims(token: str, key: PublicKey) -> dict[str, Any]:
    try:
        payload = _jws.decode_complete(token, key, algorithms=[algorithm_of(key)])["payload"]
    except jwt.PyJWTError:
        raise invalid("signature does not match") from None
    try:
        claims = json.loads(payload)
    except (ValueError, RecursionError):
        raise invalid("malformed") from None
    if not isinstance(claims, dict):
        raise invalid("malformed")
    return claims


def _claim(claims: dict[str, Any], name: str) -> object:
    value = claims.get(name)
    if value is None:
        raise invalid(f"missing claim {name}")
    return value


def _seconds(claims: dict[str, Any], name: str) -> float:
    """Return a claim that is a NumericDate (RFC 7519 section 2)."""
    value = _claim(claims, name)
    # bool is a subclass of int. Python's JSON parser accepts NaN, which compares as neither past nor future.
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise invalid(f"invalid claim {name}")
    if isinstance(value, float) and not math.isfinite(value):
        raise invalid(f"invalid claim {name}")
    return value


def _audiences(claims: dict[str, Any]) -> list[object]:
    """Return the audiences; the claim is one text or a list (RFC 7519 section 4.1.3)."""
    audience = _claim(claims, "aud")
    return audience if isinstance(audience, list) else [audience]
