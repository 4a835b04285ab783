"""Streamed responses of the language model server, in the formats of OpenAI and Anthropic."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.clients.loopback import Answer, answer
from tests.llm_server import FINISH, Api, Reply

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNK = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1_767_322_800, "model": "scripted"}


@dataclass(frozen=True)
class Call:
    """A tool call whose arguments are sent in these pieces."""

    name: str
    arguments: tuple[str, ...]
    id: str = "call_a"


@dataclass
class Closed:
    """At this place, the stream waits until the client has closed the connection."""

    seen: asyncio.Event = field(default_factory=asyncio.Event)


Piece = str | Call | asyncio.Event | Closed
"""Text, a tool call, or what the stream waits for at this place."""


def streams(
    *pieces: Piece,
    finish: str | None = "stop",
    usage: tuple[int, int] | None = (10, 5),
    error: Mapping[str, Any] | None = None,
    end: Literal["complete", "closed"] = "complete",
) -> Reply:
    """A streamed response. `finish` is OpenAI's finish reason; None ends the stream without one.

    With `error`, this error follows the pieces, and the stream ends. `closed` closes the connection before the body is
    complete.
    """

    def reply(api: Api) -> Answer:
        form = _openai if api == "openai" else _anthropic

        async def send(writer: StreamWriter) -> None:
            writer.write(HEAD)
            for sent in form(pieces, finish, usage, error):
                if isinstance(sent, asyncio.Event):
                    await writer.drain()
                    await sent.wait()
                elif isinstance(sent, Closed):
                    await _until_closed(writer)
                    sent.seen.set()
                    return
                else:
                    writer.write(f"{len(sent):x}\r\n".encode() + sent + b"\r\n")
                    await writer.drain()
            if end == "complete":
                writer.write(b"0\r\n\r\n")
            else:
                writer.close()

        return send

    return reply


def deltas(*sent: Any, finish: str = "stop") -> Reply:
    """A stream of OpenAI's API with these deltas, which can violate the API."""
    choices = [*({"delta": delta, "finish_reason": None} for delta in sent), {"delta": {}, "finish_reason": finish}]
    body = b"".join(_data({**CHUNK, "choices": [{"index": 0, **choice}]}) for choice in choices) + b"data: [DONE]\n\n"
    return lambda api: answer(body, headers={"Content-Type": "text/event-stream"})


def whole_stream(
    api: Api,
    text: str,
    wanted: Sequence[tuple[str, str, dict[str, Any] | str]],
    finish: str,
    usage: tuple[int, int],
) -> bytes:
    """A streamed response that arrives at once. `wanted` are tool calls: id, name, arguments."""
    calls = [
        Call(name, (arguments if isinstance(arguments, str) else json.dumps(arguments),), id)
        for id, name, arguments in wanted
    ]
    form = _openai if api == "openai" else _anthropic
    pieces: list[Piece] = [text, *calls] if text else [*calls]
    sent = [each for each in form(tuple(pieces), finish, usage, None) if isinstance(each, bytes)]
    return answer(b"".join(sent), headers={"Content-Type": "text/event-stream"})


async def _until_closed(writer: StreamWriter) -> None:
    await writer.drain()
    reader: StreamReader = vars(writer)["_reader"]
    await reader.read()


def _event(body: Mapping[str, Any]) -> bytes:
    return f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode() if "type" in body else _data(body)


def _data(body: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(body)}\n\n".encode()


_Sent = bytes | asyncio.Event | Closed


def _openai(
    pieces: tuple[Piece, ...], finish: str | None, usage: tuple[int, int] | None, error: Mapping[str, Any] | None
) -> Iterator[_Sent]:
    def chunk(delta: Mapping[str, Any], reason: str | None = None) -> bytes:
        return _data({**CHUNK, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]})

    yield chunk({"role": "assistant", "content": ""})
    calls = 0
    for piece in pieces:
        if isinstance(piece, asyncio.Event | Closed):
            yield piece
        elif isinstance(piece, str):
            yield chunk({"content": piece})
        else:
            call = {"index": calls, "id": piece.id, "type": "function"}
            yield chunk({"tool_calls": [{**call, "function": {"name": piece.name, "arguments": ""}}]})
            for part in piece.arguments:
                yield chunk({"tool_calls": [{"index": calls, "function": {"arguments": part}}]})
            calls += 1
    if error is not None:
        yield _data({"error": error})
        return
    if finish is None:
        return
    yield chunk({}, finish)
    if usage is not None:
        counts = {"prompt_tokens": usage[0], "completion_tokens": usage[1], "total_tokens": sum(usage)}
        yield _data({**CHUNK, "choices": [], "usage": counts})
    yield b"data: [DONE]\n\n"


def _anthropic(
    pieces: tuple[Piece, ...], finish: str | None, usage: tuple[int, int] | None, error: Mapping[str, Any] | None
) -> Iterator[_Sent]:
    input_tokens, output_tokens = usage or (0, 0)
    message = {"id": "msg_1", "type": "message", "role": "assistant", "model": "scripted", "content": []}
    counts = {"input_tokens": input_tokens, "output_tokens": 0}
    yield _event({"type": "message_start", "message": {**message, "stop_reason": None, "usage": counts}})
    index = 0
    for piece in pieces:
        if isinstance(piece, asyncio.Event | Closed):
            yield piece
            continue
        if isinstance(piece, str):
            block: dict[str, Any] = {"type": "text", "text": ""}
            deltas = [{"type": "text_delta", "text": piece}]
        else:
            block = {"type": "tool_use", "id": piece.id, "name": piece.name, "input": {}}
            deltas = [{"type": "input_json_delta", "partial_json": part} for part in piece.arguments]
        yield _event({"type": "content_block_start", "index": index, "content_block": block})
        for delta in deltas:
            yield _event({"type": "content_block_delta", "index": index, "delta": delta})
        yield _event({"type": "content_block_stop", "index": index})
        index += 1
    if error is not None:
        yield _event({"type": "error", "error": error})
        return
    if finish is None:
        return
    ending = {"stop_reason": FINISH.get(finish, finish), "stop_sequence": None}
    yield _event({"type": "message_delta", "delta": ending, "usage": {"output_tokens": output_tokens}})
    yield _event({"type": "message_stop"})
