"""Normalizes `DATABASE_URL` for SQLAlchemy and its drivers."""

from __future__ import annotations

import re

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DEFAULT_PORT = 5432
PARAMETERS = frozenset(
    {"host", "port", "ssl", "direct_tls", "passfile", "target_session_attrs", "krbsrvname", "gsslib"}
    | {"prepared_statement_cache_size"}  # SQLAlchemy's, for poolers
)
"""Query parameters of a PostgreSQL URL that the driver accepts."""
WRITABLE = ("primary", "read-write", "any")
"""Accepted values of `target_session_attrs`; the others select a read-only server."""
LISTS = ("host", "port")
"""Parameters that may be repeated."""
SEVERAL_HOSTS = re.compile(r"(postgres[a-z0-9+]*://(?:[^/?#]*@)?)([^/?#@]+,[^/?#@]+)(/[^?#]*)?(?:\?(.*))?")
"""libpq's form: `postgresql://user@one:5432,two:5432/name`."""


def normalised_database_url(text: str) -> URL:
    """Return the URL with the async driver. `postgres://`, URLs without a driver, and libpq's `sslmode` are accepted.

    Several servers are accepted in the forms of SQLAlchemy, `?host=A&host=B`, and of libpq. The default of
    `target_session_attrs` is then `primary`, which selects the first server that accepts writes. Raises `ValueError`
    for databases other than SQLite and PostgreSQL, and for parameters that the driver does not accept.
    """
    try:
        url = make_url(_with_hosts_as_parameters(text))
    except ArgumentError:
        raise ValueError("not a database URL") from None
    except ValueError:
        # The original message quotes the invalid port, which can be the end of a password with an unescaped @.
        raise ValueError(
            "not a database URL: the port is not a number, or the password has characters that must be escaped"
        ) from None
    backend = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if backend == "sqlite":
        return _check_driver_arguments(url.set(drivername="sqlite+aiosqlite"))
    if backend == "postgresql":
        return _check_driver_arguments(_with_known_parameters(url.set(drivername="postgresql+asyncpg")))
    raise ValueError("only sqlite and postgresql are supported")


def _with_hosts_as_parameters(text: str) -> str:
    found = SEVERAL_HOSTS.fullmatch(text)
    if found is None:
        return text
    start, hosts, path, query = found.groups()
    return f"{start}{path or '/'}?host={hosts}" + (f"&{query}" if query else "")


def _with_known_parameters(url: URL) -> URL:
    if {"ssl", "sslmode"} <= url.query.keys():
        raise ValueError("repeated parameters: ssl")
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    if unknown := query.keys() - PARAMETERS:
        raise ValueError(f"unknown parameters: {', '.join(sorted(unknown))}")
    if repeated := [name for name, value in query.items() if not isinstance(value, str) and name not in LISTS]:
        raise ValueError(f"repeated parameters: {', '.join(sorted(repeated))}")
    if query.get("target_session_attrs", "any") not in WRITABLE:
        raise ValueError(f"target_session_attrs must be one of {', '.join(WRITABLE)}")
    return _with_list_of_hosts(url.set(query=query))


def _with_list_of_hosts(url: URL) -> URL:
    """Rewrite several hosts as `host=A,B&port=1,2`, the only form that SQLAlchemy also accepts for IPv6 and sockets."""
    given, ports = (_split_list(url.query.get(name, ())) for name in LISTS)
    if len(given) < 2:
        return url
    hosts, own_ports = zip(*map(_host_and_port, given), strict=True)
    if any(own_ports):
        if ports:
            raise ValueError("ports are given both in `host` and in `port`")
        ports = list(own_ports)
    elif len(ports) < 2:
        ports = (ports or [""]) * len(hosts)
    if len(hosts) != len(ports):
        raise ValueError("the number of ports differs from the number of hosts")
    default = str(url.port or DEFAULT_PORT)
    several = {"host": ",".join(hosts), "port": ",".join(port or default for port in ports)}
    query = {"target_session_attrs": "primary", **url.query, **several}
    return URL.create(url.drivername, url.username, url.password, database=url.database, query=query)


def _split_list(value: str | tuple[str, ...]) -> list[str]:
    values = [value] if isinstance(value, str) else value
    return [part.strip() for text in values for part in text.split(",")]


def _host_and_port(text: str) -> tuple[str, str]:
    """Parse `host`, `host:port`, `[IPv6]`, `[IPv6]:port`, or the directory of a socket."""
    found = re.fullmatch(r"\[([^]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?", text)
    if found is None:
        if text.count(":") > 1 and re.fullmatch(r"[0-9A-Fa-f:.]+", text):
            return text, ""  # an IPv6 address without a port
        raise ValueError("a host is missing, or its port is not a number")
    return found[1] or found[3], found[2] or found[4] or ""


def _check_driver_arguments(url: URL) -> URL:
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError, TypeError):
        raise ValueError("a parameter has an invalid value") from None
    return url
