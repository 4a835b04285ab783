"""The words that the API and the database share."""

from enum import StrEnum


class Tier(StrEnum):
    FREE = "free"
    PRO = "pro"
    ENTERPRISE = "enterprise"
    HIGH_FREQUENCY = "high_frequency"


class BillingStatus(StrEnum):
    ACTIVE = "active"
    TRIALING = "trialing"
    PAST_DUE = "past_due"
    CANCELED = "canceled"
    CANCELING = "canceling"


class FlowStatus(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    ERROR = "error"


class TriggerType(StrEnum):
    WEBHOOK = "webhook"
    SCHEDULE = "schedule"
    MANUAL = "manual"


class ExecutionStatus(StrEnum):
    RUNNING = "running"
    SUCCESS = "success"
    ERROR = "error"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"


class StepStatus(StrEnum):
    RUNNING = "running"
    WAITING = "waiting"
    """The answer is known and due later."""
    RETRYING = "retrying"
    """An attempt failed; the next one is due later."""
    CALLING = "calling"
    """Another execution is to give the answer."""
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    """The execution ended before the step did."""


class NotificationChannel(StrEnum):
    """How a failure notice travels."""

    URL = "url"
    EMAIL = "email"


class InputEncoding(StrEnum):
    """How an execution's `inputPayload` holds what came in: as it was, or as a `data:` URL (RFC 2397)."""

    TEXT = "text"
    DATA_URL = "data-url"
