"""Limits of plans that an operator sets for the installation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from bloxserver.errors import SettingsError
from bloxserver.plans import FREE, PLANS, get_plan
from bloxserver.plans_file import read_plans, use_plans_file
from tests.api.contract import API
from tests.clerk import clerk_authentication


@pytest.fixture(autouse=True)
def _plans() -> Iterator[None]:
    defaults = dict(PLANS)
    yield
    PLANS.update(defaults)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "plans.yaml"


def test_limits_in_the_file_replace_the_defaults(file: Path) -> None:
    file.write_text(
        "free: {flows: 5, runs: null, execution_cpu_seconds: 0.5}\npro:\n  runs: 7\n  own_model_keys: false\n"
    )
    expected = replace(FREE, flows=5, runs=None, execution_cpu_seconds=0.5)
    assert read_plans(file) == {"free": expected, "pro": replace(PLANS["pro"], runs=7, own_model_keys=False)}
    use_plans_file(str(file))
    assert get_plan("free") == get_plan("an unknown tier") == expected
    assert get_plan("free", {"flows": 6}) == replace(expected, flows=6)
    assert get_plan("enterprise") == PLANS["enterprise"]


def test_without_a_file_the_defaults_remain(file: Path) -> None:
    before = dict(PLANS)
    use_plans_file(None)
    file.write_text("# nothing\n")
    use_plans_file(str(file))
    assert before == PLANS


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("free", "PLANS_FILE must map tiers to limits, for example `free: {flows: 5}`"),
        ("[free]", "PLANS_FILE must map tiers to limits, for example `free: {flows: 5}`"),
        ("gold: {}", "PLANS_FILE: 'gold' is not a tier; the tiers are free, pro, enterprise, high_frequency"),
        ("1: {}", "PLANS_FILE: 1 is not a tier; the tiers are free, pro, enterprise, high_frequency"),
        ("free: 5", "PLANS_FILE: free must map names of limits to numbers"),
        ("free: {flow: 5}", "PLANS_FILE: free.flow is not a limit"),
        ("free: {1: 5}", "PLANS_FILE: free.1 is not a limit"),
        ("free: {flows: -1}", "PLANS_FILE: free.flows must be a whole number from 0 to 9007199254740992"),
        ("free: {flows: 1.5}", "PLANS_FILE: free.flows must be a whole number from 0 to 9007199254740992"),
        ("free: {flows: null}", "PLANS_FILE: free.flows must be a whole number from 0 to 9007199254740992"),
        ("free: {flows: true}", "PLANS_FILE: free.flows must be a whole number from 0 to 9007199254740992"),
        ("free: {flows: many}", "PLANS_FILE: free.flows must be a whole number from 0 to 9007199254740992"),
        ("free: {own_model_keys: 1}", "PLANS_FILE: free.own_model_keys must be true or false"),
        ("free: {runs: x}", "PLANS_FILE: free.runs must be a whole number from 0 to 9007199254740992, or null"),
        (
            "free: {execution_cpu_seconds: .inf}",
            "PLANS_FILE: free.execution_cpu_seconds must be a number from 0 to 9007199254740992",
        ),
        ("free: {flows: 1, flows: 2}", "PLANS_FILE is not valid YAML: flows is given twice (line 1)"),
        ("free: {}\nfree: {}", "PLANS_FILE is not valid YAML: free is given twice (line 2)"),
        ("free: {flows: 1", "PLANS_FILE is not valid YAML: expected ',' or '}', but got '<stream end>' (line 1)"),
        ("free: !!python/object:os.system {}", "PLANS_FILE is not valid YAML: could not determine a constructor"),
        ("free: \x01", "PLANS_FILE is not valid YAML"),
        ("free: {flows: 2020-13-45}", "PLANS_FILE is not valid YAML"),
    ],
)
def test_wrong_file_is_refused_with_the_problem(file: Path, text: str, problem: str) -> None:
    file.write_text(text)
    before = dict(PLANS)
    with pytest.raises(SettingsError) as raised:
        use_plans_file(str(file))
    assert problem in str(raised.value)
    assert before == PLANS


def test_all_problems_are_listed(file: Path) -> None:
    file.write_text("free: {flows: x, run: 1}\ngold: {}\n")
    with pytest.raises(SettingsError) as raised:
        read_plans(file)
    assert all(name in str(raised.value) for name in ("free.flows", "free.run ", "gold"))


def test_file_that_cannot_be_read_is_refused(file: Path) -> None:
    with pytest.raises(SettingsError, match="PLANS_FILE cannot be read: No such file or directory"):
        read_plans(file)
    file.write_bytes(b"free: {flows: \xff}")
    with pytest.raises(SettingsError, match="PLANS_FILE cannot be read: it is not UTF-8"):
        read_plans(file)


@pytest.fixture
def _two_flows(file: Path) -> None:
    file.write_text("free: {flows: 2}")
    use_plans_file(str(file))


@pytest.mark.usefixtures("_two_flows")
async def test_limit_of_the_file_applies_to_requests(client: httpx.AsyncClient) -> None:
    async with clerk_authentication() as clerk:
        headers = clerk.headers("user_ada")
        statuses = [
            (await client.post(f"{API}/flows", json={"name": "x"}, headers=headers)).status_code for _ in range(3)
        ]
        usage = (await client.get(f"{API}/usage", headers=headers)).json()
    assert statuses == [201, 201, 403]
    assert {"name": "flows", "used": 2, "limit": 2} in usage["limits"]
