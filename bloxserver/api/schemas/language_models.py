"""Bodies in the form of OpenAI's API, whose members are in snake_case."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _OpenAI(BaseModel):
    model_config = ConfigDict(extra="allow")


class ChatCompletion(_OpenAI):
    """A chat completion, as OpenAI describes it."""

    id: str
    object: Literal["chat.completion"]
    created: int = Field(description="The time in seconds since 1970.")
    model: str = Field(description="The model in the request.")
    choices: list[dict[str, Any]] = Field(description="One choice with `message` and `finish_reason`.")
    usage: dict[str, Any] = Field(description="`prompt_tokens`, `completion_tokens` and `total_tokens`.")


class Embedding(_OpenAI):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int = Field(description="The number of the text, from 0.")
    embedding: list[float] | str = Field(description="Numbers, or the base64 of 32-bit numbers.")


class EmbeddingList(_OpenAI):
    """The vectors of the texts, in their order."""

    object: Literal["list"]
    model: str = Field(description="The model in the request.")
    data: list[Embedding]
    usage: dict[str, Any] = Field(description="`prompt_tokens` and `total_tokens`.")


class LanguageModel(_OpenAI):
    """A model, or an alias for a list of models."""

    id: str = Field(description="The name for requests.")
    object: Literal["model"]
    created: int = Field(description="Always 0.")
    owned_by: str = Field(description="The provider that is asked first.")


class LanguageModelList(_OpenAI):
    """The models that have a name in the settings."""

    object: Literal["list"]
    data: list[LanguageModel]
