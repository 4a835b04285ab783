"""The HTTP client for the outgoing requests of flows, guarded against server-side request forgery (SSRF).

Addresses are checked when a connection is opened: a name is resolved once, all its addresses are checked, and the
connection uses one of them. URLs and redirects cannot bypass the check.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import NoReturn, Self

import httpcore
import httpx

from bloxserver.clients.addresses import Network
from bloxserver.clients.connections import Connection, Connector
from bloxserver.clients.decoding import ContentEncodingError, ResponseTooLarge, decompress
from bloxserver.clients.errors import OutgoingRequestError
from bloxserver.clients.memory import MemoryBudget, MemoryLimitReached
from bloxserver.clients.resolver import Resolver
from bloxserver.clients.shares import UNLIMITED, Share
from bloxserver.observability.tracing import HEADER as TRACE_HEADER
from bloxserver.observability.tracing import current_traceparent

__all__ = ["DEPTH_HEADER", "GuardedClient", "HttpResponse", "OutgoingRequestError", "check_header", "read_url"]

MEBIBYTE = 1024 * 1024
MAX_RESPONSE_BYTES = 5 * MEBIBYTE
MAX_CHUNKS = 50_000
"""The maximum number of chunks of a body. Each takes 20 microseconds on the event loop, however small it is."""
BYTES_PER_TURN = 64 * 1024
BYTES_PER_CHUNK = 4 * 1024
"""Added for each chunk: after so many bytes, the response waits for its user's next turn on the event loop."""
MAX_REDIRECTS = 3
MAX_RETRY_AFTER_SECONDS = 3600.0
PORTS = frozenset({80, 443, 8080, 8443})
TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
DIGITS = re.compile(r"[0-9]+")
HEADER_VALUE = re.compile(r"[\t\x20-\x7e]*")
HOST = re.compile(r"[0-9a-z._-]+|[0-9a-f:.]+")
"""A name or an IPv4 address, or an IPv6 address without a zone."""
# The client alone sets the headers that frame a message: contradictory ones allow request smuggling.
OWN_HEADERS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)
DEPTH_HEADER = "BloxServer-Depth"
"""The call depth of a request. A BloxServer that receives it continues to count, which ends loops."""
# The headers that are sent to another origin after a redirect; any other header may be a credential.
SAFE_HEADERS = frozenset({"accept", "accept-language", DEPTH_HEADER.lower(), TRACE_HEADER, "user-agent"})
CONTENT_HEADERS = frozenset({"content-encoding", "content-language", "content-location", "content-type"})


Turn = Callable[[], Awaitable[None]]


