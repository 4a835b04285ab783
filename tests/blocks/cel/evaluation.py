"""Evaluates expressions as a step does."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.blocks.cel.values import MAX_ISOLATED_STEPS, Budget, Invocation
from bloxserver.blocks.expressions import evaluate

MOMENT = datetime(2026, 1, 2, 3, 4, 5, 600, tzinfo=UTC)


def value(text: str, payload: JsonValue = None) -> JsonValue:
    budget = Budget(MAX_ISOLATED_STEPS, invocation=Invocation(MOMENT, "key"))
    return evaluate(text, {"payload": payload, "input": None}, budget)


def failure(text: str, payload: JsonValue = None) -> str:
    """Evaluate an expression that fails. Return the message."""
    with pytest.raises(BlockError) as caught:
        value(text, payload)
    assert caught.value.code == "expression_failed"
    return caught.value.message
