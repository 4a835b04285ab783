"""Limits of model calls in processes of their own: they are counted together, and the calls of a killed one expire."""

from __future__ import annotations

import asyncio
import json
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

import bloxserver
from bloxserver.clock import now
from bloxserver.llm.calls import Caller
from bloxserver.llm.database_limits import DatabaseLimits
from bloxserver.llm.limits import LimitStore, reservation_of
from bloxserver.llm.redis_limits import RedisLimits
from bloxserver.models.database import Database
from bloxserver.plans import PLANS
from bloxserver.settings import Settings
from tests.factories import create_user
from tests.llm.catalogues import Clock
from tests.llm.test_limits import CALL, WIDE
from tests.llm_server import Api, Asked, LanguageModelServer, Reply, language_model, says
from tests.redis_server import redis_server

CALLS = 30
"""Concurrent calls of each process."""
ALLOWED = 20
"""How many of them the limit allows."""
TOKENS = 100
"""What each of them reserves."""
PROGRAM = """
import asyncio, json, sys
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from bloxserver.clients.model_errors import ModelError
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.database import Database
from bloxserver.models.postgres import Timeouts
from bloxserver.plans import PLANS
from bloxserver.settings import Settings

async def main():
    given = json.loads(sys.argv[1])
    settings = Settings(**given["settings"])
    moment = datetime.fromisoformat(given["moment"])
    # On a busy machine, calls of one user wait long for each other, and would be admitted without a check.
    database = Database(settings, Timeouts(connect=60, lock=60))
    models = LanguageModels(settings, database, lambda: moment)
    await models.load(None)
    from pydantic_ai.messages import ModelRequest, UserPromptPart

    async def ask(user):
        try:
            await user.request([ModelRequest([UserPromptPart("abc" * 10)])], max_tokens=90)
            print("answered", flush=True)
        except ModelError as error:
            print(error.code, flush=True)

    print("ready", flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        asked = json.loads(line)
        plan = replace(PLANS["enterprise"], **asked["limits"])
        user = models.of(Caller(UUID(asked["user"]), "enterprise", plan))
        await asyncio.gather(*(ask(user) for _ in range(asked["calls"])))
    await models.aclose()

asyncio.run(main())
"""


class Held:
    """A script that answers when the test allows it."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    def __call__(self, asked: Asked) -> Reply:
        async def hold(writer: asyncio.StreamWriter) -> None:
            await self.go_on.wait()
            reply = says("Here.")("openai")
            assert isinstance(reply, bytes)
            writer.write(reply)

        def reply(api: Api) -> Any:
            return hold

        return reply


class World:
    """Two processes that use the same store and the same provider, and the store of this process."""

    def __init__(self, server: LanguageModelServer, held: Held, processes: list[Process], store: LimitStore) -> None:
        self.server = server
        self.held = held
        self.processes = processes
        self.store = store

    async def line(self, process: Process) -> str:
        assert process.stdout is not None
        return (await process.stdout.readline()).decode().strip()

    async def ask(self, process: Process, user_id: UUID, calls: int, **limits: int) -> None:
        assert process.stdin is not None
        order = {"user": str(user_id), "limits": WIDE | limits, "calls": calls}
        process.stdin.write(f"{json.dumps(order)}\n".encode())
        await process.stdin.drain()


@pytest.fixture
def clock() -> Clock:
    clock = Clock()
    clock.moment = now().replace(second=1)
    return clock


@pytest.fixture(params=["database", "redis"])
async def world(
    request: pytest.FixtureRequest, live_settings: Settings, live_database: Database, clock: Clock
) -> AsyncIterator[World]:
    held = Held()
    async with language_model(held) as server:
        settings = {
            "database_url": live_settings.database_url,
            "rate_limits": True,
            "llm_providers": None,
            "database_pool_timeout_seconds": 60,
        }
        settings |= {"llm_base_url": server.url, "llm_provider": "openai", "llm_model": "parrot-1"}
        settings |= {"database_pool_timeout_seconds": 60}
        if request.param == "database":
            async with processes(settings, clock) as running:
                yield World(server, held, running, DatabaseLimits(live_database, clock))
            return
        async with redis_server() as url, processes(settings | {"redis_url": url}, clock) as running:
            store = RedisLimits(url, clock)
            yield World(server, held, running, store)
            await store.aclose()


@asynccontextmanager
async def processes(settings: dict[str, Any], clock: Clock) -> AsyncIterator[list[Process]]:
    given = json.dumps({"settings": settings, "moment": clock().isoformat()})
    root = Path(bloxserver.__file__).parents[1]
    command = [sys.executable, "-c", PROGRAM, given]
    started = [await asyncio.create_subprocess_exec(*command, cwd=root, stdin=PIPE, stdout=PIPE) for _ in range(2)]
    try:
        async with asyncio.timeout(120):
            for process in started:
                assert process.stdout is not None
                assert await process.stdout.readline() == b"ready\n"
        yield started
    finally:
        for process in started:
            if process.returncode is None:
                process.kill()
            await process.communicate()


async def outcomes(world: World, process: Process, refused: list[str]) -> list[str]:
    """The outcomes of the calls of a process. All others are answered when as many as expected are refused."""
    found = []
    for _ in range(CALLS):
        found.append(await world.line(process))
        if found[-1] == "llm_limit_reached":
            refused.append(found[-1])
            if len(refused) == 2 * CALLS - ALLOWED:
                world.held.go_on.set()
    return found


async def test_limits_are_exact_for_two_processes(world: World, live_database: Database) -> None:
    limits = {
        "llm_requests_per_minute": ALLOWED,
        "llm_tokens_per_minute": ALLOWED * TOKENS + 50,
        "llm_concurrent": ALLOWED,
    }
    for number, (name, limit) in enumerate(limits.items(), start=1):
        async with live_database.transaction() as session:
            user_id = (await create_user(session, clerk_id=name, email=f"{name}@example.com")).id
        world.held.go_on.clear()
        refused: list[str] = []
        async with asyncio.timeout(120):
            for process in world.processes:
                await world.ask(process, user_id, CALLS, **{name: limit})
            found = await asyncio.gather(*(outcomes(world, process, refused) for process in world.processes))
        expected = ["answered"] * ALLOWED + ["llm_limit_reached"] * (2 * CALLS - ALLOWED)
        assert (name, sorted(found[0] + found[1])) == (name, expected)
        assert len(world.server.requests) == ALLOWED * number


async def test_reservation_of_a_killed_process_expires(world: World, live_database: Database, clock: Clock) -> None:
    async with live_database.transaction() as session:
        user_id = (await create_user(session)).id
    killed, other = world.processes
    await world.ask(killed, user_id, 1, llm_concurrent=1)
    async with asyncio.timeout(60):
        await world.server.was_asked.wait()
        killed.kill()
        await killed.wait()
        await world.ask(other, user_id, 1, llm_concurrent=1)
        assert await world.line(other) == "llm_limit_reached"
    plan = replace(PLANS["enterprise"], **WIDE | {"llm_concurrent": 1})

    async def reserves() -> bool:
        reservation = reservation_of(CALL, Caller(user_id, "enterprise", plan), clock(), 60)
        return (await world.store.reserve(reservation, plan))[0]

    # The wait for a slot and the response take at most 60 seconds each, and 30 are added.
    clock.advance(149)
    assert not await reserves()
    clock.advance(1)
    assert await reserves()
    assert not await reserves()
