"""What an attempt does before and after it calls a block. Needs no client and no event loop."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import BaseModel, JsonValue, ValidationError

from bloxserver.blocks import templates
from bloxserver.blocks.base import BlockConfig, BlockContext, BlockError
from bloxserver.blocks.json_values import MAX_ANSWER_BYTES
from bloxserver.blocks.names import SECRETS
from bloxserver.organism.model import Listener
from bloxserver.raw_json import RawJson, Value, is_large
from bloxserver.storable import json_text

MAX_LOCATION = 200
_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False)


def validated_payload(listener: Listener, payload: JsonValue) -> BaseModel:
    """The message, as the block's model has it. Raises `BlockError`."""
    try:
        validated: BaseModel = listener.block.payload.model_validate(payload)
    except ValidationError as error:
        raise BlockError("invalid_payload", f"invalid payload: {_first(error)}", retryable=False) from None
    return validated


def checked_answer(answer: Value) -> Value:
    """The answer of a block, if it can be stored; as text if it is large. Raises `BlockError`."""
    try:
        text = answer.text if isinstance(answer, RawJson) else _ENCODER.encode(answer)
    except (TypeError, ValueError, RecursionError) as error:
        reason = str(error).partition("\n")[0][:200]
        raise BlockError("invalid_answer", f"the answer is not JSON: {reason}", retryable=False) from None
    if len(text) > MAX_ANSWER_BYTES:
        message = f"the answer is larger than {MAX_ANSWER_BYTES} characters"
        raise BlockError("invalid_answer", message, retryable=False)
    if isinstance(answer, RawJson) or not is_large(text):
        return answer
    return RawJson(json_text(answer))


def rendered_config(
    listener: Listener, payload: JsonValue, context: BlockContext, secrets: Mapping[str, str]
) -> BlockConfig:
    """The config with its placeholders replaced. Raises `BlockError` and `CostLimitExceeded`."""
    if not listener.templates:
        return listener.config
    return validated_config(listener, filled_config(listener, payload, context, secrets))


def filled_config(
    listener: Listener, payload: JsonValue, context: BlockContext, secrets: Mapping[str, str]
) -> dict[str, JsonValue]:
    """The config as written, with its placeholders replaced in one pass: inserted text is not rendered again.

    Raises `BlockError` and `CostLimitExceeded`.
    """
    scope: dict[str, JsonValue] = {**context.scope(payload), SECRETS: dict(secrets)}
    return {
        name: templates.render(value, scope, context.budget) if name in listener.templates else value
        for name, value in listener.given_config.items()
    }


def validated_config(listener: Listener, filled: dict[str, JsonValue]) -> BlockConfig:
    """Raises `BlockError`."""
    try:
        config: BlockConfig = listener.block.config.model_validate(filled)
    except ValidationError as error:
        message = f"invalid config after its placeholders were replaced: {_first(error)}"
        raise BlockError("invalid_config", message, retryable=False) from None
    return config


def _first(error: ValidationError) -> str:
    reason = error.errors(include_input=False, include_url=False, include_context=False)[0]
    location = ".".join(str(part) for part in reason["loc"])[:MAX_LOCATION] or "payload"
    return f"{location}: {reason['msg'].removeprefix('Value error, ')}"
