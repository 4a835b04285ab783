"""The pump alone: what a join with `all` waits for and receives, also after a suspension."""

from __future__ import annotations

import asyncio

from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, Called, Result
from bloxserver.clock import now
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.messages import Failed, Finished, Suspended
from bloxserver.ids import new_id
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.raw_json import RawJson, plain
from tests.engine.pump_runs import block, echo, organism, pump
from tests.engine.run.join_runs import fails, finished, join, says, steps_of
from tests.engine.run.test_agents import settings_of
from tests.llm_server import calls as llm_calls
from tests.llm_server import language_model
from tests.llm_server import says as llm_says

SUCCESS, CANCELLED = StepStatus.SUCCESS, StepStatus.CANCELLED


async def test_one_message_has_the_answer_of_each_branch() -> None:
    text = organism(echo("a", "b", "c"), says("b", "1", "j"), says("c", "two", "j"), join("j", "end"), echo("end"))
    outcome, log = await pump(text, "m")
    assert outcome == Finished({"b": 1, "c": "two"})
    assert log.handled() == ["a", "b", "c", "end", "j"]
    joined = log.step("j")
    assert joined.message.key == ":j:join"
    assert joined.message.parent_id in {log.step("b").id, log.step("c").id}


async def test_without_join_each_message_is_handled() -> None:
    text = organism(echo("a", "b", "c"), echo("b", "j"), echo("c", "j"), echo("j"))
    assert await finished(text, "m") == {"j": ["m", "m"]}


async def test_members_are_in_the_order_of_the_definition() -> None:
    async def slow(payload: JsonValue, context: BlockContext) -> Result:
        await asyncio.sleep(0.01)
        return payload

    text = organism(echo("a", "b", "c"), "name: b, handler: slow, peers: [j]", echo("c", "j"), join("j"))
    output = await finished(text, 1, blocks=[block("slow", slow)])
    assert isinstance(output, dict)
    assert [*output] == ["b", "c"]


async def test_a_condition_that_does_not_hold_completes_its_branch() -> None:
    text = organism(
        echo("a", "b", "c"),
        "name: b, handler: echo, peers: [{to: j, when: payload == 2}]",
        echo("c", "j"),
        join("j", "k"),
        echo("k"),
    )
    assert await finished(text, 1) == {"b": 1, "k": {"c": 1}}
    assert await finished(text, 2) == {"b": 2, "c": 2}


async def test_a_join_to_which_nothing_is_sent_is_not_run() -> None:
    text = organism(
        echo("a", "b", "c"),
        "name: b, handler: echo, peers: [{to: j, when: payload == 2}]",
        "name: c, handler: echo, peers: [{to: j, when: payload == 2}]",
        join("j"),
    )
    assert await finished(text, 1) == {"b": 1, "c": 1}


async def test_a_branch_sends_to_one_of_its_targets() -> None:
    choice = "name: b, handler: branch, config: {cases: [{when: payload == 1, to: c}], otherwise: j}"
    text = organism(echo("a", "b", "d"), choice, says("c", "one", "j"), echo("d", "j"), join("j"))
    assert await finished(text, 1) == {"c": "one", "d": 1}
    assert await finished(text, 2) == {"b": 2, "d": 2}


async def test_an_error_that_is_routed_elsewhere_completes_its_branch() -> None:
    text = organism(
        echo("a", "b", "c"), fails("b", "j, {to: e, on: error}"), echo("c", "j"), says("e", "sorry", ""), join("j")
    )
    assert await finished(text, {}) == {"e": "sorry", "j": {"c": {}}}


async def test_an_error_can_be_routed_into_the_join() -> None:
    text = organism(echo("a", "b", "c"), fails("b", "j, {to: j, on: error}"), echo("c", "j"), join("j"))
    outcome, log = await pump(text, {"x": 1})
    assert isinstance(outcome, Finished)
    output = plain(outcome.output)
    assert isinstance(output, dict)
    report = output["b"]
    assert isinstance(report, dict)
    error = report["error"]
    assert isinstance(error, dict)
    assert (error["listener"], report["input"], output["c"]) == ("b", {"x": 1}, {"x": 1})
    assert log.step("b").routed_to == ("j",), "a retry reads that the error was handled"


async def test_an_error_without_a_route_fails_the_execution() -> None:
    text = organism(echo("a", "b", "c"), fails("b", "j"), echo("c", "j"), join("j"))
    outcome, log = await pump(text, {})
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("b: ")
    assert steps_of(log, "j") == []


async def test_an_outer_join_waits_for_an_inner_one() -> None:
    text = organism(
        echo("a", "b", "c", "d"),
        echo("b", "inner"),
        echo("c", "inner"),
        echo("d", "outer"),
        join("inner", "e"),
        echo("e", "outer"),
        join("outer"),
    )
    assert await finished(text, 1) == {"d": 1, "e": {"b": 1, "c": 1}}


async def test_a_join_directly_after_a_join() -> None:
    text = organism(
        echo("a", "b", "c", "outer"), echo("b", "inner"), echo("c", "inner"), join("outer"), join("inner", "outer")
    )
    assert await finished(text, 1) == {"a": 1, "inner": {"b": 1, "c": 1}}


