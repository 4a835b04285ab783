"""Checks of the `Host` and `Origin` headers: DNS rebinding, cross-site requests, and names that are not ours."""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv6Address, ip_address

import structlog
from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from bloxserver.api.errors import problem
from bloxserver.errors import BadRequest, Forbidden
from bloxserver.settings import Settings, get_settings

log = structlog.stdlib.get_logger("bloxserver")

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
PROBES = ("/health", "/metrics")
"""Probes and scrapers often use the address of a container as the host."""
UNTRUSTED_HOST = ("untrusted_host", "The Host header is not in TRUSTED_HOSTS")


class TrustedHosts:
    """Rejects requests for a host that is not in `TRUSTED_HOSTS`, if that is set and users sign in."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        settings = get_settings()
        if scope["type"] == "http" and settings.trusted_hosts and not settings.dev_bypass:
            hosts = Headers(scope=scope).getlist("host")
            if not scope["path"].startswith(PROBES) and not _all_trusted(hosts, settings.trusted_hosts):
                await problem(Request(scope), 400, *UNTRUSTED_HOST)(scope, receive, send)
                return
        await self.app(scope, receive, send)


def check_bypass(request: Request) -> None:
    """Check a request that is signed in as the development user without authentication.

    Raises `BadRequest` for a host name that another site could have pointed at this machine (DNS rebinding), and
    `Forbidden` for a request that another site's page sends to change something.
    """
    settings = get_settings()
    hosts = request.headers.getlist("host")
    if not all(_is_local(_name(host)) or is_trusted(host, settings.trusted_hosts) for host in hosts):
        raise BadRequest(*UNTRUSTED_HOST)
    if request.method not in SAFE_METHODS and _is_cross_site(request.headers, settings):
        raise Forbidden("cross_site_request", "The request comes from a web site that is not in CORS_ORIGINS")
    if request.client is not None and not _is_loopback(request.client.host):
        _warn_of_remote_client()


def is_trusted(host: str, patterns: Iterable[str]) -> bool:
    """Whether the name in a `Host` header matches a pattern of `TRUSTED_HOSTS`. The port does not matter."""
    name = _name(host)
    return any(
        name.endswith(pattern[1:]) and len(name) >= len(pattern) if pattern.startswith("*.") else name == pattern
        for pattern in patterns
    )


def _all_trusted(hosts: list[str], patterns: Iterable[str]) -> bool:
    """Whether there is a host and every one is trusted: of several, a proxy could have checked another one."""
    return bool(hosts) and all(is_trusted(host, patterns) for host in hosts)


def _name(host: str) -> str:
    """Return the lower-case name or address of a `Host` header, without brackets and port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower()


def _is_local(name: str) -> bool:
    """Whether no other site can have chosen the name: an IP address, or a name without dots such as localhost."""
    return "." not in name or _address(name) is not None


def _is_cross_site(headers: Headers, settings: Settings) -> bool:
    origins = headers.getlist("origin")
    if not origins:
        return headers.get("sec-fetch-site") == "cross-site"
    own = headers.get("host", "").lower()
    allowed = settings.cors_origins
    return not all(
        origin in allowed or "*" in allowed or (origin.lower().partition("://")[2] == own != "") for origin in origins
    )


def _address(name: str) -> object:
    try:
        return ip_address(name)
    except ValueError:
        return None


def _is_loopback(host: str) -> bool:
    try:
        address = ip_address(host)
    except ValueError:
        return True  # a Unix socket, or a client of a test
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


@lru_cache(maxsize=1)
def _warn_of_remote_client() -> None:
    """Log a warning once. Not every server knows its address when it starts: the command of uvicorn does not."""
    log.warning(
        "a request from another machine was authenticated as the development user: set CLERK_ISSUER, or accept "
        "connections from this machine only"
    )
