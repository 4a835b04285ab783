"""Verification of tokens of an OpenID Connect provider, which runs on loopback."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from jwt.utils import base64url_encode

from bloxserver.clients.oidc import OidcVerifier, get_verifier, identity_of
from bloxserver.errors import BloxError
from bloxserver.settings import Settings
from tests.jwks_server import EllipticKey, JwksServer, Mode, SigningKey

AUDIENCE = "blox"


class Provider:
    """A provider with a key for each algorithm."""

    def __init__(self, server: JwksServer, key: SigningKey, elliptic: EllipticKey) -> None:
        self.server = server
        self.key = key
        self.elliptic = elliptic
        self.now = 1_800_000_000.0

    def verifier(self, **settings: Any) -> OidcVerifier:
        given = {"oidc_issuer": self.server.issuer, "oidc_audience": AUDIENCE} | settings
        return OidcVerifier(Settings(_env_file=None, **given), clock=lambda: self.now, fetch_seconds=2)

    def claims(self, **overrides: object) -> dict[str, object]:
        members: dict[str, object] = {
            "iss": self.server.issuer,
            "sub": "248289761001",
            "aud": AUDIENCE,
            "iat": self.now,
            "exp": self.now + 300,
            "email": "ada@example.com",
            "name": "Ada Lovelace",
            "picture": "https://sso.example.com/ada.png",
        }
        return {name: value for name, value in (members | overrides).items() if value is not None}

    async def outcome(self, token: str, **settings: Any) -> str:
        """The identity of the token, or the message of the error."""
        verifier = self.verifier(**settings)
        try:
            return str((await verifier.verify(token))["sub"])
        except BloxError as error:
            return error.message
        finally:
            await verifier.aclose()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    key, elliptic = SigningKey(), EllipticKey()
    async with JwksServer(key, elliptic) as server:
        yield Provider(server, key, elliptic)


async def test_claims_have_the_identity_and_the_profile(provider: Provider) -> None:
    verifier = provider.verifier()
    for token in (provider.key.sign(provider.claims()), provider.elliptic.sign(provider.claims())):
        claims = await verifier.verify(token)
        assert claims["sub"] == identity_of(provider.server.issuer, "248289761001")
        assert claims["oidc"] == {"issuer": provider.server.issuer, "subject": "248289761001"}
        profile = [claims[name] for name in ("email", "name", "image_url")]
        assert profile == ["ada@example.com", "Ada Lovelace", "https://sso.example.com/ada.png"]
    assert provider.server.fetches == 2  # the configuration and the keys, once for both tokens


async def test_settings_name_the_claims_of_the_profile(provider: Provider) -> None:
    names = {"oidc_email_claim": "mail", "oidc_name_claim": "cn", "oidc_picture_claim": "photo"}
    token = provider.key.sign(provider.claims(mail="a@b.example", cn="Ada", photo=None))
    claims = await provider.verifier(**names).verify(token)
    assert [claims[name] for name in ("email", "name", "image_url")] == ["a@b.example", "Ada", None]


def test_equal_subjects_of_two_issuers_are_two_identities() -> None:
    identities = {identity_of("https://a.example", "1"), identity_of("https://b.example", "1")}
    identities |= {identity_of("https://a.example", "2")}
    assert len(identities) == 3
    assert all(identity.startswith("oidc:") and len(identity) == 45 for identity in identities)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"exp": 1.0}, "Token has expired"),
        ({"exp": None}, "Invalid token: missing claim exp"),
        ({"iat": None}, "Invalid token: missing claim iat"),
        ({"iat": 1_800_000_060.0}, "Invalid token: not valid yet"),
        ({"nbf": 1_800_000_060.0}, "Invalid token: not valid yet"),
        ({"nbf": "soon"}, "Invalid token: invalid claim nbf"),
        ({"aud": "another"}, "Invalid token: wrong audience"),
        ({"aud": ["another"]}, "Invalid token: wrong audience"),
        ({"aud": None}, "Invalid token: missing claim aud"),
        ({"iss": "https://evil.example"}, "Invalid token: wrong issuer"),
        ({"iss": None}, "Invalid token: missing claim iss"),
        ({"sub": None}, "Invalid token: missing claim sub"),
        ({"sub": 7}, "Invalid token: invalid claim sub"),
        ({"sub": ""}, "Invalid token: invalid claim sub"),
        ({"sub": "é"}, "Invalid token: invalid claim sub"),
        ({"sub": "x" * 256}, "Invalid token: invalid claim sub"),
        ({"events": {}}, "Invalid token: not a token of a sign-in"),
    ],
    ids=str,
)
async def test_token_with_wrong_claims_is_rejected(
    provider: Provider, overrides: dict[str, object], message: str
) -> None:
    assert await provider.outcome(provider.key.sign(provider.claims(**overrides))) == message


async def test_audience_may_be_one_of_several(provider: Provider) -> None:
    token = provider.key.sign(provider.claims(aud=["another", AUDIENCE], nbf=provider.now))
    assert await provider.outcome(token) == identity_of(provider.server.issuer, "248289761001")


@pytest.mark.parametrize("algorithm", ["HS256", "none", "RS384", "PS256", "ES384"])
async def test_other_algorithm_is_rejected(provider: Provider, algorithm: str) -> None:
    header = base64url_encode(json.dumps({"alg": algorithm, "kid": provider.key.kid}).encode()).decode()
    token = ".".join([header, *provider.key.sign(provider.claims()).split(".")[1:]])
    assert await provider.outcome(token) == "Invalid token: algorithm is not RS256 or ES256"


async def test_algorithm_must_be_that_of_the_key(provider: Provider) -> None:
    """A token that names ES256 with the id of the RSA key has no valid signature."""
    forged = EllipticKey("another")
    forged.kid = provider.key.kid
    assert await provider.outcome(forged.sign(provider.claims())) == "Invalid token: signature does not match"


@pytest.mark.parametrize(
    "configuration",
    [
        {"issuer": "https://evil.example"},
        {"issuer": None},
        {"jwks_uri": None},
        {"jwks_uri": "file:///etc/passwd"},
        {"jwks_uri": 7},
    ],
    ids=str,
)
async def test_configuration_of_another_issuer_or_without_keys_is_not_used(
    provider: Provider, configuration: dict[str, object]
) -> None:
    provider.server.configuration = configuration
    assert await provider.outcome(provider.key.sign(provider.claims())) == "The identity provider does not respond"


async def test_provider_without_keys_is_unavailable(provider: Provider) -> None:
    for mode in (Mode.ERROR, Mode.HTML, Mode.EMPTY, Mode.REDIRECT, Mode.LARGE):
        provider.server.mode = mode
        token = provider.key.sign(provider.claims())
        assert await provider.outcome(token) == "The identity provider does not respond", mode


async def test_issuer_may_end_with_a_slash(provider: Provider) -> None:
    issuer = f"{provider.server.issuer}/"
    provider.server.configuration = {"issuer": issuer}
    token = provider.key.sign(provider.claims(iss=issuer))
    assert await provider.outcome(token, oidc_issuer=issuer) == identity_of(issuer, "248289761001")


async def test_settings_share_a_verifier_in_an_event_loop() -> None:
    given: dict[str, Any] = {"oidc_issuer": "https://sso.example.com", "oidc_audience": AUDIENCE}
    settings = Settings(_env_file=None, **given)
    assert get_verifier(settings) is get_verifier(Settings(_env_file=None, **given))
    assert get_verifier(settings) is not get_verifier(Settings(_env_file=None, **given, oidc_email_claim="mail"))
