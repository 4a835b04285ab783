"""Agents in the pump: tools are steps, and conversations survive interruptions."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from pydantic import SecretStr

from bloxserver.blocks.agent_calls import MAX_STATE_BYTES
from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished, Suspended, Tokens
from bloxserver.models.enums import StepStatus
from bloxserver.raw_json import RawJson
from bloxserver.settings import Settings
from tests.engine.pump_runs import echo, organism, pump
from tests.llm_server import LanguageModelServer, calls, fails, language_model, says

AGENT = "name: a, prompt: Be brief., peers: [b, c]"


def settings_of(model: LanguageModelServer) -> Settings:
    return Settings(llm_base_url=model.url, llm_model="scripted")


async def test_tools_of_an_agent_are_steps() -> None:
    text = organism(AGENT, echo("b", "c"), echo("c"))
    async with language_model([calls(("b", {"input": 1}), ("c", {"input": [2]})), says("Done.")]) as model:
        outcome, log = await pump(text, {"text": "Go."}, settings=settings_of(model))
        texts = model.requests[1].texts
    assert outcome == Finished({"text": "Done."})
    assert texts == ["Be brief.", "Go.", "1", "[2]"]
    agent = log.step("a")
    assert [(step.message.listener, step.message.parent_id, step.output) for step in log.steps[:2]] == [
        ("b", agent.id, 1),
        ("c", agent.id, [2]),
    ]
    assert log.handled() == ["a", "b", "c"], "b answers the agent, not its own peer"
    assert (agent.tokens, log.used) == (Tokens(20, 10), Tokens(20, 10))


async def test_answer_of_an_agent_goes_to_its_peers() -> None:
    text = organism(
        "name: a, prompt: p, peers: [b, {to: c, on: answer, when: payload.text == 'yes'}]", echo("b"), echo("c")
    )
    async with language_model([says("yes"), says("no")]) as model:
        assert (await pump(text, settings=settings_of(model)))[1].handled() == ["a", "c"]
        assert (await pump(text, settings=settings_of(model)))[1].handled() == ["a"]


async def test_agent_suspends_while_a_tool_waits_and_repeats_no_request() -> None:
    wait = "name: b, handler: delay, config: {seconds: 60}"
    text = organism(AGENT, wait, echo("c"))
    async with language_model([calls(("b", {"input": 1}), ("c", {"input": 2})), says("Done.")]) as model:
        outcome, first = await pump(text, settings=settings_of(model))
        assert isinstance(outcome, Suspended)
        assert outcome.until > now() + timedelta(seconds=50)
        assert len(model.requests) == 1
        early, second = await pump(text, kept=first.steps, settings=settings_of(model))
        assert (early, second.handled(), len(model.requests)) == (outcome, [], 1)
        due = [step._replace(completed_at=now()) for step in first.steps]
        late, third = await pump(text, kept=due, settings=settings_of(model))
        assert (late, len(model.requests)) == (Finished({"text": "Done."}), 2)
    assert third.handled() == ["a", "b"], "c was spared"
    assert (third.step("a").tokens, third.used) == (Tokens(20, 10), Tokens(10, 5))


async def test_saved_conversation_is_not_repeated() -> None:
    text = organism(AGENT, echo("b"), echo("c"))
    script = [calls(("b", {"input": 1})), calls(("c", {"input": 2})), says("Done.")]
    async with language_model(script) as model:
        _, whole = await pump(text, settings=settings_of(model))
    saved = whole.saved
    assert [(step.message.listener, step.status) for step in saved] == [
        ("a", StepStatus.RUNNING),
        ("b", StepStatus.SUCCESS),
        ("a", StepStatus.RUNNING),
        ("c", StepStatus.SUCCESS),
        ("a", StepStatus.RUNNING),
        ("a", StepStatus.SUCCESS),
    ]
    for kept, asked in ((1, 2), (2, 2), (3, 1), (4, 1), (5, 0)):
        known = {step.message.key: step for step in saved[:kept]}
        async with language_model(script[-asked:] if asked else []) as model:
            outcome, log = await pump(text, kept=list(known.values()), settings=settings_of(model))
            assert (outcome, len(model.requests)) == (Finished({"text": "Done."}), asked), kept
        assert log.step("a").tokens == Tokens(30, 15)
        assert log.used == Tokens(10 * asked, 5 * asked)


async def test_failed_model_request_is_retried_from_the_saved_conversation() -> None:
    text = organism(AGENT + ", retries: 1, backoff_seconds: 0.001", echo("b"), echo("c"))
    script = [calls(("b", {"input": 1})), fails(500), says("Done.")]
    async with language_model(script) as model:
        outcome, log = await pump(text, settings=settings_of(model))
        assert (outcome, len(model.requests)) == (Finished({"text": "Done."}), 3)
    assert log.step("a").attempt == 2
    assert log.handled() == ["a", "b"]


async def test_tool_error_is_sent_to_the_model() -> None:
    broken = "name: b, handler: transform, config: {output: '{{ payload.missing }}'}"
    async with language_model([calls(("b", {"input": {}})), says("Sorry.")]) as model:
        outcome, log = await pump(organism(AGENT, broken, echo("c")), settings=settings_of(model))
        assert "missing" in model.requests[1].texts[-1]
    assert outcome == Finished({"text": "Sorry."})
    assert log.step("b").status is StepStatus.ERROR


async def test_calls_count_as_messages() -> None:
    text = organism(AGENT, echo("b"), echo("c"), execution="{max_iterations: 2}")
    async with language_model([calls(("b", {"input": 1}), ("b", {"input": 2}))]) as model:
        outcome, _ = await pump(text, settings=settings_of(model))
    assert outcome == Failed("b: more than 2 messages (execution.max_iterations)")


async def test_an_agent_may_call_an_agent() -> None:
    text = organism("name: a, prompt: first, peers: [b]", "name: b, prompt: second, peers: [c]", echo("c"))
    script = [calls(("b", {"text": "Ask c."})), calls(("c", {"input": "x"})), says("It said x."), says("All done.")]
    async with language_model(script) as model:
        outcome, log = await pump(text, settings=settings_of(model))
        assert model.requests[1].texts == ["second", "Ask c."]
        assert model.requests[3].texts[-1] == '{"text":"It said x."}'
    assert outcome == Finished({"text": "All done."})
    assert log.step("c").message.parent_id == log.step("b").id


@pytest.mark.parametrize(
    ("settings", "named"), [(Settings(), "LLM_"), (Settings(llm_api_key=SecretStr("k")), "LLM_MODEL")]
)
async def test_agent_without_configuration_fails_and_names_the_setting(settings: Settings, named: str) -> None:
    outcome, _ = await pump(organism("name: a, prompt: p"), settings=settings)
    assert isinstance(outcome, Failed)
    assert named in outcome.error


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        ([[]] * 10_000, f"[{','.join(['[]'] * 10_000)}]"),
        ("é" * 100_000, "é" * 100_000),
        ({"text": "é" * 100_000}, "é" * 100_000),
    ],
    ids=["list", "text", "member text"],
)
async def test_large_message_reaches_the_model_as_text(payload: object, text: str) -> None:
    definition = organism("name: a, prompt: p")
    async with language_model([says("Done.")]) as model:
        raw = RawJson(json.dumps(payload))
        assert (await pump(definition, raw, settings=settings_of(model)))[0] == Finished({"text": "Done."})
        assert model.requests[0].texts == ["p", text]


async def test_message_that_no_conversation_can_hold_fails() -> None:
    raw = RawJson(json.dumps("x" * (MAX_STATE_BYTES + 1)))
    async with language_model([]) as model:
        outcome, log = await pump(organism("name: a, prompt: p"), raw, settings=settings_of(model))
        assert model.requests == []
    assert isinstance(outcome, Failed)
    assert log.step("a").error_code == "llm_too_long"
    assert f"has {MAX_STATE_BYTES + 1} bytes, but a conversation may have {MAX_STATE_BYTES} bytes" in outcome.error
