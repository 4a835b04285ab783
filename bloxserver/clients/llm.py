"""The client for language models: OpenAI-compatible servers, and Anthropic.

`LanguageModels` is the only access to models; selection of servers, rate limits, caches and users' own keys belong
there. pydantic-ai and the providers' libraries are imported on first use, because importing them takes seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import structlog

from bloxserver.redaction import Redactor
from bloxserver.settings import Settings

if TYPE_CHECKING:
    from httpx2 import AsyncClient, Timeout
    from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import Model
    from pydantic_ai.settings import ModelSettings
    from pydantic_ai.tools import ToolDefinition

log = structlog.stdlib.get_logger("bloxserver.llm")

CONNECT_SECONDS = 10
MAX_CONNECTIONS = 1000
ANTHROPIC_MAX_TOKENS = 4096
"""The default of `max_tokens` for Anthropic, whose API requires it."""
MAX_REASON_CHARACTERS = 200
QUOTE_CHARACTERS = 20
"""An error message that repeats this many consecutive characters of the request is taken as a quotation of it."""
MAX_COMPARED_CHARACTERS = 64 * 1024
"""The server's message is left out if the request is larger, since each part is searched for hundreds of texts."""
NO_KEY = "none"

ProviderName = Literal["openai", "anthropic"]
DEFAULT_BASE_URLS: dict[ProviderName, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
}


