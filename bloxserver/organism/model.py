"""A definition that was found valid: what the pump runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from bloxserver.blocks.base import AnyBlock, BlockConfig


class UnknownListener(LookupError):
    """A listener was asked for by a name that the organism does not have."""

    def __init__(self, name: str) -> None:
        super().__init__(f'no listener is called "{name}"')
        self.name = name


@dataclass(frozen=True, slots=True)
class Listener:
    """One station of the organism: `block` handles its messages with `config`, `peers` get its answers."""

    name: str
    description: str
    handler: str
    """The block's name as the definition has it, which may be an alias."""
    block: AnyBlock
    config: BlockConfig
    payload_class: str | None = None
    peers: tuple[str, ...] = ()
    timeout_seconds: float | None = None
    """For one message; null: only the execution's own limit counts."""
    agent: bool = False


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """How long one execution may take, in seconds, and how many messages it may handle."""

    timeout_seconds: float = 300
    max_iterations: int = 100


@dataclass(frozen=True)
class Organism:
    """Listeners, at least one, each of a name of its own; every peer is one of them."""

    name: str
    listeners: tuple[Listener, ...]
    description: str | None = None
    execution: ExecutionLimits = ExecutionLimits()

    @cached_property
    def _by_name(self) -> dict[str, Listener]:
        return {listener.name: listener for listener in self.listeners}

    def listener(self, name: str) -> Listener:
        """Raises UnknownListener."""
        if name not in self._by_name:
            raise UnknownListener(name)
        return self._by_name[name]

    def entry(self, target: str | None = None) -> Listener:
        """Who gets the input: the trigger's `target`, else the one listener that is nobody's peer, else the first.

        Raises UnknownListener where the target is not one of the listeners.
        """
        if target is not None:
            return self.listener(target)
        peers = {peer for listener in self.listeners for peer in listener.peers}
        free = [listener for listener in self.listeners if listener.name not in peers]
        return free[0] if len(free) == 1 else self.listeners[0]
