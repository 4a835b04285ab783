"""Limits of calls of language models, counted in Redis."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any, cast

from redis.asyncio import BlockingConnectionPool, Redis

from bloxserver.clock import now
from bloxserver.llm.limits import WINDOW_SECONDS, Reservation, Settlement, Used
from bloxserver.plans import Plan

PREFIX = "bloxserver-llm"
CONNECTIONS = 16
SOCKET_SECONDS = 2
KEPT_SECONDS = 2 * WINDOW_SECONDS

# Expired reservations end first. Their tokens stay counted: the calls may have been made.
RESERVE = """
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', ARGV[1])
local requests = tonumber(redis.call('HGET', KEYS[1], 'requests') or 0)
local tokens = tonumber(redis.call('HGET', KEYS[1], 'tokens') or 0)
local active = redis.call('ZCARD', KEYS[2])
if requests >= tonumber(ARGV[5]) or tokens + ARGV[4] > tonumber(ARGV[6]) or active >= tonumber(ARGV[7]) then
  return {0, requests, tokens, active}
end
redis.call('HINCRBY', KEYS[1], 'requests', 1)
redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[4])
redis.call('EXPIRE', KEYS[1], ARGV[8])
redis.call('ZADD', KEYS[2], ARGV[2], ARGV[3])
redis.call('EXPIREAT', KEYS[2], math.ceil(tonumber(ARGV[2])) + tonumber(ARGV[8]))
return {1, requests + 1, tokens + ARGV[4], active + 1}
"""
SETTLE = """
if redis.call('ZREM', KEYS[2], ARGV[1]) == 1 and redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'tokens', ARGV[2])
end
"""


class RedisLimits:
    """A hash for the current minute of each user, and a sorted set of their reservations by the time of expiry."""

    def __init__(self, url: str, clock: Callable[[], datetime] = now) -> None:
        """Raises `ValueError` if the URL is invalid. Connects when it is first used."""
        self._clock = clock
        self._redis = Redis.from_pool(
            BlockingConnectionPool.from_url(
                url,
                max_connections=CONNECTIONS,
                timeout=SOCKET_SECONDS,
                socket_timeout=SOCKET_SECONDS,
                socket_connect_timeout=SOCKET_SECONDS,
            )
        )
        self._reserve = self._redis.register_script(RESERVE)
        self._settle = self._redis.register_script(SETTLE)

    async def reserve(self, reservation: Reservation, plan: Plan) -> tuple[bool, Used]:
        arguments: list[str | int | float] = [
            self._clock().timestamp(),
            reservation.expires_at.timestamp(),
            reservation.id.hex,
            reservation.tokens,
            plan.llm_requests_per_minute,
            plan.llm_tokens_per_minute,
            plan.llm_concurrent,
            KEPT_SECONDS,
        ]
        counted, *used = await cast(Awaitable[Any], self._reserve(keys=_keys(reservation), args=arguments))
        return bool(counted), Used(*map(int, used))

    async def settle(self, settlements: Sequence[Settlement]) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for settlement in settlements:
                reservation = settlement.reservation
                difference = settlement.tokens - reservation.tokens
                await cast(
                    Awaitable[Any],
                    self._settle(keys=_keys(reservation), args=[reservation.id.hex, difference], client=pipeline),
                )
            await pipeline.execute()

    async def aclose(self) -> None:
        await self._redis.aclose()


def _keys(reservation: Reservation) -> list[str]:
    # The braces keep both keys of a user in one slot of a cluster.
    user = f"{PREFIX}:{{{reservation.user_id.hex}}}"
    return [f"{user}:{reservation.minute}", f"{user}:active"]
