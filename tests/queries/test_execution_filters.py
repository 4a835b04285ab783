"""Filters of lists of executions. `test_execution_lists` compares them with filters in Python."""

from __future__ import annotations

from bloxserver.models.enums import ExecutionStatus, TriggerType
from bloxserver.queries.execution_filters import ExecutionFilter


def test_filters_with_different_values_have_the_same_shape() -> None:
    first = ExecutionFilter(min_duration_ms=0, trigger_types=(TriggerType.MANUAL,))
    second = ExecutionFilter(min_duration_ms=7, trigger_types=(TriggerType.MANUAL, TriggerType.WEBHOOK))
    assert first.shape == second.shape
    assert repr(first) != repr(second)


def test_filters_with_different_conditions_have_different_shapes() -> None:
    filters = [
        ExecutionFilter(),
        ExecutionFilter(statuses=(ExecutionStatus.ERROR,)),
        ExecutionFilter(statuses=(ExecutionStatus.TIMEOUT,)),
        ExecutionFilter(has_error=True),
        ExecutionFilter(has_error=False),
        ExecutionFilter(filtered=True),
        ExecutionFilter(filtered=False),
        ExecutionFilter(min_duration_ms=0),
        ExecutionFilter(error_text="x"),
    ]
    assert len({one.shape for one in filters}) == len(filters)


def test_texts_differ_only_for_filters_that_are_given() -> None:
    texts = {str(ExecutionFilter(filtered=given)) for given in (None, True, False)}
    assert len(texts) == 3
    assert "filtered" not in str(ExecutionFilter())


def test_total_is_maintained_without_filters_and_for_statuses_only() -> None:
    assert ExecutionFilter().shape.has_maintained_total
    assert ExecutionFilter(statuses=(ExecutionStatus.ERROR, ExecutionStatus.SUCCESS)).shape.has_maintained_total
    assert not ExecutionFilter(statuses=(ExecutionStatus.ERROR,), has_error=False).shape.has_maintained_total
    assert not ExecutionFilter(error_text="x").shape.has_maintained_total
