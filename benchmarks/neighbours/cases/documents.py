"""Definitions, canvases and request bodies that take long to read."""

from __future__ import annotations

import json

from benchmarks.neighbours.attacker import Attacker
from benchmarks.neighbours.cases.case import Case, listener, organism, requests

DEEP_JSON = b"[" * 200 + b"]" * 200
DEEPER_JSON = b'{"a":' * 150_000 + b"1" + b"}" * 150_000
PATTERNS = organism(
    listener(
        "branch",
        {
            "cases": [
                {
                    "when": " || ".join(rf"payload.t.matches('\\w{{{60 + k}}}{n}')" for n in range(8)),
                    "to": "b",
                }
                for k in range(99)
            ]
        },
    ),
    listener("echo", name="b"),
).encode()
VALUES = (
    "organism: {name: x}\nlisteners:\n" + "- {name: a, description: d, handler: echo, peers: [b]}\n" * 2_400
).encode()
PROBLEMS = ("organism: {name: x}\nlisteners:\n" + "- {n: 1}\n" * 9_000).encode()
COMMENTS = organism(listener("echo")) + "# comment\n" * 25_000
CANVAS = {
    "nodes": [
        {"id": f"n{n}", "type": "block", "position": {"x": n, "y": n}, "data": {"handler": "echo", "description": "d"}}
        for n in range(2_000)
    ],
    "edges": [{"id": f"e{n}", "source": f"n{n}", "target": f"n{(n * 7) % 2_000}"} for n in range(2_000)],
    "viewport": {"x": 0, "y": 0, "zoom": 1},
}
EXTRA_MEMBERS: dict[str, object] = {"nodes": [], "edges": [], "extra": [[] for _ in range(230_000)]}


async def _deep_json(attacker: Attacker) -> None:
    """Send nested JSON to every route that reads JSON."""
    routes = [
        ("POST", "/api/v1/flows"),
        ("PATCH", attacker.flow),
        ("POST", f"{attacker.flow}/triggers"),
        ("POST", f"{attacker.flow}/executions/run"),
        ("POST", f"{attacker.flow}/canvas/derive"),
        ("POST", f"{attacker.flow}/validate"),
        ("POST", "/api/v1/organisms/validate"),
        ("POST", attacker.webhook),
        ("PUT", "/api/v1/secrets/S"),
    ]

    async def one() -> None:
        for body in (DEEP_JSON, DEEPER_JSON):
            for method, path in routes:
                await attacker.send(method, path, body)

    await attacker.repeat(one)


async def _changing_definitions(attacker: Attacker) -> None:
    """Store a new definition of 250 KB with each request; each becomes a version."""
    number = 0

    async def one() -> None:
        nonlocal number
        number += 1
        await attacker.send("PATCH", attacker.flow, {"organismYaml": f"{COMMENTS}# {number}\n"})

    await attacker.repeat(one)


async def _canvases(attacker: Attacker) -> None:
    """Store a canvas of 2,000 nodes, derive the definition from it and compare both."""

    async def one() -> None:
        await attacker.send("PATCH", attacker.flow, body)
        await attacker.send("GET", f"{attacker.flow}/canvas", discard=True)
        await attacker.send("POST", f"{attacker.flow}/canvas/derive", body)

    body = json.dumps({"canvasState": CANVAS}).encode()
    await attacker.repeat(one)


async def _starts(attacker: Attacker) -> None:
    """Start and stop a large flow."""

    async def one() -> None:
        await attacker.send("POST", f"{attacker.flow}/start")
        await attacker.send("POST", f"{attacker.flow}/stop")

    await attacker.repeat(one)


LARGE = organism(*(listener("echo", name=f"l{n}") for n in range(2_500)))

CASES = [
    Case(
        "validate-patterns",
        "C4",
        "validation of 31 KB of regular expressions",
        requests("POST", "/api/v1/organisms/validate", PATTERNS, content_type="application/yaml"),
    ),
    Case(
        "validate-values",
        "new",
        "validation of a definition with 19,000 values",
        requests("POST", "/api/v1/organisms/validate", VALUES, content_type="application/yaml"),
    ),
    Case(
        "validate-problems",
        "new",
        "validation of a definition with 30,000 problems",
        requests("POST", "/api/v1/organisms/validate", PROBLEMS, content_type="application/yaml"),
    ),
    Case("deep-json", "new", "JSON with 200 and with 150,000 levels to nine routes", _deep_json),
    Case("definitions", "new", "a new definition of 250 KB with each PATCH", _changing_definitions),
    Case("canvases", "new", "canvases of 2,000 nodes: PATCH, compare, derive", _canvases),
    Case(
        "canvas-members",
        "new",
        "a canvas with 230,000 unknown members, PATCHed",
        requests("PATCH", "FLOW", {"canvasState": EXTRA_MEMBERS}),
    ),
    Case("starts", "new", "start and stop of a flow with 2,500 listeners", _starts, LARGE),
]
