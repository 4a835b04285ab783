"""Run the examples in a test installation, with addresses on loopback and without backoff."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import httpx

from tests.clients.loopback import LoopbackServer, answer
from tests.engine.running_engine import ENDED, accept, eventually, started_flow, steps_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
SIGNING_KEY = "whsec_dGhlIGtleSB0aGF0IHNpZ25zIHRoZSBleGFtcGxlcw=="
SECRETS = {
    "INCIDENTS_KEY": SIGNING_KEY,
    "NOTICE_KEY": SIGNING_KEY,
    "PAYMENTS_TOKEN": "token-of-the-payments",
    "SHOP_TOKEN": "token-of-the-shop",
}


def definition(name: str, outside: LoopbackServer) -> str:
    """Return an example in which https://stock.example.com/… is /stock/… of the test server."""
    text = (EXAMPLES / f"{name}.yaml").read_text(encoding="utf-8")
    text = re.sub(r"https://([a-z]+)\.example\.com", outside.url(r"/\1"), text)
    text = re.sub(r"^    backoff_seconds: .*\n", "", text, flags=re.MULTILINE)
    return re.sub(r"^(    retries: \d+).*$", r"\1\n    backoff_seconds: 0.001", text, flags=re.MULTILINE)


def says(value: Any, status: str = "200 OK") -> bytes:
    """Return a JSON response."""
    return answer(json.dumps(value).encode(), status=status, headers={"Content-Type": "application/json"})


def in_sequence(*answers: bytes) -> Any:
    """Return a responder that sends each answer once, in order."""
    left = iter(answers)

    async def respond(writer: asyncio.StreamWriter) -> None:
        writer.write(next(left))

    return respond


class Flow:
    """A running flow."""

    def __init__(self, client: httpx.AsyncClient, path: str) -> None:
        self.client = client
        self.path = path

    @classmethod
    async def started(cls, client: httpx.AsyncClient, organism: str) -> Flow:
        for name, value in SECRETS.items():
            stored = await client.put(f"/api/v1/secrets/{name}", json={"value": value})
            assert stored.status_code == 200, stored.text
        return cls(client, await started_flow(client, organism))

    async def run(self, payload: Any = None) -> Run:
        """Run the flow manually and wait for the end."""
        execution = await accept(self.client, self.path, payload)
        return await self._ended(execution)

    async def webhook(self, **config: Any) -> str:
        """Create a webhook and return its path."""
        body = {"type": "webhook", "name": "From outside", "config": config}
        created = await self.client.post(f"{self.path}/triggers", json=body)
        return f"/webhooks/{created.json()['webhookToken']}"

    async def post(self, webhook: str, payload: Any) -> Run:
        """Call a webhook, wait for the end, and return the execution."""
        answered = await self.client.post(f"{webhook}?wait=30", json=payload)
        assert answered.status_code == 200, answered.text
        return await self._ended(f"{self.path}/executions/{answered.json()['executionId']}")

    async def retry(self, run: Run) -> Run:
        """Retry an execution from the failed step."""
        execution = f"{self.path}/executions/{run.execution['id']}"
        answered = await self.client.post(f"{execution}/retry?from=failed")
        assert answered.status_code == 201, answered.text
        return await self._ended(f"{self.path}/executions/{answered.json()['id']}")

    async def first_run(self) -> Run:
        """Wait for the first execution to start and to end."""
        async with asyncio.timeout(20):
            while True:
                for item in (await self.client.get(f"{self.path}/executions")).json()["items"]:
                    return await self._ended(f"{self.path}/executions/{item['id']}")
                await asyncio.sleep(0.02)

    async def _ended(self, execution: str) -> Run:
        ended = await eventually(self.client, execution, ENDED)
        return Run(ended, await steps_of(self.client, execution))


class Run:
    """A completed execution."""

    def __init__(self, execution: dict[str, Any], steps: list[dict[str, Any]]) -> None:
        self.execution = execution
        self.status: str = execution["status"]
        self.error: str | None = execution["errorMessage"]
        self.output: Any = json.loads(execution["outputPayload"] or "null")
        self.by_listener = {step["listener"]: step for step in steps}
        self.steps = [(step["listener"], step["status"], step["attempt"]) for step in steps]
        """The listener, status and attempt of each step."""
