"""Runs organisms with the pump alone, without a database, and records what it saves."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from pydantic import JsonValue, RootModel

from bloxserver.blocks.base import AgentContext, Block, BlockContext, NoConfig, Result
from bloxserver.blocks.registry import BlockRegistry, get_registry
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.mail import Mailer
from bloxserver.clients.memory import MemoryBudget
from bloxserver.clock import now
from bloxserver.engine.live_texts import LiveTexts
from bloxserver.engine.queue.values import CalledResult
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.engine.run.live_models import LiveModels
from bloxserver.engine.run.messages import Change, Message, Outcome, Save, Step, Tokens
from bloxserver.engine.run.names import ExecutionNames
from bloxserver.engine.run.pump import Pump
from bloxserver.engine.run.turns import Turns
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import LanguageModels
from bloxserver.organism.model import Organism
from bloxserver.organism.parse import parse
from bloxserver.plans import PLANS
from bloxserver.raw_json import Value
from bloxserver.settings import Settings
from tests.blocks.conftest import NoFlows, NoStore
from tests.llm.callers import caller


@dataclass
class Log:
    """The changes that a pump saved."""

    changes: list[Change] = field(default_factory=list)

    async def save(self, change: Change) -> None:
        self.changes.append(change)

    @property
    def steps(self) -> list[Step]:
        """The last state of every step, in the order in which they ended."""
        by_key: dict[str, Step] = {}
        for step in self.saved:
            by_key.pop(step.message.key, None)
            by_key[step.message.key] = step
        return list(by_key.values())

    @property
    def saved(self) -> list[Step]:
        return [step for change in self.changes for step in change.steps]

    @property
    def used(self) -> Tokens:
        total = Tokens()
        for change in self.changes:
            total = total.plus(change.used)
        return total

    def handled(self) -> list[str]:
        return sorted(step.message.listener for step in self.steps)

    def step(self, listener: str) -> Step:
        (found,) = [step for step in self.steps if step.message.listener == listener]
        return found


class World:
    """An execution context with the given clients and secrets, and without storage."""

    def __init__(
        self,
        http: GuardedClient,
        models: LanguageModels,
        secrets: Mapping[str, str],
        payload: Value = None,
        calling: Caller | None = None,
    ) -> None:
        self._caller = calling or caller()
        self._models = models
        self._texts = LiveTexts()
        self._execution_id = uuid4()
        self.input = payload
        self.picked_up_at = now()
        self.isolated = IsolatedTasks(uuid4(), PLANS["enterprise"])
        self._turns = Turns()
        self.memory = MemoryBudget()
        self._http = http
        self._secrets = secrets
        self.names = ExecutionNames({})
        self.received: Mapping[str, Value] = {}

    def models(self, message: Message, attempt: int) -> LiveModels:
        return LiveModels(self._models.of(self._caller), self._texts, self._execution_id, message, attempt)

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        return BlockContext(
            http=self._http,
            clock=now,
            idempotency_key=message.key,
            store=NoStore(),
            flows=NoFlows(),
            mail=Mailer(default=None, sender=None),
            isolated=self.isolated,
            agent=agent,
            input=self.input,
        )

    async def turn(self) -> None:
        await self._turns.take(self)

    async def require_lease(self) -> None:
        pass  # the pump runs without a database

    async def received_calls(self) -> Mapping[str, Value]:
        return self.received

    async def secrets(self, names: frozenset[str]) -> Mapping[str, str]:
        return {name: self._secrets[name] for name in names}


def organism(*listeners: str, execution: str = "{}") -> str:
    lines = "\n".join(f"  - {{description: d, {listener}}}" for listener in listeners)
    return f"organism: {{name: test}}\nlisteners:\n{lines}\nexecution: {execution}\n"


def echo(name: str, *peers: str) -> str:
    return f"name: {name}, handler: echo, peers: [{', '.join(peers)}]"


class Anything(RootModel[JsonValue]):
    """Any JSON value."""


def block(name: str, handle: Callable[[JsonValue, BlockContext], Awaitable[Result]]) -> Block[Anything, NoConfig]:
    """A block for one test."""

    async def handler(payload: Anything, config: NoConfig, context: BlockContext) -> Result:
        return await handle(payload.root, context)

    return Block(name=name, description="for a test", payload=Anything, config=NoConfig, handler=handler)


def pump_of(organism: Organism, save: Save, **options: Any) -> Pump:
    """A pump whose blocks have no secrets, and no access to private networks or models."""
    return Pump(organism, [], World(GuardedClient(), LanguageModels(Settings()), {}), save, **options)


async def pump(
    text: str,
    payload: Value = None,
    *,
    kept: Sequence[Step] = (),
    entry: str | None = None,
    blocks: Sequence[Block[Anything, NoConfig]] = (),
    settings: Settings | None = None,
    models: LanguageModels | None = None,
    calling: Caller | None = None,
    secrets: Mapping[str, str] | None = None,
    called: Mapping[UUID, CalledResult] | None = None,
    received: Mapping[str, Value] | None = None,
    visible_after: timedelta = timedelta(days=1),
    cancel_grace_seconds: float = 10,
) -> tuple[Outcome, Log]:
    """The outcome of a run, and what it saved."""
    log = Log()
    settings = settings or Settings()
    http = GuardedClient(allow=settings.ssrf_allow_cidrs)
    models = models or LanguageModels(settings)
    parsed = parse(text, BlockRegistry([*get_registry().blocks, *blocks]))
    world = World(http, models, secrets or {}, payload, calling)
    world.received = received or {}
    try:
        sequence = max((step.sequence for step in kept), default=0)
        runs = Pump(
            parsed,
            kept,
            world,
            log.save,
            called,
            sequence=sequence,
            visible_after=visible_after,
            cancel_grace_seconds=cancel_grace_seconds,
        )
        outcome = await runs.run(Message(parsed.entry(entry).name, payload))
    finally:
        await models.aclose()
    assert log.changes[-1].outcome == outcome
    return outcome, log
