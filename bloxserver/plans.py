"""The limits and prices of each tier. An unknown tier has the free plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    flows: int
    """Maximum number of flows."""
    runs: int | None
    """Included runs per billing period; None is unlimited."""
    overage_usd_per_thousand: float | None = None
    """Price of 1,000 runs beyond `runs`, in USD; None makes `runs` a hard limit."""

    @property
    def hard_run_limit(self) -> int | None:
        """The number of runs after which the next run is rejected; None if there is no limit."""
        return self.runs if self.overage_usd_per_thousand is None else None


FREE = Plan(flows=1, runs=1_000)

PLANS = {
    "free": FREE,
    "pro": Plan(flows=100, runs=100_000, overage_usd_per_thousand=0.50),
    "enterprise": Plan(flows=1_000, runs=None),
    "high_frequency": Plan(flows=1_000, runs=None),
}


def get_plan(tier: str) -> Plan:
    return PLANS.get(tier, FREE)
