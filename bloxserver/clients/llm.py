"""The one way to language models: OpenAI-compatible servers, and Anthropic.

What chooses between servers, limits, caches or takes users' own keys belongs behind `LanguageModels`: nobody else
talks to a model. pydantic-ai and the makers' libraries are imported when first needed, since that takes seconds.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

import structlog

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
"""Anthropic answers nothing unless it is told how long an answer may be."""
MAX_REASON_CHARACTERS = 200
QUOTE_CHARACTERS = 20
"""So many characters in a row that were sent make a server's reason a quotation of it."""
NO_KEY = "none"

ProviderName = Literal["openai", "anthropic"]
DEFAULT_ADDRESSES: dict[ProviderName, str] = {
    "openai": "https://api.openai.com/v1",
    "anthropic": "https://api.anthropic.com",
}


class ModelError(Exception):
    """A model that did not answer, or not usably. `code` is stable and snake_case, the flow's owner reads the text.

    Neither the key nor what was sent is in it. `retry_after` is in seconds. The tokens are those that an unusable
    answer has cost.
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
    """Asks the models that the settings name, by one HTTP client. Belongs to one event loop.

    A request is sent once: trying again is the listener's business. Answers are not streamed: a stream that breaks off
    looks like a short answer, a body that breaks off is an error.
    """

    def __init__(self, settings: Settings) -> None:
        self._provider = settings.llm_provider
        self._address = settings.llm_base_url
        self._key = settings.llm_api_key.get_secret_value() if settings.llm_api_key else None
        self._default_model = settings.llm_model
        self._timeout_seconds = settings.llm_timeout_seconds
        self._http: AsyncClient | None = None
        self._models: dict[ProviderName, Callable[[str], Model[Any]]] = {}
        self._loading = asyncio.Lock()

    def problem(self, model: str | None) -> str | None:
        """What is missing to use this model (null: the one that the settings name), with the variables' names."""
        missing: list[str] = []
        if self._address is None and self._key is None:
            missing.append("set LLM_API_KEY, or LLM_BASE_URL for a server that needs no key")
        if self._address is not None and not _is_address(self._address):
            missing.append("LLM_BASE_URL must be an http or https address, without user name and password")
        if not (model or self._default_model):
            missing.append("name a model in the listener, or set LLM_MODEL")
        return "; ".join(missing) or None

    async def load(self, model: str | None) -> None:
        """Import what this model needs and make its client, away from the event loop: it takes seconds, once.

        `request` does it too; call it before you import pydantic_ai's messages. Raises `ModelError`.
        """
        if problem := self.problem(model):
            raise ModelError("llm_not_configured", f"no language model can be asked: {problem}", retryable=False)
        name = self.provider_of(model or self._default_model or "")
        async with self._loading:
            if name not in self._models:
                self._models[name] = await asyncio.to_thread(self._open, name)

    async def request(
        self,
        messages: Sequence[ModelMessage],
        *,
        model: str | None = None,
        tools: Sequence[ToolDefinition] = (),
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> ModelResponse:
        """The model's answer to the messages, whole: a text, calls of tools, or both. Raises `ModelError`.

        An answer without a reason for its end is taken as it is, since some servers give none.
        """
        await self.load(model)
        from pydantic_ai.direct import model_request
        from pydantic_ai.models import ModelRequestParameters

        name = model or self._default_model or ""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await model_request(
                    self._models[self.provider_of(name)](name),
                    messages,
                    model_settings=self._model_settings(name, temperature, max_tokens),
                    model_request_parameters=ModelRequestParameters(function_tools=list(tools)),
                    instrument=False,
                )
        except TimeoutError:
            raise _timeout(self._timeout_seconds) from None
        except Exception as error:
            raise self._failure(error, name, messages) from None
        return _checked(response)

    async def aclose(self) -> None:
        """Close the connections. It cannot be used again."""
        if self._http is not None:
            await self._http.aclose()

    def provider_of(self, model: str) -> ProviderName:
        """Whose API this model is asked by."""
        if self._provider is not None:
            return self._provider
        if self._address is None:
            return "anthropic" if model.startswith("claude") else "openai"
        return "anthropic" if _is_within(self._address, "anthropic.com") else "openai"

    def _open(self, name: ProviderName) -> Callable[[str], Model[Any]]:
        """Makes a provider's models by name. Nothing is taken from the environment, above all no other key."""
        import httpx2
        import pydantic_ai.direct  # noqa: F401

        timeout = httpx2.Timeout(self._timeout_seconds, connect=min(CONNECT_SECONDS, self._timeout_seconds))
        if self._http is None:
            limits = httpx2.Limits(max_connections=MAX_CONNECTIONS)
            self._http = httpx2.AsyncClient(trust_env=False, timeout=timeout, limits=limits)
        address, key = self._address or DEFAULT_ADDRESSES[name], self._key or NO_KEY
        open_models = _open_anthropic if name == "anthropic" else _open_openai
        return open_models(address, key, self._http, timeout)

    def _model_settings(self, model: str, temperature: float | None, max_tokens: int | None) -> ModelSettings:
        from pydantic_ai.settings import ModelSettings

        settings = ModelSettings()
        if max_tokens is None and self.provider_of(model) == "anthropic":
            max_tokens = ANTHROPIC_MAX_TOKENS
        if max_tokens is not None:
            settings["max_tokens"] = max_tokens
        if temperature is not None:
            settings["temperature"] = temperature
        return settings

    def _failure(self, error: Exception, model: str, messages: Sequence[ModelMessage]) -> ModelError:
        """What a request's exception means."""
        from pydantic_ai import exceptions

        match error:
            case exceptions.ModelConnectionError():
                return _connection_failure(error, self._timeout_seconds)
            case exceptions.ModelHTTPError() if error.status_code >= 400:
                return self._refusal(error, model, messages)
            case exceptions.ModelAPIError() if _is_cut(error.__cause__):
                return _cut_off()
            case exceptions.AgentRunError():
                pass
            case _:
                # Its message may hold what was sent, and so may its traceback.
                log.warning("a language model's answer was not understood", error=type(error).__name__)
        message = "what came back is no answer of a language model: check LLM_BASE_URL"
        return ModelError("llm_unusable_answer", message, retryable=True)

    def _refusal(self, error: ModelHTTPError, model: str, messages: Sequence[ModelMessage]) -> ModelError:
        """What an answer with an error status means."""
        from pydantic_ai import exceptions

        status = f"(status {error.status_code})"
        match error:
            case exceptions.ModelRateLimitError():
                message = f"the language model's server takes no more requests for now {status}"
                return ModelError("llm_rate_limited", message, retryable=True, retry_after=error.retry_after)
            case exceptions.ModelQuotaExceededError():
                message = f"the quota or the credit of LLM_API_KEY is used up {status}"
                return ModelError("llm_quota_exceeded", message, retryable=False)
            case exceptions.ModelAuthenticationError():
                message = f"the language model's server refuses the key {status}: check LLM_API_KEY"
                return ModelError("llm_unauthorized", message, retryable=False)
            case exceptions.ModelNotFoundError():
                message = f'the model "{model}" was not found {status}: check its name, and LLM_BASE_URL'
                return ModelError("llm_model_not_found", message, retryable=False)
            case exceptions.ModelContextWindowExceededError():
                message = f'the conversation is longer than the model "{model}" can read {status}'
                return ModelError("llm_context_exceeded", message, retryable=False)
        if error.status_code >= 500 or error.status_code == 408:
            message = f"the language model's server failed {status}"
            return ModelError("llm_unavailable", message, retryable=True, retry_after=error.retry_after)
        reason = _reason(error.body, [*_texts(messages), self._key or NO_KEY])
        message = f"the language model's server refuses the request {status}{reason}"
        return ModelError("llm_rejected", message, retryable=False)


def _open_anthropic(address: str, key: str, http: AsyncClient, timeout: Timeout) -> Callable[[str], Model[Any]]:
    from anthropic import AsyncAnthropic
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    # The library adds the version to the path itself.
    address = address.removesuffix("/v1")
    client = AsyncAnthropic(api_key=key, base_url=address, http_client=http, max_retries=0, timeout=timeout)
    provider = AnthropicProvider(anthropic_client=client)
    return lambda model: AnthropicModel(model, provider=provider)


def _open_openai(address: str, key: str, http: AsyncClient, timeout: Timeout) -> Callable[[str], Model[Any]]:
    from openai import AsyncOpenAI
    from pydantic_ai.profiles.openai import OpenAIModelProfile
    from pydantic_ai.providers.openai import OpenAIProvider

    from bloxserver.clients.chat_completions import ChatModel

    client = AsyncOpenAI(api_key=key, base_url=address, http_client=http, max_retries=0, timeout=timeout)
    provider = OpenAIProvider(openai_client=client)
    # The newer name of max_tokens is OpenAI's own: other servers ignore it, or refuse it.
    own = any(_is_within(address, domain) for domain in ("openai.com", "azure.com"))
    profile = OpenAIModelProfile(openai_chat_supports_max_completion_tokens=own)
    return lambda model: ChatModel(model, provider=provider, profile=profile)


def _checked(response: ModelResponse) -> ModelResponse:
    """The response, if it came to its own end. Raises `ModelError`."""
    details = response.provider_details or {}
    if response.finish_reason == "length":
        message = "the answer did not fit into max_tokens, or the conversation into the model"
        code, retryable = "llm_too_long", False
    elif response.finish_reason == "content_filter":
        message, code, retryable = "the model or its server refuses to answer this", "llm_refused", False
    elif response.finish_reason == "error" or details.get("finish_reason") == "error":
        code, message, retryable = "llm_cut_off", "the language model broke off its answer", True
    else:
        # The address may hold what is not to be stored.
        return dataclasses.replace(response, provider_url=None)
    usage = response.usage
    raise ModelError(
        code, message, retryable=retryable, input_tokens=usage.input_tokens, output_tokens=usage.output_tokens
    )


def _connection_failure(error: ModelConnectionError, seconds: float) -> ModelError:
    from pydantic_ai.exceptions import ModelTimeoutError

    if error.phase == "read" and not isinstance(error, ModelTimeoutError):
        return _cut_off()
    if isinstance(error, ModelTimeoutError) and error.phase != "connect":
        return _timeout(seconds)
    return ModelError("llm_unreachable", "the language model's server cannot be reached", retryable=True)


def _timeout(seconds: float) -> ModelError:
    return ModelError("llm_timeout", f"the language model gave no answer within {seconds:g} seconds", retryable=True)


def _cut_off() -> ModelError:
    return ModelError("llm_cut_off", "the connection ended before the model's answer did", retryable=True)


def _is_cut(cause: BaseException | None) -> bool:
    """Whether a body that is no JSON was to become some."""
    return isinstance(cause, json.JSONDecodeError) and cause.doc.lstrip().startswith(("{", "["))


def _reason(body: object, sent: Sequence[str]) -> str:
    """What the server says is wrong, to be appended; empty if it quotes what it was sent."""
    error = body.get("error", body) if isinstance(body, dict) else None
    said = error.get("message") if isinstance(error, dict) else None
    if not isinstance(said, str):
        return ""
    said = "".join(character if character.isprintable() else " " for character in said[:MAX_REASON_CHARACTERS])
    runs = [said[start : start + QUOTE_CHARACTERS] for start in range(max(1, len(said) - QUOTE_CHARACTERS + 1))]
    if any((len(text) > 3 and text in said) or any(run in text for run in runs) for text in sent):
        return ""
    return f": {said}"


def _texts(messages: Sequence[ModelMessage]) -> Iterator[str]:
    for message in messages:
        for part in message.parts:
            for text in (getattr(part, "content", None), getattr(part, "args", None)):
                if isinstance(text, str):
                    yield text


def _is_address(text: str) -> bool:
    try:
        url = urlsplit(text)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname) and url.username is None and url.password is None


def _is_within(address: str, domain: str) -> bool:
    host = urlsplit(address).hostname or ""
    return host == domain or host.endswith(f".{domain}")
