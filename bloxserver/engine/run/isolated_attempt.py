"""Attempts at large messages, in a process of their own: bytes to bytes. See `large_messages` for the other side."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from pydantic import BaseModel, JsonValue

from bloxserver.blocks.base import Awaited, BlockConfig, BlockContext, BlockError, Called, Result, Routed, Stop, Wait
from bloxserver.blocks.cel.values import MAX_ISOLATED_STEPS, Budget, CostLimitExceeded, Invocation
from bloxserver.blocks.expressions import evaluate_items, holds
from bloxserver.blocks.names import CONDITION_NAMES
from bloxserver.blocks.registry import get_registry
from bloxserver.engine.run.blocks import checked_answer, filled_config, rendered_config, validated_payload
from bloxserver.engine.run.effects import EffectNeeded, EffectResult, RecordedEffects
from bloxserver.engine.run.serialization import payload_of
from bloxserver.isolation.functions import find_function
from bloxserver.isolation.limits import TaskLimits
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.organism.compiled import load_listener
from bloxserver.organism.model import Listener
from bloxserver.raw_json import Value, plain, text_of_value
from bloxserver.redaction import redact
from bloxserver.storable import json_text

TOO_COSTLY = {"code": "expression_too_costly", "message": "the expressions and templates take too many steps"}


class DirectCalls:
    """Calls functions directly, since this process is isolated already."""

    async def run(self, function: str, request: bytes | Callable[[], bytes], limits: TaskLimits | None = None) -> bytes:
        return find_function(function)(request() if callable(request) else request)


def run_attempt(request: bytes) -> bytes:
    """Run a block. The parts of the request are a header, the payload, the input, an object of the other names in
    expressions, and the contents of effects.
    """
    header, payload, execution_input, names, *contents = split_parts(request)
    given = json.loads(header)
    secrets: dict[str, str] = given["secrets"]
    try:
        answer, described = _run(given, json.loads(payload), json.loads(execution_input), json.loads(names), contents)
    except EffectNeeded as needed:
        return _response({"effect": needed.effect.kind, "arguments": needed.effect.arguments}, needed.effect.content)
    except CostLimitExceeded:
        return _response({"error": TOO_COSTLY | {"retryable": False}})
    except BlockError as error:
        message = str(redact(error.message, secrets))
        described = {"code": error.code, "message": message, "retryable": error.retryable}
        return _response({"error": described | {"retry_after": error.retry_after}})
    if not given["only_config"]:
        answer = redact(plain(answer), secrets)
    return _response(described, text_of_value(checked_answer(answer)).encode())


def _run(
    given: dict[str, Any],
    payload: JsonValue,
    execution_input: JsonValue,
    names: dict[str, JsonValue],
    contents: list[bytes],
) -> tuple[Value, dict[str, Any]]:
    listener = load_listener(given["listener"], get_registry())
    results = [
        EffectResult(**result, content=content) for result, content in zip(given["results"], contents, strict=True)
    ]
    clients = cast(Any, RecordedEffects(results, given["sender"]))
    moment = datetime.fromisoformat(given["moment"])
    context = BlockContext(
        http=clients,
        clock=lambda: moment,
        idempotency_key=given["idempotency_key"],
        store=clients,
        flows=clients,
        mail=clients,
        isolated=DirectCalls(),
        input=execution_input,
        names=names,
        depth=given["depth"],
        budget=_budget(given),
    )
    if given["only_config"]:
        return filled_config(listener, payload, context, given["secrets"]), {"only_config": True}
    config = rendered_config(listener, payload, context, given["secrets"])
    match asyncio.run(_handled(listener, validated_payload(listener, payload), config, context)):
        case Wait(until, answer):
            return answer, {"until": until.isoformat()}
        case Routed(answer, to):
            return answer, {"to": to}
        case Called(execution_id):
            return None, {"called": str(execution_id)}
        case Stop(answer, error):
            return answer, {"stop": None if error is None else asdict(error)}
        case Awaited(question):
            return None, {"question": question}
        case answer:
            return answer, {}


def _budget(given: dict[str, Any]) -> Budget:
    described = given["invocation"]
    invocation = described and Invocation(datetime.fromisoformat(described["moment"]), described["key"])
    return Budget(MAX_ISOLATED_STEPS, isolated=True, invocation=invocation)


async def _handled(listener: Listener, payload: BaseModel, config: BlockConfig, context: BlockContext) -> Result:
    return await listener.block.handler(payload, config, context)


def evaluate_conditions(request: bytes) -> bytes:
    """Evaluate the conditions of peers. The parts of the request are a header, and the values of its names."""
    header, *values = split_parts(request)
    given = json.loads(header)
    scope = {name: json.loads(value) for name, value in zip(given["names"], values, strict=True)}
    budget = _budget(given)
    results: list[Any] = []
    for text in given["conditions"]:
        try:
            results.append(holds(text, scope, budget, CONDITION_NAMES[given["on"]]))
        except CostLimitExceeded:
            results.append(TOO_COSTLY)
        except BlockError as error:
            results.append({"code": error.code, "message": error.message})
    return json.dumps(results).encode()


def list_items(request: bytes) -> bytes:
    """Evaluate the expression of a loop. The parts of the response are an error or null, and the items."""
    header, *values = split_parts(request)
    given = json.loads(header)
    scope = {name: json.loads(value) for name, value in zip(given["names"], values, strict=True)}
    try:
        items = evaluate_items(given["for_each"], scope, _budget(given))
    except CostLimitExceeded:
        return _response(TOO_COSTLY)
    except BlockError as error:
        return _response({"code": error.code, "message": error.message})
    return join_parts([b"null", *(json_text(item).encode() for item in items)])


def read_input(request: bytes) -> bytes:
    """Return the payload of the entry as JSON text."""
    return json_text(payload_of(request.decode())).encode()


def redact_secrets(request: bytes) -> bytes:
    """Redact secrets in a JSON text."""
    secrets, text = split_parts(request)
    return json_text(redact(json.loads(text), cast(Mapping[str, str], json.loads(secrets)))).encode()


def _response(header: Mapping[str, Any], content: bytes = b"") -> bytes:
    return join_parts([json.dumps(header).encode(), content])
