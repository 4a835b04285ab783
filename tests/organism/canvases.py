"""Definitions and canvases for tests."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from bloxserver.blocks import echo
from bloxserver.blocks.base import Block, BlockConfig, BlockContext
from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.models.default_organism import DEFAULT_ORGANISM
from bloxserver.organism.canvas import Canvas, yaml_to_canvas
from bloxserver.organism.model import Listener
from bloxserver.organism.parse import parse

EXAMPLES = sorted((Path(__file__).parents[2] / "examples").rglob("*.yaml"))


class StarConfig(BlockConfig):
    names: list[str] = []


async def handle_star(payload: echo.EchoPayload, config: StarConfig, context: BlockContext) -> JsonValue:
    return None


star = Block(
    name="star",
    description="Names its targets in a config that only it understands.",
    payload=echo.EchoPayload,
    config=StarConfig,
    handler=handle_star,
    targets=lambda config: config.names,
)
REGISTRY = BlockRegistry([*get_registry().blocks, star])


def definition(*listeners: str, head: str = "organism: {name: x}") -> str:
    return "\n".join([head, "listeners:", *listeners, ""])


def line(name: str, peers: str = "[]", more: str = "handler: echo") -> str:
    return f"  - {{name: {name}, description: d, {more}, peers: {peers}}}"


BRANCH = (
    'handler: branch, config: {cases: [{when: "payload.a > 1", to: b}, {when: "payload.a > 0", to: c}], otherwise: d}'
)
AGENT = "prompt: Be kind, model: m, max_tokens: 5, temperature: 0.5"
DEFINITIONS = {
    "the default": DEFAULT_ORGANISM,
    "one": definition(line("a")),
    "a chain": definition(line("a", "[b]"), line("b", "[c]"), line("c")),
    "not in order": definition(line("c"), line("a", "[b]"), line("b", "[c]")),
    "fan-out and fan-in": definition(line("a", "[b, c]"), line("b", "[d]"), line("c", "[d]"), line("d")),
    "joins": definition(line("a", "[b, c, f]"), line("b", "[d, {to: d, on: error}]"), line("c", "[d]"),
                        line("d", "[e]", "handler: echo, join: all"), line("f", "[e]"),
                        line("e", "[]", "handler: echo, join: any")),
    "a cycle": definition(line("a", "[b]"), line("b", "[a]")),
    "itself": definition(line("a", "[a]")),
    "two islands": definition(line("a", "[b]"), line("b"), line("c", "[d]"), line("d")),
    "conditions": definition(line("a", '[{to: b, when: "payload.x == \\"y\\""}, {to: c, when: payload.y}, d]'),
                             line("b"), line("c"), line("d")),
    "errors": definition(line("a", "[b, {to: b, on: error}, {to: c, on: error, when: error.code == 'x'}]"),
                         line("b"), line("c")),
    "every spelling of a peer": definition(line("a", "[{to: b}, {to: c, on: answer}, {to: d, on: null, when: null}]"),
                                           line("b"), line("c"), line("d")),
    "an agent": definition(line("a", "[b, {to: c}, {to: d, on: answer, when: payload.x}, {to: b, on: error}]", AGENT),
                           line("b"), line("c"), line("d")),
    "agents that call agents": definition(line("a", "[b]", AGENT), line("b", "[c, {to: c, on: answer}]", AGENT),
                                          line("c")),
    "an agent by name": definition(line("a", "[]", "handler: echo, agent: true, prompt: p")),
    "a branch": definition(line("a", "[]", BRANCH), line("b"), line("c"), line("d")),
    "a branch with peers": definition(line("a", "[b, {to: c, on: error}]", BRANCH), line("b"), line("c"), line("d")),
    "its own targets": definition(line("a", "[b]", "handler: star, config: {names: [b, c]}"), line("b"), line("c")),
    "endings": definition(
        line("a", "[b, c]"),
        line("b", "[]", "handler: stop, config: {error: unpaid, code: refused}"),
        line("c", "[]", "handler: respond, config: {headers: {X-A: '{{ payload }}'}, body: {a: [1, null]}}"),
    ),
    "tool_config": definition(line("a", "[]", "handler: delay, tool_config: {seconds: 1}")),
    "everything else": definition(
        line("a", "[b]", "handler: transform, config: {output: {x: [1, 2.5, null, 'yes']}}, timeout_seconds: 5, "
             "retries: 2, backoff_seconds: 0.5, broadcast: true, mine: {a: 1}, label: shown"),
        line("b"),
        "execution: {timeout_seconds: 10, max_iterations: 5, on_failure: {email: a@b.c}}", "triggers: []", "mine: 3",
    ),
    "loops": definition(
        line("a", "[b]", "handler: echo, for_each: 'payload.rows.filter(r, r.n > 1)', parallel: 5, "
             "on_item_error: collect"),
        line("b", "[]", "prompt: Be kind, for_each: payload"),
    ),
    "a long prompt": definition("  - name: a", "    description: >-", "      folded", "      text", "    prompt: |2",
                                "        Begins with spaces,", "      # is no comment", "", "      and ends.", ""),
    "names with dots": definition(line("a.b", "[c-d_e]"), line("c-d_e", "[a.b]")),
    "wide": definition(line("a", f"[{', '.join(f'n{i}' for i in range(50))}]"), *(line(f"n{i}") for i in range(50))),
    "as JSON": '{"organism": {"name": "x"}, "listeners": [{"name": "a", "description": "d", "handler": "echo"}]}',
    "dashes without indentation": "organism:\n  name: x\nlisteners:\n- name: a\n  description: d\n  handler: echo\n",
    "no line break at the end": definition(line("a")).rstrip(),
    "Windows": definition(line("a", "[b]"), "", "  # b", line("b")).replace("\n", "\r\n"),
    "comments": "# 1\norganism: {name: x} # 2\nlisteners: # 3\n  # 4\n  - name: a # 5\n    # 6\n    description: d\n"
                "    handler: echo\n  # 7\n# 8\n  - {name: b, description: d, handler: echo} # 9\n# 10\n"
                "execution: {} # 11\n",
}  # fmt: skip
FILES = {path.stem: path.read_text(encoding="utf-8") for path in EXAMPLES}
VALID = DEFINITIONS | FILES


def meaning(text: str) -> list[tuple[Listener, list[tuple[str, str, str | None]]]]:
    """Return the listeners of a definition in a comparable form, with the text of compiled conditions."""
    return [
        (replace(one, peers=()), [(peer.to, peer.on, peer.when) for peer in one.peers])
        for one in parse(text, REGISTRY).listeners
    ]


def as_sent(canvas: Canvas) -> Canvas:
    """Return the canvas as a client sends it."""
    sent: Canvas = json.loads(json.dumps(canvas))
    return sent


def canvas_of_yaml(text: str) -> Canvas:
    return as_sent(yaml_to_canvas(text, REGISTRY)[0])


def node(node_id: str, *, kind: str | None = None, **data: Any) -> dict[str, Any]:
    return {"id": node_id, "type": kind, "position": {"x": 0, "y": 0}, "data": data}


def block(node_id: str, **data: Any) -> dict[str, Any]:
    return node(node_id, kind="block", **{"name": node_id, "handler": "echo", "description": "d"} | data)


def edge(source: str, target: str, handle: str | None = None, **data: Any) -> dict[str, Any]:
    return {"id": f"{source}-{target}", "source": source, "target": target, "sourceHandle": handle, "data": data}


def canvas(*members: dict[str, Any]) -> Canvas:
    return {
        "nodes": [one for one in members if "source" not in one],
        "edges": [one for one in members if "source" in one],
    }


def problem_rows(text_and_problems: tuple[str, list[Any]]) -> list[tuple[str, str, tuple[str | int, ...]]]:
    return [(problem.severity, problem.code, problem.path) for problem in text_and_problems[1]]
