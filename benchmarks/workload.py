"""Flows and executions for the benchmarks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from benchmarks.installation import Installation
from bloxserver.clock import now
from bloxserver.ids import new_id
from bloxserver.models.enums import FlowStatus, Tier, TriggerType
from bloxserver.models.tables import ExecutionRecord, FlowRecord, TriggerRecord, UserRecord

BATCH = 1_000
INPUT = json.dumps({"hello": "world"})
UNLIMITED = (Tier.ENTERPRISE, Tier.HIGH_FREQUENCY)

THREE_ECHOES = """\
organism: {name: three-echoes}
listeners:
  - {name: first, description: The first step., handler: echo, peers: [second]}
  - {name: second, description: The second step., handler: echo, peers: [third]}
  - {name: third, description: The third step., handler: echo}
"""

ONE_REQUEST = """\
organism: {{name: one-request}}
listeners:
  - name: ask
    description: Sends a request to a slow server.
    handler: http.request
    config: {{url: "{url}"}}
    timeout_seconds: 120
"""


@dataclass(frozen=True)
class Flow:
    id: UUID
    webhook_token: str


async def create_flows(
    installation: Installation, count: int, organism: str = THREE_ECHOES, tiers: Sequence[Tier] = UNLIMITED
) -> list[Flow]:
    """Create `count` users, each with a running flow and a webhook. Their tiers alternate."""
    users: list[dict[str, Any]] = []
    flows: list[dict[str, Any]] = []
    triggers: list[dict[str, Any]] = []
    for number in range(count):
        user_id, flow_id, token = new_id(), new_id(), f"token-{new_id().hex}"
        tier = tiers[number % len(tiers)]
        users.append({"id": user_id, "clerk_id": f"user_{user_id.hex}", "email": "", "tier": tier})
        flow = {"id": flow_id, "user_id": user_id, "name": "measured", "status": FlowStatus.RUNNING}
        flows.append(flow | {"organism_yaml": organism})
        trigger = {"id": new_id(), "flow_id": flow_id, "type": TriggerType.WEBHOOK, "name": "webhook"}
        triggers.append(trigger | {"webhook_token": token})
    async with installation.database.transaction() as session:
        for record, rows in ((UserRecord, users), (FlowRecord, flows), (TriggerRecord, triggers)):
            await session.execute(sa.insert(record), rows)
    return [Flow(flow["id"], trigger["webhook_token"]) for flow, trigger in zip(flows, triggers, strict=True)]


async def accept_backlog(
    installation: Installation,
    flows: Sequence[Flow],
    count: int,
    *,
    resume_at: datetime | None = None,
    payload: str = INPUT,
) -> None:
    """Insert `count` executions as the API does, distributed over the flows. With `resume_at` they are suspended."""
    for start in range(0, count, BATCH):
        rows = [
            {
                "id": new_id(),
                "flow_id": flows[number % len(flows)].id,
                "trigger_type": TriggerType.MANUAL,
                "started_at": now(),
                "input_payload": payload,
                "resume_at": resume_at,
            }
            for number in range(start, min(start + BATCH, count))
        ]
        async with installation.database.transaction() as session:
            await session.execute(sa.insert(ExecutionRecord), rows)
