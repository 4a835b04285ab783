"""Observes how a definition behaves through the HTTP API, which is the same at every commit.

What differs between two runs, and texts that can be improved, are normalised here: ids, the port of the test server,
the messages of errors, the order of steps, and the content of large values.
"""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any

import httpx

from tests.compatibility.cases import Case
from tests.engine.running_engine import ENDED, eventually, steps_of

OUTSIDE = "http://outside.example.com"
"""The address of the test server in definitions."""
MAX_TEXT = 300
MAX_ITEMS = 50
PATIENCE_SECONDS = 30
ERROR = {"listener", "code", "message", "attempt"}
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


async def observe(client: httpx.AsyncClient, case: Case, outside: str, padding: str = "") -> dict[str, Any]:
    """Return the problems of a definition, whether its flow starts, and the results of its runs.

    `outside` is the URL of the test server. `padding` is a comment, which lengthens the definition.
    """
    for name, definition in case.flows.items():
        await _start(client, name, definition.replace(OUTSIDE, outside))
    definition = case.definition.replace(OUTSIDE, outside) + padding
    checked = await client.post(
        "/api/v1/organisms/validate", content=definition.encode(), headers={"Content-Type": "application/yaml"}
    )
    assert checked.status_code == 200, checked.text
    problems = sorted(
        f"{problem['line']}:{problem['column']} {problem['severity']} {problem['code']}"
        for problem in checked.json()["problems"]
    )
    path, status = await _start(client, case.name, definition)
    runs = [await _run(client, path, case, payload, outside) for payload in case.inputs] if status == "running" else []
    return {"problems": problems, "flow": status, "runs": runs}


async def _start(client: httpx.AsyncClient, name: str, definition: str) -> tuple[str, str]:
    """Create and start a flow. Return its path and its status."""
    created = await client.post("/api/v1/flows", json={"name": name, "organismYaml": definition})
    assert created.status_code == 201, created.text
    path = f"/api/v1/flows/{created.json()['id']}"
    await client.post(f"{path}/start")
    return path, (await eventually(client, path, {"running", "error"}))["status"]


async def _run(client: httpx.AsyncClient, flow: str, case: Case, payload: Any, outside: str) -> dict[str, Any]:
    parameters, body = {"wait": PATIENCE_SECONDS}, {"inputPayload": payload}
    started = await client.post(f"{flow}/executions/run", params=parameters, json=body, timeout=2 * PATIENCE_SECONDS)
    assert started.status_code == 201, started.text
    execution = started.json()
    assert execution["status"] in ENDED
    path = f"{flow}/executions/{execution['id']}"
    steps: list[dict[str, Any]] = []
    for step in await steps_of(client, path):
        steps.append(
            {
                "listener": step["listener"],
                "handler": step["handler"],
                "status": step["status"],
                "attempt": step["attempt"],
                "code": step["errorCode"],
                "routedTo": step["routedTo"],
                "input": _value(step["inputPayload"], outside),
                "output": _value(step["outputPayload"], outside),
            }
        )
    output = _value(execution["outputPayload"], outside)
    return {
        "status": execution["status"],
        "error": execution["errorMessage"] and _failing(execution["errorMessage"], steps),
        "output": _ordered(output) if case.any_order else output,
        "steps": sorted(steps, key=text_of),
    }


def text_of(value: Any) -> str:
    """Return a text that is equal for equal JSON only: 1, 1.0 and true differ."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def _failing(message: str, steps: list[dict[str, Any]]) -> str:
    """Return the listener that an errorMessage begins with, if it does. The rest of the message can be improved."""
    return next((step["listener"] for step in steps if step["listener"] in message.partition(":")[0]), "…")


def _value(text: str | None, outside: str) -> Any:
    """Return a stored payload in a short form without values that differ between runs."""
    return None if text is None else _normalised(json.loads(text.replace(outside, OUTSIDE)))


def _normalised(value: Any) -> Any:
    if isinstance(value, str):
        return UUID.sub("<id>", value) if len(value) <= MAX_TEXT else _digest("text", value, value)
    if isinstance(value, list):
        short = [_normalised(item) for item in value]
        return short if len(value) <= MAX_ITEMS else _digest("list", value, text_of(short))
    if not isinstance(value, dict):
        return value
    if value.keys() == ERROR:
        return value | {"message": "…"}
    return {name: _normalised(item) for name, item in value.items()}


def _digest(kind: str, value: list[Any] | str, content: str) -> dict[str, Any]:
    return {f"${kind}": len(value), "sha256": hashlib.sha256(content.encode()).hexdigest()[:16]}


def _ordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _ordered(item) for name, item in value.items()}
    return sorted((_ordered(item) for item in value), key=text_of) if isinstance(value, list) else value
