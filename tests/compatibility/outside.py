"""The services that the corpus calls: an HTTP server with a few paths, and a scripted language model."""

from __future__ import annotations

import itertools
import json
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from tests.clients.loopback import LoopbackServer, answer
from tests.llm_server import Asked, LanguageModelServer, Reply, calls, fails, language_model, says

KEY = "a key for the secrets of the corpus 0123456789"
SECRETS = {"TOKEN": "token-of-the-corpus"}
JSON = {"Content-Type": "application/json"}


@asynccontextmanager
async def outside_world() -> AsyncIterator[LanguageModelServer]:
    """Run the services. The paths are on the server of the model."""
    async with language_model(_reply) as model:
        server = model.server
        server.answers |= {
            "/order": answer(b'{"order": 7, "reserved": true, "items": [{"name": "tea"}]}', headers=JSON),
            "/text": answer(b"plain text", headers={"Content-Type": "text/plain"}),
            "/missing": answer(b"{}", status="404 Not Found", headers=JSON),
            "/broken": answer(b"no", status="503 Service Unavailable"),
            "/echo": _echo(server),
            "/never": StreamWriter.wait_closed,
        }
        for name in ("a", "b"):
            server.answers[f"/recovers/{name}"] = _recovers()
        yield model


def _echo(server: LoopbackServer) -> Callable[[StreamWriter], Any]:
    """Return a responder whose body is the received request."""

    async def respond(writer: StreamWriter) -> None:
        received = server.received[-1]
        headers: dict[str, str | None] = {
            name: value for name, value in received.headers.items() if name.startswith("x-")
        }
        headers["authorization"] = received.headers.get("authorization")
        seen = {
            "method": received.method,
            "path": received.path,
            "headers": headers,
            "contentType": received.headers.get("content-type"),
            "body": received.body.decode(),
        }
        writer.write(answer(json.dumps(seen).encode(), headers=JSON))

    return respond


def _recovers() -> Callable[[StreamWriter], Any]:
    """Return a responder that fails twice and then succeeds."""
    number = itertools.count(1)

    async def respond(writer: StreamWriter) -> None:
        works = next(number) % 3 == 0
        writer.write(answer(b'"up"', headers=JSON) if works else answer(b"down", status="503 Service Unavailable"))

    return respond


def _reply(asked: Asked) -> Reply:
    """Choose the reply to a request by the word in brackets at the start of the system prompt, and by its turn."""
    system = asked.texts[0]
    script = SCRIPTS[system[1 : system.index("]")]]
    turn = len([message for message in asked.json["messages"] if message["role"] == "assistant"])
    return script[turn](asked)


def _tool_calls(*wanted: tuple[str, Any]) -> Callable[[Asked], Reply]:
    """Call tools by name with these messages. As a model does, read from a tool's schema how it takes its message."""

    def reply(asked: Asked) -> Reply:
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in asked.json["tools"]}
        wrapped = {name for name, schema in schemas.items() if [*schema.get("properties", ())] == ["input"]}
        return calls(*((name, {"input": message} if name in wrapped else message) for name, message in wanted))

    return reply


def _always(reply: Reply) -> Callable[[Asked], Reply]:
    return lambda asked: reply


SCRIPTS: dict[str, list[Callable[[Asked], Reply]]] = {
    "echo": [lambda asked: says(" | ".join(asked.texts))],
    "tool": [
        _tool_calls(("lookup", {"city": "Paris"})),
        lambda asked: says(f"The tool answered {asked.texts[-1]}"),
    ],
    "two": [
        _tool_calls(("lookup", 1), ("shape", {"a": [1, 2]})),
        lambda asked: says(" and ".join(asked.texts[-2:])),
    ],
    "failing": [_tool_calls(("lookup", {})), _always(says("The tool failed."))],
    "unknown": [_tool_calls(("nothing", {"input": 1})), _always(says("There is no such tool."))],
    "refused": [_always(fails(400, "refused"))],
    "calculates": [
        _tool_calls(("calc", {"expression": "2 * (3 + x)", "variables": {"x": 4}})),
        lambda asked: says(asked.texts[-1]),
    ],
    "decides": [lambda asked: says("yes" if "please" in asked.texts[-1] else "no")],
}
"""The replies by turn."""
