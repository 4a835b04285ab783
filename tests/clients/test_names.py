"""Lookups in a hosts file and in a real DNS server."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bloxserver.clients.names import Names
from tests.dns_server import DnsServer, running_dns_server


@pytest.fixture
async def server() -> AsyncIterator[DnsServer]:
    async with running_dns_server() as server:
        yield server


class TestDns:
    async def test_addresses_of_both_versions_are_found(self, server: DnsServer, tmp_path: Path) -> None:
        server.records["both.test"] = {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1"]}
        found = await server.names(tmp_path).look_up("both.test")
        assert sorted(found) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
        assert sorted(server.questions) == [("both.test", "A"), ("both.test", "AAAA")]

    async def test_name_with_addresses_of_one_version_is_found(self, server: DnsServer, tmp_path: Path) -> None:
        server.records |= {"old.test": {"A": ["192.0.2.1"]}, "new.test": {"AAAA": ["2001:db8::1"]}}
        names = server.names(tmp_path)
        assert await names.look_up("old.test") == ["192.0.2.1"]
        assert await names.look_up("new.test") == ["2001:db8::1"]

    async def test_aliases_are_followed(self, server: DnsServer, tmp_path: Path) -> None:
        server.records |= {
            "www.test": {"CNAME": ["cdn.test."]},
            "cdn.test": {"CNAME": ["edge.test."]},
            "edge.test": {"A": ["192.0.2.7"]},
        }
        assert await server.names(tmp_path).look_up("www.test") == ["192.0.2.7"]

    async def test_internationalized_name_is_asked_for_in_its_ascii_form(
        self, server: DnsServer, tmp_path: Path
    ) -> None:
        server.records["xn--mller-kva.test"] = {"A": ["192.0.2.1"]}
        assert await server.names(tmp_path).look_up("müller.test") == ["192.0.2.1"]

    @pytest.mark.parametrize(
        "host", ["unknown.test", "empty.test", "a" * 300, f"{'a' * 64}.test", "a..test"], ids=lambda host: host[:12]
    )
    async def test_name_that_does_not_exist_or_is_invalid_has_no_address(
        self, server: DnsServer, tmp_path: Path, host: str
    ) -> None:
        server.records["empty.test"] = {}
        assert await server.names(tmp_path).look_up(host) == []

    async def test_search_domains_are_tried(self, server: DnsServer, tmp_path: Path) -> None:
        server.records["shop.default.svc.test"] = {"A": ["192.0.2.1"]}
        names = server.names(tmp_path, resolv_conf="search svc.test\noptions ndots:5")
        assert await names.look_up("shop.default") == ["192.0.2.1"]
        assert await names.look_up("shop.default.") == [], "a name with a final dot is complete"

    async def test_changed_configuration_is_read_again(self, server: DnsServer, tmp_path: Path) -> None:
        server.records["a.test"] = {"A": ["192.0.2.1"]}
        names = server.names(tmp_path)
        assert await names.look_up("a") == []
        (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\nsearch test\n")
        os.utime(tmp_path / "resolv.conf", (1, 1))
        assert await names.look_up("a") == ["192.0.2.1"]

    async def test_truncated_response_is_read_over_tcp(self, server: DnsServer, tmp_path: Path) -> None:
        addresses = [f"192.0.2.{number}" for number in range(100)]
        server.records["many.test"] = {"A": addresses}
        assert sorted(await server.names(tmp_path).look_up("many.test")) == sorted(addresses)
        assert server.questions.count(("many.test", "A")) == 2

    async def test_response_that_takes_long_to_parse_is_not_read(self, server: DnsServer, tmp_path: Path) -> None:
        server.records["huge.test"] = {"A": [f"10.0.{number // 250}.{number % 250}" for number in range(4000)]}
        assert await server.names(tmp_path).look_up("huge.test") == []

    async def test_cancelled_lookup_ends(self, server: DnsServer, tmp_path: Path) -> None:
        server.silent.add("silent.test")
        before = asyncio.all_tasks()
        lookup = asyncio.create_task(server.names(tmp_path).look_up("silent.test"))
        await server.asked.wait()
        lookup.cancel()
        await asyncio.wait([lookup])
        assert lookup.cancelled()
        assert asyncio.all_tasks() == before


class TestHosts:
    HOSTS = """
    # comment
    192.0.2.1  shop.internal shop   # the shop
    2001:db8::1 shop
    127.0.0.1 localhost
    """

    @pytest.mark.parametrize("host", ["shop", "SHOP", "shop."])
    async def test_name_in_the_hosts_file_is_not_asked_for(self, server: DnsServer, tmp_path: Path, host: str) -> None:
        assert await server.names(tmp_path, hosts=self.HOSTS).look_up(host) == ["192.0.2.1", "2001:db8::1"]
        assert server.questions == []

    async def test_localhost_is_the_loopback(self, server: DnsServer, tmp_path: Path) -> None:
        assert await server.names(tmp_path, hosts=self.HOSTS).look_up("localhost") == ["127.0.0.1"]
        for host in ("localhost", "LOCALHOST.", "app.localhost"):
            assert await server.names(tmp_path).look_up(host) == ["127.0.0.1", "::1"]
        assert server.questions == []

    async def test_added_name_is_found(self, server: DnsServer, tmp_path: Path) -> None:
        names = server.names(tmp_path)
        assert await names.look_up("shop") == []
        (tmp_path / "hosts").write_text(self.HOSTS)
        os.utime(tmp_path / "hosts", (1, 1))
        assert await names.look_up("shop") == ["192.0.2.1", "2001:db8::1"]

    async def test_missing_files_leave_localhost_and_default_server(self, server: DnsServer, tmp_path: Path) -> None:
        server.records["a.test"] = {"A": ["192.0.2.1"]}
        names = Names(tmp_path / "none", tmp_path / "none", port=server.port)
        assert await names.look_up("localhost") == ["127.0.0.1", "::1"]
        assert await names.look_up("a.test") == ["192.0.2.1"]
