"""The providers of a streamed response."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing

from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import (
    StreamEnd,
    StreamEvent,
    TextDelta,
    ToolCallDelta,
    estimated_tokens,
    tokens_of,
)
from bloxserver.llm.admission import Spent
from bloxserver.llm.calls import ModelCall
from bloxserver.llm.ledger import CallReport
from bloxserver.llm.slots import Turn
from bloxserver.model_catalogue import Route

Routes = Sequence[Route]


class StreamProgress:
    """What was streamed so far. It is used to account for a stream that fails or is closed before its end."""

    def __init__(self, call: ModelCall) -> None:
        self._call = call
        self._characters = 0
        self.has_begun = False
        self.end: StreamEnd | None = None

    async def follow(
        self, events: AsyncGenerator[StreamEvent], report: CallReport, spent: Spent
    ) -> AsyncGenerator[StreamEvent]:
        """Yield the events but the last one, which becomes `end`, and report what was used."""
        try:
            async with aclosing(events):
                async for event in events:
                    if not self.has_begun:
                        report.began()
                    self._add(event)
                    if not isinstance(event, StreamEnd):
                        yield event
        except BaseException as error:
            if self.has_begun:
                self._estimate(report, error)
            elif isinstance(error, ModelError):
                spent.tokens = error.input_tokens + error.output_tokens
            raise
        if self.end is not None:
            usage = self.end.response.usage
            report.used(usage.input_tokens, usage.output_tokens)
            spent.tokens = usage.input_tokens + usage.output_tokens

    def _add(self, event: StreamEvent) -> None:
        self.has_begun = True
        if isinstance(event, StreamEnd):
            self.end = event
        elif isinstance(event, TextDelta):
            self._characters += len(event.text)
        elif isinstance(event, ToolCallDelta):
            self._characters += len(event.arguments)

    def _estimate(self, report: CallReport, error: BaseException) -> None:
        """Set estimates of the tokens, which the provider has not sent, in the report and in a `ModelError`."""
        report.used(estimated_tokens(self._call.messages), tokens_of(self._characters))
        if isinstance(error, ModelError):
            error.input_tokens, error.output_tokens = report.input_tokens, report.output_tokens


async def stream_of_first(
    routes: Routes,
    turn: Turn,
    ask: Callable[[Route], AsyncGenerator[StreamEvent]],
    may_ask_another: Callable[[ModelError], bool],
    unavailable: Callable[[Routes], Awaitable[ModelError]],
) -> AsyncGenerator[StreamEvent]:
    """Yield the stream of the first provider that responds. `ask` yields nothing if a provider must not be asked now.

    The order is that of `Providers`. Once an event was yielded, no other provider is asked: the receiver would get two
    beginnings. Raises `ModelError`.
    """
    failure: ModelError | None = None
    remaining = list(routes)
    while remaining:
        has_begun = False
        slot = turn.slot([route.provider for route in remaining])
        async with slot as index, aclosing(ask(remaining.pop(index))) as events:
            try:
                async for event in events:
                    has_begun = True
                    yield event
            except ModelError as error:
                if has_begun or not may_ask_another(error):
                    raise
                failure = error
        if has_begun:
            return
    raise failure or await unavailable(routes)
