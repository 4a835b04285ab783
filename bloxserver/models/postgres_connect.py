"""Opens a connection to the first of several PostgreSQL servers that can be used. Imports no more than the driver."""

from __future__ import annotations

from typing import Any

import asyncpg

_UNUSABLE = (
    OSError,
    asyncpg.CannotConnectNowError,
    asyncpg.PostgresConnectionError,
)
_last_used: dict[tuple[tuple[str, int], ...], int] = {}
"""Which of a list of hosts and ports was used last. It is tried first: a host that is switched off takes up the whole
timeout.
"""


class NoUsableServer(ConnectionError):
    """None of the servers can be reached and accepts writes."""


async def connect(**arguments: Any) -> asyncpg.Connection[asyncpg.Record]:
    """What `asyncpg.connect` does, with `timeout` for each host instead of for all together.

    Raises `NoUsableServer` if no server has what `target_session_attrs` asks for, as while a standby is not promoted
    yet, or the error of the last host.
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
