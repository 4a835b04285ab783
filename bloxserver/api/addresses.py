"""Client addresses, also as keys of limits."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import Any

UNKNOWN = "unknown"
IPV6_PREFIX = 64
"""Bits of an IPv6 address that identify a client. A provider assigns at least this network to each customer."""


@lru_cache(maxsize=4096)
def address_key(host: str | None) -> str:
    """The address, or the /64 network of an IPv6 address. All texts that are not addresses have the same key."""
    address = parse_address(host)
    if address is None:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, IPV6_PREFIX), strict=False))
    return str(address)


@lru_cache(maxsize=4096)
def parse_address(host: str | None) -> IPv4Address | IPv6Address | None:
    """The address; an IPv4-mapped IPv6 address as IPv4. None if the text is not an address."""
    try:
        address = ip_address((host or "").partition("%")[0])
    except ValueError:
        return None
    return (isinstance(address, IPv6Address) and address.ipv4_mapped) or address


def client_address(scope: Mapping[str, Any]) -> str | None:
    """The address of a request's client; None if it is unknown. uvicorn has replaced that of a trusted proxy."""
    client = scope.get("client")
    address = parse_address(client[0]) if client else None
    return None if address is None else str(address)
