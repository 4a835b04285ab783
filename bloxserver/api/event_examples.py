"""An example of the events of an execution, for the OpenAPI document."""

from __future__ import annotations

import json

from bloxserver.api.examples import EXECUTION, RUNNING_EXECUTION, STEP, Example
from bloxserver.api.llm_examples import AGENT_TEXT


def _outline(body: Example) -> str:
    """The JSON of an execution or a step without its payloads."""
    names = body.keys() - {"inputPayload", "outputPayload", "payloadsOmitted"}
    return json.dumps({name: value for name, value in body.items() if name in names}, separators=(",", ":"))


EVENTS = (
    "retry: 1000\n\n"
    f"event: execution\ndata: {_outline(RUNNING_EXECUTION)}\n\n"
    f"event: agent.text\ndata: {json.dumps(AGENT_TEXT, separators=(',', ':'))}\n\n"
    f"event: step\ndata: {_outline(STEP)}\nid: 2\n\n"
    f"event: execution\ndata: {_outline(EXECUTION)}\nid: end\n\n"
)
"""A complete stream of Server-Sent Events."""
