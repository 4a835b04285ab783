"""Embeddings of texts, and of lists of tokens, by servers with OpenAI's API."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from pydantic_ai.models import Model


Inputs: TypeAlias = Sequence[str] | Sequence[int] | Sequence[Sequence[int]]
"""Texts, the tokens of one text, or the tokens of several texts."""


def parts_of(inputs: Inputs) -> list[str | Sequence[int]]:
    """The text, or its tokens, of each vector."""
    if inputs and isinstance(inputs[0], int):
        return [cast("Sequence[int]", inputs)]
    return [*cast("Sequence[str | Sequence[int]]", inputs)]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """The vectors of the inputs, in the same order."""

    vectors: Sequence[Sequence[float]]
    input_tokens: int


async def embed(model: Model[Any], inputs: Inputs, dimensions: int | None) -> Embeddings:
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
    # The library sends lists of tokens unchanged, although its types allow only texts.
    result = await embedding.embed(cast("Sequence[str]", inputs), input_type="document", settings=settings)
    if len(result.embeddings) != len(parts_of(inputs)):
        raise UnexpectedModelBehavior("the number of embeddings is not that of the inputs")
    return Embeddings(result.embeddings, result.usage.input_tokens)
