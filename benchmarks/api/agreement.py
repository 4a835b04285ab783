"""Single requests: they check that BloxServer and the bare server answer the same."""

from __future__ import annotations

import asyncio
import math
from datetime import datetime
from typing import Any

import httpx

from benchmarks.api.history import History
from benchmarks.api.requests import ENDPOINTS, OURS, Endpoint
from benchmarks.api.servers import Server, server_of

RECOVERY_SECONDS = 300
WITHOUT_VALUES = {"timestamp", "executionId"}
"""Members whose values differ by nature."""


async def require_agreement(
    endpoint: Endpoint, variants: list[str], ours: Server, ceiling: Server, history: History, token: str | None
) -> None:
    """Raise `RuntimeError` unless each answer of the bare server is found in ours, member by member."""
    bodies = {}
    async with httpx.AsyncClient(timeout=60) as client:
        for variant in variants:
            url = server_of(variant, ours, ceiling).url
            bodies[variant] = await _answer(client, url, endpoint.request(variant, history, token))
    for variant, body in bodies.items():
        if difference := find_difference(body, bodies[OURS]):
            raise RuntimeError(f"{endpoint.name}: the answers of {variant} and {OURS} differ: {difference}")


async def read_total(ours: Server, history: History, token: str | None) -> int:
    """Return the number of executions of the flow."""
    async with httpx.AsyncClient(timeout=60) as client:
        page = await _answer(client, ours.url, ENDPOINTS["list"].request(OURS, history, token))
    total: int = page["total"]
    return total


async def recover(server: Server, request: str) -> None:
    """Wait until an overloaded server answers a request, because it continues with those whose clients have gone."""
    async with asyncio.timeout(RECOVERY_SECONDS), httpx.AsyncClient(timeout=RECOVERY_SECONDS) as client:
        while True:
            try:
                await _answer(client, server.url, request)
            except httpx.HTTPStatusError:
                await asyncio.sleep(1)
            else:
                return


async def _answer(client: httpx.AsyncClient, url: str, request: str) -> Any:
    head, _, body = request.partition("\r\n\r\n")
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ")
    headers = dict(line.split(": ", 1) for line in lines)
    response = await client.request(method, url + path, headers=headers, content=body or None)
    response.raise_for_status()
    return response.json()


def find_difference(bare: Any, ours: Any) -> str | None:
    """Return where an answer of the bare server differs from ours; None if it is contained in ours."""
    if isinstance(bare, dict) and isinstance(ours, dict):
        for name, value in bare.items():
            if name not in ours:
                return f"{name} is missing"
            if name not in WITHOUT_VALUES and (found := find_difference(value, ours[name])):
                return f"{name}: {found}"
        return None
    if isinstance(bare, list) and isinstance(ours, list) and len(bare) == len(ours):
        return next(filter(None, map(find_difference, bare, ours)), None)
    return None if _equal(bare, ours) else f"{bare!r} and {ours!r}"


def _equal(bare: Any, ours: Any) -> bool:
    if bare == ours:
        return True
    if isinstance(bare, float) and isinstance(ours, int | float):
        return math.isclose(bare, ours, rel_tol=1e-3)
    try:
        return datetime.fromisoformat(bare) == datetime.fromisoformat(ours)
    except (TypeError, ValueError):
        return False
