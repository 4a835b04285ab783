"""Calls of agents when an attempt is retried, interrupted or fails, and blocks that raise unexpected errors."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, Result, Wait
from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished, Tokens
from bloxserver.models.enums import StepStatus
from tests.engine.pump_runs import block, echo, organism, pump
from tests.engine.run.test_agents import settings_of
from tests.llm_server import Asked, Reply, calls, fails, language_model, says


async def test_answered_tool_runs_once_across_agent_retries() -> None:
    ran: list[str] = []

    async def act(payload: JsonValue, context: BlockContext) -> Result:
        ran.append(context.idempotency_key)
        return "ok"

    text = organism("name: a, prompt: p, peers: [b], retries: 1, backoff_seconds: 0.001", "name: b, handler: act")
    async with language_model([calls(("b", {"input": 1})), fails(500), says("Done.")]) as model:
        outcome, _ = await pump(text, settings=settings_of(model), blocks=[block("act", act)])
    assert (outcome, len(ran)) == (Finished({"text": "Done."}), 1)


async def test_called_agent_runs_once_across_caller_retries() -> None:
    asked: list[str] = []

    def script(request: Asked) -> Reply:
        asked.append(request.texts[0])
        if asked[-1] == "second":
            return says("x")
        return [calls(("b", {"text": "q"})), fails(500), says("Done.")][asked.count("first") - 1]

    text = organism("name: a, prompt: first, peers: [b], retries: 1, backoff_seconds: 0.001", "name: b, prompt: second")
    async with language_model(script) as model:
        outcome, log = await pump(text, settings=settings_of(model))
    assert (outcome, asked.count("second")) == (Finished({"text": "Done."}), 1)
    assert log.used == Tokens(30, 15)


async def test_waiting_tool_ends_with_its_agent() -> None:
    async def waits(payload: JsonValue, context: BlockContext) -> Result:
        return Wait(now() + timedelta(hours=1), 1)

    async def never(payload: JsonValue, context: BlockContext) -> Result:
        await asyncio.Event().wait()
        return None

    text = organism(
        "name: a, prompt: p, peers: [b, c, {to: e, on: error}], timeout_seconds: 1",
        "name: b, handler: waits",
        "name: c, handler: never",
        echo("e"),
    )
    blocks = [block("waits", waits), block("never", never)]
    async with language_model([says("Loaded."), calls(("b", {"input": 1}), ("c", {"input": 1}))]) as model:
        await pump(organism("name: a, prompt: p"), settings=settings_of(model))  # the first use of a model takes long
        outcome, log = await pump(text, settings=settings_of(model), blocks=blocks)
    assert isinstance(outcome, Finished)
    assert {step.message.listener: step.status for step in log.steps} == {
        "a": StepStatus.ERROR,
        "b": StepStatus.CANCELLED,
        "c": StepStatus.CANCELLED,
        "e": StepStatus.SUCCESS,
    }


async def test_a_call_beyond_the_limit_is_not_made() -> None:
    ran: list[JsonValue] = []

    async def act(payload: JsonValue, context: BlockContext) -> Result:
        ran.append(payload)
        return payload

    text = organism("name: a, prompt: p, peers: [b]", "name: b, handler: act", execution="{max_iterations: 2}")
    async with language_model([calls(("b", {"input": 1}), ("b", {"input": 2}))]) as model:
        outcome, _ = await pump(text, settings=settings_of(model), blocks=[block("act", act)])
    assert outcome == Failed("b: more than 2 messages (execution.max_iterations)")
    assert len(ran) <= 1


async def test_block_that_raises_cancelled_error_fails() -> None:
    async def act(payload: JsonValue, context: BlockContext) -> Result:
        raise asyncio.CancelledError

    async with asyncio.timeout(20):
        outcome, _ = await pump(organism("name: x, handler: act"), blocks=[block("act", act)])
    assert outcome == Failed("x: internal error")


async def test_branch_sends_once_to_a_target_that_is_also_a_peer() -> None:
    branch = "name: a, handler: branch, config: {cases: [{when: 'true', to: b}]}, peers: [{to: b, when: 'payload > 1'}]"
    text = organism(branch, echo("b"))
    assert (await pump(text, 5))[0] == Finished(5)
    outcome, log = await pump(text, 1)
    assert (outcome, log.handled()) == (Finished(1, is_filtered=True), ["a"]), "the peer's own condition holds as well"