@dataclass(frozen=True)
class HttpResponse:
    """A complete response."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name, without `set-cookie`. The values of a repeated header are joined by commas."""
    cookies: Sequence[str]
    """The values of `Set-Cookie`, which cannot be joined because their dates contain commas."""
    body: bytes | OutgoingRequestError
    """The body as it was received, or the error that occurred when reading it; the status is valid in both cases."""
    url: str
    """Of the last hop."""
    max_bytes: int = MAX_RESPONSE_BYTES
    """The maximum size of the body, before and after decompression."""

    @property
    def received(self) -> bytes:
        """The body as it was received, maybe compressed.

        Raises `OutgoingRequestError`: `response_too_large`, `memory_limit_reached`.
        """
        if isinstance(self.body, OutgoingRequestError):
            raise self.body
        return self.body

    @property
    def encoding(self) -> str:
        """The Content-Encoding of the body."""
        return self.headers.get("content-encoding", "")

    @property
    def content(self) -> bytes:
        """The decompressed body. This takes time in proportion to `max_bytes`, which is too long for the event loop.

        Raises `OutgoingRequestError` (a code below).

        `invalid_response`, `response_not_decodable`, `response_too_large`, `memory_limit_reached`.
        """
        return decompressed(self.received, self.encoding, self.max_bytes, self.host)

    @property
    def host(self) -> str:
        return httpx.URL(self.url).host

    def retry_after(self, now: datetime) -> float | None:
        """Return the seconds in `Retry-After`, at most an hour; None without a valid header."""
        text = self.headers.get("retry-after", "")
        try:
            seconds = float(text) if DIGITS.fullmatch(text) else (_read_date(text) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            return None
        return min(max(0.0, seconds), MAX_RETRY_AFTER_SECONDS)


@dataclass(frozen=True)
class _Request:
    """A request without redirects."""

    method: str
    url: httpx.URL
    headers: Mapping[str, str]
    content: bytes | None


class GuardedClient:
    """An HTTP client for requests of all users. It keeps no connections or cookies and ignores the environment.

    Addresses in `allow` may be private, and any port is allowed there.
    """

    def __init__(
        self,
        *,
        allow: Sequence[Network] = (),
        max_response_bytes: int = MAX_RESPONSE_BYTES,
        total_timeout_seconds: float = 30,
        ports: frozenset[int] = PORTS,
        resolver: Resolver | None = None,
    ) -> None:
        self._max_response_bytes = max_response_bytes
        self._total_timeout_seconds = total_timeout_seconds
        self._connector = Connector(allow, ports, resolver or Resolver())
        self._share = UNLIMITED
        self._memory = MemoryBudget()
        self._turn: Turn = partial(asyncio.sleep, 0)

    def limited_to(self, share: Share, memory: MemoryBudget | None = None, turn: Turn | None = None) -> Self:
        """Return this client with the limits of one user: requests wait for a slot, responses are charged to `memory`.

        `turn` waits for the user's next turn on the event loop. All waits count towards the time limit of a request.
        """
        client = object.__new__(type(self))  # each step of an execution does this; `copy` takes longer
        client.__dict__ = self.__dict__ | {
            "_share": share,
            "_memory": memory or MemoryBudget(),
            "_turn": turn or self._turn,
        }
        return client

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        timeout_seconds: float | None = None,
        follow_redirects: bool = False,
    ) -> HttpResponse:
        """Send a request and return the response, with any status. `timeout_seconds` includes redirects.

        If the body is too large or cannot be decoded, reading `HttpResponse.content` raises the error.
        Headers that frame the message (`Host`, `Content-Length`, …) are set here and ignored in `headers`.
        Raises `OutgoingRequestError`.
        """
        if not TOKEN.fullmatch(method):
            raise OutgoingRequestError("invalid_request", "the method is not valid")
        request = _Request(method, read_url(url), _prepare_headers(headers or {}), content)
        seconds = self._total_timeout_seconds if timeout_seconds is None else timeout_seconds
        try:
            async with asyncio.timeout(seconds), self._share.request():
                return await self._send_and_follow(request, MAX_REDIRECTS if follow_redirects else None)
        except OutgoingRequestError:
            raise
        except Exception as error:
            _fail(error, request.url.host)

    async def _send_and_follow(self, request: _Request, redirects: int | None) -> HttpResponse:
        """`redirects` is the maximum number to follow; with None, a redirect is returned."""
        while True:
            response = await self._send(request)
            location = response.headers.get("location")
            if redirects is None or response.status not in (301, 302, 303, 307, 308) or location is None:
                return response
            if redirects == 0:
                raise OutgoingRequestError("too_many_redirects", f"{request.url.host} redirects too many times")
            request, redirects = _redirect(request, response.status, location), redirects - 1

    async def _send(self, request: _Request) -> HttpResponse:
        url = httpcore.URL(
            scheme=request.url.raw_scheme,
            host=request.url.raw_host,
            port=request.url.port,
            target=request.url.raw_path,
        )
        sent = [
            ("Host", request.url.netloc.decode("ascii")),
            ("Connection", "close"),
            ("Accept-Encoding", "gzip"),
            *request.headers.items(),
        ]
        async with (
            self._connector.connect(url.origin, self._share) as connection,
            connection.stream(request.method, url, headers=sent, content=request.content) as response,
        ):
            received = [(name.decode("ascii").lower(), _header_text(value)) for name, value in response.headers]
            headers = _join_repeated((name, value) for name, value in received if name != "set-cookie")
            cookies = [value for name, value in received if name == "set-cookie"]
            body = await self._read_body(connection, response, url.host.decode("ascii"))
            return HttpResponse(response.status, headers, cookies, body, str(request.url), self._max_response_bytes)

    async def _read_body(
        self, connection: Connection, response: httpcore.Response, host: str
    ) -> bytes | OutgoingRequestError:
        """Read the body. It is not decompressed: a few kilobytes may become megabytes."""
        chunks: list[bytes] = []
        size = since_turn = 0
        try:
            async for chunk in response.aiter_stream():
                connection.body_received()
                if size + len(chunk) > self._max_response_bytes:
                    return _too_large(host, self._max_response_bytes)
                if len(chunks) == MAX_CHUNKS:
                    message = f"the response of {host} has more than {MAX_CHUNKS} chunks"
                    return OutgoingRequestError("response_too_large", message)
                self._memory.reserve(len(chunk))
                chunks.append(chunk)
                size += len(chunk)
                since_turn += len(chunk) + BYTES_PER_CHUNK
                if since_turn > BYTES_PER_TURN:
                    since_turn = 0
                    await self._turn()
        except MemoryLimitReached as error:
            return OutgoingRequestError("memory_limit_reached", f"the response of {host} was not read: {error}")
        # A growing buffer would be moved again and again, which fragments the memory.
        return b"".join(chunks)


def decompressed(content: bytes, encoding: str, max_bytes: int, host: str) -> bytes:
    """Return the decompressed body of a response. Raises `OutgoingRequestError`."""
    try:
        return decompress(content, encoding, max_bytes)
    except ContentEncodingError as error:
        raise OutgoingRequestError("response_not_decodable", f"the response of {host} {error}") from None
    except ResponseTooLarge:
        raise _too_large(host, max_bytes) from None
    except ValueError:
        raise OutgoingRequestError("invalid_response", f"the response of {host} cannot be read") from None


