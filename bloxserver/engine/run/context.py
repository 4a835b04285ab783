"""What blocks may use: clients of other services, and data of the execution's flow and its owner."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Self, TypeVar
from uuid import UUID

from pydantic import JsonValue
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.base import AgentContext, BlockContext, BlockError, LanguageModels
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.mail import Mailer, create_mailer
from bloxserver.clients.memory import MemoryBudget, UserMemory
from bloxserver.clients.shares import OutgoingShares
from bloxserver.clock import now
from bloxserver.encryption import SecretCipher, get_cipher
from bloxserver.engine.emails import EmailCounter
from bloxserver.engine.live_texts import LiveTexts
from bloxserver.engine.queue import leases
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.facts import facts_of
from bloxserver.engine.run.flow_calls import CallingExecution, FlowCalls
from bloxserver.engine.run.isolated_tasks import IsolatedTasks
from bloxserver.engine.run.lease_check import LeaseCheck
from bloxserver.engine.run.live_models import LiveModels
from bloxserver.engine.run.messages import Message
from bloxserver.engine.run.names import ExecutionNames
from bloxserver.engine.run.serialization import payload_of
from bloxserver.engine.run.turns import Turns
from bloxserver.errors import BloxError
from bloxserver.llm.budgets import Budget, ExecutionBudget
from bloxserver.llm.calls import Caller
from bloxserver.llm.gateway import LanguageModels as Gateway
from bloxserver.models.database import Database
from bloxserver.organism.model import ExecutionLimits
from bloxserver.queries.execution_costs import read_cost
from bloxserver.queries.resumptions import read_received
from bloxserver.raw_json import Value, value_of_text
from bloxserver.resume_tokens import ResumeTokens, get_resume_tokens
from bloxserver.services import key_values
from bloxserver.services.secrets import SecretUnavailable, decrypt_secrets
from bloxserver.settings import Settings
from bloxserver.storable import json_text

Result = TypeVar("Result")


@dataclass(frozen=True)
class SharedClients:
    """Clients that all executions of a worker share."""

    http: GuardedClient
    mail: Mailer
    models: Gateway
    cipher: SecretCipher | None
    shares: OutgoingShares
    memory: UserMemory
    public_url: str
    """The base URL of the API."""
    turns: Turns = field(default_factory=Turns)
    texts: LiveTexts = field(default_factory=LiveTexts)
    resume_tokens: ResumeTokens | None = None

    @classmethod
    def of(cls, settings: Settings, database: Database | None = None) -> Self:
        return cls(
            http=GuardedClient(allow=settings.ssrf_allow_cidrs),
            mail=create_mailer(settings),
            models=Gateway(settings, database),
            cipher=get_cipher(settings),
            shares=OutgoingShares(),
            memory=UserMemory(),
            public_url=settings.public_url,
            resume_tokens=get_resume_tokens(settings),
        )

    async def aclose(self) -> None:
        await self.models.aclose()


class ClaimedExecutionContext:
    """The context of an execution that this worker has claimed."""

    def __init__(
        self,
        database: Database,
        clients: SharedClients,
        execution: ClaimedExecution,
        execution_input: Value,
        memory: MemoryBudget,
        limits: ExecutionLimits,
        *,
        lease: LeaseCheck | None = None,
        waits: Collection[str] = (),
    ) -> None:
        """`waits` are the listeners that wait for calls of their URLs."""
        self._database = database
        self._clients = clients
        self._execution = execution
        self._lease = lease or LeaseCheck(database, execution)
        self.input = execution_input
        self.picked_up_at = execution.picked_up_at
        self.isolated = IsolatedTasks(execution.user_id, execution.plan, execution.cpu)
        self.memory = memory
        self._budgets = self._budgets_of(limits)
        self._waits = waits
        self._share = clients.shares.of(execution.user_id, execution.plan)

    @cached_property
    def names(self) -> ExecutionNames:
        """The values of the names in expressions. Most definitions use none."""
        clients = self._clients
        return ExecutionNames(facts_of(self._execution, clients.public_url, self._waits, clients.resume_tokens))

    def models(self, message: Message, attempt: int) -> LanguageModels:
        execution = self._execution
        caller = Caller(
            execution.user_id,
            execution.tier,
            execution.plan,
            execution.flow_id,
            execution.id,
            step_id=message.id,
            budgets=self._budgets,
        )
        models = self._clients.models.of(caller)
        return LiveModels(models, self._clients.texts, execution.id, message, attempt)

    def _budgets_of(self, limits: ExecutionLimits) -> list[Budget]:
        execution = self._execution
        budgets: list[Budget] = []
        if limits.max_tokens is not None or limits.max_cost_usd is not None:
            used = execution.input_tokens + execution.output_tokens
            budgets.append(ExecutionBudget(limits.max_tokens, limits.max_cost_usd, used, self._read_cost))
        if limits.daily_max_cost_usd is not None:
            models, maximum = self._clients.models, limits.daily_max_cost_usd
            budgets += models.daily_budget(execution.user_id, execution.flow_id, maximum)
        return budgets

    async def _read_cost(self) -> int:
        """What earlier runs of the execution have cost, in billionths of a US dollar."""
        return await retry_transaction(
            self._database, lambda session: read_cost(session, self._execution.id), read_only=True
        )

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        execution = self._execution
        key = f"{execution.id}:{message.key}"
        memory = self.memory.child()
        return BlockContext(
            http=self._clients.http.limited_to(self._share, memory, self.turn),
            clock=now,
            idempotency_key=key,
            store=FlowStore(
                self._database,
                execution.flow_id,
                key,
                lambda session: leases.lock_lease(session, execution.lease_key, read=True),
            ),
            flows=FlowCalls(
                self._database,
                CallingExecution(
                    id=execution.id,
                    user_id=execution.user_id,
                    depth=execution.depth,
                    key=f"{message.key}#{attempt}",
                    lease=execution.lease,
                ),
            ),
            mail=self._mail,
            isolated=self.isolated,
            input=self.input,
            depth=execution.depth,
            agent=agent,
            memory=memory,
            turn=self.turn,
        )

    @cached_property
    def _mail(self) -> Mailer:
        count_emails = EmailCounter(self._database, self._execution.user_id)

        async def count(recipients: int) -> None:
            await count_emails(recipients)
            await self.require_lease()  # the answer of the database may have been late

        return self._clients.mail.limited_to(self._share, count)

    async def turn(self) -> None:
        await self._clients.turns.take(self._execution.user_id)

    async def require_lease(self) -> None:
        await self._lease.require()

    async def received_calls(self) -> Mapping[str, Value]:
        execution = self._execution

        async def read(session: AsyncSession) -> dict[str, str | None]:
            # A call locks the row too: one that was accepted is committed when this transaction has the lock.
            await leases.lock_lease(session, execution.lease_key, read=True)
            return await read_received(session, execution.id)

        received = await retry_transaction(self._database, read)
        return {name: value_of_text(json_text(payload_of(text))) for name, text in received.items()}

    async def secrets(self, names: frozenset[str]) -> Mapping[str, str]:
        cipher = self._clients.cipher
        if cipher is None:
            raise BlockError("secrets_not_configured", "this server has no API_KEY_ENCRYPTION_KEY", retryable=False)
        try:
            return await retry_transaction(
                self._database,
                lambda session: decrypt_secrets(session, cipher, self._execution.user_id, names),
                read_only=True,
            )
        except SecretUnavailable as error:
            raise BlockError("secret_unavailable", str(error), retryable=False) from None


class FlowStore:
    """The key-value store of a flow, as used by the step with this `idempotency_key`."""

    def __init__(
        self,
        database: Database,
        flow_id: UUID,
        idempotency_key: str,
        require: Callable[[AsyncSession], Awaitable[None]] | None = None,
    ) -> None:
        """`require` is called in each transaction that writes; it raises where the lease is lost."""
        self._database = database
        self._flow_id = flow_id
        self._require = require
        self._step = idempotency_key

    async def get(self, key: str) -> tuple[bool, JsonValue]:
        return await self._do(lambda session: key_values.get_value(session, self._flow_id, key), read_only=True)

    async def set(self, key: str, value: JsonValue) -> None:
        await self._do(lambda session: key_values.set_value(session, self._flow_id, key, value, self._step))

    async def delete(self, key: str) -> bool:
        return await self._do(lambda session: key_values.delete_value(session, self._flow_id, key))

    async def add(self, key: str, value: JsonValue) -> tuple[bool, JsonValue]:
        return await self._do(lambda session: key_values.add_value(session, self._flow_id, key, value, self._step))

    async def increment(self, key: str, by: float) -> float:
        return await self._do(lambda session: key_values.increment_value(session, self._flow_id, key, by, self._step))

    async def _do(self, work: Callable[[AsyncSession], Awaitable[Result]], *, read_only: bool = False) -> Result:
        async def checked(session: AsyncSession) -> Result:
            result = await work(session)
            if self._require is not None and not read_only:
                # Last: the flow is locked before executions.
                await self._require(session)
            return result

        try:
            return await retry_transaction(self._database, checked, read_only=read_only)
        except BloxError as error:
            raise BlockError(error.code, error.message, retryable=False) from None
