"""Errors of the domain, independent of the web framework. `api.errors` turns them into responses.

BloxError
├── BadRequest 400 · Unauthorized 401 · Forbidden 403 (LimitReached) · NotFound 404 · Conflict 409
├── PreconditionFailed 412
├── Unprocessable 422 · RateLimited 429
├── LanguageModelFailed: 503, or another status
└── Unavailable 503
SettingsError: the process cannot start; never a response
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BloxError(Exception):
    """An error that becomes a response to the client.

    `code` is stable and in snake_case. `status` is the HTTP status. `message` is for humans, `details` for programs.
    """

    status = 500

    def __init__(
        self,
        code: str,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = details
        self.headers = headers


class BadRequest(BloxError):
    status = 400


class Unauthorized(BloxError):
    """Has the `WWW-Authenticate` header that RFC 6750 section 3 requires."""

    status = 401

    def __init__(self, code: str, message: str) -> None:
        challenge = "Bearer" if code == "missing_token" else 'Bearer error="invalid_token"'
        super().__init__(code, message, headers={"WWW-Authenticate": challenge})


class Forbidden(BloxError):
    status = 403


class LimitReached(Forbidden):
    """A limit of the user's plan is reached: `name` is the attribute of `plans.Plan`.

    The message has the limit, the current use and `hint`, which says what the user can do. `code` is for limits whose
    errors have a code of their own.
    """

    def __init__(self, name: str, limit: float, used: float, hint: str, *, code: str | None = None) -> None:
        words = name.replace("_", " ")
        limit_text, used_text = (str(number) if isinstance(number, int) else f"{number:g}" for number in (limit, used))
        message = f"The limit of {limit_text} {words} is reached (in use: {used_text}). {hint}"
        super().__init__(code or f"{name}_limit_reached", message, details={"name": name, "limit": limit, "used": used})


class NotFound(BloxError):
    status = 404

    def __init__(self, resource: str) -> None:
        super().__init__(f"{resource.lower().replace(' ', '_')}_not_found", f"{resource} not found")


class Conflict(BloxError):
    status = 409


class PreconditionFailed(BloxError):
    status = 412


class Unprocessable(BloxError):
    """A well-formed request with invalid values. `reasons` maps the path of each value to its error."""

    status = 422

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("validation_error", "Request validation failed", details=dict(reasons))


class RateLimited(BloxError):
    """Too many requests. `name` is the limit, `retry_after` the seconds until its counter is reset."""

    status = 429

    def __init__(self, name: str, limit: int, used: int, retry_after: int, hint: str) -> None:
        message = (
            f"The limit of {limit} {name.replace('_', ' ')} is reached (used: {used}). "
            f"Try again in {retry_after} seconds. {hint}"
        )
        details = {"name": name, "limit": limit, "used": used}
        super().__init__("rate_limited", message, details=details, headers={"Retry-After": str(retry_after)})


class Unavailable(BloxError):
    """A service that we depend on is unavailable. The client may retry after `retry_after` seconds."""

    status = 503

    def __init__(self, code: str, message: str, *, retry_after: int = 5) -> None:
        super().__init__(code, message, headers={"Retry-After": str(retry_after)})


class LanguageModelFailed(BloxError):
    """A request to a language model failed. The client may retry after `retry_after` seconds, if it is given."""

    status = 503

    def __init__(
        self,
        code: str,
        message: str,
        status: int,
        retry_after: int | None = None,
        *,
        details: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        retry = {} if retry_after is None else {"Retry-After": str(retry_after)}
        super().__init__(code, message, details=details, headers={**retry, **(headers or {})})
        self.status = status


class SettingsError(Exception):
    """Settings that keep the process from starting. The message lists every problem, without values."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = tuple(problems)
