"""Attempts and conditions whose messages are too large for the event loop: they run in another process."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import BlockContext, BlockError, IsolatedTasks
from bloxserver.blocks.cel.values import Invocation
from bloxserver.engine.run.effects import Effect, carry_out
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.organism.compiled import compiled_listener
from bloxserver.organism.model import Listener
from bloxserver.raw_json import RawJson, Value, text_of_value, value_of_text

MAX_EFFECTS = 100
"""The maximum number of effects of one attempt."""
MAX_CONFIG_CHARACTERS = 8 * 1024
RENDERED_ONLY = frozenset({"email.send"})
"""Blocks that use only their config, and that this process runs with the config that the other one filled in."""


def needs_process(listener: Listener, *values: Value) -> bool:
    """Whether an attempt is too large for the event loop. Agents are not: they send their message as it is."""
    if listener.block is agent:
        return False
    return any(isinstance(value, RawJson) for value in values) or config_size(listener) > MAX_CONFIG_CHARACTERS


def config_size(listener: Listener) -> int:
    """The characters in the texts of a config. Configs are small: the size of a definition is limited."""
    size, pending = 0, [*listener.given_config.values()]
    while pending and size <= MAX_CONFIG_CHARACTERS:
        value = pending.pop()
        size += len(value) if isinstance(value, str) else 8
        if isinstance(value, dict):
            pending.extend(value.values())
        elif isinstance(value, list):
            pending.extend(value)
    return size


async def run_large(
    isolated: IsolatedTasks,
    listener: Listener,
    values: Sequence[Value],
    context: BlockContext,
    secrets: Mapping[str, str],
) -> tuple[Value, dict[str, Any]]:
    """Run a block in another process. Return its redacted answer, and what else it decided. Raises `BlockError`.

    `values` are the message, the input of the execution, and an object of the other names in expressions.
    """
    header: dict[str, Any] = {
        "listener": compiled_listener(listener),
        "secrets": dict(secrets),
        "idempotency_key": context.idempotency_key,
        "moment": context.clock().isoformat(),
        "invocation": _described(context.budget.invocation),
        "depth": context.depth,
        "sender": context.mail.sender,
        "only_config": listener.block.name in RENDERED_ONLY,
        "results": [],
    }
    contents: list[bytes] = []

    def request() -> bytes:
        texts = (text_of_value(value).encode() for value in values)
        return join_parts([json.dumps(header).encode(), *texts, *contents])

    for _ in range(MAX_EFFECTS):
        written, content = split_parts(await isolated.run("attempt.run", request))
        described: dict[str, Any] = json.loads(written)
        if "error" in described:
            raise BlockError(**described["error"])
        if "effect" not in described:
            return value_of_text(content.decode()), described
        result = await carry_out(Effect(described["effect"], described["arguments"], content), context)
        header["results"].append({"value": result.value, "error": result.error})
        contents.append(result.content)
    raise BlockError("too_many_effects", f"the block has more than {MAX_EFFECTS} effects", retryable=False)


async def evaluate_large(
    isolated: IsolatedTasks,
    conditions: Sequence[str],
    on: str,
    scope: Mapping[str, Value],
    invocation: Invocation | None = None,
) -> list[bool | BlockError]:
    """The values of conditions, or the errors of those that cannot be evaluated. Raises `BlockError`."""
    header = {"conditions": [*conditions], "on": on, "names": [*scope], "invocation": _described(invocation)}

    def request() -> bytes:
        return join_parts([json.dumps(header).encode(), *(text_of_value(value).encode() for value in scope.values())])

    results = json.loads(await isolated.run("attempt.conditions", request))
    return [
        result if isinstance(result, bool) else BlockError(result["code"], result["message"], retryable=False)
        for result in results
    ]


def _described(invocation: Invocation | None) -> dict[str, str] | None:
    return None if invocation is None else {"moment": invocation.moment.isoformat(), "key": invocation.key}


async def list_large(
    isolated: IsolatedTasks, for_each: str, scope: Mapping[str, Value], invocation: Invocation
) -> list[str]:
    """The items of a loop, as JSON texts. Raises `BlockError`."""
    header = {"for_each": for_each, "names": [*scope], "invocation": _described(invocation)}

    def request() -> bytes:
        return join_parts([json.dumps(header).encode(), *(text_of_value(value).encode() for value in scope.values())])

    written, *items = split_parts(await isolated.run("attempt.items", request))
    error = json.loads(written)
    if error is not None:
        raise BlockError(error["code"], error["message"], retryable=False)
    return [item.decode() for item in items]


async def redact_large(isolated: IsolatedTasks, value: RawJson, secrets: Mapping[str, str]) -> Value:
    """The value without its secrets. Raises `BlockError`."""

    def request() -> bytes:
        return join_parts([json.dumps(dict(secrets)).encode(), value.text.encode()])

    return value_of_text((await isolated.run("attempt.redact", request)).decode())


async def read_large_input(isolated: IsolatedTasks, text: str) -> Value:
    """The payload of the entry for a large input. Raises `BlockError`."""
    return value_of_text((await isolated.run("attempt.input", text.encode())).decode())
