"""How a run of the pump ends: stops, answers that no condition chose, and steps that remain open."""

from __future__ import annotations

from collections.abc import Sequence

from bloxserver.clock import now
from bloxserver.engine.run.messages import Failed, Finished, Step
from bloxserver.models.enums import StepStatus


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
