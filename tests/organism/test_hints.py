"""Every problem of a definition has a hint."""

from __future__ import annotations

import pytest

from bloxserver.blocks.registry import get_registry
from bloxserver.organism.parse import check
from bloxserver.organism.yaml_loader import MAX_BYTES, MAX_NODES


def broken(*lines: str) -> str:
    return "\n".join(["organism: {name: x}", "listeners:", *lines, ""])


def listener(more: str) -> str:
    return broken(f"  - {{name: a, description: d, handler: echo, {more}}}")


BROKEN = {
    "nothing": "",
    "text": "just text",
    "a list": "- a",
    "a missing quote": "organism: {name: 'x}\n",
    "a missing bracket": "organism: {name: x\n",
    "a tab": "organism:\n\tname: x\n",
    "a colon in a text": "organism:\n  name: x: y\n",
    "an alias": "organism: &a {name: x}\nlisteners: [*a]\n",
    "a tag": "organism: !!set {name}\n",
    "two documents": "organism: {name: x}\n---\norganism: {name: y}\n",
    "a forbidden character": "organism: {name: x\x07}\n",
    "too long": "organism: {name: x}\n#" + "x" * MAX_BYTES,
    "too deep": "organism: " + "[" * 100 + "]" * 100,
    "too many values": "organism: [" + "1," * MAX_NODES + "]",
    "a key twice": "organism: {name: x, name: y}\n",
    "a key that is a list": "organism: {name: x, [a]: b}\n",
    "a key that is a number": "organism: {name: x, 1: b}\n",
    "a merge key": "organism: {name: x, <<: {a: 1}}\n",
    "not a number": "organism: {name: x, a: .nan}\n",
    "a NUL": 'organism: {name: "x\\0"}\n',
    "no organism": "listeners: []\n",
    "an organism that is text": "organism: x\n",
    "no name": "organism: {}\n",
    "a name of two lines": 'organism: {name: "a\\nb"}\n',
    "a name that is a number": "organism: {name: 5}\n",
    "no listeners": "organism: {name: x}\n",
    "listeners that are text": "organism: {name: x}\nlisteners: all\n",
    "a listener that is text": broken("  - a"),
    "a listener without anything": broken("  - {}"),
    "a listener with a bad name": broken("  - {name: 'a b', description: d, handler: echo}"),
    "two listeners of one name": broken(*["  - {name: a, description: d, handler: echo}"] * 2),
    "an unknown handler": broken("  - {name: a, description: d, handler: ecko}"),
    "an unheard-of handler": broken("  - {name: a, description: d, handler: os.system}"),
    "a handler that is a list": broken("  - {name: a, description: d, handler: [echo]}"),
    "a prompt beside a handler": listener("prompt: p, model: m"),
    "an empty prompt": broken("  - {name: a, description: d, prompt: ''}"),
    "a temperature of text": broken("  - {name: a, description: d, prompt: p, temperature: warm}"),
    "an unknown key": listener("handel: x"),
    "an unused key": listener("broadcast: true"),
    "a config that is text": listener("config: x"),
    "an unknown setting": listener("config: {x: 1}"),
    "two configs": listener("config: {}, tool_config: {}"),
    "a missing setting": broken("  - {name: a, description: d, handler: delay}"),
    "a wrong setting": broken("  - {name: a, description: d, handler: delay, config: {seconds: soon}}"),
    "a wrong template": broken("  - {name: a, description: d, handler: http.request, config: {url: '{{ x'}}"),
    "a secret that would be stored": broken(
        "  - {name: a, description: d, handler: transform, config: {output: '{{ secrets.X }}'}}"
    ),
    "another payload class": listener("payload_class: Nothing"),
    "an unknown peer": listener("peers: [b]"),
    "a peer twice": listener("peers: [a, a]"),
    "a peer that is a number": listener("peers: [5]"),
    "peers that are text": listener("peers: a"),
    "a peer without a name": listener("peers: [{when: 'true'}]"),
    "an unknown key of a peer": listener("peers: [{to: a, if: 'true'}]"),
    "a peer on something else": listener("peers: [{to: a, on: success}]"),
    "an invalid condition": listener("peers: [{to: a, when: 'payload.'}]"),
    "a condition on a tool": broken("  - {name: a, description: d, prompt: p, peers: [{to: a, when: 'true'}]}"),
    "a timeout of text": listener("timeout_seconds: soon"),
    "a timeout of nothing": listener("timeout_seconds: 0"),
    "too many retries": listener("retries: 1000"),
    "half a retry": listener("retries: 0.5"),
    "an agent that is text": listener("agent: maybe"),
    "execution limits that are text": listener("") + "execution: fast\n",
    "too many iterations": listener("") + "execution: {max_iterations: 0}\n",
    "a free budget": listener("") + "execution: {max_cost_usd: 0}\n",
    "a notification without a recipient": listener("") + "execution: {on_failure: {}}\n",
    "a notice to no address": listener("") + "execution: {on_failure: {url: 'ftp://x', email: y}}\n",
    "a notice with a wrong template": listener("") + "execution: {on_failure: {url: '{{ payload.x }}'}}\n",
}


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN.keys())
def test_every_problem_has_a_hint(text: str) -> None:
    problems = check(text, get_registry())
    assert problems
    for problem in problems:
        assert problem.message
        assert problem.hint.strip(), problem
        assert "\n" not in problem.hint
        assert problem.line >= 1
        assert problem.column >= 1
