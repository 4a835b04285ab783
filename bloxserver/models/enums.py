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
    """The execution ended before the step, or, with the error code `NOT_NEEDED`, a join has another answer."""


NOT_NEEDED = "not_needed"


class Scope(StrEnum):
    """What an API key may do. No scope includes another one."""

    READ = "read"
    """Read flows, triggers and executions."""
    WRITE = "write"
    """Change flows and triggers, and start and stop flows."""
    RUN = "run"
    """Run flows, cancel and retry executions, and redeliver requests of webhooks."""
    LLM = "llm"
    """Call language models."""
    ADMIN = "admin"
    """Manage API keys, keys for providers of language models, secrets and signing secrets, read the audit log, and
    export and delete the account.
    """


class ActorKind(StrEnum):
    """Who made a change."""

    USER = "user"
    API_KEY = "api_key"
    OPERATOR = "operator"
    IDENTITY_PROVIDER = "identity_provider"
    BILLING = "billing"
    """Billing, after a change of a subscription at Stripe."""
    MODEL_PROVIDER = "model_provider"
    """A provider of language models, which rejected a key."""


class TierSource(StrEnum):
    """What set the tier of a user, if it is not the default."""

    OPERATOR = "operator"
    """Subscriptions do not change it."""
    STRIPE = "stripe"


class AuditAction(StrEnum):
    """A change that the audit log records."""

    USER_CREATED = "user.created"
    USER_TIER_CHANGED = "user.tier_changed"
    USER_DISABLED = "user.disabled"
    USER_ENABLED = "user.enabled"
    USER_DELETED = "user.deleted"
    API_KEY_CREATED = "api_key.created"
    API_KEY_REVOKED = "api_key.revoked"
    LLM_KEY_ADDED = "llm_key.added"
    LLM_KEY_DELETED = "llm_key.deleted"
    LLM_KEY_INVALIDATED = "llm_key.invalidated"
    SECRET_CREATED = "secret.created"  # noqa: S105
    SECRET_UPDATED = "secret.updated"  # noqa: S105
    SECRET_DELETED = "secret.deleted"  # noqa: S105
    FLOW_CREATED = "flow.created"
    FLOW_UPDATED = "flow.updated"
    FLOW_VARS_SET = "flow.vars_set"
    FLOW_VERSION_RESTORED = "flow.version_restored"
    FLOW_STARTED = "flow.started"
    FLOW_STOPPED = "flow.stopped"
    FLOW_DELETED = "flow.deleted"
    TRIGGER_CREATED = "trigger.created"
    TRIGGER_UPDATED = "trigger.updated"
    TRIGGER_TOKEN_REGENERATED = "trigger.token_regenerated"  # noqa: S105
    TRIGGER_DELETED = "trigger.deleted"
    SIGNING_SECRET_CREATED = "signing_secret.created"  # noqa: S105
    SIGNING_SECRET_DELETED = "signing_secret.deleted"  # noqa: S105
    EXECUTION_CANCELLED = "execution.cancelled"
    EXECUTION_RETRIED = "execution.retried"
    EXECUTION_REDELIVERED = "execution.redelivered"


class NotificationChannel(StrEnum):
    """How a failure notification is delivered."""

    URL = "url"
    EMAIL = "email"


class InputEncoding(StrEnum):
    """The encoding of an execution's `inputPayload`: unchanged text, or a `data:` URL (RFC 2397)."""

    TEXT = "text"
    DATA_URL = "data-url"
