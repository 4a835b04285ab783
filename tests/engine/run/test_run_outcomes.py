"""Ends of runs: stops, and what happens to the steps of other branches."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, Result, StepWarning, Stop, Wait
from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished
from bloxserver.engine.run.run_outcomes import MAX_WARNING_CHARACTERS
from bloxserver.models.enums import StepStatus
from bloxserver.raw_json import RawJson, plain
from tests.engine.pump_runs import block, echo, organism, pump
from tests.engine.run.test_agents import settings_of
from tests.engine.run.test_large_messages import ORDER, large
from tests.llm_server import calls, language_model


async def waits(payload: JsonValue, context: BlockContext) -> Result:
    return Wait(now() + timedelta(hours=1), 1)


async def never(payload: JsonValue, context: BlockContext) -> Result:
    await asyncio.Event().wait()
    return None


BLOCKS = [block("waits", waits), block("never", never)]


@pytest.mark.parametrize(
    ("config", "outcome"),
    [
        ("{}", Finished(1, is_stopped=True)),
        ("{output: {given: '{{ payload }}'}}", Finished({"given": 1}, is_stopped=True)),
        ("{error: 'no {{ payload }}', code: refused}", Failed("end: no 1")),
    ],
)
async def test_stop_ends_a_run_while_other_steps_run_and_wait(config: str, outcome: Finished | Failed) -> None:
    text = organism(
        echo("a", "b", "c", "d"),
        "name: b, handler: waits",
        "name: c, handler: never",
        "name: d, handler: delay, config: {seconds: 0.05}, peers: [end]",
        f"name: end, handler: stop, config: {config}, retries: 3, peers: [{{to: e, on: error}}]",
        echo("e"),
    )
    ended, log = await pump(text, 1, blocks=BLOCKS)
    assert ended == outcome
    last = log.changes[-1]
    assert [step.message.listener for step in last.steps] == ["end"]
    step = log.step("end")
    failed = isinstance(outcome, Failed)
    assert (step.status, step.error_code) == ((StepStatus.ERROR, "refused") if failed else (StepStatus.SUCCESS, None))


async def test_step_that_would_wait_is_cancelled_if_it_is_saved_together_with_a_stop() -> None:
    stops = asyncio.Event()

    async def would_wait(payload: JsonValue, context: BlockContext) -> Result:
        await stops.wait()
        return Wait(now() + timedelta(hours=1), 1)

    async def stop(payload: JsonValue, context: BlockContext) -> Result:
        stops.set()
        return Stop("ended")

    text = organism(echo("a", "b", "c"), "name: b, handler: would_wait", "name: c, handler: stops")
    outcome, log = await pump(text, 1, blocks=[block("would_wait", would_wait), block("stops", stop)])
    assert outcome == Finished("ended", is_stopped=True)
    saved = {step.message.listener: step.status for step in log.changes[-1].steps}
    assert saved == {"b": StepStatus.CANCELLED, "c": StepStatus.SUCCESS}


TWO = "[{to: b, when: 'payload.x > 1'}, {to: c, when: 'payload.x > 2'}]"
CASES = "handler: branch, config: {cases: [{when: 'payload.x > 1', to: b}, {when: 'payload.x > 2', to: c}]}"


@pytest.mark.parametrize("listener", [f"handler: echo, peers: {TWO}", CASES])
@pytest.mark.parametrize("is_large", [False, True])
async def test_answer_that_no_condition_chooses_is_filtered_and_has_a_warning(listener: str, is_large: bool) -> None:
    text = organism(f"name: a, {listener}", echo("b"), echo("c"))
    payload: JsonValue = {"x": 1, "pad": ORDER["pad"]} if is_large else {"x": 1}
    outcome, log = await pump(text, large(payload) if is_large else payload)
    assert isinstance(outcome, Finished)
    assert (plain(outcome.output), outcome.is_filtered) == (payload, True)
    message = "no condition holds, so that no listener receives the answer: b: payload.x > 1; c: payload.x > 2"
    assert log.step("a").warnings == (StepWarning("no_condition_held", message),)


@pytest.mark.parametrize(
    ("listeners", "is_filtered"),
    [
        ([echo("a")], False),
        (["name: a, handler: echo, peers: [{to: b, on: error}]", echo("b")], False),
        (["name: a, handler: echo, peers: [{to: b, when: 'payload.x == 1'}]", echo("b")], False),
        (["name: a, handler: echo, peers: [{to: b, when: 'payload.x == 2'}, c]", echo("b"), echo("c")], False),
        ([echo("a", "b", "c"), "name: b, handler: echo, peers: [{to: c, when: 'false'}]", echo("c")], False),
        ([echo("a", "b", "c"), "name: b, handler: echo, peers: [{to: d, when: 'false'}]",
          "name: c, handler: echo, peers: [{to: d, when: 'false'}]", echo("d")], True),
        (["name: a, handler: stop"], False),
    ],
)  # fmt: skip
async def test_execution_is_filtered_if_no_output_has_another_reason(listeners: list[str], is_filtered: bool) -> None:
    outcome, _ = await pump(organism(*listeners), {"x": 1})
    assert isinstance(outcome, Finished)
    assert outcome.is_filtered is is_filtered


async def test_warning_of_an_earlier_run_is_kept_and_not_saved_again() -> None:
    text = organism("name: a, handler: echo, peers: [{to: b, when: 'false'}]", echo("b"))
    _, first = await pump(text, 1)
    outcome, second = await pump(text, 1, kept=first.steps)
    assert outcome == Finished(1, is_filtered=True)
    assert second.saved == []


async def test_long_conditions_are_cut_in_the_warning() -> None:
    condition = " && ".join(["payload == 2"] * 100)
    text = organism(f"name: a, handler: echo, peers: [{{to: b, when: '{condition}'}}]", echo("b"))
    _, log = await pump(text, 1)
    (warning,) = log.step("a").warnings
    assert (len(warning.message), warning.message[-1]) == (MAX_WARNING_CHARACTERS, "…")


async def test_stop_as_a_tool_ends_the_execution_of_its_agent() -> None:
    text = organism("name: a, prompt: p, peers: [end]", "name: end, handler: stop, config: {output: '{{ payload }}'}")
    async with language_model([calls(("end", {"input": "done"}))]) as model:
        outcome, log = await pump(text, settings=settings_of(model))
    assert outcome == Finished("done", is_stopped=True)
    assert log.step("end").status is StepStatus.SUCCESS


@pytest.mark.parametrize("config", ["{}", "{output: '{{ payload }}'}"])
async def test_stop_with_a_large_message(config: str) -> None:
    outcome, _ = await pump(organism(f"name: a, handler: stop, config: {config}"), large(ORDER))
    assert isinstance(outcome, Finished)
    assert isinstance(outcome.output, RawJson)
    assert (plain(outcome.output), outcome.is_stopped) == (ORDER, True)


async def test_stop_with_an_error_of_a_large_message() -> None:
    text = organism("name: a, handler: stop, config: {error: 'no {{ payload.id }}', code: refused}")
    outcome, log = await pump(text, large(ORDER))
    assert (outcome, log.step("a").error_code) == (Failed("a: no 7"), "refused")
