"""Errors of language models: what each exception of a request means. Messages contain neither keys nor requests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import structlog

from bloxserver.model_catalogue import Provider
from bloxserver.redaction import Redactor

if TYPE_CHECKING:
    from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
    from pydantic_ai.messages import ModelMessage

log = structlog.stdlib.get_logger("bloxserver.llm")

MAX_REASON_CHARACTERS = 200
QUOTE_CHARACTERS = 20
"""An error message that repeats this many consecutive characters of the request is taken as a quotation of it."""
MAX_COMPARED_CHARACTERS = 64 * 1024
"""The server's message is left out if the request is larger, since each part is searched for hundreds of texts."""


class ModelError(Exception):
    """A request to a model failed, or its response is unusable.

    `code` is stable and in snake_case. The message is for the owner of the flow, and contains neither the API key nor
    the request. `retry_after` is in seconds. The token counts are those of an unusable response. `is_key_invalid` is
    true if the provider does not know the key.
    """

    is_postponed = False
    """Whether the request was not sent because it must wait. It may be sent again after `retry_after`."""
    ends_execution = False
    """Whether the execution must end. The error is that of the caller, and not of the request."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        retryable: bool,
        retry_after: float | None = None,
        input_tokens: int = 0,
        output_tokens: int = 0,
        is_key_invalid: bool = False,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after = retry_after
        self.input_tokens = input_tokens
        self.output_tokens = output_tokens
        self.is_key_invalid = is_key_invalid


class ErrorConversion:
    """Converts exceptions of requests to one provider."""

    def __init__(self, provider: Provider, redactor: Redactor) -> None:
        self._provider = provider
        self._redactor = redactor
        self._key = None if provider.key is None else provider.key.get_secret_value()

    def convert(
        self,
        error: Exception,
        model: str,
        messages: Sequence[ModelMessage],
        timeout_seconds: float,
        *,
        is_stream: bool = False,
    ) -> ModelError:
        from pydantic_ai import exceptions

        match error:
            case TimeoutError():
                return timed_out(timeout_seconds)
            case exceptions.ModelConnectionError():
                return _connection_failure(error, timeout_seconds)
            case exceptions.ModelHTTPError() if error.status_code >= 400:
                return self._from_status(error, model, messages)
            case exceptions.ModelAPIError() if _is_truncated(error.__cause__):
                return truncated()
            case exceptions.ModelAPIError() if is_stream and error.in_stream:
                return ModelError("llm_cut_off", "the language model failed during its response", retryable=True)
            case exceptions.UserError():
                message = "the provider of the model does not support a parameter of the request"
                return ModelError("llm_rejected", message, retryable=False)
            case exceptions.AgentRunError():
                pass
            case _:
                # The message and the traceback of the exception may contain the request.
                log.warning("unexpected language model error", error=type(error).__name__)
        message = f"the response is not that of a language model; check {self._provider.url_setting}"
        return ModelError("llm_unusable_answer", message, retryable=True)

    def _from_status(self, error: ModelHTTPError, model: str, messages: Sequence[ModelMessage]) -> ModelError:
        """Convert a response with an error status."""
        from pydantic_ai import exceptions

        status = f"(status {error.status_code})"
        key, url = self._provider.key_setting or "the key", self._provider.url_setting
        match error:
            case _ if error.status_code == 401 or _is_unknown_key(error):
                message = f"the language model's server rejected the API key {status}; check {key}"
                return ModelError("llm_unauthorized", message, retryable=False, is_key_invalid=True)
            case exceptions.ModelRateLimitError():
                message = f"the rate limit of the language model's server is exceeded {status}"
                return ModelError("llm_rate_limited", message, retryable=True, retry_after=error.retry_after)
            case exceptions.ModelQuotaExceededError():
                message = f"the quota or the credit of {key} is exhausted {status}"
                return ModelError("llm_quota_exceeded", message, retryable=False)
            case exceptions.ModelAuthenticationError():
                message = f"the language model's server rejected the API key {status}; check {key}"
                return ModelError("llm_unauthorized", message, retryable=False)
            case exceptions.ModelNotFoundError():
                message = f'the model "{model}" was not found {status}; check its name and {url}'
                return ModelError("llm_model_not_found", message, retryable=False)
            case exceptions.ModelContextWindowExceededError():
                message = f'the conversation exceeds the context window of the model "{model}" {status}'
                return ModelError("llm_context_exceeded", message, retryable=False)
        if error.status_code >= 500 or error.status_code == 408:
            message = f"the language model's server failed {status}"
            return ModelError("llm_unavailable", message, retryable=True, retry_after=error.retry_after)
        sent = [*texts(messages), *([] if self._key is None else [self._key])]
        reason = self._redactor.redact_text(_reason(error.body, sent))
        message = f"the language model's server rejected the request {status}{reason}"
        return ModelError("llm_rejected", message, retryable=False)


def timed_out(seconds: float) -> ModelError:
    return ModelError("llm_timeout", f"the language model did not respond within {seconds:g} seconds", retryable=True)


def truncated() -> ModelError:
    return ModelError("llm_cut_off", "the connection closed before the response was complete", retryable=True)


def _connection_failure(error: ModelConnectionError, seconds: float) -> ModelError:
    from pydantic_ai.exceptions import ModelTimeoutError

    if error.phase == "read" and not isinstance(error, ModelTimeoutError):
        return truncated()
    if isinstance(error, ModelTimeoutError) and error.phase != "connect":
        return timed_out(seconds)
    return ModelError("llm_unreachable", "the language model's server cannot be reached", retryable=True)


def _is_truncated(cause: BaseException | None) -> bool:
    """Whether the body is the beginning of a JSON document."""
    return isinstance(cause, json.JSONDecodeError) and cause.doc.lstrip().startswith(("{", "["))


def _is_unknown_key(error: ModelHTTPError) -> bool:
    """Whether it is the status 400 with which xAI rejects an unknown key."""
    text = error.body.get("error") if isinstance(error.body, dict) else error.body
    return error.status_code == 400 and isinstance(text, str) and text.startswith("Incorrect API key")


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


def texts(messages: Sequence[ModelMessage]) -> Iterator[str]:
    """Yield the texts of the messages, and the arguments of tool calls that are text."""
    for message in messages:
        for part in message.parts:
            for value in (getattr(part, "content", None), getattr(part, "args", None)):
                for text in value if isinstance(value, list) else [value]:
                    if isinstance(text, str):
                        yield text
