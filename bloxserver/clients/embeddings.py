"""Embeddings of texts by servers with OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic_ai.models import Model


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of some texts, in the same order."""

    vectors: Sequence[Sequence[float]]
    input_tokens: int


async def embed(model: Model[Any], texts: Sequence[str], dimensions: int | None) -> Embeddings:
    """Send one request with the client of the model. Raises the exceptions of the libraries."""
    from pydantic_ai.embeddings import EmbeddingSettings
    from pydantic_ai.embeddings.openai import OpenAIEmbeddingModel
    from pydantic_ai.exceptions import UnexpectedModelBehavior
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    if not isinstance(model, OpenAIChatModel):
        raise TypeError(model)
    settings = EmbeddingSettings() if dimensions is None else EmbeddingSettings(dimensions=dimensions)
    embedding = OpenAIEmbeddingModel(model.model_name, provider=OpenAIProvider(openai_client=model.client))
    result = await embedding.embed(texts, input_type="document", settings=settings)
    if len(result.embeddings) != len(texts):
        raise UnexpectedModelBehavior("the number of embeddings is not that of the texts")
    return Embeddings(result.embeddings, result.usage.input_tokens)
