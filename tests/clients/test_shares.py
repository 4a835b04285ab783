"""Concurrent outgoing requests of one user are limited; other users do not wait for them."""

from __future__ import annotations

import asyncio
from asyncio import StreamWriter
from collections.abc import AsyncIterator
from dataclasses import replace
from ipaddress import ip_network
from uuid import UUID

import pytest

from bloxserver.clients.http import GuardedClient, OutgoingRequestError
from bloxserver.clients.mail import Mailer, MailError, MailServer
from bloxserver.clients.shares import OutgoingShares, UserSlots
from bloxserver.plans import FREE
from tests.clients.loopback import LoopbackServer, answer, running_server
from tests.clients.mailing import mail

LOOPBACK = ip_network("127.0.0.1/32")
ATTACKER, VICTIM = UUID(int=1), UUID(int=2)
PLAN = replace(FREE, outgoing_requests=3)


class HeldServer:
    """A server whose responses to /held wait for `release`."""

    def __init__(self, server: LoopbackServer) -> None:
        self.server = server
        self.arrived: list[str] = []
        self._arrival = asyncio.Event()
        self._released = asyncio.Event()
        server.answers |= {"/held": self._hold, "/": answer(b"ok")}

    async def _hold(self, writer: StreamWriter) -> None:
        self.arrived.append(self.server.received[-1].path)
        self._arrival.set()
        await self._released.wait()
        writer.write(answer(b"held"))

    async def wait_for(self, count: int) -> None:
        """Wait until `count` requests have arrived."""
        while len(self.arrived) < count:
            self._arrival.clear()
            await self._arrival.wait()

    def release(self) -> None:
        self._released.set()


@pytest.fixture
async def held() -> AsyncIterator[HeldServer]:
    async with running_server() as server:
        held = HeldServer(server)
        yield held
        held.release()


@pytest.fixture
async def client() -> GuardedClient:
    return GuardedClient(allow=[LOOPBACK], total_timeout_seconds=30)


class TestRequests:
    @pytest.mark.parametrize("count", [2, 3, 4])
    async def test_as_many_requests_as_the_limit_are_sent_at_once(
        self, client: GuardedClient, held: HeldServer, count: int
    ) -> None:
        shares = OutgoingShares()
        attacker, victim = (client.limited_to(shares.of(user, PLAN)) for user in (ATTACKER, VICTIM))
        url = held.server.url
        requests = [asyncio.create_task(attacker.request("GET", url(f"/held?{number}"))) for number in range(count)]
        await held.wait_for(min(count, 3))
        assert (await victim.request("GET", url("/"))).content == b"ok", "another user does not wait"
        assert held.arrived == [f"/held?{number}" for number in range(min(count, 3))]
        held.release()
        assert {response.content for response in await asyncio.gather(*requests)} == {b"held"}
        assert len(held.arrived) == count

    async def test_waiting_counts_towards_the_time_limit(self, client: GuardedClient, held: HeldServer) -> None:
        limited = client.limited_to(OutgoingShares().of(ATTACKER, PLAN))
        requests = [asyncio.create_task(limited.request("GET", held.server.url("/held"))) for _ in range(3)]
        await held.wait_for(3)
        with pytest.raises(OutgoingRequestError, match="took too long"):
            await limited.request("GET", held.server.url("/"), timeout_seconds=0.05)
        assert len(held.server.received) == 3
        held.release()
        await asyncio.gather(*requests)

    async def test_email_counts_as_a_request(self, client: GuardedClient, held: HeldServer) -> None:
        share = OutgoingShares().of(ATTACKER, PLAN)
        limited = client.limited_to(share)
        requests = [asyncio.create_task(limited.request("GET", held.server.url("/held"))) for _ in range(3)]
        await held.wait_for(3)
        mailer = Mailer(None, None, [LOOPBACK]).limited_to(share)
        with pytest.raises(MailError) as caught:
            await mailer.send(mail(), MailServer("127.0.0.1", held.server.port, "none"), timeout_seconds=0.05)
        assert (caught.value.code, held.server.connections) == ("timeout", 3)
        held.release()
        await asyncio.gather(*requests)


class TestSlots:
    async def test_tasks_get_slots_in_the_order_in_which_they_wait(self) -> None:
        slots, order, begin = UserSlots(), [], asyncio.Event()

        async def work(number: int) -> None:
            async with slots.take(ATTACKER, 1):
                await begin.wait()
                order.append(number)

        tasks = [asyncio.create_task(work(number)) for number in range(5)]
        tasks[2].cancel()
        begin.set()
        await asyncio.wait(tasks)
        assert order == [0, 1, 3, 4]

    async def test_users_without_tasks_take_no_memory(self) -> None:
        slots = UserSlots()
        async with slots.take(ATTACKER, 1):
            assert len(slots) == 1
        assert len(slots) == 0
