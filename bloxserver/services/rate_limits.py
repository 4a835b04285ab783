"""Limits on the rates of requests: counted in memory, in windows of a minute that are the same for all processes.

`services.rate_counters` adds what other processes have counted.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

from limits import RateLimitItemPerMinute
from limits.storage import Storage
from limits.strategies import FixedWindowRateLimiter
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.errors import NotFound, RateLimited
from bloxserver.observability import metrics
from bloxserver.plans import ADDRESS_REQUESTS_PER_MINUTE, INVALID_TOKEN_COST
from bloxserver.queries.triggers import TriggerRow, read_webhook

WINDOW_SECONDS = 60
MAX_KEYS = 20_000
"""Keys that are counted for one limit. Clients choose their addresses, so their number must be bounded."""
HINTS = {
    "address": "Send fewer requests from this address.",
    "user": "Send fewer requests, or ask the operator to raise the limit of your plan.",
    "api_key": "Send fewer requests with this API key, or ask the operator to raise the limit of your plan.",
    "webhook": "Send fewer requests to this webhook, or ask the operator to raise the limit of your plan.",
}
NAMES = {
    "address": "address_requests_per_minute",
    "user": "requests_per_minute",
    "api_key": "key_requests_per_minute",
    "webhook": "webhooks_per_minute",
}


class WindowStorage(Storage):
    """Counts of the current window, at most `MAX_KEYS`. The storages of `limits` have no maximum, and the one for
    asyncio looks at all keys in each request.
    """

    STORAGE_SCHEME = None

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._clock = clock
        self.window = 0
        self._counts: dict[str, int] = {}
        self._unshared: dict[str, int] = {}

    @property
    def base_exceptions(self) -> tuple[type[Exception], ...]:
        return ()

    def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        self.start_window()
        if key not in self._counts and len(self._counts) >= MAX_KEYS:
            self.clear(next(iter(self._counts)))
        count = self._counts[key] = self._counts.get(key, 0) + amount
        self._unshared[key] = self._unshared.get(key, 0) + amount
        return count

    def get(self, key: str) -> int:
        self.start_window()
        return self._counts.get(key, 0)

    def get_expiry(self, key: str) -> float:
        return (int(self._clock() // WINDOW_SECONDS) + 1) * WINDOW_SECONDS

    def check(self) -> bool:
        return True

    def reset(self) -> int:
        removed = len(self._counts)
        self._counts, self._unshared = {}, {}
        return removed

    def clear(self, key: str) -> None:
        self._counts.pop(key, None)
        self._unshared.pop(key, None)

    def start_window(self) -> None:
        """Remove all counts if a window has ended since the last call."""
        window = int(self._clock() // WINDOW_SECONDS)
        if window != self.window:
            self.window = window
            self.reset()

    def take_unshared(self, maximum: int) -> dict[str, int]:
        """Return the largest counts that other processes do not know yet, and regard them as known."""
        self.start_window()
        largest = dict(heapq.nlargest(maximum, self._unshared.items(), key=lambda item: item[1]))
        for key in largest:
            del self._unshared[key]
        return largest

    def set_totals(self, window: int, totals: Mapping[str, int]) -> None:
        """Set what all processes have counted, to which counts that are not shared yet are added."""
        self.start_window()
        if window == self.window:
            for key in self._counts.keys() & totals.keys():
                self._counts[key] = totals[key] + self._unshared.get(key, 0)

    def return_unshared(self, window: int, counts: Mapping[str, int]) -> None:
        """Undo `take_unshared` for counts that could not be shared."""
        self.start_window()
        if window == self.window:
            for key in self._counts.keys() & counts.keys():
                self._unshared[key] = self._unshared.get(key, 0) + counts[key]


@dataclass(frozen=True)
class Quota:
    """The state of a limit after a request was counted."""

    name: str
    limit: int
    used: int
    reset_seconds: int

    @property
    def remaining(self) -> int:
        return max(0, self.limit - self.used)

    @property
    def exceeded(self) -> bool:
        return self.used > self.limit

    def error(self) -> RateLimited:
        return RateLimited(NAMES[self.name], self.limit, self.used, self.reset_seconds, HINTS[self.name])


class RateLimiter:
    """The counters of one process."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        # One storage for each limit: new addresses cannot displace the counters of users and webhooks.
        self.storages = {name: WindowStorage(clock) for name in NAMES}
        self._strategies = {name: FixedWindowRateLimiter(storage) for name, storage in self.storages.items()}
        self._exceeded: dict[str, Quota] = {}
        self._exceeded_window = 0

    def count(self, name: str, identity: str, limit: int, cost: int = 1) -> Quota:
        """Count a request of the address, user, API key or webhook `identity`."""
        key = key_of(name, identity)
        strategy = self._strategies[name]
        item = RateLimitItemPerMinute(limit)
        strategy.hit(item, key, cost=cost)
        storage = self.storages[name]
        used = storage.get(item.key_for(key))
        quota = Quota(name, limit, used, self._reset_seconds())
        if quota.exceeded:
            self._remember(key, storage.window, quota)
        return quota

    def find_exceeded(self, name: str, identity: str) -> Quota | None:
        """The limit, if a request in this window has exceeded it. Nothing is counted."""
        if not self._exceeded or self._exceeded_window != int(self._clock() // WINDOW_SECONDS):
            return None
        found = self._exceeded.get(key_of(name, identity))
        return found and Quota(found.name, found.limit, found.used, self._reset_seconds())

    def _remember(self, key: str, window: int, quota: Quota) -> None:
        if window != self._exceeded_window or len(self._exceeded) >= MAX_KEYS:
            self._exceeded_window, self._exceeded = window, {}
        self._exceeded[key] = quota

    def _reset_seconds(self) -> int:
        return WINDOW_SECONDS - math.floor(self._clock() % WINDOW_SECONDS)


def key_of(name: str, identity: str) -> str:
    """The key of a counter. A hash, so that no token or address is in memory dumps, tables or logs."""
    return f"{name}:{blake2b(identity.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"


class Admission:
    """The limits that apply to one request. Without a limiter, all requests are admitted."""

    def __init__(self, limiter: RateLimiter | None, address: str) -> None:
        self._limiter = limiter
        self._address = address
        self.quotas: dict[str, Quota] = {}

    def count(self, name: str, identity: str, limit: int) -> None:
        """Count the request; raises `RateLimited`."""
        if self._limiter is not None:
            self._check(self._limiter.count(name, identity, limit))

    def count_address(self) -> None:
        """Count the request of the client's address; raises `RateLimited`."""
        self.count("address", self._address, ADDRESS_REQUESTS_PER_MINUTE)

    def refuse_exceeded(self, name: str, identity: str) -> None:
        """Raise `RateLimited` if an earlier request has exceeded the limit. Nothing is counted."""
        if self._limiter is not None and (quota := self._limiter.find_exceeded(name, identity)) is not None:
            self._check(quota)

    def charge_invalid_token(self) -> None:
        """Count the request as `INVALID_TOKEN_COST` requests of the client's address, so that guessing is slow."""
        if self._limiter is not None:
            cost = INVALID_TOKEN_COST - 1  # the request itself is counted already
            quota = self._limiter.count("address", self._address, ADDRESS_REQUESTS_PER_MINUTE, cost)
            self.quotas["address"] = quota

    def _check(self, quota: Quota) -> None:
        self.quotas[quota.name] = quota
        if quota.exceeded:
            metrics.RATE_LIMITED.labels(quota.name).inc()
            raise quota.error()


UNLIMITED = Admission(None, "")


async def read_admitted_webhook(session: AsyncSession, token: str, admission: Admission = UNLIMITED) -> TriggerRow:
    """The webhook with this token, after the request was counted; raises `NotFound` and `RateLimited`."""
    try:
        webhook = await read_webhook(session, token)
    except NotFound:
        admission.charge_invalid_token()
        raise
    admission.count("webhook", token, webhook.plan.webhooks_per_minute)
    return webhook
