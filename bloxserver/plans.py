"""The limits and prices of each tier. An unknown tier has the free plan. `PLANS_FILE` replaces single limits.

An operator can override single limits for a user: the column `users.limits` maps names of attributes to values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

MEBIBYTE = 1024 * 1024
GIBIBYTE = 1024 * MEBIBYTE
MEGABYTE = 1000**2
GIGABYTE = 1000 * MEGABYTE
"""The unit of prices. Limits are binary."""
MAX_LIMIT = 2**53
"""The largest number that an override can have. The databases can compare with it, and floats hold it exactly."""


@dataclass(frozen=True)
class Plan:
    """The limits of a tier. All numbers are maximums; None is unlimited."""

    flows: int
    """Number of flows."""
    runs: int | None
    """Included runs per billing period."""
    overage_usd_per_thousand: float | None = None
    """Price of 1,000 runs beyond `runs`, in USD; None makes `runs` a hard limit."""

    triggers_per_flow: int = 20
    trigger_config_bytes: int = 16 * 1024
    """Size of one trigger's `config` as JSON."""
    versions_per_flow: int = 100
    """At this number, the oldest version that nothing refers to is deleted."""
    secrets: int = 100
    api_keys: int = 20
    stored_bytes: int = GIBIBYTE
    """Bytes in executions, steps, versions and key-value storage."""
    included_stored_bytes: int | None = None
    """Of these, the bytes that have no price; None if none of them has one."""
    storage_overage_usd_per_gb: float | None = None
    """Price of 10^9 further bytes that are kept for 30 days, in USD; None if they have none."""

    streams: int = 10
    """Concurrent Server-Sent Event streams and `?wait` requests."""
    outgoing_requests: int = 20
    """Concurrent outgoing HTTP requests on one worker."""
    name_lookups: int = 10
    """Concurrent DNS lookups on one worker."""
    isolated_tasks: int = 2
    """Concurrent tasks in the process pool of one process, among them Python snippets."""
    emails_per_day: int = 100
    """Emails from the operator's address."""

    llm_requests_per_minute: int = 10
    """Calls of language models with the keys of the operator."""
    llm_tokens_per_minute: int = 10_000
    """Input and output tokens of these calls."""
    llm_concurrent: int = 2
    """Concurrent ones of these calls."""

    execution_cpu_seconds: float = 60
    """CPU time of one execution."""
    execution_memory_bytes: int = 64 * MEBIBYTE
    """Memory of the values that one execution holds, estimated."""

    requests_per_minute: int = 600
    """API requests of the user."""
    key_requests_per_minute: int = 300
    """Those with one API key."""
    webhooks_per_minute: int = 600
    """Requests to one webhook token."""

    own_model_keys: bool = True
    """Whether language models are called with the user's own keys for providers."""

    @property
    def worker_memory_bytes(self) -> int:
        """Memory of the values that all executions of the user on one worker hold, estimated."""
        return 2 * self.execution_memory_bytes

    @property
    def hard_run_limit(self) -> int | None:
        """The number of runs after which the next run is rejected; None if there is no limit."""
        return self.runs if self.overage_usd_per_thousand is None else None

    def stored_megabytes_over(self, stored_bytes: int) -> int:
        """Whole megabytes (10^6 bytes) beyond the included ones; 0 if storage has no price."""
        if self.included_stored_bytes is None or self.storage_overage_usd_per_gb is None:
            return 0
        return max(0, stored_bytes - self.included_stored_bytes) // MEGABYTE


FREE = Plan(flows=1, runs=1_000, own_model_keys=False)
_ENTERPRISE = Plan(
    flows=1_000,
    runs=None,
    triggers_per_flow=100,
    trigger_config_bytes=64 * 1024,
    versions_per_flow=1_000,
    secrets=1_000,
    api_keys=1_000,
    stored_bytes=1_000 * GIBIBYTE,
    streams=500,
    outgoing_requests=1_000,
    name_lookups=100,
    isolated_tasks=8,
    emails_per_day=50_000,
    llm_requests_per_minute=300,
    llm_tokens_per_minute=500_000,
    llm_concurrent=50,
    execution_cpu_seconds=3_600,
    execution_memory_bytes=256 * MEBIBYTE,
    requests_per_minute=12_000,
    key_requests_per_minute=6_000,
    webhooks_per_minute=60_000,
)

PLANS = {
    "free": FREE,
    "pro": Plan(
        flows=100,
        runs=100_000,
        overage_usd_per_thousand=0.50,
        triggers_per_flow=50,
        trigger_config_bytes=64 * 1024,
        versions_per_flow=500,
        secrets=500,
        api_keys=100,
        stored_bytes=50 * GIBIBYTE,
        included_stored_bytes=10 * GIGABYTE,
        storage_overage_usd_per_gb=0.10,
        streams=100,
        outgoing_requests=200,
        name_lookups=50,
        isolated_tasks=4,
        emails_per_day=5_000,
        llm_requests_per_minute=60,
        llm_tokens_per_minute=100_000,
        llm_concurrent=10,
        execution_cpu_seconds=600,
        execution_memory_bytes=128 * MEBIBYTE,
        requests_per_minute=3_000,
        key_requests_per_minute=1_500,
        webhooks_per_minute=6_000,
    ),
    "enterprise": _ENTERPRISE,
    "high_frequency": replace(
        _ENTERPRISE, llm_requests_per_minute=10_000, llm_tokens_per_minute=10_000_000, llm_concurrent=500
    ),
}

ADDRESS_REQUESTS_PER_MINUTE = 1_200
"""Requests from one client address, signed in or not."""
INVALID_TOKEN_COST = 20
"""The number of requests that a request with an unknown webhook token or an invalid sign-in counts as."""


WITHOUT_OVERAGE = ("trialing", "past_due")
"""Billing statuses in which usage beyond what is included is not paid, and therefore rejected."""


def get_plan(tier: str, overrides: Mapping[str, object] | None = None, billing_status: str | None = None) -> Plan:
    """Return the plan of a tier, with the limits that an operator set for the user. Unusable overrides are ignored.

    In the billing statuses `WITHOUT_OVERAGE`, the included runs and the included storage are hard limits.
    """
    plan = PLANS.get(tier) or PLANS["free"]
    # Another program may have stored any JSON value.
    if overrides and isinstance(overrides, Mapping):
        plan = replace(plan, **usable_overrides(overrides))
    if billing_status in WITHOUT_OVERAGE:
        stored_bytes = plan.stored_bytes
        if plan.included_stored_bytes is not None and plan.storage_overage_usd_per_gb is not None:
            stored_bytes = min(stored_bytes, plan.included_stored_bytes)
        plan = replace(plan, overage_usd_per_thousand=None, stored_bytes=stored_bytes)
    return plan


def usable_overrides(overrides: Mapping[str, object]) -> dict[str, Any]:
    """Return the overrides whose names and values a plan can have: numbers from 0 to `MAX_LIMIT`, or null for those
    that can be None. `own_model_keys` is a boolean.
    """
    usable: dict[str, Any] = {}
    for field in fields(Plan):
        if field.name not in overrides:
            continue
        value = overrides[field.name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_LIMIT
        if str(field.type) == "bool":
            if isinstance(value, bool):
                usable[field.name] = value
        elif isinstance(value, int | float) and is_number:
            usable[field.name] = value if "float" in str(field.type) else int(value)
        elif value is None and "None" in str(field.type):
            usable[field.name] = None
    return usable
