"""A server on loopback that stands for all providers when a key is tested: it has a list of models.

The key determines the response, so that tests need not prepare it. The server runs in a thread, because synchronous
tests and subprocesses use it too.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

VALID_KEYS = {
    "openai": "sk-proj-canary-0123456789",
    "anthropic": "sk-ant-canary-0123456789",
    "xai": "xai-canary-0123456789",
    "together": "tgp_v1_canary-0123456789",
}
STATUSES = {"status-400": 400, "status-401": 401, "status-403": 403, "status-429": 429, "status-500": 500}
"""The statuses of responses to keys that contain these words."""


@dataclass(frozen=True)
class TestedKey:
    """A request with a key."""

    __test__ = False

    path: str
    headers: Mapping[str, str]

    @property
    def key(self) -> str:
        return self.headers.get("x-api-key") or self.headers["authorization"].removeprefix("Bearer ")


@dataclass
class ProviderServer:
    url: str
    requests: list[TestedKey] = field(default_factory=list)


@contextmanager
def provider_server() -> Iterator[ProviderServer]:
    """Run the server. Its URL has the version that those of most providers have."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            request = TestedKey(self.path, {name.lower(): value for name, value in self.headers.items()})
            provider.requests.append(request)
            status = next((status for word, status in STATUSES.items() if word in request.key), 200)
            body = request.key.encode()  # servers may quote it
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Do not log."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        provider = ProviderServer(f"http://127.0.0.1:{server.server_port}/v1")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield provider
        finally:
            server.shutdown()
            thread.join()
