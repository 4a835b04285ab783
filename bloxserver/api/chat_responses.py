"""Chat completions in the form of OpenAI's API: whole, and as Server-Sent Events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from bloxserver.api.openai_errors import failure_of, openai_error
from bloxserver.clients.model_errors import ModelError
from bloxserver.clients.model_streams import StreamEnd, TextDelta, ToolCallDelta
from bloxserver.ids import new_id

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse, ToolCallPart
    from pydantic_ai.usage import RequestUsage

FINISH_REASONS = {"length": "length", "content_filter": "content_filter", "tool_call": "tool_calls"}
DONE = b"data: [DONE]\n\n"


class ChatCompletionWriter:
    """Writes one completion. `model` is the name in the request."""

    def __init__(self, model: str, *, includes_usage: bool = False) -> None:
        self._id = f"chatcmpl-{new_id().hex}"
        self._created = int(time.time())
        self._model = model
        self._includes_usage = includes_usage

    def whole(self, response: ModelResponse) -> dict[str, Any]:
        calls = [
            {"id": call.tool_call_id, "type": "function", "function": {"name": call.tool_name, "arguments": arguments}}
            for call, arguments in ((call, _arguments(call)) for call in response.tool_calls)
        ]
        text = "".join(part.content for part in response.parts if part.part_kind == "text")
        message: dict[str, Any] = {"role": "assistant", "content": text if text or not calls else None}
        message |= {"refusal": None} | ({"tool_calls": calls} if calls else {})
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(response)}
        return self._object("chat.completion", choices=[choice], usage=_usage(response.usage))

    def beginning(self) -> bytes:
        return self._chunk({"role": "assistant", "content": "", "refusal": None})

    def event(self, event: TextDelta | ToolCallDelta | StreamEnd) -> bytes:
        if isinstance(event, StreamEnd):
            return b"".join(self._end(event.response))
        if isinstance(event, TextDelta):
            return self._chunk({"content": event.text})
        call: dict[str, Any] = {"index": event.index, "function": {"arguments": event.arguments}}
        if event.name is not None:
            call |= {"id": event.id, "type": "function"}
            call["function"]["name"] = event.name
        return self._chunk({"tool_calls": [call]})

    def _end(self, response: ModelResponse) -> Iterator[bytes]:
        yield self._chunk({}, _finish_reason(response))
        if self._includes_usage:
            yield _data(self._object("chat.completion.chunk", choices=[], usage=_usage(response.usage)))
        yield DONE

    def _chunk(self, delta: Mapping[str, Any], finish_reason: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        usage = {"usage": None} if self._includes_usage else {}
        return _data(self._object("chat.completion.chunk", choices=[choice], **usage))

    def _object(self, kind: str, **members: Any) -> dict[str, Any]:
        return {"id": self._id, "object": kind, "created": self._created, "model": self._model, **members}


def error_event(error: ModelError) -> bytes:
    """The last event of a stream that has failed."""
    failure = failure_of(error)
    return _data({"error": openai_error(failure.status, failure.code, failure.message)})


def _data(value: Mapping[str, Any]) -> bytes:
    return f"data: {json.dumps(value, separators=(',', ':'))}\n\n".encode()


def _arguments(call: ToolCallPart) -> str:
    return call.args if isinstance(call.args, str) else call.args_as_json_str()


def _finish_reason(response: ModelResponse) -> str:
    # Some servers report calls of tools as "stop".
    default = "tool_calls" if response.tool_calls else "stop"
    return FINISH_REASONS.get(response.finish_reason or "", default)


def _usage(usage: RequestUsage) -> dict[str, Any]:
    return {
        "prompt_tokens": usage.input_tokens,
        "completion_tokens": usage.output_tokens,
        "total_tokens": usage.input_tokens + usage.output_tokens,
        "prompt_tokens_details": {"cached_tokens": usage.cache_read_tokens},
    }