class ModelError(Exception):
    """A request to a model failed, or its response is unusable.

    `code` is stable and in snake_case. The message is for the owner of the flow, and contains neither the API key nor
    the request. `retry_after` is in seconds. The token counts are those of an unusable response.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        retry_after: float | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens


class LanguageModels:
    """Sends requests to the models in the settings. An instance belongs to one event loop.

    A request is sent once; the listener's retry policy applies. Responses are not streamed: an interrupted stream looks
    like a short response, but an incomplete body is an error.
    """

    def __init__(self, settings: Settings) -> None:
        self._provider = settings.llm_provider
        self._base_url = settings.llm_base_url
        self._key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
        self._redactor = Redactor(settings.operator_secrets)
        """Servers can quote the request, with the key in its header, also in a response without an error."""
        self._default_model = settings.llm_model
        self._timeout_seconds = settings.llm_timeout_seconds
        self._http: AsyncClient | None = None
        self._models: dict[ProviderName, Callable[[str], Model[Any]]] = {}
        self._load_lock = asyncio.Lock()

    def problem(self, model: str | None) -> str | None:
        """Return which settings this model needs, or None. `model` defaults to that of the settings."""
        missing: list[str] = []
        if self._base_url is None and self._key is None:
            missing.append("set LLM_API_KEY, or LLM_BASE_URL for a server that needs no key")
        if self._base_url is not None and not _is_valid_url(self._base_url):
            missing.append("LLM_BASE_URL must be an http or https URL without user name and password")
        if not (model or self._default_model):
            missing.append("set model in the listener, or LLM_MODEL")
        return "; ".join(missing) or None

    async def load(self, model: str | None) -> None:
        """Import the libraries for this model and create its client, in a thread. The first call takes seconds.

        `request` calls this too. Call it before importing pydantic_ai's messages. Raises `ModelError`.
        """
        if problem := self.problem(model):
            raise ModelError("llm_not_configured", f"no language model is configured: {problem}", retryable=False)
        name = self.select_provider(model or self._default_model or "")
        async with self._load_lock:
            if name not in self._models:
                self._models[name] = await asyncio.to_thread(self._create_factory, name)

    async def request(
        self,
        messages: Sequence[ModelMessage],
        *,
        model: str | None = None,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> ModelResponse:
        """Return the complete response of the model: text, tool calls, or both. Raises `ModelError`.

        A response without a finish reason is accepted, because some servers omit it.
        """
        await self.load(model)
        from pydantic_ai.direct import model_request
        from pydantic_ai.models import ModelRequestParameters

        name = model or self._default_model or ""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await model_request(
                    self._models[self.select_provider(name)](name),
                    messages,
                    model_settings=self._model_settings(name, temperature, max_tokens),
                    model_request_parameters=ModelRequestParameters(function_tools=list(tools)),
                    instrument=False,
                )
        except TimeoutError:
            raise _timeout(self._timeout_seconds) from None
        except Exception as error:
            raise self._to_model_error(error, name, messages) from None
        return self._without_secrets(_check_finish_reason(response))

    def _without_secrets(self, response: ModelResponse) -> ModelResponse:
        """Replace the operator's secrets in the texts and the arguments of tool calls."""
        parts: list[Any] = []
        for part in response.parts:
            values = {name: getattr(part, name, None) for name in ("content", "args")}
            changes: dict[str, Any] = {
                name: self._redactor.redact(value) for name, value in values.items() if isinstance(value, str | dict)
            }
            parts.append(dataclasses.replace(part, **changes))
        return dataclasses.replace(response, parts=parts)

    async def aclose(self) -> None:
        """Close the connections. The instance cannot be used afterwards."""
        if self._http is not None:
            await self._http.aclose()

    def select_provider(self, model: str) -> ProviderName:
        """Return the provider whose API is used for this model."""
        if self._provider is not None:
            return self._provider
        if self._base_url is None:
            return "anthropic" if model.startswith("claude") else "openai"
        return "anthropic" if _is_within(self._base_url, "anthropic.com") else "openai"

    def _create_factory(self, name: ProviderName) -> Callable[[str], Model[Any]]:
        """Return a function that creates a model by name. The environment is ignored, in particular its API keys."""
        import httpx2
        import pydantic_ai.direct  # noqa: F401

        timeout = httpx2.Timeout(self._timeout_seconds, connect=min(CONNECT_SECONDS, self._timeout_seconds))
        if self._http is None:
            limits = httpx2.Limits(max_connections=MAX_CONNECTIONS)
            self._http = httpx2.AsyncClient(trust_env=False, timeout=timeout, limits=limits)
        base_url, key = self._base_url or DEFAULT_BASE_URLS[name], self._key or NO_KEY
        create = _anthropic_factory if name == "anthropic" else _openai_factory
        return create(base_url, key, self._http, timeout)

    def _model_settings(self, model: str, temperature: float | None, max_tokens: int | None) -> ModelSettings:
        from pydantic_ai.settings import ModelSettings

        settings = ModelSettings()
        if max_tokens is None and self.select_provider(model) == "anthropic":
            max_tokens = ANTHROPIC_MAX_TOKENS
        if max_tokens is not None:
            settings["max_tokens"] = max_tokens
        if temperature is not None:
            settings["temperature"] = temperature
        return settings

    def _to_model_error(self, error: Exception, model: str, messages: Sequence[ModelMessage]) -> ModelError:
        """Convert an exception of a request to a `ModelError`."""
        from pydantic_ai import exceptions

        match error:
            case exceptions.ModelConnectionError():
                return _connection_failure(error, self._timeout_seconds)
            case exceptions.ModelHTTPError() if error.status_code >= 400:
                return self._from_status(error, model, messages)
            case exceptions.ModelAPIError() if _is_truncated(error.__cause__):
                return _truncated()
            case exceptions.AgentRunError():
                pass
            case _:
                # The message and the traceback of the exception may contain the request.
                log.warning("unexpected language model error", error=type(error).__name__)
        message = "the response is not that of a language model; check LLM_BASE_URL"
        return ModelError("llm_unusable_answer", message, retryable=True)

    def _from_status(self, error: ModelHTTPError, model: str, messages: Sequence[ModelMessage]) -> ModelError:
        """Convert a response with an error status to a `ModelError`."""
        from pydantic_ai import exceptions

        status = f"(status {error.status_code})"
        match error:
            case exceptions.ModelRateLimitError():
                message = f"the rate limit of the language model's server is exceeded {status}"
                return ModelError("llm_rate_limited", message, retryable=True, retry_after=error.retry_after)
            case exceptions.ModelQuotaExceededError():
                message = f"the quota or the credit of LLM_API_KEY is exhausted {status}"
                return ModelError("llm_quota_exceeded", message, retryable=False)
            case exceptions.ModelAuthenticationError():
                message = f"the language model's server rejected the API key {status}; check LLM_API_KEY"
                return ModelError("llm_unauthorized", message, retryable=False)
            case exceptions.ModelNotFoundError():
                message = f'the model "{model}" was not found {status}; check its name and LLM_BASE_URL'
                return ModelError("llm_model_not_found", message, retryable=False)
            case exceptions.ModelContextWindowExceededError():
                message = f'the conversation exceeds the context window of the model "{model}" {status}'
                return ModelError("llm_context_exceeded", message, retryable=False)
        if error.status_code >= 500 or error.status_code == 408:
            message = f"the language model's server failed {status}"
            return ModelError("llm_unavailable", message, retryable=True, retry_after=error.retry_after)
        reason = self._redactor.redact_text(_reason(error.body, [*_texts(messages), self._key or NO_KEY]))
        message = f"the language model's server rejected the request {status}{reason}"
        return ModelError("llm_rejected", message, retryable=False)


