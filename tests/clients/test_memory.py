"""Memory budgets of executions and users."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from uuid import UUID

import pytest

from bloxserver.clients.http import GuardedClient, OutgoingRequestError
from bloxserver.clients.memory import MemoryBudget, MemoryLimitReached, UserMemory
from bloxserver.clients.shares import UNLIMITED
from bloxserver.plans import FREE, MEBIBYTE
from tests.clients.loopback import answer, running_server

USER, OTHER = UUID(int=1), UUID(int=2)
PLAN = replace(FREE, execution_memory_bytes=1000)


class TestBudget:
    def test_limit_is_exact(self) -> None:
        budget = MemoryBudget(1000, of="an execution")
        budget.reserve(999)
        budget.reserve(1)
        with pytest.raises(MemoryLimitReached):
            budget.reserve(1)
        assert budget.used == 1000

    def test_message_has_limit_use_and_a_hint(self) -> None:
        budget = MemoryBudget(64 * MEBIBYTE, of="an execution")
        budget.reserve(60 * MEBIBYTE)
        with pytest.raises(MemoryLimitReached) as caught:
            budget.reserve(5 * MEBIBYTE)
        assert str(caught.value) == (
            "the memory limit of an execution, 64.0 MiB, is reached: 60.0 MiB in use, 5.0 MiB more needed. "
            "Process less data at once, or change to a plan with a higher limit"
        )

    def test_closed_child_releases_what_it_reserved(self) -> None:
        budget = MemoryBudget(1000)
        child = budget.child()
        child.reserve(900)
        budget.reserve(100)
        with pytest.raises(MemoryLimitReached):
            budget.child().reserve(1)
        child.close()
        assert budget.used == 100

    def test_executions_of_a_user_share_a_budget(self) -> None:
        memory = UserMemory()
        first, second, third = (memory.of_execution(USER, PLAN) for _ in range(3))
        first.reserve(1000)
        second.reserve(1000)
        with pytest.raises(MemoryLimitReached, match="all your executions"):
            third.reserve(1)
        assert third.used == 0
        memory.of_execution(OTHER, PLAN).reserve(1000)
        first.close()
        third.reserve(1000)


class TestResponses:
    @pytest.mark.parametrize(("size", "accepted"), [(999, True), (1000, True), (1001, False)])
    async def test_body_is_charged_while_it_is_read(self, size: int, accepted: bool) -> None:
        budget = MemoryBudget(1000, of="an execution")
        client = GuardedClient(allow=[ip_network("127.0.0.1/32")]).limited_to(UNLIMITED, budget)
        async with running_server() as server:
            server.answers["/"] = answer(bytes(size))
            response = await client.request("GET", server.url("/"))
        assert response.status == 200
        if accepted:
            assert (len(response.content), budget.used) == (size, size)
        else:
            with pytest.raises(OutgoingRequestError, match="the memory limit of an execution") as caught:
                _ = response.content
            assert (caught.value.code, caught.value.retryable) == ("memory_limit_reached", False)
