"""Steps that wait for calls, without a database."""

from __future__ import annotations

from datetime import timedelta

from bloxserver.clock import now
from bloxserver.engine.run.attempt import DEFAULT_WAIT_SECONDS
from bloxserver.engine.run.messages import Failed, Finished, Suspended
from bloxserver.models.enums import StepStatus
from tests.engine.pump_runs import organism, pump
from tests.engine.run.test_agents import settings_of
from tests.llm_server import calls, language_model, says

ASK = "name: ask, handler: wait.webhook, config: {question: '{{ payload }}'}"


async def test_wait_without_a_timeout_ends_after_a_week() -> None:
    before = now()
    outcome, log = await pump(organism(ASK), "Really?")
    assert isinstance(outcome, Suspended)
    assert outcome.awaited == ("ask",)
    assert timedelta() <= outcome.until - before - timedelta(seconds=DEFAULT_WAIT_SECONDS) < timedelta(minutes=1)
    assert (log.step("ask").status, log.step("ask").output) == (StepStatus.WAITING, {"question": "Really?"})


async def test_wait_that_is_over_is_an_error() -> None:
    outcome, log = await pump(organism(f"{ASK}, timeout_seconds: 0.001, retries: 3"), "x")
    assert outcome == Failed("ask (attempt 1 of 4): no call within 0.001 seconds")
    assert log.step("ask").error_code == "wait_timeout"


async def test_replayed_wait_keeps_its_time_and_its_question() -> None:
    first, log = await pump(organism(ASK), "x")
    assert isinstance(first, Suspended)
    again, replayed = await pump(organism(ASK), "x", kept=log.steps)
    assert isinstance(again, Suspended)
    assert again == first
    assert replayed.steps == []


async def test_received_call_ends_a_wait_that_begins_later() -> None:
    outcome, _ = await pump(organism(ASK), "x", received={"ask": [1]})
    assert outcome == Finished([1])


async def test_received_call_ends_a_saved_wait_whose_time_is_over() -> None:
    _, log = await pump(organism(ASK), "x")
    [waiting] = log.steps
    late = waiting._replace(completed_at=now() - timedelta(days=1))
    outcome, _ = await pump(organism(ASK), "x", kept=[late], received={"ask": 1})
    assert outcome == Finished(1)


async def test_large_message_is_rendered_in_another_process() -> None:
    question = ASK.replace("{{ payload }}", "{{ payload.size() }}")
    outcome, log = await pump(organism("name: a, handler: echo, peers: [ask]", question), [*range(20_000)])
    assert isinstance(outcome, Suspended)
    assert log.step("ask").output == {"question": "20000"}


async def test_tool_of_an_agent_waits_once() -> None:
    text = organism("name: a, prompt: p, peers: [ask]", ASK)
    asked = [calls(("ask", {"input": 1})), calls(("ask", {"input": 2})), says("Done.")]
    async with language_model(asked) as model:
        outcome, log = await pump(text, settings=settings_of(model), received={"ask": "yes"})
    assert outcome == Finished({"text": "Done."})
    steps = [(step.status, step.output, step.error_code) for step in log.steps if step.message.listener == "ask"]
    assert steps == [(StepStatus.SUCCESS, "yes", None), (StepStatus.ERROR, None, "wait_repeated")]


async def test_join_waits_for_an_approval() -> None:
    text = organism(
        "name: a, handler: echo, peers: [ask, j]", f"{ASK}, peers: [j]", "name: j, handler: echo, join: all"
    )
    first, log = await pump(text, "x")
    assert isinstance(first, Suspended)
    outcome, _ = await pump(text, "x", kept=log.steps, received={"ask": "yes"})
    assert outcome == Finished({"a": "x", "ask": "yes"})


async def test_join_of_any_branch_cancels_a_wait() -> None:
    text = organism(
        "name: a, handler: echo, peers: [ask, b]",
        f"{ASK}, peers: [j]",
        "name: b, handler: delay, config: {seconds: 0.05}, peers: [j]",
        "name: j, handler: echo, join: any",
    )
    outcome, log = await pump(text, "x")
    assert isinstance(outcome, Finished)
    assert log.step("ask").status is StepStatus.CANCELLED
