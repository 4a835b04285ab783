"""A language model server on loopback with scripted responses, in the formats of OpenAI and Anthropic.

async with language_model([calls(("fetch", {"url": "…"})), says("Done.")]) as model:
    settings = Settings(llm_base_url=model.url, llm_model="any", …)
"""

from __future__ import annotations

import asyncio
import itertools
import json
from asyncio import StreamWriter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.clients.loopback import Answer, LoopbackServer, Received, answer, running_server

OPENAI_PATH = "/v1/chat/completions"
ANTHROPIC_PATH = "/v1/messages"
FINISH = {"stop": "end_turn", "tool_calls": "tool_use", "length": "max_tokens", "content_filter": "refusal"}
"""Anthropic's stop reasons by OpenAI's finish reasons."""

Api = Literal["openai", "anthropic"]
Reply = Callable[[Api], Answer]
"""Returns the response in the format of the requested API."""


@dataclass(frozen=True)
class Asked:
    """A request to the model."""

    api: Api
    headers: Mapping[str, str]
    json: Any

    @property
    def texts(self) -> list[str]:
        """All texts in the request, in order: prompts and results of tools."""
        system = self.json.get("system", "")
        told = [system] if isinstance(system, str) and system else [block["text"] for block in system]
        for message in self.json["messages"]:
            content = message.get("content") or ""
            blocks = [{"text": content}] if isinstance(content, str) else content
            for block in blocks:
                text = block.get("text", block.get("content"))
                told += [text] if isinstance(text, str) else [inner["text"] for inner in text or []]
        return [text for text in told if text]


@dataclass
class LanguageModelServer:
    """`url` is a value for LLM_BASE_URL, with either provider."""

    server: LoopbackServer
    script: Callable[[Asked], Reply]
    requests: list[Asked] = field(default_factory=list)
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def url(self) -> str:
        return self.server.url("/v1")

    def listen(self, api: Api) -> Callable[[StreamWriter], Any]:
        async def respond(writer: StreamWriter) -> None:
            asked = _asked(api, self.server.received[-1])
            self.requests.append(asked)
            self.was_asked.set()
            _is_stream.set(asked.json.get("stream", False))
            reply = self.script(asked)(api)
            if isinstance(reply, bytes):
                writer.write(reply)
            else:
                await reply(writer)

        return respond


@asynccontextmanager
async def language_model(script: Iterable[Reply] | Callable[[Asked], Reply]) -> AsyncIterator[LanguageModelServer]:
    """Run the server. `script` contains its replies in order, or is a function that chooses the reply to a request.

    Requests after the last reply fail with a status that is not retried.
    """
    if callable(script):
        choose = script
    else:
        replies = iter(script)

        def choose(asked: Asked) -> Reply:
            return next(replies, fails(400, "the script is over"))

    async with running_server() as server:
        model = LanguageModelServer(server, choose)
        server.answers[OPENAI_PATH] = model.listen("openai")
        server.answers[ANTHROPIC_PATH] = model.listen("anthropic")
        yield model


_is_stream: ContextVar[bool] = ContextVar("is_stream")
"""Whether the response to the current request must be streamed."""


def says(text: str, *, input_tokens: int = 10, output_tokens: int = 5, finish: str = "stop") -> Reply:
    """A text response, streamed if that is requested. `finish` is OpenAI's finish reason."""
    return _speaks(text, (), finish, input_tokens, output_tokens)


def calls(
    *wanted: tuple[str, dict[str, Any] | str], text: str = "", input_tokens: int = 10, output_tokens: int = 5
) -> Reply:
    """Tool calls in one response, by name and arguments. Arguments that are text are sent unchanged.

    The response is streamed if that is requested.
    """
    return _speaks(text, wanted, "tool_calls", input_tokens, output_tokens)


def fails(status: int, message: str = "no", *, headers: Mapping[str, str] | None = None, **members: Any) -> Reply:
    """An error. `members` are additional members of its object, such as `code` and `type`."""

    def reply(api: Api) -> Answer:
        error = {"message": message, "type": "invalid_request_error", **members}
        body = {"error": error} if api == "openai" else {"type": "error", "error": error}
        return _json(body, status=f"{status} Status", headers=headers)

    return reply


