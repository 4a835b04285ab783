from __future__ import annotations

import pytest

from bloxserver.errors import RateLimited
from bloxserver.plans import ADDRESS_REQUESTS_PER_MINUTE, INVALID_TOKEN_COST
from bloxserver.services import rate_limits
from bloxserver.services.rate_limits import Admission, RateLimiter

SECRET = "whk_canary"


class Clock:
    def __init__(self, now: float = 6000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def limiter(clock: Clock) -> RateLimiter:
    return RateLimiter(clock)


def used(limiter: RateLimiter, name: str = "user", identity: str = "u", limit: int = 3) -> int:
    """Count a request and return the counter."""
    return limiter.count(name, identity, limit).used


def test_requests_are_counted_until_the_minute_ends(limiter: RateLimiter, clock: Clock) -> None:
    clock.now += 29.5
    quotas = [limiter.count("user", "u", 3) for _ in range(4)]
    assert [(quota.remaining, quota.exceeded, quota.reset_seconds) for quota in quotas] == [
        (2, False, 31),
        (1, False, 31),
        (0, False, 31),
        (0, True, 31),
    ]
    clock.now += 30.5
    assert limiter.count("user", "u", 3).remaining == 2


def test_each_limit_and_each_identity_has_a_counter_of_its_own(limiter: RateLimiter) -> None:
    assert [used(limiter), used(limiter), used(limiter, identity="v"), used(limiter, "webhook")] == [1, 2, 1, 1]


def test_exceeded_limit_is_found_until_the_minute_ends(limiter: RateLimiter, clock: Clock) -> None:
    assert limiter.find_exceeded("webhook", SECRET) is None
    for _ in range(4):
        assert limiter.find_exceeded("webhook", SECRET) is None
        limiter.count("webhook", SECRET, 3)
    clock.now += 10
    found = limiter.find_exceeded("webhook", SECRET)
    assert found is not None
    assert (found.limit, found.used, found.reset_seconds) == (3, 4, 50)
    assert limiter.find_exceeded("webhook", "other") is None
    assert limiter.find_exceeded("user", SECRET) is None
    clock.now += 50
    assert limiter.find_exceeded("webhook", SECRET) is None


def test_number_of_counters_is_bounded(limiter: RateLimiter, monkeypatch: pytest.MonkeyPatch) -> None:
    """New addresses displace the oldest addresses, but no users."""
    monkeypatch.setattr(rate_limits, "MAX_KEYS", 10)
    used(limiter)
    for number in range(100):
        limiter.count("address", f"10.0.0.{number}", 0)
    storage = limiter.storages["address"]
    assert len(storage._counts) == len(storage._unshared) == 10
    assert len(limiter._exceeded) <= 10
    assert used(limiter) == 2
    assert used(limiter, "address", "10.0.0.99") == 1  # a limit of its own, because the limit is part of the key
    assert limiter.count("address", "10.0.0.98", 0).used == 2
    assert limiter.count("address", "10.0.0.1", 0).used == 1


def test_no_token_is_in_memory(limiter: RateLimiter) -> None:
    for _ in range(5):
        limiter.count("webhook", SECRET, 3)
    state = [vars(limiter), *map(vars, limiter.storages.values())]
    assert SECRET not in str(state)


def test_identity_may_contain_any_character(limiter: RateLimiter) -> None:
    assert used(limiter, identity="\udcff\0") == 1


def test_error_names_limit_use_and_remedy(limiter: RateLimiter, clock: Clock) -> None:
    clock.now += 20
    admission = Admission(limiter, "10.0.0.1")
    admission.count("user", "u", 1)
    with pytest.raises(RateLimited) as raised:
        admission.count("user", "u", 1)
    assert raised.value.message == (
        "The limit of 1 requests per minute is reached (used: 2). Try again in 40 seconds. "
        "Send fewer requests, or ask the operator to raise the limit of your plan."
    )
    assert raised.value.details == {"name": "requests_per_minute", "limit": 1, "used": 2}
    assert raised.value.headers == {"Retry-After": "40"}
    with pytest.raises(RateLimited):
        admission.refuse_exceeded("user", "u")


def test_invalid_token_counts_as_several_requests(limiter: RateLimiter) -> None:
    attempts = ADDRESS_REQUESTS_PER_MINUTE // INVALID_TOKEN_COST
    for _ in range(attempts):
        admission = Admission(limiter, "10.0.0.1")
        admission.count_address()
        admission.charge_invalid_token()
    assert admission.quotas["address"].remaining == 0
    with pytest.raises(RateLimited):
        Admission(limiter, "10.0.0.1").count_address()
    Admission(limiter, "10.0.0.2").count_address()


def test_without_a_limiter_nothing_is_limited() -> None:
    admission = Admission(None, "10.0.0.1")
    for _ in range(5):
        admission.count_address()
        admission.count("user", "u", 1)
        admission.charge_invalid_token()
        admission.refuse_exceeded("user", "u")
    assert admission.quotas == {}


def test_unshared_counts_are_taken_once_the_largest_first(limiter: RateLimiter) -> None:
    storage = limiter.storages["user"]
    for number in range(1, 5):
        for _ in range(number):
            limiter.count("user", f"u{number}", 100)
    assert list(storage.take_unshared(2).values()) == [4, 3]
    assert list(storage.take_unshared(2).values()) == [2, 1]
    assert storage.take_unshared(2) == {}


def test_totals_of_all_processes_replace_the_shared_counts(limiter: RateLimiter, clock: Clock) -> None:
    storage = limiter.storages["user"]
    used(limiter)
    taken = storage.take_unshared(10)
    window = storage.window
    used(limiter)  # while the counts are exchanged
    storage.set_totals(window, dict.fromkeys(taken, 50) | {"unknown": 7})
    assert used(limiter, limit=3) == 52
    assert list(storage.take_unshared(10).values()) == [2]
    clock.now += 60
    storage.set_totals(window, dict.fromkeys(taken, 50))
    assert used(limiter) == 1


def test_counts_that_could_not_be_shared_are_shared_later(limiter: RateLimiter, clock: Clock) -> None:
    storage = limiter.storages["user"]
    used(limiter)
    taken, window = storage.take_unshared(10), storage.window
    used(limiter)
    storage.return_unshared(window, taken)
    assert list(storage.take_unshared(10).values()) == [2]
    clock.now += 60
    used(limiter)
    storage.return_unshared(window, taken)
    assert list(storage.take_unshared(10).values()) == [1]
