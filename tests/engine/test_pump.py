"""The pump alone: which listener gets what, what is saved when, and what an earlier run spares."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from bloxserver.api.models.enums import StepStatus
from bloxserver.api.models.types import now
from bloxserver.blocks.base import BlockContext
from bloxserver.blocks.registry import get_registry
from bloxserver.clients.http import GuardedClient
from bloxserver.engine.pump import Failed, Finished, Message, Outcome, Parked, Pump, Step
from bloxserver.organism.parse import parse


@dataclass
class Log:
    """What a pump saved, save by save."""

    saves: list[tuple[list[Step], Outcome | None]] = field(default_factory=list)

    async def save(self, steps: Sequence[Step], outcome: Outcome | None) -> None:
        self.saves.append((list(steps), outcome))

    @property
    def steps(self) -> list[Step]:
        return [step for steps, _ in self.saves for step in steps]

    def handled(self) -> list[str]:
        return sorted(step.message.listener for step in self.steps)


def organism(*listeners: str, execution: str = "{}") -> str:
    lines = "\n".join(f"  - {{description: d, {listener}}}" for listener in listeners)
    return f"organism: {{name: test}}\nlisteners:\n{lines}\nexecution: {execution}\n"


def echo(name: str, *peers: str) -> str:
    return f"name: {name}, handler: echo, peers: [{', '.join(peers)}]"


async def pump(
    text: str, payload: Any = None, *, kept: Sequence[Step] = (), entry: str | None = None
) -> tuple[Outcome, Log]:
    log = Log()
    http = GuardedClient()

    def context_of(message: Message) -> BlockContext:
        return BlockContext(http=http, clock=now, idempotency_key=message.key)

    parsed = parse(text, get_registry())
    outcome = await Pump(parsed, kept, context_of, log.save).run(Message(parsed.entry(entry).name, payload))
    await http.aclose()
    assert log.saves[-1][1] == outcome
    return outcome, log


async def test_a_chain_hands_its_answer_on() -> None:
    outcome, log = await pump(organism(echo("a", "b"), echo("b", "c"), echo("c")), {"x": 1})
    assert outcome == Finished({"x": 1})
    assert [step.message.listener for step in log.steps] == ["a", "b", "c"]
    assert [step.message.parent_id for step in log.steps] == [None, log.steps[0].id, log.steps[1].id]
    assert len(log.saves) == 3, "the last step and the outcome are saved together"


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


async def test_a_failing_block_fails_the_execution_and_is_told() -> None:
    broken = "name: b, handler: transform, config: {output: '{{ payload.missing }}'}"
    outcome, log = await pump(organism(echo("a", "b"), broken), {})
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("b: ")
    assert "payload.missing" in outcome.error
    assert [(step.message.listener, step.status) for step in log.steps] == [
        ("a", StepStatus.SUCCESS),
        ("b", StepStatus.ERROR),
    ]


async def test_a_listener_gets_its_time_and_no_more() -> None:
    slow = "name: a, handler: http.request, timeout_seconds: 0.01, config: {url: 'http://192.0.2.1:80/'}"
    outcome, _ = await pump(organism(slow))
    assert isinstance(outcome, Failed)
    assert outcome.error.startswith("a: ")


async def test_finished_steps_of_an_earlier_run_are_not_run_again() -> None:
    text = organism(echo("a", "b"), echo("b", "c"), echo("c"))
    _, first = await pump(text, "new")
    kept = [
        Step(s.message, s.handler, s.status, s.started_at, s.completed_at, "kept", id=s.id) for s in first.steps[:2]
    ]
    outcome, second = await pump(text, "new", kept=kept)
    assert outcome == Finished("kept")
    assert second.handled() == ["c"], "a and b were spared"


async def test_a_delay_parks_the_execution_and_other_branches_go_on() -> None:
    wait = "name: b, handler: delay, config: {seconds: 60}, peers: [d]"
    text = organism(echo("a", "b", "c"), wait, echo("c"), echo("d"))
    before = now()
    outcome, first = await pump(text, "m")
    assert isinstance(outcome, Parked)
    assert before + timedelta(seconds=60) <= outcome.until <= now() + timedelta(seconds=60)
    assert first.handled() == ["a", "b", "c"]

    early, log = await pump(text, "m", kept=first.steps)
    assert early == outcome
    assert log.handled() == [], "nothing is due, nothing is written again"

    due = [
        Step(s.message, s.handler, s.status, s.started_at, min(s.completed_at, now()), s.output, id=s.id)
        for s in first.steps
    ]
    late, second = await pump(text, "m", kept=due)
    assert late == Finished({"c": "m", "d": "m"})
    assert {step.message.listener: step.status for step in second.steps} == {
        "b": StepStatus.SUCCESS,
        "d": StepStatus.SUCCESS,
    }
