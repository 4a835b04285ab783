from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from bloxserver.clients.clerk import ClerkVerifier, get_verifier
from bloxserver.errors import BloxError, Unauthorized, Unavailable
from bloxserver.settings import Settings
from tests.jwks_server import JwksServer, Mode, SigningKey, claims

NOW = 1_800_000_000
KEY = SigningKey("ins_first")
NEW_KEY = SigningKey("ins_second")
FORGED = SigningKey(KEY.kid, pair="forger")
UNPUBLISHED = SigningKey("ins_unpublished", pair="forger")

OK = "ok"
EXPIRED = "401 token_expired"
INVALID = "401 invalid_token"


def settings_with(**values: Any) -> Settings:
    return Settings(_env_file=None, **values)


@dataclass
class Clerk:
    """A verifier and the server of its keys, with a clock that only the test advances."""

    server: JwksServer
    elapsed: float = 0

    def __post_init__(self) -> None:
        self.verifier = self.verifier_with()

    def verifier_with(self, **settings: Any) -> ClerkVerifier:
        return ClerkVerifier(
            settings_with(**{"clerk_issuer": self.server.issuer} | settings),
            clock=lambda: NOW + self.elapsed,
            monotonic=lambda: self.elapsed,
        )

    def claims(self, **overrides: object) -> dict[str, object]:
        return claims(self.server.issuer, now=NOW + self.elapsed, **overrides)

    def token(self, key: SigningKey = KEY, **overrides: Any) -> str:
        return key.sign(self.claims(**overrides))

    async def outcome(self, token: str, verifier: ClerkVerifier | None = None) -> str:
        """Return `ok`, or the status and code of the error."""
        try:
            await (verifier or self.verifier).verify(token)
        except BloxError as error:
            return f"{error.status} {error.code}"
        return "ok"


@pytest.fixture
async def clerk() -> AsyncIterator[Clerk]:
    async with JwksServer(KEY) as server:
        clerk = Clerk(server)
        yield clerk
        await clerk.verifier.aclose()


class TestClaims:
    async def test_valid_token_returns_its_claims(self, clerk: Clerk) -> None:
        assert await clerk.verifier.verify(clerk.token(org="any")) == clerk.claims(org="any")

    @pytest.mark.parametrize(
        ("overrides", "outcome"),
        [
            ({"exp": NOW - 3}, OK),
            ({"exp": NOW - 5}, EXPIRED),
            ({"exp": NOW - 10}, EXPIRED),
            ({"exp": NOW + 0.5}, OK),
            ({"nbf": NOW + 3, "iat": NOW + 3}, OK),
            ({"nbf": NOW + 60}, INVALID),
            ({"iat": NOW + 60}, INVALID),
            ({"exp": float("nan")}, INVALID),
            ({"exp": float("inf")}, INVALID),
            ({"exp": 10**400}, OK),
            ({"exp": str(NOW + 60)}, INVALID),
            ({"exp": True}, INVALID),
            ({"nbf": []}, INVALID),
            ({"iat": {}}, INVALID),
            *[({name: None}, INVALID) for name in ("exp", "iat", "nbf", "iss", "sub")],
            ({"iss": "https://other.clerk.accounts.dev"}, INVALID),
            ({"iss": ["https://other.clerk.accounts.dev"]}, INVALID),
            ({"sub": 7}, INVALID),
            ({"sub": ""}, INVALID),
            ({"sub": "user\0"}, INVALID),
            ({"sub": "user\n"}, INVALID),
            ({"sub": "üser"}, INVALID),
            ({"sub": "\ud800"}, INVALID),
            ({"sub": "u" * 255}, OK),
            ({"sub": "u" * 256}, INVALID),
            ({"sub": "local:0b5c"}, INVALID),
            ({"sub": "oidc:0b5c"}, INVALID),
            ({"sts": "pending"}, INVALID),
            ({"sts": ["pending"]}, OK),
            ({"azp": ["https://app.openblox.ai"]}, INVALID),
            ({"azp": "https://anywhere.example"}, OK),
            ({"aud": "not checked unless set"}, OK),
        ],
        ids=str,
    )
    async def test_invalid_claims_are_rejected(self, clerk: Clerk, overrides: dict[str, Any], outcome: str) -> None:
        assert await clerk.outcome(clerk.token(**overrides)) == outcome

    @pytest.mark.parametrize("slash", ["", "/"])
    async def test_trailing_slash_of_the_issuer_setting_is_ignored(self, clerk: Clerk, slash: str) -> None:
        verifier = clerk.verifier_with(clerk_issuer=clerk.server.issuer + slash)
        assert await clerk.outcome(clerk.token(), verifier) == OK
        assert await clerk.outcome(clerk.token(iss=clerk.server.issuer + "/"), verifier) == INVALID

    @pytest.mark.parametrize(
        ("audience", "outcome"),
        [
            ("us", OK),
            (["them", "us"], OK),
            ("them", INVALID),
            ([{}, 7], INVALID),
            ({"us": 1}, INVALID),
            (None, INVALID),
        ],
        ids=str,
    )
    async def test_audience_is_checked_if_configured(self, clerk: Clerk, audience: object, outcome: str) -> None:
        assert await clerk.outcome(clerk.token(aud=audience), clerk.verifier_with(clerk_audience="us")) == outcome

    @pytest.mark.parametrize(
        ("parties", "required", "party", "outcome"),
        [
            ("https://a.example, https://b.example/", False, "https://b.example", OK),
            ("https://a.example", False, "https://b.example", INVALID),
            ("https://a.example", False, "", INVALID),
            ("https://a.example", False, {"https://a.example": 1}, INVALID),
            ("https://a.example", False, None, OK),
            ("https://a.example", True, None, INVALID),
            ("", True, None, INVALID),
            ("", True, "https://b.example", OK),
        ],
    )
    async def test_authorized_party_is_checked(
        self, clerk: Clerk, parties: str, required: bool, party: object, outcome: str
    ) -> None:
        verifier = clerk.verifier_with(clerk_authorized_parties=parties, clerk_require_azp=required)
        assert await clerk.outcome(clerk.token(azp=party), verifier) == outcome


