"""The pump without a database: routing, saved steps, and resumption from saved steps."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import Block, BlockContext, BlockError, Called, NoConfig, Result
from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.clock import now
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run import batches
from bloxserver.engine.run import pump as pump_module
from bloxserver.engine.run.messages import Change, Failed, Finished, Message, Suspended
from bloxserver.engine.run.pump import Pump
from bloxserver.ids import new_id
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.organism.parse import parse
from tests.engine.pump_runs import Anything, Log, block, echo, organism, pump, pump_of


async def test_chain_passes_answers_to_the_next_listener() -> None:
    outcome, log = await pump(organism(echo("a", "b"), echo("b", "c"), echo("c")), {"x": 1})
    assert outcome == Finished({"x": 1})
    assert [step.message.listener for step in log.steps] == ["a", "b", "c"]
    assert [step.message.parent_id for step in log.steps] == [None, log.steps[0].id, log.steps[1].id]
    assert len(log.changes) == 3, "the last step and the outcome are saved together"
    assert [step.status for step in log.saved] == ["success", "running", "success", "running", "success"]
    assert [step.sequence for step in log.saved] == [1, 2, 3, 4, 5]


async def test_an_answer_goes_to_every_peer_and_leaves_are_the_output() -> None:
    outcome, log = await pump(organism(echo("a", "b", "c"), echo("b"), echo("c")), 7)
    assert outcome == Finished({"b": 7, "c": 7})
    assert log.handled() == ["a", "b", "c"]


async def test_a_peer_of_several_handles_each_message() -> None:
    outcome, log = await pump(organism(echo("a", "b", "c"), echo("b", "d"), echo("c", "d"), echo("d")), "m")
    assert outcome == Finished({"d": ["m", "m"]})
    assert log.handled() == ["a", "b", "c", "d", "d"]
    assert len({step.message.key for step in log.steps}) == 5


@pytest.mark.parametrize(("target", "handled"), [(None, ["a", "b"]), ("b", ["b"])])
async def test_the_target_is_the_entry(target: str | None, handled: list[str]) -> None:
    _, log = await pump(organism(echo("a", "b"), echo("b")), entry=target)
    assert log.handled() == handled


async def test_a_loop_ends_at_max_iterations() -> None:
    outcome, log = await pump(organism(echo("a", "b"), echo("b", "a"), execution="{max_iterations: 5}"))
    assert outcome == Failed("b: more than 5 messages (execution.max_iterations)")
    assert len(log.steps) == 5


async def test_failing_block_fails_the_execution_with_its_error() -> None:
    broken = "name: b, handler: transform, config: {output: '{{ payload.missing }}'}"
    outcome, log = await pump(organism(echo("a", "b"), broken), {})
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("b: ")
    assert "payload.missing" in outcome.error
    assert [(step.message.listener, step.status) for step in log.steps] == [
        ("a", StepStatus.SUCCESS),
        ("b", StepStatus.ERROR),
    ]


async def test_listener_exceeding_its_timeout_fails() -> None:
    slow = "name: a, handler: http.request, timeout_seconds: 0.01, config: {url: 'http://192.0.2.1:80/'}"
    outcome, _ = await pump(organism(slow))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("a: ")


async def test_finished_steps_of_an_earlier_run_are_not_run_again() -> None:
    text = organism(echo("a", "b"), echo("b", "c"), echo("c"))
    _, first = await pump(text, "new")
    kept = [step._replace(output="kept") for step in first.steps[:2]]
    outcome, second = await pump(text, "new", kept=kept)
    assert outcome == Finished("kept")
    assert second.handled() == ["c"], "a and b were spared"


async def test_delay_suspends_the_execution_after_other_branches_ended() -> None:
    wait = "name: b, handler: delay, config: {seconds: 60}, peers: [d]"
    text = organism(echo("a", "b", "c"), wait, echo("c"), echo("d"))
    before = now()
    outcome, first = await pump(text, "m")
    assert isinstance(outcome, Suspended)
    assert before + timedelta(seconds=60) <= outcome.until <= now() + timedelta(seconds=60)
    assert first.handled() == ["a", "b", "c"]

    early, log = await pump(text, "m", kept=first.steps)
    assert early == outcome
    assert log.handled() == [], "nothing is due, nothing is written again"

    due = [step._replace(completed_at=now()) for step in first.steps]
    late, second = await pump(text, "m", kept=due)
    assert late == Finished({"c": "m", "d": "m"})
    assert {step.message.listener: step.status for step in second.steps} == {
        "b": StepStatus.SUCCESS,
        "d": StepStatus.SUCCESS,
    }


async def test_conditions_select_the_receiving_peers() -> None:
    text = organism(
        "name: a, handler: echo, peers: [{to: big, when: payload.n > 10}, {to: small, when: payload.n <= 10}, all]",
        echo("big"),
        echo("small"),
        echo("all"),
    )
    assert (await pump(text, {"n": 11}))[0] == Finished({"big": {"n": 11}, "all": {"n": 11}})
    assert (await pump(text, {"n": 10}))[0] == Finished({"small": {"n": 10}, "all": {"n": 10}})


async def test_answer_without_a_matching_condition_is_output() -> None:
    text = organism("name: a, handler: echo, peers: [{to: b, when: payload > 10}]", echo("b"))
    assert (await pump(text, 1))[0] == Finished(1, is_filtered=True)


async def test_condition_that_cannot_be_evaluated_fails_the_execution() -> None:
    text = organism("name: a, handler: echo, peers: [{to: b, when: payload.score > 3}]", echo("b"))
    outcome, _ = await pump(text, {"scores": 4})
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith('a: the condition for "b" cannot be evaluated: ')


async def test_error_goes_to_the_error_peer() -> None:
    text = organism(
        "name: a, handler: fails, peers: [b, {to: c, on: error}, {to: d, on: error, when: error.code == 'other'}]",
        echo("b"),
        echo("c"),
        echo("d"),
    )

    async def fails(payload: JsonValue, context: BlockContext) -> Result:
        raise BlockError("broken", "it broke")

    outcome, log = await pump(text, {"x": 1}, blocks=[block("fails", fails)])
    error: JsonValue = {"listener": "a", "code": "broken", "message": "it broke", "attempt": 1}
    assert outcome == Finished({"error": error, "input": {"x": 1}})
    assert log.handled() == ["a", "c"]
    again, second = await pump(text, {"x": 1}, kept=log.steps[:1], blocks=[block("fails", fails)])
    assert (again, second.handled()) == (outcome, ["c"]), "the failed step is not run again: its error was taken"


async def test_message_is_retried_with_its_attempt_number() -> None:
    tries: list[str] = []

    async def flaky(payload: JsonValue, context: BlockContext) -> Result:
        tries.append(context.idempotency_key)
        if len(tries) < 3:
            raise BlockError("busy", "come back")
        return "done"

    text = organism("name: a, handler: flaky, retries: 2, backoff_seconds: 0.001")
    outcome, log = await pump(text, blocks=[block("flaky", flaky)])
    assert outcome == Finished("done")
    assert [(step.status, step.attempt, step.error) for step in log.saved] == [
        (StepStatus.RETRYING, 1, "come back"),
        (StepStatus.RETRYING, 2, "come back"),
        (StepStatus.SUCCESS, 3, None),
    ]
    assert len(set(tries)) == 1, "all attempts have the same idempotency key"


@pytest.mark.parametrize(("retryable", "attempts"), [(True, 3), (False, 1)])
async def test_last_error_names_its_attempt(retryable: bool, attempts: int) -> None:
    async def fails(payload: JsonValue, context: BlockContext) -> Result:
        raise BlockError("busy", "no", retryable=retryable)

    text = organism("name: a, handler: fails, retries: 2, backoff_seconds: 0.001")
    outcome, log = await pump(text, blocks=[block("fails", fails)])
    assert outcome == Failed(f"a (attempt {attempts} of 3): no")
    assert log.step("a").attempt == attempts


async def test_long_backoff_suspends_the_execution() -> None:
    async def fails(payload: JsonValue, context: BlockContext) -> Result:
        raise BlockError("busy", "no", retry_after=100)

    text = organism("name: a, handler: fails, retries: 1")
    outcome, first = await pump(text, blocks=[block("fails", fails)])
    assert isinstance(outcome, Suspended)
    assert outcome.until >= now() + timedelta(seconds=99)
    assert (await pump(text, kept=first.steps, blocks=[block("fails", fails)]))[0] == outcome
    due = [first.steps[0]._replace(completed_at=now())]
    assert (await pump(text, kept=due, blocks=[block("fails", fails)]))[0] == Failed("a (attempt 2 of 2): no")


async def test_an_interrupted_step_runs_again_under_its_id() -> None:
    text = organism(echo("a", "b"), echo("b"))
    _, first = await pump(text, "m")
    begun = [step for step in first.saved if step.status is StepStatus.RUNNING or step.message.listener == "a"]
    outcome, second = await pump(text, "m", kept=begun)
    assert outcome == Finished("m")
    assert [step.id for step in second.steps] == [first.step("b").id]
    assert second.steps[0].sequence > first.saved[1].sequence


async def test_branch_sends_to_the_first_matching_case() -> None:
    branch = (
        "name: a, handler: branch, config: {cases: [{when: payload > 10, to: big}, {when: payload > 5, to: middle}], "
        "otherwise: small}"
    )
    text = organism(branch, echo("big"), echo("middle"), echo("small"))
    for payload, taken in ((11, "big"), (6, "middle"), (1, "small")):
        outcome, log = await pump(text, payload)
        assert (outcome, log.handled()) == (Finished(payload), sorted(["a", taken]))
        again, second = await pump(text, payload, kept=log.steps[:1])
        assert (again, second.handled()) == (outcome, [taken]), "an earlier run's choice holds"


class TestCalls:
    TEXT = organism("name: a, handler: calls, peers: [b]", echo("b"))

    @staticmethod
    def calling(execution_id: UUID) -> list[Block[Anything, NoConfig]]:
        async def calls(payload: JsonValue, context: BlockContext) -> Result:
            return Called(execution_id)

        return [block("calls", calls)]

    async def test_caller_suspends_and_continues_with_the_answer(self) -> None:
        child = new_id()
        outcome, first = await pump(self.TEXT, blocks=self.calling(child))
        assert isinstance(outcome, Suspended)
        assert outcome.called == (child,)
        for result, expected in (
            (CalledResult(ExecutionStatus.SUCCESS, '{"x": 1}', None), Finished({"x": 1})),
            (
                CalledResult(ExecutionStatus.ERROR, None, "b: no"),
                Failed(f"a: the called execution {child} ended as error: b: no"),
            ),
        ):
            again, _ = await pump(
                self.TEXT,
                kept=first.steps,
                called={child: result},
                blocks=self.calling(child),
            )
            assert again == expected

    async def test_deleted_called_execution_is_an_error(self) -> None:
        child = new_id()
        _, first = await pump(self.TEXT, blocks=self.calling(child))
        outcome, _ = await pump(self.TEXT, kept=first.steps, blocks=self.calling(child))
        assert outcome == Failed("a: the called execution no longer exists")


async def test_secret_is_replaced_and_never_saved() -> None:
    text = organism(
        'name: a, handler: http.request, config: {url: "http://127.0.0.1:1/{{ secrets.KEY }}"}',
    )
    outcome, log = await pump(text, secrets={"KEY": "canary-4711"})
    assert isinstance(outcome, Failed)
    assert "canary-4711" not in repr(log.changes)


async def test_slow_step_is_saved_as_running() -> None:
    seen = asyncio.Event()

    async def waits(payload: JsonValue, context: BlockContext) -> Result:
        await seen.wait()
        return "done"

    text = organism("name: a, handler: waits")
    log = Log()

    async def save(change: Change) -> None:
        await log.save(change)
        seen.set()

    parsed = parse(text, BlockRegistry([block("waits", waits)]))
    async with asyncio.timeout(20):
        outcome = await pump_of(parsed, save, visible_after=timedelta(0)).run(Message("a", None))
    assert outcome == Finished("done")
    assert [step.status for step in log.saved] == [StepStatus.RUNNING, StepStatus.SUCCESS]
    assert len({step.id for step in log.saved}) == 1


async def test_every_listener_can_refer_to_the_input() -> None:
    text = organism(
        "name: a, handler: transform, config: {output: {n: 1}}, peers: [{to: b, when: input.order > payload.n}]",
        'name: b, handler: text.template, config: {template: "{{ input.order }}/{{ payload.n }}"}, peers: [c]',
        "name: c, handler: transform, config: {expression: input.order + size(payload.text)}",
    )
    assert (await pump(text, {"order": 7}))[0] == Finished(10)


class Panic(BaseException):
    """A `BaseException`, as panics of Rust extensions raise it."""


@pytest.mark.parametrize(
    ("answered", "reason"),
    [
        (float("nan"), "the answer is not JSON: Out of range float values"),
        (object(), "the answer is not JSON: Object of type object"),
        ("x" * 9_000_000, "the answer is larger than"),
        (Panic("no"), "internal error"),
        (BlockError("c" * 65, "told"), "told"),
    ],
)
async def test_execution_ends_for_any_result_of_a_block(answered: object, reason: str) -> None:
    async def act(payload: JsonValue, context: BlockContext) -> Result:
        if isinstance(answered, BaseException):
            raise answered
        return answered  # type: ignore[return-value]

    outcome, log = await pump(organism("name: a, handler: act"), blocks=[block("act", act)])
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith(f"a: {reason}")
    assert len(log.step("a").error_code or "") <= 64


async def test_wake_up_after_the_last_step_does_not_keep_the_run_open(monkeypatch: pytest.MonkeyPatch) -> None:
    """An agent that wakes the pump may have been abandoned with the step that is in the batch before."""
    monkeypatch.setattr(batches, "MAX_MESSAGES", 1)
    runs: list[Pump] = []

    async def wake(payload: JsonValue, context: BlockContext) -> Result:
        asyncio.get_running_loop().call_soon(runs[0]._inbox.put_nowait, None)
        return "last"

    parsed = parse(organism("name: a, handler: wake"), BlockRegistry([block("wake", wake)]))
    runs.append(pump_of(parsed, Log().save))
    async with asyncio.timeout(10):
        assert await runs[0].run(Message("a", None)) == Finished("last")


async def test_limited_number_of_steps_is_handled_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "MAX_STARTED", 3)
    running: list[int] = []
    numbers: list[int] = []

    async def count(payload: JsonValue, context: BlockContext) -> Result:
        running.append(1)
        for _ in range(50):  # others begin meanwhile
            await asyncio.sleep(0)
        numbers.append(len(running))
        running.pop()
        return payload

    names = [f"b{number}" for number in range(10)]
    text = organism(echo("a", *names), *(f"name: {name}, handler: count" for name in names))
    outcome, log = await pump(text, 7, blocks=[block("count", count)])
    assert outcome == Finished(dict.fromkeys(names, 7))
    assert log.handled() == ["a", *names]
    assert (len(numbers), max(numbers)) == (10, 3)


async def test_call_of_a_step_starts_although_the_limit_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pump_module, "MAX_STARTED", 1)
    entry = Message("a", None)
    runs: list[Pump] = []

    async def ask(payload: JsonValue, context: BlockContext) -> Result:
        return str((await runs[0].call(entry, "tool", 5, "c1")).output)

    registry = BlockRegistry([*get_registry().blocks, block("ask", ask)])
    parsed = parse(organism("name: a, handler: ask", echo("tool")), registry)
    runs.append(pump_of(parsed, Log().save))
    async with asyncio.timeout(10):
        assert await runs[0].run(entry) == Finished("5")
