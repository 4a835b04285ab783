"""Transactions of one execution have a limited size."""

from __future__ import annotations

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.clock import now
from bloxserver.engine.run.batches import MAX_CHARACTERS, MAX_MESSAGES, Batch, characters_of, divide
from bloxserver.engine.run.messages import Finished, Message, Step
from bloxserver.ids import new_id
from bloxserver.models.enums import StepStatus
from bloxserver.organism.parse import parse
from bloxserver.raw_json import RawJson, Value
from tests.engine.pump_runs import Log, echo, organism, pump

LARGE = RawJson('"' + "x" * 600_000 + '"')
TEXT = organism(echo("a", "b", "c", "d"), echo("b"), echo("c"), echo("d"))


def message(payload: Value) -> Message:
    return Message("a", payload)


@pytest.mark.parametrize(
    ("sizes", "wanted"),
    [
        ([], [[]]),
        ([1, 2], [[1, 2]]),
        ([MAX_CHARACTERS, 1], [[MAX_CHARACTERS], [1]]),
        ([MAX_CHARACTERS + 1, MAX_CHARACTERS + 1], [[MAX_CHARACTERS + 1], [MAX_CHARACTERS + 1]]),
        ([1, MAX_CHARACTERS - 1, 1], [[1, MAX_CHARACTERS - 1], [1]]),
    ],
)
def test_messages_are_divided_by_their_size(sizes: list[int], wanted: list[list[int]]) -> None:
    batches = divide([message("x" * size) for size in sizes])
    assert [[characters_of(each.payload) for each in batch] for batch in batches] == wanted


def test_a_batch_is_full_at_its_number_of_messages_or_characters() -> None:
    parsed = parse(TEXT, get_registry())
    step = Step(message(None), "echo", StepStatus.SUCCESS, now(), output=LARGE)
    small = Batch(parsed)
    large = Batch(parsed)
    full: list[tuple[bool, bool]] = []
    for number in range(MAX_MESSAGES):
        small.add(None)
        if number < 2:
            large.add(step)
        full.append((small.is_full, large.is_full))
    assert full[0] == (False, False)
    assert full[-2:] == [(False, True), (True, True)]


def size(log: Log) -> int:
    """The most characters that were saved at once."""
    return max(
        sum(characters_of(step.message.payload if step.status is StepStatus.RUNNING else step.output) for step in saved)
        for saved in (change.steps for change in log.changes)
    )


async def test_a_large_answer_to_many_listeners_is_saved_in_several_transactions() -> None:
    outcome, log = await pump(TEXT, LARGE)
    assert isinstance(outcome, Finished)
    assert log.handled() == ["a", "b", "c", "d"]
    assert size(log) <= 2 * MAX_CHARACTERS


async def test_a_run_that_ended_between_two_batches_continues_with_the_rest() -> None:
    _, log = await pump(TEXT, LARGE)
    first = log.changes[0].steps
    assert [step.message.listener for step in first] == ["a", "b"]
    outcome, resumed = await pump(TEXT, LARGE, kept=first)
    assert isinstance(outcome, Finished)
    assert resumed.handled() == ["b", "c", "d"]
    keys = {step.message.key for step in log.steps}
    assert {step.message.key for step in resumed.steps} <= keys


def test_item_of_a_loop_counts_without_the_peers_of_its_listener() -> None:
    batch = Batch(parse(TEXT, get_registry()))
    item = Message("a", None, new_id(), "[0]")
    for _ in range(MAX_MESSAGES - 1):
        batch.add(Step(item, "echo", StepStatus.SUCCESS, now()))
    assert not batch.is_full, "the answer of an item goes to its loop, and not to the peers"
