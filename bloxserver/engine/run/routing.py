"""Which listeners receive an answer or an error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import JsonValue

from bloxserver.blocks.base import STOPPING, BlockError, IsolatedTasks
from bloxserver.blocks.cel.values import MAX_STEPS, Budget, CostLimitExceeded, Invocation
from bloxserver.blocks.expressions import holds
from bloxserver.blocks.names import CONDITION_NAMES
from bloxserver.engine.run.error_reports import report_of
from bloxserver.engine.run.large_messages import evaluate_large
from bloxserver.engine.run.messages import Step, is_loop
from bloxserver.engine.run.names import ExecutionNames, input_for
from bloxserver.models.enums import StepStatus
from bloxserver.organism.model import Listener, Peer
from bloxserver.raw_json import RawJson, Value, object_of, plain


class RoutingContext(Protocol):
    """What conditions can refer to beside the answer, and where large values are evaluated."""

    @property
    def input(self) -> Value:
        """The input of the execution."""

    @property
    def isolated(self) -> IsolatedTasks:
        """Runs what is too large for the event loop."""

    @property
    def names(self) -> ExecutionNames:
        """The values of the other names."""

    async def turn(self) -> None:
        """Wait until the owner's next condition may be evaluated on the event loop."""


class RoutingError(Exception):
    """An unhandled error, or a condition that cannot be evaluated: the execution has failed."""


async def route(listener: Listener, step: Step, context: RoutingContext) -> list[tuple[str, Value]]:
    """The listeners that receive the result of a step which has ended, with their messages. Raises `RoutingError`."""
    if step.status is StepStatus.SUCCESS:
        scope: dict[str, Value] = {"payload": step.output}
        peers = [peer for peer in listener.peers if peer.on == "answer"]
        if step.routed_to is not None:
            peers = [peer for peer in peers if peer.to in step.routed_to]
        return [(peer.to, step.output) for peer in await _chosen(listener, peers, scope, context, step)]
    if step.error_code in STOPPING:
        raise RoutingError(failure_text(listener, step))
    error: dict[str, JsonValue] = {
        "listener": listener.name,
        "code": step.error_code,
        "message": step.error,
        "attempt": step.attempt,
    }
    scope = {"payload": step.message.payload, "error": error}
    report = object_of({"error": error | report_of(step)._asdict(), "input": step.message.payload})
    peers = [peer for peer in listener.peers if peer.on == "error"]
    handlers = [(peer.to, report) for peer in await _chosen(listener, peers, scope, context, step)]
    if not handlers:
        raise RoutingError(failure_text(listener, step))
    return handlers


def failure_text(listener: Listener, step: Step) -> str:
    """The listener, the attempt if it has several, and the error."""
    if is_loop(listener, step.message):
        return f"{listener.name}: {step.error}"
    attempts = listener.retries + 1 + step.interruptions
    attempt = f" (attempt {step.attempt} of {attempts})" if attempts > 1 else ""
    return f"{listener.name}{attempt}: {step.error}"


async def _chosen(
    listener: Listener, peers: Sequence[Peer], scope: Mapping[str, Value], context: RoutingContext, step: Step
) -> list[Peer]:
    """The peers without a condition, and those whose condition is true. Raises `RoutingError`."""
    conditional = [peer for peer in peers if peer.when is not None]
    if not conditional:
        return [*peers]
    names = {**scope, "input": input_for(listener, context.input), **context.names.of(listener)}
    holding = await _holding(listener, conditional, names, context, step)
    return [peer for peer in peers if peer.when is None or peer in holding]


async def _holding(
    listener: Listener, peers: Sequence[Peer], scope: Mapping[str, Value], context: RoutingContext, step: Step
) -> list[Peer]:
    if not any(isinstance(value, RawJson) for value in scope.values()):
        await context.turn()
        try:
            return _holding_here(
                listener, peers, {name: plain(value) for name, value in scope.items()}, _invocation(step)
            )
        except CostLimitExceeded:
            pass
    conditions = [peer.when for peer in peers if peer.when is not None]
    try:
        results = await evaluate_large(context.isolated, conditions, peers[0].on, scope, _invocation(step))
    except BlockError as error:
        raise _not_evaluated(listener, peers[0], error) from None
    for peer, result in zip(peers, results, strict=True):
        if isinstance(result, BlockError):
            raise _not_evaluated(listener, peer, result)
    return [peer for peer, result in zip(peers, results, strict=True) if result is True]


def _invocation(step: Step) -> Invocation:
    """What conditions know about the step. It is stored with it, so that they choose the same peers in each run."""
    return Invocation(step.completed_at or step.started_at, str(step.id))


def _holding_here(
    listener: Listener, peers: Sequence[Peer], scope: dict[str, JsonValue], invocation: Invocation
) -> list[Peer]:
    """Raises `CostLimitExceeded` if the conditions together exceed the budget of the event loop."""
    budget, names = Budget(MAX_STEPS, invocation=invocation), CONDITION_NAMES[peers[0].on]
    holding: list[Peer] = []
    for peer in peers:
        try:
            if peer.when is not None and holds(peer.when, scope, budget, names):
                holding.append(peer)
        except BlockError as error:
            raise _not_evaluated(listener, peer, error) from None
    return holding


def _not_evaluated(listener: Listener, peer: Peer, error: BlockError) -> RoutingError:
    return RoutingError(f'{listener.name}: the condition for "{peer.to}" cannot be evaluated: {error.message}')
