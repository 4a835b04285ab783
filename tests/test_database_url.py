"""The accepted forms of `DATABASE_URL`, and the arguments that the driver gets."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy.engine import make_url

from bloxserver.database_url import normalised_database_url
from bloxserver.models.database import Database
from bloxserver.settings import Settings

SECRET = "Canary-4f1d9c02b7e8a6539d"


def driver_arguments(url: str) -> dict[str, Any]:
    return Database(Settings(database_url=url)).driver_arguments()


@pytest.mark.parametrize(
    "parameters",
    [
        "@/d?host=a:5433&host=b&target_session_attrs=primary",
        "@/d?host=a:5433&host=b",
        "@/d?host=a,b&port=5433,5432",
        "@a:5433,b/d",
        "@a:5433,b:5432/d?target_session_attrs=primary",
        "@ignored:5432/d?host=a:5433&host=b",
    ],
)
@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+asyncpg"])
def test_several_hosts_reach_the_driver_as_lists(scheme: str, parameters: str) -> None:
    arguments = driver_arguments(f"{scheme}://u:p%40{parameters}")
    expected = {"user": "u", "password": "p@", "database": "d", "host": ["a", "b"], "port": [5433, 5432]}
    assert {name: arguments[name] for name in expected} == expected
    assert arguments["target_session_attrs"] == "primary", "the first server that accepts writes"
    assert json.loads(json.dumps(arguments)) == arguments, "the heartbeat process gets them as JSON"


@pytest.mark.parametrize(
    ("parameters", "hosts", "ports"),
    [
        ("@/d?host=a&host=b&port=6543", ["a", "b"], [6543, 6543]),
        ("@x:6543/d?host=a&host=b:1", ["a", "b"], [6543, 1]),
        ("@/d?host=[::1]:5433&host=[fd00::2]", ["::1", "fd00::2"], [5433, 5432]),
        ("@[::1]:5433,[fd00::2]/d", ["::1", "fd00::2"], [5433, 5432]),
        ("@/d?host=::1,fd00::2", ["::1", "fd00::2"], [5432, 5432]),
        ("@/d?host=/run/one&host=/run/two", ["/run/one", "/run/two"], [5432, 5432]),
    ],
)
def test_several_hosts_can_have_ports_ipv6_addresses_and_sockets(
    parameters: str, hosts: list[str], ports: list[int]
) -> None:
    arguments = driver_arguments(f"postgresql://u{parameters}")
    assert (arguments["host"], arguments["port"]) == (hosts, ports)


def test_other_parameters_are_kept() -> None:
    arguments = driver_arguments("postgres://u@a,b/d?sslmode=require&target_session_attrs=read-write")
    assert (arguments["ssl"], arguments["target_session_attrs"]) == ("require", "read-write")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://u:a%2Cb@h/d",
        "postgresql+asyncpg://u:a,b@h:5433/d",
        "postgresql+asyncpg://u@/d?host=/run/postgresql",
        "postgresql+asyncpg://u@h/d?target_session_attrs=primary",
    ],
)
def test_url_of_a_single_host_is_unchanged(url: str) -> None:
    assert normalised_database_url(url) == make_url(url)


@pytest.mark.parametrize(
    ("parameters", "reason"),
    [
        ("h/d?target_session_attrs=standby", "target_session_attrs must be one of primary, read-write, any"),
        ("h/d?target_session_attrs=nonsense", "target_session_attrs must be one of primary, read-write, any"),
        ("h/d?sslmode=require&sslmode=disable", "repeated parameters: ssl"),
        ("h/d?sslmode=require&ssl=disable", "repeated parameters: ssl"),
        ("/d?host=a,", "a host is missing"),
        ("/d?host=a:x&host=b", "its port is not a number"),
        ("/d?host=a:1&host=b:2&port=3", "ports are given both in `host` and in `port`"),
        ("/d?host=a,b,c&port=1,2", "the number of ports differs from the number of hosts"),
        ("h/d?port=x", "a parameter has an invalid value"),
        ("h/d?prepared_statement_cache_size=x", "a parameter has an invalid value"),
    ],
)
def test_invalid_postgres_url_raises_an_error_without_the_password(parameters: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason) as error:
        normalised_database_url(f"postgresql://u:{SECRET}@{parameters}")
    assert SECRET not in str(error.value)


def test_invalid_sqlite_parameter_is_rejected() -> None:
    with pytest.raises(ValueError, match="a parameter has an invalid value"):
        normalised_database_url("sqlite:///a.db?timeout=soon")
