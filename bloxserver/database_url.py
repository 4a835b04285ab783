"""The form of `DATABASE_URL` that SQLAlchemy and its drivers take."""

from __future__ import annotations

import re

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

DEFAULT_PORT = 5432
PARAMETERS = frozenset(
    {"host", "port", "ssl", "direct_tls", "passfile", "target_session_attrs", "krbsrvname", "gsslib"}
    | {"prepared_statement_cache_size"}  # SQLAlchemy's, for poolers
)
"""What may follow the `?` of a PostgreSQL URL: what the driver takes there."""
WRITABLE = ("primary", "read-write", "any")
"""Values of `target_session_attrs`; the others ask for a server that cannot be written to."""
LISTS = ("host", "port")
"""Parameters that may be given more than once."""
SEVERAL_HOSTS = re.compile(r"(postgres[a-z0-9+]*://(?:[^/?#]*@)?)([^/?#@]+,[^/?#@]+)(/[^?#]*)?(?:\?(.*))?")
"""libpq's form: `postgresql://user@one:5432,two:5432/name`."""


def normalised_database_url(text: str) -> URL:
    """The URL with the async driver. `postgres://`, URLs without a driver, and libpq's `sslmode` are accepted.

    Several servers are accepted in the forms of SQLAlchemy, `?host=A&host=B`, and of libpq. The first that accepts
    writes is used, unless `target_session_attrs` says otherwise. Raises `ValueError` for databases other than SQLite
    and PostgreSQL, and for parameters that the driver does not know or cannot read.
    """
    try:
        url = make_url(_with_hosts_as_parameters(text))
    except ArgumentError:
        raise ValueError("not a database URL") from None
    except ValueError:
        # Its message quotes what is in place of the port: the end of a password with an unescaped @.
        raise ValueError(
            "not a database URL: the port is not a number, or the password has characters that must be escaped"
        ) from None
    backend = "postgresql" if url.drivername == "postgres" else url.get_backend_name()
    if backend == "sqlite":
        return _usable(url.set(drivername="sqlite+aiosqlite"))
    if backend == "postgresql":
        return _usable(_with_known_parameters(url.set(drivername="postgresql+asyncpg")))
    raise ValueError("only sqlite and postgresql are supported")


def _with_hosts_as_parameters(text: str) -> str:
    found = SEVERAL_HOSTS.fullmatch(text)
    if found is None:
        return text
    start, hosts, path, query = found.groups()
    return f"{start}{path or '/'}?host={hosts}" + (f"&{query}" if query else "")


def _with_known_parameters(url: URL) -> URL:
    if {"ssl", "sslmode"} <= url.query.keys():
        raise ValueError("parameters that are given more than once: ssl")
    query = {"ssl" if name == "sslmode" else name: value for name, value in url.query.items()}
    if unknown := query.keys() - PARAMETERS:
        raise ValueError(f"parameters that are not known: {', '.join(sorted(unknown))}")
    if repeated := [name for name, value in query.items() if not isinstance(value, str) and name not in LISTS]:
        raise ValueError(f"parameters that are given more than once: {', '.join(sorted(repeated))}")
    if query.get("target_session_attrs", "any") not in WRITABLE:
        raise ValueError(f"target_session_attrs must be one of {', '.join(WRITABLE)}")
    return _with_list_of_hosts(url.set(query=query))


def _with_list_of_hosts(url: URL) -> URL:
    """Several hosts as `host=A,B&port=1,2`, the one form that SQLAlchemy takes for IPv6 and sockets too."""
    given, ports = (_listed(url.query.get(name, ())) for name in LISTS)
    if len(given) < 2:
        return url
    hosts, own_ports = zip(*map(_host_and_port, given), strict=True)
    if any(own_ports):
        if ports:
            raise ValueError("ports are given both with the hosts and apart from them")
        ports = list(own_ports)
    elif len(ports) < 2:
        ports = (ports or [""]) * len(hosts)
    if len(hosts) != len(ports):
        raise ValueError("the numbers of hosts and of ports differ")
    default = str(url.port or DEFAULT_PORT)
    several = {"host": ",".join(hosts), "port": ",".join(port or default for port in ports)}
    query = {"target_session_attrs": "primary", **url.query, **several}
    return URL.create(url.drivername, url.username, url.password, database=url.database, query=query)


def _listed(value: str | tuple[str, ...]) -> list[str]:
    values = [value] if isinstance(value, str) else value
    return [part.strip() for text in values for part in text.split(",")]


def _host_and_port(text: str) -> tuple[str, str]:
    """`host`, `host:port`, `[IPv6]`, `[IPv6]:port`, or the directory of a socket."""
    found = re.fullmatch(r"\[([^]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?", text)
    if found is None:
        if text.count(":") > 1 and re.fullmatch(r"[0-9A-Fa-f:.]+", text):
            return text, ""  # an IPv6 address without a port
        raise ValueError("a host is missing, or its port is not a number")
    return found[1] or found[3], found[2] or found[4] or ""


def _usable(url: URL) -> URL:
    try:
        url.get_dialect()().create_connect_args(url)
    except (ArgumentError, ValueError, TypeError):
        raise ValueError("a parameter has a value that the driver cannot read") from None
    return url
