"""Responses that call a language model.

They are sent after the request's session has ended, so that no transaction is open during the call. If the client
disconnects, the call is cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from bloxserver.api.chat_requests import ChatRequest, model_call
from bloxserver.api.chat_responses import ChatCompletionWriter, error_event
from bloxserver.api.openai_errors import failure_of, quota_headers
from bloxserver.api.streaming import STREAM_HEADERS
from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import FromCache
from bloxserver.llm.cache import cached_as
from bloxserver.llm.calls import Caller

if TYPE_CHECKING:
    from bloxserver.llm.gateway import LanguageModels

NOT_RUNNING = ModelError("llm_not_configured", "the server runs without language models", retryable=False)


async def _models_if_any(request: Request) -> LanguageModels | None:
    """The access of this process; None if the app runs without its lifespan."""
    models: LanguageModels | None = getattr(request.app.state, "language_models", None)
    return models


# `LanguageModels`, which only a process that starts imports.
ModelsIfAny = Annotated[Any, Depends(_models_if_any)]


async def _models(models: ModelsIfAny) -> Any:
    if models is None:
        raise failure_of(NOT_RUNNING)
    return models


Models = Annotated[Any, Depends(_models)]


class ModelResponse(Response):
    """A response that a function makes with the access to language models. `ModelError` becomes an error response."""

    def __init__(self, respond: Callable[[], Awaitable[Response]], caller: Caller) -> None:
        super().__init__()
        self._respond = respond
        self._caller = caller

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = asyncio.create_task(self._answer(scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            answering.cancel()
            leaving.cancel()
            await asyncio.wait((answering, leaving))
        if not answering.cancelled():
            answering.result()

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            response = await self._respond()
        except ModelError as error:
            raise failure_of(error) from None
        response.headers.update(quota_headers(self._caller))
        await response(scope, receive, send)


class ChatStream(ModelResponse):
    """A completion as Server-Sent Events. The headers are sent with the first token."""

    media_type = "text/event-stream"

    def __init__(self, models: LanguageModels, request: ChatRequest, caller: Caller) -> None:
        Response.__init__(self, headers=STREAM_HEADERS)
        del self.headers["Content-Length"]
        self._models = models
        self._request = request
        self._caller = caller

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = ChatCompletionWriter(self._request.model, includes_usage=self._request.includes_usage)
        has_begun = False

        async def send_part(part: bytes, *, more: bool = True) -> None:
            nonlocal has_begun
            if not has_begun:
                has_begun = True
                self.headers.update(quota_headers(self._caller))
                await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
                part = writer.beginning() + part
            await send({"type": "http.response.body", "body": part, "more_body": more})

        try:
            await self._models.load(self._request.model, self._caller)
            async with aclosing(self._models.stream(model_call(self._request), self._caller)) as events:
                async for event in events:
                    if isinstance(event, FromCache):
                        self.headers["X-Cache"] = "hit"
                    else:
                        await send_part(writer.event(event))
        except ModelError as error:
            if not has_begun:
                raise failure_of(error) from None
            await send_part(error_event(error))
        await send_part(b"", more=False)


def chat_completion(models: LanguageModels, request: ChatRequest, caller: Caller) -> Response:
    """The response to a request for a chat completion."""
    if request.stream:
        return ChatStream(models, request, caller)

    async def respond() -> Response:
        await models.load(request.model, caller)
        response = await models.request(model_call(request), caller)
        cached = cached_as(response)
        headers = {} if cached is None else {"X-Cache": "hit"}
        return JSONResponse(ChatCompletionWriter(request.model).whole(response), headers=headers)

    return ModelResponse(respond, caller)


async def _disconnected(receive: Receive) -> None:
    with suppress(Exception):
        while (await receive())["type"] != "http.disconnect":
            pass
