"""`/metrics`: disabled without a token, and available without the database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver import __version__
from bloxserver.clock import now
from bloxserver.models.database import Database
from bloxserver.models.tables import LlmCallRecord, UserRecord
from bloxserver.queries.execution_costs import NANO
from tests.api.contract import API, assert_problem, covers
from tests.api.test_health import EVERY_WAY, unreachable
from tests.clerk import override_settings
from tests.factories import create_execution, create_flow
from tests.metric_increase import measure_increase
from tests.statements import count_statements

__all__ = ["unreachable"]

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"
TOKEN = "a-token-for-metrics"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


@pytest.fixture
def token() -> Iterator[None]:
    with override_settings(METRICS_TOKEN=TOKEN):
        yield


async def scrape(client: httpx.AsyncClient) -> Samples:
    """All samples, by name and labels."""
    response = await client.get("/metrics", headers=BEARER)
    assert response.status_code == 200
    assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples.get((name, tuple(sorted(labels.items()))), 0.0)


class TestAccess:
    @covers("metrics.hidden")
    async def test_metrics_are_not_found_without_a_configured_token(self, client: httpx.AsyncClient) -> None:
        for method in ("GET", "POST", "OPTIONS"):
            for headers in ({}, BEARER):
                answers = [await client.request(method, path, headers=headers) for path in ("/metrics", "/metricz")]
                bodies = [answer.json() | {"requestId": ""} for answer in answers]
                assert bodies[0] == bodies[1]
                assert answers[0].status_code == answers[1].status_code == 404
        assert "/metrics" not in (await client.get("/openapi.json")).text

    @covers("metrics.token")
    @pytest.mark.usefixtures("token")
    async def test_metrics_require_the_token(self, client: httpx.AsyncClient) -> None:
        missing = await client.get("/metrics")
        assert_problem(missing, 401, "missing_token", "Missing authentication token")
        for wrong in (TOKEN[:-1], TOKEN + "x", "é", "x" * 5000):
            header = (b"Authorization", f"Bearer {wrong}".encode("latin-1"))
            refused = await client.get("/metrics", headers=[header])
            assert_problem(refused, 401, "invalid_token", "Invalid authentication token")
        assert (await client.get("/metrics", headers=BEARER)).status_code == 200


@pytest.mark.usefixtures("token")
class TestRequests:
    @covers("metrics.requests")
    async def test_requests_are_counted_by_route(self, client: httpx.AsyncClient, dev_user: UserRecord) -> None:
        before = await scrape(client)
        for _ in range(3):
            await client.get(f"{API}/flows/00000000-0000-0000-0000-000000000000")
        after = await scrape(client)
        name, labels = "bloxserver_http_requests_total", {"method": "GET", "route": f"{API}/flows/{{flow_id}}"}
        assert value(after, name, status="404", **labels) - value(before, name, status="404", **labels) == 3
        counted = "bloxserver_http_request_duration_seconds_count"
        assert value(after, counted, **labels) - value(before, counted, **labels) == 3

    @covers("metrics.requests")
    async def test_unknown_methods_and_paths_create_no_series(self, client: httpx.AsyncClient) -> None:
        await client.request("BREW", "/teapot")
        before = await scrape(client)
        for number in range(20):
            await client.request(f"BREW{number}", f"/invented/{number}")
            await client.get(f"/webhooks/invented-{number}/test")
            await client.put(f"/webhooks/invented-{number}/test")
            await client.get(f"/health/invented-{number}")
        after = await scrape(client)
        assert "invented" not in str(after.keys())
        assert "BREW" not in str(after.keys())
        name = "bloxserver_http_requests_total"
        labels = {"method": "other", "route": "unmatched", "status": "404"}
        assert value(after, name, **labels) - value(before, name, **labels) == 20
        routes = {dict(labels)["route"] for sample, labels in after if sample == name}
        templates = {"unmatched", "/metrics", "/health", "/webhooks/{webhook_token}/test"}
        assert templates - {"/health"} <= routes

    async def test_metrics_include_version_and_process(self, client: httpx.AsyncClient) -> None:
        samples = await scrape(client)
        (build,) = [dict(labels) for name, labels in samples if name == "bloxserver_build_info"]
        assert build["version"] == __version__
        assert value(samples, "process_resident_memory_bytes") > 1_000_000
        assert value(samples, "process_open_fds") > 0

    async def test_metric_names_follow_prometheus_conventions(self, client: httpx.AsyncClient) -> None:
        text = (await client.get("/metrics", headers=BEARER)).text
        kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.MULTILINE))
        assert all(name.startswith(("bloxserver_", "process_")) for name in kinds)
        assert all(name.endswith("_total") == (kind == "counter") for name, kind in kinds.items())
        assert not [name for name in kinds if name.endswith("_created")]


@pytest.mark.usefixtures("token")
class TestDatabase:
    @covers("metrics.database")
    async def test_metrics_include_the_queue(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
    ) -> None:
        flow = await create_flow(session, dev_user)
        await create_execution(session, flow)
        samples = await scrape(client)
        assert value(samples, "bloxserver_database_up") == 1
        assert value(samples, "bloxserver_queue_executions", tier="pro", state="waiting") == 1
        assert ("bloxserver_queue_executions", (("state", "waiting"), ("tier", "enterprise"))) in samples
        assert ("bloxserver_workers_alive", ()) in samples

    async def test_scrape_needs_three_statements(self, client: httpx.AsyncClient, database_engine: AsyncEngine) -> None:
        with count_statements(database_engine) as statements:
            await scrape(client)
        assert len(statements) == 3

    async def test_spending_is_read_if_it_is_limited(
        self, client: httpx.AsyncClient, session: AsyncSession, dev_user: UserRecord
    ) -> None:
        midnight = now().replace(hour=0, minute=0, second=0, microsecond=0)
        rows = [(0.25, midnight, False), (4, midnight, True), (8, midnight - timedelta(seconds=1), False)]
        for dollars, moment, own_key in rows:
            call = LlmCallRecord(user_id=dev_user.id, model="m", created_at=moment, own_key=own_key)
            call.cost_nanousd = round(dollars * NANO)
            session.add(call)
        await session.commit()
        names = ("bloxserver_llm_spending_today_usd", "bloxserver_llm_daily_limit_usd")
        unlimited = await scrape(client)
        assert not {name for name, _ in unlimited} & {*names}
        with override_settings(METRICS_TOKEN=TOKEN, LLM_DAILY_MAX_USD="0.5"):
            limited = await scrape(client)
        assert [limited[name, ()] for name in names] == [0.25, 0.5]

    @covers("metrics.without-database")
    @EVERY_WAY
    async def test_metrics_without_the_database_include_the_rest(
        self, client: httpx.AsyncClient, unreachable: None
    ) -> None:
        samples = await scrape(client)
        assert samples["bloxserver_database_up", ()] == 0
        names = {name for name, _ in samples}
        from_rows = ("bloxserver_queue_executions", "bloxserver_queue_oldest", "bloxserver_workers")
        assert not {name for name in names if name.startswith(from_rows)}
        assert "bloxserver_build_info" in names
        assert "bloxserver_database_pool_size" in names


async def test_every_metric_is_documented(client: httpx.AsyncClient, token: None) -> None:
    text = (await client.get("/metrics", headers=BEARER)).text
    exported = {name for name in re.findall(r"^# TYPE (\S+)", text, re.MULTILINE) if not name.startswith("process_")}
    rows = re.findall(r"^\| `(bloxserver_\w+)` \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(rows) == sorted(exported)
    named = set(re.findall(r"\bbloxserver_\w+", DOCUMENT.read_text(encoding="utf-8")))
    assert {name.removesuffix("_bucket") for name in named} == exported


class TestPool:
    async def test_pool_wait_time_is_measured(self, live_database: Database) -> None:
        pool = live_database.pools()["writing"]
        with measure_increase("bloxserver_database_pool_wait_seconds_count", pool="writing") as taken:
            async with live_database.transaction() as session:
                await session.connection()
                assert pool.checkedout() == 1
        assert taken.number == 1
        assert pool.checkedout() == 0
