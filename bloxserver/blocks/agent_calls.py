"""The arguments and results of an agent's tool calls, and its message, as texts.

Large ones are read in another process. Nothing here needs the libraries for language models.
"""

from __future__ import annotations

import json
from functools import partial

from pydantic import JsonValue
from pydantic_core import from_json

from bloxserver.blocks.base import BlockError, IsolatedTasks, Tool
from bloxserver.blocks.json_values import storable
from bloxserver.blocks.tools import INPUT, unexpected_arguments
from bloxserver.isolation.parts import join_parts, split_parts
from bloxserver.raw_json import RawJson, Value, is_large, value_of_text
from bloxserver.storable import json_text

MAX_RESULT_BYTES = 200_000
"""The limit for a tool's answer, as the model reads it."""
MAX_STATE_BYTES = 1024 * 1024
"""The limit for a conversation. It is written after each answer of the model, and sent with each request."""
MAX_REASON = 200


async def prompt_of(payload: RawJson, isolated: IsolatedTasks) -> str:
    """The user message for a large payload. Raises `BlockError`."""
    error, text = split_parts(await isolated.run("agent.prompt", payload.text.encode))
    if error:
        raise BlockError("llm_too_long", error.decode(), retryable=False)
    return text.decode()


def prompt_text(payload: JsonValue) -> str:
    """A text, the text of `{"text": …}`, or any other value as JSON."""
    text = payload["text"] if isinstance(payload, dict) and payload.keys() == {"text"} else payload
    return as_text(text if isinstance(text, str) else payload)


def read_prompt(request: bytes) -> bytes:
    """`prompt_text` for another process. The parts of the response are an error and the text."""
    content = prompt_text(json.loads(request)).encode()
    if len(content) > MAX_STATE_BYTES:
        return join_parts([too_long("the message of the agent", len(content)).encode(), b""])
    return join_parts([b"", content])


def too_long(what: str, size: int) -> str:
    return f"{what} has {size} bytes, but a conversation may have {MAX_STATE_BYTES} bytes. Send less to the agent"


async def result_of(value: Value, isolated: IsolatedTasks) -> str:
    """A tool's answer as a text for the model, cut at `MAX_RESULT_BYTES`. Raises `BlockError`."""
    if isinstance(value, RawJson):
        return (await isolated.run("agent.result", value.text.encode)).decode()
    return shortened(as_text(value))


def read_result(request: bytes) -> bytes:
    """`result_of` for another process."""
    return shortened(as_text(json.loads(request))).encode()


async def arguments_of(given: str, tool: Tool, isolated: IsolatedTasks) -> Value:
    """The payload for a tool that a model calls with these arguments.

    Raises `BlockError` with a message for the model.
    """
    if not is_large(given):
        return parse_arguments(given, tool)
    header = json.dumps([tool.name, tool.listener, tool.description, tool.schema, tool.wrapped])
    request = partial(join_parts, [header.encode(), given.encode(errors="surrogatepass")])
    reason, text = split_parts(await isolated.run("agent.arguments", request))
    if reason:
        raise _invalid(reason.decode())
    return value_of_text(text.decode())


def read_arguments(request: bytes) -> bytes:
    """`parse_arguments` for another process. The parts of the response are an error and the JSON text."""
    header, given = split_parts(request)
    try:
        payload = parse_arguments(given.decode(errors="surrogatepass"), Tool(*json.loads(header)))
    except BlockError as error:
        return join_parts([error.message.encode(errors="replace"), b""])
    return join_parts([b"", json_text(payload).encode()])


def parse_arguments(given: str, tool: Tool) -> JsonValue:
    """As `arguments_of`, in this process."""
    try:
        arguments = storable(from_json(without_nul(given or "{}"), allow_inf_nan=False), max_bytes=MAX_STATE_BYTES)
    except ValueError as error:
        raise _invalid(f"the arguments are not valid JSON: {str(error)[:MAX_REASON]}") from None
    if not isinstance(arguments, dict):
        raise _invalid("the arguments must be a JSON object")
    if names := unexpected_arguments(tool, arguments):
        takes = ", ".join(tool.schema["properties"]) or "no arguments"
        shown = ", ".join(names)[:MAX_REASON]
        raise _invalid(f"remove the arguments that this tool does not accept: {shown}; it accepts {takes}")
    if not tool.wrapped:
        return arguments
    if INPUT not in arguments:
        raise _invalid(f'the arguments must have "{INPUT}"')
    return arguments[INPUT]


def _invalid(reason: str) -> BlockError:
    return BlockError("invalid_arguments", reason)


def as_text(value: JsonValue) -> str:
    """Return a text unchanged, and any other value as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def shortened(text: str) -> str:
    """The text with at most `MAX_RESULT_BYTES`, and a note if it was longer."""
    encoded = text.encode(errors="replace")
    if len(encoded) <= MAX_RESULT_BYTES:
        return text
    kept = encoded[:MAX_RESULT_BYTES].decode(errors="ignore")
    return f"{kept}\n[truncated: the first {MAX_RESULT_BYTES} of {len(encoded)} bytes]"


def without_nul(text: str) -> str:
    """Replace escaped NUL characters in JSON, which databases do not accept."""
    if "\\u0000" not in text:
        return text
    # An escaped backslash may precede the letters u0000. What is between two of them has only other escapes.
    return r"\\".join(part.replace(r"\u0000", r"\ufffd") for part in text.split(r"\\"))
