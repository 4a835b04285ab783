"""What can go wrong, as the domain sees it. No web framework here: `api.errors` turns these into responses.

BloxError
├── BadRequest 400 · Unauthorized 401 · Forbidden 403 · NotFound 404 · Conflict 409
├── Unprocessable 422
└── Unavailable 503
SettingsError (the process cannot start; never a response)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class BloxError(Exception):
    """An error that a client is told of.

    `code` is stable and snake_case, `status` is an HTTP status, `message` is for people, `details` is for programs.
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
    """Carries the challenge that RFC 6750 section 3 asks for."""

    status = 401

    def __init__(self, code: str, message: str) -> None:
        challenge = "Bearer" if code == "missing_token" else 'Bearer error="invalid_token"'
        super().__init__(code, message, headers={"WWW-Authenticate": challenge})


class Forbidden(BloxError):
    status = 403


class NotFound(BloxError):
    status = 404

    def __init__(self, resource: str) -> None:
        super().__init__(f"{resource.lower()}_not_found", f"{resource} not found")


class Conflict(BloxError):
    status = 409


class Unprocessable(BloxError):
    """A request that was understood and cannot be taken; `reasons` maps each place to what is wrong there."""

    status = 422

    def __init__(self, reasons: Mapping[str, str]) -> None:
        super().__init__("validation_error", "Request validation failed", details=dict(reasons))


class Unavailable(BloxError):
    """Something that we depend on does not answer; the client may try again after `retry_after` seconds."""

    status = 503

    def __init__(self, code: str, message: str, *, retry_after: int = 5) -> None:
        super().__init__(code, message, headers={"Retry-After": str(retry_after)})


class SettingsError(Exception):
    """Settings with which the process must not start; the message lists all of them and no value."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("cannot start:\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = tuple(problems)
