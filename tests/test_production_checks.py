"""Settings that production rejects or warns about."""

from __future__ import annotations

import random
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from bloxserver.errors import SettingsError
from bloxserver.production_checks import MINIMUM_SECRET_BYTES, MINIMUM_TOKEN_BYTES, is_weak_secret
from bloxserver.settings import Settings

VALID: dict[str, Any] = {
    "env": "production",
    "clerk_issuer": "https://clerk.example.com",
    "clerk_authorized_parties": "https://app.example.com",
    "database_url": "postgresql://blox@db.example.com/blox",
    "cors_origins": "https://app.example.com",
    "webhook_base_url": "https://flows.example.com/webhooks",
    "enable_docs": False,
    "api_key_encryption_key": "kJ8s0-fQz2Lw7Xv5Nn1Bb6Mm9Rr3Tt4Yy",
}
WEAK = {
    "short": "kJ8s0-fQz2Lw7",
    "one character": "0" * 64,
    "counting digits": "12345678901234567890123456789012",
    "digits": "31415926535897932384626433832795028841971",
    "hexadecimal sequence": "0123456789abcdef" * 4,
    "alphabet": "abcdefghijklmnopqrstuvwxyz0123456789",
    "backwards": "zyxwvutsrqponmlkjihgfedcba9876543210",
    "repetition": "p4Zq!x8K" * 5,
    "two values in turn": "correcthorsebattery" * 2,
    "placeholder": "please-change-me-kJ8s0-fQz2Lw7Xv5",
    "example": "Example-key-kJ8s0-fQz2Lw7Xv5Nn1Bb6",
}


def problems(**changes: Any) -> list[str]:
    """Return the names of the variables with which production does not start."""
    try:
        Settings(**VALID | changes).check_startup()
    except SettingsError as error:
        return [problem.split()[0] for problem in error.problems]
    return []


class TestWeakSecrets:
    @pytest.mark.parametrize("secret", WEAK.values(), ids=WEAK)
    def test_weak_encryption_key_or_metrics_token_prevents_a_start(self, secret: str) -> None:
        assert problems(api_key_encryption_key=secret) == ["API_KEY_ENCRYPTION_KEY"]
        assert problems(api_key_encryption_key=f"{VALID['api_key_encryption_key']},{secret}") == [
            "API_KEY_ENCRYPTION_KEY"
        ]
        token = secret[: MINIMUM_TOKEN_BYTES - 1] if secret == WEAK["short"] else secret
        assert problems(metrics_token=token) == ["METRICS_TOKEN"]

    @pytest.mark.parametrize("token", ["a", "a" * 16, "metrics-password", "token-for-scrap"])
    def test_weak_metrics_token_prevents_a_start(self, token: str) -> None:
        assert problems(metrics_token=token) == ["METRICS_TOKEN"]

    def test_random_secrets_are_accepted(self) -> None:
        source = random.Random(7)  # noqa: S311
        for _ in range(500):
            content = source.randbytes(32)
            for key in (content.hex(), urlsafe_b64encode(content).decode()):
                assert not is_weak_secret(key, MINIMUM_SECRET_BYTES), key
            for token in (content[:16].hex(), urlsafe_b64encode(content[:12]).decode()):
                assert not is_weak_secret(token, MINIMUM_TOKEN_BYTES), token
        assert problems(metrics_token=content.hex(), api_key_encryption_key=content.hex()) == []


@pytest.mark.parametrize(
    "networks",
    [
        *("0.0.0.0/0", "::/0", "0.0.0.0/1", "8.0.0.0/5", "10.0.0.0/7", "fc00::/6", "2000::/3", "10.0.0.0/8,::/0"),
        *("127.0.0.0/8", "127.0.0.1/32", "::1/128", "169.254.169.254/32", "169.254.0.0/16", "fe80::/10", "0.0.0.0/32"),
    ],
)
def test_network_with_public_or_local_addresses_prevents_a_start(networks: str) -> None:
    assert problems(ssrf_allow_cidrs=networks) == ["SSRF_ALLOW_CIDRS"]


@pytest.mark.parametrize("networks", ["", "10.0.0.0/8", "192.168.1.7,fd00::/8,fc00::/7", "203.0.113.7/32"])
def test_private_networks_and_single_addresses_are_accepted(networks: str) -> None:
    assert problems(ssrf_allow_cidrs=networks) == []


@pytest.mark.parametrize(
    "origins",
    [
        *("*", "null", "https://app.example.com,null", "http://app.example.com", "http://localhost:3000"),
        *("https://*.example.com", "https://app.example.com/", "app.example.com", "https://", "https://a b"),
    ],
)
def test_origin_that_is_not_one_https_origin_prevents_a_start(origins: str) -> None:
    assert problems(cors_origins=origins) == ["CORS_ORIGINS"]


