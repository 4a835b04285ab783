"""Budgets, limits and the guard of agents are not shown to models, by whatever way their errors could reach them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest

from bloxserver.clock import now
from bloxserver.engine.run.error_reports import report_of
from bloxserver.engine.run.messages import Message, Step
from bloxserver.models.database import Database
from bloxserver.models.enums import StepStatus
from bloxserver.settings import Settings
from tests.engine.pump_runs import echo, organism
from tests.engine.running_engine import run, running_engine, started_flow, steps_of
from tests.llm.catalogues import providers, settings_of
from tests.llm_server import Asked, Reply, calls, language_model, says

PRICED = {"parrot-1": {"prices": {"input": 1_000, "output": 1_000}}}
WORDS = re.compile(
    r"budget|limit|max_|exceed|equal arguments|tokens|requests|iterations|your plan|resets|\$|7\d\d\b|100000",
    re.IGNORECASE,
)
"""What the errors contain. Each of them has a figure from 700 to 799, or the limit of the plan."""
IDS = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
INNER = "name: inner, prompt: Inner., model: parrot-1, max_tokens: 5000"
REPEATS = "name: inner, prompt: Repeats., model: parrot-1, max_tokens: 10, peers: [c]"
CALL = "name: tool, handler: flow.call, config: {flow: Called}"


def outer(tool: str) -> str:
    return f"name: outer, prompt: Outer., model: parrot-1, max_tokens: 10, peers: [{tool}]"


def failing(listener: str, to: str = "outer") -> str:
    """The listener, which sends its error to another one."""
    if listener.endswith("]"):
        return f"{listener[:-1]}, {{to: {to}, on: error}}]"
    return f"{listener}, peers: [{{to: {to}, on: error}}]"


class Case(NamedTuple):
    flow: str
    called: Mapping[str, str] = {}
    """The definitions of other flows, by their names."""


BUDGET = organism(INNER, execution="{max_tokens: 777}")
CASES = {
    "a tool that is a flow": Case(organism(outer("tool"), CALL), {"Called": BUDGET}),
    "a tool that is a flow with a daily budget": Case(
        organism(outer("tool"), CALL), {"Called": organism(INNER, execution="{daily_max_cost_usd: 0.777}")}
    ),
    "a tool that is a flow with a limit of messages": Case(
        organism(outer("tool"), CALL),
        {"Called": organism(echo("b", "c"), echo("c", "b"), execution="{max_iterations: 7}")},
    ),
    "a tool that is a flow that calls a flow": Case(
        organism(outer("tool"), CALL), {"Other": BUDGET, "Called": organism(CALL.replace("Called", "Other"))}
    ),
    "the error of a called flow": Case(organism(failing(CALL), outer("")), {"Called": BUDGET}),
    "the error of a called flow as a text": Case(
        organism(
            failing(CALL, to="b"),
            "name: b, handler: text.template, config: {template: '{{ payload.error }}'}, peers: [outer]",
            outer(""),
        ),
        {"Called": BUDGET},
    ),
    "the error of a called flow in Python": Case(
        organism(
            failing(CALL, to="b"),
            "name: b, handler: python, config: {code: 'return str(payload)'}, peers: [outer]",
            outer(""),
        ),
        {"Called": BUDGET},
    ),
    "the error of a called flow in a store": Case(
        organism(
            failing(CALL, to="b"),
            "name: b, handler: key_value, peers: [outer], config: {operation: set, key: e, value: '{{payload.error}}'}",
            outer("tool2"),
            "name: tool2, handler: key_value, config: {operation: get, key: e}",
        ),
        {"Called": BUDGET},
    ),
    "an agent that repeats a call": Case(organism(outer("inner"), REPEATS, echo("c"))),
    "an agent at max_calls": Case(organism(outer("inner"), f"{REPEATS}, max_calls: 1", echo("c"))),
    "an agent at max_total_tokens": Case(organism(outer("inner"), f"{REPEATS}, max_total_tokens: 7", echo("c"))),
    "an agent at a limit of the plan": Case(organism(outer("inner"), INNER.replace("5000", "777777"))),
    "the error of an agent that repeats a call": Case(organism(failing(REPEATS), echo("c"), outer(""))),
    "the error of an agent at a limit of the plan": Case(organism(failing(INNER.replace("5000", "777777")), outer(""))),
}


def respond(asked: Asked) -> Reply:
    tools = [tool["function"]["name"] for tool in asked.json.get("tools", ())]
    if "Repeats." in asked.texts[0]:
        return calls(("c", {"input": 1}), input_tokens=7, output_tokens=0)
    is_answered = any(message["role"] == "tool" for message in asked.json["messages"])
    return says("Done.") if is_answered or not tools else calls((tools[0], {"input": 1} if tools[0] == "tool" else {}))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_models_get_no_reason(
    case: Case, live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    async with language_model(respond) as server:
        document = {"providers": providers({"one": server.url}, models=PRICED)}
        changes = {"llm_providers": settings_of(tmp_path, document).llm_providers, "rate_limits": True}
        async with running_engine(live_settings, live_database, **changes):
            for name, text in case.called.items():
                await started_flow(live_client, text, name=name)
            path = await started_flow(live_client, case.flow)
            ended = await run(live_client, path, {"text": "Go."})
    assert ended["status"] == "success", ended
    [*_, last] = [asked for asked in server.requests if "Outer." in asked.texts[0]]
    shown = IDS.sub("", json.dumps(last.json["messages"]))
    assert "failed" in shown
    for asked in server.requests:
        assert not WORDS.search(IDS.sub("", json.dumps(asked.json["messages"])))
    timeline = await steps_of(live_client, f"{path}/executions/{ended['id']}")
    assert any(WORDS.search(step["errorMessage"] or "") for step in timeline)


@pytest.mark.parametrize(
    ("code", "shown"),
    [
        ("llm_rate_limited", ("failed", "the step failed")),
        ("call_failed", ("call_failed", "the called execution 1 ended as error")),
        ("run_limit_reached", ("run_limit_reached", "the called execution 1 ended as error: the limit is 777")),
        (None, ("failed", "the called execution 1 ended as error: the limit is 777")),
    ],
)
def test_reason_depends_on_the_code(code: str | None, shown: Any) -> None:
    error = "the called execution 1 ended as error: the limit is 777"
    step = Step(Message("a", None), "echo", StepStatus.ERROR, now(), error=error, error_code=code)
    assert report_of(step) == shown
