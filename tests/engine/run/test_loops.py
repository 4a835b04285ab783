"""Loops: a listener with `for_each` handles each item of a list, in steps of their own."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from datetime import timedelta

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import STOPPING, BlockContext, BlockError, Result, Wait
from bloxserver.clock import now
from bloxserver.engine.run.batches import MAX_MESSAGES
from bloxserver.engine.run.loops import MAX_ITEMS
from bloxserver.engine.run.messages import Failed, Finished, Message, Outcome, Step, Suspended
from bloxserver.models.enums import StepStatus
from bloxserver.raw_json import RawJson, plain
from tests.engine.pump_runs import Log, block, echo, organism, pump
from tests.engine.run.test_agents import AGENT, settings_of
from tests.llm_server import calls, language_model, says

ROWS: JsonValue = {"rows": [{"n": n} for n in range(25)]}
LOOP = "name: a, handler: transform, for_each: payload.rows, config: {expression: '[index, payload.n]'}"
ACT = "name: a, handler: act, for_each: payload"


def items(log: Log, listener: str = "a") -> dict[int, Step]:
    """The items' steps of a listener, by position."""
    found = {step.message.index: step for step in log.steps if step.message.listener == listener}
    return dict(sorted((index, step) for index, step in found.items() if index is not None))


def output(outcome: Outcome) -> JsonValue:
    assert isinstance(outcome, Finished), outcome
    return plain(outcome.output)


class Acting:
    """A block that counts its calls by message, and the calls at the same time. Some messages fail, some wait."""

    def __init__(self, failing: dict[JsonValue, int] | None = None, waiting: set[int] | None = None) -> None:
        self.calls: Counter[str] = Counter()
        self.keys: dict[str, set[str]] = {}
        self.most = self.now = 0
        self._failing = failing or {}
        self._waiting = waiting or set()

    async def __call__(self, payload: JsonValue, context: BlockContext) -> Result:
        name = str(payload)
        self.calls[name] += 1
        self.keys.setdefault(name, set()).add(context.idempotency_key)
        self.now += 1
        self.most = max(self.most, self.now)
        for _ in range(60):
            await asyncio.sleep(0)
        self.now -= 1
        if self.calls[name] <= self._failing.get(name, 0):
            raise BlockError("broken", "it broke")
        if payload in self._waiting:
            return Wait(now() + timedelta(hours=1), payload)
        return payload


async def test_answer_is_the_list_of_answers_in_order() -> None:
    outcome, log = await pump(organism(LOOP + ", peers: [b]", echo("b")), ROWS)
    assert output(outcome) == [[n, n] for n in range(25)]
    assert log.handled() == ["a"] * 26 + ["b"]
    loop = next(step for step in log.steps if step.message.listener == "a" and step.message.index is None)
    assert {step.message.parent_id for step in items(log).values()} == {loop.id}
    assert [step.message.payload for step in items(log).values()] == [{"n": n} for n in range(25)]
    assert len({step.message.key for step in log.steps}) == 27


@pytest.mark.parametrize("parallel", [1, 3, 100])
async def test_no_more_than_parallel_items_are_handled_at_once(parallel: int) -> None:
    act = Acting()
    outcome, _ = await pump(organism(f"{ACT}, parallel: {parallel}"), [*range(12)], blocks=[block("act", act)])
    assert output(outcome) == [*range(12)]
    assert act.most == min(parallel, 12)


async def test_ten_items_are_handled_at_once_by_default() -> None:
    act = Acting()
    await pump(organism(ACT), [*range(30)], blocks=[block("act", act)])
    assert act.most == 10


async def test_empty_list_has_an_empty_answer() -> None:
    outcome, log = await pump(organism(ACT + ", peers: [b]", echo("b")), [], blocks=[block("act", Acting())])
    assert output(outcome) == []
    assert log.handled() == ["a", "b"]


@pytest.mark.parametrize(("payload", "kind"), [({"a": 1}, "an object"), (None, "null"), ("abc", "a text")])
async def test_other_values_are_an_error(payload: JsonValue, kind: str) -> None:
    outcome, log = await pump(organism(ACT + ", retries: 3"), payload, blocks=[block("act", Acting())])
    assert outcome == Failed(f"a: payload: the value is {kind}, not a list")
    assert log.step("a").error_code == "for_each_not_a_list"


async def test_error_of_the_list_goes_to_the_error_route() -> None:
    text = organism(ACT + ", peers: [{to: b, on: error}]", echo("b"))
    outcome, _ = await pump(text, {"a": 1}, blocks=[block("act", Acting())])
    error = output(outcome)
    assert isinstance(error, dict)
    assert isinstance(error["error"], dict)
    assert (error["error"]["code"], error["input"]) == ("for_each_not_a_list", {"a": 1})


