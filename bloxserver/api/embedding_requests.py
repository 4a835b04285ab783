"""Requests for embeddings, and their responses, in the form of OpenAI's API."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from bloxserver.api.chat_requests import IGNORED, invalid, read_json
from bloxserver.api.openai_errors import unsupported
from bloxserver.clients.embeddings import Embeddings
from bloxserver.errors import Unprocessable

MAX_TEXTS = 1_000


class EmbeddingRequest(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = Field(min_length=1, max_length=200)
    input: str | list[str]
    dimensions: int | None = Field(None, ge=1, le=100_000)
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


def read_embedding_request(body: bytes) -> EmbeddingRequest:
    """Raises `Unprocessable`, and `BadRequest` for a parameter that is not supported."""
    value = read_json(body)
    if isinstance(value, dict) and _are_tokens(value.get("input")):
        raise unsupported("input", "A list of tokens, instead of texts,")
    try:
        request = EmbeddingRequest.model_validate(value)
    except ValidationError as error:
        raise invalid(error) from None
    for name, given in (request.model_extra or {}).items():
        if given is not None and name not in IGNORED:
            raise unsupported(name)
    if not request.texts or not all(request.texts) or len(request.texts) > MAX_TEXTS:
        raise Unprocessable({"body.input": f"Must be a text that is not empty, or 1 to {MAX_TEXTS} of them"})
    return request


def _are_tokens(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], int | list)


def embedding_list(request: EmbeddingRequest, embeddings: Embeddings) -> dict[str, Any]:
    write = _base64 if request.encoding_format == "base64" else list[float]
    return {
        "object": "list",
        "model": request.model,
        "data": [
            {"object": "embedding", "index": index, "embedding": write(vector)}
            for index, vector in enumerate(embeddings.vectors)
        ],
        "usage": {"prompt_tokens": embeddings.input_tokens, "total_tokens": embeddings.input_tokens},
    }


def _base64(vector: Sequence[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
