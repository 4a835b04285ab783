"""The states of circuit breakers, shared by processes through the database."""

from __future__ import annotations

import asyncio

import pytest
import sqlalchemy as sa

from bloxserver.llm.breaker import FAILURES, OPEN, SUCCESSES, BreakerState
from bloxserver.llm.states import MAX_AGE_SECONDS, Breakers, DatabaseStates, MemoryStates
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmProviderRecord
from bloxserver.observability import metrics
from tests.llm.catalogues import Clock
from tests.statements import count_statements

PROVIDER = "primary"


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def processes(live_database: Database, clock: Clock) -> list[Breakers]:
    """The breakers of five processes."""
    return [Breakers(DatabaseStates(live_database), clock) for _ in range(5)]


async def fail(breakers: Breakers, times: int = FAILURES) -> None:
    for _ in range(times):
        request = await breakers.admit(PROVIDER, 60)
        assert request is not None
        await request.failed()


async def test_failures_of_all_processes_count(processes: list[Breakers], live_database: Database) -> None:
    requests = [await breakers.admit(PROVIDER, 60) for breakers in processes]
    for request in requests:
        assert request is not None
    await asyncio.gather(*(request.failed() for request in requests if request is not None))
    # A process that has sent no request yet reads the state.
    assert await Breakers(DatabaseStates(live_database)).admit(PROVIDER, 60) is None


@pytest.mark.parametrize("storage", ["memory", "database"])
async def test_exactly_one_probe_is_sent_however_many_requests_wait(
    storage: str, live_database: Database, clock: Clock
) -> None:
    memory = MemoryStates()

    def start(number: int) -> list[Breakers]:
        return [
            Breakers(memory if storage == "memory" else DatabaseStates(live_database), clock) for _ in range(number)
        ]

    await fail(start(1)[0])
    clock.advance(OPEN.total_seconds())
    processes = start(5)
    for _ in range(SUCCESSES):
        admitted = await asyncio.gather(*(breakers.admit(PROVIDER, 60) for breakers in processes * 4))
        probes = [request for request in admitted if request is not None]
        assert len(probes) == 1
        await probes[0].succeeded()
    assert all([await breakers.admit(PROVIDER, 60) for breakers in start(5)])


async def test_cancelled_probe_lets_another_one_begin(processes: list[Breakers], clock: Clock) -> None:
    await fail(processes[0])
    clock.advance(OPEN.total_seconds())
    probe = await processes[0].admit(PROVIDER, 60)
    assert probe is not None
    assert await processes[0].admit(PROVIDER, 60) is None
    await probe.ended()
    assert await processes[0].admit(PROVIDER, 60) is not None


async def test_probe_of_a_process_that_died_ends_after_its_timeout(processes: list[Breakers], clock: Clock) -> None:
    await fail(processes[0])
    clock.advance(OPEN.total_seconds())
    assert await processes[0].admit(PROVIDER, 60) is not None
    clock.advance(64)
    assert await processes[0].admit(PROVIDER, 60) is None
    clock.advance(1)
    assert await processes[0].admit(PROVIDER, 60) is not None


async def test_requests_to_a_working_provider_execute_no_statement_within_a_second(live_database: Database) -> None:
    states = DatabaseStates(live_database)
    breakers = Breakers(states)
    await states.read()
    with count_statements(live_database.single_statement_sessions.kw["bind"]) as statements:
        for _ in range(10):
            request = await breakers.admit(PROVIDER, 60)
            assert request is not None
            await request.succeeded()
    assert len(statements) <= 1  # one read if a second has passed meanwhile
    assert MAX_AGE_SECONDS == 1


async def test_success_after_failures_is_stored(processes: list[Breakers], live_database: Database) -> None:
    await fail(processes[0], 3)
    request = await processes[0].admit(PROVIDER, 60)
    assert request is not None
    await request.succeeded()
    async with live_database.transaction(read_only=True) as session:
        row = (await session.execute(sa.select(LlmProviderRecord.failures, LlmProviderRecord.open_until))).one()
    assert tuple(row) == (0, None)


async def test_without_a_database_the_known_states_remain(live_database: Database) -> None:
    states = DatabaseStates(live_database)
    async with live_database.transaction() as session:
        await session.execute(sa.text("DROP TABLE llm_providers"))
    breakers = Breakers(states)
    await fail(breakers)
    assert await breakers.admit(PROVIDER, 60) is None
    assert (await breakers.state(PROVIDER)) != BreakerState()


async def test_metric_tells_whether_a_breaker_is_open(processes: list[Breakers], clock: Clock) -> None:
    def is_open() -> float | None:
        return metrics.REGISTRY.get_sample_value("bloxserver_llm_breaker_open", {"provider": PROVIDER})

    await fail(processes[0])
    assert is_open() == 1
    clock.advance(OPEN.total_seconds())
    for _ in range(SUCCESSES):
        request = await processes[0].admit(PROVIDER, 60)
        assert request is not None
        await request.succeeded()
    assert is_open() == 0
