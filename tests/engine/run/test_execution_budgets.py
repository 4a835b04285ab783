"""Executions with budgets for language models."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import FailureNotificationRecord
from bloxserver.settings import Settings
from tests.engine.pump_runs import echo, organism
from tests.engine.running_engine import accept, end_delay, eventually, run, running_engine, started_flow
from tests.llm.catalogues import providers, settings_of
from tests.llm_server import LanguageModelServer, Reply, calls, language_model, says

AGENT = "name: a, prompt: Be brief., model: parrot-1, max_tokens: 100, retries: 2, peers: [b, {to: c, on: error}]"
PRICED = {"parrot-1": {"prices": {"input": 1_000, "output": 1_000}}}


def prices_of(server: LanguageModelServer, folder: Path) -> dict[str, object]:
    """The settings of a provider with prices: a thousand tokens are a dollar."""
    settings = settings_of(folder, {"providers": providers({"one": server.url}, models=PRICED)})
    return {"llm_providers": settings.llm_providers}


@pytest.mark.parametrize("limit", ["max_tokens: 1000", "max_cost_usd: 1.0"])
async def test_execution_ends_before_the_call_that_would_exceed_its_budget(
    limit: str, live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    script: list[Reply] = [calls(("b", {"input": n}), input_tokens=400, output_tokens=50) for n in range(4)]
    async with language_model(script) as server:
        async with running_engine(live_settings, live_database, **prices_of(server, tmp_path)):
            text = organism(AGENT, echo("b"), echo("c"), execution=f"{{{limit}}}")
            path = await started_flow(live_client, text)
            ended = await run(live_client, path)
        seen = "".join(text for asked in server.requests for text in asked.texts)
    assert ended["status"] == "error"
    assert "a (attempt 1 of 3): the budget of the execution is" in ended["errorMessage"]
    assert ended["inputTokens"] + ended["outputTokens"] == 900
    assert ended["costUsd"] == 0.9
    assert "budget" not in seen
    steps = (await live_client.get(f"{path}/executions/{ended['id']}/steps")).json()["items"]
    assert [step["listener"] for step in steps] == ["a", "b", "b"], "the error is not sent to c"
    assert steps[0]["errorCode"] == "execution_budget_exceeded"
    assert [warning["code"] for warning in steps[0]["warnings"]] == ["execution_budget_warning"]


async def test_budget_counts_what_was_used_before_a_suspension(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    script = [calls(("b", {"input": 1}), input_tokens=800, output_tokens=0), says("Done.")]
    async with language_model(script) as server:
        async with running_engine(live_settings, live_database, **prices_of(server, tmp_path)):
            text = organism(
                AGENT, "name: b, handler: delay, config: {seconds: 3600}", echo("c"), execution="{max_cost_usd: 0.85}"
            )
            path = await started_flow(live_client, text)
            execution = await accept(live_client, path)
            await end_delay(live_database, execution)
            ended = await eventually(live_client, execution, {"error", "success"})
        assert len(server.requests) == 1
    steps = (await live_client.get(f"{execution}/steps")).json()["items"]
    assert [warning["message"] for warning in steps[0]["warnings"]] == [
        "$0.8 of $0.85 are used (execution.max_cost_usd)"
    ], "the warning of the first run is kept"
    assert "the budget of the execution is $0.85, $0.8 are used" in ended["errorMessage"]


async def test_agents_that_call_others_do_not_get_the_error(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    script = [
        calls(("b", {"text": "Go."}), input_tokens=100, output_tokens=0),
        says("Done."),
    ]
    async with language_model(script) as server:
        async with running_engine(live_settings, live_database, **prices_of(server, tmp_path)):
            inner = "name: b, prompt: Inner., model: parrot-1, max_tokens: 5000, peers: [d]"
            text = organism(AGENT, inner, echo("c"), echo("d"), execution="{max_tokens: 950}")
            path = await started_flow(live_client, text)
            ended = await run(live_client, path)
        assert len(server.requests) == 1
    assert ended["status"] == "error"
    steps = (await live_client.get(f"{path}/executions/{ended['id']}/steps")).json()["items"]
    assert {step["listener"]: step["errorCode"] for step in steps} == {
        "a": "execution_budget_exceeded",
        "b": "execution_budget_exceeded",
    }


async def notifications(database: Database) -> dict[str | None, str | None]:
    """The reasons of notifications about budgets, by their subjects."""
    notice = FailureNotificationRecord
    async with database.transaction(read_only=True) as session:
        rows = await session.execute(sa.select(notice.subject, notice.reason).where(notice.flow_id.is_not(None)))
        found = [(row.subject, row.reason) for row in rows]
    assert len(dict(found)) == len(found)
    return dict(found)


async def test_recipients_are_notified_once_on_a_day_when_the_budget_of_the_flow_stops_calls(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    budget = "daily_max_cost_usd: 0.5, on_failure: {url: 'http://127.0.0.1:9/'}"
    text = organism(AGENT, echo("b"), echo("c"), execution=f"{{{budget}}}")
    async with language_model([says("Done.", input_tokens=450, output_tokens=0)]) as server:
        prices = prices_of(server, tmp_path)
        async with running_engine(live_settings, live_database, **prices):
            path = await started_flow(live_client, text)
            assert (await run(live_client, path))["status"] == "success"
            first = await run(live_client, path)
        async with running_engine(live_settings, live_database, **prices):
            ended = [first, *await asyncio.gather(*(run(live_client, path) for _ in range(3)))]
        assert len(server.requests) == 1
    assert [each["status"] for each in ended] == ["error"] * 4
    subject = f"daily_budget_used {now():%Y-%m-%d}"
    found = await notifications(live_database)
    assert found.keys() == {subject, f"daily_budget_warning {now():%Y-%m-%d}"}
    reason = found[subject] or ""
    assert reason.startswith("the daily budget of the flow is $0.5, $0.45 are used or reserved")
    for each in ended:
        [step] = (await live_client.get(f"{path}/executions/{each['id']}/steps")).json()["items"]
        assert step["errorCode"] == "daily_budget_exceeded"
        assert [warning["code"] for warning in step["warnings"]] == ["daily_budget_used"]


async def test_recipients_are_notified_once_at_80_percent(
    live_client: httpx.AsyncClient, live_settings: Settings, live_database: Database, tmp_path: Path
) -> None:
    script = [says("Done.", input_tokens=450, output_tokens=0)] * 2
    budgets = "max_tokens: 550, daily_max_cost_usd: 1.1, on_failure: {url: 'http://127.0.0.1:9/'}"
    text = organism(AGENT, echo("b"), echo("c"), execution=f"{{{budgets}}}")
    async with (
        language_model(script) as server,
        running_engine(live_settings, live_database, **prices_of(server, tmp_path)),
    ):
        path = await started_flow(live_client, text)
        ended = [await run(live_client, path) for _ in range(2)]
    assert [each["status"] for each in ended] == ["success", "success"]
    subjects = await notifications(live_database)
    assert subjects == {
        f"execution_budget_warning {ended[0]['id']}": "450 of 550 tokens are used (execution.max_tokens)",
        f"execution_budget_warning {ended[1]['id']}": "450 of 550 tokens are used (execution.max_tokens)",
        f"daily_budget_warning {now():%Y-%m-%d}": "$0.9 of $1.1 are used today (execution.daily_max_cost_usd)",
    }
