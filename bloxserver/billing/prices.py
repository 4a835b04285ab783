"""What is sold: the objects that `bloxserver billing setup` creates at Stripe."""

from __future__ import annotations

PRO_LOOKUP_KEY = "bloxserver_pro_base"
RUNS_LOOKUP_KEY = "bloxserver_pro_runs"
ENTERPRISE_LOOKUP_KEY = "bloxserver_enterprise_base"
RUNS_METER = "bloxserver_runs"
CURRENCY = "usd"
PRO_CENTS = 2_900
"""The price of a month."""
INCLUDED_RUNS = 100_000
RUN_CENTS = "0.05"
"""The price of one run beyond the included ones: $0.50 for 1,000."""
TRIAL_DAYS = 14
