"""Errors of the routes under `/v1`, which also have the form of OpenAI's API, and their headers about limits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from starlette.types import Scope

from bloxserver.clients.model_errors import ModelError
from bloxserver.errors import BadRequest, LanguageModelFailed
from bloxserver.llm.calls import Caller
from bloxserver.llm.limits import ModelLimitReached

OPENAI_PREFIX = "/v1"
TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
"""The types of errors by status. All others are `invalid_request_error` or `server_error`."""
STATUSES = {
    "llm_context_exceeded": 400,
    "llm_refused": 400,
    "llm_rejected": 400,
    "llm_too_long": 400,
    "llm_model_not_found": 404,
    "llm_limit_reached": 429,
    "llm_rate_limited": 429,
    "llm_cut_off": 502,
    "llm_unauthorized": 502,
    "llm_unusable_answer": 502,
    "daily_budget_exceeded": 503,
    "llm_not_configured": 503,
    "llm_overloaded": 503,
    "llm_quota_exceeded": 503,
    "llm_unavailable": 503,
    "llm_unreachable": 503,
    "llm_timeout": 504,
}
RETRY_SECONDS = 5
"""The `Retry-After` of errors that name no time."""


def is_openai_path(scope: Scope) -> bool:
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    return path.startswith(f"{OPENAI_PREFIX}/")


def openai_error(status: int, code: str, message: str, details: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return an error in the form of OpenAI's API."""
    default = "server_error" if status >= 500 else "invalid_request_error"
    return {"message": message, "type": TYPES.get(status, default), "code": code, "param": _parameter(details or {})}


def _parameter(details: Mapping[str, Any]) -> str | None:
    """The parameter that the error is about: the unsupported one, or the first invalid one."""
    if "param" in details:
        return str(details["param"])
    return next((str(name)[5:] for name in details if str(name).startswith("body.")), None)


def unsupported(parameter: str, what: str | None = None) -> BadRequest:
    """The error for a parameter that would change the response and is not supported."""
    message = f"{what or f'The parameter `{parameter}`'} is not supported"
    return BadRequest("unsupported_parameter", message, details={"param": parameter})


def failure_of(error: ModelError) -> LanguageModelFailed:
    """The response for an error of a language model."""
    status = STATUSES.get(error.code, 502)
    if error.code == "llm_limit_reached" and error.retry_after is None:  # it is never possible
        status = 400
    retry_after = None
    if status in (429, 503):
        retry_after = RETRY_SECONDS if error.retry_after is None else max(1, math.ceil(error.retry_after))
    if not isinstance(error, ModelLimitReached):
        return LanguageModelFailed(error.code, error.message, status, retry_after)
    details = {"name": error.limit.value, "limit": error.maximum, "used": error.used, "resetSeconds": retry_after}
    headers = _limit_headers(error.maximum, max(0, error.maximum - error.used), retry_after)
    return LanguageModelFailed(error.code, error.message, status, retry_after, details=details, headers=headers)


def quota_headers(caller: Caller) -> dict[str, str]:
    """The headers of a response with what remains of the caller's calls in this minute, if the call used one."""
    quota = None if caller.report is None else caller.report.quota
    return {} if quota is None else _limit_headers(quota.limit, quota.remaining, quota.reset_seconds)


def _limit_headers(limit: int, remaining: int, reset_seconds: int | None) -> dict[str, str]:
    headers = {"X-RateLimit-Limit": str(limit), "X-RateLimit-Remaining": str(remaining)}
    return headers if reset_seconds is None else {**headers, "X-RateLimit-Reset": str(reset_seconds)}
