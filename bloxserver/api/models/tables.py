"""The tables under the import path of the HTTP contract; a re-export of `bloxserver.models.tables`."""

from bloxserver.models.tables import (
    BillingStatus,
    ExecutionRecord,
    ExecutionStatus,
    FlowRecord,
    FlowStatus,
    StripeEventRecord,
    Tier,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserApiKeyRecord,
    UserRecord,
)

__all__ = [
    "BillingStatus",
    "ExecutionRecord",
    "ExecutionStatus",
    "FlowRecord",
    "FlowStatus",
    "StripeEventRecord",
    "Tier",
    "TriggerRecord",
    "TriggerType",
    "UsageRecord",
    "UserApiKeyRecord",
    "UserRecord",
]
