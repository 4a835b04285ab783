"""A model that several providers serve: which of them is asked, with real servers on loopback."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime
from pathlib import Path

import pytest
from pydantic_ai.messages import ModelMessage, ModelRequest, UserPromptPart

from bloxserver.clients.model_errors import ModelError
from bloxserver.clock import now
from bloxserver.llm.breaker import FAILURES
from bloxserver.llm.gateway import LanguageModels
from bloxserver.models.database import Database
from tests.llm.callers import caller
from tests.llm.catalogues import Clock, providers, settings_of
from tests.llm_server import (
    Asked,
    LanguageModelServer,
    Reply,
    cut,
    fails,
    hangs_up,
    language_model,
    never,
    page,
    says,
)

MESSAGES: list[ModelMessage] = [ModelRequest([UserPromptPart("What do you guard?")])]

Script = Callable[[Asked], Reply]


def always(reply: Reply) -> Script:
    return lambda asked: reply


@asynccontextmanager
async def two_providers(
    folder: Path,
    first: Script,
    second: Script,
    database: Database | None = None,
    clock: Callable[[], datetime] = now,
    **values: float,
) -> AsyncIterator[tuple[LanguageModels, LanguageModelServer, LanguageModelServer]]:
    async with AsyncExitStack() as stack:
        servers = [await stack.enter_async_context(language_model(script)) for script in (first, second)]
        urls = {"first": servers[0].url, "second": servers[1].url}
        models = LanguageModels(settings_of(folder, {"providers": providers(urls, **values)}), database, clock)
        stack.push_async_callback(models.aclose)
        yield models, servers[0], servers[1]


@pytest.mark.parametrize(
    "fault",
    [
        fails(500),
        fails(529, type="overloaded_error"),
        fails(429),
        fails(429, headers={"Retry-After": "17"}),
        fails(429, code="insufficient_quota"),
        page(),
        cut(says("Half of a response"), "length"),
        hangs_up(),
        never(),
    ],
    ids=["500", "529", "429", "Retry-After", "quota", "page", "cut", "hung up", "never"],
)
async def test_another_provider_is_asked_after_a_failure(tmp_path: Path, fault: Reply) -> None:
    # The servers that never respond need a short time; the others respond within it.
    seconds = 1
    async with two_providers(tmp_path, always(fault), always(says("I did.")), timeout_seconds=seconds) as (
        models,
        first,
        second,
    ):
        response = await models.of(caller()).request(MESSAGES, model="parrot-1")
        assert response.text == "I did."
        assert (len(first.requests), len(second.requests)) == (1, 1)


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (fails(400), "llm_rejected"),
        (fails(401), "llm_unauthorized"),
        (fails(404, type="not_found_error"), "llm_model_not_found"),
        (says("I", finish="length"), "llm_too_long"),
        (says("", finish="content_filter"), "llm_refused"),
    ],
)
async def test_error_of_the_request_is_not_sent_to_another_provider(tmp_path: Path, fault: Reply, code: str) -> None:
    async with two_providers(tmp_path, always(fault), always(says("I did."))) as (models, first, second):
        for _ in range(FAILURES + 1):  # these errors do not open the breaker
            with pytest.raises(ModelError) as caught:
                await models.of(caller()).request(MESSAGES, model="parrot-1")
            assert caught.value.code == code
        assert (len(first.requests), len(second.requests)) == (FAILURES + 1, 0)


async def test_provider_that_fails_is_not_asked_while_its_breaker_is_open(tmp_path: Path) -> None:
    clock = Clock()
    async with two_providers(tmp_path, always(fails(500)), always(says("I did.")), clock=clock) as (
        models,
        first,
        second,
    ):
        for _ in range(FAILURES + 3):
            await models.of(caller()).request(MESSAGES, model="parrot-1")
        assert (len(first.requests), len(second.requests)) == (FAILURES, FAILURES + 3)
        clock.advance(30)
        await models.of(caller()).request(MESSAGES, model="parrot-1")
        await models.of(caller()).request(MESSAGES, model="parrot-1")
        assert len(first.requests) == FAILURES + 1  # the probe has failed


async def test_provider_is_asked_again_after_the_time_in_retry_after(tmp_path: Path) -> None:
    clock, replies = Clock(), iter([fails(429, headers={"Retry-After": "17"})])
    async with two_providers(
        tmp_path, lambda asked: next(replies, says("First.")), always(says("Second.")), clock=clock
    ) as (models, first, _):
        texts = [(await models.of(caller()).request(MESSAGES, model="parrot-1")).text for _ in range(3)]
        assert (texts, len(first.requests)) == (["Second."] * 3, 1)
        clock.advance(17)
        assert (await models.of(caller()).request(MESSAGES, model="parrot-1")).text == "First."


async def test_error_while_no_provider_may_be_asked_has_the_time_to_wait(tmp_path: Path) -> None:
    async with two_providers(tmp_path, always(fails(500)), always(fails(503))) as (models, first, second):
        for _ in range(FAILURES):
            with pytest.raises(ModelError, match=r"status 503"):
                await models.of(caller()).request(MESSAGES, model="parrot-1")
        with pytest.raises(ModelError, match="has failed repeatedly") as caught:
            await models.of(caller()).request(MESSAGES, model="parrot-1")
        assert (caught.value.code, caught.value.retryable) == ("llm_unavailable", True)
        assert caught.value.retry_after is not None
        assert 0 < caught.value.retry_after <= 30
        assert (len(first.requests), len(second.requests)) == (FAILURES, FAILURES)


async def test_paused_providers_give_the_error_of_a_rate_limit(tmp_path: Path) -> None:
    fault = fails(429, headers={"Retry-After": "17"})
    async with two_providers(tmp_path, always(fault), always(fault)) as (models, first, _):
        for _ in range(2):
            with pytest.raises(ModelError) as caught:
                await models.of(caller()).request(MESSAGES, model="parrot-1")
            assert caught.value.code == "llm_rate_limited"
            assert caught.value.retry_after is not None
            assert 10 < caught.value.retry_after <= 17
        assert len(first.requests) == 1


async def test_no_request_fails_when_one_of_two_providers_dies_under_load(
    tmp_path: Path, live_database: Database
) -> None:
    dead = asyncio.Event()

    def first_script(asked: Asked) -> Reply:
        return hangs_up() if dead.is_set() else says("First.")

    async with two_providers(tmp_path, first_script, always(says("Second.")), live_database) as (models, first, _):
        texts: Counter[str | None] = Counter()

        async def requests(number: int) -> None:
            for index in range(20):
                if number == 0 and index == 5:
                    dead.set()
                texts[(await models.of(caller()).request(MESSAGES, model="parrot-1")).text] += 1

        await asyncio.gather(*(requests(number) for number in range(20)))
        assert texts.total() == 400
        assert texts["First."] > 0
        assert texts["Second."] > 0
        # All that were sent before the breaker opened, and none afterwards.
        assert len(first.requests) <= texts["First."] + FAILURES + 20


async def test_cancelled_probe_does_not_block_the_provider(tmp_path: Path) -> None:
    clock, replies = Clock(), iter([*[fails(500)] * FAILURES, never()])
    async with two_providers(
        tmp_path, lambda asked: next(replies, says("First.")), always(fails(400)), clock=clock
    ) as (models, first, _):
        for _ in range(FAILURES):
            with pytest.raises(ModelError):
                await models.of(caller()).request(MESSAGES, model="parrot-1")
        clock.advance(30)
        first.was_asked.clear()
        probe = asyncio.create_task(models.of(caller()).request(MESSAGES, model="parrot-1"))
        async with asyncio.timeout(10):
            await first.was_asked.wait()
        probe.cancel()
        with pytest.raises(asyncio.CancelledError):
            await probe
        assert (await models.of(caller()).request(MESSAGES, model="parrot-1")).text == "First."
