"""Connecting to the first usable server of several."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.postgres_connect import NoUsableServer, connect
from bloxserver.models.transient_errors import is_transient
from bloxserver.settings import Settings
from tests.listening import listening


@pytest.fixture
def arguments(postgres_url: str) -> dict[str, Any]:
    """The connection arguments of the test server."""
    arguments = Database(Settings(database_url=postgres_url)).driver_arguments()
    return {"port": 5432, **arguments}


class Silent:
    """A server that accepts connections and never responds, as behind a broken network."""

    def __init__(self) -> None:
        self.connections = 0
        self.port = 0

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.read()


@asynccontextmanager
async def silent_server() -> AsyncIterator[Silent]:
    silent = Silent()
    async with listening(silent.accept) as silent.port:
        yield silent


def before(port: int, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with another server on loopback before the test server."""
    return arguments | {"host": ["127.0.0.1", arguments["host"]], "port": [port, arguments["port"]]}


async def test_timeout_applies_to_each_host(arguments: dict[str, Any]) -> None:
    async with silent_server() as silent:
        both = before(silent.port, arguments) | {"timeout": 0.5, "target_session_attrs": "primary"}
        for _ in range(3):
            connection = await connect(**both)
            assert await connection.fetchval("SELECT 1") == 1
            await connection.close()
        assert silent.connections == 1, "the host that was used last is tried first"


async def test_host_that_refuses_connections_is_skipped(arguments: dict[str, Any]) -> None:
    async with silent_server() as silent:
        port = silent.port
    connection = await connect(**before(port, arguments))
    assert await connection.fetchval("SELECT pg_is_in_recovery()") is False
    await connection.close()


async def test_no_matching_server_is_a_connection_error(arguments: dict[str, Any]) -> None:
    """Requests a standby, which no server is, as a stand-in for a missing primary."""
    for hosts in (arguments, before(1, arguments)):
        with pytest.raises(NoUsableServer) as error:
            await connect(**hosts, target_session_attrs="standby")
        assert is_transient(error.value)


async def test_error_of_the_last_host_is_raised(arguments: dict[str, Any]) -> None:
    with pytest.raises(ConnectionRefusedError):
        await connect(**arguments | {"host": ["127.0.0.1", "127.0.0.1"], "port": [1, 1]})


async def test_engines_use_the_connect_function(arguments: dict[str, Any], postgres_url: str) -> None:
    url = sa.make_url(postgres_url)
    host = url.query.get("host", url.host)
    async with silent_server() as silent:
        port = silent.port
    several = url.set(host="", query={"host": f"127.0.0.1,{host}", "port": f"{port},{url.port or 5432}"})
    database = Database(Settings(database_url=several.render_as_string(hide_password=False)))
    for engine in (database.engine, database._migration_engine()):
        async with engine.connect() as connection:
            assert await connection.scalar(sa.text("SELECT pg_is_in_recovery()")) is False
        await engine.dispose()
    await database.dispose()
