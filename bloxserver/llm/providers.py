"""The providers of an installation: which of them is asked for a model, and in which order."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, TypeVar

from bloxserver.clients.embeddings import Embeddings, Inputs
from bloxserver.clients.llm import ModelClient
from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import StreamEnd, StreamEvent
from bloxserver.llm.calls import ModelCall
from bloxserver.llm.ledger import CallReport
from bloxserver.llm.provider_clients import ProviderClients
from bloxserver.llm.slots import Turn
from bloxserver.llm.states import Breakers, Clock, Request
from bloxserver.llm.streaming import stream_of_first
from bloxserver.model_catalogue import Catalogue, Route
from bloxserver.observability import metrics

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse

Response = TypeVar("Response")

FAILURES = ("llm_unavailable", "llm_unreachable", "llm_timeout", "llm_cut_off", "llm_unusable_answer")
"""Errors of a provider, which count for its circuit breaker."""
EXHAUSTED = ("llm_rate_limited", "llm_quota_exceeded")
"""The provider works, but does not accept the request now."""


class Providers:
    """Asks the providers with the operator's keys, each once, until one responds."""

    def __init__(self, catalogue: Catalogue, clients: ProviderClients, breakers: Breakers, clock: Clock) -> None:
        self._catalogue = catalogue
        self._clients = clients
        self._breakers = breakers
        self._clock = clock

    def routes(self, model: str | None, *, needed: bool = True) -> list[Route]:
        """The installation's providers for the model. Raises `ModelError` if they are needed and there are none."""
        if needed and self._catalogue.providers and model is not None and not self._catalogue.routes(model):
            raise ModelError("llm_model_not_found", f'no provider offers the model "{model}"', retryable=False)
        if problem := self._catalogue.problem(model):
            if not needed:
                return []
            raise ModelError("llm_not_configured", f"no language model is configured: {problem}", retryable=False)
        return self._catalogue.routes(model)

    async def load(self, routes: Sequence[Route]) -> None:
        """Import the libraries, and create the clients."""
        for route in routes:
            await self._clients.get(route.provider)

    async def request(self, call: ModelCall, turn: Turn, report: CallReport) -> ModelResponse:
        """Return the response of the first provider that responds. Raises `ModelError`."""
        return await self._first_response(self.routes(call.model), turn, lambda route: self._ask(route, call, report))

    def stream(self, call: ModelCall, turn: Turn, report: CallReport) -> AsyncGenerator[StreamEvent]:
        """Return the events of the first provider that responds. Reading raises `ModelError`."""
        return stream_of_first(
            self.routes(call.model),
            turn,
            lambda route: self._stream(route, call, report),
            _may_ask_another,
            self._unavailable,
        )

    async def embed(
        self, inputs: Inputs, call: ModelCall, turn: Turn, report: CallReport, dimensions: int | None
    ) -> Embeddings:
        """Return the embeddings of the inputs. Raises `ModelError`."""

        async def ask(route: Route) -> Embeddings | None:
            async with self._admitted(route, call.max_tokens, report) as client:
                return None if client is None else await client.embed(inputs, route.model, dimensions=dimensions)

        return await self._first_response(self.routes_of_embeddings(call.model), turn, ask)

    def routes_of_embeddings(self, model: str | None) -> list[Route]:
        """The providers that offer embeddings with this model. Raises `ModelError` if there are none."""
        routes = [route for route in self.routes(model) if not route.provider.uses_anthropic_api]
        if not routes:
            message = f'no provider of the model "{model}" offers embeddings'
            raise ModelError("llm_model_not_found", message, retryable=False)
        return routes

    async def _first_response(
        self, routes: Sequence[Route], turn: Turn, ask: Callable[[Route], Awaitable[Response | None]]
    ) -> Response:
        """Ask each provider of the model once until one responds, in the order of the catalogue, but first those with
        a free slot.

        Errors that another provider would give as well are raised at once.
        """
        failure: ModelError | None = None
        remaining = list(routes)
        while remaining:
            async with turn.slot([route.provider for route in remaining]) as index:
                try:
                    response = await ask(remaining.pop(index))
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
        client = await self._clients.get(route.provider)
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
