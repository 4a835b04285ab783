"""Calls that wait for a slot of a provider: their order, overload, and other providers."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from bloxserver.clients.model_streams import TextDelta
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.gateway import LanguageModels
from bloxserver.llm.queue import (
    CRITICAL,
    DEGRADED,
    CallerQueue,
    Health,
    ModelOverloaded,
    Throughput,
    Waiter,
    health_of,
    refusal_probability,
    retry_seconds,
)
from bloxserver.llm.slots import Slots
from bloxserver.model_catalogue import Provider
from bloxserver.observability.metrics import REGISTRY
from bloxserver.plans import PLANS
from tests.llm.callers import caller
from tests.llm.catalogues import Clock, providers, settings_of
from tests.llm.crowds import Crowd
from tests.llm_server import fails, language_model, says
from tests.llm_streams import streams
from tests.metric_increase import measure_increase

ANN, BOB, CAT = UUID(int=1), UUID(int=2), UUID(int=3)


def messages(text: str) -> list[ModelMessage]:
    return [ModelRequest([UserPromptPart(text)])]


def provider(maximum: int | None = 1, name: str = "only") -> Provider:
    return Provider(name, "openai", "http://127.0.0.1:9/v1", max_concurrent=maximum)


def of_tier(tier: str, user_id: UUID | None = None) -> Caller:
    return Caller(user_id or uuid4(), tier, PLANS[tier])


def depth(tier: str = "pro", name: str = "only") -> float:
    return REGISTRY.get_sample_value("bloxserver_llm_queue_depth", {"provider": name, "tier": tier}) or 0


class Calls:
    """Calls that use a slot until the test ends them."""

    def __init__(self, slots: Slots, *given: Provider, seconds: float = 30) -> None:
        self.slots = slots
        self.providers = given or (provider(),)
        self.seconds = seconds
        self.begun: list[str] = []
        self.used: Counter[str] = Counter()
        self._ends: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self, name: str, calling: Caller | None = None) -> asyncio.Task[None]:
        self._ends[name] = asyncio.Event()
        task = asyncio.create_task(self._run(name, calling or caller()))
        self._tasks.append(task)
        return task

    def end(self, name: str) -> None:
        self._ends[name].set()

    async def _run(self, name: str, calling: Caller) -> None:
        with self.slots.turn(self.providers, calling, self.seconds) as turn:
            async with turn.slot(self.providers) as index:
                self.begun.append(name)
                self.used[self.providers[index].name] += 1
                await self._ends[name].wait()

    async def settled(self) -> None:
        """Let all tasks run until they wait. Without a database, no call waits for anything else than these tasks."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


async def served(*given: tuple[str, UUID, float]) -> list[int]:
    """The order in which these callers get slots."""
    queue, waiters = CallerQueue(), [Waiter(*each) for each in given]
    for waiter in waiters:
        queue.add(waiter)
    order = []
    while (first := queue.next()) is not None:
        queue.take(first)
        order.append(waiters.index(first))
    assert len(queue) == 0
    return order


async def test_callers_are_served_by_tier() -> None:
    tiers = ["free", "pro", "enterprise", "high_frequency", "free", "high_frequency"]
    assert await served(*((tier, UUID(int=number), 0.0) for number, tier in enumerate(tiers))) == [3, 5, 2, 1, 0, 4]


async def test_users_of_a_tier_take_turns() -> None:
    calls = [("pro", ANN, 0.0), ("pro", ANN, 0.1), ("pro", ANN, 0.2), ("pro", BOB, 0.3), ("pro", BOB, 0.4)]
    assert await served(*calls, ("pro", CAT, 0.5)) == [0, 3, 5, 1, 4, 2]


async def test_caller_who_has_waited_ten_seconds_longer_precedes_the_tier_above() -> None:
    assert await served(("free", ANN, 0.0), ("pro", BOB, 9.9)) == [1, 0]
    assert await served(("free", ANN, 0.0), ("pro", BOB, 10.1)) == [0, 1]
    assert await served(("free", ANN, 0.0), ("high_frequency", BOB, 29.9), ("high_frequency", CAT, 30.1)) == [1, 0, 2]


