"""The errors of steps, as listeners and models get them.

A model that reads about its budgets and limits could act on them. Any message can reach a model by way of other
listeners, stores or flows. So no message contains such an error: only the timeline, the API and conditions have it.
"""

from __future__ import annotations

from typing import NamedTuple

from bloxserver.blocks.base import STOPPING
from bloxserver.engine.run.messages import Step

CALL_FAILED = "call_failed"
HIDDEN = (
    *STOPPING,
    "agent_call_limit",
    "agent_repeated_call",
    "agent_token_limit",
    "call_depth_exceeded",
    "llm_overloaded",
    "llm_quota_exceeded",
    "llm_rate_limited",
)
HIDDEN_SUFFIX = "_limit_reached"
"""Of the codes of limits of plans."""


class ErrorReport(NamedTuple):
    code: str
    message: str


def report_of(step: Step) -> ErrorReport:
    """The error of a step that has failed, without the reason if it is a budget, a limit or the guard of agents.

    The reason of a called execution is left out, since it may be any of them.
    """
    code, message = step.error_code or "failed", step.error or "failed"
    if code in HIDDEN or code.endswith(HIDDEN_SUFFIX):
        return ErrorReport("failed", "the step failed")
    if code == CALL_FAILED:
        return ErrorReport(code, message.partition(":")[0])
    return ErrorReport(code, message)
