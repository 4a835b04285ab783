"""What blocks may reach: the outside, and what belongs to the execution's flow and its owner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import JsonValue

from bloxserver.blocks.base import AgentContext, BlockContext, BlockError
from bloxserver.clients.http import GuardedClient
from bloxserver.clients.llm import LanguageModels
from bloxserver.clients.mail import Mailer, mailer_of
from bloxserver.clock import now
from bloxserver.encryption import SecretCipher, cipher_of
from bloxserver.engine.queue import leases
from bloxserver.engine.queue.claims import ClaimedExecution
from bloxserver.engine.retry import retry_transaction
from bloxserver.engine.run.flow_call_rows import CallingExecution
from bloxserver.engine.run.flow_calls import FlowCalls
from bloxserver.engine.run.flow_store import FlowStore
from bloxserver.engine.run.messages import Message
from bloxserver.models.database import Database
from bloxserver.services.secrets import SecretUnavailable, decrypt_secrets
from bloxserver.settings import Settings


@dataclass(frozen=True)
class SharedClients:
    """What a worker shares among all executions."""

    http: GuardedClient
    mail: Mailer
    models: LanguageModels
    cipher: SecretCipher | None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        return cls(
            http=GuardedClient(allow=settings.ssrf_allow_cidrs),
            mail=mailer_of(settings),
            models=LanguageModels(settings),
            cipher=cipher_of(settings),
        )

    async def aclose(self) -> None:
        await self.http.aclose()
        await self.models.aclose()


class ClaimedExecutionContext:
    """What one execution may reach."""

    def __init__(
        self, database: Database, clients: SharedClients, execution: ClaimedExecution, execution_input: JsonValue
    ) -> None:
        self._database = database
        self._clients = clients
        self._execution = execution
        self.models = clients.models
        self.input = execution_input

    def context(self, message: Message, attempt: int, agent: AgentContext | None) -> BlockContext:
        execution = self._execution
        key = f"{execution.id}:{message.key}"
        return BlockContext(
            http=self._clients.http,
            clock=now,
            idempotency_key=key,
            store=FlowStore(
                self._database, execution.flow_id, key, lambda session: leases.keep_lease(session, execution)
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
            mail=self._clients.mail,
            input=self.input,
            depth=execution.depth,
            agent=agent,
        )

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
