"""Requests for embeddings, and their responses, in the form of OpenAI's API."""

from __future__ import annotations

import base64
import struct
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictInt, ValidationError

from bloxserver.api.chat_requests import IGNORED, invalid, read_json
from bloxserver.api.openai_errors import unsupported
from bloxserver.clients.embeddings import Embeddings, Inputs, parts_of
from bloxserver.errors import Unprocessable

MAX_INPUTS = 1_000
RULE = f"Must be a text or tokens, and not empty, or 1 to {MAX_INPUTS} of them"
Tokens = Annotated[list[Annotated[StrictInt, Field(ge=0)]], Field(fail_fast=True)]


class EmbeddingRequest(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)

    model: str = Field(min_length=1, max_length=200)
    input: str | Annotated[list[str], Field(fail_fast=True)] | Tokens | Annotated[list[Tokens], Field(fail_fast=True)]
    dimensions: int | None = Field(None, ge=1, le=100_000)
    encoding_format: Literal["float", "base64"] | None = None

    @property
    def inputs(self) -> Inputs:
        return [self.input] if isinstance(self.input, str) else self.input


def read_embedding_request(body: bytes) -> EmbeddingRequest:
    """Raises `Unprocessable`, and `BadRequest` for a parameter that is not supported."""
    value = read_json(body)
    try:
        request = EmbeddingRequest.model_validate(value)
    except ValidationError as error:
        if error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"][:1] == ("input",):
            # Each alternative has errors of its own.
            raise Unprocessable({"body.input": RULE}) from None
        raise invalid(error) from None
    for name, given in (request.model_extra or {}).items():
        if given is not None and name not in IGNORED:
            raise unsupported(name)
    parts = parts_of(request.inputs)
    if not parts or not all(parts) or len(parts) > MAX_INPUTS:
        raise Unprocessable({"body.input": RULE})
    return request


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