@pytest.mark.parametrize("origins", ["", "https://app.example.com", "https://a.example.com:8443,https://[::1]:3000"])
def test_https_origins_are_accepted(origins: str) -> None:
    assert problems(cors_origins=origins) == []


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"clerk_authorized_parties": ""}, ["CLERK_AUTHORIZED_PARTIES"]),
        ({"clerk_issuer": "https://your-app.clerk.accounts.dev"}, ["CLERK_ISSUER"]),
        ({"webhook_base_url": "http://flows.internal/webhooks"}, ["WEBHOOK_BASE_URL"]),
        ({"smtp_host": "mail.example.com", "smtp_security": "none"}, ["SMTP_SECURITY"]),
        ({"smtp_host": "127.0.0.1", "smtp_security": "none"}, []),
        ({"smtp_host": "mail.example.com"}, []),
        ({"llm_base_url": "http://models.example.com/v1", "llm_api_key": "key"}, ["LLM_BASE_URL"]),
        ({"llm_base_url": "http://models.example.com/v1"}, []),
        ({"llm_base_url": "http://localhost:11434/v1", "llm_api_key": "key"}, []),
        ({"llm_base_url": "https://models.example.com/v1", "llm_api_key": "key"}, []),
        ({"log_level": "DEBUG"}, ["LOG_LEVEL"]),
        ({"sql_echo": True}, ["SQL_ECHO"]),
    ],
)
def test_unsafe_setting_is_accepted_with_a_warning(changes: dict[str, Any], names: list[str]) -> None:
    settings = Settings(**VALID | changes)
    settings.check_startup()
    assert [line.split()[0] for line in settings.warnings()] == names
    assert Settings(**VALID | changes | {"env": "development"}).warnings() == []


def test_unsafe_values_are_accepted_outside_production() -> None:
    values = {"metrics_token": "a", "cors_origins": "null", "ssrf_allow_cidrs": "0.0.0.0/0", "enable_docs": True}
    for env in ("development", "test", "staging"):
        Settings(**VALID | values | {"env": env}).check_startup()


class TestSignIn:
    @pytest.mark.parametrize(
        ("changes", "expected"),
        [
            ({"clerk_issuer": None}, ["CLERK_ISSUER"]),
            ({"clerk_issuer": "http://clerk.example.com"}, ["CLERK_ISSUER"]),
            ({"clerk_issuer": None, "auth": "keys"}, []),
            ({"auth": "keys"}, ["Only"]),
            ({"clerk_issuer": None, "oidc_issuer": "https://sso.example.com", "oidc_audience": "blox"}, []),
            ({"clerk_issuer": None, "oidc_issuer": "https://sso.example.com"}, ["OIDC_AUDIENCE"]),
            (
                {"clerk_issuer": None, "oidc_issuer": "http://sso.example.com", "oidc_audience": "blox"},
                ["OIDC_ISSUER"],
            ),
            ({"oidc_issuer": "https://sso.example.com", "oidc_audience": "blox"}, ["Only"]),
            ({"clerk_issuer": None, "auth": "keys", "clerk_webhook_secret": "whsec_" + "A" * 32}, ["CLERK_ISSUER"]),
        ],
        ids=str,
    )
    def test_production_needs_exactly_one_way_to_sign_in(self, changes: dict[str, Any], expected: list[str]) -> None:
        assert problems(**changes) == expected

    @pytest.mark.parametrize("env", ["development", "test", "staging", "production"])
    def test_incomplete_provider_prevents_every_start(self, env: str) -> None:
        changes = {"env": env, "clerk_issuer": None, "oidc_issuer": "sso.example.com"}
        assert {"OIDC_ISSUER", "OIDC_AUDIENCE"} <= {*problems(**changes)}

    @pytest.mark.parametrize(
        ("changes", "is_bypassed"),
        [
            ({"clerk_issuer": None}, True),
            ({}, False),
            ({"clerk_issuer": None, "oidc_issuer": "https://sso.example.com"}, False),
            ({"clerk_issuer": None, "auth": "keys"}, False),
        ],
        ids=str,
    )
    def test_development_user_exists_only_without_another_sign_in(
        self, changes: dict[str, Any], is_bypassed: bool
    ) -> None:
        assert Settings(**VALID | {"env": "development"} | changes).dev_bypass is is_bypassed
        assert not Settings(**VALID | changes).dev_bypass
