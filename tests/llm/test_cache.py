"""Responses that are kept for equal requests, with real servers on loopback."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, SystemPromptPart, ToolCallPart, UserPromptPart

from bloxserver.clients.model_errors import ModelError
from bloxserver.llm.cache import MAX_RESPONSE_BYTES, cached_as
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.gateway import CallerModels, LanguageModels
from bloxserver.llm.limits import ModelLimitReached
from bloxserver.models.database import Database
from bloxserver.plans import PLANS
from bloxserver.settings import Settings
from tests.factories import create_user
from tests.llm.callers import caller
from tests.llm.catalogues import Clock
from tests.llm_server import Asked, LanguageModelServer, Reply, calls, fails, language_model, says
from tests.metric_increase import measure_increase

HOUR = 3600
TOTAL = "bloxserver_llm_cache_total"


def question(text: str = "What do you guard?") -> list[ModelMessage]:
    """A new conversation, with its own timestamps."""
    return [ModelRequest([SystemPromptPart("You are a guardian."), UserPromptPart(text)])]


def numbered() -> Callable[[Asked], Reply]:
    """A script that numbers its responses."""
    numbers = iter(range(1, 1_000))
    return lambda asked: says(f"Answer {next(numbers)}")


@asynccontextmanager
async def gateway(
    script: Callable[[Asked], Reply] | list[Reply] | None = None,
    clock: Clock | None = None,
    database: Database | None = None,
    **given: Any,
) -> AsyncIterator[tuple[LanguageModels, LanguageModelServer]]:
    async with language_model(script or numbered()) as server:
        chosen = {"llm_base_url": server.url, "llm_provider": "openai", "llm_model": "parrot-1", "llm_providers": None}
        models = LanguageModels(Settings(**(chosen | given)), database, clock or Clock())
        try:
            yield models, server
        finally:
            await models.aclose()


async def ask(models: CallerModels, text: str = "What do you guard?", **given: Any) -> str | None:
    return (await models.request(question(text), **({"temperature": 0} | given))).text


class TestTimes:
    @pytest.mark.parametrize(
        ("temperature", "seconds"), [(0, 24 * HOUR), (0.01, HOUR), (0.299, HOUR), (0.3, 300), (0.699, 300)]
    )
    async def test_response_is_kept_for_a_time_that_depends_on_the_temperature(
        self, temperature: float, seconds: float
    ) -> None:
        clock = Clock()
        async with gateway(clock=clock) as (models, server):
            user = models.of(caller())
            assert await ask(user, temperature=temperature) == "Answer 1"
            clock.advance(seconds - 1)
            assert await ask(user, temperature=temperature) == "Answer 1"
            clock.advance(1)
            assert await ask(user, temperature=temperature) == "Answer 2"
            assert len(server.requests) == 2

    @pytest.mark.parametrize("temperature", [0.7, 1, 2, None])
    async def test_response_with_a_high_or_unset_temperature_is_not_kept(self, temperature: float | None) -> None:
        async with gateway() as (models, _):
            user = models.of(caller())
            with measure_increase(TOTAL, result="bypass") as bypassed:
                texts = [await ask(user, temperature=temperature) for _ in range(2)]
            assert (texts, bypassed.number) == (["Answer 1", "Answer 2"], 2)

    async def test_hit_does_not_prolong_the_time(self) -> None:
        clock = Clock()
        async with gateway(clock=clock) as (models, _):
            user = models.of(caller())
            texts = []
            for _ in range(3):
                texts.append(await ask(user, temperature=0.5))
                clock.advance(200)
            assert texts == ["Answer 1", "Answer 1", "Answer 2"]


class TestMark:
    async def test_hit_is_marked_and_has_no_tokens(self) -> None:
        async with gateway([says("A gate.", input_tokens=10, output_tokens=5)]) as (models, _):
            user = models.of(caller())
            with measure_increase(TOTAL, result="hit") as hits, measure_increase(TOTAL, result="miss") as misses:
                sent, hit = [await user.request(question(), temperature=0) for _ in range(2)]
            assert (cached_as(sent), cached_as(hit)) == (None, "hit")
            assert (sent.usage.input_tokens, sent.usage.output_tokens) == (10, 5)
            assert (hit.usage.input_tokens, hit.usage.output_tokens, hit.text) == (0, 0, "A gate.")
            assert (hits.number, misses.number) == (1, 1)

    async def test_callers_cannot_change_the_responses_of_others(self) -> None:
        async with gateway([calls(("fetch", {"url": "a"}))]) as (models, _):
            user = models.of(caller())
            for _ in range(3):
                response = await user.request(question(), temperature=0)
                (part,) = response.tool_calls
                assert (part.tool_name, part.args) == ("fetch", '{"url": "a"}')
                part.tool_name = "changed"
                response.parts = []


class TestUsers:
    async def test_each_user_has_their_own_responses(self) -> None:
        async with gateway() as (models, _):
            assert [await ask(models.of(caller())) for _ in range(2)] == ["Answer 1", "Answer 2"]

    async def test_call_without_a_user_is_sent(self) -> None:
        async with gateway() as (models, _):
            await ask(models.of(caller()))
            texts = [(await models.request(ModelCall(question(), temperature=0))).text for _ in range(2)]
            assert texts == ["Answer 2", "Answer 3"]

    async def test_users_share_responses_if_the_operator_enables_it(self) -> None:
        async with gateway(llm_cache_shared=True) as (models, _):
            assert [await ask(models.of(caller())) for _ in range(2)] == ["Answer 1", "Answer 1"]

    async def test_user_does_not_get_the_error_of_another_one(self) -> None:
        """It may be that of a limit of the other user."""
        refused = asyncio.Event()
        replies = iter([after(refused, fails(400)), says("Second.")])
        async with gateway(lambda asked: next(replies), llm_cache_shared=True) as (models, server):
            first = asyncio.create_task(ask(models.of(caller())))
            await server.was_asked.wait()
            second = asyncio.create_task(ask(models.of(caller())))
            refused.set()
            with pytest.raises(ModelError):
                await first
            assert await second == "Second."


class TestBounds:
    async def test_least_recently_used_responses_are_removed(self) -> None:
        async with gateway(llm_cache_bytes=5_000) as (models, server):
            user = models.of(caller())
            for number in range(20):
                await ask(user, f"Question {number}")
                assert await ask(user, "Question 0") == "Answer 1"
            assert len(server.requests) == 20
            assert await ask(user, "Question 1") == "Answer 21"

    async def test_memory_is_that_of_the_setting(self) -> None:
        async with gateway(llm_cache_bytes=5_000) as (models, _):
            user = models.of(caller())
            for number in range(20):
                await ask(user, f"Question {number}")
            with measure_increase("bloxserver_llm_cache_bytes") as grown:
                for number in range(20):
                    await ask(user, f"Another question {number}")
            assert abs(grown.number) < 100

    async def test_zero_bytes_disable_the_cache(self) -> None:
        async with gateway(llm_cache_bytes=0) as (models, _):
            user = models.of(caller())
            with measure_increase(TOTAL, result="bypass") as bypassed:
                assert [await ask(user) for _ in range(2)] == ["Answer 1", "Answer 2"]
            assert bypassed.number == 2

    async def test_large_response_is_not_kept(self) -> None:
        async with gateway([says("a" * MAX_RESPONSE_BYTES), says("Small.")]) as (models, _):
            user = models.of(caller())
            assert len(await ask(user) or "") == MAX_RESPONSE_BYTES
            assert await ask(user) == "Small."

    async def test_empty_response_is_not_kept(self) -> None:
        async with gateway([says(""), says("Better.")]) as (models, _):
            user = models.of(caller())
            assert [await ask(user) or "" for _ in range(2)] == ["", "Better."]

    async def test_response_that_cannot_be_stored_is_not_kept(self) -> None:
        """A retry of the agent gets another response."""
        async with gateway([says("half \ud83d"), says("Whole.")]) as (models, _):
            user = models.of(caller())
            assert [await ask(user) for _ in range(2)] == ["half \ud83d", "Whole."]

    async def test_error_is_not_kept(self) -> None:
        async with gateway([fails(500), says("Better.")]) as (models, _):
            user = models.of(caller())
            with pytest.raises(ModelError):
                await ask(user)
            assert await ask(user) == "Better."

    async def test_caller_can_refuse_cached_responses(self) -> None:
        async with gateway() as (models, _):
            user = models.of(caller())
            texts = [await ask(user, cache=cache) for cache in (True, False, True)]
            assert texts == ["Answer 1", "Answer 2", "Answer 1"]


def after(event: asyncio.Event, reply: Reply) -> Reply:
    """Send the reply when the event is set."""

    async def send(writer: asyncio.StreamWriter) -> None:
        await event.wait()
        sent = reply("openai")
        assert isinstance(sent, bytes)
        writer.write(sent)

    return lambda api: send


class TestConcurrentRequests:
    @asynccontextmanager
    async def waiting(
        self, count: int, *replies: Reply
    ) -> AsyncIterator[tuple[list[asyncio.Task[Any]], asyncio.Event, LanguageModelServer]]:
        """Equal requests that wait for the response to the first one, which is sent when the event is set."""
        event = asyncio.Event()
        script = iter([after(event, replies[0]), *replies[1:]])
        async with gateway(lambda asked: next(script)) as (models, server):
            user = models.of(caller())
            tasks = [asyncio.create_task(user.request(question(), temperature=0)) for _ in range(count)]
            async with asyncio.timeout(30):
                await server.was_asked.wait()
                yield tasks, event, server

    async def test_equal_requests_are_sent_once(self) -> None:
        with measure_increase(TOTAL, result="coalesced") as coalesced:
            async with self.waiting(20, calls(("fetch", {}), input_tokens=10)) as (tasks, event, server):
                event.set()
                responses = await asyncio.gather(*tasks)
                assert len(server.requests) == 1
        assert [cached_as(response) for response in responses] == [None, *["coalesced"] * 19]
        assert [response.usage.input_tokens for response in responses] == [10, *[0] * 19]
        assert len({id(response.parts[0]) for response in responses}) == 20
        assert coalesced.number == 19

    async def test_another_one_sends_the_request_if_the_first_is_cancelled(self) -> None:
        async with self.waiting(5, says("Never."), says("Second.")) as (tasks, _, server):
            tasks[0].cancel()
            responses = await asyncio.gather(*tasks[1:])
            assert [response.text for response in responses] == ["Second."] * 4
            assert [cached_as(response) for response in responses] == [None, *["coalesced"] * 3]
            assert tasks[0].cancelled()
            assert len(server.requests) == 2

    async def test_cancelled_follower_does_not_cancel_the_request(self) -> None:
        async with self.waiting(3, says("First.")) as (tasks, event, server):
            tasks[1].cancel()
            with pytest.raises(asyncio.CancelledError):
                await tasks[1]
            event.set()
            responses = await asyncio.gather(tasks[0], tasks[2])
            assert [response.text for response in responses] == ["First."] * 2
            assert len(server.requests) == 1

    async def test_error_is_shared_without_its_tokens(self) -> None:
        reply = says("I", finish="length", input_tokens=10, output_tokens=5)
        async with self.waiting(3, reply) as (tasks, event, server):
            event.set()
            errors = await asyncio.gather(*tasks, return_exceptions=True)
            assert len(server.requests) == 1
        assert [isinstance(error, ModelError) and error.code for error in errors] == ["llm_too_long"] * 3
        assert [isinstance(error, ModelError) and error.input_tokens for error in errors] == [10, 0, 0]

    async def test_large_response_is_shared(self) -> None:
        async with self.waiting(3, says("a" * MAX_RESPONSE_BYTES)) as (tasks, event, server):
            event.set()
            responses = await asyncio.gather(*tasks)
            assert [len(response.text) for response in responses] == [MAX_RESPONSE_BYTES] * 3
            assert len(server.requests) == 1


class TestLimits:
    async def caller(self, database: Database, **limits: Any) -> Caller:
        async with database.transaction() as session:
            user = await create_user(session)
        return Caller(user.id, "free", replace(PLANS["free"], **limits))

    async def test_hit_uses_no_limit(self, live_database: Database) -> None:
        user = await self.caller(live_database, llm_requests_per_minute=1)
        async with gateway(database=live_database, rate_limits=True) as (models, _):
            assert [await ask(models.of(user)) for _ in range(3)] == ["Answer 1"] * 3
            with pytest.raises(ModelLimitReached):
                await ask(models.of(user), "What else?")

    async def test_limit_of_the_first_request_is_that_of_the_others(self, live_database: Database) -> None:
        """Their steps are postponed as well."""
        user = await self.caller(live_database, llm_requests_per_minute=1)
        async with gateway(database=live_database, rate_limits=True) as (models, _):
            await ask(models.of(user), "What else?")
            errors = await asyncio.gather(*(ask(models.of(user)) for _ in range(3)), return_exceptions=True)
        assert [isinstance(error, ModelLimitReached) and error.is_postponed for error in errors] == [True] * 3
        assert len({(str(error), error.used) for error in errors if isinstance(error, ModelLimitReached)}) == 1


async def test_conversation_after_a_hit_is_a_hit() -> None:
    """The members of responses that are not sent to the model do not distinguish requests."""
    async with gateway([calls(("fetch", {})), says("Done.")]) as (models, server):
        user = models.of(caller())
        for mark in (None, "hit"):
            messages = question()
            response = await user.request(messages, temperature=0)
            assert isinstance(response.parts[0], ToolCallPart)
            messages += [response, ModelRequest([UserPromptPart("Go on.")])]
            final = await user.request(messages, temperature=0)
            assert (cached_as(response), cached_as(final), final.text) == (mark, mark, "Done.")
        assert len(server.requests) == 2
