"""Enumerations of the API and the database."""

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
    """The output is known; it is delivered later."""
    RETRYING = "retrying"
    """An attempt failed; the next attempt is scheduled."""
    CALLING = "calling"
    """The step waits for the result of another execution."""
    SUCCESS = "success"
    ERROR = "error"
    CANCELLED = "cancelled"
    """The execution ended before the step."""


class Scope(StrEnum):
    """What an API key may do. No scope includes another one."""

    READ = "read"
    """Read flows, triggers and executions."""
    WRITE = "write"
    """Change flows and triggers, and start and stop flows."""
    RUN = "run"
    """Run flows, cancel and retry executions, and redeliver requests of webhooks."""
    ADMIN = "admin"
    """Manage API keys, secrets and signing secrets."""


class NotificationChannel(StrEnum):
    """How a failure notification is delivered."""

    URL = "url"
    EMAIL = "email"


class InputEncoding(StrEnum):
    """The encoding of an execution's `inputPayload`: unchanged text, or a `data:` URL (RFC 2397)."""

    TEXT = "text"
    DATA_URL = "data-url"
