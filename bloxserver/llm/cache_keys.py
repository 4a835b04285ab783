"""Which requests to language models may share a response: the key of a request, and how long its response is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic_core import PydanticSerializationError, to_json

from bloxserver.llm.calls import ModelCall
from bloxserver.model_catalogue import Route

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

MAX_CHARACTERS = 1024 * 1024
"""The length of texts in a request, beyond which it has no key: hashing them would block the event loop."""
MAX_PARTS = 1_000
"""Parts of messages in a request, beyond which it has no key. A part takes about 4 µs."""
IGNORED = frozenset(
    {
        "conversation_id",
        "failed_attempts",
        "finish_reason",
        "history_digest",
        "metadata",
        "model_id",
        "model_name",
        "parts",  # added by themselves
        "provider_details",
        "provider_name",
        "provider_response_id",
        "provider_url",
        "run_id",
        "state",
        "timestamp",
        "usage",
        "workspace_ref",
    }
)
"""Members of messages that are not sent to the model."""
IGNORED_IN_PARTS = frozenset({"metadata", "timestamp", "tool_call_id"})
"""Members of parts of messages that are not sent to the model, or are replaced by equal values for equal requests."""
TEXTS = ("content", "args")
"""Members of parts that can be large texts."""


def seconds_kept(temperature: float | None) -> float | None:
    """Return how long a response for this temperature is kept, in seconds; None if it is not kept."""
    if temperature is None:
        return None
    if temperature == 0:
        return 24 * 3600
    if temperature < 0.3:
        return 3600
    return 300 if temperature < 0.7 else None


def request_key(call: ModelCall, routes: Sequence[Route], owner: UUID | None) -> bytes | None:
    """Return a hash that is equal for equal requests of one owner; None if the request has no key.

    Requests are equal if the model would receive the same from the same providers. The ids of tool calls may differ:
    they are numbered in order of appearance. Requests with files, such as images, and large requests have no key.
    """
    parts = [part for message in call.messages for part in message.parts]
    if len(parts) > MAX_PARTS or not all(_is_data(getattr(part, "content", None)) for part in parts):
        return None
    texts: list[str] = []
    structure = [
        None if owner is None else owner.hex,
        [(route.provider.name, route.provider.kind, route.provider.base_url, route.model) for route in routes],
        None if call.temperature is None else float(call.temperature),
        call.max_tokens,
        asdict(call.options),
        [_members(tool, frozenset({"metadata"})) for tool in call.tools],
        list(_messages(call.messages, texts)),
    ]
    if sum(map(len, texts)) > MAX_CHARACTERS:
        return None
    try:
        encoded = to_json(structure)
    except PydanticSerializationError:  # half of a surrogate pair
        return None
    # The structure has the length of each text, so equal data have equal structures and texts.
    hashed = hashlib.sha256(encoded)
    for text in texts:
        hashed.update(text.encode("utf-8", "surrogatepass"))
    return hashed.digest()


def _messages(messages: Sequence[ModelMessage], texts: list[str]) -> Iterator[Any]:
    """Yield what identifies each message, except large texts, which are appended to `texts`. They need no escaping."""
    numbers: dict[str, int] = {}
    for message in messages:
        yield _members(message, IGNORED)
        for part in message.parts:
            members = _members(part, IGNORED_IN_PARTS)
            for name in TEXTS:
                if isinstance(text := members.get(name), str):
                    texts.append(text)
                    members[name] = ["text", len(text)]
                elif name in members:  # must not look like a text
                    members[name] = ["value", members[name]]
            call_id = getattr(part, "tool_call_id", None)
            yield [None if call_id is None else numbers.setdefault(call_id, len(numbers)), members]


def _is_data(content: object) -> bool:
    """Whether the content has no files, whose data may be at a URL and change."""
    items = content if isinstance(content, list | tuple) else [content]
    return not any(is_dataclass(item) for item in items)


def _members(value: object, ignored: frozenset[str]) -> dict[str, Any]:
    return {name: member for name, member in vars(value).items() if name not in ignored and member is not None}
