"""The kinds of emails, and examples of the values that their templates have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class EmailKind(StrEnum):
    """The name of the templates of an email."""

    TRIAL_STARTED = "trial_started"
    TRIAL_ENDING = "trial_ending"
    TRIAL_CONVERTED = "trial_converted"
    PAYMENT_SUCCEEDED = "payment_succeeded"
    PAYMENT_FAILED_SOFT = "payment_failed_soft"
    PAYMENT_FAILED_WARNING = "payment_failed_warning"
    DOWNGRADED_PAYMENT_FAILED = "downgraded_payment_failed"
    SUBSCRIPTION_CANCELED = "subscription_canceled"
    DOWNGRADED_TO_FREE = "downgraded_to_free"
    USAGE_WARNING = "usage_warning"
    USAGE_LIMIT = "usage_limit"
    MODEL_KEY_INVALID = "model_key_invalid"


@dataclass(frozen=True)
class Email:
    """An email that is to be sent once to a user."""

    kind: EmailKind
    key: str
    """What causes the email. A user gets one email for each key."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """The values of the template, as JSON. No secrets, and no email address or name of the user."""


_FLOWS = {
    "plan": "free",
    "previous_plan": "pro",
    "running": ["Orders", "Invoices"],
    "running_number": 2,
    "stopped": ["Newsletter"],
    "stopped_number": 1,
}
_USAGE = {
    "limit": "runs",
    "percent": 80,
    "used": 812,
    "maximum": 1_000,
    "plan": "free",
    "period_end": "2026-12-01T00:00:00Z",
    "usd_per_thousand": None,
    "usd_per_gb": None,
}
_BYTES = {"limit": "stored_bytes", "maximum": 1024**3}

SAMPLES: Mapping[EmailKind, list[dict[str, Any]]] = {
    EmailKind.TRIAL_STARTED: [{"plan": "pro", "trial_ends_at": "2026-12-13T09:30:00Z"}],
    EmailKind.TRIAL_ENDING: [{"plan": "pro", "trial_ends_at": "2026-12-13T09:30:00Z"}],
    EmailKind.TRIAL_CONVERTED: [{"plan": "pro", "period_end": "2027-01-13T09:30:00Z"}],
    EmailKind.PAYMENT_SUCCEEDED: [
        {"amount": "29.00", "currency": "USD", "number": "A1B2C3D4-0002"},
        {"amount": "29.00", "currency": "USD", "number": None},
    ],
    EmailKind.PAYMENT_FAILED_SOFT: [{"plan": "pro", "grace_ends_at": "2026-12-20T09:30:00Z"}],
    EmailKind.PAYMENT_FAILED_WARNING: [{"plan": "pro", "grace_ends_at": "2026-12-20T09:30:00Z"}],
    EmailKind.DOWNGRADED_PAYMENT_FAILED: [
        _FLOWS,
        _FLOWS | {"running": [], "running_number": 0, "stopped": [], "stopped_number": 0},
    ],
    EmailKind.SUBSCRIPTION_CANCELED: [
        {"plan": "pro", "ends_at": "2027-01-13T09:30:00Z"},
        {"plan": "pro", "ends_at": None},
    ],
    EmailKind.DOWNGRADED_TO_FREE: [_FLOWS, _FLOWS | {"running_number": 30, "stopped_number": 30}],
    EmailKind.USAGE_WARNING: [
        _USAGE,
        _USAGE | {"plan": "pro", "used": 81_200, "maximum": 100_000, "usd_per_thousand": 0.5},
        _USAGE | _BYTES | {"used": 900_000_000},
        _USAGE | _BYTES | {"plan": "pro", "used": 8_100_000_000, "maximum": 10**10, "usd_per_gb": 0.1},
    ],
    EmailKind.USAGE_LIMIT: [
        _USAGE | {"percent": 100, "used": 1_000},
        _USAGE | {"percent": 100, "plan": "pro", "used": 100_400, "maximum": 100_000, "usd_per_thousand": 0.5},
        _USAGE | _BYTES | {"percent": 100, "used": 1024**3},
        _USAGE | _BYTES | {"percent": 100, "plan": "pro", "used": 10**10, "maximum": 10**10, "usd_per_gb": 0.1},
    ],
    EmailKind.MODEL_KEY_INVALID: [{"provider": "anthropic"}],
}
"""Values of each kind: the first is for previews, and all of them together reach each branch of our templates."""