def _anthropic_factory(base_url: str, key: str, http: AsyncClient, timeout: Timeout) -> Callable[[str], Model[Any]]:
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    # The library appends the version to the path.
    base_url = base_url.removesuffix("/v1")
    client = AsyncAnthropic(api_key=key, base_url=base_url, http_client=http, max_retries=0, timeout=timeout)
    provider = AnthropicProvider(anthropic_client=client)
    return lambda model: AnthropicModel(model, provider=provider)


def _openai_factory(base_url: str, key: str, http: AsyncClient, timeout: Timeout) -> Callable[[str], Model[Any]]:
    from openai import AsyncOpenAI
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    from bloxserver.clients.chat_completions import ChatModel

    client = AsyncOpenAI(api_key=key, base_url=base_url, http_client=http, max_retries=0, timeout=timeout)
    provider = OpenAIProvider(openai_client=client)
    # Only OpenAI supports the newer name of max_tokens. Other servers ignore or reject it.
    is_openai = any(_is_within(base_url, domain) for domain in ("openai.com", "azure.com"))
    profile = OpenAIModelProfile(openai_chat_supports_max_completion_tokens=is_openai)
    return lambda model: ChatModel(model, provider=provider, profile=profile)


def _check_finish_reason(response: ModelResponse) -> ModelResponse:
    """Return the response. Raises `ModelError` if the model did not complete it."""
    details = response.provider_details or {}
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


def _connection_failure(error: ModelConnectionError, seconds: float) -> ModelError:
    from pydantic_ai.exceptions import ModelTimeoutError

    if error.phase == "read" and not isinstance(error, ModelTimeoutError):
        return _truncated()
    if isinstance(error, ModelTimeoutError) and error.phase != "connect":
        return _timeout(seconds)
    return ModelError("llm_unreachable", "the language model's server cannot be reached", retryable=True)


def _timeout(seconds: float) -> ModelError:
    return ModelError("llm_timeout", f"the language model did not respond within {seconds:g} seconds", retryable=True)


def _truncated() -> ModelError:
    return ModelError("llm_cut_off", "the connection closed before the response was complete", retryable=True)


def _is_truncated(cause: BaseException | None) -> bool:
    """Whether the body is the beginning of a JSON document."""
    return isinstance(cause, json.JSONDecodeError) and cause.doc.lstrip().startswith(("{", "["))


def _reason(body: object, sent: Sequence[str]) -> str:
    """Return the server's error message as a suffix; empty if there is none or if it quotes the request."""
    error = body.get("error", body) if isinstance(body, dict) else None
    text = error.get("message") if isinstance(error, dict) else None
    if not isinstance(text, str) or sum(map(len, sent)) > MAX_COMPARED_CHARACTERS:
        return ""
    printable = "".join(character if character.isprintable() else " " for character in text[:MAX_REASON_CHARACTERS])
    starts = range(max(1, len(printable) - QUOTE_CHARACTERS + 1))
    fragments = [printable[start : start + QUOTE_CHARACTERS] for start in starts]
    if any((len(part) > 3 and part in printable) or any(each in part for each in fragments) for part in sent):
        return ""
    return f": {printable}"


def _texts(messages: Sequence[ModelMessage]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            for text in (getattr(part, "content", None), getattr(part, "args", None)):
                if isinstance(text, str):
                    yield text


def _is_valid_url(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.password is None


def _is_within(url: str, domain: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host == domain or host.endswith(f".{domain}")
