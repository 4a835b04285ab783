"""Which addresses a flow may reach: the public internet, and the networks that the installation allows."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

# `is_global` alone is not enough: Python versions differ, and in some of them cloud metadata, multicast, relays and
# the IPv6 forms that contain an IPv4 address are global.
REFUSED_IPV4 = tuple(
    IPv4Network(network)
    for network in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier NAT; 100.100.100.200 is Alibaba's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata
        "169.254.0.0/16",  # link-local; 169.254.169.254 is the metadata of most clouds
        "172.16.0.0/12",
        "192.0.0.0/24",  # 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",
        "192.52.193.0/24",  # AMT relays
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# Excludes ::1, ::a.b.c.d, NAT64 64:ff9b::, fc00::, fe80::, fec0:: and ff00::.
UNICAST_IPV6 = IPv6Network("2000::/3")
REFUSED_IPV6 = tuple(
    IPv6Network(network)
    for network in (
        "2001::/23",  # protocol assignments, including Teredo
        "2001:db8::/32",
        "2002::/16",  # 6to4: contains an IPv4 address
        "3fff::/20",
    )
)


def read_address(text: str) -> Address:
    """The address in `text`; an IPv4 address that is mapped into IPv6 is returned as IPv4. Raises `ValueError`."""
    address = ip_address(text)
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


def is_public(address: Address) -> bool:
    """Whether the address can only be a machine on the public internet."""
    if isinstance(address, IPv4Address):
        return address.is_global and not is_within(address, REFUSED_IPV4)
    return address.is_global and address in UNICAST_IPV6 and not is_within(address, REFUSED_IPV6)


def is_within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)
