"""The pump alone: the results of called executions, while other branches run and after a resumption."""

from __future__ import annotations

import asyncio
from typing import Self

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, Called, Result
from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.clock import now
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.messages import Change, Finished, Message, Suspended
from bloxserver.ids import new_id
from bloxserver.models.enums import ExecutionStatus, StepStatus
from bloxserver.organism.parse import parse
from tests.engine.pump_runs import Log, block, echo, organism, pump, pump_of


class TestCalls:
    """Called executions that end while other branches run."""

    CALLING = organism(
        echo("a", "b", "c"),
        "name: b, handler: calls, peers: [d, {to: e, on: error}]",
        "name: c, handler: waits",
        echo("d"),
        echo("e"),
    )

    async def test_answer_of_a_call_is_routed_while_another_branch_runs(self) -> None:
        async with Calling(self.CALLING) as calling:
            assert calling.pump.pending_calls == {calling.called_id}
            calling.pump.resolve_calls({calling.called_id: CalledResult(ExecutionStatus.SUCCESS, '"answer"', None)})
            assert calling.pump.pending_calls == frozenset()
            await calling.until("d", StepStatus.SUCCESS)
            calling.gate.set()
            assert await calling.outcome == Finished({"c": "waited", "d": "answer"})

    async def test_results_of_running_and_unrelated_executions_change_nothing(self) -> None:
        async with Calling(self.CALLING) as calling:
            running = CalledResult(ExecutionStatus.RUNNING, None, None)
            calling.pump.resolve_calls({calling.called_id: running, new_id(): running})
            calling.pump.resolve_calls({})
            assert calling.pump.pending_calls == {calling.called_id}
            calling.gate.set()
            assert isinstance(await calling.outcome, Suspended)
            assert calling.pump.pending_calls == frozenset(), "the end of the called execution resumes it"

    @pytest.mark.parametrize(
        ("result", "code"),
        [(None, "call_lost"), (CalledResult(ExecutionStatus.CANCELLED, None, "no"), "call_failed")],
        ids=["gone", "cancelled"],
    )
    async def test_called_execution_that_failed_is_an_error(self, result: CalledResult | None, code: str) -> None:
        async with Calling(self.CALLING) as calling:
            calling.pump.resolve_calls({calling.called_id: result})
            await calling.until("e", StepStatus.SUCCESS)
            calling.gate.set()
            assert isinstance(await calling.outcome, Finished)
            assert calling.log.step("b").error_code == code

    @pytest.mark.parametrize("turns", range(12))
    async def test_a_result_that_arrives_while_the_last_branch_ends_is_handled(self, turns: int) -> None:
        """Evaluating a condition yields to the event loop while the run ends. The result arrives in that moment."""
        text = self.CALLING.replace("handler: waits", "handler: waits, peers: [{to: e, when: payload == 1}]")
        async with Calling(text) as calling:
            calling.gate.set()
            for _ in range(turns):
                await asyncio.sleep(0)
            calling.pump.resolve_calls({calling.called_id: CalledResult(ExecutionStatus.SUCCESS, '"answer"', None)})
            outcome = await calling.outcome
            if not isinstance(outcome, Suspended):
                assert outcome == Finished({"c": "waited", "d": "answer"})


class Calling:
    """A run whose listener b has called an execution, and whose listener c waits for the gate."""

    def __init__(self, text: str) -> None:
        self.called_id = new_id()
        self.gate = asyncio.Event()
        self.log = Log()
        self._called, self._saved = asyncio.Event(), asyncio.Condition()

        async def calls(payload: JsonValue, context: BlockContext) -> Result:
            return Called(self.called_id)

        async def waits(payload: JsonValue, context: BlockContext) -> Result:
            await self.gate.wait()
            return "waited"

        blocks = [*get_registry().blocks, block("calls", calls), block("waits", waits)]
        self.pump = pump_of(parse(text, BlockRegistry(blocks)), self._save, on_call=self._called.set)

    async def _save(self, change: Change) -> None:
        await self.log.save(change)
        async with self._saved:
            self._saved.notify_all()

    async def until(self, listener: str, status: StepStatus) -> None:
        async with asyncio.timeout(10), self._saved:
            await self._saved.wait_for(
                lambda: any((step.message.listener, step.status) == (listener, status) for step in self.log.saved)
            )

    async def __aenter__(self) -> Self:
        self.outcome = asyncio.create_task(self.pump.run(Message("a", "m")))
        async with asyncio.timeout(10):
            await self._called.wait()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.outcome.cancel()
        await asyncio.wait({self.outcome})


async def test_resumed_run_does_not_end_before_saved_steps_are_followed() -> None:
    """A delay that is due must not end the run before the finished steps of a longer branch were read again."""
    wait = "name: b, handler: delay, config: {seconds: 60}"
    text = organism(echo("a", "b", "c"), wait, echo("c", "d"), echo("d", "e"), echo("e"))
    _, first = await pump(text, "m")
    due = [step._replace(completed_at=now()) for step in first.steps]
    assert (await pump(text, "m", kept=due))[0] == Finished({"b": "m", "e": "m"})
