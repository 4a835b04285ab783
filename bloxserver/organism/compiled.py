"""A checked definition as JSON, from which an execution loads single listeners."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from bloxserver.blocks.agent import agent
from bloxserver.blocks.base import CHECKED, Tool
from bloxserver.blocks.registry import BlockRegistry
from bloxserver.organism.join_plan import JoinPlan
from bloxserver.organism.model import (
    ExecutionLimits,
    FailureNotification,
    Listener,
    Organism,
    Peer,
    UnknownListener,
)

PLAIN = (
    *("name", "description", "handler", "given_config", "payload_class"),
    *("timeout_seconds", "retries", "backoff_seconds", "join", "agent"),
    *("for_each", "parallel", "on_item_error"),
)
"""The attributes of a listener that are JSON values."""


def compile_organism(organism: Organism) -> dict[str, Any]:
    """Return the organism as a JSON value."""
    return {
        "name": organism.name,
        "entry": organism.entry().name,
        "read_steps": sorted(organism.read_steps),
        "joins": organism.joins and organism.joins.to_json(),
        "waits": sorted(organism.waits),
        "listeners": {listener.name: compiled_listener(listener) for listener in organism.listeners},
        "execution": asdict(organism.execution),
        "on_failure": organism.on_failure and asdict(organism.on_failure),
    }


def compiled_listener(listener: Listener) -> dict[str, Any]:
    """Return a listener as a JSON value."""
    return {name: getattr(listener, name) for name in PLAIN} | {
        "block": listener.block.name,
        "templates": sorted(listener.templates),
        "secrets": sorted(listener.secrets),
        "names": sorted(listener.names),
        "read_steps": sorted(listener.read_steps),
        "peers": [[peer.to, peer.on, peer.when] for peer in listener.peers],
        "tools": [asdict(tool) for tool in listener.tools],
    }


class CompiledOrganism:
    """An organism whose listeners are loaded when they are used first."""

    def __init__(self, compiled: dict[str, Any], registry: BlockRegistry) -> None:
        self._compiled = compiled
        self._registry = registry
        self._listeners: dict[str, Listener] = {}
        self.execution = ExecutionLimits(**compiled["execution"])
        self.read_steps = frozenset(compiled["read_steps"])
        self.joins = None if compiled["joins"] is None else JoinPlan.of_json(compiled["joins"])
        self.waits = frozenset(compiled["waits"])
        failure = compiled["on_failure"]
        self.on_failure = None if failure is None else FailureNotification(**failure)

    def has(self, name: str) -> bool:
        return name in self._compiled["listeners"]

    def listener(self, name: str) -> Listener:
        """Raises UnknownListener."""
        if name not in self._listeners:
            if not self.has(name):
                raise UnknownListener(name)
            self._listeners[name] = load_listener(self._compiled["listeners"][name], self._registry)
        return self._listeners[name]

    def entry(self, target: str | None = None) -> Listener:
        """As `Organism.entry`. Raises UnknownListener."""
        return self.listener(self._compiled["entry"] if target is None else target)


def load_listener(compiled: dict[str, Any], registry: BlockRegistry) -> Listener:
    """Return the listener that `compiled_listener` described. Raises UnknownListener if its block was removed."""
    block = agent if compiled["block"] == agent.name else registry.find(compiled["block"])
    if block is None:
        raise UnknownListener(compiled["name"])  # the package of the block was removed since
    return Listener(
        block=block,
        config=block.config.model_validate(compiled["given_config"], context=CHECKED),
        templates=frozenset(compiled["templates"]),
        secrets=frozenset(compiled["secrets"]),
        names=frozenset(compiled["names"]),
        read_steps=frozenset(compiled["read_steps"]),
        peers=tuple(Peer(to, on, when) for to, on, when in compiled["peers"]),
        tools=tuple(Tool(**tool) for tool in compiled["tools"]),
        **{name: compiled[name] for name in PLAIN},
    )
