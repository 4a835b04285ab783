"""The error of outgoing requests and of the connections below them."""

from __future__ import annotations

TRANSIENT = frozenset({"name_not_resolved", "connection_failed", "timeout", "invalid_response"})


class OutgoingRequestError(Exception):
    """A request without a usable response. The message names the host at most, never the query, a user or a header.

    Codes: `invalid_url`, `invalid_header`, `invalid_request`, `address_refused`, `port_refused`,
    `name_not_resolved`, `connection_failed`, `tls_failed`, `timeout`, `invalid_response`, `response_not_decodable`,
    `response_too_large`, `memory_limit_reached`, `redirect_refused`, `too_many_redirects`.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    @property
    def retryable(self) -> bool:
        """Whether the same request may succeed later."""
        return self.code in TRANSIENT