async def test_free_callers_are_served_while_others_arrive_without_end() -> None:
    clock, slots_of_one = Clock(), provider()
    calls = Calls(Slots([slots_of_one], None, clock), slots_of_one)
    calls.begin("first")
    await calls.settled()
    calls.begin("free", of_tier("free"))
    for number in range(40):
        calls.begin(f"pro {number}", of_tier("pro"))
        await calls.settled()
        calls.end(calls.begun[-1])
        await calls.settled()
        clock.advance(1)
    # A free caller waits 10 seconds, and then for the pro caller who began to wait before these ended.
    assert calls.begun.index("free") in (11, 12)
    await calls.stop()


async def test_a_thousand_callers_complete_and_never_exceed_the_limit() -> None:
    only = provider(7)
    slots = Slots([only], None, random=lambda: 1.0)
    running, most, ended = 0, 0, 0

    async def call(number: int) -> None:
        nonlocal running, most, ended
        calling = of_tier(list(PLANS)[number % 4], UUID(int=number % 50))
        with slots.turn([only], calling, 30) as turn:
            async with turn.slot([only]):
                running += 1
                most = max(most, running)
                await asyncio.sleep(0)
                running -= 1
                ended += 1

    await asyncio.gather(*(call(number) for number in range(1_000)))
    assert (ended, most, running, slots.depth) == (1_000, 7, 0, 0)
    assert {depth(tier) for tier in PLANS} == {0}


async def test_cancelled_callers_leave_no_trace() -> None:
    calls = Calls(Slots([provider()], None))
    first = calls.begin("first")
    await calls.settled()
    waiting = [calls.begin(f"waiting {number}", of_tier("pro", ANN)) for number in range(5)]
    await calls.settled()
    assert (depth(), calls.slots.depth) == (5, 5)
    for task in waiting[:4]:
        task.cancel()
    await calls.settled()
    assert (depth(), calls.slots.depth) == (1, 1)
    await calls.stop()
    assert (first.cancelled(), depth(), calls.slots.depth) == (True, 0, 0)


async def test_slot_of_a_caller_who_is_cancelled_as_they_get_it_is_given_to_the_next() -> None:
    only = provider()
    calls = Calls(Slots([only], None))
    with calls.slots.turn([only], caller(), 30) as turn:
        async with turn.slot([only]):
            cancelled = calls.begin("cancelled")
            await calls.settled()
            calls.begin("next")
            await calls.settled()
    cancelled.cancel()  # it has the slot, but has not run since
    await calls.settled()
    assert calls.begun == ["next"]
    await calls.stop()


async def test_caller_waits_no_longer_than_its_call_may_take() -> None:
    calls = Calls(Slots([provider()], None))
    calls.begin("first")
    await calls.settled()
    calls.seconds = 0.01
    shed = measure_increase("bloxserver_llm_shed_total", tier="enterprise", reason="timeout")
    with shed as increase, pytest.raises(ModelOverloaded) as caught:
        await calls.begin("second")
    assert (caught.value.code, caught.value.reason, increase.number) == ("llm_overloaded", "timeout", 1)
    assert (calls.slots.depth, depth("enterprise")) == (0, 0)
    await calls.stop()


async def test_call_uses_another_provider_with_a_free_slot() -> None:
    first, second, third = provider(1, "first"), provider(2, "second"), provider(None, "third")
    calls = Calls(Slots([first, second, third], None), first, second)
    tasks = [calls.begin(str(number)) for number in range(4)]
    await calls.settled()
    assert calls.used == {"first": 1, "second": 2}
    calls.end("2")  # a slot of the second provider
    await calls.settled()
    assert calls.used == {"first": 1, "second": 3}
    assert (depth("enterprise", "first"), depth("enterprise", "second")) == (0, 0)
    calls.providers = (first, third)
    tasks.append(calls.begin("unlimited"))
    await calls.settled()
    assert calls.used["third"] == 1
    for name in ("0", "1", "3", "unlimited"):
        calls.end(name)
    await asyncio.gather(*tasks)