def page(html: str = "<!doctype html><h1>Welcome</h1>") -> Reply:
    """A web page instead of a response, as gateways send it."""
    return lambda api: answer(html.encode(), headers={"Content-Type": "text/html"})


def sends(body: str) -> Reply:
    """A response with this body and the content type of JSON."""
    return lambda api: answer(body.encode(), headers={"Content-Type": "application/json"})


def unstreamed(reply: Reply) -> Reply:
    """The reply as a whole, also if a stream is requested."""

    def whole(api: Api) -> Answer:
        _is_stream.set(False)
        return reply(api)

    return whole


def cut(reply: Reply, how: Literal["length", "chunked", "text"]) -> Reply:
    """Half of a reply's body. With `length` and `chunked`, the connection closes early, which HTTP clients detect. With
    `text`, the response is complete, and only its JSON is truncated.
    """

    def half(api: Api) -> Answer:
        whole = reply(api)
        assert isinstance(whole, bytes)
        body = whole.partition(b"\r\n\r\n")[2]
        kept = body[: len(body) // 2]
        json_type = {"Content-Type": "text/event-stream" if _is_stream.get() else "application/json"}
        if how == "text":
            return answer(kept, headers=json_type)
        if how == "length":
            return _then_closed(answer(kept, headers=json_type, length=len(body)))
        head = f"HTTP/1.1 200 OK\r\nContent-Type: {json_type['Content-Type']}\r\nTransfer-Encoding: chunked\r\n\r\n"
        return _then_closed(f"{head}{len(kept):x}\r\n".encode() + kept + b"\r\n")

    return half


def hangs_up() -> Reply:
    """Close the connection without a response."""
    return lambda api: _then_closed(b"")


def never() -> Reply:
    """Never respond."""

    async def wait(writer: StreamWriter) -> None:
        await writer.wait_closed()

    return lambda api: wait


_numbers = itertools.count(1)
_Wanted = Sequence[tuple[str, str, dict[str, Any] | str]]
"""Calls: id, name, arguments."""


def _speaks(
    text: str, wanted: Iterable[tuple[str, dict[str, Any] | str]], finish: str, input_tokens: int, output_tokens: int
) -> Reply:
    numbered = [(f"call_{next(_numbers)}", name, arguments) for name, arguments in wanted]

    def reply(api: Api) -> Answer:
        if _is_stream.get():
            from tests.llm_streams import whole_stream  # which imports this module

            return whole_stream(api, text, numbered, finish, (input_tokens, output_tokens))
        form = _openai if api == "openai" else _anthropic
        return _json(form(text, numbered, finish, input_tokens, output_tokens))

    return reply


def _openai(text: str, wanted: _Wanted, finish: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text or None}
    if wanted:
        message["tool_calls"] = [
            {
                "id": id,
                "type": "function",
                "function": {
                    "name": name,
                    "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
                },
            }
            for id, name, arguments in wanted
        ]
    usage = {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
    }
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_767_322_800,
        "model": "scripted",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": usage,
    }


def _anthropic(text: str, wanted: _Wanted, finish: str, input_tokens: int, output_tokens: int) -> dict[str, Any]:
    content: list[dict[str, Any]] = [{"type": "text", "text": text}] if text else []
    content += [{"type": "tool_use", "id": id, "name": name, "input": arguments} for id, name, arguments in wanted]
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": content,
        "stop_reason": FINISH.get(finish, finish),
        "stop_sequence": None,
        "usage": {"input_tokens": input_tokens, "output_tokens": output_tokens},
    }


def _json(body: Any, *, status: str = "200 OK", headers: Mapping[str, str] | None = None) -> bytes:
    return answer(
        json.dumps(body).encode(), status=status, headers={"Content-Type": "application/json", **(headers or {})}
    )


def _then_closed(sent: bytes) -> Callable[[StreamWriter], Any]:
    async def send(writer: StreamWriter) -> None:
        writer.write(sent)
        await writer.drain()
        writer.close()

    return send


def _asked(api: Api, received: Received) -> Asked:
    return Asked(api, received.headers, json.loads(received.body))
