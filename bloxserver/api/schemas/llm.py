from __future__ import annotations

from pydantic import Field

from bloxserver.json_models import CamelModel
from bloxserver.queries.llm_usage import GroupBy


class LlmUsageGroup(CamelModel):
    """The calls of language models with one model, flow, provider or day."""

    key: str | None = Field(
        description="The name of the model or provider, the id of the flow, or the day in UTC. Null for calls without a"
        " flow, and for calls that no provider was asked for."
    )
    name: str | None = Field(description="The name of the flow; null if it was deleted, and for other groups.")
    calls: int
    failed_calls: int
    cached_calls: int = Field(description="Calls that the cache answered.")
    input_tokens: int
    output_tokens: int
    cost_usd: float = Field(description="Without calls whose price is unknown.")


class LlmUsage(CamelModel):
    """The user's calls of language models in groups: days in order, others by cost, at most 1,000."""

    group_by: GroupBy
    groups: list[LlmUsageGroup]
