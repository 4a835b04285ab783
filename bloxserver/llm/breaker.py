"""The circuit breaker of a provider: pure functions of its state.

Closed, requests are sent. After `FAILURES` consecutive failures it is open, and no request is sent for `OPEN`. It is
then half open: one request at a time is a probe. `SUCCESSES` probes close it, and a failure opens it again.
A provider that answers "too many requests" is paused for the time that it names, and its breaker does not open.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

FAILURES = 5
OPEN = timedelta(seconds=30)
SUCCESSES = 3
MAX_PAUSE = timedelta(hours=1)


class Admission(enum.Enum):
    SENT = "sent"
    PROBE = "probe"
    """The request may be sent if the caller is the one who begins the probe."""
    REFUSED = "refused"


@dataclass(frozen=True)
class BreakerState:
    failures: int = 0
    """Consecutive failures while the breaker is closed."""
    successes: int = 0
    """Successful probes while it is half open."""
    open_until: datetime | None = None
    """When the breaker becomes half open; None if it is closed."""
    paused_until: datetime | None = None
    """Before this time, the provider accepts no requests."""
    probe_until: datetime | None = None
    """Before this time, a probe is running. A probe without a result by then does not count."""

    @property
    def is_closed(self) -> bool:
        return self.open_until is None

    def admission(self, moment: datetime) -> Admission:
        """Whether a request may be sent now."""
        if self.paused_until is not None and moment < self.paused_until:
            return Admission.REFUSED
        if self.open_until is None:
            return Admission.SENT
        if moment < self.open_until or (self.probe_until is not None and moment < self.probe_until):
            return Admission.REFUSED
        return Admission.PROBE

    def available_at(self, moment: datetime) -> datetime:
        """When a request may be sent, as far as it is known."""
        times = (self.paused_until, self.open_until, self.probe_until if self.open_until is not None else None)
        return max((time for time in times if time is not None), default=moment)

    def began_probe(self, moment: datetime, seconds: float) -> BreakerState:
        return replace(self, probe_until=moment + timedelta(seconds=seconds))

    def ended_probe(self) -> BreakerState:
        """After a probe that was cancelled, or whose result says nothing about the provider."""
        return replace(self, probe_until=None)

    def failed(self, moment: datetime, *, probe: bool) -> BreakerState:
        if probe:
            return replace(self, open_until=moment + OPEN, probe_until=None, successes=0)
        if self.open_until is not None:  # the request was sent before the breaker opened
            return self
        if self.failures + 1 < FAILURES:
            return replace(self, failures=self.failures + 1)
        return replace(self, failures=0, successes=0, open_until=moment + OPEN, probe_until=None)

    def succeeded(self, *, probe: bool) -> BreakerState:
        if not probe:
            return replace(self, failures=0) if self.open_until is None else self
        if self.successes + 1 >= SUCCESSES:
            return BreakerState(paused_until=self.paused_until)
        return replace(self, successes=self.successes + 1, probe_until=None)

    def paused(self, moment: datetime, seconds: float) -> BreakerState:
        """After a response that names the time until the provider accepts requests again, at most `MAX_PAUSE`."""
        until = moment + timedelta(seconds=min(max(0.0, seconds), MAX_PAUSE.total_seconds()))
        return replace(self, paused_until=max(until, self.paused_until or until), probe_until=None)
