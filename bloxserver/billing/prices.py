"""What is sold: the objects that `bloxserver billing setup` creates at Stripe."""

from __future__ import annotations

PRO_LOOKUP_KEY = "bloxserver_pro_base"
RUNS_LOOKUP_KEY = "bloxserver_pro_runs"
ENTERPRISE_LOOKUP_KEY = "bloxserver_enterprise_base"
STORAGE_LOOKUP_KEY = "bloxserver_pro_storage"
RUNS_METER = "bloxserver_runs"
STORAGE_METER = "bloxserver_storage"
METERS = {RUNS_METER: "runs", STORAGE_METER: "storage"}
"""What is metered, by the names of the events."""
CURRENCY = "usd"
PRO_CENTS = 2_900
"""The price of a month."""
INCLUDED_RUNS = 100_000
RUN_CENTS = "0.05"
"""The price of one run beyond the included ones: $0.50 for 1,000."""
INCLUDED_GIGABYTES = 10
STORAGE_CENTS = "0.000333333333"
"""The price of one megabyte (10^6 bytes) that is kept for a day, beyond the included gigabytes.

10 cents for 1,000 megabytes and 30 days are 10 / 30,000 cents, of which Stripe takes 12 decimals. For 10,000 gigabytes
and 30 days, the sum is 0.0001 cents less than that of the exact price. Stripe rounds it to cents.
"""
TRIAL_DAYS = 14
