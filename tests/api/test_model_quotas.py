"""`X-RateLimit-*` of successful responses: what remains of the calls in this minute."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bloxserver.llm.calls import Quota
from bloxserver.llm.limits import Used, quota_of, reservation_of
from bloxserver.models.database import Database
from bloxserver.plans import PLANS
from tests.api.contract import covers
from tests.api.openai_clients import Endpoint, endpoint
from tests.clients.loopback import answer, running_server
from tests.llm.callers import caller
from tests.llm.catalogues import Clock, providers
from tests.llm.test_limits import CALL
from tests.llm_server import language_model, says
from tests.llm_streams import streams

CHAT: dict[str, Any] = {"model": "parrot-1", "messages": [{"role": "user", "content": "What do you guard?"}]}
VECTOR = {"object": "list", "model": "scripted", "data": [{"object": "embedding", "index": 0, "embedding": [0.5]}]}
EMBEDDINGS = json.dumps(VECTOR | {"usage": {"prompt_tokens": 6, "total_tokens": 6}}).encode()
REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": ("/v1/chat/completions", CHAT),
    "stream": ("/v1/chat/completions", CHAT | {"stream": True}),
    "embeddings": ("/v1/embeddings", {"model": "vector-1", "input": "What do you guard?"}),
}


@asynccontextmanager
async def serving(database: Database, folder: Path, **settings: Any) -> AsyncIterator[Endpoint]:
    """The endpoint with a provider that answers all three requests."""
    chats = language_model(lambda asked: streams("A ", "door.") if asked.json.get("stream") else says("A door."))
    async with chats as chat, running_server() as vectors:
        vectors.answers["/v1/embeddings"] = answer(EMBEDDINGS, headers={"Content-Type": "application/json"})
        embedding = {"base_url": vectors.url("/v1"), "models": ["vector-1"]}
        document = {"providers": providers({"chat": chat.url}) | {"vectors": {"kind": "openai", **embedding}}}
        async with endpoint(database, folder, document, **settings) as server:
            yield server


def limits_of(headers: Mapping[str, str]) -> dict[str, int]:
    return {name: int(value) for name, value in headers.items() if name.startswith("x-ratelimit")}


@covers("llm.quota")
@pytest.mark.parametrize("kind", REQUESTS)
async def test_response_has_what_remains_of_the_calls_in_this_minute(
    live_database: Database, tmp_path: Path, kind: str
) -> None:
    path, body = REQUESTS[kind]
    async with serving(live_database, tmp_path, rate_limits=True) as server:
        responses = [await server.http.post(path, json=body) for _ in range(2)]
    first, second = (limits_of(response.headers) for response in responses)
    assert [response.status_code for response in responses] == [200, 200]
    assert first.keys() == second.keys() == {"x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"}
    assert first["x-ratelimit-limit"] == PLANS["enterprise"].llm_requests_per_minute == 300
    # The second call can be the first one of another minute.
    assert (first["x-ratelimit-remaining"], second["x-ratelimit-remaining"]) in {(299, 298), (299, 299)}
    assert 1 <= first["x-ratelimit-reset"] <= 60


async def test_response_from_the_cache_has_no_quota(live_database: Database, tmp_path: Path) -> None:
    cached = CHAT | {"temperature": 0}
    async with serving(live_database, tmp_path, rate_limits=True) as server:
        sent, hit = [await server.http.post("/v1/chat/completions", json=cached) for _ in range(2)]
    assert (len(limits_of(sent.headers)), hit.headers["x-cache"], limits_of(hit.headers)) == (3, "hit", {})


async def test_response_has_no_quota_where_calls_are_not_limited(live_database: Database, tmp_path: Path) -> None:
    async with serving(live_database, tmp_path, rate_limits=False) as server:
        for path, body in REQUESTS.values():
            unlimited = await server.http.post(path, json=body)
            assert (unlimited.status_code, limits_of(unlimited.headers)) == (200, {})


def test_quota_is_that_of_the_minute_of_the_reservation() -> None:
    clock = Clock()
    clock.moment = clock.moment.replace(second=17, microsecond=600_000)
    plan = replace(PLANS["pro"], llm_requests_per_minute=60)
    reservation = reservation_of(CALL, caller(), clock(), 60)
    assert quota_of(reservation, plan, Used(12, 0, 1), clock()) == Quota(60, 48, 43)
    clock.advance(60)
    assert quota_of(reservation, plan, Used(61, 0, 1), clock()) == Quota(60, 0, 1)
