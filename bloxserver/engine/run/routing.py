"""Which listeners receive an answer or an error."""

from __future__ import annotations

import asyncio

from pydantic import JsonValue

from bloxserver.blocks.base import BlockError
from bloxserver.engine.run.messages import Step
from bloxserver.models.enums import StepStatus
from bloxserver.organism.model import Listener, Peer


class RoutingError(Exception):
    """An unhandled error, or a condition that cannot be evaluated: the execution has failed."""


async def route(listener: Listener, step: Step, execution_input: JsonValue) -> list[tuple[str, JsonValue]]:
    """The listeners that receive the result of a step which has ended, with their messages. Raises `RoutingError`."""
    if step.status is StepStatus.SUCCESS:
        scope: dict[str, JsonValue] = {"payload": step.output, "input": execution_input}
        peers = [peer for peer in listener.peers if peer.on == "answer"]
        if step.routed_to is not None:
            peers = [peer for peer in peers if peer.to in step.routed_to]
        return [(peer.to, step.output) for peer in peers if await _holds(listener, peer, scope)]
    error: dict[str, JsonValue] = {
        "listener": listener.name,
        "code": step.error_code,
        "message": step.error,
        "attempt": step.attempt,
    }
    scope = {"payload": step.message.payload, "input": execution_input, "error": error}
    report: JsonValue = {"error": error, "input": step.message.payload}
    handlers = [
        (peer.to, report) for peer in listener.peers if peer.on == "error" and await _holds(listener, peer, scope)
    ]
    if not handlers:
        raise RoutingError(failure_text(listener, step))
    return handlers


def failure_text(listener: Listener, step: Step) -> str:
    """The listener, the attempt if it has several, and the error."""
    attempts = listener.retries + 1 + step.interruptions
    attempt = f" (attempt {step.attempt} of {attempts})" if attempts > 1 else ""
    return f"{listener.name}{attempt}: {step.error}"


async def _holds(listener: Listener, peer: Peer, scope: dict[str, JsonValue]) -> bool:
    if peer.when is None:
        return True
    await asyncio.sleep(0)  # a thousand conditions must not block the event loop
    try:
        return peer.when.holds(scope)
    except BlockError as error:
        raise RoutingError(
            f'{listener.name}: the condition for "{peer.to}" cannot be evaluated: {error.message}'
        ) from None
