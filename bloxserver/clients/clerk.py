"""Verifies session tokens of Clerk.

Clerk's own claims are described at https://clerk.com/docs/guides/sessions/session-tokens.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, ClassVar

from bloxserver.clients.identities import RESERVED
from bloxserver.clients.jwks import FETCH_SECONDS, SigningKeys
from bloxserver.clients.token_verifier import TokenVerifier, invalid, shared_verifier, text_of
from bloxserver.settings import Settings


class ClerkVerifier(TokenVerifier):
    """Verifies tokens of `settings.clerk_issuer` with the keys that this issuer publishes.

    A verifier belongs to one event loop; see `get_verifier`.
    """

    required_times: ClassVar = frozenset({"exp", "nbf", "iat"})  # Clerk always sets all three

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        fetch_seconds: float = FETCH_SECONDS,
    ) -> None:
        """`clock` returns the seconds since 1970. `monotonic` returns seconds, for the age of keys."""
        issuer = settings.clerk_issuer
        keys = SigningKeys(f"{issuer}/.well-known/jwks.json", clock=monotonic, fetch_seconds=fetch_seconds)
        super().__init__(issuer, settings.clerk_audience, keys, clock=clock)
        # An origin has no path, but an address copied from a browser ends with a slash.
        self._authorized_parties = frozenset(party.rstrip("/") for party in settings.clerk_authorized_parties)
        self._require_azp = settings.clerk_require_azp

    def _check_claims(self, claims: dict[str, Any]) -> None:
        """Raise `Unauthorized` unless the token is valid now, for this issuer, audience and authorized party."""
        super()._check_claims(claims)
        if claims["sub"].startswith(RESERVED):
            raise invalid("invalid claim sub")
        self._check_authorized_party(claims)
        # The user has signed in but must complete another task, such as choosing an organization.
        if claims.get("sts") == "pending":
            raise invalid("session is pending")

    def _check_authorized_party(self, claims: dict[str, Any]) -> None:
        """Check `azp`, which Clerk omits if the browser sent no Origin. A setting can require it."""
        if claims.get("azp") is None:
            if self._require_azp:
                raise invalid("missing claim azp")
            return
        party = text_of(claims, "azp")
        if self._authorized_parties and party not in self._authorized_parties:
            raise invalid("wrong authorized party")


SETTINGS = ("clerk_issuer", "clerk_audience", "clerk_authorized_parties", "clerk_require_azp")
"""The settings on which a verifier depends."""


def get_verifier(settings: Settings) -> ClerkVerifier:
    """See `shared_verifier`."""
    return shared_verifier(ClerkVerifier, settings, *SETTINGS)
