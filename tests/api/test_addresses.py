from __future__ import annotations

import pytest

from bloxserver.api.addresses import UNKNOWN, address_key, parse_address


@pytest.mark.parametrize(
    ("host", "key"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", UNKNOWN),
        (None, UNKNOWN),
        ("unknown", UNKNOWN),
        ("x" * 10_000, UNKNOWN),
    ],
)
def test_key_of_an_address(host: str | None, key: str) -> None:
    assert address_key(host) == key


def test_mapped_address_is_an_ipv4_address() -> None:
    assert str(parse_address("::ffff:10.0.0.1")) == "10.0.0.1"
