"""Calls of language models with the user's own keys for providers."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from uuid import UUID
from weakref import WeakValueDictionary

import structlog
from pydantic import SecretStr
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.account_emails.kinds import Email, EmailKind
from bloxserver.account_emails.outbox import enqueue
from bloxserver.clients.embeddings import Embeddings, Inputs
from bloxserver.clients.llm import ModelClient, timeout_of
from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import StreamEvent
from bloxserver.clock import iso_utc, now
from bloxserver.encryption import DecryptionError, SecretCipher
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.ledger import CallReport
from bloxserver.model_catalogue import Catalogue, Provider, Route
from bloxserver.models.database import Database
from bloxserver.models.transient_errors import describe_error
from bloxserver.observability import metrics
from bloxserver.queries.llm_keys import StoredKey, read_usable_keys
from bloxserver.services.llm_keys import USE_INTERVAL, decrypt_llm_key, invalidate_llm_key, note_use

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

log = structlog.stdlib.get_logger("bloxserver.llm")

Response = TypeVar("Response")

MAX_CONCURRENT = 20
"""Calls of a user with their own keys in one process."""
MAX_AGE_SECONDS = 1.0
"""The keys of a user are read again after this time, so a key that was added or deleted is known within it."""
MAX_USERS = 10_000
"""Users whose keys are held in memory, encrypted. They are used if the database cannot be reached."""
FINAL = ("llm_rejected", "llm_too_long", "llm_refused", "llm_context_exceeded", "llm_not_configured")
"""Errors that another key or another provider would give as well."""

CreateClient = Callable[[Provider, tuple[str, str]], Awaitable[ModelClient]]
"""Creates the client of a provider, which replaces in its results this secret by this mark: `(mark, secret)`."""


class TooManyCalls(ModelError):
    """`MAX_CONCURRENT` calls of the user were running for the whole wait."""

    def __init__(self) -> None:
        message = f"{MAX_CONCURRENT} calls with your own keys are running already"
        super().__init__("llm_rate_limited", message, retryable=True)


class KeyRoute(NamedTuple):
    """A key of a user, and the provider to ask with it."""

    key: StoredKey
    route: Route


class _Known(NamedTuple):
    keys: Sequence[StoredKey]
    read_at: float


class OwnKeys:
    """Sends requests with the keys of their callers, before the providers of the installation are asked."""

    def __init__(
        self, database: Database, cipher: SecretCipher, catalogue: Catalogue, create_client: CreateClient
    ) -> None:
        self._database = database
        self._cipher = cipher
        self._catalogue = catalogue
        self._create_client = create_client
        self._known: dict[UUID, _Known] = {}
        self._loaded: set[bool] = set()
        self._slots: WeakValueDictionary[UUID, asyncio.Semaphore] = WeakValueDictionary()

    async def request(
        self, routes: Sequence[KeyRoute], call: ModelCall, caller: Caller, report: CallReport
    ) -> ModelResponse | None:
        """Return the response of one of the providers; None if another provider may respond.

        Raises `ModelError`, also if no provider of the installation offers the model.
        """

        async def ask(client: ModelClient, route: Route) -> ModelResponse:
            return await client.request(
                call.messages,
                route.model,
                tools=call.tools,
                temperature=call.temperature,
                max_tokens=call.max_tokens,
                options=call.options,
            )

        return await self._first_response(routes, ask, call, caller, report)

    async def embed(
        self,
        routes: Sequence[KeyRoute],
        inputs: Inputs,
        call: ModelCall,
        caller: Caller,
        report: CallReport,
        dimensions: int | None,
    ) -> Embeddings | None:
        """Return the embeddings of the inputs by one of the providers, as `request`."""

        async def ask(client: ModelClient, route: Route) -> Embeddings:
            return await client.embed(inputs, route.model, dimensions=dimensions)

        return await self._first_response(routes, ask, call, caller, report)

    async def _first_response(
        self,
        routes: Sequence[KeyRoute],
        ask: Callable[[ModelClient, Route], Awaitable[Response]],
        call: ModelCall,
        caller: Caller,
        report: CallReport,
    ) -> Response | None:
        failure: ModelError | None = None
        async with self._slot(caller.user_id, timeout_of(routes[0].route.provider, call.max_tokens)):
            for key, route in routes:
                report.asked(route.provider, route.model, own_key=True)
                try:
                    async with self._used(key, route, caller.user_id) as client:
                        return await ask(client, route)
                except ModelError as error:
                    if error.code in FINAL:
                        raise
                    failure = error
        if failure is not None and self._catalogue.problem(call.model):
            raise failure
        return None

    async def load(self, routes: Sequence[KeyRoute]) -> None:
        """Import the libraries for the providers."""
        for _, route in routes:
            if route.provider.uses_anthropic_api not in self._loaded:
                await self._create_client(route.provider, ("", ""))
                self._loaded.add(route.provider.uses_anthropic_api)

    async def routes(self, model: str | None, caller: Caller) -> list[KeyRoute]:
        """The caller's keys for the model and the providers to ask with them. Raises `ModelError`."""
        if not caller.plan.own_model_keys:
            return []
        keys = {key.provider: key for key in await self._read(caller.user_id)}
        if not keys:
            return []
        routes = self._catalogue.routes_with_keys(model, keys)
        return [KeyRoute(keys[route.provider.kind], route) for route in routes]

    async def stream(
        self, routes: Sequence[KeyRoute], call: ModelCall, caller: Caller, report: CallReport
    ) -> AsyncGenerator[StreamEvent]:
        """Yield the response of one of the providers; nothing if another provider may respond.

        Raises `ModelError`, also if no provider of the installation offers the model.
        """
        failure: ModelError | None = None
        async with self._slot(caller.user_id, timeout_of(routes[0].route.provider, call.max_tokens)):
            for key, route in routes:
                report.asked(route.provider, route.model, own_key=True)
                has_begun = False
                try:
                    async with aclosing(self._stream(key, route, call, caller.user_id)) as events:
                        async for event in events:
                            has_begun = True
                            yield event
                except ModelError as error:
                    if has_begun or error.code in FINAL:
                        raise
                    failure = error
                else:
                    return
        if failure is not None and self._catalogue.problem(call.model):
            raise failure

    async def _stream(
        self, key: StoredKey, route: Route, call: ModelCall, user_id: UUID
    ) -> AsyncGenerator[StreamEvent]:
        async with self._used(key, route, user_id) as client:
            events = client.stream(
                call.messages,
                route.model,
                tools=call.tools,
                temperature=call.temperature,
                max_tokens=call.max_tokens,
                options=call.options,
            )
            async with aclosing(events):
                async for event in events:
                    yield event

    @asynccontextmanager
    async def _used(self, key: StoredKey, route: Route, user_id: UUID) -> AsyncIterator[ModelClient]:
        """Yield the client for one request with the key. The result of the block is the result of the request."""
        name = f"your own key for {key.provider}"
        try:
            text = decrypt_llm_key(self._cipher, user_id, key)
        except DecryptionError:
            log.warning("own key for language models unreadable", user_id=str(user_id), provider=key.provider)
            message = f"the server can no longer read {name}: add it again"
            raise ModelError("llm_unauthorized", message, retryable=False) from None
        provider = dataclasses.replace(
            route.provider, key=SecretStr(text), key_setting=name, url_setting="the status of the provider"
        )
        client = await self._create_client(provider, (f"[{name}]", text))
        try:
            yield client
        except ModelError as error:
            metrics.LLM_REQUESTS.labels(f"own:{key.provider}", error.code).inc()
            if error.is_key_invalid:
                await self._invalidate(key, user_id, error)
            raise
        metrics.LLM_REQUESTS.labels(f"own:{key.provider}", "success").inc()
        await self._note_use(key)

    async def _invalidate(self, key: StoredKey, user_id: UUID, error: ModelError) -> None:
        await self._write(lambda session: _invalidate(session, user_id, key, error.message))
        # Other processes may send requests with the key until they read the user's keys again.
        self._known.pop(user_id, None)

    async def _note_use(self, key: StoredKey) -> None:
        moment = now()
        if key.last_used_at is None or key.last_used_at <= moment - USE_INTERVAL:
            key.last_used_at = moment  # so that concurrent calls do not write it too
            await self._write(lambda session: note_use(session, key))

    async def _write(self, write: Callable[[AsyncSession], Awaitable[object]]) -> None:
        """Execute a change of a key. If it fails, the call does not fail, and the next one tries again."""
        try:
            async with self._database.transaction() as session:
                await write(session)
        except Exception as error:
            log.warning("own key for language models not updated", reason=describe_error(error))

    async def _read(self, user_id: UUID) -> Sequence[StoredKey]:
        known = self._known.get(user_id)
        if known is not None and time.monotonic() - known.read_at < MAX_AGE_SECONDS:
            return known.keys
        try:
            async with self._database.transaction(read_only=True, single_statement=True) as session:
                keys: Sequence[StoredKey] = await read_usable_keys(session, user_id)
        except Exception as error:
            log.warning("own keys for language models not read", reason=describe_error(error))
            if known is None:
                raise ModelError("llm_unavailable", "your own keys cannot be read now", retryable=True) from None
            keys = known.keys
        self._known.pop(user_id, None)
        self._known[user_id] = _Known(keys, time.monotonic())
        if len(self._known) > MAX_USERS:
            del self._known[next(iter(self._known))]
        return keys

    @asynccontextmanager
    async def _slot(self, user_id: UUID, seconds: float) -> AsyncIterator[None]:
        """Wait for one of the user's `MAX_CONCURRENT` calls. Raises `TooManyCalls`."""
        slots = self._slots.setdefault(user_id, asyncio.Semaphore(MAX_CONCURRENT))
        try:
            async with asyncio.timeout(seconds):
                await slots.acquire()
        except TimeoutError:
            raise TooManyCalls from None
        try:
            yield
        finally:
            slots.release()


async def _invalidate(session: AsyncSession, user_id: UUID, key: StoredKey, error: str) -> None:
    """Mark a rejected key, and write the email about it in the same transaction, unless it is marked already."""
    if await invalidate_llm_key(session, user_id, key, error):
        kind = EmailKind.MODEL_KEY_INVALID
        # The same key can be added and rejected again, which is another email.
        email = Email(kind, f"{kind}:{key.provider}:{iso_utc(now())}", {"provider": key.provider})
        await enqueue(session, [(user_id, email)])
