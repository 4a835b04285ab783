"""Types of settings: how their texts in the environment are read."""

from __future__ import annotations

import re
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Annotated

from pydantic import BeforeValidator, SecretStr
from pydantic_settings import NoDecode

from bloxserver.signing_key_format import read_secret

HOST_PATTERN = re.compile(r"(\*\.)?[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*|[0-9A-Fa-f:]*:[0-9A-Fa-f:.]+")


def split_commas(text: str) -> list[str]:
    """Return the non-empty parts between commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def _split(value: object) -> object:
    return split_commas(value) if isinstance(value, str) else value


def _networks(value: object) -> object:
    return tuple(map(_network, split_commas(value))) if isinstance(value, str) else value


def _proxies(value: object) -> object:
    networks = _networks(value)
    if isinstance(networks, tuple) and not all(network.prefixlen for network in networks):
        raise ValueError("a network that contains every address would let clients choose their own address")
    return networks


def _network(text: str) -> IPv4Network | IPv6Network:
    try:
        return ip_network(text)
    except ValueError:
        pass
    try:
        meant = f"; did you mean {ip_network(text, strict=False)}?"
    except ValueError:
        meant = ""
    raise ValueError(f"{text[:50]!r} is not a network like 10.0.0.0/8 or fd00::/8{meant}")


def _host_patterns(value: object) -> object:
    return tuple(map(_host_pattern, split_commas(value))) if isinstance(value, str) else value


def _host_pattern(text: str) -> str:
    if not HOST_PATTERN.fullmatch(text):
        raise ValueError(f"{text[:50]!r} is not a host like api.example.com or *.example.com, without scheme and port")
    return text.lower()


def blank_as_none(value: object) -> object:
    return None if isinstance(value, str) and not value.strip() else value


def _signing_secrets(value: object) -> object:
    if isinstance(value, str):
        for secret in split_commas(value):
            read_secret(secret)
        return value if split_commas(value) else None
    return value


CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Networks = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_networks)]
Proxies = Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode, BeforeValidator(_proxies)]
HostPatterns = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_host_patterns)]
OptionalText = Annotated[str | None, BeforeValidator(blank_as_none)]
OptionalSecret = Annotated[SecretStr | None, BeforeValidator(blank_as_none)]
SigningSecrets = Annotated[SecretStr | None, BeforeValidator(_signing_secrets)]
