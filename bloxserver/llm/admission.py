"""Admits calls within the limits of their users, and settles them when they end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Self

import structlog

from bloxserver.clock import now
from bloxserver.errors import SettingsError
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.database_limits import DatabaseLimits
from bloxserver.llm.limits import LimitStore, Reservation, Settlement, Used, quota_of, reached, reservation_of
from bloxserver.llm.settlements import GroupWriter
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import describe_error, is_transient
from bloxserver.observability import metrics
from bloxserver.plans import Plan
from bloxserver.settings import Settings

log = structlog.stdlib.get_logger("bloxserver.llm")


@dataclass
class Spent:
    """What a call has used. Until it is set, all tokens that were reserved: the provider may have counted them."""

    tokens: int | None = None


class CallLimits:
    """The limits of users' calls with the operator's keys."""

    def __init__(self, store: LimitStore, clock: Callable[[], datetime] = now) -> None:
        self._store = store
        self._clock = clock
        self._ends = GroupWriter(store.settle, lambda error: is_transient(error) or _is_redis_error(error))

    @classmethod
    def of(cls, settings: Settings, database: Database, clock: Callable[[], datetime] = now) -> Self | None:
        """The limits of an installation; None if it limits no rates. Raises `SettingsError`."""
        if not settings.limits_rates:
            return None
        if settings.redis_url is None:
            return cls(DatabaseLimits(database, clock), clock)
        from bloxserver.llm.redis_limits import RedisLimits

        try:
            return cls(RedisLimits(settings.redis_url, clock), clock)
        except ValueError as error:
            raise SettingsError([f"REDIS_URL: {error}"]) from None

    @asynccontextmanager
    async def reserved(self, call: ModelCall, caller: Caller, seconds: float) -> AsyncIterator[Spent]:
        """Reserve what the call may use within the block, which takes at most this many seconds.

        Raises `ModelLimitReached`. If the counts cannot be read, the call is admitted.
        """
        reservation = reservation_of(call, caller, self._clock(), seconds)
        used = await self._reserve(reservation, caller)
        spent = Spent()
        if used is None:
            yield spent
            return
        try:
            yield spent
        finally:
            tokens = reservation.tokens if spent.tokens is None else spent.tokens
            self._ends.put(Settlement(reservation, tokens), at_once=_is_scarce(used, caller.plan))

    async def _reserve(self, reservation: Reservation, caller: Caller) -> Used | None:
        """Returns what is used with the reservation; None if it could not be counted."""
        try:
            is_counted, used = await self._store.reserve(reservation, caller.plan)
            if not is_counted and used.requests < caller.plan.llm_requests_per_minute and not self._ends.is_idle:
                # Calls of this process have ended, and are still counted.
                await self._ends.flush()
                is_counted, used = await self._store.reserve(reservation, caller.plan)
        except asyncio.CancelledError:
            # It may have been counted.
            self._ends.put(Settlement(reservation, 0), at_once=True)
            raise
        except Exception as error:
            log.error("limits of language model calls are not checked", reason=describe_error(error))
            return None
        if not is_counted:
            problem = reached(reservation, caller.plan, used, self._clock())
            metrics.LLM_LIMITED.labels(problem.limit.value).inc()
            raise problem
        if caller.report is not None:
            caller.report.quota = quota_of(reservation, caller.plan, used, self._clock())
        return used

    async def aclose(self) -> None:
        await self._ends.flush()
        await self._store.aclose()


def _is_scarce(used: Used, plan: Plan) -> bool:
    """Whether calls of other processes may need what the end of a call releases."""
    return 2 * used.active >= plan.llm_concurrent or 2 * used.tokens >= plan.llm_tokens_per_minute


def _is_redis_error(error: BaseException) -> bool:
    return type(error).__module__.startswith("redis.")
