"""Flows that send requests to a server that the attacker controls."""

from __future__ import annotations

from benchmarks.neighbours.cases.case import Case, fan_out, webhooks


def _get(path: str, count: int = 40) -> str:
    return fan_out(count, "http.request", {"url": f"URL{path}", "timeout_seconds": 60})


CASES = [
    Case("list-responses", "H2", "40 responses of 5 MB `[[],[],…]` in each execution", webhooks(b"{}"), _get("/lists")),
    Case("compressed-lists", "new", "the same, compressed by gzip to 10 KB", webhooks(b"{}"), _get("/lists.gz")),
    Case("gzip-bombs", "new", "40 responses of 1 MB that gzip expands to 1 GB", webhooks(b"{}"), _get("/gzip")),
    Case("charsets", "new", "40 responses of 5 MB of iso-2022-jp", webhooks(b"{}"), _get("/charset")),
    Case("text-responses", "new", "40 responses of 5 MB of text", webhooks(b"{}"), _get("/text")),
    Case(
        "slow-responses", "new", "100 responses that never end, in each execution", webhooks(b"{}"), _get("/drip", 100)
    ),
    Case(
        "slow-dns",
        "H5",
        "40 names that no name server answers for, in each execution",
        webhooks(b"{}"),
        fan_out(40, "http.request", {"url": "http://silent.example/", "timeout_seconds": 60}),
        silent_names=True,
    ),
]
