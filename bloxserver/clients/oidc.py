"""Verifies tokens of an OpenID Connect provider (https://openid.net/specs/openid-connect-core-1_0.html).

Its configuration names its keys (https://openid.net/specs/openid-connect-discovery-1_0.html, section 4).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from hashlib import sha256
from typing import Any

from bloxserver.clients.jwks import FETCH_SECONDS, SigningKeys
from bloxserver.clients.token_verifier import TokenVerifier, invalid, shared_verifier
from bloxserver.settings import Settings

IDENTITY_PREFIX = "oidc:"


class OidcVerifier(TokenVerifier):
    """Verifies tokens of `settings.oidc_issuer` for `settings.oidc_audience`.

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
        """`clock` returns the seconds since 1970. `monotonic` returns seconds, for the age of keys."""
        issuer = settings.oidc_issuer or ""
        keys = SigningKeys(
            f"{issuer.rstrip('/')}/.well-known/openid-configuration",
            issuer=issuer,
            algorithms=frozenset({"RS256", "ES256"}),
            clock=monotonic,
            fetch_seconds=fetch_seconds,
        )
        # An audience that no token has, if none is set: the server does not start without one.
        super().__init__(issuer, settings.oidc_audience or "", keys, clock=clock)
        self._profile = {
            "email": settings.oidc_email_claim,
            "name": settings.oidc_name_claim,
            "image_url": settings.oidc_picture_claim,
        }

    def _check_claims(self, claims: dict[str, Any]) -> None:
        super()._check_claims(claims)
        # A logout token has the issuer and the audience of an ID token (OpenID Connect Back-Channel Logout, 2.4).
        if "events" in claims:
            raise invalid("not a token of a sign-in")

    async def verify(self, token: str) -> dict[str, Any]:
        """Return the claims of the token, with the names that those of Clerk have.

        `sub` identifies the issuer and the subject; `oidc` has both. Raises as `TokenVerifier.verify`.
        """
        claims = await super().verify(token)
        identity = identity_of(claims["iss"], claims["sub"])
        profile = {name: claims.get(claim) for name, claim in self._profile.items()}
        return claims | profile | {"sub": identity, "oidc": {"issuer": claims["iss"], "subject": claims["sub"]}}


def identity_of(issuer: str, subject: str) -> str:
    """Return the text that identifies a user: subjects of two issuers may be equal (OpenID Connect Core, 2)."""
    return IDENTITY_PREFIX + sha256(f"{issuer}\n{subject}".encode()).hexdigest()[:40]


SETTINGS = ("oidc_issuer", "oidc_audience", "oidc_email_claim", "oidc_name_claim", "oidc_picture_claim")
"""The settings on which a verifier depends."""


def get_verifier(settings: Settings) -> OidcVerifier:
    """See `shared_verifier`."""
    return shared_verifier(OidcVerifier, settings, *SETTINGS)
