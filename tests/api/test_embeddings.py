"""Embeddings and the list of models, with OpenAI's library as the client of a real server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from bloxserver.models.database import Database
from bloxserver.models.enums import Scope, Tier
from tests.api.contract import covers
from tests.api.openai_clients import endpoint
from tests.clients.loopback import Answer, LoopbackServer, answer, running_server
from tests.llm.catalogues import providers

VECTORS = {"A door.": [0.25, -0.5], "A gate.": [0.75, 0.125]}


def responds(server: LoopbackServer) -> Answer:
    """Respond to requests for embeddings with `VECTORS`."""

    async def respond(writer: Any) -> None:
        asked = json.loads(server.received[-1].body)
        data = [
            {"object": "embedding", "index": index, "embedding": VECTORS[text]}
            for index, text in enumerate(asked["input"])
        ]
        body = {"object": "list", "model": "scripted", "data": data, "usage": {"prompt_tokens": 6, "total_tokens": 6}}
        writer.write(answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"}))

    return respond


def vector_for_each_input(server: LoopbackServer) -> Answer:
    """Respond with the number of each input as its vector."""

    async def respond(writer: Any) -> None:
        given = json.loads(server.received[-1].body)["input"]
        number = len(given) if isinstance(given[0], list) else 1
        data = [{"object": "embedding", "index": index, "embedding": [float(index)]} for index in range(number)]
        body = {"object": "list", "model": "scripted", "data": data, "usage": {"prompt_tokens": 3, "total_tokens": 3}}
        writer.write(answer(json.dumps(body).encode(), headers={"Content-Type": "application/json"}))

    return respond


def failing(status: int) -> Answer:
    body = json.dumps({"error": {"message": "no", "type": "server_error"}}).encode()
    return answer(body, status=f"{status} Status", headers={"Content-Type": "application/json"})


@covers("llm.embeddings")
@pytest.mark.parametrize("form", ["base64", "float"])
async def test_embeddings(live_database: Database, tmp_path: Path, form: Any) -> None:
    async with running_server() as provider:
        provider.answers["/v1/embeddings"] = responds(provider)
        document = {"providers": providers({"first": provider.url("/v1")})}
        async with endpoint(live_database, tmp_path, document) as server:
            found = await server.openai.embeddings.create(
                model="parrot-1", input=list(VECTORS), dimensions=2, encoding_format=form
            )
            default = await server.openai.embeddings.create(model="parrot-1", input="A gate.")
    expected: list[Any] = ["AACAPgAAAL8=", "AABAPwAAAD4="] if form == "base64" else list(VECTORS.values())
    assert [(each.index, each.embedding) for each in found.data] == list(enumerate(expected))
    assert (found.model, found.usage.prompt_tokens, found.usage.total_tokens) == ("parrot-1", 6, 6)
    assert default.data[0].embedding == VECTORS["A gate."]
    assert json.loads(provider.received[0].body)["dimensions"] == 2


async def test_tokens_are_sent_unchanged(live_database: Database, tmp_path: Path) -> None:
    async with running_server() as provider:
        provider.answers["/v1/embeddings"] = vector_for_each_input(provider)
        document = {"providers": providers({"first": provider.url("/v1")})}
        async with endpoint(live_database, tmp_path, document) as server:
            one = await server.openai.embeddings.create(model="parrot-1", input=[5, 6, 7])
            several = await server.openai.embeddings.create(model="parrot-1", input=[[5, 6], [7]], dimensions=1)
    assert [json.loads(sent.body)["input"] for sent in provider.received] == [[5, 6, 7], [[5, 6], [7]]]
    assert [each.embedding for each in one.data] == [[0.0]]
    assert [each.embedding for each in several.data] == [[0.0], [1.0]]


@pytest.mark.parametrize("number", [1, 2])
async def test_tokens_are_reserved(live_database: Database, tmp_path: Path, number: int) -> None:
    maximum = 10_000  # of a free plan in a minute
    async with running_server() as provider:
        provider.answers["/v1/embeddings"] = vector_for_each_input(provider)
        document = {"providers": providers({"first": provider.url("/v1")})}
        async with endpoint(live_database, tmp_path, document, tier=Tier.FREE, rate_limits=True) as server:
            tokens = [[1] * (maximum // number)] * number
            with pytest.raises(openai.BadRequestError) as caught:
                await server.openai.embeddings.create(model="parrot-1", input=[*tokens, [1]])
            await server.openai.embeddings.create(model="parrot-1", input=tokens)
    assert (caught.value.code, len(provider.received)) == ("llm_limit_reached", 1)
    assert f"{maximum + 1} are used" in caught.value.message


async def test_another_provider_has_the_embeddings_after_a_failure(live_database: Database, tmp_path: Path) -> None:
    async with running_server() as first, running_server() as second:
        first.answers["/v1/embeddings"] = failing(500)
        second.answers["/v1/embeddings"] = responds(second)
        document = {"providers": providers({"first": first.url("/v1"), "second": second.url("/v1")})}
        async with endpoint(live_database, tmp_path, document) as server:
            found = await server.openai.embeddings.create(model="parrot-1", input=["A door."])
    assert found.data[0].embedding == VECTORS["A door."]
    assert (len(first.received), len(second.received)) == (1, 1)


REFUSED: list[tuple[dict[str, Any], int, str, str | None]] = [
    ({"input": [[1], []]}, 422, "validation_error", "input"),
    ({"input": [1, "x"]}, 422, "validation_error", "input"),
    ({"input": [1, -1]}, 422, "validation_error", "input"),
    ({"input": [True]}, 422, "validation_error", "input"),
    ({"input": [[1]] * 1001}, 422, "validation_error", "input"),
    ({"extra_body": {"other": 1}}, 400, "unsupported_parameter", "other"),
    ({"input": ""}, 422, "validation_error", "input"),
    ({"input": []}, 422, "validation_error", "input"),
    ({"input": ["x"] * 1001}, 422, "validation_error", "input"),
    ({"model": "claude"}, 404, "llm_model_not_found", None),
    ({"model": "none"}, 404, "llm_model_not_found", None),
    ({}, 502, "llm_unusable_answer", None),
]


async def test_refused_requests(live_database: Database, tmp_path: Path) -> None:
    async with running_server() as provider:
        provider.answers["/v1/embeddings"] = answer(b"<html>", headers={"Content-Type": "text/html"})
        anthropic = providers({"second": provider.url("/v1")}, kind="anthropic", models=["claude"])
        document = {"providers": providers({"first": provider.url("/v1")}) | anthropic}
        async with endpoint(live_database, tmp_path, document) as server:
            for given, status, code, parameter in REFUSED:
                with pytest.raises(openai.APIStatusError) as caught:
                    await server.openai.embeddings.create(**{"model": "parrot-1", "input": "x"} | given)
                error = caught.value
                assert (error.status_code, error.code, error.param) == (status, code, parameter)
    assert len(provider.received) == 1  # only the last request was sent


@covers("llm.models")
async def test_models_and_aliases_with_names_are_listed(live_database: Database, tmp_path: Path) -> None:
    document = {
        "providers": {
            "first": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["claude-*", "b", "a"]},
            "second": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "models": ["a"], "priority": 1},
            "third": {"kind": "openai", "base_url": "http://127.0.0.1:9/v1"},
        },
        "aliases": {"fast": ["claude-small", "a"]},
    }
    async with endpoint(live_database, tmp_path, document) as server:
        listed = await server.openai.models.list()
        async with endpoint(live_database, tmp_path, document, scopes=[Scope.READ]) as other:
            with pytest.raises(openai.PermissionDeniedError):
                await other.openai.models.list()
    assert [(model.id, model.object, model.owned_by) for model in listed.data] == [
        ("a", "model", "second"),
        ("b", "model", "first"),
        ("fast", "model", "first"),
    ]
