"""What each tier may use. Keyed by the tier's value; an unknown tier has the free plan."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    flows: int
    """Flows that a user may have."""
    runs: int | None
    """Runs in a billing period; null is unlimited."""
    overage_usd_per_thousand: float | None = None
    """Price of a thousand runs beyond `runs`, in USD; null makes `runs` a hard limit."""

    @property
    def hard_run_limit(self) -> int | None:
        """The run count at which the next run is refused; null where none is."""
        return self.runs if self.overage_usd_per_thousand is None else None


FREE = Plan(flows=1, runs=1_000)

PLANS = {
    "free": FREE,
    "pro": Plan(flows=100, runs=100_000, overage_usd_per_thousand=0.50),
    "enterprise": Plan(flows=1_000, runs=None),
    "high_frequency": Plan(flows=1_000, runs=None),
}


def plan_of(tier: str) -> Plan:
    return PLANS.get(tier, FREE)