async def test_a_sender_in_a_cycle_answers_repeatedly() -> None:
    text = organism(
        "name: n, handler: calculate, config: {expression: payload.n + 1}, peers: [w]",
        "name: w, handler: transform, config: {output: {n: '{{ payload }}'}}, peers: [{to: n, when: payload.n < 3}, j]",
        join("j"),
    )
    text = text.replace("{{ payload }}", "{{ payload.result }}")
    assert await finished(text, {"n": 0}) == {"w": [{"n": 1}, {"n": 2}, {"n": 3}]}


async def test_a_listener_with_two_senders_answers_twice() -> None:
    text = organism(echo("a", "b", "c"), says("b", "1", "d"), says("c", "2", "d"), echo("d", "j"), join("j"))
    output = await finished(text, 0)
    assert isinstance(output, dict)
    answers = output["d"]
    assert isinstance(answers, list)
    assert sorted(map(str, answers)) == ["1", "2"]


async def test_a_join_as_the_target_of_a_trigger_handles_its_message() -> None:
    text = organism(echo("a", "b", "c"), echo("b", "j"), echo("c", "j"), join("j", "k"), echo("k"))
    outcome, log = await pump(text, "m", entry="j")
    assert outcome == Finished("m")
    assert next(step.message.key for step in log.steps) == ":j"


async def test_a_join_counts_as_one_message() -> None:
    text = organism(echo("a", "b", "c"), echo("b", "j"), echo("c", "j"), join("j"), execution="{max_iterations: 4}")
    assert await finished(text, 1) == {"b": 1, "c": 1}
    outcome, _ = await pump(text.replace("4}", "3}"), 1)
    assert outcome == Failed("j: more than 3 messages (execution.max_iterations)")


async def test_large_answers_are_joined_as_text() -> None:
    large = "x" * 100_000
    text = organism(echo("a", "b", "c"), echo("b", "j"), says("c", "1", "j"), join("j"))
    outcome, log = await pump(text, RawJson(f'"{large}"'))
    assert isinstance(outcome, Finished)
    assert isinstance(log.step("j").message.payload, RawJson)
    assert plain(outcome.output) == {"b": large, "c": 1}


async def test_many_small_answers_are_a_large_message() -> None:
    text = organism(
        "name: n, handler: transform, config: {output: {n: '{{ payload.n + 1 }}', text: '" + "y" * 500 + "'}}, "
        "peers: [{to: n, when: payload.n < 200}, j]",
        join("j"),
        execution="{max_iterations: 1000}",
    )
    outcome, log = await pump(text, {"n": 0})
    assert isinstance(outcome, Finished)
    assert isinstance(log.step("j").message.payload, RawJson)
    output = plain(outcome.output)
    assert isinstance(output, dict)
    answers = output["n"]
    assert isinstance(answers, list)
    assert [answer["n"] for answer in answers if isinstance(answer, dict)] == [*range(1, 201)]


async def test_a_delay_before_a_join_suspends_the_execution() -> None:
    wait = "name: b, handler: delay, config: {seconds: 60}, peers: [j]"
    text = organism(echo("a", "b", "c"), wait, echo("c", "j"), join("j"))
    outcome, first = await pump(text, "m")
    assert isinstance(outcome, Suspended)
    assert first.handled() == ["a", "b", "c"]
    early, log = await pump(text, "m", kept=first.steps)
    assert (early, log.handled()) == (outcome, [])
    due = [step._replace(completed_at=now()) if step.message.listener == "b" else step for step in first.steps]
    late, second = await pump(text, "m", kept=due)
    assert late == Finished({"b": "m", "c": "m"})
    assert second.handled() == ["b", "j"]


async def test_a_called_flow_before_a_join_suspends_the_execution() -> None:
    called_id = new_id()

    async def calls_flow(payload: JsonValue, context: BlockContext) -> Result:
        return Called(called_id)

    text = organism(echo("a", "b", "c"), "name: b, handler: calls_flow, peers: [j]", echo("c", "j"), join("j"))
    blocks = [block("calls_flow", calls_flow)]
    outcome, first = await pump(text, "m", blocks=blocks)
    assert isinstance(outcome, Suspended)
    assert outcome.called == (called_id,)
    called = {called_id: CalledResult(ExecutionStatus.SUCCESS, '{"x": 1}', None)}
    late, second = await pump(text, "m", kept=first.steps, blocks=blocks, called=called)
    assert late == Finished({"b": {"x": 1}, "c": "m"})
    assert second.handled() == ["b", "j"]


async def test_the_tools_of_an_agent_belong_to_its_branch() -> None:
    """The tool has an answer before the agent, and is also a listener with a branch of its own."""
    text = organism(
        echo("a", "agent", "t"), "name: agent, prompt: p, peers: [t, {to: j, on: answer}]", echo("t", "j"), join("j")
    )
    async with language_model([llm_calls(("t", {"input": 1})), llm_says("Done.")]) as model:
        outcome, log = await pump(text, "m", settings=settings_of(model))
    assert outcome == Finished({"agent": {"text": "Done."}, "t": "m"})
    assert log.handled() == ["a", "agent", "j", "t", "t"]
