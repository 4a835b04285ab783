"""Calls that wait for a slot of a provider: which one gets the next slot, and which are refused in an overload."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from bloxserver.clients.model_errors import ModelError

RANKS = {"high_frequency": 0, "enterprise": 1, "pro": 2, "free": 3}
"""The order of the tiers. A trial has the tier pro."""
TIER_SECONDS = 10.0
"""A caller precedes those of the tier above who began to wait this much later, so that no tier waits forever."""
DEGRADED, CRITICAL = 500, 2_000
"""Numbers of waiting callers."""
REFUSED = {"free": (DEGRADED, CRITICAL), "pro": (CRITICAL, 2 * CRITICAL)}
"""By tier, the numbers of waiting callers between which the probability of a refusal rises from 0 to 1."""
MIN_RETRY_SECONDS, MAX_RETRY_SECONDS = 1.0, 60.0
WINDOW_SECONDS = 10.0


class Health(StrEnum):
    HEALTHY = "healthy"
    DEGRADED = "degraded"
    CRITICAL = "critical"


class ModelOverloaded(ModelError):
    """Too many calls wait. `reason` is the health of the queue, or `timeout` after a wait that was too long."""

    is_postponed = True

    def __init__(self, reason: str, retry_after: float) -> None:
        message = f"too many calls of language models are waiting ({reason}); try again in {retry_after:.0f} seconds"
        super().__init__("llm_overloaded", message, retryable=True, retry_after=retry_after)
        self.reason = reason


def health_of(depth: int) -> Health:
    """The health of a queue with this many callers."""
    if depth < DEGRADED:
        return Health.HEALTHY
    return Health.DEGRADED if depth < CRITICAL else Health.CRITICAL


def refusal_probability(tier: str, depth: int) -> float:
    """The probability with which a caller of the tier is refused while this many wait."""
    if tier not in REFUSED:
        return 0.0
    low, high = REFUSED[tier]
    return min(1.0, max(0.0, (depth - low) / (high - low)))


def retry_seconds(depth: int, per_second: float) -> float:
    """The time in which this many calls end."""
    seconds = depth / per_second if per_second else MAX_RETRY_SECONDS
    return min(MAX_RETRY_SECONDS, max(MIN_RETRY_SECONDS, seconds))


class Throughput:
    """Counts ended calls in windows of `WINDOW_SECONDS`."""

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._began = clock().timestamp()
        self._before, self._current = 0, 0

    def count(self) -> None:
        self._advance()
        self._current += 1

    def per_second(self) -> float:
        """The rate in the current window and the one before."""
        elapsed = self._advance()
        return (self._before + self._current) / (WINDOW_SECONDS + elapsed)

    def _advance(self) -> float:
        moment = self._clock().timestamp()
        windows = int((moment - self._began) // WINDOW_SECONDS)
        if windows:
            self._before, self._current = self._current if windows == 1 else 0, 0
            self._began += windows * WINDOW_SECONDS
        return moment - self._began


@dataclass(eq=False, slots=True)
class Waiter:
    """A caller that waits, possibly in the queues of several providers. The result is the name of one of them."""

    tier: str
    user: Hashable
    since: float
    """The time at which the wait began, in seconds."""
    slot: asyncio.Future[str] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    @property
    def key(self) -> float:
        """Waiters with a lower key precede others. It does not change, because all wait equally fast."""
        return self.since + TIER_SECONDS * RANKS[self.tier]


class CallerQueue:
    """The callers that wait for one provider, by tier. Within a tier, users take turns.

    `fair_queue.FairQueue` shares the time of slots, has no tiers, and looks at all users for each task.
    """

    def __init__(self) -> None:
        self._tiers: dict[str, OrderedDict[Hashable, OrderedDict[Waiter, None]]] = {
            tier: OrderedDict() for tier in RANKS
        }
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def add(self, waiter: Waiter) -> None:
        self._tiers[waiter.tier].setdefault(waiter.user, OrderedDict())[waiter] = None
        self._waiting += 1

    def remove(self, waiter: Waiter) -> bool:
        """Returns whether the caller was waiting."""
        users = self._tiers[waiter.tier]
        waiters = users.get(waiter.user)
        if waiters is None or waiter not in waiters:
            return False
        del waiters[waiter]
        if not waiters:
            del users[waiter.user]
        self._waiting -= 1
        return True

    def next(self) -> Waiter | None:
        """Return the caller who gets the next slot; None if none waits."""
        firsts = [next(iter(next(iter(users.values())))) for users in self._tiers.values() if users]
        return min(firsts, key=lambda waiter: waiter.key, default=None)

    def take(self, waiter: Waiter) -> None:
        """Remove a caller who has got a slot. The other users of the tier precede their other calls."""
        users = self._tiers[waiter.tier]
        if self.remove(waiter) and waiter.user in users:
            users.move_to_end(waiter.user)
