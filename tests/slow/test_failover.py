"""A primary PostgreSQL server is killed and its standby promoted, under load; no process of ours is restarted."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import httpx

from tests.chaos.processes import QUICK
from tests.chaos.report import Report
from tests.chaos.scenario import run_scenario
from tests.chaos.waiting import wait_until
from tests.chaos.workspace import Workspace, migrate
from tests.replication import replicated_servers

MORE = 40
"""Executions accepted before the primary is killed, and after the standby is promoted."""
RECOVERY_SECONDS = 15


async def test_api_and_worker_go_on_with_the_promoted_standby(tmp_path: Path) -> None:
    report = Report("the primary killed, the standby promoted")
    with replicated_servers() as servers:
        migrate(servers.url, tmp_path)
        async with (
            run_scenario(Workspace(servers.url, tmp_path), QUICK) as run,
            httpx.AsyncClient(timeout=30) as client,
        ):
            await run.start(replicas=1, workers=1)
            [api] = run.installation.replicas
            load = run.load(per_second=20)
            await run.wait_until_accepted(MORE)
            await asyncio.to_thread(servers.primary.kill)

            async def unavailable() -> bool:
                # The standby answers, but does not accept writes.
                return (await client.get(f"{api.url}/health/ready")).status_code == 503

            await wait_until("the API to be without a database", unavailable, 30)
            await asyncio.to_thread(servers.standby.promote)
            promoted_at = time.monotonic()
            await run.wait_until_accepted(MORE)
            accepted_at = run.client.responses.first_after(promoted_at)
            worked_at = min(call.started for call in run.recorder.all_calls if call.started > promoted_at)
            await load.stop()
            await run.check(report)
            report.expect_at_most("until accepting again (s)", accepted_at - promoted_at, RECOVERY_SECONDS)
            report.expect_at_most("until working again (s)", worked_at - promoted_at, RECOVERY_SECONDS)
    assert report.violations == [], str(report)
