"""The process that attacks: `python -m benchmarks.neighbours.attacker` with a line of instructions on stdin.

After the attack, it prints its report, and continues to answer the requests of its executions until stdin ends.

It has the lowest priority, so that the measurement shows the load on the server and not that of the load generator.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.neighbours.connections import Answer, Client
from benchmarks.neighbours.hostile_server import HostileServer

ADDRESS = "127.0.0.2"
"""The address of the attacker. It differs from the victim's, as limits by address require."""
SETUP_SECONDS = 60
REQUEST_SECONDS = 30
MAX_MESSAGE = 300


class Attacker:
    """A user of the free tier with one flow, named `attack`, and what the server answers to its requests."""

    def __init__(self, base_url: str, token: str, server: HostileServer, webhook_token: str | None) -> None:
        self.client = Client(base_url, token, source=ADDRESS, keep=True)
        self.anonymous = Client(base_url, source=ADDRESS, keep=True)
        self.server = server
        self.flow = ""
        self.webhook = f"/webhooks/{webhook_token}" if webhook_token else ""
        self.outcomes: Counter[str] = Counter()
        self.messages: Counter[str] = Counter()

    async def set_up(self, organism: str) -> None:
        """Create the flow and a webhook, and start the flow."""
        if self.webhook:
            page = (await self.client.request("GET", "/api/v1/flows")).json()
            self.flow = f"/api/v1/flows/{page['items'][0]['id']}"
            return
        created = await self.send("POST", "/api/v1/flows", {"name": "attack", "organismYaml": organism})
        self.flow = f"/api/v1/flows/{created.json()['id']}"
        trigger = await self.send("POST", f"{self.flow}/triggers", {"type": "webhook", "name": "hook", "config": {}})
        self.webhook = f"/webhooks/{trigger.json()['webhookToken']}"
        await self.start()

    async def start(self) -> None:
        """Start the flow and wait until it runs or fails."""
        await self.send("POST", f"{self.flow}/start")
        while True:
            flow = (await self.client.request("GET", self.flow)).json()
            if flow["status"] == "error":
                self.messages[f"start: {flow['errorMessage']}"[:MAX_MESSAGE]] += 1
            if flow["status"] != "starting":
                return
            await asyncio.sleep(0.1)

    async def send(self, method: str, path: str, body: object = None, **options: Any) -> Answer:
        """Send a request and count its outcome. A body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        async with asyncio.timeout(REQUEST_SECONDS):
            answer = await self.client.request(method, path, data, **options)
        self.outcomes[answer.outcome] += 1
        if answer.status >= 400 and answer.outcome.endswith("validation_error"):
            self.messages[str(answer.json()["details"])[:MAX_MESSAGE]] += 1
        return answer

    async def trigger(self, body: bytes, query: str = "") -> Answer:
        """Send an input to the webhook. If the flow could not start, try to start it."""
        answer = await self.send("POST", self.webhook + query, body)
        if answer.status == 400 and b"not running" in answer.body:
            await self.start()
        elif answer.status >= 400:
            await asyncio.sleep(0.05)
        return answer

    async def repeat(self, action: Callable[[], Awaitable[object]], concurrency: int = 4, pause: float = 0) -> None:
        """Repeat an action until the attack ends; `concurrency` repetitions at a time."""
        await asyncio.gather(*(self._repeat(action, pause) for _ in range(concurrency)))

    async def _repeat(self, action: Callable[[], Awaitable[object]], pause: float) -> None:
        while True:
            try:
                await action()
            except (OSError, TimeoutError) as error:
                self.outcomes[type(error).__name__] += 1
                await asyncio.sleep(0.05)
            await asyncio.sleep(pause)


async def main(instructions: dict[str, Any]) -> None:
    """Set up and attack for the time of the instructions. Prints the counted outcomes."""
    from benchmarks.neighbours.cases import CASES  # the cases need this module

    case = CASES[instructions["case"]]
    async with HostileServer() as server:
        attacker = Attacker(instructions["url"], instructions["token"], server, instructions["webhook_token"])
        try:
            async with asyncio.timeout(SETUP_SECONDS):
                await attacker.set_up(case.organism.replace("URL", server.url))
            async with asyncio.timeout(instructions["seconds"]):
                await case.attack(attacker)
                await asyncio.Event().wait()
        except TimeoutError:
            pass
        except (OSError, KeyError) as error:  # a refused request has no member that the attack needs
            attacker.outcomes[type(error).__name__] += 1
        report = {"outcomes": attacker.outcomes, "messages": attacker.messages, "flow": attacker.flow}
        print(json.dumps(report), flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    os.nice(19)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    asyncio.run(main(json.loads(sys.stdin.readline())))
