"""Tables and the database under the import path of the HTTP contract; a re-export of `bloxserver.models`."""

from bloxserver.models.base import Base
from bloxserver.models.database import get_db, init_db
from bloxserver.models.tables import (
    BillingStatus,
    ExecutionRecord,
    ExecutionStatus,
    ExecutionStepRecord,
    FlowRecord,
    FlowStatus,
    FlowVersionRecord,
    InputEncoding,
    StepStatus,
    StripeEventRecord,
    Tier,
    TriggerRecord,
    TriggerType,
    UsageRecord,
    UserApiKeyRecord,
    UserRecord,
    WorkerRecord,
)

__all__ = [
    "Base",
    "BillingStatus",
    "ExecutionRecord",
    "ExecutionStatus",
    "ExecutionStepRecord",
    "FlowRecord",
    "FlowStatus",
    "FlowVersionRecord",
    "InputEncoding",
    "StepStatus",
    "StripeEventRecord",
    "Tier",
    "TriggerRecord",
    "TriggerType",
    "UsageRecord",
    "UserApiKeyRecord",
    "UserRecord",
    "WorkerRecord",
    "get_db",
    "init_db",
]
