"""Accepts whole responses of servers that do not stream, although the request asks for a stream.

Some OpenAI-compatible servers ignore `stream`. Their response becomes a stream of one part.
"""

from __future__ import annotations

import json
from typing import Any

import httpx2

STREAMS = b'"stream":true'


class WholeResponses(httpx2.AsyncBaseTransport):
    """Sends requests by another transport."""

    def __init__(self, transport: httpx2.AsyncBaseTransport) -> None:
        self._transport = transport

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._transport.handle_async_request(request)
        is_json = response.headers.get("content-type", "").startswith("application/json")
        if response.status_code != httpx2.codes.OK or not is_json or STREAMS not in _compact(request):
            return response
        body = await response.aread()
        stream = _stream_of(body)
        content_type = "application/json" if stream is None else "text/event-stream"
        return httpx2.Response(response.status_code, headers={"content-type": content_type}, content=stream or body)

    async def aclose(self) -> None:
        await self._transport.aclose()


def _compact(request: httpx2.Request) -> bytes:
    return request.content.replace(b": ", b":")


def _stream_of(body: bytes) -> bytes | None:
    """Return the events of a stream with the same content; None for a body that is no chat completion."""
    try:
        completion = json.loads(body)
        choices = [_part_of(choice) for choice in completion["choices"]]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    part = {**completion, "object": "chat.completion.chunk", "choices": choices}
    return b"data: " + json.dumps(part).encode() + b"\n\ndata: [DONE]\n\n"


def _part_of(choice: dict[str, Any]) -> dict[str, Any]:
    message = {**choice["message"]}
    if isinstance(calls := message.get("tool_calls"), list):
        numbered = [{**call, "index": number} if isinstance(call, dict) else call for number, call in enumerate(calls)]
        message["tool_calls"] = numbered
    return {"index": choice.get("index", 0), "delta": message, "finish_reason": choice.get("finish_reason")}
