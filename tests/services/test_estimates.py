"""Upper bounds of what the agents of a flow may use."""

from __future__ import annotations

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from bloxserver.model_catalogue import Catalogue, Price, Provider
from bloxserver.models.tables import UserRecord
from bloxserver.organism.agent_uses import AgentUse
from bloxserver.services.estimates import MAX_INPUT_TOKENS, FlowEstimate, estimate
from tests.api.contract import assert_problem, covers, path_of
from tests.engine.pump_runs import echo, organism
from tests.factories import create_flow

MODELS = Catalogue(
    [
        Provider("one", "openai", "http://one", models={"m": None, "free": None}, prices={"m": Price(1, 2)}),
        Provider("two", "openai", "http://two", models={"m": None}, prices={"m": Price(3, 4)}),
    ],
    default_model="m",
)
SMALL = AgentUse(None, 100, 5, 1_000, 1)
LAST = MAX_INPUT_TOKENS + 100


def test_message_uses_its_limit_and_one_more_call() -> None:
    # At most 5 answers of 100 tokens. The most expensive provider counts.
    dollars = ((1_000 + LAST - 500) * 3 + 500 * 4) / 1_000_000
    assert estimate([SMALL], MODELS, max_iterations=100) == FlowEstimate(5, 1_000 + LAST, dollars)


def test_one_call_is_bounded_by_its_conversation() -> None:
    use = AgentUse("m", None, 1, 1_000_000, 1)
    assert estimate([use], MODELS, max_iterations=1).tokens == MAX_INPUT_TOKENS + 1_024


def test_messages_of_all_agents_are_bounded_together() -> None:
    uses = [AgentUse("m", 100, calls, tokens, 8) for calls, tokens in ((5, 1_000), (20, 10), (2, 9_000))]
    found = estimate(uses, MODELS, max_iterations=10)
    assert found.calls == 8 * 20 + 2 * 5
    assert found.tokens == 8 * (9_000 + LAST) + 2 * (1_000 + LAST)


@pytest.mark.parametrize("model", ["free", "unknown"])
def test_cost_is_null_if_a_price_is_unknown(model: str) -> None:
    other = AgentUse(model, 100, 5, 1_000, 1)
    assert estimate([SMALL, other], MODELS, max_iterations=100, max_cost_usd=1).cost_usd is None


def test_budgets_are_bounds() -> None:
    found = estimate([SMALL], MODELS, max_iterations=100, max_tokens=700, max_cost_usd=0.5)
    assert (found.tokens, found.cost_usd) == (700, 0.5)


@covers("flows.estimate")
async def test_flow_is_estimated(client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord) -> None:
    text = organism("name: a, prompt: p, config: {max_calls: 7}", echo("b"), execution="{max_tokens: 9000}")
    flow = await create_flow(session, dev_user, organism_yaml=text)
    response = await client.post(f"{path_of(flow)}/estimate")
    assert (response.status_code, response.json()) == (200, {"calls": 7, "tokens": 9_000, "costUsd": None})
    without = await create_flow(session, dev_user, name="Without", organism_yaml=organism(echo("b")))
    assert (await client.post(f"{path_of(without)}/estimate")).json() == {"calls": 0, "tokens": 0, "costUsd": 0}
    broken = await create_flow(session, dev_user, name="Broken", organism_yaml="organism: {name: x}")
    assert_problem(
        await client.post(f"{path_of(broken)}/estimate"),
        400,
        "invalid_definition",
        'The definition is invalid: line 1, column 1: "listeners" is missing; add at least one listener',
    )
