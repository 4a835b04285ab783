"""Runs with joins that are interrupted after each saved change: the next run has the same result, and repeats nothing.

The organisms are random, from fixed seeds. Their answers depend only on their messages.
"""

from __future__ import annotations

import hashlib
import json
import random
from datetime import timedelta

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockContext, BlockError, Result, Wait
from bloxserver.clock import now
from bloxserver.engine.run.messages import Finished, Outcome, Step
from bloxserver.models.enums import NOT_NEEDED, StepStatus
from bloxserver.raw_json import plain
from tests.engine.pump_runs import Log, block, organism, pump
from tests.engine.run.join_runs import kept_of

SEEDS = range(20)


def in_any_order(value: JsonValue) -> JsonValue:
    """The value with its lists sorted, which are in the order of times, and without the numbers of attempts."""
    if isinstance(value, dict):
        return {name: in_any_order(member) for name, member in sorted(value.items()) if name != "attempt"}
    if isinstance(value, list):
        return sorted((in_any_order(item) for item in value), key=lambda item: json.dumps(item, sort_keys=True))
    return value


def number_of(key: str, payload: JsonValue) -> int:
    listener = key.removesuffix(":join").rpartition(":")[2]
    text = listener + json.dumps(in_any_order(payload), sort_keys=True)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4])


class Probe:
    """A block that answers with a number, fails or waits, depending on its message, and records the message's key."""

    def __init__(self) -> None:
        self.begun: list[str] = []

    async def __call__(self, payload: JsonValue, context: BlockContext) -> Result:
        self.begun.append(context.idempotency_key)
        number = number_of(context.idempotency_key, payload)
        if number % 6 == 0:
            raise BlockError("odd", "odd", retryable=False)
        answer: JsonValue = {"n": number}
        return Wait(now() + timedelta(milliseconds=number % 4), answer) if number % 3 == 0 else answer


def random_organism(seed: int, mode: str) -> str:
    """Layers of listeners with conditions and error routes. About half of those with several senders are joins."""
    chance = random.Random(seed)  # noqa: S311
    names = [f"l{number}" for number in range(chance.randint(7, 10))]
    senders = dict.fromkeys(names, 0)
    peers: dict[str, list[str]] = {}
    for number, name in enumerate(names[:-1]):
        later = names[number + 1 :]
        chosen = chance.sample(later, min(len(later), chance.randint(2, 3)))
        peers[name] = [to if chance.random() < 0.8 else f"{{to: {to}, when: payload.n % 2 == 0}}" for to in chosen]
        handler = chance.choice(later)
        peers[name].append(f"{{to: {handler}, on: error}}")
        for to in {*chosen, handler}:
            senders[to] += 1
    peers[names[-1]] = []
    listeners = [
        f"name: {name}, handler: probe, peers: [{', '.join(peers[name])}]"
        + (f", join: {mode}" if senders[name] > 1 and chance.random() < 0.6 else "")
        for name in names[:-1]
    ]
    last = f"name: {names[-1]}, handler: echo" + (f", join: {mode}" if senders[names[-1]] > 1 else "")
    return organism(*listeners, last, execution="{max_iterations: 1000}")


async def run(text: str, kept: list[Step], visible_after: timedelta) -> tuple[Outcome, Log, Probe]:
    probe = Probe()
    outcome, log = await pump(
        text, "start", entry="l0", kept=kept, blocks=[block("probe", probe)], visible_after=visible_after
    )
    return outcome, log, probe


def check_nothing_is_repeated(kept: list[Step], log: Log, probe: Probe) -> None:
    ended = {step.message.key: step for step in kept if not step.is_open}
    assert ended.keys().isdisjoint(probe.begun)
    for step in log.steps:
        assert step.message.key not in ended or step == ended[step.message.key]._replace(sequence=step.sequence)


def joined(steps: list[Step]) -> dict[str, JsonValue]:
    return {step.message.key: plain(step.message.payload) for step in steps if step.message.joined}


@pytest.mark.parametrize("seed", SEEDS)
async def test_all_has_the_same_result_after_each_interruption(seed: int) -> None:
    text, visible_after = random_organism(seed, "all"), timedelta(0) if seed % 2 else timedelta(days=1)
    outcome, log, probe = await run(text, [], visible_after)
    assert isinstance(outcome, Finished), outcome
    assert len(probe.begun) == len(set(probe.begun))
    for changes in range(len(log.changes)):
        kept = kept_of(log, changes)
        again, more, probe = await run(text, kept, visible_after)
        assert isinstance(again, Finished), again
        assert in_any_order(plain(again.output)) == in_any_order(plain(outcome.output)), changes
        check_nothing_is_repeated(kept, more, probe)
        assert joined(more.steps).items() <= (joined(more.steps) | joined(kept)).items(), "messages do not change"


@pytest.mark.parametrize("seed", SEEDS)
async def test_any_keeps_its_message_and_cancelled_steps_after_each_interruption(seed: int) -> None:
    text, visible_after = random_organism(seed, "any"), timedelta(0) if seed % 2 else timedelta(days=1)
    outcome, log, _ = await run(text, [], visible_after)
    assert isinstance(outcome, Finished), outcome
    for changes in range(len(log.changes)):
        kept = kept_of(log, changes)
        again, more, probe = await run(text, kept, visible_after)
        assert isinstance(again, Finished), again
        check_nothing_is_repeated(kept, more, probe)
        assert joined(more.steps).items() <= (joined(more.steps) | joined(kept)).items(), "messages do not change"


def test_the_organisms_have_joins_errors_and_cancelled_steps() -> None:
    joins = [random_organism(seed, "all").count("join: all") for seed in SEEDS]
    assert sum(number > 1 for number in joins) > len(SEEDS) / 2


async def test_some_steps_are_cancelled_and_some_fail() -> None:
    """Otherwise the other tests of this module would show little."""
    cancelled = failed = 0
    for seed in SEEDS:
        _, log, _ = await run(random_organism(seed, "any"), [], timedelta(days=1))
        cancelled += sum(step.error_code == NOT_NEEDED for step in log.steps)
        failed += sum(step.status is StepStatus.ERROR for step in log.steps)
    assert cancelled > len(SEEDS) / 3
    assert failed > len(SEEDS) / 3
