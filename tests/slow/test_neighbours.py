"""A user is served while another user attacks. Times are not tested: they depend on the machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

from benchmarks.installation import POSTGRESQL, SQLITE, BenchmarkEnvironment
from benchmarks.neighbours.cases import CASES
from benchmarks.neighbours.measurement import measure_case
from benchmarks.neighbours.table import faults
from benchmarks.neighbours.victim import CHECKING

ATTACK_SECONDS = 1.5
CHEAP = {
    "deep-json": "422 ",
    "gzip-bombs": "execution error",
    "slow-dns": "execution running",
    "small-webhooks": "200",
    "tokens": "429 ",
}
"""Cases, and the beginning of what the attacker is told."""


@pytest.mark.parametrize("name", CHEAP)
async def test_sqlite(name: str, tmp_path: Path) -> None:
    await serve_both(BenchmarkEnvironment([SQLITE], tmp_path, None, {}), SQLITE, name)


@pytest.mark.parametrize("name", list(CHEAP)[:2])
async def test_postgresql(name: str, tmp_path: Path, postgres: sa.URL) -> None:
    await serve_both(BenchmarkEnvironment([POSTGRESQL], tmp_path, postgres, {}), POSTGRESQL, name)


async def serve_both(environment: BenchmarkEnvironment, kind: str, name: str) -> None:
    """Attack, and check that the victim is served, that the attacker is answered and that no process ends."""
    outcome = await measure_case(environment, kind, CASES[name], ATTACK_SECONDS, CHECKING)
    assert faults(outcome) == [], (outcome.samples.failures[:5], outcome.outcomes, outcome.messages)
    assert outcome.samples.lists
    assert outcome.samples.runs
    assert any(told.startswith(CHEAP[name]) for told in outcome.outcomes), outcome.outcomes
