"""A sender of webhooks, and the webhook that it calls."""

from __future__ import annotations

import hmac
from typing import Any

import httpx
import sqlalchemy as sa

from bloxserver.models.database import Database
from bloxserver.models.enums import FlowStatus
from bloxserver.models.tables import ExecutionRecord, FlowRecord
from tests.api.contract import API

GITHUB = {"scheme": "github"}
BODY = b'{"number": 17}'


class Webhook:
    """A webhook of a running flow, and the calls of its sender."""

    def __init__(self, client: httpx.AsyncClient, trigger: dict[str, Any], secret: str) -> None:
        self.client = client
        self.trigger = trigger
        self.path = f"{API}/flows/{trigger['flowId']}/triggers/{trigger['id']}"
        self.url = f"/webhooks/{trigger['webhookToken']}"
        self.secret = secret

    def signature(self, body: bytes = BODY) -> dict[str, str]:
        digest = hmac.new(self.secret.encode(), body, "sha256").hexdigest()
        return {"X-Hub-Signature-256": f"sha256={digest}"}

    async def send(self, body: bytes = BODY, **headers: str) -> httpx.Response:
        """Send a signed request."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.client.post(self.url, content=body, headers=self.signature(body) | named)

    async def deliveries(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = (await self.client.get(f"{self.path}/deliveries")).json()
        return found


async def webhook(
    client: httpx.AsyncClient, database: Database, signature: dict[str, Any] | None = None, secret: str | None = None
) -> Webhook:
    flow = (await client.post(f"{API}/flows", json={"name": "Orders"})).json()
    config = {} if signature is None else {"signature": signature}
    body = {"type": "webhook", "name": "From the shop", "config": config}
    created = await client.post(f"{API}/flows/{flow['id']}/triggers", json=body)
    assert created.status_code == 201, created.text
    made = Webhook(client, created.json(), "")
    if signature is not None:
        given = {} if secret is None else {"secret": secret}
        answer = await client.post(f"{made.path}/signing-secrets", json=given)
        assert answer.status_code == 201, answer.text
        made.secret = answer.json()["secret"]
    async with database.transaction() as session:
        await session.execute(sa.update(FlowRecord).values(status=FlowStatus.RUNNING))
    return made


async def count(database: Database, table: type[Any] = ExecutionRecord) -> int:
    async with database.sessions() as session:
        return await session.scalar(sa.select(sa.func.count()).select_from(table)) or 0
