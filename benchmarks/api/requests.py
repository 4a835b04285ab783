"""The endpoints that are measured, and their requests to BloxServer and to the bare server."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.api.history import INPUT, History

OURS = "ours"
COUNTING = "counting"
KEPT = "kept"
BARE = "bare"
"""The bare server where it neither counts nor could keep a total."""


@dataclass(frozen=True)
class Endpoint:
    name: str
    path: str
    """The path of BloxServer, with places for the ids."""
    ceilings: dict[str, str]
    """The paths of the bare server, by its variant."""
    writes: bool = False
    reads_history: bool = True
    """Whether its cost may depend on the number of executions. Others are measured with the shortest history only."""

    @property
    def variants(self) -> list[str]:
        return [OURS, *self.ceilings]

    def request(self, variant: str, history: History, token: str | None = None) -> str:
        """Return a complete request. `token` is the session token for BloxServer."""
        ours = variant == OURS
        path = (self.path if ours else self.ceilings[variant]).format(flow=history.flow_id, token=history.token)
        lines = ["Host: 127.0.0.1", "Accept: application/json"]
        if ours and token is not None and not self.writes:
            lines.append(f"Authorization: Bearer {token}")
        if self.writes:
            lines += ["Content-Type: application/json", f"Content-Length: {len(INPUT)}"]
        method, body = ("POST", INPUT) if self.writes else ("GET", "")
        return "\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", body])


ENDPOINTS = {
    endpoint.name: endpoint
    for endpoint in (
        Endpoint("health", "/health/live", {BARE: "/floor"}, reads_history=False),
        Endpoint("flows", "/api/v1/flows", {BARE: "/flows"}, reads_history=False),
        Endpoint("flow", "/api/v1/flows/{flow}", {BARE: "/flow"}, reads_history=False),
        Endpoint(
            "list",
            "/api/v1/flows/{flow}/executions?page_size=50",
            {COUNTING: "/counting/list", KEPT: "/kept/list"},
        ),
        Endpoint("stats", "/api/v1/flows/{flow}/executions/stats", {COUNTING: "/counting/stats", KEPT: "/kept/stats"}),
        Endpoint("webhook", "/webhooks/{token}", {BARE: "/webhook/{token}"}, writes=True),
    )
}
"""In the order in which they are measured: the webhook adds executions, so it is the last."""
