"""Examples for the OpenAPI document, in the form of OpenAI's API."""

from __future__ import annotations

from typing import Any

CHAT: dict[str, Any] = {"model": "fast", "messages": [{"role": "user", "content": "What do you guard?"}]}
COMPLETION: dict[str, Any] = {
    "id": "chatcmpl-0199f0a2b3c47d5e8f90a1b2c3d4e5f6",
    "object": "chat.completion",
    "created": 1_767_322_800,
    "model": "fast",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "A door.", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15},
}
TEXTS: dict[str, Any] = {"model": "text-embedding-3-small", "input": ["A door.", "A gate."]}
EMBEDDINGS: dict[str, Any] = {
    "object": "list",
    "model": "text-embedding-3-small",
    "data": [
        {"object": "embedding", "index": 0, "embedding": [0.25, -0.5]},
        {"object": "embedding", "index": 1, "embedding": [0.75, 0.125]},
    ],
    "usage": {"prompt_tokens": 6, "total_tokens": 6},
}
MODELS: dict[str, Any] = {
    "object": "list",
    "data": [
        {"id": "claude-small", "object": "model", "created": 0, "owned_by": "anthropic"},
        {"id": "fast", "object": "model", "created": 0, "owned_by": "anthropic"},
    ],
}