@pytest.mark.parametrize(
    ("depth", "health", "free", "pro"),
    [
        (0, Health.HEALTHY, 0, 0),
        (DEGRADED - 1, Health.HEALTHY, 0, 0),
        (DEGRADED, Health.DEGRADED, 0, 0),
        (1_250, Health.DEGRADED, 0.5, 0),
        (CRITICAL - 1, Health.DEGRADED, 1_499 / 1_500, 0),
        (CRITICAL, Health.CRITICAL, 1, 0),
        (3_000, Health.CRITICAL, 1, 0.5),
        (9_000, Health.CRITICAL, 1, 1),
    ],
)
def test_health_and_probabilities_of_a_refusal(depth: int, health: Health, free: float, pro: float) -> None:
    assert health_of(depth) is health
    assert (refusal_probability("free", depth), refusal_probability("pro", depth)) == (free, pro)
    assert (refusal_probability("enterprise", depth), refusal_probability("high_frequency", depth)) == (0, 0)


async def test_free_callers_are_refused_before_pro_and_others_never() -> None:
    draws = iter([0.49, 0.51])
    calls = Calls(Slots([provider()], None, random=lambda: next(draws)))
    for number in range(1_251):
        calls.begin(str(number))
    await calls.settled()
    assert calls.slots.depth == 1_250
    shed = measure_increase("bloxserver_llm_shed_total", tier="free", reason="degraded")
    message = r"are waiting \(degraded\); try again in 60 seconds"
    with shed as increase, pytest.raises(ModelOverloaded, match=message) as caught:
        await calls.begin("refused", of_tier("free"))
    assert increase.number == 1
    error = caught.value
    assert (error.code, error.retryable, error.is_postponed, error.retry_after) == ("llm_overloaded", True, True, 60)
    calls.begin("lucky", of_tier("free"))
    for tier in ("pro", "enterprise", "high_frequency"):  # they draw no number
        calls.begin(tier, of_tier(tier))
    await calls.settled()
    assert calls.slots.depth == 1_254
    await calls.stop()
    assert calls.slots.depth == 0


async def test_pro_callers_are_refused_when_the_queue_is_critical() -> None:
    calls = Calls(Slots([provider()], None, random=lambda: 0.0))
    for number in range(CRITICAL + 2):
        calls.begin(str(number))
    await calls.settled()
    with pytest.raises(ModelOverloaded, match="critical"):
        await calls.begin("pro", of_tier("pro"))
    await calls.stop()


async def test_caller_whose_provider_has_a_free_slot_is_never_refused() -> None:
    only, other = provider(), provider(1, "other")
    calls = Calls(Slots([only, other], None, random=lambda: 0.0), only)
    for number in range(CRITICAL + 2):
        calls.begin(str(number))
    await calls.settled()
    calls.providers = (other,)
    calls.begin("other", of_tier("free"))
    await calls.settled()
    assert calls.used["other"] == 1
    await calls.stop()


def test_time_to_wait_follows_depth_and_throughput() -> None:
    clock = Clock()
    throughput = Throughput(clock)
    assert retry_seconds(500, throughput.per_second()) == 60
    for _ in range(10):
        for _ in range(20):
            throughput.count()
        clock.advance(1)
    assert throughput.per_second() == 20
    assert retry_seconds(500, throughput.per_second()) == 25
    assert (retry_seconds(5, 20), retry_seconds(5_000, 20)) == (1, 60)
    throughput.count()
    clock.advance(25)
    assert throughput.per_second() == 0


async def test_gateway_sends_no_more_requests_than_the_provider_accepts(tmp_path: Path) -> None:
    crowd = Crowd(3)
    async with language_model(crowd) as server:
        document = {"providers": providers({"only": server.url}, max_concurrent=3)}
        models = LanguageModels(settings_of(tmp_path, document))
        with measure_increase("bloxserver_llm_queue_wait_seconds_count", tier="enterprise") as waits:
            await asyncio.gather(
                *(models.of(caller()).request(messages(str(number)), model="parrot-1") for number in range(30))
            )
        await models.aclose()
    assert (crowd.most, len(crowd.texts), waits.number) == (3, 30, 30)


