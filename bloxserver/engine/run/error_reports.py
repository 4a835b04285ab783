"""The errors of steps, as listeners and models get them.

A model that reads about its budgets and limits could act on them. Any message can reach a model by way of other
listeners, stores or flows. So no message contains such an error: only the timeline, the API and conditions have it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from bloxserver.blocks.base import STOPPING
from bloxserver.engine.run.messages import Step

CALL_FAILED = "call_failed"
HIDDEN = (
    *STOPPING,
    "agent_call_limit",
    "agent_repeated_call",
    "agent_token_limit",
    "llm_limit_reached",
    "llm_overloaded",
    "llm_quota_exceeded",
    "llm_rate_limited",
)
LIMIT = re.compile(r"budget|limit|max_|exceed|equal arguments", re.IGNORECASE)
"""The reason of a called execution that may be one of these errors, of which only the text is known."""


class ErrorReport(NamedTuple):
    code: str
    message: str


def report_of(step: Step) -> ErrorReport:
    """The error of a step that has failed, without the reason if it is a budget, a limit or the guard of agents."""
    code, message = step.error_code or "failed", step.error or "failed"
    if code in HIDDEN:
        return ErrorReport("failed", "the step failed")
    if code == CALL_FAILED and LIMIT.search(message):
        return ErrorReport(code, message.partition(":")[0])
    return ErrorReport(code, message)
