"""The facts of an execution that expressions can read: `trigger`, `execution`, `vars` and `resume`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.raw_json import Value, value_of_text
from bloxserver.resume_tokens import ResumeTokens, resume_url

TRIGGER_MEMBERS = ("name", "method", "headers", "query", "contentType", "scheduledFor")


def facts_of(
    execution: ClaimedExecution,
    public_url: str,
    waits: Iterable[str] = (),
    tokens: ResumeTokens | None = None,
) -> Mapping[str, Callable[[], Value]]:
    """The facts by name, as functions: few definitions use them.

    `waits` are the listeners that have URLs. Without `tokens`, they have none.
    """
    return {
        "trigger": lambda: _trigger(execution),
        "execution": lambda: _execution(execution, public_url),
        "vars": lambda: value_of_text(execution.vars or "{}"),
        "resume": lambda: {
            name: {"url": resume_url(public_url, tokens.sign(execution.id, name))} for name in waits if tokens
        },
    }


def _trigger(execution: ClaimedExecution) -> Value:
    """What does not apply to the type of the trigger is null."""
    stored: dict[str, Any] = json.loads(execution.trigger_context or "{}")
    facts = {name: stored.get(name) for name in TRIGGER_MEMBERS}
    return {"type": execution.trigger_type.value, "firedAt": _text(execution.started_at)} | facts


def _execution(execution: ClaimedExecution, public_url: str) -> Value:
    return {
        "id": str(execution.id),
        "url": f"{public_url}/api/v1/flows/{execution.flow_id}/executions/{execution.id}",
        "startedAt": _text(execution.started_at),
        "retryOf": None if execution.retry_of is None else str(execution.retry_of),
    }


def _text(moment: Any) -> str:
    return str(moment.isoformat().replace("+00:00", "Z"))
