"""The one access to language models: records, cache, own keys, limits, and then the providers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from bloxserver.blocks.base import StepWarning
from bloxserver.clients.embeddings import Embeddings, Inputs, parts_of
from bloxserver.clients.llm import timeout_of
from bloxserver.clients.model_errors import ModelError, truncated
from bloxserver.clients.model_streams import FromCache, StreamEvent, TextDelta, events_of
from bloxserver.clock import now
from bloxserver.encryption import get_cipher
from bloxserver.llm.admission import CallLimits, Spent
from bloxserver.llm.budgets import Budget, reserved
from bloxserver.llm.cache import ResponseCache, cached_as
from bloxserver.llm.calls import Caller, ModelCall
from bloxserver.llm.daily_budgets import DailyBudget, DailyCosts
from bloxserver.llm.ledger import CallReport, Ledger
from bloxserver.llm.own_keys import KeyRoute, OwnKeys
from bloxserver.llm.provider_clients import ProviderClients
from bloxserver.llm.providers import Providers
from bloxserver.llm.slots import Slots, Turn
from bloxserver.llm.states import Breakers, Clock, DatabaseStates, MemoryStates
from bloxserver.llm.streaming import StreamProgress
from bloxserver.model_catalogue import Route, catalogue_of, operator_secrets
from bloxserver.models.database import Database
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.tools import ToolDefinition

OnText = Callable[[str], None]
"""Receives the next part of a text."""


class LanguageModels:
    """Sends requests to the providers in the settings. An instance belongs to one event loop."""

    def __init__(self, settings: Settings, database: Database | None = None, clock: Clock = now) -> None:
        """With a database, all processes share the states of circuit breakers and the slots of providers.

        Raises `SettingsError` if the file of `LLM_PROVIDERS` is invalid.
        """
        self._catalogue = catalogue_of(settings)
        self._clients = ProviderClients(operator_secrets(settings))
        breakers = Breakers(MemoryStates() if database is None else DatabaseStates(database), clock)
        self._providers = Providers(self._catalogue, self._clients, breakers, clock)
        self._ledger = None if database is None else Ledger(database)
        self._limits = None if database is None else CallLimits.of(settings, database, clock)
        self._slots = Slots(self._catalogue.providers, database, clock)
        self._daily = None
        self._operator_budgets: list[Budget] = []
        if database is not None and self._ledger is not None:
            self._daily = DailyCosts(database, self._ledger, clock)
            if settings.llm_daily_max_usd is not None:
                self._operator_budgets.append(DailyBudget(self._daily, settings.llm_daily_max_usd, None))
        self._cache = ResponseCache(settings.llm_cache_bytes, clock)
        self._shares_responses = settings.llm_cache_shared
        self._own_keys: OwnKeys | None = None
        if database is not None and (cipher := get_cipher(settings)) is not None:
            self._own_keys = OwnKeys(database, cipher, self._catalogue, self._clients.create_own)

    async def load(self, model: str | None, caller: Caller | None = None) -> None:
        """Import the libraries for this model and create its clients, in a thread. The first call takes seconds.

        `request` calls this too. Call it before importing pydantic_ai's messages. Raises `ModelError`.
        """
        own = await self._own_routes(model, caller)
        if self._own_keys is not None and own:
            await self._own_keys.load(own)
        await self._providers.load(self._providers.routes(model, needed=not own))

    def of(self, caller: Caller) -> CallerModels:
        """Return the access for one caller."""
        return CallerModels(self, caller)

    def daily_budget(self, user_id: UUID, flow_id: UUID, max_cost_usd: float) -> list[Budget]:
        """Return the budget of a flow; nothing without a database."""
        return [] if self._daily is None else [DailyBudget(self._daily, max_cost_usd, (user_id, flow_id))]

    async def request(
        self, call: ModelCall, caller: Caller | None = None, on_text: OnText | None = None
    ) -> ModelResponse:
        """Return the complete response of the model: text, tool calls, or both. Raises `ModelError`.

        It may be the response to an equal request; see `cache.cached_as`. Its usage is zero then. With `on_text`, the
        response is streamed from the provider, and each part of its text is passed on when it arrives.
        """
        async with self._reported(call.model, caller) as report:
            response = await self._cached(call, caller, report, on_text)
            report.cached = cached_as(response) is not None
            report.used(response.usage.input_tokens, response.usage.output_tokens)
            if on_text is not None and report.cached and response.text:
                on_text(response.text)
            return response

    async def _cached(
        self, call: ModelCall, caller: Caller | None, report: CallReport, on_text: OnText | None
    ) -> ModelResponse:
        own = await self._own_routes(call.model, caller)

        async def ask() -> ModelResponse:
            if on_text is None:
                return await self._ask_within_budgets(own, call, caller, report)
            return await self._ask_streaming(own, call, caller, report, on_text)

        return await self._cache.request(
            call,
            self._all_routes(own, call),
            None if caller is None else caller.user_id,
            ask,
            shared=self._shares_responses and not own,
        )

    def _all_routes(self, own: list[KeyRoute], call: ModelCall) -> list[Route]:
        """The providers that may be asked."""
        return [*(route for _, route in own), *self._providers.routes(call.model, needed=not own)]

    async def _ask_streaming(
        self, own: list[KeyRoute], call: ModelCall, caller: Caller | None, report: CallReport, on_text: OnText
    ) -> ModelResponse:
        """Ask, and pass on the text as it arrives."""
        progress = StreamProgress(call)
        async with aclosing(self._parts(own, call, caller, report, progress)) as parts:
            async for part in parts:
                if isinstance(part, TextDelta):
                    on_text(part.text)
        if progress.end is None:  # follow() returns without an end only if a provider yields none
            raise truncated()
        return progress.end.response

    async def _own_routes(self, model: str | None, caller: Caller | None) -> list[KeyRoute]:
        """The caller's own keys for the model, and where they are sent."""
        return [] if self._own_keys is None or caller is None else await self._own_keys.routes(model, caller)

    async def _ask_within_budgets(
        self, own: list[KeyRoute], call: ModelCall, caller: Caller | None, report: CallReport
    ) -> ModelResponse:
        """Ask, unless a budget of the caller refuses the call."""
        if caller is None or not caller.budgets:
            return await self._ask_with_own_keys(own, call, caller, report)
        async with reserved(caller.budgets, call, self._all_routes(own, call), report):
            response = await self._ask_with_own_keys(own, call, caller, report)
            report.used(response.usage.input_tokens, response.usage.output_tokens)
            return response

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
        async with self._reserved(call, caller, self._providers.routes(call.model), report) as (spent, turn):
            try:
                response = await self._providers.request(call, turn, report)
            except ModelError as error:
                spent.tokens = error.input_tokens + error.output_tokens
                raise
            report.used(response.usage.input_tokens, response.usage.output_tokens)
            spent.tokens = response.usage.input_tokens + response.usage.output_tokens
            return response

    @asynccontextmanager
    async def _reserved(
        self, call: ModelCall, caller: Caller | None, routes: Sequence[Route], report: CallReport
    ) -> AsyncIterator[tuple[Spent, Turn]]:
        """Admit the call with the operator's keys, and reserve what it may use.

        Raises `BudgetExceeded`, `ModelOverloaded` and `ModelLimitReached`.
        """
        providers = [route.provider for route in routes]
        seconds = [timeout_of(provider, call.max_tokens) for provider in providers]
        async with reserved(self._operator_budgets, call, routes, report):
            with self._slots.turn(providers, caller, max(seconds)) as turn:
                if self._limits is None or caller is None:
                    yield Spent(), turn
                    return
                async with self._limits.reserved(call, caller, turn.seconds + sum(seconds)) as spent:
                    yield spent, turn

    @asynccontextmanager
    async def _reported(self, model: str | None, caller: Caller | None) -> AsyncIterator[CallReport]:
        """Record the call that the block makes."""
        if self._ledger is None or caller is None:
            yield CallReport()
            return
        async with self._ledger.reported(caller, model or self._catalogue.default_model or "") as report:
            yield report

    async def stream(self, call: ModelCall, caller: Caller | None = None) -> AsyncGenerator[StreamEvent]:
        """Yield the events of the response as it arrives; the last one is a `StreamEnd`. Raises `ModelError`.

        Another provider is asked only before the first event. Closing the generator cancels the request. If the
        response is that of an equal request, the first event is `FromCache`. Equal requests do not wait for a stream,
        because its receiver may be slow.
        """
        progress = StreamProgress(call)
        async with self._reported(call.model, caller) as report:
            own = await self._own_routes(call.model, caller)
            kept, slot = await self._cache.find(
                call,
                self._all_routes(own, call),
                None if caller is None else caller.user_id,
                shared=self._shares_responses and not own,
            )
            report.cached = kept is not None
            if kept is None:
                async with aclosing(self._parts(own, call, caller, report, progress)) as parts:
                    async for part in parts:
                        yield part
                if progress.end is not None and slot is not None:
                    self._cache.add(slot, progress.end.response)
        # The receiver may close the stream at its last event, which must not look like a cancelled request.
        if kept is not None:
            yield FromCache()
            for event in events_of(kept):
                yield event
        elif progress.end is not None:
            yield progress.end

    async def _parts(
        self,
        own: list[KeyRoute],
        call: ModelCall,
        caller: Caller | None,
        report: CallReport,
        progress: StreamProgress,
    ) -> AsyncGenerator[StreamEvent]:
        """Yield the events but the last one, within the caller's budgets, and with their own keys first."""
        budgets = () if caller is None else caller.budgets
        async with (
            reserved(budgets, call, self._all_routes(own, call), report),
            aclosing(self._parts_with_own_keys(own, call, caller, report, progress)) as parts,
        ):
            async for part in parts:
                yield part

    async def _parts_with_own_keys(
        self,
        own: list[KeyRoute],
        call: ModelCall,
        caller: Caller | None,
        report: CallReport,
        progress: StreamProgress,
    ) -> AsyncGenerator[StreamEvent]:
        if self._own_keys is not None and caller is not None and own:
            events = self._own_keys.stream(own, call, caller, report)
            async with aclosing(progress.follow(events, report, Spent())) as parts:
                async for part in parts:
                    yield part
            if progress.has_begun:
                return
        async with self._reserved(call, caller, self._providers.routes(call.model), report) as (spent, turn):
            events = self._providers.stream(call, turn, report)
            async with aclosing(progress.follow(events, report, spent)) as parts:
                async for part in parts:
                    yield part

    async def embed(
        self, inputs: Inputs, model: str, caller: Caller | None = None, *, dimensions: int | None = None
    ) -> Embeddings:
        """Return the embeddings of the inputs. Raises `ModelError`."""
        await self.load(model, caller)
        from pydantic_ai.messages import ModelRequest

        parts = parts_of(inputs)
        messages = [ModelRequest.user_text_prompt(part) for part in parts if isinstance(part, str)]
        tokens = sum(len(part) for part in parts if not isinstance(part, str))
        call = ModelCall(messages, model, max_tokens=0, input_tokens=tokens)
        async with self._reported(model, caller) as report:
            embeddings = await self._embed(inputs, call, caller, report, dimensions)
            report.used(embeddings.input_tokens, 0)
            return embeddings

    async def _embed(
        self,
        inputs: Inputs,
        call: ModelCall,
        caller: Caller | None,
        report: CallReport,
        dimensions: int | None,
    ) -> Embeddings:
        own = [
            each for each in await self._own_routes(call.model, caller) if not each.route.provider.uses_anthropic_api
        ]
        if self._own_keys is not None and caller is not None and own:
            embeddings = await self._own_keys.embed(own, inputs, call, caller, report, dimensions)
            if embeddings is not None:
                return embeddings
        routes = self._providers.routes_of_embeddings(call.model)
        async with self._reserved(call, caller, routes, report) as (spent, turn):
            embeddings = await self._providers.embed(inputs, call, turn, report, dimensions)
            report.used(embeddings.input_tokens, 0)
            spent.tokens = embeddings.input_tokens
            return embeddings

    def named_models(self) -> dict[str, str]:
        """Return the names of models and aliases, each with the name of a provider. Patterns are not included."""
        return self._catalogue.named_models()

    async def aclose(self) -> None:
        """Close the connections. The instance cannot be used afterwards."""
        for part in (self._ledger, self._limits, self._slots):
            if part is not None:
                await part.aclose()
        await self._clients.aclose()


class CallerModels:
    """The access to language models for one caller."""

    def __init__(self, models: LanguageModels, caller: Caller) -> None:
        self._models = models
        self._caller = caller

    def take_warnings(self) -> list[StepWarning]:
        """Return the warnings of the caller's budgets that were not returned yet."""
        return [warning for budget in self._caller.budgets for warning in budget.take_warnings()]

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
        on_text: OnText | None = None,
    ) -> ModelResponse:
        """See `LanguageModels.request`."""
        call = ModelCall(messages, model, tools, temperature, max_tokens, cache)
        return await self._models.request(call, self._caller, on_text)
