"""Division of executions and steps into transactions."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import UUID

import pytest

from bloxserver.engine.background.expired import Expired, Position, StepSize
from bloxserver.engine.background.retention_batches import MAX_BYTES, MAX_ROWS, Batch, batches_of

NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


def expired(number: int, size: int = 0) -> Expired:
    return Expired(Position("normal", NOON, UUID(int=number)), size)


def steps(execution: int, number: int, size: int = 10) -> list[StepSize]:
    return [StepSize(UUID(int=execution), UUID(int=1000 * execution + step), size) for step in range(number)]


def shape(batches: list[Batch]) -> list[tuple[int, list[int]]]:
    """For each batch, the number of steps and the executions."""
    return [(len(batch.steps), [execution_id.int for execution_id in batch.execution_ids]) for batch in batches]


@pytest.mark.parametrize(
    ("executions", "own", "wanted"),
    [
        ([], [], []),
        ([expired(1)], [], [(0, [1])]),
        ([expired(2), expired(1)], [*steps(1, 3), *steps(2, 1)], [(4, [1, 2])]),
        # more rows than one transaction deletes
        (
            [expired(1), expired(2), expired(3)],
            [*steps(1, 300), *steps(2, 300), *steps(3, 3)],
            [(300, [1]), (303, [2, 3])],
        ),
        ([expired(1)], steps(1, MAX_ROWS + 100), [(MAX_ROWS, []), (100, [1])]),
        ([expired(1)], steps(1, MAX_ROWS), [(MAX_ROWS, []), (0, [1])]),
        # more bytes
        ([expired(1, MAX_BYTES), expired(2, 1)], [], [(0, [1]), (0, [2])]),
        ([expired(1)], steps(1, 3, MAX_BYTES // 2), [(2, []), (1, [1])]),
        ([expired(1)], steps(1, 2, 2 * MAX_BYTES), [(1, []), (1, []), (0, [1])]),
    ],
)
def test_batches_are_limited_and_keep_executions_with_their_steps(
    executions: list[Expired], own: list[StepSize], wanted: list[tuple[int, list[int]]]
) -> None:
    batches = list(batches_of(executions, own, complete=True))
    assert shape(batches) == wanted
    assert all(batch.size <= MAX_BYTES or len(batch.steps) + len(batch.execution_ids) == 1 for batch in batches)


def test_execution_with_unread_steps_is_left_out() -> None:
    batches = list(batches_of([expired(number) for number in (1, 2, 3)], [*steps(1, 2), *steps(2, 3)], complete=False))
    assert shape(batches) == [(5, [1])]
