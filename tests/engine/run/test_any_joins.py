"""The pump alone: a join with `any` takes the first message, and cancels the branches that are not needed."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, Result
from bloxserver.clock import now
from bloxserver.engine.run import batches
from bloxserver.engine.run.messages import Finished, Message, Step
from bloxserver.models.enums import NOT_NEEDED, StepStatus
from tests.engine.pump_runs import block, echo, organism, pump
from tests.engine.run.join_runs import Branches, finished, join, kept_of, says, steps_of
from tests.engine.run.test_agents import settings_of
from tests.llm_server import calls, language_model

SUCCESS, CANCELLED = StepStatus.SUCCESS, StepStatus.CANCELLED


RACE = organism(
    echo("a", "b", "c"),
    says("b", "fast", "j"),
    "name: c, handler: slow, peers: [d, {to: e, on: error}]",
    echo("d", "j"),
    echo("e"),
    join("j", "k", mode="any"),
    echo("k"),
)


async def test_the_first_answer_is_the_message_and_the_other_branch_is_cancelled() -> None:
    branches = Branches()
    outcome, log = await pump(RACE, "m", blocks=branches.blocks)
    assert outcome == Finished("fast")
    assert log.handled() == ["a", "b", "c", "j", "k"]
    assert log.step("j").message.parent_id == log.step("b").id
    cancelled = log.step("c")
    assert (cancelled.status, cancelled.error_code) == (CANCELLED, NOT_NEEDED)
    assert branches.stopped == branches.begun


async def test_a_cancelled_step_is_saved_with_the_message_of_the_join() -> None:
    _, log = await pump(RACE, "m", blocks=Branches().blocks)
    (change,) = [each for each in log.changes if any(step.status is CANCELLED for step in each.steps)]
    assert [(step.message.listener, step.status) for step in change.steps] == [
        ("b", SUCCESS),
        ("c", CANCELLED),
        ("j", StepStatus.RUNNING),
    ]


async def test_a_step_whose_answer_is_needed_elsewhere_goes_on() -> None:
    branches = Branches()
    branches.gate.set()
    text = organism(
        echo("a", "b", "c"),
        says("b", "fast", "j"),
        "name: c, handler: slow, peers: [j, other]",
        echo("other"),
        join("j", mode="any"),
    )
    assert await finished(text, "m", blocks=branches.blocks) == {"j": "fast", "other": "slow"}


async def test_answers_at_the_same_time_are_one_message() -> None:
    text = organism(echo("a", "b", "c", "d"), *(echo(name, "j") for name in "bcd"), join("j", mode="any"))
    outcome, log = await pump(text, 1)
    assert outcome == Finished(1)
    assert len(steps_of(log, "j")) == 1


@pytest.mark.parametrize(
    "slow",
    [
        "handler: delay, config: {seconds: 3600}",
        "handler: failing, retries: 9, backoff_seconds: 600",
    ],
    ids=["delay", "retries"],
)
async def test_a_waiting_step_is_cancelled(slow: str) -> None:
    text = organism(
        echo("a", "b", "c"),
        f"name: c, {slow}, peers: [j]",
        "name: b, handler: later, peers: [j]",
        join("j", mode="any"),
    )

    async def later(payload: JsonValue, context: BlockContext) -> Result:
        await asyncio.sleep(0.1)
        return "later"

    outcome, log = await pump(text, "m", blocks=[block("later", later), *Branches().blocks])
    assert outcome == Finished("later")
    assert log.step("c").status is CANCELLED


async def test_a_join_with_all_is_cancelled_with_its_branch() -> None:
    text = organism(
        echo("a", "b", "c", "d"),
        says("b", "fast", "first"),
        echo("c", "both"),
        "name: d, handler: slow, peers: [both]",
        join("both", "first"),
        join("first", mode="any"),
    )
    branches = Branches()
    outcome, log = await pump(text, "m", blocks=branches.blocks)
    assert outcome == Finished("fast")
    assert steps_of(log, "both") == []
    assert log.step("d").status is CANCELLED


async def test_a_join_that_waits_for_a_cancelled_step_goes_on() -> None:
    """The error of c would lead to the join `last`. After its cancellation, nothing else does."""
    text = organism(
        echo("a", "b", "c", "g"),
        says("b", "fast", "first"),
        "name: c, handler: slow, peers: [first, {to: e, on: error}]",
        echo("e", "last"),
        echo("g", "last"),
        join("first", mode="any"),
        join("last"),
    )
    assert await finished(text, "m", blocks=Branches().blocks) == {"first": "fast", "last": {"g": "m"}}


async def test_a_cancelled_step_stays_cancelled_in_the_next_run() -> None:
    first = Branches()
    _, log = await pump(RACE, "m", blocks=first.blocks)
    number = next(n for n, each in enumerate(log.changes) if any(step.status is CANCELLED for step in each.steps))
    second = Branches()
    outcome, again = await pump(RACE, "m", kept=kept_of(log, number + 1), blocks=second.blocks)
    assert outcome == Finished("fast")
    assert second.begun == []
    assert again.handled() == ["j", "k"]


async def test_an_open_step_of_an_earlier_run_is_cancelled_if_the_join_has_its_message() -> None:
    """Its result was about to be saved when the worker died."""
    _, log = await pump(RACE, "m", blocks=Branches().blocks)
    kept = [
        step._replace(status=StepStatus.RUNNING, completed_at=None, error=None, error_code=None)
        if step.message.listener == "c"
        else step
        for step in log.steps
    ]
    second = Branches()
    outcome, again = await pump(RACE, "m", kept=kept, blocks=second.blocks)
    assert outcome == Finished("fast")
    assert second.begun == []
    assert again.step("c").status is CANCELLED


async def test_a_branch_that_is_not_needed_does_not_go_on_in_the_next_run() -> None:
    """The branch c ended with the join's decision; the winning branch is longer, and is found again later."""
    text = organism(
        echo("a", "b", "c"), echo("b", "w"), echo("w", "j"), echo("c", "d"),
        "name: d, handler: counted, peers: [j]", join("j", mode="any"),
    )  # fmt: skip
    _, log = await pump(text, 1, blocks=Branches().blocks)
    kept = [step for step in log.steps if step.message.listener in "abcw"]
    winner = next(step for step in kept if step.message.listener == "w")
    message = Message("j", 1, winner.id, joined=True)
    kept.append(Step(message, "echo", StepStatus.RUNNING, now(), sequence=99))
    branches = Branches()
    outcome, again = await pump(text, 1, kept=kept, blocks=branches.blocks)
    assert outcome == Finished(1)
    assert branches.begun == []
    assert again.handled() == ["j"]


