"""Faults of real databases: every request gets a problem with Retry-After, and succeeds when the fault is over.

tests/slow/test_database_restart.py stops and starts a server. tests/test_errors.py has the responses to all errors.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from uuid import UUID

import httpx
import psycopg
import pytest
import sqlalchemy as sa
from psycopg import sql
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.models import database as models_database
from bloxserver.models.database import Database
from bloxserver.models.postgres import DEFAULT_TIMEOUTS, Timeouts
from bloxserver.models.tables import ExecutionRecord, FlowRecord, UserRecord
from bloxserver.settings import Settings
from tests import factories
from tests.api.contract import API, assert_problem
from tests.api.own_database import own_database_client
from tests.lock_waits import wait_for_lock_wait
from tests.metric_increase import measure_increase
from tests.postgres import SESSIONS, maintenance
from tests.sqlite_threads import join_connection_threads

MESSAGE = "The database cannot be reached, try again"
SHORT = 0.3
"""Seconds of a timeout that a test waits for."""
LARGE = "#" * 100_000
"""A value that needs new pages of the file."""
IN_BATCH = "#" * 15_000
"""The same, small enough for a batch of webhooks."""


@pytest.fixture
def postgres_only(backend: str) -> None:
    if backend == "sqlite":
        pytest.skip("a fault of PostgreSQL")


@pytest.fixture
def sqlite_only(backend: str) -> None:
    if backend == "postgresql":
        pytest.skip("a fault of SQLite")


@pytest.fixture
async def paths(live_database: Database) -> dict[str, str]:
    """Paths of a running flow of the development user, of its webhook and of its execution."""
    async with own_database_client(live_database) as client:
        await client.get(f"{API}/me")
    async with live_database.sessions() as session:
        user = (await session.scalars(sa.select(UserRecord))).one()
        flow = await factories.create_flow(session, user)
        await factories.create_trigger(session, flow, webhook_token="the-token")
        execution = await factories.create_execution(session, flow)
    path = f"{API}/flows/{flow.id}"
    return {"flow": path, "webhook": "/webhooks/the-token", "execution": f"{path}/executions/{execution.id}"}


async def reads(client: httpx.AsyncClient, paths: dict[str, str]) -> list[httpx.Response]:
    wanted = [f"{API}/flows", f"{API}/executions", f"{API}/usage", f"{API}/me", *map(paths.get, ("flow", "execution"))]
    return [await client.get(str(path)) for path in wanted]


async def writes(client: httpx.AsyncClient, paths: dict[str, str]) -> list[httpx.Response]:
    """Requests that write, among them webhooks that are accepted in a batch, alone and with the usual route."""
    return [
        await client.patch(paths["flow"], json={"organismYaml": LARGE}),
        await client.post(f"{paths['flow']}/executions/run", json={"inputPayload": LARGE}),
        await client.post(paths["webhook"], content=IN_BATCH),
        await client.post(paths["webhook"], content=LARGE),
        await client.post(f"{paths['webhook']}?wait=0.01", content=LARGE),
        await client.post(f"{API}/flows", json={"name": "x", "organismYaml": LARGE}),
    ]


def assert_unavailable(responses: list[httpx.Response]) -> None:
    for response in responses:
        assert_problem(response, 503, "database_unavailable", MESSAGE)
        assert int(response.headers["Retry-After"]) >= 1


def assert_successful(responses: list[httpx.Response]) -> None:
    assert [response.text for response in responses if not response.is_success] == []


@asynccontextmanager
async def api_on(settings: Settings, timeouts: Timeouts = DEFAULT_TIMEOUTS) -> AsyncIterator[httpx.AsyncClient]:
    """The API with new connections to the database of these settings."""
    database = Database(settings, timeouts)
    try:
        async with own_database_client(database) as client:
            yield client
    finally:
        await database.dispose()
        await join_connection_threads()


@contextmanager
def database_setting(url: str, name: str, value: str) -> Iterator[psycopg.Connection]:
    """Change the default of new sessions of the database."""
    with maintenance(url) as connection:
        (database,) = connection.execute("SELECT current_database()").fetchone() or ()
        change = sql.SQL("ALTER DATABASE {} ").format(sql.Identifier(database))
        setting = sql.SQL(name)
        connection.execute(change + sql.SQL("SET {} = {}").format(setting, sql.Literal(value)))
        try:
            yield connection
        finally:
            connection.execute(change + sql.SQL("RESET {}").format(setting))


@asynccontextmanager
async def locked_flow(database: Database, paths: dict[str, str]) -> AsyncIterator[AsyncSession]:
    """A transaction that holds the row of the flow."""
    async with database.transaction() as session:
        await session.execute(sa.select(FlowRecord.id).where(FlowRecord.id == flow_id(paths)).with_for_update())
        yield session


def flow_id(paths: dict[str, str]) -> UUID:
    return UUID(paths["flow"].rpartition("/")[2])


@pytest.mark.usefixtures("postgres_only")
async def test_read_only_server_answers_reads_and_refuses_writes(
    live_settings: Settings, paths: dict[str, str]
) -> None:
    """As a primary that became a standby: SQLSTATE 25006."""
    url = live_settings.database_url
    with database_setting(url, "default_transaction_read_only", "on"):
        async with api_on(live_settings) as client:
            assert_successful(await reads(client, paths))
            assert_unavailable(await writes(client, paths))
            assert_successful(await reads(client, paths))
    async with api_on(live_settings) as client:
        assert_successful(await writes(client, paths))


@pytest.mark.usefixtures("sqlite_only")
@pytest.mark.parametrize("fault", ["max_page_count = 1", "query_only = ON"], ids=["full disk", "read-only file"])
async def test_full_or_read_only_file_answers_reads_and_refuses_writes(
    live_database: Database, paths: dict[str, str], fault: str
) -> None:
    """SQLite does not set `max_page_count` below the number of pages that the file has."""
    async with own_database_client(live_database) as client:
        await set_pragma(live_database, fault)
        assert_unavailable(await writes(client, paths))
        assert_successful(await reads(client, paths))
        await set_pragma(live_database, "max_page_count = 1000000")
        await set_pragma(live_database, "query_only = OFF")
        assert_successful(await writes(client, paths))


async def set_pragma(database: Database, text: str) -> None:
    """Set it for the only connection that writes."""
    async with database.engine.connect() as connection:
        driver = (await connection.get_raw_connection()).driver_connection
        assert driver is not None
        await driver.execute(f"PRAGMA {text}")  # without the transaction that SQLAlchemy would begin


@pytest.mark.usefixtures("postgres_only")
async def test_full_disk_refuses_writes(
    live_database: Database, live_settings: Settings, paths: dict[str, str]
) -> None:
    """A trigger raises the error that the server raises when it cannot extend a file: SQLSTATE 53100."""
    with maintenance(live_settings.database_url) as connection:
        connection.execute(
            """CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            RAISE EXCEPTION 'could not extend file' USING ERRCODE = 'disk_full'; END $$"""
        )
        for table in ("flows", "executions"):
            connection.execute(
                sql.SQL("CREATE TRIGGER full_disk BEFORE INSERT OR UPDATE ON {} EXECUTE FUNCTION full_disk()").format(
                    sql.Identifier(table)
                )
            )
        async with own_database_client(live_database) as client:
            assert_unavailable(await writes(client, paths))
            assert_successful(await reads(client, paths))
            connection.execute("DROP FUNCTION full_disk CASCADE")
            assert_successful(await writes(client, paths))


@pytest.mark.usefixtures("postgres_only")
@pytest.mark.parametrize("limit", ["lock", "statement"])
async def test_timeout_of_a_lock_or_a_statement(
    live_database: Database, live_settings: Settings, paths: dict[str, str], limit: str
) -> None:
    """SQLSTATE 55P03 and 57014."""
    settings = live_settings.model_copy(update={"database_statement_timeout_seconds": 1})
    timeouts = Timeouts(lock=SHORT if limit == "lock" else 30)
    async with api_on(settings, timeouts) as client:
        async with locked_flow(live_database, paths):
            changes = await asyncio.gather(*changes_of_the_flow(client, paths))
        assert_unavailable(list(changes))
        assert_successful(await asyncio.gather(*changes_of_the_flow(client, paths)))


def changes_of_the_flow(client: httpx.AsyncClient, paths: dict[str, str]) -> list[Awaitable[httpx.Response]]:
    """Requests that wait for the row of the flow."""
    return [
        client.patch(paths["flow"], json={"name": "x"}),
        client.post(f"{paths['flow']}/executions/run"),
        client.post(paths["webhook"]),
        client.post(paths["webhook"], content=LARGE),
    ]


@pytest.mark.usefixtures("sqlite_only")
async def test_lock_of_another_process(live_database: Database, live_settings: Settings, paths: dict[str, str]) -> None:
    await set_pragma(live_database, "busy_timeout = 300")
    file = sa.make_url(live_settings.database_url).database
    assert file is not None
    async with own_database_client(live_database) as client:
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN IMMEDIATE")
            assert_unavailable(await writes(client, paths))
            assert_successful(await reads(client, paths))
        assert_successful(await writes(client, paths))


@pytest.mark.usefixtures("postgres_only")
async def test_deadlock(live_database: Database, live_settings: Settings, paths: dict[str, str]) -> None:
    """SQLSTATE 40P01. The other transaction does not look for deadlocks, so that the request is the victim."""
    execution = ExecutionRecord.flow_id == flow_id(paths)
    async with api_on(live_settings, Timeouts(lock=30)) as client:
        async with live_database.transaction() as session:
            await session.execute(sa.text("SET LOCAL deadlock_timeout = '1h'"))
            await session.execute(sa.select(ExecutionRecord.id).where(execution).with_for_update())
            deletion = asyncio.ensure_future(client.delete(paths["flow"]))
            await wait_for_lock_wait(live_database, deletion)  # it holds the flow and waits for the execution
            await session.execute(sa.select(FlowRecord.id).where(FlowRecord.id == flow_id(paths)).with_for_update())
            assert_unavailable([await deletion])
        assert_successful([await client.get(paths["execution"]), await client.delete(paths["flow"])])


@pytest.mark.usefixtures("postgres_only")
async def test_lost_race_of_a_serializable_transaction(
    live_database: Database, live_settings: Settings, paths: dict[str, str]
) -> None:
    """SQLSTATE 40001: an operator can change the default isolation level."""
    with database_setting(live_settings.database_url, "default_transaction_isolation", "repeatable read"):
        async with api_on(live_settings, Timeouts(lock=30)) as client:
            async with locked_flow(live_database, paths) as session:
                change = asyncio.ensure_future(client.patch(paths["flow"], json={"name": "Theirs"}))
                await wait_for_lock_wait(live_database, change)
                await session.execute(sa.update(FlowRecord).values(name="Mine"))
            assert_unavailable([await change])
            assert (await client.get(paths["flow"])).json()["name"] == "Mine"
            assert_successful([await client.patch(paths["flow"], json={"name": "Theirs"})])


@pytest.fixture
def role(live_settings: Settings, postgres_only: None, worker_id: str) -> Iterator[tuple[psycopg.Connection, str]]:
    """A role without a connection left; the limit does not apply to superusers."""
    name = f"limited_{worker_id}"
    identifier = sql.Identifier(name)
    with maintenance(live_settings.database_url) as connection:
        connection.execute(sql.SQL("CREATE ROLE {} LOGIN CONNECTION LIMIT 0").format(identifier))
        connection.execute(sql.SQL("GRANT ALL ON ALL TABLES IN SCHEMA public TO {}").format(identifier))
        yield connection, name
        connection.execute(sql.SQL("DROP OWNED BY {}").format(identifier))
        connection.execute(sql.SQL("DROP ROLE {}").format(identifier))


async def test_server_without_a_free_connection(
    live_settings: Settings, paths: dict[str, str], role: tuple[psycopg.Connection, str]
) -> None:
    """SQLSTATE 53300."""
    connection, name = role
    url = sa.make_url(live_settings.database_url).set(username=name).render_as_string(hide_password=False)
    async with api_on(live_settings.model_copy(update={"database_url": url})) as client:
        assert_unavailable(await reads(client, paths) + await writes(client, paths))
        connection.execute(sql.SQL("ALTER ROLE {} CONNECTION LIMIT -1").format(sql.Identifier(name)))
        assert_successful(await reads(client, paths) + await writes(client, paths))


@pytest.mark.usefixtures("postgres_only")
async def test_session_that_the_administrator_ends(
    live_database: Database, live_settings: Settings, paths: dict[str, str]
) -> None:
    """SQLSTATE 57P01, for a request in a statement. Connections that were idle are replaced."""
    async with api_on(live_settings, Timeouts(lock=30)) as client:
        assert_successful(await asyncio.gather(*[client.get(paths["flow"]) for _ in range(4)]))
        async with locked_flow(live_database, paths):
            changes = [asyncio.ensure_future(change) for change in changes_of_the_flow(client, paths)]
            await wait_for_lock_wait(live_database, changes[0], sessions=len(changes))
            with maintenance(live_settings.database_url) as connection:
                connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {SESSIONS} AND wait_event_type = 'Lock'")
                assert_unavailable(await asyncio.gather(*changes))
                idle = "application_name = 'bloxserver' AND state = 'idle'"
                connection.execute(f"SELECT pg_terminate_backend(pid, 10000) {SESSIONS} AND {idle}")
        assert_successful(await reads(client, paths) + await writes(client, paths))


async def test_exhausted_pool(live_settings: Settings, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On SQLite, only those that write share a connection."""
    monkeypatch.setattr(models_database, "SQLITE_BUSY_TIMEOUT_SECONDS", SHORT)
    limits = {"database_pool_size": 1, "database_pool_timeout_seconds": SHORT}
    database = Database(live_settings.model_copy(update=limits))
    try:
        async with own_database_client(database) as client:
            async with database.transaction() as session:
                await session.execute(sa.text("SELECT 1"))
                refused = await writes(client, paths) + ([] if database.is_sqlite else await reads(client, paths))
                with measure_increase("bloxserver_database_pool_wait_seconds_count", pool="writing") as waits:
                    in_batch = await asyncio.gather(*[client.post(paths["webhook"]) for _ in range(3)])
            assert_unavailable(refused + in_batch)
            assert waits.number == 1, "no webhook waits again when its batch has waited"
            assert_successful(await writes(client, paths) + await reads(client, paths))
    finally:
        await database.dispose()
        await join_connection_threads()
