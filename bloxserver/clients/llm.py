"""The client for one provider of language models: an OpenAI-compatible server, or Anthropic.

Only `bloxserver.llm` uses it, and `model_keys` its HTTP client. pydantic-ai and the libraries of providers are imported
on first use, because importing them takes seconds.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from bloxserver.clients.embeddings import Embeddings, Inputs, embed, parts_of
from bloxserver.clients.model_errors import ErrorConversion, ModelError
from bloxserver.clients.model_options import NO_OPTIONS, ModelOptions
from bloxserver.clients.model_streams import StreamEnd, StreamEvent, Times, stream_events
from bloxserver.model_catalogue import Provider, is_within
from bloxserver.redaction import Redactor

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model, ModelRequestParameters
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

CONNECT_SECONDS = 10
MAX_CONNECTIONS = 1000
ANTHROPIC_MAX_TOKENS = 4096
"""The default of `max_tokens` for Anthropic, whose API requires it."""
LONG_RESPONSE_TOKENS = 2_000
FIRST_TOKEN_SECONDS = 30
SHORT_RESPONSE_SECONDS = 60
LONG_RESPONSE_SECONDS = 120
EMBEDDING_TOKENS = 0
"""Embeddings have no response of tokens, and the time limit of a short one."""
NO_KEY = "none"


class ModelClient:
    """Sends requests to one provider. An instance belongs to one event loop.

    A request is sent once.
    """

    def __init__(self, provider: Provider, http: AsyncClient, redactor: Redactor) -> None:
        """`redactor` replaces the operator's secrets and the provider's key, which servers can quote in any response.

        Importing the libraries takes seconds, so create the first client of an API in a thread.
        """
        self._provider = provider
        self._redactor = redactor
        self._errors = ErrorConversion(provider, redactor)
        key = NO_KEY if provider.key is None else provider.key.get_secret_value()
        create = _anthropic_factory if provider.uses_anthropic_api else _openai_factory
        self._create = create(provider.base_url, key, http)

    async def request(
        self,
        messages: Sequence[ModelMessage],
        model: str,
        *,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        options: ModelOptions = NO_OPTIONS,
    ) -> ModelResponse:
        """Return the complete response of the model: text, tool calls, or both. Raises `ModelError`.

        A response without a finish reason is accepted, because some servers omit it.
        """
        from pydantic_ai.direct import model_request

        settings, parameters = self._parameters(tools, temperature, max_tokens, options)
        timeout_seconds = self.timeout_seconds(max_tokens)
        try:
            async with asyncio.timeout(timeout_seconds):
                response = await model_request(
                    self._create(model),
                    messages,
                    model_settings=settings,
                    model_request_parameters=parameters,
                    instrument=False,
                )
        except Exception as error:
            raise self._errors.convert(error, model, messages, timeout_seconds) from None
        return self._without_secrets(_check_finish_reason(response, may_end_early=options.may_end_early))

    async def stream(
        self,
        messages: Sequence[ModelMessage],
        model: str,
        *,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
        options: ModelOptions = NO_OPTIONS,
    ) -> AsyncGenerator[StreamEvent]:
        """Yield the response as it arrives, and last a `StreamEnd` with all of it. Raises `ModelError`.

        A response without a finish reason was cut off. Closing the generator closes the connection.
        """
        settings, parameters = self._parameters(tools, temperature, max_tokens, options)
        times = Times(
            self.timeout_seconds(max_tokens), self._provider.first_token_timeout_seconds or FIRST_TOKEN_SECONDS
        )
        events = stream_events(self._create(model), messages, settings, parameters, times, self._redactor)
        async with contextlib.aclosing(events):
            try:
                async for event in events:
                    if isinstance(event, StreamEnd):
                        response = _check_finish_reason(event.response, may_end_early=options.may_end_early)
                        event = dataclasses.replace(event, response=self._without_secrets(response))
                    yield event
            except ModelError:
                raise
            except Exception as error:
                raise self._errors.convert(error, model, messages, times.total_seconds, is_stream=True) from None

    async def embed(self, inputs: Inputs, model: str, *, dimensions: int | None = None) -> Embeddings:
        """Return the embeddings of the inputs. Only providers with OpenAI's API have them. Raises `ModelError`."""
        from pydantic_ai.messages import ModelRequest

        timeout_seconds = self.timeout_seconds(EMBEDDING_TOKENS)
        try:
            async with asyncio.timeout(timeout_seconds):
                return await embed(self._create(model), inputs, dimensions)
        except Exception as error:
            sent = [ModelRequest.user_text_prompt(str(part)) for part in parts_of(inputs)]
            raise self._errors.convert(error, model, sent, timeout_seconds) from None

    def timeout_seconds(self, max_tokens: int | None) -> float:
        return timeout_of(self._provider, max_tokens)

    def _parameters(
        self, tools: Sequence[ToolDefinition], temperature: float | None, max_tokens: int | None, options: ModelOptions
    ) -> tuple[ModelSettings, ModelRequestParameters]:
        from pydantic_ai.models import ModelRequestParameters
        from pydantic_ai.settings import ModelSettings

        settings = ModelSettings()
        if max_tokens is None and self._provider.uses_anthropic_api:
            max_tokens = ANTHROPIC_MAX_TOKENS
        if max_tokens is not None:
            settings["max_tokens"] = max_tokens
        if temperature is not None:
            settings["temperature"] = temperature
        parameters = ModelRequestParameters(function_tools=list(tools))
        uses_anthropic_api = self._provider.uses_anthropic_api
        return settings, options.apply(settings, parameters, uses_anthropic_api=uses_anthropic_api)

    def _without_secrets(self, response: ModelResponse) -> ModelResponse:
        """Replace secrets in the texts and the arguments of tool calls."""
        parts: list[Any] = []
        for part in response.parts:
            values = {name: getattr(part, name, None) for name in ("content", "args")}
            changes: dict[str, Any] = {
                name: self._redactor.redact(value) for name, value in values.items() if isinstance(value, str | dict)
            }
            parts.append(dataclasses.replace(part, **changes))
        return dataclasses.replace(response, parts=parts)


