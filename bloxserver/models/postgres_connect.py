"""Connects to the first usable of several PostgreSQL servers. Imports only the driver."""

from __future__ import annotations

from typing import Any

import asyncpg

_UNUSABLE = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
)
_last_used: dict[tuple[tuple[str, int], ...], int] = {}
"""The index of the host that was used last, by list of hosts and ports.

That host is tried first, because an unreachable host takes the whole timeout.
"""


class NoUsableServer(ConnectionError):
    """No server is reachable and accepts writes."""


async def connect(**arguments: Any) -> asyncpg.Connection[asyncpg.Record]:
    """Connect as `asyncpg.connect` does, but with `timeout` per host.

    Raises the error of the last host; it is `NoUsableServer` if that server does not match `target_session_attrs`, for
    example a standby that is not promoted yet.
    """
    hosts, ports = arguments.pop("host", None), arguments.pop("port", None)
    if not isinstance(hosts, list):
        return await _connect(host=hosts, port=ports, **arguments)
    key = tuple(zip(hosts, ports, strict=True))
    first = _last_used.get(key, 0)
    order = [*range(first, len(hosts)), *range(first)]
    for number in order:
        try:
            host, port = key[number]
            connection = await _connect(host=host, port=port, **arguments)
        except _UNUSABLE:
            if number == order[-1]:
                raise
        else:
            _last_used[key] = number
            return connection
    raise NoUsableServer("no host is given")


async def _connect(**arguments: Any) -> asyncpg.Connection[asyncpg.Record]:
    try:
        return await asyncpg.connect(**arguments)
    except asyncpg.exceptions.TargetServerAttributeNotMatched as error:
        raise NoUsableServer("the server does not accept writes") from error