async def test_items_do_not_count_towards_max_iterations() -> None:
    text = organism(LOOP + ", peers: [b]", echo("b"), execution="{max_iterations: 2}")
    assert isinstance((await pump(text, ROWS))[0], Finished)


async def test_retries_are_per_item() -> None:
    act = Acting(failing={"1": 2, "3": 1})
    text = organism(ACT + ", retries: 2, backoff_seconds: 0.001")
    outcome, log = await pump(text, [*range(5)], blocks=[block("act", act)])
    assert output(outcome) == [*range(5)]
    assert [step.attempt for step in items(log).values()] == [1, 3, 1, 2, 1]
    assert act.calls == {"0": 1, "1": 3, "2": 1, "3": 2, "4": 1}
    assert all(len(keys) == 1 for keys in act.keys.values())
    assert len(set.union(*act.keys.values())) == 5


async def test_timeout_is_per_item() -> None:
    async def sleep(payload: JsonValue, context: BlockContext) -> Result:
        if payload == "long":
            await asyncio.Event().wait()
        return payload

    text = organism(ACT + ", timeout_seconds: 0.05, on_item_error: collect")
    outcome, log = await pump(text, ["short", "long", "short"], blocks=[block("act", sleep)])
    answer = output(outcome)
    assert isinstance(answer, list)
    assert [answer[0], answer[2]] == ["short", "short"]
    assert items(log)[1].error_code == "listener_timeout"


async def test_failed_item_fails_the_loop_and_cancels_the_others() -> None:
    async def act(payload: JsonValue, context: BlockContext) -> Result:
        if payload == 1:
            raise BlockError("broken", "it broke", retryable=False)
        await asyncio.Event().wait()
        return None

    text = organism(ACT + ", retries: 3, parallel: 3, peers: [{to: b, on: error}]", echo("b"))
    outcome, log = await pump(text, [0, 1, 2, 3, 4], blocks=[block("act", act)])
    error = output(outcome)
    assert isinstance(error, dict)
    assert error["error"] == {"listener": "a", "code": "broken", "message": "item 1: it broke", "attempt": 1}
    statuses = {index: step.status for index, step in items(log).items()}
    assert statuses == {0: StepStatus.CANCELLED, 1: StepStatus.ERROR, 2: StepStatus.CANCELLED}


async def test_unhandled_error_names_the_item_and_its_attempt() -> None:
    act = Acting(failing={"2": 9})
    text = organism(ACT + ", retries: 1, backoff_seconds: 0.001")
    outcome, _ = await pump(text, [0, 1, 2], blocks=[block("act", act)])
    assert outcome == Failed("a: item 2 (attempt 2): it broke")


async def test_errors_are_collected_at_the_positions_of_their_items() -> None:
    act = Acting(failing={"1": 9})
    text = organism(ACT + ", retries: 1, backoff_seconds: 0.001, on_item_error: collect")
    outcome, log = await pump(text, [0, 1, 2], blocks=[block("act", act)])
    error = {"listener": "a", "code": "broken", "message": "it broke", "attempt": 2, "index": 1}
    assert output(outcome) == [0, {"error": error}, 2]
    assert [step.status.value for step in items(log).values()] == ["success", "error", "success"]


async def test_error_that_stops_the_execution_is_not_collected() -> None:
    async def act(payload: JsonValue, context: BlockContext) -> Result:
        raise BlockError(STOPPING[0], "the budget is used", retryable=False)

    text = organism(ACT + ", on_item_error: collect, peers: [{to: b, on: error}]", echo("b"))
    outcome, _ = await pump(text, [0], blocks=[block("act", act)])
    assert outcome == Failed("a: the budget is used")


async def test_too_many_items_are_an_error() -> None:
    # Only the expression makes so many items of a small message.
    digits = "payload.map(a, payload.map(b, payload.map(c, payload)))"
    text = organism(f"name: a, handler: echo, for_each: '{digits}.flatten().flatten().flatten()'")
    payload: JsonValue = [*range(11)]
    outcome, log = await pump(text, payload)
    assert outcome == Failed(f"a: the loops of an execution have at most {MAX_ITEMS:,} items together, not 14,641")
    assert log.step("a").error_code == "too_many_items"


