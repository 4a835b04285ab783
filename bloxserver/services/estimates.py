"""Upper bounds of what the agents of a flow may use in one execution, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.blocks.agent_calls import MAX_STATE_BYTES
from bloxserver.errors import BadRequest, Unavailable
from bloxserver.isolation import IsolationUnavailable
from bloxserver.model_catalogue import Catalogue, catalogue_of
from bloxserver.model_prices import CHARACTERS_PER_TOKEN, NANO, RESPONSE_TOKENS, cost_of
from bloxserver.models.database import release
from bloxserver.organism.agent_uses import AgentUse
from bloxserver.organism.load import run_isolated
from bloxserver.organism.messages import problems_of_json
from bloxserver.organism.problems import OrganismError
from bloxserver.queries.flows import read_flow
from bloxserver.settings import Settings

MAX_INPUT_TOKENS = MAX_STATE_BYTES // CHARACTERS_PER_TOKEN


@dataclass(frozen=True)
class FlowEstimate:
    """Upper bounds for one execution. `cost_usd` is None if a price is unknown."""

    calls: int
    tokens: int
    cost_usd: float | None


async def estimate_flow(session: AsyncSession, settings: Settings, user_id: UUID, flow_id: UUID) -> FlowEstimate:
    """The bounds for the flow's definition. Raises `NotFound`, `Unavailable`, and `BadRequest` if it is invalid."""
    flow = await read_flow(session, user_id, flow_id)
    definition = flow.organism_yaml.encode(errors="surrogatepass")
    await release(session)
    try:
        found = await run_isolated("organism.agent_uses", definition, user_id)
        if (problems := found.get("problems")) is not None:
            raise OrganismError(problems_of_json(problems))
    except OrganismError as error:
        raise BadRequest("invalid_definition", f"The definition is invalid: {error}") from None
    except IsolationUnavailable as error:
        raise Unavailable("isolation_unavailable", f"The definition cannot be read now: {error}") from None
    uses = [AgentUse(**use) for use in found["uses"]]
    return estimate(uses, catalogue_of(settings), **found["execution"])


def estimate(
    uses: Sequence[AgentUse],
    models: Catalogue,
    *,
    max_iterations: int,
    max_tokens: int | None = None,
    max_cost_usd: float | None = None,
) -> FlowEstimate:
    """The bounds for the agents of an execution with these limits and budgets."""
    costs = {use: _cost_of(use, models) for use in uses}
    dollars = None
    if None not in costs.values():
        dollars = _bound(uses, max_iterations, lambda use: costs[use] or 0) / NANO
    tokens = _bound(uses, max_iterations, _tokens_of)
    return FlowEstimate(
        calls=_bound(uses, max_iterations, lambda use: use.max_calls),
        tokens=tokens if max_tokens is None else min(tokens, max_tokens),
        cost_usd=dollars if dollars is None or max_cost_usd is None else min(dollars, max_cost_usd),
    )


def _bound(uses: Sequence[AgentUse], max_iterations: int, amount: Callable[[AgentUse], int]) -> int:
    """The sum of what messages may use, if those that use the most are the first `max_iterations` messages."""
    total, left = 0, max_iterations
    for use in sorted(uses, key=amount, reverse=True):
        number = min(use.messages, left)
        total += number * amount(use)
        left -= number
    return total


def _tokens_of(use: AgentUse) -> int:
    """The tokens of one message: the last request is sent if the others have used less than `max_total_tokens`."""
    of_call = MAX_INPUT_TOKENS + _output_of_call(use)
    return min(use.max_calls * of_call, use.max_total_tokens + of_call)


def _output_of_call(use: AgentUse) -> int:
    return use.max_tokens or RESPONSE_TOKENS


def _cost_of(use: AgentUse, models: Catalogue) -> int | None:
    """The cost of one message in billionths of a US dollar; None if the price of a provider is unknown."""
    if models.problem(use.model) is not None:
        return None
    tokens = _tokens_of(use)
    output = min(tokens, use.max_calls * _output_of_call(use))
    costs = [cost_of(route.provider, route.model, tokens - output, output) for route in models.routes(use.model)]
    known = [cost for cost in costs if cost is not None]
    return max(known) if len(known) == len(costs) else None
