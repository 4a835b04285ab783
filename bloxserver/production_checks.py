"""The settings that production rejects, and those that it accepts with a warning. The texts contain no values."""

from __future__ import annotations

from collections import Counter
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from itertools import pairwise
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pydantic import SecretStr

if TYPE_CHECKING:
    from bloxserver.settings import Settings

MINIMUM_SECRET_BYTES = 32
MINIMUM_TOKEN_BYTES = 16
PLACEHOLDERS = ("change", "default", "example", "insert", "password", "placeholder", "replace", "sample", "secret")
"""Words of at least 6 letters: shorter ones would occur in random text."""
MINIMUM_DISTINCT_CHARACTERS = 8
RUN_LENGTH = 3

LARGEST_PREFIXES = {4: 8, 6: 7}
"""Networks with shorter prefixes are larger than any private network: 10.0.0.0/8 and fc00::/7."""
LOCAL_NETWORKS = tuple(map(ip_network, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "::/127", "fe80::/10")))
"""Loopback, and link-local addresses, which include the metadata services of clouds."""


def production_problems(settings: Settings) -> list[str]:
    """Return the problems that keep a process from starting in production."""
    given, webhooks = settings.model_fields_set, settings.webhook_base_url
    keys, token = settings.encryption_keys, settings.metrics_token
    checks = {
        "CLERK_ISSUER must be an https address in production (or set OIDC_ISSUER or AUTH=keys)": settings.auth is None
        and settings.oidc_issuer is None
        and not (settings.clerk_issuer or "").startswith("https://"),
        "OIDC_ISSUER must be an https address in production": not (settings.oidc_issuer or "https://").startswith(
            "https://"
        ),
        "DATABASE_URL must be PostgreSQL in production (or set ALLOW_SQLITE=1)": settings.uses_sqlite
        and not settings.allow_sqlite,
        "CORS_ORIGINS must be set in production: its default contains domains that are not yours": "cors_origins"
        not in given,
        "CORS_ORIGINS must contain only origins like https://app.example.com in production: no *, no null, no http, "
        "no path": "cors_origins" in given and not all(map(_is_https_origin, settings.cors_origins)),
        "WEBHOOK_BASE_URL must be set in production to the address of this installation's webhooks, "
        "for example https://flows.example.com/webhooks": "webhook_base_url" not in given
        or not webhooks.startswith(("http://", "https://")),
        "ENABLE_DOCS must be false in production": settings.enable_docs,
        f"API_KEY_ENCRYPTION_KEY must be set in production; each key needs {MINIMUM_SECRET_BYTES} random bytes or "
        "more, for example from `openssl rand -hex 32`": not keys
        or any(is_weak_secret(key, MINIMUM_SECRET_BYTES) for key in keys),
        f"METRICS_TOKEN needs {MINIMUM_TOKEN_BYTES} random bytes or more in production, "
        "for example from `openssl rand -hex 32`": token is not None
        and is_weak_secret(token.get_secret_value(), MINIMUM_TOKEN_BYTES),
        "SSRF_ALLOW_CIDRS must contain only private networks in production: no network larger than 10.0.0.0/8 or "
        "fc00::/7, and none with loopback or link-local addresses": not all(
            map(_is_private_network, settings.ssrf_allow_cidrs)
        ),
        "STRIPE_SECRET_KEY must not be a test key in production": _is_test_key(settings.stripe_secret_key),
        "STRIPE_WEBHOOK_SECRET must be set when STRIPE_SECRET_KEY is": settings.stripe_secret_key is not None
        and settings.stripe_webhook_secret is None,
    }
    return [problem for problem, holds in checks.items() if holds]


