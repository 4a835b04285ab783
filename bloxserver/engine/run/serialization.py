"""Conversion between the pump's values and database rows."""

from __future__ import annotations

import json
from dataclasses import asdict
from math import isfinite
from typing import Any
from uuid import UUID

from pydantic import JsonValue

from bloxserver.blocks.base import StepWarning
from bloxserver.engine.run.messages import Message, Step, Tokens, join_key
from bloxserver.models.enums import StepStatus
from bloxserver.models.tables import ExecutionStepRecord
from bloxserver.raw_json import RawJson, Value, value_of_text
from bloxserver.storable import json_text, storable_text

BYTE_ORDER_MARK = "\ufeff"
MAX_INPUT_DEPTH = 200
"""Levels of nesting in an input that is read as JSON; pydantic supports 255, other libraries fewer than a thousand."""


def payload_of(text: str | None) -> JsonValue:
    """The payload of the entry: the input if it is JSON and not nested too deep, else `{"text": input}`.

    No input is an empty object. A byte order mark before JSON is ignored.
    """
    if text is None:
        return {}
    try:
        value: JsonValue = json.loads(text.removeprefix(BYTE_ORDER_MARK), parse_constant=_finite, parse_float=_finite)
    except (ValueError, RecursionError):
        return {"text": text}
    return {"text": text} if _is_deep(text, value) else value


def _is_deep(text: str, value: JsonValue) -> bool:
    """Whether a value is nested deeper than `MAX_INPUT_DEPTH`."""
    if text.count("[") + text.count("{") <= MAX_INPUT_DEPTH:
        return False
    level: list[JsonValue] = [value]
    for _ in range(MAX_INPUT_DEPTH):
        level = [
            child
            for parent in level
            if isinstance(parent, list | dict)
            for child in (parent if isinstance(parent, list) else parent.values())
        ]
        if not level:
            return False
    return any(isinstance(child, list | dict) for child in level)


def _finite(number: str) -> float:
    """A number that JSON can represent: not NaN, and not too large for a float."""
    value = float(number)
    if not isfinite(value):
        raise ValueError("not a finite number")
    return value


def text_of_output(value: Value) -> str:
    """The JSON text of an execution's output."""
    return value.text if isinstance(value, RawJson) else json_text(value)


class JsonTextCache:
    """JSON texts of values that appear in several rows, as an answer to several listeners does."""

    def __init__(self) -> None:
        self._texts: dict[int, tuple[JsonValue, str]] = {}

    def of(self, value: Value) -> str:
        if isinstance(value, RawJson):
            return value.text
        if not isinstance(value, list | dict | str):
            return json_text(value)
        known = self._texts.get(id(value))
        if known is None:
            # The value is stored with its text, so that its id is not reused.
            known = self._texts[id(value)] = (value, json_text(value))
        return known[1]


def step_row(step: Step, execution_id: UUID, texts: JsonTextCache, *, known: bool) -> dict[str, Any]:
    """The row of a step. The input of a `known` step is already stored, and is left out."""
    has_output = step.status in (StepStatus.SUCCESS, StepStatus.WAITING)
    return {
        "id": step.id,
        "execution_id": execution_id,
        "key": step.message.key,
        "parent_id": step.message.parent_id,
        "sequence": step.sequence,
        "listener": step.message.listener,
        "handler": step.handler,
        "status": step.status,
        "attempt": step.attempt,
        "interruptions": step.interruptions,
        "input_payload": None if known else texts.of(step.message.payload),
        "output_payload": texts.of(step.output) if has_output else None,
        "error_message": None if step.error is None else storable_text(step.error),
        "error_code": step.error_code,
        "started_at": step.started_at,
        "completed_at": step.completed_at,
        "duration_ms": step.duration_ms,
        "input_tokens": step.tokens.input,
        "output_tokens": step.tokens.output,
        "routed_to": None if step.routed_to is None else list(step.routed_to),
        "called_id": step.called_id,
        "warnings": [asdict(warning) for warning in step.warnings] or None,
        "state": None if step.state is None else texts.of(step.state),
    }


def step_of_row(record: ExecutionStepRecord) -> Step:
    """A stored step."""
    prefix = f"{record.parent_id or ''}:{record.listener}"
    message = Message(
        record.listener,
        value_of_text(record.input_payload or "null"),
        record.parent_id,
        record.key[len(prefix) + 1 :] if len(record.key) > len(prefix) else None,
        record.key == join_key(record.listener),
        record.id,
    )
    return Step(
        message=message,
        handler=record.handler or "",
        status=record.status,
        started_at=record.started_at,
        completed_at=record.completed_at,
        output=value_of_text(record.output_payload or "null"),
        error=record.error_message,
        error_code=record.error_code,
        attempt=record.attempt,
        interruptions=record.interruptions,
        routed_to=None if record.routed_to is None else tuple(record.routed_to),
        called_id=record.called_id,
        state=value_of_text(record.state or "null"),
        tokens=Tokens(record.input_tokens, record.output_tokens),
        sequence=record.sequence,
        warnings=tuple(StepWarning(**warning) for warning in record.warnings or ()),
    )
