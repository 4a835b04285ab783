"""Resolution of names: numeric addresses, time limits, and limits of each user."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import ip_address, ip_network
from pathlib import Path
from uuid import UUID

import pytest

from bloxserver.clients.http import GuardedClient, OutgoingRequestError
from bloxserver.clients.mail import Mailer, MailError, MailServer
from bloxserver.clients.resolver import Resolver
from bloxserver.clients.shares import OutgoingShares
from bloxserver.plans import FREE
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.clients.mailing import mail
from tests.dns_server import DnsServer, running_dns_server

LOOPBACK = ip_network("127.0.0.1/32")
ATTACKER, VICTIM = UUID(int=1), UUID(int=2)


@pytest.fixture
async def dns() -> AsyncIterator[DnsServer]:
    """A DNS server that knows quick.test, and does not respond to questions for silent0.test to silent99.test."""
    async with running_dns_server() as server:
        server.records["quick.test"] = {"A": ["127.0.0.1"]}
        server.silent = {f"silent{number}.test" for number in range(100)}
        yield server


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        server.answers["/"] = answer(b"ok")
        yield server


def resolver_of(dns: DnsServer, directory: Path, timeout_seconds: float = 60) -> Resolver:
    return Resolver(dns.names(directory, hosts="127.0.0.1 localhost").look_up, timeout_seconds=timeout_seconds)


async def asked(dns: DnsServer, count: int) -> None:
    """Wait until the server was asked for `count` names."""
    while len(set(dns.questions)) < 2 * count:
        dns.asked.clear()
        await dns.asked.wait()


class TestSlowLookups:
    async def test_endless_lookups_of_one_user_do_not_delay_another(
        self, dns: DnsServer, server: LoopbackServer, tmp_path: Path
    ) -> None:
        shares = OutgoingShares()
        client = GuardedClient(allow=[LOOPBACK], resolver=resolver_of(dns, tmp_path), total_timeout_seconds=60)
        attacker, victim = (client.limited_to(shares.of(user, FREE)) for user in (ATTACKER, VICTIM))
        endless = [
            asyncio.create_task(attacker.request("GET", server.url("/", f"silent{number}.test")))
            for number in range(100)
        ]
        await asked(dns, FREE.name_lookups)
        for host in ("quick.test", "localhost", "127.0.0.1"):
            assert (await victim.request("GET", server.url("/", host))).content == b"ok"
        assert not any(task.done() for task in endless)
        assert len({name for name, _ in dns.questions if name in dns.silent}) == FREE.name_lookups
        for task in endless:
            task.cancel()
        await asyncio.wait(endless)
        assert all(task.cancelled() for task in endless)
        assert (await attacker.request("GET", server.url("/", "quick.test"))).content == b"ok", "the slots are free"

    async def test_slow_lookup_fails_its_requests_after_the_timeout(
        self, dns: DnsServer, server: LoopbackServer, tmp_path: Path
    ) -> None:
        client = GuardedClient(allow=[LOOPBACK], resolver=resolver_of(dns, tmp_path, 0.05))
        with pytest.raises(OutgoingRequestError) as caught:
            await client.request("GET", server.url("/?key=secret", "silent0.test"))
        assert (caught.value.code, caught.value.retryable) == ("name_not_resolved", True)
        assert caught.value.message == "silent0.test could not be resolved within 0.05 seconds"
        assert server.received == []

    async def test_slow_lookup_fails_email_after_the_timeout(self, dns: DnsServer, tmp_path: Path) -> None:
        mailer = Mailer(None, None, [LOOPBACK], resolver=resolver_of(dns, tmp_path, 0.05))
        with pytest.raises(MailError) as caught:
            await mailer.send(mail(), MailServer("silent0.test", 25, "none"))
        assert (caught.value.code, caught.value.retryable) == ("name_not_resolved", True)

    async def test_timeout_of_a_request_ends_its_lookup(
        self, dns: DnsServer, server: LoopbackServer, tmp_path: Path
    ) -> None:
        client = GuardedClient(allow=[LOOPBACK], resolver=resolver_of(dns, tmp_path))
        before = asyncio.all_tasks()
        with pytest.raises(OutgoingRequestError, match="took too long"):
            await client.request("GET", server.url("/", "silent0.test"), timeout_seconds=0.05)
        assert asyncio.all_tasks() == before

    async def test_requests_without_a_slot_fail_after_the_timeout(self, dns: DnsServer, tmp_path: Path) -> None:
        share = OutgoingShares().of(ATTACKER, FREE)
        resolver = resolver_of(dns, tmp_path, 0.05)
        hosts = sorted(dns.silent)[: FREE.name_lookups + 1]
        results = await asyncio.gather(*(resolver.resolve(host, share) for host in hosts), return_exceptions=True)
        assert [str(result) for result in results] == [
            f"{host} could not be resolved within 0.05 seconds" for host in hosts
        ]
        assert hosts[-1] not in {name for name, _ in dns.questions}


class TestNames:
    @pytest.mark.parametrize(
        "host", ["unknown.test", "a" * 300, f"{'a' * 64}.test", "\ud800"], ids=lambda host: ascii(host)[:20]
    )
    async def test_name_without_an_address_is_an_error(self, dns: DnsServer, tmp_path: Path, host: str) -> None:
        with pytest.raises(OutgoingRequestError) as caught:
            await resolver_of(dns, tmp_path).resolve(host)
        assert (caught.value.code, caught.value.message) == ("name_not_resolved", f"{host} has no address")

    async def test_repeated_addresses_are_returned_once(self, dns: DnsServer, tmp_path: Path) -> None:
        dns.records["mapped.test"] = {"A": ["192.0.2.1"], "AAAA": ["::ffff:192.0.2.1"]}
        assert await resolver_of(dns, tmp_path).resolve("mapped.test") == [ip_address("192.0.2.1")]

    @pytest.mark.parametrize(("host", "address"), [("127.1", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("::1", "::1")])
    async def test_numeric_address_needs_no_lookup(
        self, dns: DnsServer, tmp_path: Path, host: str, address: str
    ) -> None:
        assert await resolver_of(dns, tmp_path).resolve(host) == [ip_address(address)]
        assert dns.questions == []
