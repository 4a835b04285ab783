"""The concurrent requests that a provider accepts (`max_concurrent`), and the calls that wait for them.

The slots of a provider are leased from the database; see `provider_leases`. Queues belong to a process.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import datetime

import structlog

from bloxserver.clock import now
from bloxserver.llm.calls import Caller
from bloxserver.llm.provider_leases import Lease, ProviderLeases
from bloxserver.llm.queue import (
    RANKS,
    CallerQueue,
    ModelOverloaded,
    Throughput,
    Waiter,
    health_of,
    refusal_probability,
    retry_seconds,
)
from bloxserver.model_catalogue import Provider
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import describe_error
from bloxserver.observability import metrics

log = structlog.stdlib.get_logger("bloxserver.llm")

Clock = Callable[[], datetime]

RENEWAL_SECONDS = 1.0
WITHOUT_LEASE = 1
"""The slots of a process that cannot reach the database and whose lease has expired."""
RENEWALS_OF_A_CALL = 3
"""A call waits for a renewal that began before it, for its own, and for another if other calls got the slots."""
CLOSE_SECONDS = 2.0


class ProviderSlots:
    """The slots of one provider in this process, and the callers that wait for them."""

    def __init__(self, provider: Provider, leases: ProviderLeases | None, clock: Clock) -> None:
        """Without leases, the process has all slots."""
        self.queue = CallerQueue()
        self.name = provider.name
        self._maximum = provider.max_concurrent or 0
        self._leases = leases
        self._clock = clock
        self._lease: Lease | None = None
        self._limit = 0
        """New calls may begin while fewer slots than these are in use. It can be lower than what the lease has."""
        self._used = 0
        self._asking = 0
        """Calls that wait for a renewal."""
        self._peak = 0
        """The largest number of slots that could have been used since the last renewal."""
        self._has_failed = False
        self._renewal: asyncio.Task[None] | None = None
        self._renewals: asyncio.Task[None] | None = None

    @property
    def is_full(self) -> bool:
        """Whether a call would have to wait for the end of another one, as far as it is known."""
        return self._used >= self._allowed and not self._may_grow

    def take_free(self) -> bool:
        """Take a slot if one is free."""
        if self._used >= self._allowed:
            return False
        self._used += 1
        self._note_demand()
        return True

    async def take(self) -> bool:
        """Take a slot if one is free in this process, or if the lease can be extended."""
        if self.take_free():
            return True
        self._asking += 1
        self._note_demand()
        try:
            for _ in range(RENEWALS_OF_A_CALL):
                if not self._may_grow:
                    break
                await self.renew()
                if self.take_free():
                    return True
        finally:
            self._asking -= 1
        return False

    def add(self, waiter: Waiter) -> None:
        self.queue.add(waiter)
        metrics.LLM_QUEUE_DEPTH.labels(self.name, waiter.tier).inc()
        self._note_demand()

    def remove(self, waiter: Waiter) -> None:
        if self.queue.remove(waiter):
            metrics.LLM_QUEUE_DEPTH.labels(self.name, waiter.tier).dec()

    def release(self) -> None:
        """End the use of a slot. The next caller gets it."""
        self._used -= 1
        self._serve()

    async def renew(self) -> None:
        """Renew the lease, or wait for a renewal that is running. Errors are logged."""
        if self._leases is None:
            return
        if self._renewal is None:
            self._renewal = asyncio.get_running_loop().create_task(self._renew(self._leases))
        await asyncio.shield(self._renewal)

    async def aclose(self) -> None:
        for task in (self._renewals, self._renewal):
            if task is not None:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task

    @property
    def _wanted(self) -> int:
        return self._used + self._asking + len(self.queue)

    @property
    def _has_lease(self) -> bool:
        return self._lease is not None and self._clock() < self._lease.expires_at

    @property
    def _allowed(self) -> int:
        if self._leases is None:
            return self._maximum
        if self._has_lease:
            return self._limit
        return WITHOUT_LEASE if self._has_failed else 0

    @property
    def _may_grow(self) -> bool:
        """Whether a renewal may give the process more slots."""
        if self._leases is None or self._has_failed:
            return False
        return self._lease.can_grow if self._lease is not None and self._has_lease else True

    def _note_demand(self) -> None:
        self._peak = max(self._peak, self._wanted)
        if self._leases is not None and (self._renewals is None or self._renewals.done()):
            self._renewals = asyncio.get_running_loop().create_task(self._renew_regularly())

    def _serve(self) -> None:
        """Give free slots to waiting callers."""
        while self._used < self._allowed and (waiter := self.queue.next()) is not None:
            if waiter.slot.done():  # cancelled, or served by another provider
                self.remove(waiter)
                continue
            self.queue.take(waiter)
            metrics.LLM_QUEUE_DEPTH.labels(self.name, waiter.tier).dec()
            self._used += 1
            waiter.slot.set_result(self.name)

    async def _renew_regularly(self) -> None:
        """Renew the lease while there are calls. When there were none for one interval, the slots are given back."""
        while self._wanted or self._has_lease:
            await asyncio.sleep(RENEWAL_SECONDS)
            await self.renew()
        self._has_failed = False  # the next call tries again

    async def _renew(self, leases: ProviderLeases) -> None:
        wanted, self._peak = max(self._peak, self._wanted), self._wanted
        try:
            lease = await leases.renew(self.name, self._maximum, wanted, self._offer)
        except Exception as error:
            # What was lowered stays so: it is not known whether the change was stored.
            reason = describe_error(error)
            log.warning("slots of a language model provider not renewed", provider=self.name, reason=reason)
            self._has_failed = True
        else:
            self._has_failed = False
            self._lease, self._limit = (lease if wanted else None), lease.slots
        finally:
            self._renewal = None
        self._serve()

    def _offer(self, slots: int) -> int:
        self._limit = min(self._limit, slots)
        return max(self._used, slots)


class Turn:
    """One call, from when it is admitted until its end. It uses the slots of several providers one after another."""

    def __init__(self, slots: Slots, tier: str, caller: Caller | None, seconds: float) -> None:
        self.tier = tier
        self.user = None if caller is None else caller.user_id
        self.seconds = seconds
        """The time for which the call may still wait."""
        self.since = slots.clock().timestamp()
        self._slots = slots

    @asynccontextmanager
    async def slot(self, providers: Sequence[Provider]) -> AsyncIterator[int]:
        """Use a slot of one of the providers within the block. The value is its index.

        It is that of the first provider with a free slot. If there is none, the call waits for whichever provider has
        one first. Raises `ModelOverloaded` after a wait that was too long.
        """
        index = await self._slots.take(self, providers)
        try:
            yield index
        finally:
            self._slots.release(providers[index])


class Slots:
    """The slots of all providers. An instance belongs to one event loop."""

    def __init__(
        self,
        providers: Sequence[Provider],
        database: Database | None,
        clock: Clock = now,
        random: Callable[[], float] = random.random,
    ) -> None:
        """With a database, all processes together use at most `max_concurrent` slots of a provider."""
        self.clock = clock
        self._random = random
        self._leases = None if database is None else ProviderLeases(database, clock)
        self._slots = {
            each.name: ProviderSlots(each, self._leases, clock) for each in providers if each.max_concurrent is not None
        }
        self._waiting: set[Turn] = set()
        self._ended = Throughput(clock)

    @property
    def depth(self) -> int:
        """The number of calls in this process that have no slot yet."""
        return len(self._waiting)

    @contextmanager
    def turn(self, providers: Sequence[Provider], caller: Caller | None, seconds: float) -> Iterator[Turn]:
        """Admit a call to one of the providers, which waits for a slot for at most this many seconds.

        Raises `ModelOverloaded` if it would have to wait, and too many calls wait already. Calls without a caller are
        those of the operator, and wait as the tier `enterprise` does.
        """
        tier = "enterprise" if caller is None else caller.tier
        turn = Turn(self, tier if tier in RANKS else "free", caller, seconds)
        slots = [self._slots.get(provider.name) for provider in providers]
        probability = refusal_probability(turn.tier, self.depth)
        would_wait = probability > 0 and all(each is not None and each.is_full for each in slots)
        if would_wait and self._random() < probability:
            raise self._refused(turn, health_of(self.depth))
        self._waiting.add(turn)
        try:
            yield turn
        finally:
            self._waiting.discard(turn)

    async def take(self, turn: Turn, providers: Sequence[Provider]) -> int:
        """Take a slot of one of the providers. Returns its index. See `Turn.slot`."""
        slots = [self._slots.get(provider.name) for provider in providers]
        self._waiting.add(turn)
        started = time.perf_counter()
        try:
            async with asyncio.timeout(turn.seconds):
                index = await self._take(turn, slots)
        except TimeoutError:
            raise self._refused(turn, "timeout") from None
        waited = time.perf_counter() - started
        turn.seconds -= waited
        if slots[index] is not None:
            metrics.LLM_QUEUE_WAIT_SECONDS.labels(turn.tier).observe(waited)
        self._waiting.discard(turn)
        return index

    def release(self, provider: Provider) -> None:
        if (slots := self._slots.get(provider.name)) is not None:
            self._ended.count()
            slots.release()

    async def aclose(self) -> None:
        """Give the leases back."""
        for slots in self._slots.values():
            await slots.aclose()
        if self._leases is None or not self._slots:
            return
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._leases.give_back()
        except Exception as error:
            log.warning("slots of language model providers not given back", reason=describe_error(error))

    async def _take(self, turn: Turn, slots: Sequence[ProviderSlots | None]) -> int:
        for index, each in enumerate(slots):
            if each is None or await each.take():
                return index
        limited = [each for each in slots if each is not None]
        # Slots may have become free while the leases of later providers were renewed.
        for index, each in enumerate(limited):
            if each.take_free():
                return index
        return await _wait(Waiter(turn.tier, turn.user, turn.since), limited)

    def _refused(self, turn: Turn, reason: str) -> ModelOverloaded:
        metrics.LLM_SHED.labels(turn.tier, reason).inc()
        return ModelOverloaded(reason, retry_seconds(self.depth, self._ended.per_second()))


async def _wait(waiter: Waiter, slots: Sequence[ProviderSlots]) -> int:
    """Wait for a slot of one of the providers. Returns its index."""
    names = [each.name for each in slots]
    for each in {each.name: each for each in slots}.values():
        each.add(waiter)
    try:
        return names.index(await waiter.slot)
    except BaseException:
        # The slot may have been given to a caller that is cancelled at the same time.
        if waiter.slot.done() and not waiter.slot.cancelled():
            slots[names.index(waiter.slot.result())].release()
        raise
    finally:
        for each in slots:
            each.remove(waiter)
