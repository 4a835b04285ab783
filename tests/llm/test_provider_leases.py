"""The slots of a provider, shared by processes through the database."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from uuid import UUID

import pytest
import sqlalchemy as sa
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from bloxserver.llm import slots as slots_module
from bloxserver.llm.gateway import LanguageModels
from bloxserver.llm.provider_leases import (
    LEASE,
    REMAINDER_SECONDS,
    Lease,
    Offer,
    ProviderLeases,
    fair_shares,
    share_of,
)
from bloxserver.llm.queue import ModelOverloaded, Waiter
from bloxserver.llm.slots import ProviderSlots, Slots
from bloxserver.model_catalogue import Provider
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmProviderLeaseRecord
from tests.llm.callers import caller
from tests.llm.catalogues import Clock, providers, settings_of
from tests.llm.crowds import Crowd
from tests.llm_server import language_model
from tests.statements import count_statements

PROVIDER = "only"
ONLY = Provider(PROVIDER, "openai", "http://127.0.0.1:9/v1", max_concurrent=8)
MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]
A, B, C = UUID(int=1), UUID(int=2), UUID(int=3)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def fast_renewals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_module, "RENEWAL_SECONDS", 0.02)


class Process:
    """A process that uses slots, and renews its lease when the test calls it."""

    def __init__(self, database: Database, clock: Clock, maximum: int = 8) -> None:
        self.leases = ProviderLeases(database, clock)
        self.maximum = maximum
        self.used = 0
        self.limit = 0

    async def renew(self, wanted: int) -> int:
        """Returns the slots that it may use afterwards."""
        lease = await self.leases.renew(PROVIDER, self.maximum, wanted, self._offer)
        self.limit = lease.slots
        return self.limit

    async def use(self, wanted: int) -> int:
        """Use as many of the wanted slots as it gets."""
        await self.renew(wanted)
        self.used = max(self.used, min(wanted, self.limit))
        return self.used

    def _offer(self, slots: int) -> int:
        return max(self.used, slots)


async def stored(database: Database) -> list[int]:
    async with database.transaction(read_only=True) as session:
        return sorted((await session.scalars(sa.select(LlmProviderLeaseRecord.slots))).all())


@pytest.mark.parametrize(
    ("maximum", "wanted", "shares"),
    [
        (8, {A: 8}, [8]),
        (8, {A: 8, B: 8}, [4, 4]),
        (8, {A: 1, B: 100}, [1, 7]),
        (9, {A: 2, B: 100, C: 3}, [2, 4, 3]),
        (8, {A: 8, B: 8, C: 8}, [3, 3, 2]),
        (1, {A: 8, B: 8}, [1, 0]),
        (8, {A: 0, B: 2}, [0, 2]),
    ],
)
def test_shares_are_equal_up_to_what_a_process_wants(maximum: int, wanted: dict[UUID, int], shares: list[int]) -> None:
    assert [fair_shares(maximum, wanted, 0)[name] for name in wanted] == shares


def test_remainder_moves_from_process_to_process() -> None:
    wanted = {A: 1, B: 1, C: 1}
    assert [share_of(name, 1, wanted, turn) for turn in range(3) for name in wanted] == [1, 0, 0, 0, 1, 0, 0, 0, 1]


def test_part_of_what_none_wants_stays_free() -> None:
    assert share_of(A, 9, {A: 1}, 0) == 5
    assert share_of(A, 9, {A: 1, B: 2}, 0) == 3
    assert share_of(A, 9, {A: 0, B: 2}, 0) == 0


async def test_process_gets_slots_that_none_uses_at_once(live_database: Database, clock: Clock) -> None:
    first, second = Process(live_database, clock), Process(live_database, clock)
    assert await first.use(3) == 3
    assert await second.use(2) == 2
    assert await first.use(6) == 5
    assert sum(await stored(live_database)) <= 8


async def test_slots_in_use_are_not_taken_and_move_when_their_calls_end(live_database: Database, clock: Clock) -> None:
    first, second = Process(live_database, clock), Process(live_database, clock)
    assert await first.use(20) == 8
    assert await second.use(20) == 0
    assert await first.renew(20) == 4  # but its lease has the 8 that it uses
    assert await stored(live_database) == [0, 8]
    assert await second.use(20) == 0
    first.used = 5
    assert await first.renew(20) == 4
    assert await second.use(20) == 3
    first.used = 4
    await first.renew(20)
    assert await second.use(20) == 4
    assert await stored(live_database) == [4, 4]


async def test_unused_slots_return_to_the_process_that_wants_them(live_database: Database, clock: Clock) -> None:
    first, second = Process(live_database, clock), Process(live_database, clock)
    await first.use(20)
    first.used = 0
    await first.renew(1)
    assert await second.use(20) >= 4
    await first.renew(0)  # gives its lease back
    assert await second.use(20) == 8
    assert await stored(live_database) == [8]


async def test_lease_of_a_process_that_died_expires(live_database: Database, clock: Clock) -> None:
    dead, living = Process(live_database, clock), Process(live_database, clock)
    await dead.use(20)
    clock.advance(LEASE.total_seconds() - 1)
    assert await living.use(20) == 0
    clock.advance(1)
    assert await living.use(20) == 8
    assert await stored(live_database) == [8]


async def test_process_that_was_frozen_does_not_get_its_slots_back(live_database: Database, clock: Clock) -> None:
    frozen, living = Process(live_database, clock), Process(live_database, clock)
    await frozen.use(20)
    clock.advance(LEASE.total_seconds())
    await living.use(20)
    assert await frozen.renew(20) == 0


async def test_processes_that_begin_at_the_same_time_never_get_more_than_all_slots(
    live_database: Database, clock: Clock
) -> None:
    processes = [Process(live_database, clock) for _ in range(12)]
    for seconds in range(3):
        used = await asyncio.gather(*(process.use(3) for process in processes))
        assert max(sum(used), sum(await stored(live_database))) <= 8
        clock.advance(seconds)
    assert sum(used) == 8


async def test_single_slot_is_used_by_each_process_in_turn(live_database: Database, clock: Clock) -> None:
    processes = [Process(live_database, clock, maximum=1) for _ in range(3)]
    had = set()
    for _ in range(3 * REMAINDER_SECONDS):
        for number, process in enumerate(processes):
            process.used = 0
            if await process.use(5):
                had.add(number)
        clock.advance(1)
    assert had == {0, 1, 2}


class ObservedLeases(ProviderLeases):
    """Tries to begin a call after the lease was reduced, and before it is stored."""

    slots: ProviderSlots
    begun: bool | None = None

    async def renew(self, provider: str, maximum: int, wanted: int, offer: Offer) -> Lease:
        def observed(slots: int) -> int:
            needed = offer(slots)
            self.begun = self.slots.take_free()
            return needed

        return await super().renew(provider, maximum, wanted, observed)


@asynccontextmanager
async def slots_of_processes(*leases: ProviderLeases, clock: Clock) -> AsyncIterator[list[ProviderSlots]]:
    async with AsyncExitStack() as stack:
        started = [ProviderSlots(ONLY, each, clock) for each in leases]
        for slots in started:
            stack.push_async_callback(slots.aclose)
        yield started
        for slots in started:
            while (waiter := slots.queue.next()) is not None:
                slots.remove(waiter)


def wait_for(slots: ProviderSlots, number: int) -> list[Waiter]:
    waiters = [Waiter("pro", A, 0.0) for _ in range(number)]
    for waiter in waiters:
        slots.add(waiter)
    return waiters


def served(waiters: list[Waiter]) -> int:
    return sum(waiter.slot.done() for waiter in waiters)


async def test_burst_of_calls_extends_the_lease_at_once(live_database: Database, clock: Clock) -> None:
    async with slots_of_processes(ProviderLeases(live_database, clock), clock=clock) as (slots,):
        assert [await slots.take() for _ in range(9)] == [True] * 8 + [False]
        with count_statements(live_database.engine) as statements:
            assert not await slots.take()
        assert (slots.is_full, statements) == (True, [])


async def test_busy_process_begins_no_calls_beyond_its_share(live_database: Database, clock: Clock) -> None:
    leases = [ProviderLeases(live_database, clock) for _ in range(2)]
    async with slots_of_processes(*leases, clock=clock) as (first, second):
        assert all([await first.take() for _ in range(8)])
        own, others = wait_for(first, 8), wait_for(second, 8)
        for slots in (second, first, second):
            await slots.renew()
        assert (await stored(live_database), served(own), served(others)) == ([0, 8], 0, 0)
        for _ in range(3):
            first.release()
        assert served(own) == 0, "5 slots are in use, and its share is 4"
        for slots in (first, second):
            await slots.renew()
        assert (await stored(live_database), served(own), served(others)) == ([3, 5], 0, 3)
        for _ in range(2):
            first.release()
        for slots in (first, second):
            await slots.renew()
        assert (await stored(live_database), served(own), served(others)) == ([4, 4], 1, 4)


async def test_no_call_begins_with_a_slot_that_is_being_given_back(live_database: Database, clock: Clock) -> None:
    observed = ObservedLeases(live_database, clock)
    leases = ProviderLeases(live_database, clock)
    async with slots_of_processes(observed, leases, clock=clock) as (first, second):
        observed.slots = first
        for _ in range(6):
            assert await first.take()
        for _ in range(5):
            first.release()
        await first.renew()  # for the peak of the time before
        wait_for(second, 7)
        await second.renew()
        observed.begun = None
        await first.renew()
        assert observed.begun is False


@asynccontextmanager
async def gateways(
    folder: Path, url: str, number: int, database: Database, clock: Clock, maximum: int = 8
) -> AsyncIterator[list[LanguageModels]]:
    settings = settings_of(folder, {"providers": providers({PROVIDER: url}, max_concurrent=maximum)})
    async with AsyncExitStack() as stack:
        started = [LanguageModels(settings, database, clock) for _ in range(number)]
        for models in started:
            stack.push_async_callback(models.aclose)
        yield started


async def ask(models: LanguageModels) -> None:
    await models.of(caller()).request(MESSAGES, model="parrot-1")


async def ended(*calls: asyncio.Future[None]) -> None:
    async with asyncio.timeout(60):
        await asyncio.gather(*calls)


@pytest.mark.usefixtures("fast_renewals")
async def test_gateways_use_all_slots_and_never_more(tmp_path: Path, live_database: Database, clock: Clock) -> None:
    """Requests are answered only when all slots are in use, so the last ones need slots of gateways that have ended."""
    crowd = Crowd(8)
    async with language_model(crowd) as server, gateways(tmp_path, server.url, 3, live_database, clock) as started:
        given = zip(started, (8, 24, 64), strict=True)
        await ended(*(asyncio.create_task(ask(models)) for models, number in given for _ in range(number)))
    assert (crowd.most, len(crowd.texts)) == (8, 96)
    assert await stored(live_database) == []


@pytest.mark.usefixtures("fast_renewals")
async def test_gateway_gets_the_slots_of_a_process_that_died_when_its_lease_expires(
    tmp_path: Path, live_database: Database, clock: Clock
) -> None:
    dead = Process(live_database, clock)
    assert await dead.use(8) == 8
    crowd = Crowd(8)
    async with language_model(crowd) as server, gateways(tmp_path, server.url, 2, live_database, clock) as started:
        calls = [asyncio.create_task(ask(models)) for models in started for _ in range(16)]
        for models in started:
            await models.load("parrot-1")
        assert crowd.texts == []
        clock.advance(LEASE.total_seconds())
        await ended(*calls)
    assert (crowd.most, len(crowd.texts)) == (8, 32)


async def test_uncontended_calls_execute_no_statement_but_the_renewal(live_database: Database, clock: Clock) -> None:
    slots = Slots([ONLY], live_database, clock)

    async def call() -> None:
        with slots.turn([ONLY], caller(), 30) as turn:
            async with turn.slot([ONLY]):
                pass

    with count_statements(live_database.engine) as first:
        await call()
    with count_statements(live_database.engine) as others:
        for _ in range(50):
            await call()
    assert (0 < len(first) <= 5, others) == (True, [])
    await slots.aclose()


@pytest.mark.usefixtures("fast_renewals")
async def test_lease_is_given_back_when_there_are_no_calls(live_database: Database, clock: Clock) -> None:
    slots = Slots([ONLY], live_database, clock)
    with slots.turn([ONLY], caller(), 30) as turn:
        async with turn.slot([ONLY]):
            assert await stored(live_database) == [4]
    renewals = [task for task in asyncio.all_tasks() if "_renew_regularly" in repr(task.get_coro())]
    async with asyncio.timeout(30):
        await asyncio.gather(*renewals)
    assert (len(renewals), await stored(live_database)) == (1, [])


async def in_flight(slots: Slots) -> int:
    """How many of 6 calls get a slot at the same time. The others wait for a short time."""
    begun, refused, decided, end = 0, 0, asyncio.Event(), asyncio.Event()

    async def call() -> None:
        nonlocal begun, refused
        try:
            with slots.turn([ONLY], caller(), 0.3) as turn:
                async with turn.slot([ONLY]):
                    begun += 1
                    if begun + refused == 6:
                        decided.set()
                    await end.wait()
        except ModelOverloaded:
            refused += 1
            if begun + refused == 6:
                decided.set()

    async with asyncio.TaskGroup() as group:
        for _ in range(6):
            group.create_task(call())
        await decided.wait()
        end.set()
    return begun


@pytest.mark.usefixtures("fast_renewals")
async def test_without_the_database_the_lease_remains_until_it_expires_and_then_one_slot(
    live_database: Database, clock: Clock
) -> None:
    slots = Slots([ONLY], live_database, clock)
    assert await in_flight(slots) == 6
    async with live_database.transaction() as session:
        await session.execute(sa.text("DROP TABLE llm_provider_leases"))
    assert await in_flight(slots) == 6
    clock.advance(LEASE.total_seconds())
    assert await in_flight(slots) == 1
    await slots.aclose()
