"""Timeouts of connections through a network that drops packets."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Iterator
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.api.main import app
from bloxserver.api.routes.health import check_timeout
from bloxserver.engine.retry import retry_transaction
from bloxserver.models.database import Database
from bloxserver.models.postgres import Timeouts
from bloxserver.models.tables import UserRecord
from bloxserver.models.transient_errors import is_transient
from bloxserver.settings import Settings
from tests.chaos.proxy import Proxy
from tests.conftest import api_client
from tests.database_override import override_database
from tests.postgres import postgres_database

DEADLINE_SECONDS = 15
STATEMENT_SECONDS = 1
WAITS = Timeouts(connect=1, margin=0.2, close=0.5)
"""Margin beyond `STATEMENT_SECONDS` after which an unresponsive connection must be closed."""


@pytest.fixture
def url(postgres: sa.URL, migrated_postgres: str, worker_id: str) -> Iterator[str]:
    """An empty database."""
    with postgres_database(postgres, f"silent_{worker_id}", template=migrated_postgres) as url:
        yield url


@pytest.fixture
async def proxy(url: str) -> AsyncIterator[Proxy]:
    async with Proxy(sa.make_url(url)).serving() as proxy:
        yield proxy


@pytest.fixture
def settings(url: str, proxy: Proxy) -> Settings:
    return Settings(
        database_url=proxy.url(url),
        database_pool_size=2,
        database_pool_timeout_seconds=1,
        database_statement_timeout_seconds=STATEMENT_SECONDS,
    )


@pytest.fixture
async def database(settings: Settings, proxy: Proxy) -> AsyncIterator[Database]:
    database = Database(settings, WAITS)
    yield database
    proxy.heal()
    await database.dispose()


async def failure(work: Awaitable[object]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011
        await work
    return caught.value


async def number(database: Database, wanted: int) -> int | None:
    async with database.transaction() as session:
        return await session.scalar(sa.select(sa.literal(wanted)))


async def test_unresponsive_connection_is_closed_after_the_timeout(proxy: Proxy, settings: Settings) -> None:
    """The timeout applies once: neither the rollback nor the close waits again."""
    database = Database(settings, WAITS)
    assert await number(database, 1) == 1
    proxy.stop_traffic()
    async with asyncio.timeout(STATEMENT_SECONDS + WAITS.margin + 1.5):
        error = await failure(number(database, 2))
    assert is_transient(error), error
    proxy.heal()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert [await number(database, wanted) for wanted in (3, 4, 5)] == [3, 4, 5], "no late answer to another"
    await database.dispose()


async def test_pool_is_invalidated_after_a_timeout(database: Database, proxy: Proxy) -> None:
    """Otherwise each pooled connection would time out separately, for example after a failover of the address."""
    await asyncio.gather(*(number(database, wanted) for wanted in range(2)))
    proxy.abandon_connections()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert is_transient(await failure(number(database, 2)))
        assert [await number(database, wanted) for wanted in range(5)] == list(range(5))


async def test_commit_without_a_response_times_out(database: Database, proxy: Proxy) -> None:
    async def write() -> None:
        async with database.transaction() as session:
            session.add(UserRecord(clerk_id="a"))
            await session.flush()
            proxy.stop_traffic()

    async with asyncio.timeout(DEADLINE_SECONDS):
        error = await failure(write())
    assert is_transient(error), error


async def test_retry_succeeds_after_the_network_recovers(database: Database, proxy: Proxy) -> None:
    await number(database, 1)
    proxy.stop_traffic()
    waiting = asyncio.create_task(retry_transaction(database, lambda session: session.scalar(sa.select(sa.literal(7)))))
    await asyncio.wait({waiting}, timeout=STATEMENT_SECONDS + WAITS.margin + 0.5)
    assert not waiting.done()
    proxy.heal()
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await waiting == 7


async def test_requests_get_503_within_the_timeout(database: Database, proxy: Proxy) -> None:
    """Sends more requests than there are connections."""
    with override_database(app, database):
        async with api_client() as client:
            assert (await client.get("/api/v1/flows")).status_code == 200
            proxy.stop_traffic()
            requests = [client.get("/api/v1/flows") for _ in range(6)]
            requests += [client.post("/webhooks/unknown"), client.get("/health/ready")]
            async with asyncio.timeout(DEADLINE_SECONDS):
                answers = await asyncio.gather(*requests)
            assert {answer.status_code for answer in answers} == {503}
            assert all(answer.headers["Retry-After"] for answer in answers)
            assert {answer.json()["code"] for answer in answers[:-1]} == {"database_unavailable"}
            proxy.heal()
            async with asyncio.timeout(DEADLINE_SECONDS):
                assert (await client.get("/api/v1/flows")).status_code == 200


async def test_readiness_check_has_a_shorter_timeout_than_statements(settings: Settings, proxy: Proxy) -> None:
    database = Database(settings.model_copy(update={"database_statement_timeout_seconds": 60}))
    with override_database(app, database):
        async with api_client() as client:
            assert (await client.get("/health/ready")).status_code == 200
            proxy.stop_traffic()
            app.dependency_overrides[check_timeout] = lambda: 0.2
            async with asyncio.timeout(5):
                assert (await client.get("/health/ready")).status_code == 503
    proxy.heal()
    await database.dispose()


async def test_dispose_does_not_wait_for_an_unresponsive_server(settings: Settings, proxy: Proxy) -> None:
    database = Database(settings, Timeouts(close=0.2))
    await asyncio.gather(*(number(database, wanted) for wanted in range(2)))
    proxy.stop_traffic()
    async with asyncio.timeout(1):
        await database.dispose()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such options")
async def test_tcp_user_timeout_closes_unacknowledged_connections(database: Database) -> None:
    async with database.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        of_system = driver._transport.get_extra_info("socket")
        assert of_system.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        assert of_system.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 10_000
        assert of_system.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5


async def test_idle_transaction_of_an_unresponsive_client_releases_its_locks(proxy: Proxy, settings: Settings) -> None:
    """A frozen process finds its transaction ended when it continues, and starts a new one."""
    patient = Database(settings)
    frozen = Database(settings, Timeouts(idle=0.3))
    user = UserRecord(clerk_id="a")
    async with patient.transaction() as session:
        session.add(user)
    row = sa.select(UserRecord.clerk_id).where(UserRecord.id == user.id).with_for_update()

    async def lock(database: Database) -> str | None:
        async with database.transaction() as session:
            return await session.scalar(row)

    others: list[str | None] = []

    async def come_back_late() -> None:
        async with frozen.transaction() as session:
            assert await session.scalar(row) == "a"
            others.append(await lock(patient))
            await session.execute(sa.select(1))

    error = await failure(come_back_late())
    assert is_transient(error), error
    assert others == ["a"], "the lock was free before its owner came back"
    assert await lock(frozen) == "a"
    for database in (patient, frozen):
        await database.dispose()


SLOW_ONCE = """
CREATE SEQUENCE tables_made;
CREATE FUNCTION be_slow() RETURNS event_trigger LANGUAGE plpgsql AS
$$BEGIN IF nextval('tables_made') = 1 THEN PERFORM pg_sleep(1.3); END IF; END$$;
CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION be_slow();
"""


async def test_migration_has_no_statement_timeout(postgres: sa.URL, worker_id: str) -> None:
    with postgres_database(postgres, f"slow_{worker_id}") as url:
        settings = Settings(database_url=url, database_statement_timeout_seconds=STATEMENT_SECONDS)
        database = Database(settings, Timeouts(margin=0.1))
        async with database.engine.begin() as connection:
            for statement in SLOW_ONCE.strip().split(";\n"):
                await connection.exec_driver_sql(statement)
        await database.migrate()
        assert await number(database, 1) == 1
        async with database.engine.connect() as connection:
            assert await connection.scalar(sa.text("SELECT last_value > 1 FROM tables_made")) is True
        await database.dispose()


async def test_cancellation_is_raised_even_if_the_rollback_times_out(proxy: Proxy, database: Database) -> None:
    begun = asyncio.Event()

    async def work() -> None:
        async with database.transaction() as session:
            await session.execute(sa.select(1))
            proxy.stop_traffic()
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await begun.wait()
    task.cancel()
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(asyncio.CancelledError):
            await task