def timeout_of(provider: Provider, max_tokens: int | None) -> float:
    """The maximum seconds of a request."""
    if provider.timeout_seconds is not None:
        return provider.timeout_seconds
    is_short = max_tokens is not None and max_tokens <= LONG_RESPONSE_TOKENS
    return SHORT_RESPONSE_SECONDS if is_short else LONG_RESPONSE_SECONDS


def create_http_client() -> AsyncClient:
    """The HTTP client that all providers of a process share. It uses no proxy and no other environment variable."""
    import httpx2

    from bloxserver.clients.whole_responses import WholeResponses

    # The time for a whole response is limited by `ModelClient`.
    timeout = httpx2.Timeout(None, connect=CONNECT_SECONDS)
    limits = httpx2.Limits(max_connections=MAX_CONNECTIONS)
    transport = WholeResponses(httpx2.AsyncHTTPTransport(verify=_tls(), trust_env=False, limits=limits))
    return httpx2.AsyncClient(transport=transport, trust_env=False, timeout=timeout)


@lru_cache
def _tls() -> SSLContext:
    """Return the TLS context. Cached, because loading the certificate authorities takes tens of milliseconds."""
    import httpx2

    return httpx2.create_ssl_context(trust_env=False)


def _anthropic_factory(base_url: str, key: str, http: AsyncClient) -> Callable[[str], Model[Any]]:
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    # The library appends the version to the path.
    base_url = base_url.removesuffix("/v1")
    client = AsyncAnthropic(api_key=key, base_url=base_url, http_client=http, max_retries=0, timeout=http.timeout)
    provider = AnthropicProvider(anthropic_client=client)
    return lambda model: AnthropicModel(model, provider=provider)


def _openai_factory(base_url: str, key: str, http: AsyncClient) -> Callable[[str], Model[Any]]:
    import pydantic_ai.embeddings.openai  # noqa: F401  (so that `embed` does not import it in the event loop)
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    from bloxserver.clients.chat_completions import ChatClient, ChatModel

    client = ChatClient(api_key=key, base_url=base_url, http_client=http, max_retries=0, timeout=http.timeout)
    provider = OpenAIProvider(openai_client=client)
    # Only OpenAI supports the newer name of max_tokens. Other servers ignore or reject it.
    is_openai = any(is_within(base_url, domain) for domain in ("openai.com", "azure.com"))
    profile = OpenAIModelProfile(openai_chat_supports_max_completion_tokens=is_openai)
    return lambda model: ChatModel(model, provider=provider, profile=profile)


def _check_finish_reason(response: ModelResponse, *, may_end_early: bool) -> ModelResponse:
    """Return the response. Raises `ModelError` if the model did not complete it."""
    details = response.provider_details or {}
    if may_end_early and response.finish_reason in ("length", "content_filter"):
        return dataclasses.replace(response, provider_url=None)
    if response.finish_reason == "length":
        message = "the response exceeds max_tokens, or the conversation exceeds the context window"
        code, retryable = "llm_too_long", False
    elif response.finish_reason == "content_filter":
        message, code, retryable = "a content filter rejected the request or the response", "llm_refused", False
    elif response.finish_reason == "error" or details.get("finish_reason") == "error":
        code, message, retryable = "llm_cut_off", "the language model failed during its response", True
    else:
        # The URL may contain credentials, which must not be stored.
        return dataclasses.replace(response, provider_url=None)
    usage = response.usage
    raise ModelError(
        code, message, retryable=retryable, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens
    )
