"""What the API should contain after the calls that were made."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

from hypothesis.vendor.pretty import RepresentationPrinter

from bloxserver.models.default_organism import DEFAULT_ORGANISM

WAITS = """\
organism: {name: waits}
listeners:
  - {name: entry, description: Waits, handler: delay, config: {seconds: 86400}}
"""
FAILS = """\
organism: {name: fails}
listeners:
  - {name: entry, description: Fails for text that is not JSON, handler: json.parse}
"""
INPUT = "no JSON"
"""The input of all executions."""


class Definition(Enum):
    """A definition, and the status that executions of it reach by themselves."""

    GREETS = DEFAULT_ORGANISM, "success"
    FAILS = FAILS, "error"
    WAITS = WAITS, "running"
    INVALID = "listeners: 5", "error"

    def __init__(self, text: str, outcome: str) -> None:
        self.text = text
        self.outcome = outcome

    def __repr__(self) -> str:
        return self.name


@dataclass(eq=False, repr=False)
class Item:
    id: str

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.id}"

    def _repr_pretty_(self, printer: RepresentationPrinter, cycle: bool) -> None:
        """Hypothesis would print all members of a dataclass."""
        printer.text(repr(self))


class Delivery(NamedTuple):
    outcome: str
    run_id: str | None
    redelivery_of: str | None = None


@dataclass(eq=False, repr=False)
class Webhook(Item):
    token: str
    previous_token: str | None = None
    """The token before, while its grace period lasts."""
    enabled: bool = True
    deliveries: list[Delivery] = field(default_factory=list)
    """The oldest first."""
    used_keys: dict[str, str] = field(default_factory=dict)
    """The executions that requests with an idempotency key started."""

    @property
    def tokens(self) -> list[str]:
        return [self.token] if self.previous_token is None else [self.token, self.previous_token]


@dataclass(eq=False, repr=False)
class Run(Item):
    status: str
    version: int
    """The version of the flow that it runs."""
    trigger_id: str | None
    retry_of: str | None


@dataclass(eq=False, repr=False)
class Flow(Item):
    name: str
    tags: list[str]
    """The entity tags that the flow had, the current one last."""
    status: str = "stopped"
    has_error: bool = False
    """Whether the last start failed."""
    versions: list[Definition] = field(default_factory=lambda: [Definition.GREETS])
    active_version: int | None = None
    webhooks: list[Webhook] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    @property
    def path(self) -> str:
        return f"/api/v1/flows/{self.id}"

    @property
    def tag(self) -> str:
        return self.tags[-1]

    @property
    def active(self) -> Definition:
        """The definition that executions run."""
        assert self.active_version is not None
        return self.versions[self.active_version - 1]

    def define(self, definition: Definition) -> None:
        """A change of the definition makes a version; the same definition again makes none."""
        if definition is not self.versions[-1]:
            self.versions.append(definition)

    def counts(self) -> dict[str, int]:
        """The number of executions with each status."""
        statuses = [run.status for run in self.runs]
        return {status: statuses.count(status) for status in ("success", "error", "timeout", "cancelled", "running")}


@dataclass(eq=False, repr=False)
class Key(Item):
    secret: str
    scopes: frozenset[str]
    flow_ids: frozenset[str] | None
    """The flows to which the key is restricted."""

    def reaches(self, flow: Flow) -> bool:
        return self.flow_ids is None or flow.id in self.flow_ids


@dataclass(eq=False, repr=False)
class Model:
    """Everything that belongs to one user."""

    flows: list[Flow] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    dead_tokens: list[str] = field(default_factory=list)
    """Tokens of webhooks that were replaced or deleted."""
    revoked_keys: list[Key] = field(default_factory=list)
    accepted: list[tuple[Flow, Run]] = field(default_factory=list)
    """All executions that were accepted, also those of deleted flows, the oldest first."""

    def running_flows(self) -> list[Flow]:
        return [flow for flow in self.flows if flow.status == "running"]

    def webhooks(self) -> list[tuple[Flow, Webhook]]:
        return [(flow, webhook) for flow in self.flows for webhook in flow.webhooks]

    def runs(self) -> list[tuple[Flow, Run]]:
        """The executions of flows that exist, the oldest first."""
        return [(flow, run) for flow, run in self.accepted if flow in self.flows]

    def add_run(self, flow: Flow, run: Run) -> None:
        flow.runs.append(run)
        self.accepted.append((flow, run))

    def delete_webhook(self, flow: Flow, webhook: Webhook) -> None:
        flow.webhooks.remove(webhook)
        self.dead_tokens += webhook.tokens
        for run in flow.runs:
            if run.trigger_id == webhook.id:
                run.trigger_id = None

    def delete_flow(self, flow: Flow) -> None:
        self.flows.remove(flow)
        self.dead_tokens += [token for webhook in flow.webhooks for token in webhook.tokens]