async def test_items_of_all_loops_count_together_also_after_an_interruption(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bloxserver.engine.run.loops.MAX_ITEMS", 5)
    text = organism(
        "name: a, handler: echo, for_each: payload, peers: [b]", "name: b, handler: echo, for_each: payload"
    )
    whole, log = await pump(text, [0, 1, 2])
    assert whole == Failed("b: the loops of an execution have at most 5 items together, not 3 and 3")
    kept = [step for step in log.steps if step.message.listener == "a"]
    assert (await pump(text, [0, 1, 2], kept=kept))[0] == whole


async def test_items_wait_without_a_slot_and_later_items_begin_first() -> None:
    act = Acting(waiting={0, 2, 4, 6})
    text = organism(ACT + ", parallel: 3")
    outcome, log = await pump(text, [*range(8)], blocks=[block("act", act)])
    assert isinstance(outcome, Suspended)
    assert act.calls == {str(n): 1 for n in range(5)}  # 0, 2 and 4 wait now
    outcome, later = await pump(text, [*range(8)], kept=due(log), blocks=[block("act", act)])
    assert isinstance(outcome, Suspended)
    outcome, last = await pump(text, [*range(8)], kept=due(log, later), blocks=[block("act", act)])
    assert output(outcome) == [*range(8)]
    assert set(act.calls.values()) == {1}
    assert max(step.attempt for step in last.steps) == 1


async def test_execution_is_suspended_when_the_last_items_wait() -> None:
    """The tasks that have no more items are not what the loop waits for."""
    act = Acting(waiting={1})
    async with asyncio.timeout(20):
        outcome, _ = await pump(organism(ACT + ", parallel: 2"), [0, 1, 2, 3], blocks=[block("act", act)])
    assert isinstance(outcome, Suspended)
    assert act.calls == {str(n): 1 for n in range(4)}


def due(*logs: Log) -> list[Step]:
    """The steps of these runs, with waits that are over."""
    steps = {step.message.key: step for log in logs for step in log.steps}
    return [step._replace(completed_at=now()) if step.status is StepStatus.WAITING else step for step in steps.values()]


async def test_no_finished_item_is_repeated_from_any_saved_prefix() -> None:
    text = organism(ACT + ", parallel: 4, peers: [b]", echo("b"))
    act = Acting()
    whole, log = await pump(text, [*range(9)], blocks=[block("act", act)])
    for length in range(len(log.changes) + 1):
        saved: dict[str, Step] = {}
        for change in log.changes[:length]:
            saved |= {step.message.key: step for step in change.steps}
        again = Acting()
        outcome, _ = await pump(text, [*range(9)], kept=list(saved.values()), blocks=[block("act", again)])
        assert outcome == whole
        ended = {step.message.payload for step in saved.values() if step.message.index is not None and not step.is_open}
        assert set(again.calls) == {str(n) for n in range(9)} - set(map(str, ended))
        if saved:
            # The keys of items that are repeated are those of the first run.
            assert all(again.keys[name] == act.keys[name] for name in again.keys)


async def test_interrupted_item_counts_its_try_and_the_loop_does_not() -> None:
    text = organism(ACT)
    _, log = await pump(text, [0, 1], blocks=[block("act", Acting())])
    loop = log.saved[0]
    assert (loop.status, loop.message.index) == (StepStatus.RUNNING, None)
    item = items(log)[0]._replace(status=StepStatus.RUNNING, completed_at=None)
    _, later = await pump(text, [0, 1], kept=[loop, item], blocks=[block("act", Acting())])
    assert [step.attempt for step in items(later).values()] == [2, 1]
    assert [step.attempt for step in later.steps if step.message.index is None] == [1]


async def test_another_list_than_before_is_an_error() -> None:
    text = organism(ACT)
    _, log = await pump(text, [0, 1], blocks=[block("act", Acting())])
    changed = items(log)[1].message
    other = Message("a", "other", changed.parent_id, changed.call)
    kept = [log.saved[0], items(log)[0], items(log)[1]._replace(message=other)]
    outcome, _ = await pump(text, [0, 1], kept=kept, blocks=[block("act", Acting())])
    assert outcome == Failed("a: item 1 is not the one that was handled before: for_each gives another list now")


async def test_large_message_has_the_same_answer_as_a_small_one() -> None:
    rows: list[JsonValue] = [{"n": n, "pad": "x" * 300} for n in range(400)]
    text = organism(LOOP + ", parallel: 50")
    outcome, log = await pump(text, RawJson(json.dumps({"rows": rows})))
    assert output(outcome) == [[n, n] for n in range(400)]
    assert [step.message.payload for step in items(log).values()] == rows


async def test_large_answers_become_a_large_list() -> None:
    item: JsonValue = ["y" * 50] * 1_000
    outcome, log = await pump(organism("name: a, handler: echo, for_each: payload"), [item, [1]])
    assert output(outcome) == [item, [1]]
    assert isinstance(items(log)[0].output, RawJson)


@pytest.mark.parametrize("for_each", ["payload.missing", "payload.rows.map(r, r.missing)"])
async def test_failed_expression_is_an_error_for_small_and_large_messages(for_each: str) -> None:
    text = organism(f"name: a, handler: echo, for_each: '{for_each}'")
    for payload in (ROWS, RawJson(json.dumps({"rows": [{"pad": "x" * 50_000}]}))):
        _, log = await pump(text, payload)
        assert log.step("a").error_code == "expression_failed"


async def test_items_are_saved_in_groups() -> None:
    together = asyncio.Barrier(100)

    async def act(payload: JsonValue, context: BlockContext) -> Result:
        await together.wait()
        return payload

    _, log = await pump(organism(ACT + ", parallel: 100"), [*range(1_000)], blocks=[block("act", act)])
    assert len(items(log)) == 1_000
    assert len(log.changes) < 40
    assert max(len(change.steps) for change in log.changes) <= MAX_MESSAGES + 1


async def test_loops_follow_each_other() -> None:
    text = organism(
        "name: a, handler: transform, for_each: payload, config: {expression: '[payload, payload * 10]'}, peers: [b]",
        "name: b, handler: transform, for_each: payload.flatten(), config: {expression: payload + index}, "
        "peers: [c, d]",
        echo("c"),
        "name: d, handler: transform, config: {expression: payload.sum()}",
    )
    outcome, _ = await pump(text, [1, 2])
    assert output(outcome) == {"c": [1, 11, 4, 23], "d": 39}


async def test_expression_can_refer_to_the_input_and_to_earlier_answers() -> None:
    text = organism(
        "name: a, handler: transform, config: {expression: '[payload.n, 2]'}, peers: [b]",
        "name: b, handler: echo, for_each: '[input.n, steps.a.size(), payload.size()]'",
    )
    outcome, _ = await pump(text, {"n": 7})
    assert output(outcome) == [7, 2, 2]


async def test_tool_of_an_agent_can_be_a_loop() -> None:
    text = organism(AGENT, f"{LOOP}, peers: [c]", echo("c")).replace("[b", "[a2")
    text = text.replace("name: a, handler: transform", "name: b, handler: transform").replace("[a2", "[b")
    async with language_model([calls(("b", {"rows": [{"n": 5}, {"n": 6}]})), says("Done.")]) as model:
        outcome, log = await pump(text, "go", settings=settings_of(model))
        request = json.loads(model.server.received[0].body)
    assert outcome == Finished({"text": "Done."})
    assert [step.output for step in items(log, "b").values()] == [[0, 5], [1, 6]]
    called = next(step for step in log.steps if step.message.listener == "b" and step.message.index is None)
    assert called.output == [[0, 5], [1, 6]]
    (tool,) = (each["function"] for each in request["tools"] if each["function"]["name"] == "b")
    assert list(tool["parameters"]["properties"]) == ["rows"]


async def test_agent_answers_each_item() -> None:
    text = organism(AGENT.replace("name: a,", "name: a, for_each: payload, parallel: 1,"), echo("b"), echo("c"))
    async with language_model([says("One."), says("Two.")]) as model:
        outcome, log = await pump(text, ["first", "second"], settings=settings_of(model))
    assert outcome == Finished([{"text": "One."}, {"text": "Two."}])
    assert [step.tokens.output > 0 for step in items(log).values()] == [True, True]


@pytest.mark.parametrize("pad", ["", "x" * 50_000])
async def test_list_has_the_same_moment_and_ids_after_an_interruption(pad: str) -> None:
    text = organism("name: z, handler: echo, peers: [a]", "name: a, handler: echo, for_each: '[string(now()), uuid()]'")
    payload = RawJson(json.dumps([pad])) if pad else None
    whole, log = await pump(text, payload)
    last = items(log)[1]
    kept = [step for step in log.steps if step.message.key != last.message.key and step.message.listener == "z"]
    kept += [log.saved[1]._replace(output=None), items(log)[0]]
    assert (kept[1].status, kept[1].message.index) == (StepStatus.RUNNING, None)
    outcome, again = await pump(text, payload, kept=kept)
    assert outcome == whole
    answers = output(whole)
    assert isinstance(answers, list)
    assert items(again)[1].message.payload == answers[1]


async def test_collected_error_does_not_tell_a_limit() -> None:
    """A model could read the answer."""

    async def act(payload: JsonValue, context: BlockContext) -> Result:
        raise BlockError("agent_token_limit", "too many tokens", retryable=False)

    outcome, _ = await pump(organism(ACT + ", on_item_error: collect"), [0], blocks=[block("act", act)])
    assert "token" not in json.dumps(output(outcome))