def _too_large(host: str, max_bytes: int) -> OutgoingRequestError:
    message = f"the response of {host} is too large: at most {max_bytes} bytes are read, also after decompression"
    return OutgoingRequestError("response_too_large", message)


def read_url(text: str) -> httpx.URL:
    """Parse a URL and remove its fragment. Raises `OutgoingRequestError` if it cannot be requested."""
    try:
        url = httpx.URL(text)
        host = url.raw_host.decode("ascii")
        _ = url.host  # raises for invalid punycode
    except (httpx.InvalidURL, ValueError, TypeError):
        raise OutgoingRequestError("invalid_url", "not a URL") from None
    if url.scheme not in ("http", "https"):
        raise OutgoingRequestError("invalid_url", "a URL must start with http:// or https://")
    if len(host) > 253 or not HOST.fullmatch(host):
        raise OutgoingRequestError("invalid_url", "a URL must name a host")
    if not 0 < _port(url) < 65536:
        raise OutgoingRequestError("invalid_url", "a URL must have a port between 1 and 65535, or none")
    if url.userinfo:
        raise OutgoingRequestError("invalid_url", "a URL must not name a user; use an Authorization header")
    return url.copy_with(fragment=None)


def check_header(name: str, value: str) -> None:
    """Raise `OutgoingRequestError` if the header is invalid."""
    if not TOKEN.fullmatch(name):
        raise OutgoingRequestError("invalid_header", "the name of a header is not valid")
    if not HEADER_VALUE.fullmatch(value):
        raise OutgoingRequestError("invalid_header", f"the header {name[:100]} may have printable ASCII only")


def _prepare_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Return the headers by lower-case name, with the client's defaults. Raises `OutgoingRequestError`."""
    checked: dict[str, str] = {"accept": "*/*", "user-agent": "BloxServer"}
    for name, value in headers.items():
        check_header(name, value)
        if name.lower() not in OWN_HEADERS:
            checked[name.lower()] = value.strip(" \t")
    traceparent = current_traceparent()
    if traceparent is not None:
        checked.setdefault(TRACE_HEADER, traceparent)
    return checked


def _redirect(request: _Request, status: int, location: str) -> _Request:
    """Return the request that follows a redirect. Another origin gets no body and only safe headers."""
    try:
        url = read_url(str(request.url.join(location)))
    except (httpx.InvalidURL, ValueError):
        raise OutgoingRequestError("invalid_url", f"{request.url.host} redirects to an invalid URL") from None
    method, content = request.method, request.content
    if (status == 303 and method != "HEAD") or (status in (301, 302) and method == "POST"):
        method, content = "GET", None
    same_origin = (url.scheme, url.host, _port(url)) == (request.url.scheme, request.url.host, _port(request.url))
    if content is not None and not same_origin:
        raise OutgoingRequestError("redirect_refused", f"{request.url.host} redirects the body to another origin")
    headers = {
        name: value
        for name, value in request.headers.items()
        if (same_origin or name in SAFE_HEADERS) and (content is not None or name not in CONTENT_HEADERS)
    }
    return _Request(method, url, headers, content)


def _port(url: httpx.URL) -> int:
    # Port 0 is explicit, and not the default port.
    return (443 if url.scheme == "https" else 80) if url.port is None else url.port


def _header_text(value: bytes) -> str:
    """Decode the value of a header as UTF-8, as in a `Location` of today's servers, or else as ISO-8859-1."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value.decode("latin-1")


def _join_repeated(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name, []).append(value)
    return {name: ", ".join(given) for name, given in values.items()}


def _read_date(text: str) -> datetime:
    """Parse an HTTP date. Raises `ValueError` or `TypeError`."""
    date = parsedate_to_datetime(text)
    return date.replace(tzinfo=UTC) if date.tzinfo is None else date


def _fail(error: Exception, host: str) -> NoReturn:
    """Raise the `OutgoingRequestError` for a network error, or else `error` itself."""
    match error:
        case TimeoutError() | httpcore.TimeoutException():
            code, message = "timeout", f"{host} took too long"
        case httpcore.LocalProtocolError():
            code, message = "invalid_request", f"the request to {host} cannot be sent"
        case httpcore.RemoteProtocolError() | ValueError():
            code, message = "invalid_response", f"the response of {host} cannot be read"
        case httpcore.ConnectError(__cause__=ssl.SSLError()):
            code, message = "tls_failed", f"{host} has no trusted certificate"
        case httpcore.NetworkError() | OSError():
            code, message = "connection_failed", f"the connection to {host} failed"
        case _:
            raise error
    raise OutgoingRequestError(code, message) from None
