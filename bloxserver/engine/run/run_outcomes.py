"""How a run of the pump ends: stops, answers that no condition chose, and steps that remain open."""

from __future__ import annotations

from collections.abc import Sequence

from bloxserver.blocks.base import StepWarning
from bloxserver.blocks.branch import BranchConfig
from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished, Step, output_of
from bloxserver.models.enums import StepStatus
from bloxserver.organism.model import Listener

NO_CONDITION_HELD = "no_condition_held"
MAX_WARNING_CHARACTERS = 1_000


def with_unmet_conditions(step: Step, listener: Listener) -> Step:
    """The step whose answer no listener receives, with a warning if the listener has peers for answers.

    The warning names their conditions. A step of an earlier run has it already.
    """
    peers = [peer for peer in listener.peers if peer.on == "answer"]
    if not peers or _is_filtered(step):
        return step
    conditions = [(peer.when, peer.to) for peer in peers if peer.when is not None]
    if isinstance(listener.config, BranchConfig):
        conditions = [(case.when, case.to) for case in listener.config.cases]
    shown = "; ".join(f"{to}: {when}" for when, to in conditions)
    text = f"no condition holds, so that no listener receives the answer: {shown}"
    if len(text) > MAX_WARNING_CHARACTERS:
        text = f"{text[: MAX_WARNING_CHARACTERS - 1]}…"
    return step._replace(warnings=(*step.warnings, StepWarning(NO_CONDITION_HELD, text)))


def _is_filtered(step: Step) -> bool:
    return any(warning.code == NO_CONDITION_HELD for warning in step.warnings)


def finished_with(leaves: Sequence[Step]) -> Finished:
    """The outcome of a run whose messages were all handled. `leaves` are the steps whose answers are outputs."""
    return Finished(output_of(leaves), is_filtered=bool(leaves) and all(map(_is_filtered, leaves)))


def stopped_by(step: Step) -> Finished | Failed:
    """The outcome of a step that ends the execution."""
    if step.status is StepStatus.SUCCESS:
        return Finished(step.output, is_stopped=True)
    return Failed(f"{step.message.listener}: {step.error}")


def closed(steps: Sequence[Step]) -> list[Step]:
    """The steps of an execution that ends with them. Those that would wait are cancelled."""
    return [
        step._replace(status=StepStatus.CANCELLED, completed_at=now(), state=None) if step.is_open else step
        for step in steps
    ]