async def test_a_step_that_has_ended_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each step is taken alone, so the result of c waits while the join decides."""
    monkeypatch.setattr(batches, "MAX_MESSAGES", 1)
    gate = asyncio.Event()

    async def first(payload: JsonValue, context: BlockContext) -> Result:
        gate.set()
        return payload

    async def second(payload: JsonValue, context: BlockContext) -> Result:
        await gate.wait()
        return payload

    text = organism(
        echo("a", "c", "b"),
        "name: b, handler: first, peers: [j]",
        "name: c, handler: second, peers: [j]",
        join("j", mode="any"),
    )
    outcome, log = await pump(text, 1, blocks=[block("first", first), block("second", second)])
    assert outcome == Finished(1)
    assert log.step("j").message.parent_id == log.step("b").id
    assert [step.status for step in log.saved if step.message.listener in "bc"][-2:] == [SUCCESS, SUCCESS]
    assert not any(step.status is CANCELLED for step in log.saved)


async def test_the_open_calls_of_a_cancelled_agent_are_cancelled() -> None:
    branches, called = Branches(), asyncio.Event()

    async def tool(payload: JsonValue, context: BlockContext) -> Result:
        called.set()
        return await branches.slow(payload, context)

    async def fast(payload: JsonValue, context: BlockContext) -> Result:
        await called.wait()
        return "fast"

    text = organism(
        echo("a", "b", "c"),
        "name: b, handler: fast, peers: [j]",
        "name: c, prompt: p, peers: [t, {to: j, on: answer}]",
        "name: t, handler: tool",
        join("j", mode="any"),
    )
    async with language_model([calls(("t", {"input": 1}))]) as model:
        blocks = [block("tool", tool), block("fast", fast)]
        outcome, log = await pump(text, "m", settings=settings_of(model), blocks=blocks)
    assert outcome == Finished("fast")
    assert [(log.step(name).status, log.step(name).error_code) for name in "ct"] == [(CANCELLED, NOT_NEEDED)] * 2
    assert branches.stopped == [log.step("t").message.key]