def sign_in_problems(settings: Settings) -> list[str]:
    """Return the problems with the settings of the sign-in, in every kind of installation."""
    checks = {
        "Only one of CLERK_ISSUER, OIDC_ISSUER and AUTH=keys can be set": sum(
            value is not None for value in (settings.clerk_issuer, settings.oidc_issuer, settings.auth)
        )
        > 1,
        "OIDC_ISSUER must be an http or https address": not (settings.oidc_issuer or "https://").startswith(
            ("http://", "https://")
        ),
        "CLERK_ISSUER must be set when CLERK_WEBHOOK_SECRET is": settings.clerk_webhook_secret is not None
        and settings.clerk_issuer is None,
        "OIDC_AUDIENCE must be set when OIDC_ISSUER is": settings.oidc_issuer is not None
        and settings.oidc_audience is None,
    }
    return [problem for problem, holds in checks.items() if holds]


def production_warnings(settings: Settings) -> list[str]:
    """Return the warnings about settings that are unsafe in most installations."""
    checks = {
        "CLERK_AUTHORIZED_PARTIES is empty: tokens issued to any origin are accepted": (
            settings.clerk_issuer is not None and not settings.clerk_authorized_parties
        ),
        "CLERK_ISSUER is a development instance of Clerk": (settings.clerk_issuer or "").endswith(
            ".clerk.accounts.dev"
        ),
        "WEBHOOK_BASE_URL is not https: tokens of webhooks are sent unencrypted": settings.webhook_base_url.startswith(
            "http://"
        ),
        "SMTP_SECURITY is none: mails and SMTP_PASSWORD are sent unencrypted to SMTP_HOST": settings.smtp_host
        is not None
        and settings.smtp_security == "none"
        and not _is_loopback(settings.smtp_host),
        "LLM_BASE_URL is not https: LLM_API_KEY is sent unencrypted": settings.llm_api_key is not None
        and _is_remote_http(settings.llm_base_url),
        "LOG_LEVEL is DEBUG: logs of libraries can contain data of users": settings.log_level == "DEBUG",
        "SQL_ECHO is set: every SQL statement is logged": settings.sql_echo,
    }
    return [warning for warning, holds in checks.items() if holds]


def is_weak_secret(secret: str, minimum_bytes: int) -> bool:
    """Whether the secret is too short, a placeholder, or not random: few characters, a sequence, or a repetition."""
    distinct = min(MINIMUM_DISTINCT_CHARACTERS, minimum_bytes // 3)
    return (
        len(secret.encode(errors="surrogatepass")) < minimum_bytes
        or len(set(secret)) < distinct
        or secret.isdigit()
        or any(word in secret.lower() for word in PLACEHOLDERS)
        or _is_sequence(secret)
        or _is_repetition(secret)
    )


def _is_sequence(text: str) -> bool:
    """Whether most characters follow from the one before them by the same step, as in 0123456789abcdef."""
    steps = Counter(ord(after) - ord(before) for before, after in pairwise(text))
    return max(steps.values()) > len(text) / 2


def _is_repetition(text: str) -> bool:
    """Whether a third or more of the short runs of characters are repetitions of earlier ones."""
    runs = [text[start : start + RUN_LENGTH] for start in range(len(text) - RUN_LENGTH + 1)]
    return len(set(runs)) <= len(runs) * 2 / 3


def _is_https_origin(origin: str) -> bool:
    """Whether a browser can send the origin, and only over https."""
    scheme, _, host = origin.partition("://")
    return scheme == "https" and host != "" and not any(character in host for character in "*/?#@ ")


def _is_private_network(network: IPv4Network | IPv6Network) -> bool:
    overlaps = any(network.version == local.version and network.overlaps(local) for local in LOCAL_NETWORKS)
    return network.prefixlen >= LARGEST_PREFIXES[network.version] and not overlaps


def _is_remote_http(url: str | None) -> bool:
    parts = urlsplit(url or "")
    return parts.scheme == "http" and not _is_loopback(parts.hostname or "")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_test_key(secret: SecretStr | None) -> bool:
    return secret is not None and secret.get_secret_value().startswith(("sk_test_", "rk_test_"))
