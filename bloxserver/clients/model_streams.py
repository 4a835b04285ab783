"""Streamed responses of language models."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from bloxserver.clients.model_errors import texts, timed_out, truncated
from bloxserver.redaction import RedactedText, Redactor

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse, ModelResponseStreamEvent, ToolCallPart
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.settings import ModelSettings

CHARACTERS_PER_TOKEN = 3
"""For estimates, which are too high for most texts and not too low for code."""


@dataclass(frozen=True, slots=True)
class TextDelta:
    """The next part of the text."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """The next part of a tool call. Only the first one of a call has `id` and `name`."""

    index: int
    """The number of the call in the response, from 0."""
    arguments: str
    id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True)
class StreamEnd:
    """The end of a complete response."""

    response: ModelResponse
    is_usage_estimated: bool
    """Whether the numbers of tokens are estimated, because the server has sent none."""


@dataclass(frozen=True, slots=True)
class FromCache:
    """The first event of a response that is not streamed, because it is that of an equal request."""


StreamEvent: TypeAlias = FromCache | TextDelta | ToolCallDelta | StreamEnd


class Times:
    """The time that a provider has. The time in which the receiver does not read is not part of it."""

    def __init__(self, total_seconds: float, first_token_seconds: float) -> None:
        self.total_seconds = total_seconds
        self._first_token_seconds = first_token_seconds
        self._used = 0.0
        self.has_begun = False
        """Whether the first token has arrived."""

    @asynccontextmanager
    async def waiting(self) -> AsyncIterator[None]:
        """Limit the time in the block. Raises `ModelError`."""
        limit = self.total_seconds if self.has_begun else min(self.total_seconds, self._first_token_seconds)
        clock = asyncio.get_running_loop().time
        began_at = clock()
        try:
            async with asyncio.timeout(max(0.0, limit - self._used)):
                yield
        except TimeoutError:
            raise timed_out(limit) from None
        finally:
            self._used += clock() - began_at


async def stream_events(
    model: Model[Any],
    messages: Sequence[ModelMessage],
    settings: ModelSettings,
    parameters: ModelRequestParameters,
    times: Times,
    redactor: Redactor,
) -> AsyncGenerator[StreamEvent]:
    """Yield the redacted response. The parts of the `StreamEnd` are not redacted.

    Raises `ModelError` for a time limit and a missing end, and the exceptions of the libraries.
    """
    from pydantic_ai.direct import model_request_stream

    deltas = _Deltas(redactor)
    async with AsyncExitStack() as stack:
        async with times.waiting():
            stream = await stack.enter_async_context(
                model_request_stream(
                    model, messages, model_settings=settings, model_request_parameters=parameters, instrument=False
                )
            )
        events = cast("AsyncGenerator[ModelResponseStreamEvent]", aiter(stream))
        await stack.enter_async_context(aclosing(events))
        while True:
            async with times.waiting():
                event = await anext(events, None)
            if event is None:
                break
            times.has_begun = True
            for delta in deltas.of(event):
                yield delta
        end = _end(stream, messages)
    for delta in deltas.rest():
        yield delta
    yield end


class _Deltas:
    """Converts the events of a response, and redacts its text and the arguments of each tool call."""

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._text = RedactedText(redactor)
        self._calls: dict[int, tuple[int, RedactedText]] = {}
        """The number of each call and its arguments, by the number of the part of the response."""

    def of(self, event: ModelResponseStreamEvent) -> Iterator[StreamEvent]:
        from pydantic_ai import messages as kinds

        match event:
            case kinds.PartStartEvent(part=kinds.TextPart(content=text)):
                yield from self._text_delta(text)
            case kinds.PartDeltaEvent(delta=kinds.TextPartDelta(content_delta=text)):
                yield from self._text_delta(text)
            case kinds.PartStartEvent(index=part, part=kinds.ToolCallPart() as call):
                yield self._begin_call(part, call)
            case kinds.PartDeltaEvent(index=part, delta=kinds.ToolCallPartDelta(args_delta=arguments)):
                yield from self._arguments_delta(part, _as_text(arguments))

    def rest(self) -> Iterator[StreamEvent]:
        """What was held back by the redaction."""
        if text := self._text.end():
            yield TextDelta(text)
        for index, arguments in self._calls.values():
            if text := arguments.end():
                yield ToolCallDelta(index, text)

    def _text_delta(self, piece: str) -> Iterator[StreamEvent]:
        if text := self._text.add(piece):
            yield TextDelta(text)

    def _begin_call(self, part: int, call: ToolCallPart) -> StreamEvent:
        index, arguments = self._calls[part] = len(self._calls), RedactedText(self._redactor)
        name, id = self._redactor.redact_text(call.tool_name), self._redactor.redact_text(call.tool_call_id)
        return ToolCallDelta(index, arguments.add(_as_text(call.args)), id, name)

    def _arguments_delta(self, part: int, piece: str) -> Iterator[StreamEvent]:
        if part in self._calls:  # not one of the provider's own tools
            index, arguments = self._calls[part]
            if text := arguments.add(piece):
                yield ToolCallDelta(index, text)


def _as_text(arguments: str | dict[str, Any] | None) -> str:
    return json.dumps(arguments) if isinstance(arguments, dict) else arguments or ""


def _end(stream: StreamedResponse, messages: Sequence[ModelMessage]) -> StreamEnd:
    """Return the end of a stream whose events have all been read. Raises `ModelError` if it was cut off."""
    from pydantic_ai.usage import RequestUsage

    response = stream.get()
    # The libraries report a stream without a finish reason as complete.
    if not (response.provider_details or {}).get("finish_reason") and response.finish_reason != "content_filter":
        raise truncated()
    if not response.usage.unmeasured_requests and response.usage.total_tokens:
        return StreamEnd(response, is_usage_estimated=False)
    usage = RequestUsage(input_tokens=estimated_tokens(messages), output_tokens=estimated_tokens([response]))
    return StreamEnd(replace(response, usage=usage), is_usage_estimated=True)


def events_of(response: ModelResponse) -> Iterator[StreamEvent]:
    """Yield a whole response as the events of a stream: a delta for each text and each tool call."""
    for part in response.parts:
        if part.part_kind == "text" and part.content:
            yield TextDelta(part.content)
    for index, call in enumerate(response.tool_calls):
        yield ToolCallDelta(index, _as_text(call.args), call.tool_call_id, call.tool_name)
    yield StreamEnd(response, is_usage_estimated=False)


def estimated_tokens(messages: Sequence[ModelMessage]) -> int:
    return tokens_of(sum(map(len, texts(messages))))


def tokens_of(characters: int) -> int:
    """An estimate."""
    return -(-characters // CHARACTERS_PER_TOKEN)
