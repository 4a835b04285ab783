"""What blocks may reach: the outside, and what belongs to the execution's flow and its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import JsonValue

from bloxserver.api.models.database import Database
from bloxserver.api.models.types import now
from bloxserver.blocks.base import AgentContext, BlockContext, BlockError
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.llm import LanguageModels
from bloxserver.clients.mail import Mailer, mailer_of
from bloxserver.engine.calls import Calls
from bloxserver.engine.patience import in_transaction
from bloxserver.engine.steps import Message
from bloxserver.engine.store import FlowStore
from bloxserver.sealing import Sealer, sealer_of
from bloxserver.services import leases
from bloxserver.services.calls import CallingExecution
from bloxserver.services.claims import TakenExecution
from bloxserver.services.secrets import SecretUnavailable, open_secrets
from bloxserver.settings import Settings


@dataclass(frozen=True)
class Outside:
    """What a worker shares among all executions."""

    http: GuardedClient
    mail: Mailer
    models: LanguageModels
    sealer: Sealer | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            http=GuardedClient(allow=settings.ssrf_allow_cidrs),
            mail=mailer_of(settings),
            models=LanguageModels(settings),
            sealer=sealer_of(settings),
        )

    async def aclose(self) -> None:
        await self.http.aclose()
        await self.models.aclose()


class ExecutionWorld:
    """What one execution may reach."""

    def __init__(
        self, database: Database, outside: Outside, execution: TakenExecution, execution_input: JsonValue
    ) -> None:
        self._database = database
        self._outside = outside
        self._execution = execution
        self.models = outside.models
        self.input = execution_input

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        execution = self._execution
        key = f"{execution.id}:{message.key}"
        return BlockContext(
            http=self._outside.http,
            clock=now,
            idempotency_key=key,
            store=FlowStore(
                self._database, execution.flow_id, key, lambda session: leases.keep_lease(session, execution)
            ),
            flows=Calls(
                self._database,
                CallingExecution(
                    id=execution.id,
                    user_id=execution.user_id,
                    depth=execution.depth,
                    key=f"{message.key}#{attempt}",
                    lease=execution.lease,
                ),
            ),
            mail=self._outside.mail,
            input=self.input,
            depth=execution.depth,
            agent=agent,
        )

    async def secrets(self, names: frozenset[str]) -> Mapping[str, str]:
        sealer = self._outside.sealer
        if sealer is None:
            raise BlockError("secrets_not_configured", "this server has no API_KEY_ENCRYPTION_KEY", retryable=False)
        try:
            return await in_transaction(
                self._database,
                lambda session: open_secrets(session, sealer, self._execution.user_id, names),
                read_only=True,
            )
        except SecretUnavailable as error:
            raise BlockError("secret_unavailable", str(error), retryable=False) from None
