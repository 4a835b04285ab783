"""Agents that repeat a tool call with equal arguments."""

from __future__ import annotations

import httpx

from bloxserver.blocks.base import StepWarning
from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished, Step, Suspended
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.settings import Settings
from tests.engine.pump_runs import echo, organism, pump
from tests.engine.running_engine import run, running_engine, started_flow
from tests.llm_server import LanguageModelServer, calls, language_model, says

AGENT = "name: a, prompt: Be brief., peers: [b]"
WARNING = StepWarning("agent_repeated_call", "the model called the tool b 3 times with equal arguments")


def settings_of(model: LanguageModelServer) -> Settings:
    return Settings(llm_base_url=model.url, llm_model="scripted")


async def test_third_call_warns_and_fifth_call_is_not_made() -> None:
    script = [calls(("b", '{"input": {"x": 1, "y": 2}}')), calls(("b", '{"input":{"y":2,"x":1.0}}'))] * 3
    async with language_model(script) as model:
        text = organism(f"{AGENT}, retries: 3", echo("b"))
        outcome, log = await pump(text, settings=settings_of(model))
        seen = "".join(text for asked in model.requests for text in asked.texts)
    failed = "a (attempt 1 of 4): the model called the tool b 5 times with equal arguments"
    assert outcome == Failed(failed)
    step = log.step("a")
    assert (step.status, step.error_code, step.attempt) == (StepStatus.ERROR, "agent_repeated_call", 1)
    assert len([step for step in log.steps if step.message.listener == "b"]) == 4
    assert step.warnings == (WARNING,)
    warned = [step.warnings for step in log.saved if step.message.listener == "a"]
    assert warned == [(), (), (WARNING,), (WARNING,), (WARNING,), (WARNING,)]
    assert "equal" not in seen


async def test_calls_with_other_arguments_are_not_counted() -> None:
    script = [*(calls(("b", {"input": number}), ("c", {"input": 1})) for number in range(2)), says("Done.")]
    async with language_model([calls(("b", {"input": number})) for number in range(7)] + script) as model:
        text = organism("name: a, prompt: p, peers: [b, c]", echo("b"), echo("c"))
        outcome, log = await pump(text, settings=settings_of(model))
    assert outcome == Finished({"text": "Done."})
    assert log.step("a").warnings == ()


async def test_equal_calls_of_one_answer_are_counted() -> None:
    async with language_model([calls(*[("b", {"input": 1})] * 5)]) as model:
        outcome, log = await pump(organism(AGENT, echo("b")), settings=settings_of(model))
    assert isinstance(outcome, Failed)
    assert log.handled() == ["a"]


async def test_count_continues_after_a_suspension() -> None:
    text = organism(AGENT, "name: b, handler: delay, config: {seconds: 3600}")
    kept: list[Step] = []
    for number in range(1, 5):
        async with language_model([calls(("b", {"input": 1}))]) as model:
            outcome, log = await pump(text, kept=kept, settings=settings_of(model))
        assert isinstance(outcome, Suspended)
        # The log of a run has only the steps that it changed.
        by_key = {step.message.key: step for step in [*kept, *log.steps]}
        kept = [
            step._replace(completed_at=now()) if step.status is StepStatus.WAITING else step for step in by_key.values()
        ]
        [agent] = [step for step in kept if step.message.listener == "a"]
        assert agent.warnings == ((WARNING,) if number >= 3 else ())
    async with language_model([calls(("b", {"input": 1}))]) as model:
        outcome, log = await pump(text, kept=kept, settings=settings_of(model))
    assert isinstance(outcome, Failed)
    assert log.step("a").error_code == "agent_repeated_call"


async def test_calling_agent_gets_no_reason() -> None:
    inner = [calls(("c", {"input": 1}))] * 5
    async with language_model([calls(("b", {"text": "Go."})), *inner, says("Done.")]) as model:
        text = organism(AGENT, "name: b, prompt: Inner., peers: [c]", echo("c"))
        outcome, log = await pump(text, settings=settings_of(model))
        texts = model.requests[-1].texts
    assert outcome == Finished({"text": "Done."})
    assert log.step("b").error_code == "agent_repeated_call"
    assert texts[-1] == '{"error":"failed: the step failed"}'


async def test_timeline_shows_the_warning(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database
) -> None:
    async with language_model([*[calls(("b", {"input": 1}))] * 3, says("Done.")]) as model:
        changes = {"llm_base_url": model.url, "llm_model": "scripted"}
        async with running_engine(live_settings, live_database, **changes):
            path = await started_flow(live_client, organism(AGENT, echo("b")))
            execution = await run(live_client, path)
    assert execution["status"] == "success"
    steps = (await live_client.get(f"{path}/executions/{execution['id']}/steps")).json()["items"]
    shown = [{"code": WARNING.code, "message": WARNING.message}]
    assert [step["warnings"] for step in steps] == [shown, [], [], []]
