"""The plan of a user: the limits of the tier, with the overrides of the operator."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bloxserver.plans import FREE, PLANS, get_plan


def test_an_unknown_tier_has_the_free_plan() -> None:
    assert get_plan("unknown") == FREE
    assert get_plan("pro") == PLANS["pro"]


def test_overrides_replace_single_limits() -> None:
    plan = get_plan("free", {"flows": 7.9, "runs": None, "execution_cpu_seconds": 1.5, "unknown": 1})
    assert (plan.flows, plan.runs, plan.execution_cpu_seconds) == (7, None, 1.5)
    assert plan.secrets == FREE.secrets


@pytest.mark.parametrize(
    "value", ["-1", '"7"', "true", "null", "[7]", "1e999", "-1e999", "NaN", "9007199254740993", "9" * 309]
)
@pytest.mark.parametrize("name", ["flows", "execution_cpu_seconds"])
def test_unusable_overrides_are_ignored(name: str, value: str) -> None:
    """Another program may have stored any JSON value."""
    assert get_plan("free", {name: json.loads(value)}) == FREE


@pytest.mark.parametrize(("value", "expected"), [(True, True), (False, False), (1, False), ("yes", False)])
def test_boolean_of_a_plan_is_replaced_only_by_a_boolean(value: Any, expected: bool) -> None:
    assert get_plan("pro").own_model_keys is True
    assert get_plan("free", {"own_model_keys": value}).own_model_keys is expected


@pytest.mark.parametrize("overrides", [None, [], [1], "flows", 7])
def test_overrides_that_are_no_object_are_ignored(overrides: Any) -> None:
    assert get_plan("free", overrides) == FREE


@pytest.mark.parametrize(
    ("billing_status", "limit"), [("trialing", 100_000), ("past_due", 100_000), ("active", None), ("canceling", None)]
)
def test_included_runs_are_a_hard_limit_while_overage_is_not_paid(billing_status: str, limit: int | None) -> None:
    assert get_plan("pro", billing_status=billing_status).hard_run_limit == limit
    assert get_plan("enterprise", billing_status=billing_status).hard_run_limit is None
    assert get_plan("pro", {"runs": 5}, billing_status).hard_run_limit == (limit and 5)
    assert get_plan("free", billing_status=billing_status) == FREE


@pytest.mark.parametrize(
    ("billing_status", "limit"),
    [("trialing", 10**10), ("past_due", 10**10), ("active", 50 * 2**30), ("canceling", 50 * 2**30)],
)
def test_included_storage_is_a_hard_limit_while_overage_is_not_paid(billing_status: str, limit: int) -> None:
    assert get_plan("pro", billing_status=billing_status).stored_bytes == limit
    assert get_plan("pro", {"stored_bytes": 5}, billing_status).stored_bytes == 5
    for name in ("included_stored_bytes", "storage_overage_usd_per_gb"):
        assert get_plan("pro", {name: None}, billing_status).stored_bytes == PLANS["pro"].stored_bytes
    for tier in ("enterprise", "free"):
        assert get_plan(tier, billing_status=billing_status).stored_bytes == PLANS[tier].stored_bytes


@pytest.mark.parametrize(
    ("tier", "stored", "megabytes"),
    [
        ("pro", 10**10 + 10**6 - 1, 0),
        ("pro", 10**10 + 2 * 10**6, 2),
        ("pro", -1, 0),
        ("free", 10**12, 0),
        ("enterprise", 10**12, 0),
    ],
)
def test_stored_megabytes_beyond_the_included_ones(tier: str, stored: int, megabytes: int) -> None:
    assert get_plan(tier).stored_megabytes_over(stored) == megabytes
