"""What calls of language models cost: by the prices in the file of providers, else by the public ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

from bloxserver.model_catalogue import BASE_URLS, Price, Provider, ProviderKind

NANO = 1_000_000_000
CHARACTERS_PER_TOKEN = 3
"""Texts of code have about 3 characters for a token, and prose has 4. An estimate that is too high is corrected."""
RESPONSE_TOKENS = 1_024
"""The estimate for a response without `max_tokens`."""
TOKENS_OF_PRICE = 1_000_000
PUBLIC_IDS: dict[ProviderKind, str] = {
    "openai": "openai",
    "anthropic": "anthropic",
    "xai": "x-ai",
    "together": "together",
}
"""The names of providers in genai-prices, which is part of pydantic-ai."""

Cost = Callable[[int, int], int]
"""Returns the cost of input and output tokens, in billionths of a US dollar."""


def cost_of(provider: Provider, model: str, input_tokens: int, output_tokens: int) -> int | None:
    """The cost in billionths of a US dollar; None if the price is unknown. `model` is the provider's own name.

    Imports a large library when it is first called with a provider without prices.
    """
    names = [name for name, own_name in provider.models.items() if (own_name or name) == model]
    names += [pattern] if (pattern := provider.match(model)) is not None else []
    price = next((provider.prices[name] for name in names if name in provider.prices), None)
    if price is not None:
        return _cost(price, input_tokens, output_tokens)
    # A server of the operator's own may run a model of the same name.
    if provider.base_url != BASE_URLS[provider.kind]:
        return None
    public = _public_cost(PUBLIC_IDS[provider.kind], model)
    return None if public is None else public(input_tokens, output_tokens)


def _cost(price: Price, input_tokens: int, output_tokens: int) -> int:
    dollars = (price.input * input_tokens + price.output * output_tokens) / TOKENS_OF_PRICE
    return round(dollars * NANO)


@lru_cache(maxsize=1_000)
def _public_cost(provider_id: str, model: str) -> Cost | None:
    from genai_prices import Usage
    from genai_prices.data_snapshot import get_snapshot

    try:
        provider, found = get_snapshot().find_provider_model(model, None, provider_id, None)
    except LookupError:
        return None

    def cost(input_tokens: int, output_tokens: int) -> int:
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        return round(found.calc_price(usage, provider).total_price * NANO)

    return cost