class TestTokens:
    @pytest.mark.parametrize(
        "token",
        [
            "",
            ".",
            "..",
            "a.b",
            "a.b.c",
            "a.b.c.d.e",
            "é.é.é",
            "\ud800.a.a",
            "e30.e30.e30",
            "W10.W10.W10",
            "\0",
            "a.b.c\n",
        ],
        ids=ascii,
    )
    async def test_malformed_token_is_rejected_without_a_fetch(self, clerk: Clerk, token: str) -> None:
        assert await clerk.outcome(token) == INVALID
        assert clerk.server.fetches == 0

    @pytest.mark.parametrize(
        "header",
        [
            *[{"alg": algorithm} for algorithm in ("none", "HS256", "PS256", "RS384", "RS512")],
            {"alg": None},
            {"crit": ["exp"]},
            {"crit": ["b64"], "b64": True},
            {"crit": []},
            {"b64": False},
            {"kid": None},
            {"kid": 7},
            {"kid": ["ins_first"]},
        ],
        ids=str,
    )
    async def test_invalid_header_is_rejected_without_a_fetch(self, clerk: Clerk, header: dict[str, object]) -> None:
        assert await clerk.outcome(KEY.sign(clerk.claims(), **header)) == INVALID
        assert clerk.server.fetches == 0

    async def test_forged_signature_is_rejected_without_another_fetch(self, clerk: Clerk) -> None:
        for _ in range(20):
            assert await clerk.outcome(clerk.token(FORGED)) == INVALID
        assert clerk.server.fetches == 1

    async def test_keys_in_the_token_header_are_ignored(self, clerk: Clerk) -> None:
        async with JwksServer(FORGED) as other:
            address = f"{other.issuer}/.well-known/jwks.json"
            for header in ({"jku": address}, {"x5u": address}, {"jwk": FORGED.jwk()}):
                assert await clerk.outcome(FORGED.sign(clerk.claims(), **header)) == INVALID
                assert await clerk.outcome(KEY.sign(clerk.claims(), **header)) == OK
            assert other.fetches == 0

    @pytest.mark.parametrize("payload", [[], "text", 7, None, {}], ids=str)
    async def test_signed_payload_without_claims_is_rejected(self, clerk: Clerk, payload: object) -> None:
        assert await clerk.outcome(KEY.sign(payload)) == INVALID

    async def test_modified_padded_and_long_tokens_are_rejected(self, clerk: Clerk) -> None:
        header, payload, signature = clerk.token().split(".")
        _, other_payload, _ = clerk.token(sub="user_other").split(".")
        assert await clerk.outcome(f"{header}.{other_payload}.{signature}") == INVALID
        assert await clerk.outcome(f"{header}.{payload}.{signature}==") == INVALID
        assert await clerk.outcome(clerk.token(name="x" * 5000)) == OK
        assert await clerk.outcome(clerk.token(name="x" * 7000)) == INVALID

    async def test_error_names_the_reason_without_the_token(self, clerk: Clerk) -> None:
        with pytest.raises(Unauthorized) as expired:
            await clerk.verifier.verify(clerk.token(exp=NOW - 10))
        assert expired.value.message == "Token has expired"
        token = clerk.token(iss="https://secret.example")
        with pytest.raises(Unauthorized) as invalid:
            await clerk.verifier.verify(token)
        assert invalid.value.message == "Invalid token: wrong issuer"
        assert invalid.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        assert invalid.value.__cause__ is None


