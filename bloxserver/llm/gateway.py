"""The one access to language models: selects the provider of a model, and asks another one if it fails."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from bloxserver.clients.embeddings import Embeddings
from bloxserver.clients.llm import ModelClient, create_http_client
from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import StreamEnd, StreamEvent
from bloxserver.clock import now
from bloxserver.encryption import get_cipher
from bloxserver.llm.admission import CallLimits, Spent
from bloxserver.llm.cache import ResponseCache, cached_as
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.ledger import CallReport, Ledger
from bloxserver.llm.own_keys import KeyRoute, OwnKeys
from bloxserver.llm.states import Breakers, Clock, DatabaseStates, MemoryStates, Request
from bloxserver.llm.streaming import StreamProgress, stream_of_first
from bloxserver.model_catalogue import Provider, Route, catalogue_of, operator_secrets
from bloxserver.models.database import Database
from bloxserver.observability import metrics
from bloxserver.redaction import Redactor
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from httpx2 import AsyncClient
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.tools import ToolDefinition

Response = TypeVar("Response")

FAILURES = ("llm_unavailable", "llm_unreachable", "llm_timeout", "llm_cut_off", "llm_unusable_answer")
"""Errors of a provider, which count for its circuit breaker."""
EXHAUSTED = ("llm_rate_limited", "llm_quota_exceeded")
"""The provider works, but does not accept the request now."""


class LanguageModels:
    """Sends requests to the providers in the settings. An instance belongs to one event loop."""

    def __init__(self, settings: Settings, database: Database | None = None, clock: Clock = now) -> None:
        """With a database, all processes share the states of circuit breakers.

        Raises `SettingsError` if the file of `LLM_PROVIDERS` is invalid.
        """
        self._catalogue = catalogue_of(settings)
        self._secrets = operator_secrets(settings)
        self._redactor = Redactor(self._secrets)
        self._clock = clock
        self._breakers = Breakers(MemoryStates() if database is None else DatabaseStates(database), clock)
        self._ledger = None if database is None else Ledger(database)
        self._limits = None if database is None else CallLimits.of(settings, database, clock)
        self._cache = ResponseCache(settings.llm_cache_bytes, clock)
        self._shares_responses = settings.llm_cache_shared
        self._http: AsyncClient | None = None
        self._clients: dict[str, ModelClient] = {}
        self._load_lock = asyncio.Lock()
        self._own_keys: OwnKeys | None = None
        if database is not None and (cipher := get_cipher(settings)) is not None:
            self._own_keys = OwnKeys(database, cipher, self._catalogue, self._create_own_client)

    async def load(self, model: str | None, caller: Caller | None = None) -> None:
        """Import the libraries for this model and create its clients, in a thread. The first call takes seconds.

        `request` calls this too. Call it before importing pydantic_ai's messages. Raises `ModelError`.
        """
        own = await self._own_routes(model, caller)
        if self._own_keys is not None and own:
            await self._own_keys.load(own)
        for route in self._routes(model, needed=not own):
            await self._client(route.provider)

    def of(self, caller: Caller) -> CallerModels:
        """Return the access for one caller."""
        return CallerModels(self, caller)

    async def request(self, call: ModelCall, caller: Caller | None = None) -> ModelResponse:
        """Return the complete response of the model: text, tool calls, or both. Raises `ModelError`.

        It may be the response to an equal request; see `cache.cached_as`. Its usage is zero then.
        """
        async with self._reported(call.model, caller) as report:
            response = await self._cached(call, caller, report)
            report.cached = cached_as(response) is not None
            report.used(response.usage.input_tokens, response.usage.output_tokens)
            return response

    async def _cached(self, call: ModelCall, caller: Caller | None, report: CallReport) -> ModelResponse:
        own = await self._own_routes(call.model, caller)
        return await self._cache.request(
            call,
            [*(route for _, route in own), *self._routes(call.model, needed=not own)],
            None if caller is None else caller.user_id,
            lambda: self._ask_with_own_keys(own, call, caller, report),
            shared=self._shares_responses and not own,
        )

    async def _own_routes(self, model: str | None, caller: Caller | None) -> list[KeyRoute]:
        """The caller's own keys for the model, and where they are sent."""
        return [] if self._own_keys is None or caller is None else await self._own_keys.routes(model, caller)

    async def _ask_with_own_keys(
        self, own: list[KeyRoute], call: ModelCall, caller: Caller | None, report: CallReport
    ) -> ModelResponse:
        """Ask with the caller's own keys first."""
        if self._own_keys is not None and caller is not None and own:
            response = await self._own_keys.request(own, call, caller, report)
            if response is not None:
                return response
        return await self._ask_within_limits(call, caller, report)

    async def _ask_within_limits(self, call: ModelCall, caller: Caller | None, report: CallReport) -> ModelResponse:
        """Ask the providers with the operator's keys, within the limits of the caller's plan."""
        async with self._reserved(call, caller) as spent:
            try:
                response = await self._ask_providers(call, report)
            except ModelError as error:
                spent.tokens = error.input_tokens + error.output_tokens
                raise
            spent.tokens = response.usage.input_tokens + response.usage.output_tokens
            return response

    @asynccontextmanager
    async def _reserved(self, call: ModelCall, caller: Caller | None) -> AsyncIterator[Spent]:
        """Reserve what the call may use within the block. Raises `ModelLimitReached`."""
        if self._limits is None or caller is None:
            yield Spent()
            return
        clients = [await self._client(route.provider) for route in self._routes(call.model)]
        seconds = sum(client.timeout_seconds(call.max_tokens) for client in clients)
        async with self._limits.reserved(call, caller, seconds) as spent:
            yield spent

    @asynccontextmanager
    async def _reported(self, model: str | None, caller: Caller | None) -> AsyncIterator[CallReport]:
        """Record the call that the block makes."""
        if self._ledger is None or caller is None:
            yield CallReport()
            return
        async with self._ledger.reported(caller, model or self._catalogue.default_model or "") as report:
            yield report

    def stream(self, call: ModelCall, caller: Caller | None = None) -> AsyncGenerator[StreamEvent]:
        """Return the events of the response as it arrives; the last one is a `StreamEnd`. Reading raises `ModelError`.

        Another provider is asked only before the first event. Closing the generator cancels the request. The response
        is not taken from the cache.
        """
        return self._stream_within_limits(call, caller)

    async def _stream_within_limits(self, call: ModelCall, caller: Caller | None) -> AsyncGenerator[StreamEvent]:
        async with (
            self._reported(call.model, caller) as report,
            self._reserved(call, caller) as spent,
            aclosing(self._stream_of_first(call, report)) as events,
        ):
            progress = StreamProgress()
            end: StreamEnd | None = None
            try:
                async for event in events:
                    if not progress.has_begun:
                        report.began()
                    progress.add(event)
                    if isinstance(event, StreamEnd):
                        end = event
                    else:
                        yield event
            except BaseException as error:
                if progress.has_begun:
                    progress.estimate(call.messages, report, error)
                elif isinstance(error, ModelError):
                    spent.tokens = error.input_tokens + error.output_tokens
                raise
            if end is not None:
                usage = end.response.usage
                report.used(usage.input_tokens, usage.output_tokens)
                spent.tokens = usage.input_tokens + usage.output_tokens
        # The receiver may close the stream at its last event, which must not look like a cancelled request.
        if end is not None:
            yield end

    def _stream_of_first(self, call: ModelCall, report: CallReport) -> AsyncGenerator[StreamEvent]:
        def ask(route: Route) -> AsyncGenerator[StreamEvent]:
            return self._stream(route, call, report)

        return stream_of_first(self._routes(call.model), ask, _may_ask_another, self._unavailable)

    async def embed(
        self, texts: Sequence[str], model: str, caller: Caller | None = None, *, dimensions: int | None = None
    ) -> Embeddings:
        """Return the embeddings of the texts. Raises `ModelError`."""
        routes = [route for route in self._routes(model) if not route.provider.uses_anthropic_api]
        if not routes:
            message = f'no provider of the model "{model}" offers embeddings'
            raise ModelError("llm_model_not_found", message, retryable=False)
        await self.load(model)
        from pydantic_ai.messages import ModelRequest

        call = ModelCall([ModelRequest.user_text_prompt(text) for text in texts], model, max_tokens=1)
        async with self._reported(model, caller) as report, self._reserved(call, caller) as spent:

            async def ask(route: Route) -> Embeddings | None:
                async with self._admitted(route, call.max_tokens, report) as client:
                    return None if client is None else await client.embed(texts, route.model, dimensions=dimensions)

            embeddings = await self._first_response(routes, ask)
            report.used(embeddings.input_tokens, 0)
            spent.tokens = embeddings.input_tokens
            return embeddings

    def named_models(self) -> dict[str, str]:
        """Return the names of models and aliases, each with the name of a provider. Patterns are not included."""
        return self._catalogue.named_models()

    async def _ask_providers(self, call: ModelCall, report: CallReport) -> ModelResponse:
        return await self._first_response(self._routes(call.model), lambda route: self._ask(route, call, report))

    async def _first_response(
        self, routes: Sequence[Route], ask: Callable[[Route], Awaitable[Response | None]]
    ) -> Response:
        """Ask each provider of the model once, in the order of the catalogue, until one responds.

        Errors that another provider would give as well are raised at once.
        """
        failure: ModelError | None = None
        for route in routes:
            try:
                response = await ask(route)
            except ModelError as error:
                if not _may_ask_another(error):
                    raise
                failure = error
            else:
                if response is not None:
                    return response
        raise failure or await self._unavailable(routes)

    async def _ask(self, route: Route, call: ModelCall, report: CallReport) -> ModelResponse | None:
        """Return the response of one provider; None if it must not be asked now. Raises `ModelError`."""
        async with self._admitted(route, call.max_tokens, report) as client:
            if client is None:
                return None
            return await client.request(
                call.messages,
                route.model,
                tools=call.tools,
                temperature=call.temperature,
                max_tokens=call.max_tokens,
                options=call.options,
            )

    async def _stream(self, route: Route, call: ModelCall, report: CallReport) -> AsyncGenerator[StreamEvent]:
        """Yield the response of one provider; nothing if it must not be asked now. Raises `ModelError`."""
        end: StreamEnd | None = None
        async with self._admitted(route, call.max_tokens, report) as client:
            if client is None:
                return
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
                    if isinstance(event, StreamEnd):
                        end = event
                    else:
                        yield event
        if end is not None:
            yield end

    @asynccontextmanager
    async def _admitted(
        self, route: Route, max_tokens: int | None, report: CallReport
    ) -> AsyncIterator[ModelClient | None]:
        """Yield the client for one request, or None if the provider must not be asked now.

        The result of the block is the result of the request.
        """
        name = route.provider.name
        client = await self._client(route.provider)
        request = await self._breakers.admit(name, client.timeout_seconds(max_tokens))
        if request is None:
            metrics.LLM_REQUESTS.labels(name, "refused").inc()
            yield None
            return
        report.asked(route.provider, route.model)
        try:
            yield client
        except ModelError as error:
            metrics.LLM_REQUESTS.labels(name, error.code).inc()
            await _record(request, error)
            raise
        except BaseException:
            await request.ended()
            raise
        metrics.LLM_REQUESTS.labels(name, "success").inc()
        await request.succeeded()

    async def aclose(self) -> None:
        """Close the connections. The instance cannot be used afterwards."""
        for writer in (self._ledger, self._limits):
            if writer is not None:
                await writer.aclose()
        if self._http is not None:
            await self._http.aclose()

    def _routes(self, model: str | None, *, needed: bool = True) -> list[Route]:
        """The installation's providers for the model. Raises `ModelError` if they are needed and there are none."""
        if needed and self._catalogue.providers and model is not None and not self._catalogue.routes(model):
            raise ModelError("llm_model_not_found", f'no provider offers the model "{model}"', retryable=False)
        if problem := self._catalogue.problem(model):
            if not needed:
                return []
            raise ModelError("llm_not_configured", f"no language model is configured: {problem}", retryable=False)
        return self._catalogue.routes(model)

    async def _client(self, provider: Provider) -> ModelClient:
        if provider.name not in self._clients:
            async with self._load_lock:
                if provider.name not in self._clients:
                    self._clients[provider.name] = await asyncio.to_thread(self._create_client, provider)
        return self._clients[provider.name]

    async def _create_own_client(self, provider: Provider, secret: tuple[str, str]) -> ModelClient:
        """Create a client for a request with a user's own key. It shares the connections."""
        redactor = Redactor([*self._secrets, secret])
        async with self._load_lock:
            return await asyncio.to_thread(self._create_client, provider, redactor)

    def _create_client(self, provider: Provider, redactor: Redactor | None = None) -> ModelClient:
        import pydantic_ai.direct  # noqa: F401

        if self._http is None:
            self._http = create_http_client()
        return ModelClient(provider, self._http, redactor or self._redactor)

    async def _unavailable(self, routes: Sequence[Route]) -> ModelError:
        """The error if no provider may be asked now."""
        moment = self._clock()
        states = [await self._breakers.state(route.provider.name) for route in routes]
        seconds = max(0.0, (min(state.available_at(moment) for state in states) - moment).total_seconds())
        if any(state.is_closed for state in states):
            message = "the rate limit of the language model's server is exceeded"
            return ModelError("llm_rate_limited", message, retryable=True, retry_after=seconds)
        message = "the language model's server has failed repeatedly, and is not asked again yet"
        return ModelError("llm_unavailable", message, retryable=True, retry_after=seconds)


class CallerModels:
    """The access to language models for one caller."""

    def __init__(self, models: LanguageModels, caller: Caller) -> None:
        self._models = models
        self._caller = caller

    async def load(self, model: str | None) -> None:
        """See `LanguageModels.load`."""
        await self._models.load(model, self._caller)

    async def request(
        self,
        messages: Sequence[ModelMessage],
        *,
        model: str | None = None,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        cache: bool = True,
    ) -> ModelResponse:
        """See `LanguageModels.request`."""
        call = ModelCall(messages, model, tools, temperature, max_tokens, cache)
        return await self._models.request(call, self._caller)


def _may_ask_another(error: ModelError) -> bool:
    return error.code in FAILURES or error.code in EXHAUSTED


async def _record(request: Request, error: ModelError) -> None:
    """Tell the circuit breaker of the provider about the error."""
    if error.code in FAILURES:
        await request.failed()
    elif error.code == "llm_rate_limited" and error.retry_after is not None:
        await request.paused(error.retry_after)
    elif error.code in EXHAUSTED:
        await request.ended()
    else:
        # The provider has responded; the error is that of the request.
        await request.succeeded()
