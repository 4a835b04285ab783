"""The functions that tasks can call, by name. Each takes the request's bytes and returns the response's bytes.

They are named by text, because they belong to layers above this one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from importlib import import_module

FUNCTIONS = {
    "agent.arguments": "bloxserver.blocks.agent_calls:read_arguments",
    "agent.prompt": "bloxserver.blocks.agent_calls:read_prompt",
    "agent.result": "bloxserver.blocks.agent_calls:read_result",
    "attempt.conditions": "bloxserver.engine.run.isolated_attempt:evaluate_conditions",
    "attempt.input": "bloxserver.engine.run.isolated_attempt:read_input",
    "attempt.items": "bloxserver.engine.run.isolated_attempt:list_items",
    "attempt.redact": "bloxserver.engine.run.isolated_attempt:redact_secrets",
    "attempt.run": "bloxserver.engine.run.isolated_attempt:run_attempt",
    "body.definition": "bloxserver.api.isolated_bodies:read_definition",
    "body.read": "bloxserver.api.isolated_bodies:read_body",
    "canvas.compare": "bloxserver.organism.isolated:compare_canvas",
    "canvas.derive": "bloxserver.organism.isolated:derive_canvas",
    "http.read_body": "bloxserver.blocks.http_bodies:read_body_request",
    "organism.agent_uses": "bloxserver.organism.isolated:estimate_definition",
    "organism.check": "bloxserver.organism.isolated:check_definition",
    "organism.check_secrets": "bloxserver.organism.isolated:check_secret_values",
    "organism.compile": "bloxserver.organism.isolated:compile_definition",
    "organism.derive": "bloxserver.organism.isolated:derive_definition",
    "python.run": "bloxserver.blocks.python_snippets:run_snippet",
}

PRELOADED = (
    "bloxserver.api.isolated_bodies",
    "bloxserver.organism.isolated",
    "bloxserver.engine.run.isolated_attempt",
    "bloxserver.blocks.python_snippets",
)
"""Modules that the fork server imports, so that the processes of tasks share their memory."""
REHEARSED = {"bloxserver.organism.isolated:check_definition": b"{}"}
"""Calls that the fork server makes once, so that the processes share what these import and cache. They must not start a
thread.
"""


def find_function(name: str) -> Callable[[bytes], bytes]:
    """Raises `KeyError` for an unknown name."""
    return load(FUNCTIONS[name])


@lru_cache
def load(function: str) -> Callable[[bytes], bytes]:
    """Return the function that a value of `FUNCTIONS` names."""
    module, _, attribute = function.partition(":")
    loaded: Callable[[bytes], bytes] = getattr(import_module(module), attribute)
    return loaded