class TestProvider:
    async def test_missing_keys_are_503(self, clerk: Clerk) -> None:
        clerk.server.mode = Mode.ERROR
        with pytest.raises(Unavailable) as refusal:
            await clerk.verifier.verify(clerk.token())
        assert refusal.value.code == "identity_provider_unavailable"
        assert refusal.value.headers == {"Retry-After": "5"}

    async def test_missing_issuer_is_503(self, clerk: Clerk) -> None:
        with pytest.raises(Unavailable, match=r"^No identity provider is configured$"):
            await clerk.verifier_with(clerk_issuer=None).verify(clerk.token())

    async def test_revoked_key_is_rejected(self, clerk: Clerk) -> None:
        assert await clerk.outcome(clerk.token()) == OK
        clerk.server.keys = [NEW_KEY.jwk()]
        clerk.elapsed = 30
        assert await clerk.outcome(clerk.token(NEW_KEY)) == OK
        assert await clerk.outcome(clerk.token()) == INVALID

    async def test_unknown_key_ids_are_rejected_with_one_fetch(self, clerk: Clerk) -> None:
        token = clerk.token(UNPUBLISHED)
        outcomes = await asyncio.gather(*[clerk.outcome(token) for _ in range(50)])
        outcomes += [await clerk.outcome(token) for _ in range(500)]
        assert outcomes == [INVALID] * 550
        assert clerk.server.fetches == 1


class TestVerifiedTokens:
    async def test_claims_of_a_verified_token_are_remembered(self, clerk: Clerk) -> None:
        token = clerk.token(org="any")
        first = await clerk.verifier.verify(token)
        first["sub"] = "changed by the caller"
        assert await clerk.verifier.verify(token) == clerk.claims(org="any")
        assert len(clerk.verifier._verified) == 1
        assert await clerk.outcome(clerk.token(nbf=NOW + 60)) == INVALID
        assert len(clerk.verifier._verified) == 1

    async def test_verified_token_expires(self, clerk: Clerk) -> None:
        token = clerk.token(exp=NOW + 60)
        assert await clerk.outcome(token) == OK
        clerk.elapsed = 66
        assert await clerk.outcome(token) == EXPIRED

    async def test_verified_token_is_rejected_once_its_key_was_replaced(self, clerk: Clerk) -> None:
        token = clerk.token(exp=NOW + 5000)
        assert await clerk.outcome(token) == OK
        clerk.server.keys = [FORGED.jwk(), NEW_KEY.jwk()]
        clerk.elapsed = 31
        assert await clerk.outcome(clerk.token(NEW_KEY)) == OK  # fetches the keys
        assert await clerk.outcome(token) == INVALID

    async def test_number_of_remembered_tokens_is_bounded(self, clerk: Clerk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("bloxserver.clients.token_verifier.MAX_VERIFIED", 2)
        tokens = [clerk.token(sub=f"user_{number}") for number in range(4)]
        assert [await clerk.outcome(token) for token in [*tokens, *tokens]] == [OK] * 8
        assert len(clerk.verifier._verified) == 2


class TestGetVerifier:
    async def test_each_configuration_has_its_own_verifier(self) -> None:
        first = {"clerk_issuer": "https://a.example", "clerk_audience": "us", "clerk_authorized_parties": "https://b"}
        settings = settings_with(**first)
        assert get_verifier(settings) is get_verifier(settings_with(**first, port=1))
        changes = {
            "clerk_issuer": "https://c.example",
            "clerk_audience": "them",
            "clerk_authorized_parties": "https://d",
            "clerk_require_azp": True,
        }
        for name, value in changes.items():
            assert get_verifier(settings) is not get_verifier(settings_with(**first | {name: value}))

    def test_each_event_loop_has_its_own_verifier(self) -> None:
        async def verify_once() -> ClerkVerifier:
            async with JwksServer(KEY) as server:
                verifier = get_verifier(settings_with(clerk_issuer=server.issuer))
                await verifier.verify(KEY.sign(claims(server.issuer)))
                return verifier

        settings = settings_with(clerk_issuer="https://a.example")

        async def get() -> ClerkVerifier:
            return get_verifier(settings)

        assert asyncio.run(get()) is not asyncio.run(get())
        forgotten = weakref.ref(asyncio.run(verify_once()))
        gc.collect()
        assert forgotten() is None
