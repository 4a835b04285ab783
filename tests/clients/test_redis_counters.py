from __future__ import annotations

import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from bloxserver.clients.redis_counters import EXPIRY_SECONDS, RedisCounters
from tests.processes import free_port
from tests.redis_server import redis_server


async def test_counts_of_two_processes_are_added_and_expire() -> None:
    async with redis_server() as url, Redis.from_url(url) as redis:
        one, other = RedisCounters(url), RedisCounters(url)
        assert await one.add(7, {"a": 3, "b": 1}) == {"a": 3, "b": 1}
        assert await other.add(7, {"b": 5}) == {"b": 6}
        assert await other.add(8, {"b": 1}) == {"b": 1}
        many = {f"key-{number}": number for number in range(1, 501)}
        assert await one.add(7, many) == many
        times = [await redis.ttl(key) for key in await redis.keys("*")]
        assert len(times) == 503
        assert all(0 < seconds <= EXPIRY_SECONDS for seconds in times)
        await one.aclose()
        await other.aclose()


async def test_counters_continue_after_redis_returns() -> None:
    port = free_port()
    async with redis_server(port) as url:
        counters = RedisCounters(url)
        await counters.add(7, {"a": 1})
    with pytest.raises(RedisError):
        await counters.add(7, {"a": 1})
    async with redis_server(port):
        assert await counters.add(7, {"a": 1}) == {"a": 1}
        await counters.aclose()


@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "memory://"])
def test_invalid_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must start with redis:// or rediss://"):
        RedisCounters(url)
