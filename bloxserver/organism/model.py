"""A validated definition, as the engine runs it."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from pydantic import JsonValue

from bloxserver.blocks.base import AnyBlock, BlockConfig, Tool
from bloxserver.organism.join_plan import JoinPlan, plan_joins
from bloxserver.organism.requirements import Requirement


class UnknownListener(LookupError):
    """The organism has no listener with this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f'there is no listener "{name}"')
        self.name = name


@dataclass(frozen=True, slots=True)
class Peer:
    """An edge from a listener: `to` receives its answer or, `on` an error, its error, if `when` is true."""

    to: str
    on: Literal["answer", "error"] = "answer"
    when: str | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """A node of the organism: `block` handles its messages with `config`, and `peers` receive its answers."""

    name: str
    description: str
    handler: str | None
    """The block's name or alias as written in the definition; null for an agent with a prompt."""
    block: AnyBlock
    config: BlockConfig
    given_config: dict[str, JsonValue] = field(default_factory=dict)
    """The config as written, with its placeholders."""
    templates: frozenset[str] = frozenset()
    """The members of `given_config` that contain placeholders. If there are none, `config` is used unchanged."""
    secrets: frozenset[str] = frozenset()
    """The names of the secrets in the config."""
    payload_class: str | None = None
    peers: tuple[Peer, ...] = ()
    tools: tuple[Tool, ...] = ()
    """For an agent: the peers that it can call. Their answers go to the agent and not to their own peers."""
    timeout_seconds: float | None = None
    """For one attempt at a message; null: only the execution's limit applies."""
    retries: int = 0
    """The maximum number of further attempts at a message after an error."""
    backoff_seconds: float = 1
    """The pause before the first retry; it doubles with each retry."""
    for_each: str | None = None
    """An expression over the message whose value is a list: the listener handles each of its items."""
    parallel: int = 10
    """The number of items that are handled at the same time."""
    on_item_error: Literal["fail", "collect"] = "fail"
    """Whether the error of an item fails the message, or is in the answer at the position of the item."""
    names: frozenset[str] = frozenset()
    """The names besides `payload` that its texts may refer to."""
    read_steps: frozenset[str] = frozenset()
    """The listeners whose answers its texts may refer to as `steps.NAME`."""
    join: str | None = None
    """`all` or `any`: it handles one message per execution. Null: it handles each message on its own."""
    agent: bool = False
    """The key `agent` as written, which has no effect. A listener with a prompt and no handler is an agent."""


@dataclass(frozen=True, slots=True)
class FailureNotification:
    """Where failure notifications go. Texts may contain `{{ secrets.NAME }}`."""

    url: str | None = None
    secret: str | None = None
    """Signs the notifications to `url` (Standard Webhooks)."""
    email: str | None = None


@dataclass(frozen=True, slots=True)
class ExecutionLimits:
    """The limits of one execution: its active time in seconds, and the number of messages that it handles.

    Budgets of language models are in tokens and US dollars; None is unlimited.
    """

    timeout_seconds: float = 300
    max_iterations: int = 100
    max_tokens: int | None = None
    max_cost_usd: float | None = None
    daily_max_cost_usd: float | None = None
    """Of all executions of the flow that start calls on a day in UTC."""


@dataclass(frozen=True)
class Organism:
    """One or more listeners with unique names; every peer is one of them."""

    name: str
    listeners: tuple[Listener, ...]
    description: str | None = None
    execution: ExecutionLimits = ExecutionLimits()
    on_failure: FailureNotification | None = None
    requirements: tuple[Requirement, ...] = field(default=(), compare=False)

    @cached_property
    def _by_name(self) -> dict[str, Listener]:
        return {listener.name: listener for listener in self.listeners}

    @cached_property
    def read_steps(self) -> frozenset[str]:
        """The listeners whose answers may be referred to as `steps.NAME`."""
        return frozenset().union(*(listener.read_steps for listener in self.listeners)) & self._by_name.keys()

    @cached_property
    def joins(self) -> JoinPlan | None:
        return plan_joins(self.listeners)

    @cached_property
    def waits(self) -> frozenset[str]:
        """The listeners that wait for calls of their URLs, `resume.NAME.url`."""
        return frozenset(listener.name for listener in self.listeners if listener.block.awaits_call)

    def has(self, name: str) -> bool:
        return name in self._by_name

    def listener(self, name: str) -> Listener:
        """Raises UnknownListener."""
        if name not in self._by_name:
            raise UnknownListener(name)
        return self._by_name[name]

    def entry(self, target: str | None = None) -> Listener:
        """Return the listener that receives the input.

        This is the trigger's `target`, else the only listener without an incoming edge, else the first listener.
        Raises UnknownListener if the target does not exist.
        """
        if target is not None:
            return self.listener(target)
        peers = {peer.to for listener in self.listeners for peer in listener.peers}
        peers |= {tool.listener for listener in self.listeners for tool in listener.tools}
        free = [listener for listener in self.listeners if listener.name not in peers]
        return free[0] if len(free) == 1 else self.listeners[0]
