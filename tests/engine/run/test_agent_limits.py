"""Agents at a limit of their user's plan: they wait without a slot and without using a retry."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished, Suspended
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import LanguageModels
from bloxserver.llm.provider_leases import ProviderLeases
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.plans import PLANS
from bloxserver.settings import Settings
from tests.engine.pump_runs import echo, organism, pump
from tests.factories import create_user
from tests.llm.catalogues import Clock, providers, settings_of
from tests.llm_server import LanguageModelServer, Reply, calls, language_model, says

AGENT = "name: a, prompt: Be brief., peers: [b]"


@pytest.fixture
async def calling(live_database: Database) -> Caller:
    """A user with one request in a minute."""
    async with live_database.transaction() as session:
        user = await create_user(session)
    return Caller(user.id, "free", replace(PLANS["free"], llm_requests_per_minute=1))


@asynccontextmanager
async def world(
    database: Database, clock: Clock, *script: Reply
) -> AsyncIterator[tuple[LanguageModels, LanguageModelServer]]:
    async with language_model(script) as server:
        settings = Settings(llm_base_url=server.url, llm_model="scripted", rate_limits=True)
        models = LanguageModels(settings, database, clock)
        yield models, server
        await models.aclose()


async def test_agent_at_its_limit_is_suspended_and_continues(live_database: Database, calling: Caller) -> None:
    clock = Clock()
    clock.moment = clock.moment.replace(second=1)  # a wait of less than two seconds would keep the slot
    text = organism(AGENT, echo("b"))
    async with world(live_database, clock, calls(("b", {"input": 1})), says("Done.")) as (models, server):
        outcome, first = await pump(text, models=models, calling=calling)
        assert isinstance(outcome, Suspended)
        # The limit is that of a minute. Up to a tenth is added to the wait.
        assert now() < outcome.until <= now() + timedelta(seconds=66)
        waiting = first.step("a")
        assert (waiting.status, waiting.error_code) == (StepStatus.RETRYING, "llm_limit_reached")
        assert len(server.requests) == 1
    clock.advance(60)
    async with world(live_database, clock, says("Done.")) as (models, server):
        due = [step._replace(completed_at=now()) for step in first.steps]
        late, second = await pump(text, kept=due, models=models, calling=calling)
        assert late == Finished({"text": "Done."})
        assert len(server.requests) == 1, "the first request is not repeated"
    ended = second.step("a")
    assert (ended.attempt, ended.interruptions) == (2, 1)


async def test_agent_at_its_limit_fails_at_its_timeout(live_database: Database, calling: Caller) -> None:
    text = organism(f"{AGENT}, timeout_seconds: 1", echo("b"))
    clock = Clock()
    clock.moment = clock.moment.replace(second=1)
    async with world(live_database, clock, calls(("b", {"input": 1}))) as (models, _):
        outcome, log = await pump(text, models=models, calling=calling)
    assert isinstance(outcome, Failed)
    assert "your plan allows 1 calls of language models in a minute, and 1 are used" in outcome.error
    assert log.step("a").error_code == "llm_limit_reached"


async def test_call_that_no_minute_allows_fails_at_once(live_database: Database, calling: Caller) -> None:
    text = organism("name: a, prompt: p, max_tokens: 10001")
    async with world(live_database, Clock()) as (models, server):
        outcome, log = await pump(text, models=models, calling=calling)
    assert isinstance(outcome, Failed)
    assert (log.step("a").error_code, server.requests) == ("llm_limit_reached", [])


async def test_agent_that_waited_too_long_for_a_provider_is_suspended(
    live_database: Database, calling: Caller, tmp_path: Path
) -> None:
    clock = Clock()
    # Another process uses the only slot.
    await ProviderLeases(live_database, clock).renew("only", 1, 1, lambda slots: slots)
    async with language_model([]) as server:
        document = {"providers": providers({"only": server.url}, max_concurrent=1, timeout_seconds=0.2)}
        models = LanguageModels(settings_of(tmp_path, document), live_database, clock)
        outcome, log = await pump(organism("name: a, prompt: p, model: parrot-1"), models=models, calling=calling)
        await models.aclose()
    assert isinstance(outcome, Suspended)
    waiting = log.step("a")
    assert (waiting.status, waiting.error_code) == (StepStatus.RETRYING, "llm_overloaded")
    assert (waiting.interruptions, server.requests) == (1, [])
