"""Resolution of names, and timeouts of slow lookups."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_address, ip_network

import pytest

from bloxserver.clients.http import GuardedClient, OutgoingRequestError
from bloxserver.clients.mail import Mailer, MailError, MailServer
from bloxserver.clients.resolver import Resolver
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.clients.mailing import mail

LOOPBACK = ip_network("127.0.0.1/32")


class Names:
    """A lookup for tests. Names that start with "slow" are resolved only after `release`."""

    def __init__(self) -> None:
        self.questions: list[str] = []
        self._released = threading.Event()

    def look_up(self, host: str) -> list[str]:
        self.questions.append(host)
        if host.startswith("slow"):
            self._released.wait(60)
        if host.startswith("unknown"):
            raise socket.gaierror(socket.EAI_NONAME, "unknown name")
        return ["127.0.0.1", "127.0.0.1"]

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def names() -> Iterator[Names]:
    names = Names()
    yield names
    names.release()


@pytest.fixture
async def server() -> AsyncIterator[LoopbackServer]:
    async with running_server() as server:
        server.answers["/"] = answer(b"ok")
        yield server


def client_of(resolver: Resolver) -> GuardedClient:
    return GuardedClient(allow=[LOOPBACK], total_timeout_seconds=30, resolver=resolver)


async def settled() -> None:
    """Run tasks until all of them wait for external events."""
    for _ in range(10):
        await asyncio.sleep(0)


class TestSlowLookups:
    async def test_slow_lookup_does_not_block_others(self, names: Names, server: LoopbackServer) -> None:
        client = client_of(Resolver(names.look_up, timeout_seconds=60))
        slow = [asyncio.create_task(client.request("GET", server.url("/", f"slow{n}.test"))) for n in range(60)]
        await settled()
        for host in ("localhost", "quick.test", "127.0.0.1"):
            assert (await client.request("GET", server.url("/", host))).content == b"ok"
        assert await asyncio.to_thread(lambda: "free") == "free"
        assert not any(task.done() for task in slow)
        names.release()
        assert {response.content for response in await asyncio.gather(*slow)} == {b"ok"}

    async def test_slow_lookup_fails_its_requests_after_the_timeout(self, names: Names, server: LoopbackServer) -> None:
        client = client_of(Resolver(names.look_up, timeout_seconds=0.05))
        with pytest.raises(OutgoingRequestError) as caught:
            await client.request("GET", server.url("/?key=secret", "slow.test"))
        assert (caught.value.code, caught.value.retryable) == ("name_not_resolved", True)
        assert caught.value.message == "slow.test could not be resolved within 0.05 seconds"
        assert server.received == []

    async def test_slow_lookup_fails_email_after_the_timeout(self, names: Names) -> None:
        mailer = Mailer(None, None, [LOOPBACK], resolver=Resolver(names.look_up, timeout_seconds=0.05))
        with pytest.raises(MailError) as caught:
            await mailer.send(mail(), MailServer("slow.test", 25, "none"))
        assert (caught.value.code, caught.value.retryable) == ("name_not_resolved", True)

    async def test_timeout_of_one_request_does_not_fail_others(self, names: Names, server: LoopbackServer) -> None:
        client = client_of(Resolver(names.look_up, timeout_seconds=60))
        url = server.url("/", "slow.test")
        impatient = client.request("GET", url, timeout_seconds=0.05)
        cancelled, patient = (asyncio.create_task(client.request("GET", url)) for _ in range(2))
        with pytest.raises(OutgoingRequestError, match="took too long"):
            await impatient
        cancelled.cancel()
        await asyncio.wait([cancelled])
        names.release()
        assert (await patient).content == b"ok"
        assert names.questions == ["slow.test"]

    async def test_number_of_lookups_is_limited(self, names: Names) -> None:
        resolver = Resolver(names.look_up, timeout_seconds=60, max_lookups=2)
        lookups = [
            asyncio.create_task(resolver.resolve(f"{name}.test")) for name in ("slow1", "slow2", "slow1", "quick")
        ]
        await settled()
        assert await resolver.resolve("127.0.0.1") == [ip_address("127.0.0.1")]
        assert "quick.test" not in names.questions
        names.release()
        assert await asyncio.gather(*lookups) == [[ip_address("127.0.0.1")]] * 4
        assert sorted(names.questions) == ["quick.test", "slow1.test", "slow2.test"]

    async def test_requests_without_a_slot_fail_after_the_timeout(self, names: Names) -> None:
        resolver = Resolver(names.look_up, timeout_seconds=0.05, max_lookups=1)
        hosts = ("slow.test", "quick.test")
        results = await asyncio.gather(*(resolver.resolve(host) for host in hosts), return_exceptions=True)
        assert [str(result) for result in results] == [
            f"{host} could not be resolved within 0.05 seconds" for host in hosts
        ]


class TestNames:
    async def test_concurrent_requests_share_a_lookup(self, names: Names) -> None:
        resolver = Resolver(names.look_up)
        together = asyncio.gather(*(resolver.resolve("slow.test") for _ in range(5)))
        await settled()
        names.release()
        assert await together == [[ip_address("127.0.0.1")]] * 5
        await resolver.resolve("slow.test")
        assert names.questions == ["slow.test"] * 2

    @pytest.mark.parametrize(
        "host", ["unknown.test", "a" * 300, f"{'a' * 64}.test", "\ud800"], ids=lambda host: ascii(host)[:20]
    )
    async def test_name_without_an_address_is_an_error(self, names: Names, host: str) -> None:
        lookup = names.look_up if host == "unknown.test" else lambda host: [host.encode("idna").decode()]
        with pytest.raises(OutgoingRequestError) as caught:
            await Resolver(lookup).resolve(host)
        assert (caught.value.code, caught.value.message) == ("name_not_resolved", f"{host} has no address")

    @pytest.mark.parametrize(("host", "address"), [("127.1", "127.0.0.1"), ("0x7f000001", "127.0.0.1"), ("::1", "::1")])
    async def test_numeric_address_needs_no_lookup(self, names: Names, host: str, address: str) -> None:
        assert await Resolver(names.look_up).resolve(host) == [ip_address(address)]
        assert names.questions == []