async def test_gateway_asks_another_provider_instead_of_waiting(tmp_path: Path) -> None:
    crowds = [Crowd(3), Crowd(3)]
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(language_model(crowd)) for crowd in crowds]
        urls = {"first": servers[0].url, "second": servers[1].url}
        models = LanguageModels(settings_of(tmp_path, {"providers": providers(urls, max_concurrent=3)}))
        await asyncio.gather(*(models.of(caller()).request(messages("Hi"), model="parrot-1") for _ in range(6)))
        await models.aclose()
    assert [crowd.most for crowd in crowds] == [3, 3]


async def test_failed_request_leaves_its_slot_to_others_and_waits_for_the_next_provider(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        first = await stack.enter_async_context(language_model(lambda asked: fails(500)))
        second = await stack.enter_async_context(language_model(lambda asked: says("Second.")))
        urls = {"first": first.url, "second": second.url}
        models = LanguageModels(settings_of(tmp_path, {"providers": providers(urls, max_concurrent=1)}))
        responses = await asyncio.gather(
            *(models.of(caller()).request(messages(str(number)), model="parrot-1") for number in range(20))
        )
        await models.aclose()
    assert {response.text for response in responses} == {"Second."}


async def test_cancelled_request_releases_its_slot(tmp_path: Path) -> None:
    crowd = Crowd(2)
    async with language_model(crowd) as server:
        document = {"providers": providers({"only": server.url}, max_concurrent=1)}
        models = LanguageModels(settings_of(tmp_path, document))
        first = asyncio.create_task(models.of(caller()).request(messages("first"), model="parrot-1"))
        await crowd.arrived(1)
        second = asyncio.create_task(models.of(caller()).request(messages("second"), model="parrot-1"))
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert (await second).text == "Here."
        await models.aclose()
    assert crowd.texts == ["first", "second"]


@pytest.mark.parametrize("is_closed", [False, True])
async def test_stream_uses_a_slot_until_it_ends_or_is_closed(tmp_path: Path, is_closed: bool) -> None:
    end = asyncio.Event()
    async with language_model([streams("I ", end, "did."), streams("Next.")]) as server:
        document = {"providers": providers({"only": server.url}, max_concurrent=1)}
        models = LanguageModels(settings_of(tmp_path, document))
        first = models.stream(ModelCall(messages("first"), "parrot-1"), caller())
        assert await anext(first) == TextDelta("I ")
        waiting = models.stream(ModelCall(messages("second"), "parrot-1"), of_tier("pro"))
        second = asyncio.create_task(anext(waiting))
        await asyncio.sleep(0)
        assert (depth(), len(server.requests)) == (1, 1)
        end.set()
        if is_closed:
            await first.aclose()
        else:
            assert [event async for event in first][:1] == [TextDelta("did.")]
        assert await second == TextDelta("Next.")
        assert (depth(), len(server.requests)) == (0, 2)
        await waiting.aclose()
        await models.aclose()


async def test_stream_of_another_provider_with_a_free_slot(tmp_path: Path) -> None:
    end = asyncio.Event()
    async with AsyncExitStack() as stack:
        servers = [
            await stack.enter_async_context(language_model([reply]))
            for reply in (streams("First.", end), streams("Second."))
        ]
        urls = {"first": servers[0].url, "second": servers[1].url}
        models = LanguageModels(settings_of(tmp_path, {"providers": providers(urls, max_concurrent=1)}))
        calls = [models.stream(ModelCall(messages("Hi"), "parrot-1"), caller()) for _ in range(2)]
        assert [await anext(call) for call in calls] == [TextDelta("First."), TextDelta("Second.")]
        end.set()
        for call in calls:
            await call.aclose()
        await models.aclose()
