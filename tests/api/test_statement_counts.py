"""The number of statements of each request, for any number of rows.

One statement reads the user, except on hot routes, whose own statement does. One inserts the audit event of a change.
"""

from __future__ import annotations

from typing import NamedTuple

import httpx
import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from bloxserver.ids import new_id
from bloxserver.models.tables import (
    ExecutionRecord,
    FlowRecord,
    FlowStatus,
    TriggerRecord,
    TriggerType,
    UserRecord,
)
from tests.statements import count_statements


class Cost(NamedTuple):
    statements: int
    method: str
    path: str
    status: int = 200
    body: dict[str, str | dict[str, str] | None] | None = None


COSTS = {
    "current user": Cost(1, "GET", "/api/v1/me"),
    "usage": Cost(2, "GET", "/api/v1/usage"),
    "usage of flows": Cost(2, "GET", "/api/v1/usage/flows"),
    "usage of flows in the previous period": Cost(3, "GET", "/api/v1/usage/flows?period=previous"),
    "list flows": Cost(1, "GET", "/api/v1/flows"),
    "create a flow with its first version": Cost(6, "POST", "/api/v1/flows", 201, {"name": "New"}),
    "get a flow": Cost(1, "GET", "/api/v1/flows/{running}"),
    "change a flow": Cost(4, "PATCH", "/api/v1/flows/{running}", 200, {"name": "Changed"}),
    "change a flow with an empty body": Cost(2, "PATCH", "/api/v1/flows/{running}", 200, {}),
    "send an unchanged definition": Cost(3, "PATCH", "/api/v1/flows/{running}", 200, {"canvasState": None}),
    "change a definition": Cost(6, "PATCH", "/api/v1/flows/{versioned}", 200, {"organismYaml": "changed"}),
    "change a definition without versions": Cost(
        9, "PATCH", "/api/v1/flows/{stopped}", 200, {"organismYaml": "changed"}
    ),
    "list versions": Cost(3, "GET", "/api/v1/flows/{running}/versions"),
    "get a version": Cost(2, "GET", "/api/v1/flows/{running}/versions/1", 404),
    # One locks the user and reads the plan.
    "start a flow": Cost(6, "POST", "/api/v1/flows/{stopped}/start"),
    "stop a flow": Cost(5, "POST", "/api/v1/flows/{running}/stop"),
    # One for each table, the flow, its number of executions, its size and the user, and two for running executions and
    # their callers.
    "delete a flow": Cost(18, "DELETE", "/api/v1/flows/{running}", 204),
    "list triggers": Cost(3, "GET", "/api/v1/flows/{running}/triggers"),
    "create a trigger": Cost(
        6, "POST", "/api/v1/flows/{running}/triggers", 201, {"type": "webhook", "name": "T", "config": {}}
    ),
    "list executions": Cost(1, "GET", "/api/v1/flows/{running}/executions"),
    "list executions of a status": Cost(1, "GET", "/api/v1/flows/{running}/executions?status_filter=error"),
    "list executions of several statuses": Cost(
        1, "GET", "/api/v1/flows/{running}/executions?status_filter=error&status_filter=timeout"
    ),
    "list executions with all other filters": Cost(
        1,
        "GET",
        "/api/v1/flows/{running}/executions?trigger_type=manual&trigger_id={running}&started_after=2024-01-01T00:00:00Z"
        "&started_before=2100-01-01T00:00:00Z&min_duration_ms=1&has_error=true&q=x",
    ),
    "list a page far behind": Cost(1, "GET", "/api/v1/flows/{running}/executions?page=1000"),
    "list all executions": Cost(1, "GET", "/api/v1/executions"),
    "statistics over time": Cost(1, "GET", "/api/v1/flows/{running}/executions/stats/series?bucket=day"),
    "get an execution": Cost(1, "GET", "/api/v1/flows/{running}/executions/{execution}"),
    "list steps": Cost(3, "GET", "/api/v1/flows/{running}/executions/{execution}/steps"),
    "reconnect to an ended stream": Cost(
        2, "GET", "/api/v1/flows/{running}/executions/{execution}/events?last_event_id=end", 204
    ),
    "cancel an execution": Cost(7, "POST", "/api/v1/flows/{running}/executions/{execution}/cancel"),
    "audit log": Cost(2, "GET", "/api/v1/audit?since=2024-01-01T00:00:00Z&until=2100-01-01T00:00:00Z"),
    # One finds the last of the events that the page searches.
    "audit log with filters": Cost(3, "GET", "/api/v1/audit?action=flow.updated&actor=user&resource_id=x"),
    "statistics": Cost(1, "GET", "/api/v1/flows/{running}/executions/stats"),
    "run": Cost(4, "POST", "/api/v1/flows/{running}/executions/run", 201, {"inputPayload": "x"}),
    "run a stopped flow": Cost(2, "POST", "/api/v1/flows/{stopped}/executions/run", 400),
    "webhook": Cost(3, "POST", "/webhooks/{token}", 200, {"a": "b"}),
    "unknown webhook": Cost(1, "POST", "/webhooks/{token}-", 404),
    "test of a webhook": Cost(1, "GET", "/webhooks/{token}/test"),
    "metrics without a token": Cost(0, "GET", "/metrics", 404),
    "liveness": Cost(0, "GET", "/health/live"),
    "no such route": Cost(0, "GET", "/api/v1/nothing", 404),
    "malformed id": Cost(0, "GET", "/api/v1/flows/x", 422),
}


async def arranged(session: AsyncSession, user: UserRecord, rows: int) -> dict[str, str]:
    """The values in the paths: flows of different states, with this many other rows."""
    running = FlowRecord(id=new_id(), user_id=user.id, name="A flow", status=FlowStatus.RUNNING)
    stopped = FlowRecord(id=new_id(), user_id=user.id, name="A flow")
    webhook = TriggerRecord(
        flow_id=running.id, type=TriggerType.WEBHOOK, name="T", webhook_token=f"token-of-{running.id}"
    )
    executions = [
        ExecutionRecord(id=new_id(), flow_id=running.id, trigger_type=TriggerType.MANUAL) for _ in range(rows)
    ]
    versioned = FlowRecord(id=new_id(), user_id=user.id, name="A flow", latest_version=1)
    session.add_all([running, stopped, versioned, *(FlowRecord(user_id=user.id, name="A flow") for _ in range(rows))])
    await session.flush()
    session.add_all([webhook, *executions])
    session.add_all(TriggerRecord(flow_id=running.id, type=TriggerType.MANUAL, name="T") for _ in range(rows))
    await session.commit()
    return {
        "{running}": str(running.id),
        "{stopped}": str(stopped.id),
        "{versioned}": str(versioned.id),
        "{execution}": str(executions[0].id),
        "{token}": f"token-of-{running.id}",
    }


@pytest.mark.parametrize("rows", [1, 3])
async def test_number_of_statements_does_not_depend_on_rows(
    client: httpx.AsyncClient, session: AsyncSession, database_engine: AsyncEngine, dev_user: UserRecord, rows: int
) -> None:
    await client.get("/api/v1/me")  # the process knows the id of the user from now on
    for name, cost in COSTS.items():
        path = cost.path
        for placeholder, value in (await arranged(session, dev_user, rows)).items():
            path = path.replace(placeholder, value)
        with count_statements(database_engine) as statements:
            response = await client.request(cost.method, path, json=cost.body)
        assert response.status_code == cost.status, name
        assert len(statements) == cost.statements, (name, statements)
