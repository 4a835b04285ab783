"""A definition that was found valid: what the pump runs."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pydantic import JsonValue

from bloxserver.blocks.base import AnyBlock, BlockConfig, Tool
from bloxserver.blocks.expressions import Expression
from bloxserver.organism.needs import Need


class UnknownListener(LookupError):
    """A listener was asked for by a name that the organism does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(f'no listener is called "{name}"')
        self.name = name


@dataclass(frozen=True, slots=True)
class Peer:
    """A way that messages take from a listener: its answer or, `on` an error, the error, where `when` holds."""

    to: str
    on: Literal["answer", "error"] = "answer"
    when: Expression | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """One station of the organism: `block` handles its messages with `config`, `peers` get its answers."""

    name: str
    description: str
    handler: str | None
    """The block's name as the definition has it, which may be an alias; null for an agent that has a prompt."""
    block: AnyBlock
    config: BlockConfig
    given_config: dict[str, JsonValue] = field(default_factory=dict)
    """The config as it is written, with its placeholders."""
    templates: frozenset[str] = frozenset()
    """The members of `given_config` that hold placeholders; where there are none, `config` serves as it is."""
    secrets: frozenset[str] = frozenset()
    """The names of the secrets in it."""
    payload_class: str | None = None
    peers: tuple[Peer, ...] = ()
    tools: tuple[Tool, ...] = ()
    """For an agent: the peers that it may call. They answer the agent, not their own peers."""
    timeout_seconds: float | None = None
    """For one attempt at a message; null: only the execution's own limit counts."""
    retries: int = 0
    """How often a message is tried again that could not be handled."""
    backoff_seconds: float = 1
    """The pause before the first retry; it doubles with each one."""
    agent: bool = False
    """As the definition has it; what has a prompt and no handler is an agent in deed: `tools`, `block`."""


@dataclass(frozen=True, slots=True)
class FailureNotification:
    """Where a failed execution is reported. Texts may hold `{{ secrets.NAME }}`."""

    url: str | None = None
    secret: str | None = None
    """Signs the notices that go to `url` (Standard Webhooks)."""
    email: str | None = None


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """How long one execution may take, in seconds of work, and how many messages it may handle."""

    timeout_seconds: float = 300
    max_iterations: int = 100


@dataclass(frozen=True)
class Organism:
    """Listeners, at least one, each of a name of its own; every peer is one of them."""

    name: str
    listeners: tuple[Listener, ...]
    description: str | None = None
    execution: ExecutionLimits = ExecutionLimits()
    on_failure: FailureNotification | None = None
    needs: tuple[Need, ...] = field(default=(), compare=False)

    @cached_property
    def _by_name(self) -> dict[str, Listener]:
        return {listener.name: listener for listener in self.listeners}

    def has(self, name: str) -> bool:
        return name in self._by_name

    def listener(self, name: str) -> Listener:
        """Raises UnknownListener."""
        if name not in self._by_name:
            raise UnknownListener(name)
        return self._by_name[name]

    def entry(self, target: str | None = None) -> Listener:
        """Who gets the input: the trigger's `target`, else the one listener that is no peer of another, else the first.

        Raises UnknownListener where the target is not one of the listeners.
        """
        if target is not None:
            return self.listener(target)
        peers = {peer.to for listener in self.listeners for peer in listener.peers}
        peers |= {tool.listener for listener in self.listeners for tool in listener.tools}
        free = [listener for listener in self.listeners if listener.name not in peers]
        return free[0] if len(free) == 1 else self.listeners[0]
